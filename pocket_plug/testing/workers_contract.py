"""What workers promise over a store that several processes share: whoever writes such a backend inherits `WorkersContract`.

Three workers whose clocks are hours apart and a submitting process go on with runs of all kinds of nodes, while processes are
killed and stopped at random moments: these, the store's server, and the processes of an executor, where effects run in one. Then
every effect is there exactly once, nothing is left open, and `exec` was done again only for what was at work in a process that
was killed or stopped, or that the machine didn't let run.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
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
from pocket_plug.graph.durable import idempotency_key
from pocket_plug.graph.durable.records import RUN, field_of
from pocket_plug.graph.durable.worker import Worker
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.ask import Answered, Ask
from pocket_plug.graph.kinds.each import each
from pocket_plug.graph.kinds.sleep import Sleep
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.graph.nodes.retry import Retry
from pocket_plug.graph.runs import SyncRuns
from pocket_plug.plugins.config import Config
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.primitives.failures import error_type
from pocket_plug.store.backend import Backend
from pocket_plug.store.store import Store, StoreReader, StoreWriter
from pocket_plug.store.sync import SyncStore

LEASE = 0.6
"""Seconds. A process is stopped for up to twice that."""
CLOCKS = (0.0, 7 * 3600.0, -5 * 3600.0)
"""What the workers' clocks are ahead of the true time."""
PACE = 0.7
"""Seconds from one moment to the next, about: a process has to start in between."""
AT_ONCE, STEPS, AHEAD = 4, 7, 10
"""Runs that a worker is at; nodes one after the other in a run; runs that are submitted before they can be taken."""
LATE, WAS_LATE = LEASE / 4, "was late"
"""Seconds by which a process is late that didn't run as it wanted to, and what it then says."""

NOTICED = 1.0
"""Seconds in which a worker has noticed that a server was stopped."""
HANGS = 120.0
"""Seconds after the last disturbance in which all runs must have ended."""


# ---------------------------------------------------------------- the runs
_said, _longest = "", 0.0
"""The file in which is said what is executed, and how many seconds an `exec` takes at most: what a worker's process was told."""


class Effect(Node[int, int], name="effect"):
    """Says that it is at work, and leaves its key in the store, with a sum that all add to."""

    async def prep(self, store: StoreReader, input: int) -> tuple[str, int, float, int]:
        return _said, os.getpid(), random.uniform(0, _longest), input  # noqa: S311 - no secret

    async def exec(self, prepared: tuple[str, int, float, int]) -> int:
        said, asked_by, takes, result = prepared  # all that it needs: it may run in a process that was told nothing
        _say(said, f"{asked_by} {time.monotonic()} {idempotency_key()}\n")
        await asyncio.sleep(takes)
        return result

    async def post(self, store: StoreWriter, input: int, prepared: object, result: int) -> int:
        await store.update(f"effect:{idempotency_key()}", lambda times: times + 1, default=0)
        await store.update(f"sum:{input % 7}", lambda total: total + input, default=0)
        return result


def _say(said: str, line: str) -> None:
    with Path(said).open("a") as file:
        file.write(line)


def _say_when_late(said: str) -> None:
    """Say when this process was kept from running for so long that it may have lost a lease, as on a busy machine."""

    def notice() -> None:
        while True:
            before = time.monotonic()
            time.sleep(LATE / 3)
            if (now := time.monotonic()) > before + LATE:
                _say(said, f"{os.getpid()} {now} {WAS_LATE}\n")

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
    """The graph of the runs. With an executor that is where the effects' `exec` is done, again where that has lost it."""
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
    """That of a run."""
    return number


def keys_of_run(number: int) -> list[str]:
    """The idempotency keys of all effects of a run."""
    items = [f"/each_way#1[{item}]/{name}#1" for item in range(number % 5 + 1) for name in ("item", "after")]
    nodes = ["/first#1", *items, "/inner#1/inside#1", "/inner#1/beyond#1", "/last#1"]
    return [f"r{number}{each}" for each in nodes]


