"""One world: processes over one store, all events, and whether the results are right."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote
from weakref import WeakValueDictionary

import pocket_plug as pp
from pocket_plug.codec import default_codec
from pocket_plug.graph.durable import heartbeat, processes, records
from pocket_plug.graph.observing.views import Observer
from pocket_plug.graph.running.context import run_ids
from pocket_plug.store.backend import Change, Put
from pocket_plug.store.contention import Backoff
from pocket_plug.store.keys import RESERVED

from .graphs import EFFECT, FOCUS, GRAPHS, TOTAL, Boom, stage
from .loop import Process, Scheduler, Thread, this_thread
from .store import Client, Server

STATE = f"{RESERVED}run-state:"
AIMS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "claims": (("slow",), ()),
    "claims in nested graphs": (("slow",), ("nested", "deep", "ways")),
    "claims and heartbeats": (("slow",), ("single", "chain", "shared")),
    "claims, deadly": (("killed after",), ("single", "chain", "shared")),
    "suspensions": (("slow", "timed out"), ("one asks", "items ask", "asks", "late")),
    "answers": (("slow",), ("items ask", "one asks", "late")),
}
"""Chance alone seldom meets a narrow window. So in some worlds most writes of one kind have one of few fates. With them, the
graphs."""
EPOCH = 1_700_000_000.0


@dataclass(eq=False)
class Attempt:
    """A call that may execute a run."""

    number: int
    run: Story
    machine: Machine
    takes_over: bool = False
    began: float = 0.0
    is_operator: bool = False
    """Does it change the run, but not execute it?"""
    is_worker: bool = False
    is_streamed: bool = False
    """Are its events read?"""
    owner: str = ""
    """The execution's id, once its claim has landed."""
    ended: float | None = None
    claimed_at: float | None = None
    overtaken_at: float | None = None
    faults: int = 0
    conflicts: int = 0
    execs: Counter[str] = field(default_factory=Counter)
    raised: Counter[str] = field(default_factory=Counter)
    landed: set[str] = field(default_factory=set)
    """Whose effects it has written."""

    @property
    def is_at_work(self) -> bool:
        """Have neither it nor its process ended?"""
        if self.machine.process.is_dead or self.ended is not None:
            return False
        return not self.is_worker or self.owner in self.machine.identity.held  # it doesn't get a report of each claim


@dataclass(eq=False)
class Story:
    """A run, and what is known about it from outside."""

    id: str
    kind: str
    input: int
    answers: dict[str, int | None] = field(default_factory=dict)
    """What was answered, by question; None where the time was over before."""
    effects: dict[str, float] = field(default_factory=dict)
    """Where an effect has landed, and when."""
    path: list[str] = field(default_factory=list)
    """The nodes that it has passed, by the records of its path."""
    owner: Attempt | None = None
    states: list[tuple[float, str]] = field(default_factory=lambda: [(0.0, "")])
    """When it has come into which state; "" before it was begun."""
    lease: float = 30.0
    moved_at: float = 0.0
    """When there was the last sign of whoever is at it."""
    asked: set[str] = field(default_factory=set)
    """The questions that are open."""
    fruitless: int = 0
    """How many have claimed it since it has last moved."""
    is_cancelled: bool = False
    """Has word landed that it is to end?"""
    is_begun: bool = False
    in_flight: int = 0
    """How many attempts have not ended, those that were killed among them."""
    is_removed: bool = False
    """Has somebody begun to remove it?"""
    wakes: bool = False
    """Does it go on by itself, if it waits?"""
    results: list[Any] = field(default_factory=list)
    """What callers were told that it has come to."""

    @property
    def status(self) -> str:
        """Its current state, or its last state before it was removed."""
        return next((name for _, name in reversed(self.states) if name), "")

    @property
    def is_over(self) -> bool:
        """Will nobody continue it any more?"""
        return self.status in ("finished", "cancelled") or self.is_late

    @property
    def is_late(self) -> bool:
        """Has it failed because its time was over?"""
        return self.status == "failed" and GRAPHS[self.kind].timeout is not None

    def was(self, state: str, since: float) -> bool:
        """Was it in this state at any time since then?"""
        earlier = [name for time, name in self.states if time <= since][-1:]
        seen = [*earlier, *(name for time, name in self.states if time > since)]
        return ("running" if state == "stalled" else state) in seen


ATTEMPT: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


