"""Histories of transactions on every kind of stack, checked by `elle`: `make histories`, or `python tests/histories/histories.py
[TRANSACTIONS] [SEED] [STACK …]`.

Threads, and tasks of two event loops, append to lists and read them, in every way in which a store can be used; at random, tasks
are cancelled. On SQLite several processes do so too, some of which are killed and some stopped for a while. The process that
replaces a killed one resumes its durable fan-outs. A write-behind store is used by one process after the other: most are killed,
and the remaining state is checked. The guarantees of each stack are in `PROMISED`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from elle import Append, Findings, Outcome, Read, Txn, check, check_recovery

import pocket_plug as pp
from pocket_plug.layers import Bounding, Metrics, Persistence, Tracing
from pocket_plug.primitives.waiting import drive_inline
from pocket_plug.testing.servers import Server, postgres, valkey

Ops = list[Read | Append]
Steps = list[tuple[Literal["r", "a"], str]]
"""What a transaction is to do: read a list, or append to it."""

LENGTH = 30
"""About so many elements a list gets before other keys come into use."""
CANCELLED = 0.05
"""How many of the transactions in tasks are cancelled at some point."""

SKEWS = frozenset({"G-single", "G2-item", "G-single-realtime", "G2-item-realtime"})
"""What comes of reads that are not checked at the end: read skew and write skew."""

PROMISED: dict[str, frozenset[str]] = {
    "get": frozenset(),
    "get_many": frozenset(),
    "update": frozenset(),
    "transaction": frozenset(),
    "post": frozenset(),
    "serializable": frozenset(),
    "durable": frozenset(),
    "fan-out": frozenset(),
    "durable fan-out": frozenset(),
    "flush": frozenset(),
    "default": SKEWS,
}
"""For each use, the anomalies that may be found where it is in the history. All others are promised not to be."""

Mixes = dict[str, tuple[str, ...]]

CHECKED = ("update", "transaction", "post", "serializable")
STRICT = ("get", "get_many", *CHECKED)
MIXES: Mixes = {
    "strict": STRICT,
    "default": ("default", "transaction", "get_many"),
    "fan-outs": ("fan-out", "get_many", "update"),
}
DURABLE: Mixes = {
    **MIXES,
    "strict": (*STRICT, "durable"),
    "fan-outs": (*MIXES["fan-outs"], "durable fan-out"),
}
ITEMS = 6
"""What a fan-out has at most."""

Make = Callable[[Path], pp.Store]


def file(folder: Path, durability: str) -> str:
    return f"sqlite:///{folder}/state.db?durability={durability}&timeout=60"


SERVERS: dict[str, Callable[[], Server]] = {"redis": valkey, "postgres": postgres}
_serving: dict[str, Server] = {}
"""Those that run, by stack."""
_gone: list[Server] = []
"""The one that is killed and stopped meanwhile."""


def served(stack: str, folder: Path) -> str:
    """A data set for the stack on its server."""
    return f"{_serving[stack].url}?store={folder.name.replace('_', '-')}&timeout=1&patience=60"


STACKS: dict[str, Make] = {
    "memory": lambda folder: pp.Store(),
    "bounded by entries": lambda folder: pp.Store(layers=[Bounding(max_entries=10_000)]),
    "bounded by bytes": lambda folder: pp.Store(layers=[Bounding(max_bytes=100_000_000)]),
    "observed": lambda folder: pp.Store(layers=[Tracing(), Metrics(), Bounding(max_entries=10_000, ttl="1h")]),
    "sqlite process": lambda folder: pp.Store(file(folder, "process")),
    "sqlite power": lambda folder: pp.Store(file(folder, "power")),
    "through": lambda folder: pp.Store(layers=[Persistence(to=file(folder, "process")), Bounding(max_entries=3)]),
    "behind": lambda folder: pp.Store(  # to "power", which is slow: so there is a queue
        layers=[Persistence(to=file(folder, "power"), mode="behind"), Bounding(max_entries=3)]
    ),
    "behind, without room": lambda folder: pp.Store(
        layers=[Persistence(to=file(folder, "power"), mode="behind", max_pending=3)]
    ),
    "redis": lambda folder: pp.Store(served("redis", folder)),
    "postgres": lambda folder: pp.Store(served("postgres", folder)),
}
SHARED: Mixes = {**MIXES, "fan-outs": DURABLE["fan-outs"]}
PROCESSES: dict[str, Mixes] = {
    **dict.fromkeys(("sqlite process", "sqlite power", *SERVERS), SHARED),
    "through": {"checked": CHECKED},
}
"""What several processes may share, and how they use it. Plain reads of `through` may be old; what is checked is not."""

LIVES: dict[str, Mixes] = {
    stack: {"killed": (*STRICT, "flush"), "fan-outs, killed": (*MIXES["fan-outs"], "flush")}
    for stack in ("behind", "behind, without room")
}
"""What belongs to one process at a time, and is killed."""


# ---------------------------------------------------------------- recording
@dataclass
class Running:
    """A running transaction, and what each of its tries had done when it wanted to commit."""

    name: str
    start: float
    write: Callable[[dict[str, Any]], None] | None = None
    tries: list[Ops] = field(default_factory=list)
    tasks: list[Any] | None = None  # of a durable fan-out, from the record of its run
    end: float = 0.0
    outcome: Outcome = "info"

    def tried(self, ops: Ops) -> None:
        self.tries.append(ops)
        self._note(ops=[_plain(op) for op in ops])

    def ended(self, outcome: Outcome) -> None:
        self.end, self.outcome = time.monotonic(), outcome
        self._note(outcome=outcome, end=self.end)

    def _note(self, **what: Any) -> None:
        if self.write is not None:
            self.write({"name": self.name, "start": self.start, **what})

    @property
    def is_left(self) -> bool:
        """Is it a durable fan-out of a process that was killed before its end?"""
        return self.tasks is not None and self.name.startswith("durable") and not self.end

    def txns(self) -> list[Txn]:
        """Each try is a transaction of its own: if one was committed, the other tries were lost."""
        if self.outcome != "ok" or not self.tries:
            return [Txn(ops, self.start, self.end, self.outcome, self.name) for ops in self.tries]
        *lost, landed = self.tries
        return [
            Txn(landed, self.start, self.end, "ok", self.name),
            *(Txn(ops, self.start, self.end, "fail", f"{self.name}, lost") for ops in lost),
        ]


def _plain(op: Read | Append) -> list[Any]:
    return ["r", op.key, list(op.seen)] if isinstance(op, Read) else ["a", op.key, op.element]


class Recorder:
    """Gives out elements, and records what one process does with them."""

    def __init__(self, number: int = 0, path: Path | None = None) -> None:
        self._elements = itertools.count(number << 32)
        self._names = itertools.count()
        self._number = number
        self.runnings: list[Running] = []
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def element(self) -> int:
        return next(self._elements)

    def begin(self, use: str, name: str | None = None) -> Running:
        """`name`: that of a transaction that another process has started, which was killed."""
        name = name or f"{use} {self._number}.{next(self._names)}"
        running = Running(name, time.monotonic(), self._write if self._file else None)
        self.runnings.append(running)
        return running

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        os.write(self._file, json.dumps(line).encode() + b"\n")  # survives a kill of this process


def keys_in_use(chance: random.Random, elements: int) -> list[str]:
    """In any order. After a number of elements new keys are used, so that lists stay short."""
    first = elements // LENGTH * 4
    keys = [f"k{first + n}" for n in range(4)]
    chance.shuffle(keys)
    return keys


def recorded(path: Path) -> list[Running]:
    """What a process recorded, up to its end or until it was killed."""
    runnings: dict[str, Running] = {}
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # the last line, truncated
            what = json.loads(line)
            running = runnings.setdefault(what["name"], Running(what["name"], what["start"]))
            if "tasks" in what:
                running.tasks = what["tasks"]
            elif "ops" in what:
                running.tries.append(
                    [Read(key, tuple(at)) if kind == "r" else Append(key, at) for kind, key, at in what["ops"]]
                )
            else:
                running.outcome, running.end = what["outcome"], what["end"]
    return [*runnings.values()]


# ---------------------------------------------------------------- ways to use a store
class Now:
    """A sync view, for code that awaits."""

    def __init__(self, view: Any) -> None:
        self._view = view

    async def get(self, key: str) -> Any:
        return self._view.get(key)

    async def set(self, key: str, value: Any) -> None:
        self._view.set(key, value)


async def do(view: Any, steps: Steps, recorder: Recorder, known: dict[str, tuple[int, ...]] | None = None) -> Ops:
    """Execute the steps. A `known` list is not read again before something is appended to it."""
    ops: Ops = []
    known = {**(known or {})}
    for kind, key in steps:
        if kind == "r" or key not in known:
            known[key] = tuple(await view.get(key) or ())
            ops.append(Read(key, known[key]))
        if kind == "a":
            ops.append(Append(key, recorder.element()))
            known[key] = (*known[key], ops[-1].element)  # type: ignore[union-attr]
            await view.set(key, list(known[key]))
    return ops


_running: dict[str, tuple[Running, Recorder]] = {}
"""By name: an input of a durable run can't hold them."""

