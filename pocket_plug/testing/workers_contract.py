"""The promises of workers over a store that several processes share, as tests: inherit `WorkersContract`.

Three workers, whose clocks differ by hours, execute runs with all kinds of nodes that another process submits. Meanwhile
processes are killed and stopped at random moments: these, the store's server, and the processes of an executor if there is one.
In the end, every effect has happened exactly once, no run is open, and `exec` was repeated only if its process was killed,
stopped, or not scheduled by the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from pocket_plug.errors import ExecutorLostError, RunMismatchError, RunStateError, RunStuckError, StoreBusyError
from pocket_plug.graph.durable.records import RUN, field_of
from pocket_plug.graph.durable.worker import Worker
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.ask import Answered, Ask
from pocket_plug.graph.kinds.each import each
from pocket_plug.graph.kinds.sleep import Sleep
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.graph.nodes.retry import Retry
from pocket_plug.graph.running.context import idempotency_key
from pocket_plug.graph.runs import SyncRuns
from pocket_plug.plugins.config import Config
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.primitives.failures import error_type
from pocket_plug.store.backend import Backend
from pocket_plug.store.store import Store, StoreReader, StoreWriter
from pocket_plug.store.sync import SyncStore

LEASE = 0.6
"""The workers' lease in seconds. A process is stopped for up to twice this time."""
CLOCKS = (0.0, 7 * 3600.0, -5 * 3600.0)
"""Seconds by which the workers' clocks are ahead of the true time."""
PACE = 0.7
"""Approximate seconds between two disturbances: a process has to start in between."""
AT_ONCE, STEPS, AHEAD = 4, 7, 10
"""Concurrent runs of a worker; consecutive nodes of a run; pending runs at which the submitter waits."""
LATE, WAS_LATE = LEASE / 4, "was late"
"""Seconds of delay after which a process records that it wasn't scheduled in time, and the text of this record."""

NOTICED = 1.0
"""Seconds within which a worker notices that a server was stopped."""
HANGS = 120.0
"""Seconds after the last disturbance within which all runs must end."""


# ---------------------------------------------------------------- the runs
_record_file, _longest = "", 0.0
"""Arguments of a worker process: the file in which executions are recorded, and the longest duration of an `exec` in seconds."""


class Effect(Node[int, int], name="effect"):
    """Records its execution in a file, counts its key in the store, and adds its input to a sum."""

    async def prep(self, store: StoreReader, input: int) -> tuple[str, str, float, int]:
        # When exec was requested: an executor may begin it after the process has lost the run.
        requested = f"{os.getpid()} {time.monotonic()}"
        return _record_file, requested, random.uniform(0, _longest), input  # noqa: S311 - no secret

    async def exec(self, prepared: tuple[str, str, float, int]) -> int:
        # no globals: exec may run in a process that has none of them set
        record_file, requested, takes, result = prepared
        _record(record_file, f"{requested} {idempotency_key()}\n")
        await asyncio.sleep(takes)
        return result

    async def post(self, store: StoreWriter, input: int, prepared: object, result: int) -> int:
        await store.update(f"effect:{idempotency_key()}", lambda times: times + 1, default=0)
        await store.update(f"sum:{input % 7}", lambda total: total + input, default=0)
        return result


def _record(record_file: str, line: str) -> None:
    with Path(record_file).open("a", encoding="utf-8") as file:
        file.write(line)


def _record_delays(record_file: str) -> None:
    """Record when this process wasn't scheduled for so long that it may have lost a lease, as on a busy machine."""

    def notice() -> None:
        while True:
            before = time.monotonic()
            time.sleep(LATE / 3)
            if (now := time.monotonic()) > before + LATE:
                _record(record_file, f"{os.getpid()} {now} {WAS_LATE}\n")

    threading.Thread(target=notice, name="notices that it is late", daemon=True).start()


@node
async def spread(n: int) -> list[int]:
    return list(range(n % 5 + 1))


@node
async def total(items: list[int]) -> int:
    return sum(items)


@node
async def taken(answered: Answered[int, bool]) -> int:
    return answered.input


