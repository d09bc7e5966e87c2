"""Pruning: old runs that have ended are removed, a few at a time; nothing else is, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import Ask, ConfigError, Graph, Put, Runs, RunSuspendedError, Store, StoreWriter, each, node
from pocket_plug.graph.durable import indexing
from pocket_plug.graph.durable.prune import EVERY, PAUSE, REST, SLICE, Pruned, Pruner, Pruning, prune
from pocket_plug.graph.durable.removal import remove_run
from pocket_plug.graph.durable.states import prefixes_in
from pocket_plug.graph.retention import Retention
from pocket_plug.store.backend import Change
from pocket_plug.testing.clock import FakeClock

from .meanwhile import TOLD, stored
from .meanwhile import undisturbed as undisturbed

DAY = 86_400.0


class Boom(Exception):
    """The error of a failing node."""


def say(store: Store, name: str = "say") -> Graph[str, str]:
    return Graph(node(lambda word: word, name="say"), store=store, name=name)


def asking(store: Store) -> Graph[str, bool]:
    return Graph(Ask(bool, question="Really?"), store=store, name="asking")


def paying(store: Store, broken: list[bool]) -> Graph[list[int], int]:
    """Pays for each item, and fails at the last one while it is broken."""

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


async def kept(store: Store) -> set[str]:
    """The existing runs, by their records and by their states, which agree."""
    runs = {key.removeprefix("pocket:run:") async for key in store.stack.scan("pocket:run:")}
    assert runs == {key.rpartition(":")[2] async for key in store.stack.scan("pocket:run-state:")}
    assert runs >= {key.split(":")[2] async for key in store.stack.scan("pocket:run-part:")}
    return runs


async def one_in_each_state(store: Store) -> None:
    await say(store).run("x", run_id="finished")
    with suppress(RunSuspendedError):
        await asking(store).run("x", run_id="suspended")
    with suppress(Boom):
        await paying(store, [True]).run([3, 4], run_id="failed")
    for status in ("cancelled", "running", "pending"):
        await say(store).run("x", run_id=status)
        found = await store.stack.read(f"pocket:run:{status}")
        assert found is not None
        (key,) = [each async for each in store.stack.scan("pocket:run-state:finished:") if each.endswith(f":{status}")]
        state = await store.stack.read(key)
        assert state is not None
        moved = [
            Put(f"pocket:run:{status}", {**found.value, "status": status}),
            Put(key.replace("finished", status), state.value),
        ]
        await store.stack.write(moved)
        await remove_key(store, key)


async def remove_key(store: Store, key: str) -> None:
    from pocket_plug.store.backend import Delete

    await store.stack.write([Delete(key)])


@pytest.mark.parametrize(
    ("states", "gone"),
    [
        (("finished", "cancelled"), {"finished", "cancelled"}),
        (("cancelled",), {"cancelled"}),
        (("failed",), {"failed"}),
        (("finished", "cancelled", "failed"), {"finished", "cancelled", "failed"}),
    ],
)
def test_only_ended_runs_in_the_named_states_are_removed(
    tmp_path: Path, states: tuple[str, ...], gone: set[str]
) -> None:
    """Runs in the named states, and never a pending, running or suspended one; a dry run reports the same and removes nothing."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            await one_in_each_state(store)
            clock.advance(100 * DAY)
            before = await kept(store)
            would = await prune(store.stack, Retention(older="30d", states=states), dry_run=True)
            assert await kept(store) == before
            did = await prune(store.stack, Retention(older="30d", states=states))
            assert (did.runs, did.records) == (would.runs, would.records)
            assert (did.runs, before - await kept(store)) == (len(gone), gone)
            assert await prune(store.stack, Retention(older="30d", states=states)) == Pruned()

    asyncio.run(main())


