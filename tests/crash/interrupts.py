"""A signal handler raises an exception at every possible place, and at random moments.

    python tests/crash/interrupts.py [--seed N] [--random N] [--steps N] [NAME …]

For each stack and each use of it: first at every place at which CPython checks for signals in the main thread (the entry of a
Python function, the end of a call of a C function, the jump back of a loop), one after the other; then N times by a real timer.
After each, the write must be there as a whole or not at all, and the store must still work, in that thread and in others.
`--steps N` tries only N of the places, chosen by the seed.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

import pocket_plug as pp
from pocket_plug.layers import Bounding, Logging, Metrics, Persistence, Tracing
from pocket_plug.store.layer import parts
from pocket_plug.testing.interrupts import Interrupted, Interrupter

HANG = 60.0
"""Seconds after which a thread that still waits is taken for one that hangs."""


# ---------------------------------------------------------------- what is interrupted
@dataclass
class Place:
    """A new stack, and what is needed to check it."""

    store: pp.SyncStore
    most: int = sys.maxsize
    """How many entries it may have."""
    again: Callable[[], pp.SyncStore] | None = None
    """The same durable tier in another store."""


def in_memory(*layers: Any, most: int = sys.maxsize) -> Callable[[Path], Place]:
    return lambda path: Place(pp.SyncStore(layers=list(layers)), most)


def durable(*layers: Any, durability: str = "process", most: int = sys.maxsize) -> Callable[[Path], Place]:
    def make(path: Path) -> Place:
        url = f"sqlite:///{path}/state.db?durability={durability}"
        return Place(pp.SyncStore(url, layers=list(layers)), most, lambda: pp.SyncStore(url))

    return make


def persisted(mode: Any, *layers: Any, to_memory: bool = False, most: int = sys.maxsize) -> Callable[[Path], Place]:
    def make(path: Path) -> Place:
        to: Any = pp.Memory() if to_memory else f"sqlite:///{path}/state.db?durability=process"
        store = pp.SyncStore(layers=[Persistence(to=to, mode=mode), *layers])
        return Place(store, again=None if to_memory else lambda: pp.SyncStore(to))

    return make


STACKS: dict[str, Callable[[Path], Place]] = {
    "memory": in_memory(),
    "entries": in_memory(Bounding(max_entries=4), most=4),
    "bytes": in_memory(Bounding(max_bytes=500)),
    "ttl": in_memory(Bounding(ttl=3600)),
    "told": in_memory(Bounding(max_entries=4, ttl=3600, on_evict=lambda key, value, reason: None), most=4),
    "observed": in_memory(Tracing(), Metrics(), Logging()),
    "process": durable(),
    "power": durable(durability="power"),
    "durable-bound": durable(Bounding(max_entries=4, durable=True), most=4),
    "through": persisted("through"),
    "through-memory": persisted("through", to_memory=True),
    "through-bound": persisted("through", Bounding(max_entries=4)),
    "behind": persisted("behind"),
    "behind-memory": persisted("behind", to_memory=True),
}
"""What a store is made of, by name."""
DURABLE = {"process", "power", "durable-bound", "through", "through-bound"}


def transact(store: pp.SyncStore) -> None:
    with store.transaction() as tx:
        assert tx.get("a") == tx.get("b") == 0
        tx.set("a", 1)
        tx.set("b", 1)


def replace(store: pp.SyncStore) -> None:
    with store.transaction() as tx:
        tx.delete("a")
        tx.set("c", 1)
        tx.delete("b")


class Both(pp.Node[int, int]):
    def prep(self, store: pp.SyncReader, value: int, /) -> Any:
        return store.get("a", 0)

    def post(self, store: pp.SyncWriter, value: int, prepared: Any, result: Any, /) -> int:
        store.set("a", value)
        store.set("b", value)
        return value


class BothInLoop(pp.Node[int, int]):
    async def prep(self, store: pp.StoreReader, value: int, /) -> Any:
        return await store.get("a", 0)

    async def post(self, store: pp.StoreWriter, value: int, prepared: Any, result: Any, /) -> int:
        await store.set("a", value)
        await store.set("b", value)
        return value


class Pair(pp.Node[int, int]):
    async def post(self, store: pp.StoreWriter, value: int, prepared: Any, result: Any, /) -> int:
        await store.set_many({f"n{2 * value}": 1, f"n{2 * value + 1}": 1})
        return value


class Count(pp.Node[int, int], name="count"):
    def post(self, store: pp.SyncWriter, value: int, prepared: Any, result: Any, /) -> int:
        for name in "ab":
            store.update(name, lambda n: n + 1)
        return value


def work(store: pp.SyncStore) -> None:
    counts = pp.Graph(Count() >> Count().with_options(name="again"), store=store, name="counting")
    assert counts.run_sync(0, run_id="work") == 0


def durable_fan_out(store: pp.SyncStore) -> None:
    assert pp.Graph(pp.each(Pair()), store=store, name="pairs").run_sync([0, 1, 2], run_id="pairs") == [0, 1, 2]


USES: dict[str, Callable[[pp.SyncStore], object]] = {
    "set": lambda store: store.set("a", 1),
    "many": lambda store: store.set_many({"a": 1, "b": 1}),
    "new": lambda store: store.set_many({f"n{n}": 1 for n in range(6)}),
    "update": lambda store: store.update("a", lambda n: n + 1, default=0),
    "delete": lambda store: store.delete("a"),
    "gone": lambda store: store.delete_many(["a", "b"]),
    "transaction": transact,
    "replace": replace,
    "get": lambda store: store.get("a"),
    "get_many": lambda store: store.get_many(["a", "b", "x"]),
    "keys": lambda store: list(store.keys()),
    "flush": lambda store: store.flush(),
    "run": lambda store: pp.Graph(Both(), store=store, name="both").run_sync(1),
    "await": lambda store: asyncio.run(pp.Graph(BothInLoop(), store=store, name="both").run(1)),
    "fan_out": lambda store: asyncio.run(pp.Graph(pp.each(Pair()), store=store, name="pairs").run(range(3))),
    "run_in_loop": lambda store: pp.Graph(BothInLoop(), store=store, name="both").run_sync(1),
    "fan_out_sync": lambda store: pp.Graph(pp.each(Pair()), store=store, name="pairs").run_sync(range(3)),
    "durable_fan_out": durable_fan_out,
    "work": work,
    "close": lambda store: store.close(),
    "open": lambda store: store.__enter__(),
}
"""What is done while it is interrupted, to a store in which `a` and `b` are 0."""

Seen = dict[str, Any]
START: Seen = {"a": 0, "b": 0}
EACH: Seen = START | {f"n{n}": 1 for n in range(6)}
AFTER: dict[str, Seen] = {
    "set": {"a": 1, "b": 0},
    "many": {"a": 1, "b": 1},
    "new": {"a": 0, "b": 0, **{f"n{n}": 1 for n in range(6)}},
    "update": {"a": 1, "b": 0},
    "delete": {"b": 0},
    "gone": {},
    "transaction": {"a": 1, "b": 1},
    "replace": {"c": 1},
    "run": {"a": 1, "b": 1},
    "await": {"a": 1, "b": 1},
    "run_in_loop": {"a": 1, "b": 1},
    "fan_out": EACH,
    "fan_out_sync": EACH,
    "durable_fan_out": EACH,
    "work": {"a": 2, "b": 2},
}
WITHIN_ASYNCIO = {"run_in_loop", "fan_out_sync", "durable_fan_out"}
"""Their loop is ours: a signal's handler raises at each place in asyncio, too."""
NEEDS_A_FILE = {"work": work, "durable_fan_out": durable_fan_out}
"""Durable runs; the same once more goes on with them."""
NAMES = ["a", "b", "c", *(f"n{n}" for n in range(6))]