Task = tuple[str, list[str], Steps]
"""The name of its record; what prep reads; the steps that post does."""


class Work(pp.Node[Any, str]):
    """Reads in prep, reads and writes in post."""

    async def prep(self, store: pp.StoreReader, task: Task) -> list[Any]:
        return [(key, await store.get(key) or []) for key in task[1]]

    async def exec(self, prepared: list[Any]) -> list[Any]:
        await asyncio.sleep(0)
        return prepared

    async def post(self, store: pp.StoreWriter, task: Task, prepared: list[Any], result: list[Any]) -> str:
        running, recorder = _running[task[0]]
        seen = {key: tuple(found) for key, found in result}
        ops = await do(store, task[2], recorder, seen)
        running.tried([*(Read(key, found) for key, found in seen.items()), *ops])
        return task[0]


class WorkInThread(pp.Node[Any, str]):
    """The same with `def`."""

    def prep(self, store: pp.SyncReader, task: Task) -> list[Any]:
        return [(key, store.get(key) or []) for key in task[1]]

    def post(self, store: pp.SyncWriter, task: Task, prepared: list[Any], result: list[Any]) -> str:
        running, recorder = _running[task[0]]
        seen = {key: tuple(found) for key, found in result}
        ops = drive_inline(do(Now(store), task[2], recorder, seen))
        running.tried([*(Read(key, found) for key, found in seen.items()), *ops])
        return task[0]