# ---------------------------------------------------------------- the processes
def serve(url: str, said: str, ahead: str, longest: str, executor: str) -> None:
    """A worker's process; `executor` is the URL of one, or empty."""
    global _said, _longest
    _said, _longest = said, float(longest)

    _say_when_late(said)

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
    """The submitting process: it submits all again where it was killed, and only some ahead of the workers."""
    with SyncStore(url) as store:
        for number in range(int(runs)):
            _graph(executor).submit_sync(input_of(number), run_id=f"r{number}", store=store)
            while len(SyncRuns(store).list(state="pending", limit=AHEAD).runs) == AHEAD:
                time.sleep(0.05)


def answer_all(url: str) -> int:
    """Answer the questions that are open, and let those be tried again that were given up: how many runs have not ended?

    A run is given up whose executions were killed five times before it moved, which as many kills as these may come to.
    """
    with SyncStore(url) as store:
        runs = SyncRuns(store)
        for waiting in runs.list(state="waiting", limit=1000).runs:
            for question in runs.questions(waiting.run_id):
                with contextlib.suppress(RunMismatchError):
                    runs.answer(waiting.run_id, True, question=question.id)
        for failed in runs.list(state="failed", limit=1000).runs:
            if failed.failure is not None and failed.failure.type == error_type(RunStuckError()):
                with contextlib.suppress(RunStateError):
                    runs.retry(failed.run_id)
        # of one moment: a list of several states looks at one after the other, and a run may pass by from one to the next
        records = store.stack.run(store.stack.read_page(RUN, limit=1000))
        return sum(field_of(entry, "status") in ("pending", "running", "waiting") for _, entry in records if entry)


@dataclass
class _Child:
    """A process that is disturbed, and when its incarnations were."""

    arguments: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    begun: int = 0

    def start(self) -> None:
        code = "import sys; from pocket_plug.testing import workers_contract as it; getattr(it, sys.argv[1])(*sys.argv[2:])"
        self.process = subprocess.Popen([sys.executable, "-c", code, *self.arguments])  # noqa: S603 - ours
        self.begun += 1


@dataclass
class Outcome:
    """What a campaign has come to."""

    kills: int = 0
    stops: int = 0
    drains: int = 0
    crashes: int = 0
    """Of servers."""
    stalls: int = 0
    """Times that a server was stopped for a while."""
    effects: int = 0
    redone: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list[str])


class Disturbed(Protocol):
    """A server, of the store or of an executor, that is killed and stopped as well. Those of `testing.servers` are such."""

    def kill(self) -> None:
        """Kill it, as a crash would."""
        ...

    def restart(self) -> None:
        """Start it again over the same data, and wait until it answers."""
        ...

    def stop(self) -> None:
        """Stop all of its processes where they are."""
        ...

    def go_on(self) -> None:
        """Let them go on."""
        ...