def test_runs_remove_what_is_asked_for_and_say_how_much(tmp_path: Path) -> None:
    """`Runs.prune` and, for sync callers, `SyncRuns.prune`; "finished" and "cancelled" unless `state` says otherwise."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            await one_in_each_state(store)
            clock.advance(100 * DAY)
            before, runs = await kept(store), Runs(store)
            would = await runs.prune(older="30d", dry_run=True)
            assert (would.runs, await kept(store)) == (2, before)
            assert await runs.prune(older="30d", graph="paying") == await runs.prune(keep=1) == Pruned()
            assert (await runs.prune(older="30d", state="finished")).runs == 1
            assert before - await kept(store) == {"finished"}
            did = await asyncio.to_thread(runs.sync.prune, older="30d", state=["cancelled", "failed"])
            assert (did.runs, before - await kept(store)) == (2, {"finished", "cancelled", "failed"})
            with pytest.raises(ConfigError, match="older"):
                await runs.prune()

    asyncio.run(main())


def test_age_counts_from_the_end(tmp_path: Path) -> None:
    """A run that started long ago and ended recently stays, and doesn't protect runs that started after it."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            with suppress(RunSuspendedError):
                await asking(store).run("x", run_id="slow")
            clock.advance(DAY)
            with suppress(RunSuspendedError):
                await asking(store).run("x", run_id="quick")
            await asking(store).resume("quick", answer=True)
            clock.advance(40 * DAY)
            await asking(store).resume("slow", answer=True)
            clock.advance(10 * DAY)
            assert (await prune(store.stack, Retention(older="50d"))).runs == 1
            assert await kept(store) == {"slow"}
            clock.advance(40 * DAY)
            assert (await prune(store.stack, Retention(older="50d"))).runs == 1

    asyncio.run(main())


@pytest.mark.parametrize("keep", [0, 1, SLICE, 3 * SLICE - 1, 3 * SLICE, 3 * SLICE + 1])
def test_the_newest_runs_of_each_graph_stay(tmp_path: Path, keep: int) -> None:
    """However many there are per slice; old runs among them stay too, and graphs whose names start alike are separate."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            for graph in ("a", "a:b", "a;"):
                for number in range(3 * SLICE):
                    await say(store, graph).run("x", run_id=f"{graph} {number:03}".replace(":", "."))
                    clock.advance(1)
            clock.advance(DAY)
            found = await kept(store)
            newest = {run for run in found if int(run.rpartition(" ")[2]) >= 3 * SLICE - keep}
            assert (await prune(store.stack, Retention(keep=keep, graph="a:b"))).runs == max(0, 3 * SLICE - keep)
            assert await kept(store) == {run for run in found if not run.startswith("a.b")} | newest
            assert (await prune(store.stack, Retention(older="2d", keep=keep))).runs == 0
            await prune(store.stack, Retention(older="1h", keep=keep))
            assert await kept(store) == newest

    asyncio.run(main())


def test_a_failed_run_that_is_resumed_meanwhile_continues(tmp_path: Path) -> None:
    """It is resumed right before its removal: it has its items' results, and is not removed."""

    async def main() -> None:
        clock, broken = FakeClock(), [True]

        async def retry(_changes: Sequence[Change]) -> None:
            TOLD.before, broken[0] = None, False
            assert await paying(store, broken).resume("r") == 10

        async with stored(tmp_path, clock) as store:
            with pytest.raises(Boom):
                await paying(store, broken).run([1, 2, 3, 4], run_id="r")
            clock.advance(DAY)
            TOLD.before = retry
            assert await prune(store.stack, Retention(older="1h", states=["failed"])) == Pruned()
            assert await paying(store, broken).resume("r") == 10
            assert await store.get("paid") == 10

    asyncio.run(main())


@pytest.mark.parametrize("is_open", [True, False])
def test_a_run_that_is_started_again_meanwhile_stays(tmp_path: Path, is_open: bool) -> None:
    """It was removed and started again with its id before the last write: none of the new run's records is removed."""

    async def main() -> None:
        clock = FakeClock()

        async def begin_anew(_changes: Sequence[Change]) -> None:
            TOLD.before = None
            await remove_run(store.stack, "r 3")
            if is_open:
                with suppress(RunSuspendedError):
                    await asking(store).run("x", run_id="r 3")
            else:
                await say(store).run("again", run_id="r 3")

        async with stored(tmp_path, clock) as store:
            for number in range(6):
                await say(store).run("x", run_id=f"r {number}")
            clock.advance(DAY)
            TOLD.before = begin_anew
            assert (await prune(store.stack, Retention(older="1h"))).runs == 5
            assert await kept(store) == {"r 3"}
            if is_open:
                await asking(store).resume("r 3", answer=True)
            else:
                assert await say(store).resume("r 3") == "again"

    asyncio.run(main())