Serializable = {kind: kind().with_options(isolation="serializable") for kind in (Work, WorkInThread)}


def graph_of(store: pp.Store, kind: type[pp.Node[Any, str]], use: str) -> pp.Graph[Any, str]:
    if use in FAN_OUTS:
        return pp.Graph(pp.each(Serializable[Work], concurrency=3), store=store, name=use)
    node = Serializable[kind] if use in ("serializable", "durable") else kind()
    return pp.Graph(node, store=store, name=f"{kind.__name__} {use}")


FAN_OUTS = ("fan-out", "durable fan-out")


async def fan_out(
    use: str,
    keys: list[str],
    chance: random.Random,
    recorder: Recorder,
    graphs: dict[str, Any],
    left: Running | None = None,
) -> None:
    """One fan-out, each item of which is a transaction; or one that a killed process has `left`."""
    run = recorder.begin(f"{use}, run", left and left.name)
    if left is not None and left.tasks is not None:
        tasks = left.tasks
    else:
        tasks = [
            [f"{run.name}, item {n}", first, [*map(list, steps), ["a", chance.choice(keys)]]]
            for n in range(chance.randint(1, ITEMS))
            for first, steps in [some(chance, keys, use)]
        ]
    run._note(tasks=tasks)
    items = [recorder.begin(use, name) for name, *_ in tasks]
    _running.update((item.name, (item, recorder)) for item in items)
    how: Outcome = "info"
    try:
        await graphs[use].run(tasks, run_id=run.name if use == "durable fan-out" else None)
        how = "ok"
    except (asyncio.CancelledError, pp.StoreBusyError, pp.ConflictError):
        pass  # an error of one item, or of none: the others' results are unknown
    except pp.StoreError:
        if not _gone:
            raise
    finally:
        for each in (*items, run):
            each.ended(how)
            _running.pop(each.name, None)