def graph_of(executor: str | None = None) -> Graph[int, int]:
    """The graph of the runs. With an executor, the effects' `exec` runs there, and is retried after an ExecutorLostError."""
    retry = None if executor is None else Retry(attempts=100, delay="500ms", on=ExecutorLostError)
    first, item, after, inside, beyond, last = (
        Effect().with_options(name=name, executor=executor, retry=retry)
        for name in ("first", "item", "after", "inside", "beyond", "last")
    )
    way = Graph(item >> after, name="way")
    inner = Graph(inside >> Sleep[int]("20ms", name="nap") >> beyond, name="inner")
    approve = Ask[int, bool](bool, question="Go on?", name="approve")
    return Graph(
        first >> spread >> each(way, concurrency=3) >> total >> inner >> approve >> taken >> last, name="contract"
    )


GRAPH, ELSEWHERE = graph_of(), graph_of("elsewhere")


def input_of(number: int) -> int:
    """The input of a run."""
    return number


def keys_of_run(number: int) -> list[str]:
    """The idempotency keys of all effects of a run."""
    items = [f"/each_way#1[{item}]/{name}#1" for item in range(number % 5 + 1) for name in ("item", "after")]
    nodes = ["/first#1", *items, "/inner#1/inside#1", "/inner#1/beyond#1", "/last#1"]
    return [f"r{number}{each}" for each in nodes]


# ---------------------------------------------------------------- the processes
def serve(url: str, record_file: str, ahead: str, longest: str, executor: str) -> None:
    """The main function of a worker process; `executor` is the URL of an executor, or empty."""
    global _record_file, _longest
    _record_file, _longest = record_file, float(longest)

    _record_delays(record_file)

    async def main() -> None:
        pocket = Pocket(Config(executors={"elsewhere": executor}))
        async with pocket, Store(url, clock=lambda: time.time() + float(ahead)) as store:
            worker = Worker([_graph(executor)], store=store, concurrency=AT_ONCE, lease=LEASE, pocket=pocket)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
            await worker.run()

    asyncio.run(main())


def _graph(executor: str) -> Graph[int, int]:
    return ELSEWHERE if executor else GRAPH


def submit(url: str, runs: str, executor: str) -> None:
    """The main function of the submitting process. After a kill it submits all runs again; it waits if too many are pending."""
    with SyncStore(url) as store:
        for number in range(int(runs)):
            _graph(executor).submit_sync(input_of(number), run_id=f"r{number}", store=store)
            while len(SyncRuns(store).list(state="pending", limit=AHEAD).runs) == AHEAD:
                time.sleep(0.05)


def answer_all(url: str) -> int:
    """Answer open questions, and retry runs that the workers have given up; returns how many runs have not ended.

    Workers give a run up after its executions were killed five times without progress, which can happen here.
    """
    with SyncStore(url) as store:
        runs = SyncRuns(store)
        for waiting in runs.list(state="suspended", limit=1000).runs:
            for question in runs.questions(waiting.run_id):
                with contextlib.suppress(RunMismatchError):
                    runs.answer(waiting.run_id, True, question=question.id)
        for failed in runs.list(state="failed", limit=1000).runs:
            if failed.failure is not None and failed.failure.type == error_type(RunStuckError()):
                with contextlib.suppress(RunStateError):
                    runs.retry(failed.run_id)
        # at one moment: `list` would read the states one after the other, and miss a run that changes its state meanwhile
        records = store.stack.run(store.stack.read_page(RUN, limit=1000))
        return sum(field_of(entry, "status") in ("pending", "running", "suspended") for _, entry in records if entry)


@dataclass
class _Child:
    """A process that is disturbed and restarted."""

    arguments: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    begun: int = 0

    def start(self) -> None:
        code = "import sys; from pocket_plug.testing import workers_contract as it; getattr(it, sys.argv[1])(*sys.argv[2:])"
        self.process = subprocess.Popen([sys.executable, "-c", code, *self.arguments])  # noqa: S603 - ours
        self.begun += 1


@dataclass
class Outcome:
    """The result of a campaign."""

    kills: int = 0
    stops: int = 0
    drains: int = 0
    crashes: int = 0
    """How often a server was killed."""
    stalls: int = 0
    """How often a server was stopped for a while."""
    effects: int = 0
    redone: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list[str])


class Disturbed(Protocol):
    """A server of the store or of an executor that can be killed and stopped, such as those of `testing.servers`."""

    def kill(self) -> None:
        """Kill it, as a crash would."""
        ...

    def restart(self) -> None:
        """Start it again over the same data, and wait until it answers."""
        ...

    def stop(self) -> None:
        """Suspend all its processes, as by SIGSTOP."""
        ...

    def go_on(self) -> None:
        """Continue after `stop`."""
        ...


