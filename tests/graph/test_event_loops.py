"""Event loops other than the one of `asyncio.run`: with eager tasks (since Python 3.12), and those of AnyIO."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

from pocket_plug import Finished, Graph, Runs, Store, Worker, each, gather, node


def run_eagerly(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    def loop() -> asyncio.AbstractEventLoop:
        made = asyncio.new_event_loop()
        made.set_task_factory(getattr(asyncio, "eager_task_factory", None))
        return made

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


@node
def items(n: int) -> list[int]:
    return list(range(n))


@node
async def double(n: int) -> int:
    return 2 * n


@node
async def fail(n: int) -> int:
    raise ValueError(n)


@pytest.mark.parametrize("run", [run_eagerly, anyio.run])
def test_a_graph_and_a_hot_key(run: Callable[..., None], tmp_path: Path) -> None:
    """Updates of one key, concurrent items and branches, an error among them, a stream, a durable run and a worker."""

    async def main() -> None:
        async with Store(f"sqlite:///{tmp_path}/state.db") as store:
            await asyncio.gather(*(store.update("n", lambda n: n + 1, default=0) for _ in range(100)))
            assert await store.get("n") == 100
            graph = Graph(items >> each(double), store=store, name="doubling")
            assert await graph.run(20) == [*range(0, 40, 2)]
            for failing, given in ((Graph(items >> each(fail)), 20), (Graph(gather(double, fail)), 1)):
                with pytest.raises(ValueError, match=r"0|1"):
                    await failing.run(given)
            await asyncio.sleep(0)  # no cancellation is left
            assert [event.output async for event in graph.stream(2) if isinstance(event, Finished)] == [[0, 2]]
            assert await graph.run(3, run_id="r") == [0, 2, 4]
            await graph.submit(2, run_id="submitted")
            await Worker([graph]).run(once=True)
            assert {run.state for run in (await Runs(store).list()).runs} == {"finished"}

    run(main)


def test_a_scope_of_anyio_cancels_a_run() -> None:
    @node
    async def wait(n: int) -> int:
        await anyio.sleep_forever()
        return n

    async def main() -> None:
        with anyio.move_on_after(0.01) as scope:
            await Graph(items >> each(wait)).run(5)
        assert scope.cancel_called
        assert await Graph(double).run(1) == 2

    anyio.run(main)