def some(chance: random.Random, keys: Sequence[str], use: str) -> tuple[list[str], Steps]:
    """The keys to read first, and the following steps."""
    steps: Steps = [(chance.choice("ra"), chance.choice(keys)) for _ in range(chance.randint(1, 4))]
    first = [] if use == "post" else chance.sample(keys, chance.randint(1, 3))
    return first, steps


async def use_async(
    store: pp.Store, use: str, keys: list[str], chance: random.Random, recorder: Recorder, graphs: dict[str, Any]
) -> None:
    """One transaction, by a task."""
    if use in FAN_OUTS:
        return await fan_out(use, keys, chance, recorder, graphs)
    running = recorder.begin(use)
    first, steps = some(chance, keys, use)
    with outcome(running):
        if use == "get":
            running.tried([Read(keys[0], tuple(await store.get(keys[0], ())))])
        elif use == "get_many":
            found = await store.get_many(keys)
            running.tried([Read(key, tuple(found.get(key, ()))) for key in keys])
        elif use == "update":
            await store.update(keys[0], appending(running, recorder, keys[0]), default=[])
        elif use == "transaction":
            async with store.transaction() as tx:
                ops = await do(tx, steps, recorder)
                await asyncio.sleep(0)
                running.tried(ops)
        else:
            _running[running.name] = running, recorder
            run_id = running.name if use == "durable" else None
            try:
                await graphs[use].run((running.name, first, steps), run_id=run_id)
            finally:
                del _running[running.name]


def use_sync(
    store: pp.Store, use: str, keys: list[str], chance: random.Random, recorder: Recorder, graphs: dict[str, Any]
) -> None:
    """One transaction, by a thread."""
    if use in FAN_OUTS:
        return asyncio.run(fan_out(use, keys, chance, recorder, graphs))
    running = recorder.begin(use)
    first, steps = some(chance, keys, use)
    view = store.sync
    with outcome(running):
        if use == "get":
            running.tried([Read(keys[0], tuple(view.get(keys[0], ())))])
        elif use == "flush":
            view.flush()
        elif use == "get_many":
            found = view.get_many(keys)
            running.tried([Read(key, tuple(found.get(key, ()))) for key in keys])
        elif use == "update":
            view.update(keys[0], appending(running, recorder, keys[0]), default=[])
        elif use == "transaction":
            with view.transaction() as tx:
                running.tried(drive_inline(do(Now(tx), steps, recorder)))
        else:
            _running[running.name] = running, recorder
            run_id = running.name if use == "durable" else None
            try:
                graphs[use].run_sync((running.name, first, steps), run_id=run_id)
            finally:
                del _running[running.name]


def appending(running: Running, recorder: Recorder, key: str) -> Callable[[list[int]], list[int]]:
    """For `update`."""

    def append(items: list[int]) -> list[int]:
        element = recorder.element()
        running.tried([Read(key, tuple(items)), Append(key, element)])
        return [*items, element]

    return append


@contextmanager
def outcome(running: Running) -> Any:
    """Record how it ended."""
    try:
        yield
    except pp.ConflictError:
        running.ended("fail")
    except (asyncio.CancelledError, pp.StoreBusyError):
        running.ended("info")
    except pp.StoreError:
        if not _gone:
            raise
        running.ended("info")  # the server was unreachable for too long
    else:
        running.ended("ok")


