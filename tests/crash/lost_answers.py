"""Writes of a durable run that fail in every possible way: `python tests/crash/lost_answers.py [WORLDS] [SEED] [STEP]`.

A store fails before a write or after it, raises ConflictError for a write that was committed, can't be read afterwards, commits a
write late, is cancelled, its process dies, or another process takes the run over. The run is started again until it ends. By then
each node's writes must have taken effect once: none is lost, none is done twice, and every node was visited.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pocket_plug as pp
from pocket_plug.graph.durable import records as durable
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Entry
from pocket_plug.testing.clock import FakeClock, run_virtual

FAULTS = ("refused", "landed", "resent", "beaten", "late", "late and beaten", "cancelled before", "cancelled after",
          "killed before", "killed after", "overtaken before", "overtaken after", "overtaken and resent")  # fmt: skip
"""What becomes of a write: an error without it and after it; ConflictError after it and without it; an error of each kind, and
it lands behind the look; the task is cancelled; the process dies; another process goes on with the run as far as it can,
before the write and after it."""

LOOKS = (0, 1, 3)
"""How many reads fail afterwards: none, one, and as many as are tried."""


class Killed(BaseException):
    """The process is dead: nothing of it continues."""


class Shelf(pp.Memory):
    """Memory that stands for a file: its data survives."""

    survives = True

    def __init__(self) -> None:
        super().__init__()
        self.plan: list[tuple[str, int]] = []
        """For each write of a run's records: what becomes of it, and how many reads fail afterwards."""
        self.unreachable = 0
        self.dead = False
        self.writes = 0
        self.on_the_way: list[tuple[Sequence[Change], Mapping[str, int]]] = []

    async def _overtake(self) -> None:
        """Another process, without faults."""
        plan, self.plan = self.plan, []
        with suppress(pp.RunSuspendedError):
            await graph_over(pp.Store(self), 1, "collect").run(0, run_id="r", takeover=True)
        self.plan = plan

    def begin_again(self) -> None:
        """Another process starts; a write that is under way is committed before its first read, or never."""
        self.dead, self.unreachable = False, 0

    async def read(self, key: str) -> Entry | None:
        await self._reach((key,))
        return await super().read(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        await self._reach(keys := list(keys))
        return await super().read_many(keys)

    async def _reach(self, keys: Sequence[str]) -> None:
        if self.dead:
            raise Killed
        if self.unreachable:
            self.unreachable -= 1
            raise pp.StoreError("not reachable just now")
        if not self.inline_read:
            await asyncio.sleep(0)

    async def _arrive(self) -> None:
        while self.on_the_way:
            try:
                await super().write(*self.on_the_way.pop(0))
            except pp.ConflictError:
                continue

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        if self.dead:
            raise Killed
        await self._arrive()
        if not self.inline_write:
            await asyncio.sleep(0)
        if not any(change.key.startswith(durable.RUN) or durable.PART in change.key for change in changes):
            return await super().write(changes, expect)
        self.writes += 1
        fault, looks = self.plan.pop(0) if self.plan else ("", 0)
        version = 0
        if fault == "overtaken before":
            await self._overtake()
        if fault in ("", "landed", "resent") or fault.startswith("overtaken") or fault.endswith(" after"):
            version = await super().write(changes, expect)
        if fault in ("overtaken after", "overtaken and resent"):
            await self._overtake()
        if fault:
            self.unreachable = looks
        if fault.startswith("late"):
            self.on_the_way.append((changes, expect))
        if fault in ("refused", "landed", "late", "overtaken after"):
            raise pp.StoreError("the connection is lost")
        if fault in ("resent", "beaten", "late and beaten", "overtaken and resent"):
            raise pp.ConflictError(expect)
        if fault.startswith("cancelled"):
            raise asyncio.CancelledError
        if fault.startswith("killed"):
            self.dead = True
            raise Killed
        return version


class InlineShelf(Shelf):
    """A Shelf that never suspends, as a file that the process owns."""

    inline_read = inline_write = True


class Count(pp.Node[int, int], name="count"):
    async def prep(self, store: pp.StoreReader, n: int) -> int:
        await store.get("factor")
        return n + 1

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int | pp.Next[int]:
        await store.update("counted", lambda old: old + 1, default=0)
        return result if result >= 2 else pp.Next("again", result)

    async def on_success(self, store: pp.StoreWriter, outcome: Any) -> None:
        await store.set("hooked", True)


class Pay(pp.Node[int, int], name="pay"):
    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.update(f"paid {n}", lambda old: old + 1, default=0)
        return n * 10

    async def on_complete(self, store: pp.StoreWriter) -> None:
        await store.set("hooked", True)


@pp.node.post
async def ship(store: pp.StoreWriter, n: int) -> int:
    await store.update(f"shipped {n}", lambda old: old + 1, default=0)
    return n


@pp.node
async def pack(n: int) -> int:
    return n + 1


@pp.node
async def divide(n: Any) -> float:  # what each(…, errors="collect") gives
    if n == 10:
        raise ValueError(n)  # its own error, which is a result
    if n == 20:
        raise Refused(n)
    return n / 10


class Refused(Exception):
    """A value that is not stored as it is."""


@pp.node
async def kept(results: list[Any]) -> list[int]:
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["float", "ValueError", "RecordedError"], kinds
    return [0, 10, 20]


@pp.node
async def spread(answered: pp.Answered[int, bool]) -> list[int]:
    return list(range(answered.input))


class End(pp.Node[list[Any], int], name="end"):
    async def post(self, store: pp.StoreWriter, given: list[Any], prepared: Any, result: Any) -> int:
        await store.update("ended", lambda old: old + 1, default=0)
        return sum(given)

    async def on_success(self, store: pp.StoreWriter, outcome: Any) -> None:
        await store.set("hooked", True)


def graph_over(store: pp.Store, concurrency: int, errors: Any) -> pp.Graph[int, int]:
    """A loop in a nested graph, a question, items that are nodes, items that are graphs, and hooks."""
    count = Count()
    inner = pp.Graph(count, count.on("again") >> pack >> count, name="inner")
    approve = pp.Ask[int, bool](bool, question=str, name="approve")
    each_pay = pp.each(Pay(), concurrency=concurrency, errors=errors)
    each_way = pp.each(pp.Graph(pack >> ship, name="way"), concurrency=concurrency, errors=errors)
    each_divide = pp.each(divide, concurrency=concurrency, errors="collect")
    main: Any = inner >> approve >> spread >> each_pay >> each_divide >> kept >> each_way >> End()
    return pp.Graph(main, store=store, name="work", keep_finished="1h")


UNDISTURBED = {"counted": 2, "ended": 1, "hooked": True, "paid 0": 1, "paid 1": 1, "paid 2": 1, "shipped 1": 1,
               "shipped 11": 1, "shipped 21": 1}  # fmt: skip
RESULT = 33


async def world(shelf: Shelf, plan: Iterable[tuple[str, int]], concurrency: int, errors: str) -> Counter[str]:
    """Apply the plan to a run, start the run again until it has ended, and check the result."""
    shelf.plan = list(plan)
    ended: Counter[str] = Counter()
    async with pp.Store(shelf, clock=FakeClock()) as store:
        graph = graph_over(store, concurrency, errors)
        answer: Any = pp.MISSING
        for _ in range(2 * len(shelf.plan) + 4):
            shelf.begin_again()
            try:
                if answer is pp.MISSING:
                    result = await graph.run(0, run_id="r")
                else:
                    result = await graph.resume("r", answer=answer)
                break
            except pp.RunSuspendedError:
                answer = True
                ended["RunSuspendedError"] += 1
            except (pp.StoreError, pp.RunFencedError, pp.UnknownRunError, asyncio.CancelledError, Killed) as error:
                ended[type(error).__name__] += 1
            except pp.RunMismatchError:  # the answer was accepted before, or the run had not asked yet
                ended["RunMismatchError"] += 1
                answer = pp.MISSING
        else:
            raise AssertionError(f"it never ended: {ended}")
        shelf.plan.clear()
        shelf.begin_again()
        assert result == RESULT, result
        found = {key: await store.get(key) async for key in store.keys()}
        assert found == UNDISTURBED, found
        assert await graph.run(0, run_id="r") == RESULT
        kept = [key async for key in store.stack.scan(durable.PART)]
        assert not [key for key in kept if ":item:" in key], kept
        paths = [entry.value["node"] for key in kept if ":path:" in key and (entry := await store.stack.read(key))]
        assert sorted(paths) == sorted(set(paths)), paths
        assert paths[-1] == "/end#1", paths
    return ended


def shelves() -> tuple[type[Shelf], ...]:
    """The kinds of store."""
    return Shelf, InlineShelf


def every_single_fault() -> Iterator[tuple[type[Shelf], list[tuple[str, int]], int, str]]:
    """Each fault at each write of a run."""
    for kind in shelves():
        shelf = kind()
        run_virtual(world(shelf, (), 1, "raise"))
        for at in range(shelf.writes):
            for fault in FAULTS:
                for looks in LOOKS:
                    yield kind, [("", 0)] * at + [(fault, looks)], 1, "raise" if at % 2 else "collect"


def random_plan(seed: int) -> tuple[type[Shelf], list[tuple[str, int]], int, str]:
    """Any number of faults, anywhere."""
    chance = random.Random(seed)
    share = chance.choice((0.05, 0.2, 0.5))
    plan = [
        (chance.choice(FAULTS), chance.choice(LOOKS)) if chance.random() < share else ("", 0)
        for _ in range(chance.randrange(1, 50))
    ]
    return chance.choice(shelves()), plan, chance.choice((1, 3)), chance.choice(("raise", "collect"))


def attempt(
    case: object, kind: type[Shelf], plan: list[tuple[str, int]], concurrency: int, errors: str
) -> Counter[str]:
    """One world; an error in it gets its description."""
    try:
        return run_virtual(world(kind(), plan, concurrency, errors))
    except Exception as error:
        faults = [(at, *what) for at, what in enumerate(plan) if what[0]]
        raise AssertionError(
            f"{case}: {kind.__name__}, {concurrency} at a time, {errors}: {faults}: {error}"
        ) from error


def main(worlds: int, seed: int, step: int) -> None:
    """Every single fault (or every `step`-th), then random worlds."""
    # hooks of executions that were overtaken fail, and log it
    logging.getLogger("pocket_plug").setLevel(logging.CRITICAL)
    ended: Counter[str] = Counter()
    single = list(every_single_fault())[::step]
    for number, case in enumerate(single):
        ended += attempt(f"single fault {number * step}", *case)
    for number in range(seed, seed + worlds):
        ended += attempt(f"seed {number}", *random_plan(number))
    outcomes = ", ".join(f"{number:,} {what}" for what, number in ended.most_common())
    print(f"{len(single):,} single faults, {worlds:,} worlds: {outcomes}")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [1000, 1, 1][len(numbers) :]))