class Held(WeakValueDictionary[str, processes.Held]):
    """The executions of a process; kept, so that no world depends on when the garbage collector comes."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, processes.Held] = {}

    def __setitem__(self, owner: str, execution: processes.Held) -> None:
        self._kept[owner] = execution
        super().__setitem__(owner, execution)

    def pop(self, owner: str, *default: Any) -> Any:
        self._kept.pop(owner, None)
        return super().pop(owner, *default)


class Machine:
    """One process on some computer: its event loop, its clock, its connection. Graphs run in it (it is a RunHost)."""

    def __init__(self, world: World, name: str, host: str, skew: float) -> None:
        self.world, self.name, self.host, self.skew = world, name, host, skew
        self.process = Process(name, world.scheduler, world.fails, self._enter)
        self.store = pp.Store(Client(self), clock=self.clock)
        self.store.stack.backoff = Backoff(uniform=world.random.uniform)
        self.heart = heartbeat.Heart()
        self.sleeping: list[Callable[[], None]] = []
        self.faulty_until = -1.0
        self.died_at = math.inf
        self.disturbed_at = -1.0
        """When anything was last in the way of its showing that it is alive."""
        numbers = world.numbers.setdefault(host, {})
        pid = next(pid for pid in itertools.count(1) if pid not in numbers)
        numbers[pid] = f"{world.scheduler.now:.4f}"
        self.pid = pid
        self.identity = processes.Process.__new__(processes.Process)  # not the real process
        self.identity.id, self.identity.held = run_ids.next(), Held()
        self.identity.record = {
            "id": self.identity.id,
            "host": "container",
            "pid": pid,
            "machine": host,
            "began": numbers[pid],
        }

    def _enter(self) -> None:
        processes._here, self.world.here = self.identity, self

    def thread(self, function: Callable[[], object], context: Context) -> Thread:
        """Let a thread do this."""
        thread = Thread(self.process, function, context)
        self.world.threads.append(thread)
        return thread

    def clock(self) -> float:
        """Epoch seconds, by this computer's clock."""
        return self.world.clock() + self.skew

    def observers(self, run: Any) -> list[Observer]:
        """In some worlds there is an observer, which does nothing."""
        return [Observer(node=lambda call: None, event=lambda *event: None)] if self.world.is_watched else []

    def notify(self, notice: object) -> None:
        """No plugin is notified."""

    def default_store(self) -> pp.Store:
        """The common store."""
        return self.store

    def kill(self, why: str) -> None:
        """It dies at this point."""
        if not self.process.is_dead:
            self.world.note(self.name, f"killed {why}")
            self.process.kill()
            self.died_at = self.world.scheduler.now
            del self.world.numbers[self.host][self.pid]
            self.world.died(self)

    def spawn(self, coroutine: Any) -> asyncio.Future[Any]:
        """Do this as well."""
        task: asyncio.Future[Any] = self.process.create_task(coroutine)
        return task