@dataclass
class History:
    """The transactions, and the lists at the end; for a process that follows another one also the lists at its start.

    `flushed`: for a killed process, when its last acknowledged flush started.
    """

    runnings: list[Running]
    final: Mapping[str, Sequence[int]]
    before: Mapping[str, Sequence[int]] = field(default_factory=dict)
    flushed: float | None = None

    def judged(self, uses: Sequence[str]) -> tuple[Findings, dict[str, list[str]]]:
        """The anomalies, and those of them that aren't allowed."""
        txns = [txn for running in self.runnings for txn in running.txns()]
        if self.before:
            txns.append(
                Txn([Append(key, each) for key in self.before for each in self.before[key]], 0, 0, "ok", "before")
            )
        findings = check(txns, self.final if self.flushed is None else None)
        if self.flushed is not None:
            findings.found.update(check_recovery(txns, self.final, self.flushed).found)
        self._count(findings)
        return findings, findings.beyond(frozenset().union(*(PROMISED[use] for use in uses)))

    def _count(self, findings: Findings) -> None:
        """Each item is executed once, whichever process continues the fan-out after a kill."""
        there = {element for elements in self.final.values() for element in elements}
        landed, acknowledged = Counter[str](), set[str]()
        for running in self.runnings:
            for ops in running.tries:
                own = [op.element for op in ops if isinstance(op, Append)]
                landed[running.name] += bool(own) and not there.isdisjoint(own)
                acknowledged.update([running.name] if own and running.outcome == "ok" else ())
        for name, times in landed.items():
            if times > 1:
                findings.add("twice", name)
            if not times and name in acknowledged:
                if self.flushed is None:
                    findings.add("never", name)
                else:
                    disturbances["acknowledged and lost with a kill"] += 1


