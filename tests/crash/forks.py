"""Forks a busy process at random moments.

    python tests/crash/forks.py [--seed N] [--forks N] [NAME …]

For each stack: threads of the parent write all the time, and now and then one of them, the main thread or a task forks. The child
uses the store that it inherits, opens one of its own on the same file, or forks again and ends, as a daemon does. Its reads must
be complete, its writes must be stored, or StoreError says why not; and it must end. At the end no write that was acknowledged, to
the parent or to a child, is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

import pocket_plug as pp
from pocket_plug.layers import Bounding, Logging, Metrics, Persistence, Tracing

HANG = 60
"""Seconds after which a child is taken for one that hangs."""

THREADS = 4


@pp.node
def double(n: int) -> int:
    return 2 * n


@pp.node.post
def count(store: pp.SyncWriter, n: int) -> int:
    store.update("visits", lambda visits: visits + 1, default=0)
    return n


# ---------------------------------------------------------------- operations, in the parent and in children
class Case:
    """A stack. `step` is what a thread does repeatedly, `use` what a child does."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/state.db"
        self.store = self.make()
        self.steps = [0] * THREADS
        self.used = 0  # by children, if they share the stored data

    def make(self) -> pp.SyncStore:
        return pp.SyncStore()

    def own(self) -> pp.SyncStore | None:
        """Another store over the data that processes share, if there is any."""
        return None

    def step(self, n: int) -> None:
        self.store.set_many({f"a{n}": self.steps[n] + 1, f"b{n}": self.steps[n] + 1})
        self.store.update("steps", lambda steps: steps + 1, default=0)

    def use(self, store: pp.SyncStore) -> None:
        for n in range(THREADS):
            found = store.get_many([f"a{n}", f"b{n}"])
            assert len({*found.values(), *([None] if len(found) == 1 else [])}) < 2, f"half a write: {found}"
        store.update("children", lambda children: children + 1, default=0)
        with store.transaction() as tx:
            tx.set("last", (tx.get("last") or 0) + 1)
        assert store.get("children") >= 1
        assert "last" in list(store.keys())

    def check(self, store: pp.SyncStore, shared: bool) -> None:
        for n, steps in enumerate(self.steps):
            expected = {"a": steps, "b": steps} if steps else {}
            assert {key[0]: value for key, value in store.get_many([f"a{n}", f"b{n}"]).items()} == expected
        assert store.get("steps") == sum(self.steps)
        assert store.get("children", 0) == store.get("last", 0) == (self.used if shared else 0)


class Entries(Case):
    def make(self) -> pp.SyncStore:
        return pp.SyncStore(layers=[Bounding(max_entries=100)])


class Bytes(Case):
    def make(self) -> pp.SyncStore:
        return pp.SyncStore(layers=[Bounding(max_bytes=100_000, on_evict=lambda key, value, reason: None)])


class Power(Case):
    def make(self) -> pp.SyncStore:
        return pp.SyncStore(self.url)

    def own(self) -> pp.SyncStore | None:
        return pp.SyncStore(self.url)


class Process(Power):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url += "?durability=process"
        self.store = self.make()


class Through(Process):
    def make(self) -> pp.SyncStore:
        return pp.SyncStore(layers=[Persistence(to=self.url)])


class Behind(Case):
    def make(self) -> pp.SyncStore:
        return pp.SyncStore(layers=[Persistence(to=f"{self.url}?durability=process", mode="behind")])


class Observed(Process):
    def make(self) -> pp.SyncStore:
        return pp.SyncStore(self.url, layers=[Tracing(), Metrics(), Logging()])

    def own(self) -> pp.SyncStore | None:
        return self.make()


class Runs(Process):
    """Workflows with `def` nodes, whose threads don't exist in a child."""

    def make(self) -> pp.SyncStore:
        store = pp.Store(self.url)
        self.graph = pp.Graph(double >> count, name="forked", store=store)
        return store.sync

    def options(self) -> dict[str, Any]:
        return {}

    def step(self, n: int) -> None:
        assert asyncio.run(self.graph.run(n, **self.options())) == 2 * n

    def use(self, store: pp.SyncStore) -> None:
        assert asyncio.run(self.graph.run(3, **self.options())) == 6
        assert self.graph.run_sync(3, **self.options()) == 6

    def own(self) -> pp.SyncStore | None:
        return None

    def check(self, store: pp.SyncStore, shared: bool) -> None:
        assert store.get("visits") == sum(self.steps) + 2 * self.used