class Campaign:
    """So many runs, and so many moments at which a process is killed or stopped, all drawn from a seed.

    Given servers, the store's or those of an executor, every third moment is one of theirs, by turns. `executor` is the URL of
    one that the effects run in.
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
        self._said = folder / "said"
        self._said.touch()
        # so that there is work until the last moment
        longest = min(1.0, 2 * PACE * moments / (runs * STEPS / (AT_ONCE * len(CLOCKS))))
        told = str(longest), executor
        self._workers = [_Child(("serve", url, str(self._said), str(ahead), *told)) for ahead in CLOCKS]
        self._submitter = _Child(("submit", url, str(runs), executor))
        self._disturbed: dict[int, list[float]] = defaultdict(list)
        """The moments at which a process was killed or stopped, by its pid."""
        self.outcome = Outcome()

    def go(self) -> Outcome:
        """Do it, and look what it has come to."""
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
        """Until a worker has executed something, if there is anything: one that only starts is not worth disturbing."""
        until = time.monotonic() + 2
        while child is not self._submitter and child.process is not None and time.monotonic() < until:
            if f"{child.process.pid} ".encode() in self._said.read_bytes():
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
            self._disturbed[process.pid].append(math.inf)  # an executor may yet begin what it had asked for
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
        for worker in self._workers:  # it could not show that it was alive, or what it waited for was lost
            if worker.process is not None:
                self._disturbed[worker.process.pid].append(time.monotonic() + NOTICED)

    def _answer(self) -> int:
        while True:
            with contextlib.suppress(StoreBusyError):  # somebody was stopped while it had the file locked
                return answer_all(self.url)

    def _finish(self) -> None:
        """Nobody is disturbed any more: wait until all has ended."""
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

    # ------------------------------------------------------------ what it has come to
    def _check(self) -> None:
        with SyncStore(self.url) as store:
            found = {name: store.require(name) for name in store.keys("effect:")}
            total = sum(store.require(name) for name in store.keys("sum:"))
            records = store.stack.run(_records(store.stack))
            failed = SyncRuns(store).list(state="failed", limit=1000).runs
        expected = {f"effect:{key}" for number in range(self.runs) for key in keys_of_run(number)}
        faults, self.outcome.effects = self.outcome.faults, len(found)
        faults += [f"{name} is missing" for name in sorted(expected - found.keys())]
        faults += [f"{name} is too much" for name in sorted(found.keys() - expected)]
        faults += [f"{name} is there {times} times" for name, times in found.items() if times != 1]
        wanted = sum(_sum_of(number) for number in range(self.runs))
        faults += [f"the sum is {total}, not {wanted}"] if total != wanted else []
        faults += [f"run {each.run_id} has failed: {each.failure}" for each in failed]
        faults += [f"{count} records of {kind} are left" for kind, count in records.items() if count]
        self._check_executions()

    def _check_executions(self) -> None:
        """`exec` is done again only where it was at work in a process that was then killed or stopped, or that stood still."""
        executed: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for line in self._said.read_text().splitlines():
            pid, at, key = line.split(" ", 2)
            if key == WAS_LATE:
                self._disturbed[int(pid)].append(float(at))
            else:
                executed[key].append((float(at), int(pid)))
        for key, times in executed.items():
            times.sort()
            self.outcome.redone += len(times) - 1
            for begun, process in times[:-1]:
                if not any(moment >= begun for moment in self._disturbed[process]):
                    self.outcome.faults.append(
                        f"exec of {key} was done again, and process {process} was not disturbed since"
                    )


def _sum_of(number: int) -> int:
    items = list(range(number % 5 + 1))
    return number + 2 * sum(items) + 3 * sum(items)


async def _records(stack: Backend) -> Counter[str]:
    """How many records there are that an ended run doesn't have."""
    left: Counter[str] = Counter()
    for state in ("pending", "running", "waiting", "failed", "cancelled"):
        left[state] = len([key async for key in stack.scan(f"pocket:run-state:{state}:")])
    left["wake"] = len([key async for key in stack.scan("pocket:run-wake:")])
    left["items"] = len([key async for key in stack.scan("pocket:run-part:") if ":item:" in key])
    return left


class WorkersContract:
    """Inherit it, and give the URL of a store that processes can share:

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
        """That of an empty store."""
        raise NotImplementedError

    @pytest.fixture
    def server(self) -> Disturbed | None:
        """What serves the store, where that may be killed and stopped too."""
        return None

    @pytest.fixture
    def servers(self, server: Disturbed | None) -> Sequence[Disturbed]:
        """That, and whatever else is to be killed and stopped."""
        return () if server is None else (server,)

    @pytest.fixture
    def executor(self) -> str:
        """The URL of an executor that effects run in; empty for none."""
        return ""

    def test_every_effect_is_there_once_whatever_is_killed(
        self, url: str, servers: Sequence[Disturbed], executor: str, tmp_path: Path
    ) -> None:
        """Workers are killed, stopped and drained, and so is who submits: nothing is lost, done twice or left open."""
        outcome = Campaign(url, tmp_path, self.SEED, self.RUNS, self.MOMENTS, servers, executor).go()
        assert outcome.faults == []
        assert outcome.kills > 0
        assert outcome.stops > 0