# ---------------------------------------------------------------- in one process
def in_one_process(stack: str, uses: Sequence[str], transactions: int, seed: int, folder: Path) -> list[History]:
    """Two threads and two event loops with three tasks each share a store."""
    recorder = Recorder()
    made = STACKS[stack](folder)
    left = itertools.count()
    errors: list[BaseException] = []

    def more(chance: random.Random) -> list[str] | None:
        """The keys of the next transaction; none when there are enough."""
        done = next(left)
        if done >= transactions:
            return None
        return keys_in_use(chance, done)

    def thread(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        graphs = {use: graph_of(made, WorkInThread, use) for use in uses}
        while (keys := more(chance)) is not None:
            use_sync(made, chance.choice(uses), keys, chance, recorder, graphs)

    def loop(number: int) -> None:
        async def work(chance: random.Random) -> None:
            while (keys := more(chance)) is not None:
                doing = asyncio.ensure_future(use_async(made, chance.choice(uses), keys, chance, recorder, graphs))
                if chance.random() < CANCELLED:
                    for _ in range(chance.randint(0, 8)):
                        await asyncio.sleep(0)
                    disturbances["cancelled"] += doing.cancel()
                (ended,) = await asyncio.gather(doing, return_exceptions=True)  # cancelled perhaps before it started
                if isinstance(ended, Exception):
                    raise ended

        async def main() -> None:
            await asyncio.gather(*(work(random.Random(f"{seed} {number} {n}")) for n in range(3)))

        graphs = {use: graph_of(made, Work, use) for use in uses}
        asyncio.run(main())

    def guarded(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    with made.sync as store:
        works = [*((thread, n) for n in range(2)), *((loop, n) for n in range(2, 4))]
        threads = [threading.Thread(target=guarded, args=work) for work in works]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        if errors:
            raise errors[0]
        return [History(recorder.runnings, lists_in(store))]


def lists_in(store: pp.SyncStore) -> dict[str, list[int]]:
    return {key: store.get(key) for key in store.keys() if key.startswith("k")}


# ---------------------------------------------------------------- in several processes
WORKERS = 8
disturbances = Counter[str]()
"""How many processes were stopped and killed, how many tasks cancelled before they were done, and what came of it."""


def in_processes(stack: str, uses: Sequence[str], transactions: int, seed: int, folder: Path) -> list[History]:
    """Processes with two threads each; now and then one is killed and replaced, and one is stopped for a while."""
    with STACKS[stack](folder).sync:
        pass  # the file is there
    chance = random.Random(f"{seed} kills")
    numbers = itertools.count(1)
    until = folder / "go on"
    until.touch()
    began = time.monotonic()
    working: dict[int, Path] = {}
    logs: list[Path] = []

    def begin(killed: Path | None = None) -> None:
        number = next(numbers)
        logs.append(folder / f"log.{number}")
        runs = [] if killed is None or not killed.exists() else [each for each in recorded(killed) if each.is_left]
        disturbances["fan-outs that were resumed"] += len(runs)
        pid = forked(
            lambda: _worker(stack, uses, f"{seed} {number}", Recorder(number, logs[-1]), folder, until, began, runs)
        )
        working[pid] = logs[-1]

    for _ in range(WORKERS):
        begin()
    stopped: list[int] = []
    while True:
        time.sleep(chance.uniform(0.02, 0.1))
        pid = chance.choice([*working])
        if stopped:
            os.kill(stopped.pop(), signal.SIGCONT)
        elif _gone and chance.random() < 0.2:
            disturb_server(_gone[0], chance)
        elif chance.random() < 0.5:
            os.kill(pid, signal.SIGSTOP)
            disturbances["stopped"] += 1
            stopped.append(pid)
        else:
            os.kill(pid, signal.SIGKILL)
            disturbances["killed"] += 1
            os.waitpid(pid, 0)
            begin(working.pop(pid))
        lines = sum(log.read_bytes().count(b'"outcome"') for log in logs if log.exists())
        if lines >= transactions:
            break
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    until.unlink()
    for pid in working:
        end_well(pid)
    with STACKS[stack](folder).sync as store:
        return [History([running for log in logs if log.exists() for running in recorded(log)], lists_in(store))]


def disturb_server(server: Server, chance: random.Random) -> None:
    """Kill the server, or stop it for a while."""
    if chance.random() < 0.5:
        server.kill()
        server.restart()
        disturbances["servers killed"] += 1
    else:
        server.stop()
        time.sleep(chance.uniform(0, 1.5))
        server.go_on()
        disturbances["servers stopped"] += 1


def in_lives(stack: str, uses: Sequence[str], transactions: int, seed: int, folder: Path) -> list[History]:
    """One process after the other, each with two threads; most are killed, the others end. Returns a history for each."""
    chance = random.Random(f"{seed} kills")
    until = folder / "go on"
    began = time.monotonic()
    histories: list[History] = []
    before: dict[str, list[int]] = {}
    done = 0
    while done < transactions:
        until.touch()
        number = len(histories) + 1
        log = folder / f"log.{number}"
        pid = forked(
            lambda: _worker(stack, uses, f"{seed} {number}", Recorder(number, log), folder, until, began, speed=2000)  # noqa: B023 - called at once
        )
        while not log.exists() or not log.stat().st_size:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.2))
        killed = chance.random() < 0.9
        if killed:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            disturbances["killed"] += 1
        else:
            until.unlink()
            end_well(pid)
        runnings = recorded(log)
        flushes = [each.start for each in runnings if each.name.startswith("flush ") and each.outcome == "ok"]
        with pp.SyncStore(file(folder, "process")) as store:
            left = lists_in(store)
        histories.append(History(runnings, left, before, max(flushes, default=0.0) if killed else None))
        before = left
        done += sum(each.outcome == "ok" for each in runnings)
    return histories


def forked(work: Callable[[], None]) -> int:
    """Do it in another process."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the parent learns the status
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def end_well(pid: int) -> None:
    """Wait for a worker's end. Raises RuntimeError if it has failed."""
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"a worker ended with {os.waitstatus_to_exitcode(status)}")


