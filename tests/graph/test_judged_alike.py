"""Runs in the same position are checked once, whatever their values are; runs in other positions are checked separately."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest import mock

import pytest

from pocket_plug import Ask, Graph, RunSuspendedError, Store, each, node
from pocket_plug.graph.durable import judging


def deploy(store: Store, gives: type = str, broken: int | None = None) -> Graph[list[int], str]:
    """A fan-out whose item with this number fails, and whose result has this type."""

    async def work(n: int) -> object:
        if n == broken:
            raise RuntimeError("down")
        return gives(n)

    async def join(results: list[object]) -> str:
        return ",".join(map(str, results))

    work.__annotations__["return"] = gives
    return Graph(each(node(work), concurrency=1) >> node(join), store=store, name="g")


def test_fan_outs_in_the_same_position_are_checked_once(tmp_path: Path) -> None:
    """So ten thousand are checked quickly. If items are done, results of two types would be mixed; if none is done, any change is
    fine.
    """

    async def main() -> None:
        async with Store(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
            for number in range(4):
                with pytest.raises(RuntimeError):
                    await deploy(store, broken=2).run([10 * number, 1, 2, 3], run_id=f"some done {number}")
                with pytest.raises(RuntimeError):
                    await deploy(store, broken=2).run([2, 10 * number], run_id=f"none done {number}")
            with mock.patch.object(judging, "differences", wraps=judging.differences) as judged:
                found = {each.run_id: each for each in await deploy(store, int).check_runs()}
            assert len(found) == 8
            assert judged.call_count == len({each.differences for each in found.values()}) == 2
            lines = {"- items of each_work give str", "+ items of each_work give int"}
            for run_id, check in found.items():
                assert check.can_resume == run_id.startswith("none done"), run_id
                assert check.can_resume or lines <= set(check.differences), run_id

    asyncio.run(main())


def test_fan_outs_that_have_items_to_begin_are_checked_separately(tmp_path: Path) -> None:
    """Those items begin at a node that has changed. All items of the other run have passed it, and wait at the same node."""

    def deploy(store: Store, first: str, broken: int | None = None) -> Graph[list[int], list[int]]:
        async def begin(n: int) -> int:
            if n == broken:
                raise RuntimeError("down")
            return n

        ask = Ask[int, bool](bool, question="sure?", name="sure")
        inner = Graph(node(begin, name=first) >> ask >> node(lambda answered: 1, name="last"), name="inner")
        return Graph(each(inner, concurrency=1), store=store, name="g")

    async def main() -> None:
        async with Store(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
            with pytest.raises(RunSuspendedError):
                await deploy(store, "before").run([1, 2], run_id="all begun")
            with pytest.raises(RuntimeError):
                await deploy(store, "before", broken=2).run([1, 2], run_id="one begun")
            found = {each.run_id: each.can_resume for each in await deploy(store, "after").check_runs()}
            assert found == {"all begun": True, "one begun": False}

    asyncio.run(main())