# ---------------------------------------------------------------- checks afterwards
class Broken(Exception):
    """A guarantee was broken."""


def in_thread(work: Callable[[], object]) -> None:
    """Do it in another thread; Broken if that raises or hangs."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is told by the thread that waits
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG)
    if thread.is_alive():
        frame = sys._current_frames().get(thread.ident or 0)
        raise Broken("another thread hangs:\n" + "".join(traceback.format_stack(frame)[-6:]))
    if failed:
        raise Broken("another thread fails:\n" + "".join(traceback.format_exception(failed[0])[-8:])) from failed[0]


def check_whole(place: Place, use: str, done: bool) -> None:
    """All or nothing; all if the write was acknowledged. A bounded store may lack entries, but never has an older one."""
    seen = place.store.get_many(NAMES)
    after = AFTER.get(use, START)
    allowed = [after] if done else [after, START]
    if "fan_out" in use or use == "work":  # several writes, each complete
        seen = {"a": 0, "b": 0} | seen
        halves = sum(seen.get(f"n{n}") != seen.get(f"n{n + 1}") for n in (0, 2, 4))
        fine = seen["a"] == seen["b"] and halves <= (place.most < sys.maxsize)  # eviction works entry by entry
        fine = fine and (not done or place.most < sys.maxsize or seen == after)
    elif place.most < sys.maxsize or "bytes" in place.store.stack.__repr__():
        fine = any(all(name in state and state[name] == seen[name] for name in seen) for state in allowed)
    else:
        fine = seen in allowed
    if not fine:
        raise Broken(f"{use} is there in part: {seen}")


def check_works(store: pp.SyncStore, most: int, round: int) -> None:
    """Every use of the store works."""
    store.delete_many(NAMES)
    store.set_many({"a": round, "b": round})
    assert store.get_many(["a", "b"]) == {"a": round, "b": round}
    assert store.update("a", lambda n: n + 1) == round + 1
    with store.transaction() as tx:
        tx.set("b", tx.get("a") + 1)
    assert store.get("b") == round + 2
    for n in range(8):
        store.set(f"w{n}", n)
        assert store.get(f"w{n}") == n
    assert len(list(store.keys())) <= most
    store.delete_many([f"w{n}" for n in range(8)])
    store.set("b", round)
    assert store.delete("b")
    assert store.get("b") is None
    assert list(store.keys("w")) == []
    store.set("a", 3)
    store.flush()


def inside(place: Place) -> None:
    """Internal data agrees with the entries."""
    for part in parts(place.store.stack):
        index: Any = getattr(part, "_index", None) or getattr(part, "_table", None)
        if index is not None and hasattr(index, "_bytes"):
            entries = index.entries
            assert index._bytes == (sum(entry.size for entry in entries.values()) if index._weighs else 0)
            assert index._exempt == sum(key.startswith("pocket:") for key in entries)
            assert not index.buried
        for holder in (part, getattr(part, "trust", None)):
            for name in ("writes", "_leases", "_looks", "_reserved", "_going"):
                left: Any = getattr(holder, name, None)
                assert not left, f"{type(holder).__name__}.{name} keeps {left!r:.200}"
    stack = place.store.stack
    for left in (stack.gates._queues, stack.combiner._lines):
        assert not left, f"those who queue: {left!r:.200}"


def try_once(stack: str, use: str, interrupt: Callable[[Callable[[], object]], bool]) -> None:
    """One interrupt, by `interrupt`, which executes its argument and returns whether that reached its end. Raises Broken."""
    with tempfile.TemporaryDirectory(dir=TEMPORARY) as folder:
        place = STACKS[stack](Path(folder))
        store = place.store
        if use != "open":
            store.__enter__()
            store.set_many(START)
            store.flush()
        done = interrupt(lambda: USES[use](store))
        try:
            if use == "open":
                in_thread(store.__enter__)
                store.set_many(START)
            elif use == "close":
                in_thread(store.close)
                with suppress(pp.StoreClosedError):
                    store.get("a")
                    raise Broken("it was closed again, and isn't closed")
                if place.again is None:
                    return
                store = place.store = place.again()
                place.most = sys.maxsize
                store.__enter__()
            in_thread(lambda: check_whole(place, use, done))
            if use in NEEDS_A_FILE and place.most == sys.maxsize:  # if it is continued, it does the rest
                in_thread(lambda: NEEDS_A_FILE[use](store))
                assert store.get_many(NAMES) == AFTER[use]
            in_thread(lambda: check_works(store, place.most, 1))
            check_works(store, place.most, 2)
            inside(place)
            in_thread(store.close)
            if place.again is not None:
                with place.again() as again:
                    expected = {"a": 3}
                    found = again.get_many([*NAMES[:3]])
                    if found != expected:
                        raise Broken(f"the durable tier has {found}, not {expected}")
        except AssertionError as error:
            raise Broken("".join(traceback.format_exception(error)[-3:])) from error


def interrupter_for(use: str, number: int, error: type[BaseException] = Interrupted) -> Interrupter:
    return Interrupter(number, error, signal.SIGUSR1 if use in WITHIN_ASYNCIO else None)


def at_place(
    use: str, number: int, error: type[BaseException], found: list[str]
) -> Callable[[Callable[[], object]], bool]:
    def interrupt(work: Callable[[], object]) -> bool:
        interrupter = interrupter_for(use, number, error)
        try:
            with interrupter:
                work()
        except error:
            found.append(interrupter.where)
            return False
        except BaseException as other:
            if interrupter.where:
                found.append(interrupter.where)
                return False  # the interrupt was taken for such a failure: nothing was acknowledged
            raise Broken(f"{other!r} without an interrupt") from other
        if interrupter.where:
            found.append(interrupter.where + ", swallowed")
        return True

    return interrupt


def at_random(draw: random.Random, in_loop: bool) -> Callable[[Callable[[], object]], bool]:
    def interrupt(work: Callable[[], object]) -> bool:
        global is_armed
        done = False
        stops.clear()
        is_armed = True
        try:
            try:
                delay = draw.choice([0.00001, 0.00005, 0.0002, 0.001]) * draw.uniform(0.5, 3)
                signal.signal(signal.SIGALRM, _press_ctrl_c if in_loop else _stop)
                signal.setitimer(signal.ITIMER_REAL, delay)  # once: a second one might interrupt what handles the first
                work()
                done = True
                time.sleep(2 * delay)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                is_armed = False
        except (Interrupted, KeyboardInterrupt, asyncio.CancelledError):
            # asyncio's runner forgets a Ctrl-C that comes before it starts to count them, and passes on the
            # cancellation
            signal.setitimer(signal.ITIMER_REAL, 0)
            is_armed = False
        except Exception as error:
            if not done and not stops:
                raise Broken(f"{error!r} without an interrupt") from error
        return done

    return interrupt


def _press_ctrl_c(number: int, _: object) -> None:
    """If a loop runs: asyncio cancels its main task then. Any other exception within asyncio may break asyncio itself."""
    if is_armed:
        stops.append(number)
        signal.raise_signal(signal.SIGINT)


TEMPORARY: str | None = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


stops: list[int] = []
"""The signals that came."""

is_armed = False
"""On a busy machine the signal may come after its timer was stopped; then it interrupts nothing."""


def _stop(number: int, _: object) -> None:
    if is_armed:
        stops.append(number)
        raise Interrupted


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("names", nargs="*", help="stacks, or STACK/USE")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--random", type=int, default=0, help="how many at random moments, for each stack and use")
    options.add_argument(
        "--steps", type=int, default=sys.maxsize, help="how many of the places, for each stack and use"
    )
    given = options.parse_args()
    unknown = {part for name in given.names for part in name.split("/")} - STACKS.keys() - USES.keys()
    if unknown:
        options.error(f"{sorted(unknown)}: the stacks are {', '.join(STACKS)}, the uses {', '.join(USES)}")
    warnings.simplefilter("ignore")  # a coroutine that was never started, since the interrupt came first
    logging.disable()
    # Python 3.14 may leave a PrintLogger's lock locked
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    draw = random.Random(given.seed)
    tried, broken = Counter[str](), 0
    for stack in STACKS:
        for use in USES:
            if given.names and not {stack, use, f"{stack}/{use}"}.intersection(given.names):
                continue
            if use in NEEDS_A_FILE and stack not in DURABLE:
                continue
            for error, number in _places(stack, use, given.steps, draw):
                where: list[str] = []
                faulthandler.dump_traceback_later(3 * HANG, exit=True)
                try:
                    try_once(stack, use, at_place(use, number, error, where))
                except Broken as found:
                    broken += 1
                    print(f"BROKEN {stack}/{use}: {error.__name__} {where} ({number}): {found}\n", flush=True)
                tried[f"{stack}: places"] += 1
            for _ in range(given.random):
                faulthandler.dump_traceback_later(3 * HANG, exit=True)
                try:
                    try_once(stack, use, at_random(draw, use in ("await", "fan_out")))
                except Broken as found:
                    broken += 1
                    print(f"BROKEN {stack}/{use}, at random: {found}\n", flush=True)
                tried[f"{stack}: at random"] += 1
            faulthandler.cancel_dump_traceback_later()
            print(f"{stack}/{use}: done, {broken} broken so far", flush=True)
    for name, count in tried.items():
        print(f"{name}: {count}")
    print(f"{sum(tried.values())} interrupts, {broken} broke something")
    return broken > 0


def _uninterrupted(work: Callable[[], object]) -> bool:
    work()
    return True


def _places(stack: str, use: str, most: int, draw: random.Random) -> Iterator[tuple[type[BaseException], int]]:
    """All places of a use, for an Exception and for a KeyboardInterrupt in turn."""
    counting = interrupter_for(use, 0)

    def count(work: Callable[[], object]) -> bool:
        with counting:
            work()
        return True

    try_once(stack, use, _uninterrupted)  # the first time imports modules
    try_once(stack, use, count)
    numbers = range(1, counting.places)
    chosen = sorted(draw.sample(numbers, most)) if most < len(numbers) else numbers
    for number in chosen:
        yield (Interrupted, KeyboardInterrupt)[number % 2], number


if __name__ == "__main__":
    sys.exit(main())