def _worker(stack: str, uses: Sequence[str], seed: str, recorder: Recorder, folder: Path, until: Path,
            began: float, runs: Sequence[Running] = (), speed: int = 200) -> None:  # fmt: skip
    """`runs` are those that a killed process has left; `speed`: about so many elements are appended per second."""
    made = STACKS[stack](folder)
    errors: list[BaseException] = []

    def thread(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        graphs = {use: graph_of(made, WorkInThread, use) for use in uses}
        while until.exists() and not errors:
            keys = keys_in_use(chance, int((time.monotonic() - began) * speed))  # all processes compute the same
            try:
                use_sync(made, chance.choice(uses), keys, chance, recorder, graphs)
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

    with made.sync:
        for run in runs:
            graphs = {"durable fan-out": graph_of(made, Work, "durable fan-out")}
            asyncio.run(fan_out("durable fan-out", [], random.Random(), recorder, graphs, run))
        threads = [threading.Thread(target=thread, args=(number,)) for number in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    if errors:
        raise errors[0]


# ---------------------------------------------------------------- the campaign
def campaign(transactions: int, seed: int, stacks: Sequence[str], rounds: int) -> int:
    """Every stack and mix, in rounds, each with a new store. Returns how many histories broke a guarantee."""
    places: list[tuple[str, str, Callable[..., Any], Mixes]] = [
        *(
            (stack, "", in_one_process, DURABLE if stack.startswith("sqlite") or stack in SERVERS else MIXES)
            for stack in stacks
        ),
        *((stack, ", processes", in_processes, PROCESSES[stack]) for stack in stacks if stack in PROCESSES),
        *((stack, ", lives", in_lives, LIVES[stack]) for stack in stacks if stack in LIVES),
    ]
    each = max(50, transactions // (sum(len(mixes) for *_, mixes in places) * rounds))
    broken, total = 0, Counter[str]()
    for stack, where, record, mixes in places:
        if stack in SERVERS and stack not in _serving:
            _serving[stack] = SERVERS[stack]()
        _gone[:] = [_serving[stack]] if stack in SERVERS and record is in_processes else []
        for mix, uses in mixes.items():
            outcomes, seen = Counter[str](), Counter[str]()
            for turn in range(rounds):
                with tempfile.TemporaryDirectory() as folder, ExitStack() as usual:
                    interval = sys.getswitchinterval()
                    usual.callback(sys.setswitchinterval, interval)
                    sys.setswitchinterval(interval if turn % 2 else 1e-5)  # sometimes threads switch often
                    histories: list[History] = record(stack, uses, each, seed + turn, Path(folder))
                for history in histories:
                    findings, beyond = history.judged(uses)
                    outcomes += Counter(running.outcome for running in history.runnings)
                    seen += Counter({name: len(examples) for name, examples in findings.found.items()})
                    for name, examples in beyond.items():
                        broken += 1
                        print(f"BROKEN {stack}{where}, {mix}, seed {seed + turn}: {name}", *examples, sep="\n    ")
            total += outcomes
            print(f"{stack}{where}, {mix}: {dict(outcomes)}, found {dict(seen) or 'nothing'}", flush=True)
    for server in _serving.values():
        server.close()
    _serving.clear()
    print(f"{total.total()} transactions ({dict(total)}; {dict(disturbances)}), {broken} broken promises")
    return broken


if __name__ == "__main__":
    if unknown := [stack for stack in sys.argv[3:] if stack not in STACKS]:
        sys.exit(f"there is no stack {unknown[0]!r}; there are {', '.join(map(repr, STACKS))}")
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    sys.exit(
        bool(
            campaign(
                wanted,
                int(sys.argv[2]) if len(sys.argv) > 2 else 0,
                sys.argv[3:] or [*STACKS],
                max(1, wanted // 10_000),
            )
        )
    )