class World:
    """Everything of a seed. `play` plays it to its end, and `violations` has what was wrong."""

    def __init__(self, seed: int, *, is_calm: bool = False) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.scheduler = Scheduler()
        self.server = Server(self)
        self.history: list[str] = []
        self.violations: list[str] = []
        self.machines: list[Machine] = []
        self.threads: list[Thread] = []
        self.runs: dict[str, Story] = {}
        self.numbers: dict[str, dict[int, str]] = {}
        """Of each computer the processes that it has, by their numbers, and when they began. Numbers are used again."""
        self.attempts = 0
        self.executions: dict[str, Attempt] = {}
        """By the ids that the package has given them."""
        self.on_the_way = 0
        """How many writes have been sent and have not landed yet, some of them by processes that are dead by now."""
        self.hooked: set[str] = set()
        """The places whose hooks were called at least once."""
        self.total = 0
        self.is_faulty = not is_calm
        chance = self.random
        self.fault_rate = 0.0 if is_calm else chance.choice((0.0, 0.01, 0.03, 0.1))
        self.kill_share = chance.choice((0.0, 0.3, 1.0))
        self.slowness = chance.choice((0.1, 2.0, 40.0))
        self.takeovers = 0.0 if is_calm else chance.choice((0.0, 0.1, 0.5))
        self.operations = 0.0 if is_calm else chance.choice((0.0, 0.1, 0.4))
        self.impatience = 0.0 if is_calm else chance.choice((0.0, 0.0, 0.3))
        """How often a program cancels its own execution."""
        self.boom_rate = 0.0 if is_calm else chance.choice((0.0, 0.0, 0.1, 0.3))
        self.has_workers = not is_calm and chance.random() < 0.4
        self.focus = chance.choice(FOCUS)
        self.distance = 1 if is_calm else chance.choice((1, 1, 30))
        self.lease = chance.choice((3.0, 30.0))
        """That of executions by workers."""
        self.is_watched = chance.random() < 0.3
        self.durations = (0.0,) if is_calm else chance.choice(((0.0,), (0.0, 0.01, 0.1), (0.01, 1.0, 20.0)))
        self.strikes = 0.0 if is_calm else chance.choice((0.0, 0.03, 0.3))
        """How many times a second something happens to a process."""
        self.on_death: Callable[[Machine], object] = lambda machine: None
        self.skew = 0.0 if is_calm else chance.choice((0.0, 0.5, 7_200.0, 86_400.0))
        self.needs_loop = True
        """Does the store belong to an event loop, as those of a network do? Then heartbeats go out by that."""
        self.blocks = self.streams = self.follows = self.in_threads = 0.0
        self.aim = "" if is_calm else random.Random(f"{seed} aim").choice(("",) * 2 * len(AIMS) + (*AIMS,))
        if self.aim:
            self._take_aim()
        elif not is_calm:
            self._take_ways(random.Random(f"{seed} ways"))

    def _take_ways(self, chance: random.Random) -> None:
        """How often runs are executed in other ways than by `run`; with a random generator of its own, so that other worlds don't
        change.
        """
        self.blocks = chance.choice((0.0, 0.0, 0.3))
        """How often an exec blocks its event loop."""
        self.streams = chance.choice((0.0, 0.0, 0.5))
        """How often a run's events are read as it goes."""
        self.follows = chance.choice((0.0, 0.0, 0.2))
        """How often one is followed by what is recorded of it."""
        self.needs_loop = chance.random() < 0.4
        self.in_threads = 0.0 if self.needs_loop else chance.choice((0.0, 0.3, 1.0))
        """How often somebody goes on with a run in a thread, by `run_sync`."""
        if chance.random() < 0.1:  # the only failure: workers' loops are blocked for longer than a lease
            self.has_workers, self.blocks, self.needs_loop, self.lease = True, 0.5, False, 3.0
            self.strikes = self.fault_rate = self.skew = 0.0

    def _take_aim(self) -> None:
        self.focus = AIMS[self.aim][1] or self.focus
        self.slowness = self.random.choice((0.1, 2.0, 10.0))
        self.operations = 0.4
        if self.aim.startswith("claims"):
            self.has_workers = True
        if self.aim == "claims and heartbeats":  # these are only written for a node that takes some time
            self.durations, self.slowness, self.lease = (10.0, 20.0), 10.0, 3.0

    def clock(self) -> float:
        """The true epoch seconds."""
        return EPOCH + self.scheduler.now

    # ------------------------------------------------------------ history and violations
    def note(self, who: str, what: str) -> None:
        """A line of the history."""
        self.history.append(f"{self.scheduler.now:12.4f} {who:5} {what}")

    def violate(self, what: str) -> None:
        """A guarantee was broken."""
        self.violations.append(what)
        self.note("", f"VIOLATION {what}")

    def fails(self, what: str) -> None:
        """asyncio would have logged it."""
        self.violate(f"asyncio reports: {what}")

    def short(self, key: str) -> str:
        """A key as the history shows it."""
        return key.removeprefix("pocket:")

    # ------------------------------------------------------------ replacements of system calls, for the current process
    here: Machine
    """The process that takes a step right now."""

    def began(self, pid: int) -> str:
        """The start time of the process with that pid, on its computer; "" if there is none."""
        return self.numbers[self.here.host].get(pid, "")

    def beating(self, lease: float) -> None:
        """Send heartbeats for its executions: each process has its own."""
        self.here.heart.keep_beating(lease)

    def close(self) -> None:
        """End everything of it."""
        for thread in self.threads:
            thread.throw_away()

    # ------------------------------------------------------------ chance
    def latency(self) -> float:
        """The duration of a message."""
        return self.distance * self.random.choice((0.0005, 0.001, 0.002, 0.01))

    def fate(self, machine: Machine, fates: Sequence[str]) -> str:
        """The fate of a request."""
        if not self.is_faulty or machine.name == "end":
            return ""
        chance = self.random
        if self.scheduler.now < machine.faulty_until:
            return "refused" if chance.random() < 0.8 else "lost"
        if chance.random() >= self.fate_rate(machine):
            return ""
        fate = chance.choice(fates)
        if fate.startswith("killed"):
            return fate if chance.random() < self.kill_share and machine.name != "ops" else ""
        machine.disturbed_at = self.scheduler.now + (self.slowness if fate == "slow" else 0)
        if chance.random() < 0.2:
            machine.faulty_until = self.scheduler.now + chance.choice((0.02, 0.7, 5.0))
        return fate

    def is_aimed_at(self, machine: Machine, changes: Sequence[Change]) -> bool:
        """Is it a write of the kind at which this world aims?"""
        if not self.aim or not self.is_faulty or machine.name == "end" or self.random.random() < 0.3:
            return False
        keys = [change.key for change in changes if isinstance(change, Put)]
        moves = any(key.startswith(records.RUN) for key in keys)
        if self.aim == "claims and heartbeats" and any(key.startswith(heartbeat.BEAT) for key in keys):
            return True
        if self.aim == "answers":
            return not moves and any(":wait:" in key for key in keys)
        state = "suspended" if self.aim == "suspensions" else "running"
        return moves and any(key.startswith(f"{STATE}{state}:") for key in keys)

    def aimed_fate(self, machine: Machine) -> str:
        """The fate of such a write."""
        fates = AIMS[self.aim][0]
        fate = self.random.choice(fates) if len(fates) > 1 else fates[0]
        if fate == "slow":
            machine.disturbed_at = self.scheduler.now + self.slowness
        return "" if fate.startswith("killed") and machine.name == "ops" else fate

    def fate_rate(self, machine: Machine) -> float:
        """How often a request fails."""
        return self.fault_rate

    async def work(self, place: str, *, may_fail: bool = True) -> None:
        """The exec of a node."""
        attempt = self.attempt()
        assert attempt is not None
        run, chance = attempt.run, self.random
        attempt.execs[place] += 1
        self.note(attempt.machine.name, f"exec {place} by {attempt.number}")
        if attempt.claimed_at is None:
            self.violate(f"exec of {place} by attempt {attempt.number}, which has not claimed the run")
        elif place in run.effects and run.effects[place] <= attempt.claimed_at:
            self.violate(f"exec of {place} again by attempt {attempt.number}, though it had landed before the claim")
        if attempt.execs[place] > 1 + attempt.raised[place] + attempt.conflicts:
            self.violate(f"exec of {place} {attempt.execs[place]} times by attempt {attempt.number}")
        if attempt.is_streamed:
            await pp.emit(place)
        if (thread := this_thread()) is not None:
            thread.sleep(chance.choice(self.durations))
        elif self.blocks and chance.random() < self.blocks:
            await self._block(attempt)
        else:
            await asyncio.sleep(chance.choice(self.durations))
        if may_fail and self.is_faulty and chance.random() < self.boom_rate:
            attempt.raised[place] += 1
            raise Boom(place)

    async def _block(self, attempt: Attempt) -> None:
        """A call in exec that blocks its loop, perhaps for longer than a lease. Some keep the GIL."""
        machine, seconds = attempt.machine, self.random.choice((0.5, 1.1, 3.0)) * attempt.run.lease
        keeps_gil = self.random.random() < 0.5
        if keeps_gil or self.needs_loop:  # then no heartbeat is sent either
            machine.disturbed_at = self.scheduler.now + seconds
        self.note(machine.name, f"blocks for {seconds:.1f} s{', its threads too' if keeps_gil else ''}")
        await machine.process.block(seconds, and_threads=keeps_gil)

    # ------------------------------------------------------------ events
    def attempt(self) -> Attempt | None:
        """The attempt around this call."""
        return ATTEMPT.get()

    def landed(self, by: Machine | None, attempt: Attempt | None, version: int, changes: Sequence[Change]) -> None:
        """A write was done: check it."""
        who = by.name if by is not None else ""
        names = ", ".join(("" if isinstance(each, Put) else "-") + self.short(each.key) for each in changes)
        self.note(who, f"landed v{version} by {attempt.number if attempt else '-'}: {names}")
        for change in changes:
            if change.key.startswith(records.RUN) and isinstance(change, Put) and by is not None:
                attempt = self._executing(by, attempt, change)
                if attempt is not None:
                    self._moved(attempt, change.value["status"])
        for change in changes:
            self._changed(change.key, change, attempt)
        for run in self.runs.values():
            if run.status == "suspended" and not run.asked and not run.wakes and not run.is_removed:
                self.violate(f"run {run.id} waits, and nothing is left that it could wait for")
                run.wakes = True  # reported once

    def _executing(self, by: Machine, attempt: Attempt | None, change: Put) -> Attempt | None:
        """The attempt that has written a run's record: in a worker, by the id of the execution."""
        owner = change.value["owner"].partition(".")[0]
        if attempt is not None and attempt.is_worker and attempt.owner != owner:
            attempt = self.executions.get(owner)
            if attempt is None:
                self.attempts += 1
                run = self.runs[change.key.removeprefix(records.RUN)]
                attempt = Attempt(self.attempts, run, by, began=self.scheduler.now, is_worker=True)
        if attempt is not None and owner:
            attempt.owner, self.executions[owner] = owner, attempt
        return attempt

    def shell(self, machine: Machine) -> Attempt:
        """The attempt of a worker, before it is known which run it executes."""
        return Attempt(0, Story("", "single", 0), machine, is_worker=True)

    def _changed(self, key: str, change: Change, attempt: Attempt | None) -> None:
        value = change.value if isinstance(change, Put) else None
        if key.startswith(EFFECT):
            self._effect(key.removeprefix(EFFECT), attempt)
        elif key == TOTAL:
            self.total += 1
        elif key.startswith(STATE) and value is not None:
            self._stands(self.runs[key.rpartition(":")[2]], value)
        elif key.startswith(heartbeat.BEAT) and value is not None:
            for owner in value["owners"]:
                spoken_for = self.executions.get(owner)
                if spoken_for is not None and spoken_for.run.owner is spoken_for:
                    spoken_for.run.moved_at = self.scheduler.now
        elif key.startswith(records.RUN) and value is None:
            self.runs[key.removeprefix(records.RUN)].states.append((self.scheduler.now, ""))
        elif ":path:" in key and value is not None:
            self.runs[key.split(":")[2]].path.append(value["node"].removeprefix("/"))
        elif ":wait:" in key and value is not None and value["kind"] == "question":
            self._settled(key, value)

    def _stands(self, run: Story, state: Mapping[str, Any]) -> None:
        """The current state entry of a run."""
        run.moved_at = self.scheduler.now
        run.wakes = state.get("wake_at") is not None
        run.is_cancelled = run.is_cancelled or state.get("cancelled", False)
        if "owner" in state:
            run.lease = state.get("lease", 30.0)
        if (state.get("failure") or {}).get("type", "").endswith("RunStuckError") and run.fruitless < 5:
            self.violate(f"run {run.id} is given up after {run.fruitless} executions")

    def _effect(self, place: str, attempt: Attempt | None) -> None:
        run = self.runs[place.partition("/")[0]]
        if place in run.effects:
            self.violate(f"the effect of {place} has landed twice")
        if run.is_cancelled:
            self.violate(f"the effect of {place} has landed though the run was cancelled before")
        run.effects[place], run.fruitless = self.scheduler.now, 0
        if attempt is not None:
            attempt.landed.add(place)
        if attempt is None or run.owner is not attempt:
            self.violate(f"the effect of {place} was written by an attempt that does not own the run")

    def _settled(self, key: str, wait: Mapping[str, Any]) -> None:
        """The present answer of a question. Once there is one, it stays."""
        _, _, name, _, place = key.split(":", 4)
        run, place = self.runs[name], unquote(place)
        answer = None if wait["answer"] is None else default_codec.decode(wait["answer"])
        if wait["settled"] is None:
            if place in run.answers and self.is_faulty:
                self.violate(f"the question {name}/{place} is open again")
            run.asked.add(place)
        elif place in run.answers and run.answers[place] != answer:
            self.violate(f"the question {name}/{place} was answered by {run.answers[place]}, and then by {answer}")
        else:
            run.answers[place] = answer
            run.asked.discard(place)

    def answer(self, run: Story, place: str) -> int | None:
        """The answer to a question; None if nobody answers in time."""
        if not place:
            return None
        if not self.is_faulty:
            return run.answers.get(place, None if "late" in place else 0)
        if "late" in place and self.random.random() < 0.5:
            return None
        return self.random.choice((1, 1, 2)) + 10 * len(place)

    def _moved(self, attempt: Attempt, status: str) -> None:
        run, former = attempt.run, attempt.run.owner
        if former is not attempt:
            if attempt.execs:  # before that it may claim again: it doesn't know that it has the run
                self.violate(f"attempt {attempt.number} has written run {run.id} after it was overtaken")
            if former is not None:
                is_silent = self.scheduler.now - run.moved_at >= run.lease
                is_hampered = former.machine.process.is_stopped or (
                    former.machine.disturbed_at >= run.moved_at - run.lease
                )
                is_stalled = attempt.is_worker and is_silent and is_hampered
                if run.status == "running" and not attempt.takes_over and former.is_at_work and not is_stalled:
                    self.violate(
                        f"attempt {attempt.number} has taken run {run.id} from {former.number}, which is at work"
                    )
                former.overtaken_at = self.scheduler.now if run.status == "running" else None
            attempt.claimed_at, attempt.overtaken_at = self.scheduler.now, None
            run.owner, run.is_begun = attempt, True
            run.fruitless += 1
        else:
            run.fruitless = 0
        run.moved_at = self.scheduler.now
        if run.status != status:
            run.states.append((self.scheduler.now, status))
        run.is_cancelled = run.is_cancelled or status == "cancelled"

    def conflicted(self, by: Machine | None, attempt: Attempt | None, conflict: pp.ConflictError) -> None:
        """A write had a conflict."""
        if attempt is not None:
            attempt.conflicts += 1
        self.note(by.name if by else "", f"conflict: {', '.join(sorted(map(self.short, conflict.keys)))}")

    def faulted(self, machine: Machine, attempt: Attempt | None) -> None:
        """A caller was told that a request has failed."""
        machine.disturbed_at = max(machine.disturbed_at, self.scheduler.now)
        if attempt is not None:
            attempt.faults += 1

    def died(self, machine: Machine) -> None:
        """A process was killed."""
        if self.is_faulty:
            self.on_death(machine)

    def wanted(self, run: Story) -> Reference:
        """The result of such a run without failures."""
        return reference(run.kind, run.input, run.answers)

    # ------------------------------------------------------------ checks at the end
    def removed(self, run: Story) -> None:
        """Nothing of it may be left."""
        for key in self.server.keys("pocket:"):
            if run.id in key.split(":"):
                self.violate(f"run {run.id} was removed, and {key} is there")

    def judge(self) -> None:
        """What must be true of every run that has ended."""
        seen: set[str] = set()
        for run in self.runs.values():
            wanted = self.wanted(run)
            if run.results and any(result != wanted.result for result in run.results):
                self.violate(f"run {run.id} has come to {run.results}, not to {wanted.result}")
            places = {place.partition("/")[2] for place in run.effects}
            if run.is_cancelled:
                if run.status != "cancelled" or run.results:
                    self.violate(f"run {run.id} was cancelled, and is {run.status}; {run.results} were told")
            elif run.status != "finished" and not run.is_late:
                self.violate(f"run {run.id} is {run.status} at the end")
            for place in sorted(wanted.places - places) if not (run.is_cancelled or run.is_late) else ():
                self.violate(f"run {run.id} is finished without the effect of {place}")
            for place in sorted(places - wanted.places):
                self.violate(f"run {run.id} has an effect of {place}, where it never comes")
            for place in run.effects:
                seen.add(EFFECT + place)
                if self.server.value(EFFECT + place) != 1:
                    self.violate(f"the effect of {place} is {self.server.value(EFFECT + place)}")
            for place in sorted(wanted.hooks):
                if not (run.is_cancelled or run.is_late) and f"{run.id}/{place}" not in self.hooked:
                    self.violate(f"the hook of {run.id}/{place} was never called")
        for key in self.server.keys(EFFECT):
            if key not in seen:
                self.violate(f"there is {key}, which never landed")
        if (self.server.value(TOTAL) or 0) != self.total:
            self.violate(f"the total is {self.server.value(TOTAL)}, and {self.total} were counted")
        for key in self.server.keys("pocket:"):
            if ":item:" in key and not self.runs[key.split(":")[2]].is_cancelled:
                self.violate(f"{key} was left behind")


@dataclass(frozen=True)
class Reference:
    """The result of a run without failures."""

    result: Any
    places: frozenset[str]
    hooks: frozenset[str]


_references: dict[tuple[Any, ...], Reference] = {}


def reference(kind: str, input: int, answers: Mapping[str, int | None]) -> Reference:
    """The result of such a run without failures."""
    known = (kind, input, *sorted(answers.items()))
    found = _references.get(known)
    if found is None:
        from .operators import undisturbed

        outer = stage.world
        with ThreadPoolExecutor(1) as thread:  # this one may be in the middle of a task, and can't begin another
            found = _references[known] = thread.submit(undisturbed, kind, input, answers).result()
        stage.world = outer
    return found