class Durable(Runs):
    def options(self) -> dict[str, Any]:
        return {"run_id": os.urandom(8).hex()}


CASES: dict[str, type[Case]] = {kind.__name__.lower(): kind for kind in (
    Case, Entries, Bytes, Power, Process, Through, Behind, Observed, Runs, Durable,
)}  # fmt: skip
CASES["memory"] = CASES.pop("case")


# ---------------------------------------------------------------- children
def child(case: Case, chance: random.Random) -> None:
    """The program of a child; its exit code is 0 if it worked, 1 if StoreError said why not, 2 otherwise."""
    faulthandler.register(signal.SIGALRM, chain=True)  # prints the stacks, and ends the child
    signal.alarm(HANG)
    try:
        own = case.own() if chance.random() < 0.3 else None
        if own is not None:
            with own:
                case.use(own)
        else:
            case.use(case.store)
            if chance.random() < 0.1:
                case.store.close()
        os._exit(0)
    except pp.StoreError:
        os._exit(1)
    except BaseException:  # noqa: BLE001 - there is nobody to raise it to
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(2)


def plain(case: Case, chance: random.Random) -> int:
    if (number := os.fork()) == 0:
        child(case, chance)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def twice(case: Case, chance: random.Random) -> int:
    """The child forks again and waits for the grandchild, unlike a daemon, so that the result is known."""
    if (number := os.fork()) == 0:
        os._exit(plain(case, chance) & 0xFF)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def of_multiprocessing(case: Case, chance: random.Random) -> int:
    process = multiprocessing.get_context("fork").Process(target=child, args=(case, chance))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def by_a_thread(case: Case, chance: random.Random) -> int:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(plain(case, chance)))
    thread.start()
    thread.join()
    return codes[0]


def by_a_task(case: Case, chance: random.Random) -> int:
    async def forks() -> int:
        return plain(case, chance)

    return asyncio.run(forks())


def by_a_worker(case: Case, chance: random.Random) -> int:
    @pp.node
    def forks(n: int) -> int:
        return plain(case, chance)

    return asyncio.run(pp.Graph(forks).run(1))


WAYS: tuple[Callable[[Case, random.Random], int], ...] = (
    plain,
    twice,
    of_multiprocessing,
    by_a_thread,
    by_a_task,
    by_a_worker,
)


# ---------------------------------------------------------------- the parent
def campaign(name: str, forks: int, chance: random.Random) -> Counter[str]:
    """Fork this often beside busy threads; returns how the children ended."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        case = CASES[name](Path(folder))
        done, failed = threading.Event(), list[BaseException]()

        def work(n: int) -> None:
            try:
                while not done.is_set():
                    case.step(n)
                    case.steps[n] += 1
            except BaseException as error:  # noqa: BLE001 - it is told below
                failed.append(error)

        with case.store:
            threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(THREADS)]
            for thread in threads:
                thread.start()
            for _ in range(forks):
                time.sleep(chance.random() * 0.02)
                code = chance.choice(WAYS)(case, chance)
                assert code in (0, 1), f"{name}: a child failed, or hung (-14): {code}"
                outcomes["worked" if code == 0 else "said why not"] += 1
                case.used += code == 0
            done.set()
            for thread in threads:
                thread.join(HANG)
                assert not thread.is_alive(), f"{name}: a thread of the parent hangs"
            if failed:
                raise failed[0]
            case.check(case.store, shared=isinstance(case, Power | Runs))
            outcomes["steps"] = sum(case.steps)
    return outcomes


def main() -> None:
    """All stacks in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; all unless given")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--forks", type=int, default=100, help="of each stack")
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # about a fork beside threads
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(f"seed {options.seed}", flush=True)
    for name in options.names or CASES:
        outcomes = campaign(name, options.forks, random.Random(f"{options.seed} {name}"))
        print(
            f"{name}: {options.forks} forks beside {outcomes.pop('steps')} steps;",
            ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items())),
            flush=True,
        )


if __name__ == "__main__":
    main()