def test_damaged_records_do_not_stop_the_pruning_of_others(tmp_path: Path) -> None:
    """They are counted and left, whether a run's record, its bytes, its state or a key is damaged; `remove_run` removes them."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            for number in range(3 * SLICE):
                await say(store).run("x", run_id=f"{number:03}")
            await store.stack.write(
                [
                    Put("pocket:run:000", [1]),
                    Put("pocket:run-state:finished:say:x:y", None),
                    Put("pocket:run-state:finished:x", None),
                ]
            )
            (state,) = [key async for key in store.stack.scan("pocket:run-state:finished:say:") if key.endswith(":001")]
            await store.stack.write([Put(state, "no state")])
            with closing(sqlite3.connect(tmp_path / "state.db")) as other, other:
                other.execute("UPDATE entries SET value = zeroblob(9) WHERE key = 'pocket:run:002'")
            clock.advance(DAY)
            pruned = await prune(store.stack, Retention(older="1h"))
            assert (pruned.runs, pruned.unreadable) == (3 * SLICE - 3, 3)
            for run_id in ("000", "001", "002"):
                assert await remove_run(store.stack, run_id)
            left = [key async for key in store.stack.scan("pocket:run-state:")]
            assert left == ["pocket:run-state:finished:say:x:y", "pocket:run-state:finished:x"]

    asyncio.run(main())


def test_a_clock_that_is_ahead_removes_no_young_runs(tmp_path: Path) -> None:
    """A worker's time never exceeds the start of the newest run, whoever started it, so young runs stay; old runs are removed
    then.
    """

    async def main() -> None:
        clock, ahead = FakeClock(), [0.0]
        async with stored(tmp_path, lambda: clock() + ahead[0]) as store:
            for number in range(2 * SLICE):
                await say(store).run("x", run_id=f"old {number}")
            clock.advance(20 * DAY)
            with suppress(RunSuspendedError):
                await asking(store).run("x", run_id="new")
            pruner, ahead[0] = Pruner(store.stack, Retention(older="30d")), 365 * DAY
            assert await slices(pruner) == 0.0
            assert len(await kept(store)) == 2 * SLICE + 1
            ahead[0] = 0.0
            clock.advance(20 * DAY)
            with suppress(RunSuspendedError):
                await asking(store).run("x", run_id="newer")
            assert await slices(pruner) == 0.0
            assert await kept(store) == {"new", "newer"}

    asyncio.run(main())


async def slices(pruner: Pruner) -> float:
    """A whole pass; returns the longest pause between slices."""
    longest = 0.0
    while (rest := await pruner.slice()) < EVERY:
        longest = max(longest, rest)
    return longest


def test_slices_are_short_and_yield_to_others(tmp_path: Path) -> None:
    """Each slice reads a few runs; while others write there is a pause between slices, otherwise none."""

    async def main() -> None:
        clock, writes = FakeClock(), list[int]()

        async def count(changes: Sequence[Change]) -> None:
            writes.append(len(changes))

        async with stored(tmp_path, clock) as store:
            for number in range(6 * SLICE):
                await say(store).run("x", run_id=f"{number}")
            clock.advance(DAY)
            pruning, rests, gone = Pruning(store.stack, Retention(older="1h")), list[float | None](), list[int]()
            assert await prune(store.stack, Retention(older="9d")) == Pruned()
            TOLD.before = count
            for is_busy in (False, False, False, True, True, False):
                if is_busy:
                    await store.set("mine", len(rests))
                before = pruning.runs
                rests.append(await pruning.slice())
                gone.append(pruning.runs - before)
            assert rests == [0.0, 0.0, 0.0, PAUSE, PAUSE, 0.0]
            assert gone == [SLICE] * 6
            assert max(writes) < 100

    asyncio.run(main())


def test_a_run_of_many_records_is_removed_in_several_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So no write takes long; until the last one it is a finished run that gives its result."""
    monkeypatch.setattr("pocket_plug.graph.durable.removal.CHUNK", 4)

    async def main() -> None:
        clock, writes = FakeClock(), list[int]()

        async def look(changes: Sequence[Change]) -> None:
            TOLD.before = None
            assert await long.resume("r") == 0
            writes.append(len(changes))
            TOLD.before = look

        async with stored(tmp_path, clock) as store:
            names = [node(lambda n: n, name=f"n{number}") for number in range(20)]
            joined: Any = names[0]
            for name in names[1:]:
                joined = joined >> name
            long: Graph[int, int] = Graph(joined, store=store, name="long")
            assert await long.run(0, run_id="r") == 0
            clock.advance(DAY)
            assert await prune(store.stack, Retention(keep=1)) == Pruned()  # notes that no run is without a state
            TOLD.before = look
            assert (await prune(store.stack, Retention(older="1h"))).runs == 1
            TOLD.before = None
            assert len(writes) == 6
            assert max(writes) <= 4
            assert await kept(store) == set()

    asyncio.run(main())


