"""Submitting: a run is recorded once, and left to whoever takes it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pocket_plug import (
    ConfigError,
    Graph,
    InputError,
    KeyNameError,
    RunMismatchError,
    Store,
    SyncStore,
    SyncWriter,
    node,
)
from pocket_plug.graph.durable.records import keys_of
from pocket_plug.graph.durable.states import StateKey, states_of


@node
async def double(n: int) -> int:
    return 2 * n


@node.post
def count(store: SyncWriter, n: int) -> int:
    store.update("counted", lambda times: times + 1, default=0)
    return n


graph = Graph(double >> count, name="doubling")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state.db?durability=process"


async def pending(store: Store) -> list[str]:
    return [StateKey.parse(key).run_id async for key in store.stack.scan(states_of("pending", "doubling"))]


def test_a_submitted_run_waits_for_others_and_does_nothing(url: str) -> None:
    """It is `pending`, under its graph's name, nothing of it has been done, and whoever goes on with it needs no input."""

    async def main() -> None:
        async with Store(url) as store:
            assert await graph.submit(21, run_id="d:1", store=store) == "pending"
            assert await pending(store) == ["d:1"]
            assert not await store.has("counted")
            assert await graph.resume("d:1", store=store) == 42
            assert await store.get("counted") == 1
            assert await pending(store) == []

    asyncio.run(main())


def test_submitting_again_records_nothing_and_gives_the_state_by_now(url: str) -> None:
    """The same line as often as one likes, before and after the run; another input, or another graph, is refused."""

    async def main() -> None:
        async with Store(url) as store:
            await graph.submit(21, run_id="d-1", store=store)
            before = await store.stack.version()
            assert await graph.submit(21, run_id="d-1", store=store) == "pending"
            with pytest.raises(RunMismatchError, match="another input"):
                await graph.submit(22, run_id="d-1", store=store)
            with pytest.raises(RunMismatchError, match="another run_id"):
                await Graph(double, name="other").submit(21, run_id="d-1", store=store)
            assert await store.stack.version() == before
            await graph.run(21, run_id="d-1", store=store)
            assert await graph.submit(21, run_id="d-1", store=store) == "finished"

    asyncio.run(main())


def test_of_two_that_submit_at_once_one_records_it(url: str) -> None:
    """A hundred that submit the same id at the same time: one run, and all are told its state."""

    async def main() -> None:
        async with Store(url) as store:
            states = await asyncio.gather(*(graph.submit(21, run_id="d-1", store=store) for _ in range(100)))
            assert set(states) == {"pending"}
            assert await pending(store) == ["d-1"]

    asyncio.run(main())


def test_what_could_never_run_is_refused_where_it_is_submitted(url: str) -> None:
    """An input of another type, an id that is none, a store that does not survive; the nested graph's first node counts."""

    async def main() -> None:
        async with Store(url) as store:
            with pytest.raises(InputError, match=r"node 'double' of graph 'doubling' takes int, not str"):
                await graph.submit("21", run_id="d-1", store=store)  # type: ignore[arg-type]  # the test of it
            with pytest.raises(InputError, match="takes int, not str"):
                await Graph(graph, name="outer").submit("21", run_id="d-1", store=store)  # type: ignore[arg-type]  # the same
            with pytest.raises(KeyNameError, match="run_id"):
                await graph.submit(21, run_id="", store=store)
            assert [key async for key in store.stack.scan("pocket:")] == []
        async with Store() as store:
            with pytest.raises(ConfigError, match="is not persistent"):
                await graph.submit(21, run_id="d-1", store=store)

    asyncio.run(main())


def test_submitting_without_await(url: str) -> None:
    """`submit_sync` is the same for callers without a loop, over a store of either kind."""
    with SyncStore(url) as store:
        assert graph.submit_sync(21, run_id="d-1", store=store) == "pending"
        assert graph.resume_sync("d-1", store=store) == 42
        assert graph.submit_sync(21, run_id="d-1", store=store) == "finished"


def test_a_graph_without_a_store_of_its_own_goes_on_over_the_one_given(url: str) -> None:
    """`store=` for run, resume, submit and check_runs; a graph that has one refuses another."""

    async def main() -> None:
        async with Store(url) as store:
            await graph.submit(1, run_id="d-1", store=store.scope("shop"))
            (check,) = await graph.check_runs(store=store.scope("shop"))
            assert (check.state, check.can_go_on) == ("pending", True)
            assert await graph.check_runs(store=store.scope("other")) == []
            assert await graph.run(1, run_id="d-1", store=store.scope("shop")) == 2
            assert await store.get("shop:counted") == 1
            own = Graph(double, store=store, name="own")
            with pytest.raises(ConfigError, match=r"graph 'own' has a store of its own; leave out store="):
                await own.run(1, store=store)

    asyncio.run(main())


def test_the_trace_of_who_submitted_is_kept(url: str) -> None:
    """What `traceparent` names stands in the run's record, so that its first execution is linked to it."""

    async def main() -> None:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        async with Store(url) as store:
            await graph.submit(1, run_id="d-1", store=store, traceparent=trace)
            entry = await store.stack.read(keys_of("d-1")[0])
            assert entry is not None
            assert entry.value["carrier"] == {"traceparent": trace}
            assert entry.value["epoch"] == 0

    asyncio.run(main())