class Campaign:
    """Executes `runs` runs, and kills or stops a process at `moments` moments, which a seed determines.

    With `servers`, of the store or an executor, every third moment disturbs one of them, by turns. `executor` is the URL of the
    executor that runs the effects.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        seed: int,
        runs: int,
        moments: int,
        servers: Sequence[Disturbed] = (),
        executor: str = "",
    ) -> None:
        self.url, self.folder, self.runs, self.moments = url, folder, runs, moments
        self._servers = servers
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._record_file = folder / "executions"
        self._record_file.touch()
        # so long that there is work until the last moment
        longest = min(1.0, 2 * PACE * moments / (runs * STEPS / (AT_ONCE * len(CLOCKS))))
        arguments = str(longest), executor
        self._workers = [_Child(("serve", url, str(self._record_file), str(ahead), *arguments)) for ahead in CLOCKS]
        self._submitter = _Child(("submit", url, str(runs), executor))
        self._disturbed: dict[int, list[float]] = defaultdict(list)
        """The moments at which a process was killed or stopped, by its pid."""
        self.outcome = Outcome()

    def go(self) -> Outcome:
        """Run the campaign and check its result."""
        began = time.monotonic()
        children = [*self._workers, self._submitter]
        try:
            for child in children:
                child.start()
            for moment in range(self.moments):
                child = self._random.choices(children, (5, 5, 5, 1))[0]
                self._await_work(child)
                time.sleep(self._random.uniform(0, 0.3))
                if self._servers and moment % 3 == 2:
                    self._disturb_server(self._servers[moment // 3 % len(self._servers)])
                else:
                    self._disturb(child)
                self._answer()
            self._finish()
        finally:
            for child in children:
                if child.process is not None:
                    child.process.kill()
                    child.process.wait()
        self.outcome.seconds = time.monotonic() - began
        self._check()
        return self.outcome

    def _await_work(self, child: _Child) -> None:
        """Wait until a worker has executed something, if there is work: it is useless to disturb one that is still starting."""
        until = time.monotonic() + 2
        while child is not self._submitter and child.process is not None and time.monotonic() < until:
            if f"{child.process.pid} ".encode() in self._record_file.read_bytes():
                return
            if child.process.poll() is not None:
                child.start()
            time.sleep(0.02)
            if self._answer() == 0:
                return

    def _disturb(self, child: _Child) -> None:
        process = child.process
        assert process is not None
        if process.poll() is not None:
            if child is not self._submitter or process.returncode != 0:
                child.start()
            return
        kind = self._random.choices(("kill", "stop", "drain"), (6, 3, 1))[0]
        if kind == "drain":
            process.send_signal(signal.SIGTERM)
            self.outcome.drains += 1
            if child is self._submitter:
                process.wait()
            return
        if kind == "kill":
            process.kill()
            process.wait()
            self._disturbed[process.pid].append(time.monotonic())
            child.start()
            self.outcome.kills += 1
        else:
            self._disturbed[process.pid].append(time.monotonic())
            process.send_signal(signal.SIGSTOP)
            time.sleep(self._random.uniform(0, 2 * LEASE))
            process.send_signal(signal.SIGCONT)
            self._disturbed[process.pid].append(time.monotonic())
            self.outcome.stops += 1

    def _disturb_server(self, server: Disturbed) -> None:
        if self._random.random() < 0.5:
            server.kill()
            server.restart()
            self.outcome.crashes += 1
        else:
            server.stop()
            time.sleep(self._random.uniform(0, 3 * LEASE))
            server.go_on()
            self.outcome.stalls += 1
        for worker in self._workers:  # its heartbeat failed, or a result that it waited for was lost
            if worker.process is not None:
                self._disturbed[worker.process.pid].append(time.monotonic() + NOTICED)

    def _answer(self) -> int:
        while True:
            with contextlib.suppress(StoreBusyError):  # a stopped process holds the file's lock
                return answer_all(self.url)

    def _finish(self) -> None:
        """Without further disturbances, wait until all runs have ended."""
        until = time.monotonic() + HANGS
        while True:
            for child in (*self._workers, self._submitter):
                if child.process is not None and child.process.poll() not in (
                    None,
                    0 if child is self._submitter else None,
                ):
                    child.start()
            is_submitted = self._submitter.process is not None and self._submitter.process.poll() == 0
            if self._answer() == 0 and is_submitted:
                return
            if time.monotonic() > until:
                self.outcome.faults.append(f"{self._answer()} runs had not ended after {HANGS:.0f} seconds")
                return
            time.sleep(0.05)

    # ------------------------------------------------------------ checks
    def _check(self) -> None:
        with SyncStore(self.url) as store:
            found = {name: store.require(name) for name in store.keys("effect:")}
            total = sum(store.require(name) for name in store.keys("sum:"))
            records = store.stack.run(_records(store.stack))
            failed = SyncRuns(store).list(state="failed", limit=1000).runs
        expected = {f"effect:{key}" for number in range(self.runs) for key in keys_of_run(number)}
        faults, self.outcome.effects = self.outcome.faults, len(found)
        faults += [f"{name} is missing" for name in sorted(expected - found.keys())]
        faults += [f"{name} is unexpected" for name in sorted(found.keys() - expected)]
        faults += [f"{name} happened {times} times" for name, times in found.items() if times != 1]
        wanted = sum(_sum_of(number) for number in range(self.runs))
        faults += [f"the sum is {total}, not {wanted}"] if total != wanted else []
        faults += [f"run {each.run_id} has failed: {each.failure}" for each in failed]
        faults += [f"{count} records of {kind} are left" for kind, count in records.items() if count]
        self._check_executions()

    def _check_executions(self) -> None:
        """Check that `exec` was repeated only if its process was killed, stopped or not scheduled after it was requested."""
        executed: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for line in self._record_file.read_text("utf-8").splitlines():
            pid, at, key = line.split(" ", 2)
            if key == WAS_LATE:
                self._disturbed[int(pid)].append(float(at))
            else:
                executed[key].append((float(at), int(pid)))
        for key, times in executed.items():
            times.sort()
            self.outcome.redone += len(times) - 1
            for requested, process in times[:-1]:
                if not any(moment >= requested for moment in self._disturbed[process]):
                    self.outcome.faults.append(
                        f"exec of {key} was repeated, although process {process} was not disturbed"
                    )


def _sum_of(number: int) -> int:
    items = list(range(number % 5 + 1))
    return number + 2 * sum(items) + 3 * sum(items)


async def _records(stack: Backend) -> Counter[str]:
    """The number of records that ended runs must not have, by kind."""
    left: Counter[str] = Counter()
    for state in ("pending", "running", "suspended", "failed", "cancelled"):
        left[state] = len([key async for key in stack.scan(f"pocket:run-state:{state}:")])
    left["wake"] = len([key async for key in stack.scan("pocket:run-wake:")])
    left["items"] = len([key async for key in stack.scan("pocket:run-part:") if ":item:" in key])
    return left


class WorkersContract:
    """Tests the promises of workers. Inherit it, and return the URL of a store that processes can share:

    ```python
    class TestMine(WorkersContract):
        @pytest.fixture
        def url(self) -> str:
            return "mine://localhost/test"
    ```
    """

    RUNS, MOMENTS, SEED = 12, 5, 1

    @pytest.fixture
    def url(self) -> str:
        """The URL of an empty store; to be overridden."""
        raise NotImplementedError

    @pytest.fixture
    def server(self) -> Disturbed | None:
        """The store's server, if it may be killed and stopped, too."""
        return None

    @pytest.fixture
    def servers(self, server: Disturbed | None) -> Sequence[Disturbed]:
        """All servers that are killed and stopped: by default the store's."""
        return () if server is None else (server,)

    @pytest.fixture
    def executor(self) -> str:
        """The URL of an executor for the effects; empty for none."""
        return ""

    def test_every_effect_is_there_once_whatever_is_killed(
        self, url: str, servers: Sequence[Disturbed], executor: str, tmp_path: Path
    ) -> None:
        """Workers and the submitter are killed, stopped and drained: no effect is lost or repeated, and no run stays open."""
        outcome = Campaign(url, tmp_path, self.SEED, self.RUNS, self.MOMENTS, servers, executor).go()
        assert outcome.faults == []
        assert outcome.kills > 0
        assert outcome.stops > 0
