"""Histories of transactions on every kind of stack, checked by `elle`: `make histories`, or
`python tests/histories/histories.py [TRANSACTIONS] [SEED] [STACK …]`.

Threads, and tasks of two event loops, append to lists and read them, by every way there is to use a store; at random,
tasks are cancelled. On SQLite several processes do so too, of which some are killed and some are stopped for a while. What
a stack promises of each use is written down here: `PROMISED`.
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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from elle import Append, Findings, Outcome, Read, Txn, check

import pocket_plug as pp
from pocket_plug.layers import Bounding, Metrics, Persistence, Tracing
from pocket_plug.primitives.waiting import drive_inline

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
    "default": SKEWS,
}
"""For each use, the anomalies that may be found where it is in the history. All others are promised not to be."""

Mixes = dict[str, tuple[str, ...]]

CHECKED = ("update", "transaction", "post", "serializable")
STRICT = ("get", "get_many", *CHECKED)
MIXES: Mixes = {"strict": STRICT, "default": ("default", "transaction", "get_many")}
DURABLE: Mixes = {"strict": (*STRICT, "durable"), "default": MIXES["default"]}

Make = Callable[[Path], pp.Store]


def file(folder: Path, durability: str) -> str:
    return f"sqlite:///{folder}/state.db?durability={durability}&timeout=60"


STACKS: dict[str, Make] = {
    "memory": lambda folder: pp.Store(),
    "bounded by entries": lambda folder: pp.Store(layers=[Bounding(max_entries=10_000)]),
    "bounded by bytes": lambda folder: pp.Store(layers=[Bounding(max_bytes=100_000_000)]),
    "observed": lambda folder: pp.Store(layers=[Tracing(), Metrics(), Bounding(max_entries=10_000, ttl="1h")]),
    "sqlite process": lambda folder: pp.Store(file(folder, "process")),
    "sqlite power": lambda folder: pp.Store(file(folder, "power")),
    "through": lambda folder: pp.Store(layers=[Persistence(to=file(folder, "process")), Bounding(max_entries=3)]),
    "behind": lambda folder: pp.Store(
        layers=[Persistence(to=file(folder, "process"), mode="behind"), Bounding(max_entries=3)]
    ),
    "behind, without room": lambda folder: pp.Store(
        layers=[Persistence(to=file(folder, "process"), mode="behind", max_pending=3)]
    ),
}
PROCESSES: dict[str, Mixes] = {"sqlite process": MIXES, "sqlite power": MIXES, "through": {"checked": CHECKED}}
"""What several processes may share, and how they use it. Plain reads of `through` may be old; what is checked is not."""


# ---------------------------------------------------------------- recording
@dataclass
class Running:
    """A transaction that goes on, and what each of its tries has done by the time it wants to commit."""

    name: str
    start: float
    write: Callable[[dict[str, Any]], None] | None = None
    tries: list[Ops] = field(default_factory=list)
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

    def txns(self) -> list[Txn]:
        """Each try is a transaction of its own: of one that landed, the others were lost."""
        if self.outcome != "ok":
            return [Txn(ops, self.start, self.end, self.outcome, self.name) for ops in self.tries]
        *lost, landed = self.tries
        return [
            Txn(landed, self.start, self.end, "ok", self.name),
            *(Txn(ops, self.start, self.end, "fail", f"{self.name}, lost") for ops in lost),
        ]


def _plain(op: Read | Append) -> list[Any]:
    return ["r", op.key, list(op.seen)] if isinstance(op, Read) else ["a", op.key, op.element]


class Recorder:
    """Gives out elements, and keeps what was done with them; of one process."""

    def __init__(self, number: int = 0, path: Path | None = None) -> None:
        self._elements = itertools.count(number << 32)
        self._names = itertools.count()
        self._number = number
        self.runnings: list[Running] = []
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def element(self) -> int:
        return next(self._elements)

    def begin(self, use: str) -> Running:
        number = next(self._names)
        running = Running(f"{use} {self._number}.{number}", time.monotonic(), self._write if self._file else None)
        self.runnings.append(running)
        return running

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        os.write(self._file, json.dumps(line).encode() + b"\n")  # kept if this process is killed


def keys_in_use(chance: random.Random, elements: int) -> list[str]:
    """In any order. After so many elements others come into use, so that lists stay short."""
    first = elements // LENGTH * 4
    keys = [f"k{first + n}" for n in range(4)]
    chance.shuffle(keys)
    return keys


def recorded(path: Path) -> list[Running]:
    """What a process wrote down, to its end or until it was killed."""
    runnings: dict[str, Running] = {}
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # the last one, cut off
            what = json.loads(line)
            running = runnings.setdefault(what["name"], Running(what["name"], what["start"]))
            if "ops" in what:
                running.tries.append(
                    [Read(key, tuple(at)) if kind == "r" else Append(key, at) for kind, key, at in what["ops"]]
                )
            else:
                running.outcome, running.end = what["outcome"], what["end"]
    return [*runnings.values()]


# ---------------------------------------------------------------- the uses of a store
class Now:
    """A sync view, for code that awaits."""

    def __init__(self, view: Any) -> None:
        self._view = view

    async def get(self, key: str) -> Any:
        return self._view.get(key)

    async def set(self, key: str, value: Any) -> None:
        self._view.set(key, value)


async def do(view: Any, steps: Steps, recorder: Recorder, known: dict[str, tuple[int, ...]] | None = None) -> Ops:
    """Do the steps. What is `known` is not read again before something is appended to it."""
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
    node = Serializable[kind] if use in ("serializable", "durable") else kind()
    return pp.Graph(node, store=store, name=f"{kind.__name__} {use}")


def some(chance: random.Random, keys: Sequence[str], use: str) -> tuple[list[str], Steps]:
    """What to read first, and the steps that follow."""
    steps: Steps = [(chance.choice("ra"), chance.choice(keys)) for _ in range(chance.randint(1, 4))]
    first = [] if use == "post" else chance.sample(keys, chance.randint(1, 3))
    return first, steps


async def use_async(store: pp.Store, use: str, keys: list[str], chance: random.Random, recorder: Recorder,
                    graphs: dict[str, Any]) -> None:  # fmt: skip
    """One transaction, by a task."""
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


def use_sync(store: pp.Store, use: str, keys: list[str], chance: random.Random, recorder: Recorder,
             graphs: dict[str, Any]) -> None:  # fmt: skip
    """One transaction, by a thread."""
    running = recorder.begin(use)
    first, steps = some(chance, keys, use)
    view = store.sync
    with outcome(running):
        if use == "get":
            running.tried([Read(keys[0], tuple(view.get(keys[0], ())))])
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
    """Note how it ended."""
    try:
        yield
    except pp.ConflictError:
        running.ended("fail")
    except (asyncio.CancelledError, pp.StoreBusyError):
        running.ended("info")
    else:
        running.ended("ok")


# ---------------------------------------------------------------- in one process
def in_one_process(
    stack: str, uses: Sequence[str], transactions: int, seed: int, folder: Path
) -> tuple[list[Running], Any]:
    """Two threads and two event loops with three tasks each share a store."""
    recorder = Recorder()
    made = STACKS[stack](folder)
    left = itertools.count()
    errors: list[BaseException] = []

    def more(chance: random.Random) -> list[str] | None:
        """The keys of the next transaction; none when it is enough."""
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
                (ended,) = await asyncio.gather(doing, return_exceptions=True)  # cancelled perhaps before it began
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
        final = {key: store.get(key) for key in store.keys() if key.startswith("k")}
    return recorder.runnings, final


# ---------------------------------------------------------------- in several
WORKERS = 4
disturbances = Counter[str]()
"""How many processes were stopped and killed, and how many tasks cancelled before they were done."""


def in_processes(
    stack: str, uses: Sequence[str], transactions: int, seed: int, folder: Path
) -> tuple[list[Running], Any]:
    """Processes with two threads each, of which now and then one is killed and replaced, and one is stopped for a while."""
    with STACKS[stack](folder).sync:
        pass  # the file is there
    chance = random.Random(f"{seed} kills")
    numbers = itertools.count(1)
    until = folder / "go on"
    until.touch()
    began = time.monotonic()
    working: dict[int, int] = {}
    logs: list[Path] = []

    def begin() -> None:
        number = next(numbers)
        logs.append(folder / f"log.{number}")
        pid = os.fork()
        if not pid:
            status = 1
            try:
                _worker(stack, uses, f"{seed} {number}", Recorder(number, logs[-1]), folder, until, began)
                status = 0
            except BaseException:  # noqa: BLE001 - the parent learns the status
                traceback.print_exc()
            finally:
                os._exit(status)
        working[pid] = number

    for _ in range(WORKERS):
        begin()
    stopped: list[int] = []
    while True:
        time.sleep(chance.uniform(0.02, 0.1))
        pid = chance.choice([*working])
        if stopped:
            os.kill(stopped.pop(), signal.SIGCONT)
        elif chance.random() < 0.5:
            os.kill(pid, signal.SIGSTOP)
            disturbances["stopped"] += 1
            stopped.append(pid)
        else:
            os.kill(pid, signal.SIGKILL)
            disturbances["killed"] += 1
            os.waitpid(pid, 0)
            del working[pid]
            begin()
        lines = sum(log.read_bytes().count(b'"outcome"') for log in logs if log.exists())
        if lines >= transactions:
            break
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    until.unlink()
    for pid in working:
        _, status = os.waitpid(pid, 0)
        if status:
            raise RuntimeError(f"a worker ended with {os.waitstatus_to_exitcode(status)}")
    with STACKS[stack](folder).sync as store:
        final = {key: store.get(key) for key in store.keys() if key.startswith("k")}
    return [running for log in logs if log.exists() for running in recorded(log)], final


def _worker(stack: str, uses: Sequence[str], seed: str, recorder: Recorder, folder: Path, until: Path,
            began: float) -> None:  # fmt: skip
    made = STACKS[stack](folder)
    errors: list[BaseException] = []

    def thread(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        graphs = {use: graph_of(made, WorkInThread, use) for use in uses}
        while until.exists() and not errors:
            keys = keys_in_use(chance, int((time.monotonic() - began) * 200))  # which all processes know
            try:
                use_sync(made, chance.choice(uses), keys, chance, recorder, graphs)
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

    with made.sync:
        threads = [threading.Thread(target=thread, args=(number,)) for number in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    if errors:
        raise errors[0]


# ---------------------------------------------------------------- the campaign
def judged(runnings: Sequence[Running], final: Any, uses: Sequence[str]) -> tuple[Findings, dict[str, list[str]]]:
    """What was found, and what of it nobody was told to expect."""
    findings = check([txn for running in runnings for txn in running.txns()], final)
    return findings, findings.beyond(frozenset().union(*(PROMISED[use] for use in uses)))


def campaign(transactions: int, seed: int, stacks: Sequence[str], rounds: int) -> int:
    """Every stack and mix, in rounds with a store of its own each. How many histories broke a promise?"""
    places: list[tuple[str, str, Callable[..., Any], Mixes]] = [
        *((stack, "", in_one_process, DURABLE if stack.startswith("sqlite") else MIXES) for stack in stacks),
        *((stack, ", processes", in_processes, PROCESSES[stack]) for stack in stacks if stack in PROCESSES),
    ]
    each = max(50, transactions // (sum(len(mixes) for *_, mixes in places) * rounds))
    broken, total = 0, Counter[str]()
    for stack, where, record, mixes in places:
        for mix, uses in mixes.items():
            outcomes, seen = Counter[str](), Counter[str]()
            for turn in range(rounds):
                with tempfile.TemporaryDirectory() as folder, ExitStack() as usual:
                    interval = sys.getswitchinterval()
                    usual.callback(sys.setswitchinterval, interval)
                    sys.setswitchinterval(interval if turn % 2 else 1e-5)  # threads take turns often, at times
                    runnings, final = record(stack, uses, each, seed + turn, Path(folder))
                findings, beyond = judged(runnings, final, uses)
                outcomes += Counter(running.outcome for running in runnings)
                seen += Counter({name: len(examples) for name, examples in findings.found.items()})
                for name, examples in beyond.items():
                    broken += 1
                    print(f"BROKEN {stack}{where}, {mix}, seed {seed + turn}: {name}", *examples, sep="\n    ")
            total += outcomes
            print(f"{stack}{where}, {mix}: {dict(outcomes)}, found {dict(seen) or 'nothing'}", flush=True)
    print(f"{total.total()} transactions ({dict(total)}; {dict(disturbances)}), {broken} broken promises")
    return broken


if __name__ == "__main__":
    if unknown := [stack for stack in sys.argv[3:] if stack not in STACKS]:
        sys.exit(f"there is no stack {unknown[0]!r}; there are {', '.join(map(repr, STACKS))}")
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    sys.exit(bool(campaign(wanted, int(sys.argv[2]) if len(sys.argv) > 2 else 0, sys.argv[3:] or [*STACKS],
                           max(1, wanted // 10_000))))  # fmt: skip