def test_the_file_shrinks(tmp_path: Path) -> None:
    """Space of removed runs is returned to the file system, except what is still needed."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            for number in range(40):
                await say(store).run("x" * 10_000, run_id=f"{number}")
            clock.advance(DAY)
            await say(store).run("x", run_id="young")
            pruned = await prune(store.stack, Retention(older="1h"))
            assert (pruned.runs, await kept(store)) == (40, {"young"})
            assert pruned.freed > 40 * 10_000
            assert await store.stack.check() == []
        assert (tmp_path / "state.db").stat().st_size < 100_000

    asyncio.run(main())


def test_graphs_are_found_whatever_their_names(tmp_path: Path) -> None:
    """Each graph is found once, with one read."""

    async def main() -> None:
        async with stored(tmp_path, FakeClock()) as store:
            names = ["a", "a:", "a;", "a!", "%", "ä", "\U0010ffff", "a:b:c"]
            for name in names:
                for number in range(3):
                    await say(store, name).run("x", run_id=f"{names.index(name)} {number}")
            found = await prefixes_in(store.stack, "finished")
            assert len(found) == len(set(found)) == len(names)
            assert await prefixes_in(store.stack) == found
            assert await prefixes_in(store.stack, "failed") == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither older nor keep is given; give one of them, or both"),
        ({"older": "soon"}, "older can't be 'soon'; give seconds from 0 up"),
        ({"older": True}, "older can't be True"),
        ({"keep": -1}, "keep must be a number of runs, 0 or more, not -1"),
        ({"keep": True}, "keep must be a number of runs"),
        (
            {"keep": 1, "states": ["suspended"]},
            "runs of the state 'suspended' can't be pruned, only those that have ended",
        ),
        ({"keep": 1, "states": "running"}, "runs of the state 'running' can't be pruned"),
        ({"keep": 1, "states": ["finish"]}, "Did you mean 'finished'?"),
    ],
)
def test_an_invalid_retention_is_refused(options: Any, message: str) -> None:
    """The error says what is allowed."""
    with pytest.raises(ConfigError) as refused:
        Retention(**options)
    assert message in str(refused.value)


def test_a_retention_can_be_changed_as_any_dataclass() -> None:
    """It is frozen data; one state need not be in a tuple."""
    assert replace(Retention(older=1, states="failed"), graph="g") == Retention(1.0, states=("failed",), graph="g")


def test_the_first_scan_of_a_store_lets_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It scans all keys for runs of older versions: a few at a time, with a pause after each batch, once for each store."""
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    monkeypatch.setattr(indexing, "BATCH", 2)
    monkeypatch.setattr(indexing, "pause", rest)

    async def main() -> None:
        async with stored(tmp_path, FakeClock()) as store:
            for number in range(5):
                await say(store).run("word", run_id=f"r{number}")
            for _ in range(2):
                await Pruning(store.stack, Retention(older=DAY)).slice()
                assert rests == [REST] * 4, "two batches of runs, and of their states"

    asyncio.run(main())
