"""Removing runs: all of a run is removed or none, and nothing of one that is resumed or started again meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import (
    Ask,
    Graph,
    Node,
    RunBusyError,
    RunCancelledError,
    RunFencedError,
    RunSuspendedError,
    Sleep,
    Store,
    StoreError,
    StoreWriter,
    each,
    node,
)
from pocket_plug.graph.durable.finished import sweep
from pocket_plug.graph.durable.removal import remove_run
from pocket_plug.store.backend import Change
from pocket_plug.testing.clock import FakeClock

from .meanwhile import TOLD, stored
from .meanwhile import undisturbed as undisturbed


async def records(store: Store) -> list[str]:
    return [key async for key in store.stack.scan("pocket:")]


class Boom(Exception):
    """The error of the failing node."""


def failing(store: Store, broken: list[bool]) -> Graph[list[int], int]:
    """Pays for each item, then fails while it is broken."""

    @node.post
    async def pay(store: StoreWriter, amount: int) -> int:
        await store.update("paid", lambda total: total + amount, default=0)
        if broken[0] and amount == 4:
            raise Boom
        return amount

    @node
    def total(amounts: list[int]) -> int:
        return sum(amounts)

    return Graph(each(pay, concurrency=1) >> total, store=store, name="paying")


@pytest.mark.parametrize("state", ["finished", "kept", "looked at", "failed", "suspended", "sleeping"])
def test_all_records_of_a_run_are_removed(tmp_path: Path, state: str) -> None:
    """In any state, none of its records is left; those of a run whose id starts with the same text are; removing it again finds
    nothing.
    """

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock=clock) as store:
            works: dict[str, Node[Any, Any]] = {"suspended": Ask(bool, question="Really?"), "sleeping": Sleep("1h")}
            work = works.get(state, node(lambda word: word, name="say"))
            graph = Graph(work, store=store, name="g:1", keep_finished="1d" if state in ("kept", "looked at") else None)
            for run_id in ("r", "r:2", "r2"):
                with suppress(RunSuspendedError, Boom):
                    await (
                        failing(store, [True]).run([3, 4], run_id=run_id)
                        if state == "failed"
                        else graph.run("?", run_id=run_id)
                    )
            if state == "looked at":
                clock.advance(2 * 86_400)
                await sweep(store.stack)
            before = await records(store)
            assert await remove_run(store.stack, "r")
            gone = set(before) - set(await records(store))
            assert gone == {key for key in before if key.endswith(":r") or key.startswith("pocket:run-part:r:")}
            assert len(gone) >= 3
            assert set(await records(store)) < set(before)
            assert not await remove_run(store.stack, "r")

    asyncio.run(main())


@pytest.mark.parametrize("at", range(6))
def test_a_run_that_could_go_on_is_removed_whole_or_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """A removal of a failed run stops at any write: the run is resumed with each effect once, or not at
    all; it can be removed.
    """
    monkeypatch.setattr("pocket_plug.graph.durable.removal.CHUNK", 2)

    async def main() -> None:
        writes, broken = 0, [True]

        async def stop(_changes: Sequence[Change]) -> None:
            nonlocal writes
            writes += 1
            if writes > at:
                raise StoreError("no power")

        async with stored(tmp_path) as store:
            with pytest.raises(Boom):
                await failing(store, broken).run([1, 2, 3, 4], run_id="r")
            TOLD.before = stop
            with suppress(StoreError):
                await remove_run(store.stack, "r")
            TOLD.before, broken[0] = None, False
            if await store.stack.read("pocket:run:r") is None:
                assert await records(store) == []
                return
            if at == 0:
                assert await failing(store, broken).resume("r") == 10
            else:
                with pytest.raises(RunCancelledError):
                    await failing(store, broken).resume("r")
            assert await store.get("paid") == (10 if at == 0 else 6)
            assert await remove_run(store.stack, "r")
            assert await records(store) == []

    asyncio.run(main())


def test_a_run_that_is_resumed_meanwhile_loses_nothing(tmp_path: Path) -> None:
    """A failed run is resumed before the removal's first write: that write is not done, and the removal reads again."""

    async def main() -> None:
        broken = [True]

        async def resume(_changes: Sequence[Change]) -> None:
            TOLD.before, broken[0] = None, False
            assert await failing(store, broken).resume("r") == 10
            assert await store.get("paid") == 10

        async with stored(tmp_path) as store:
            with pytest.raises(Boom):
                await failing(store, broken).run([1, 2, 3, 4], run_id="r")
            TOLD.before = resume
            assert await remove_run(store.stack, "r")
            assert await records(store) == []
            assert await store.get("paid") == 10

    asyncio.run(main())


def test_a_running_run_is_removed_only_with_force(tmp_path: Path) -> None:
    """Otherwise it is an error; with force the running execution is fenced off, and leaves nothing behind."""

    async def main() -> None:
        async with stored(tmp_path) as store:

            @node
            async def removes(word: str) -> str:
                before = await records(store)
                with pytest.raises(RunBusyError, match=r"'r' is running; .*force=True"):
                    await remove_run(store.stack, "r")
                assert await records(store) == before
                assert await remove_run(store.stack, "r", force=True)
                return word

            with pytest.raises(RunFencedError):
                await Graph(removes, store=store, name="g").run("x", run_id="r")
            assert await records(store) == []

    asyncio.run(main())
