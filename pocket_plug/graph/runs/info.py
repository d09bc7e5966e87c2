"""What operators are told of a run, and how that is read from what is stored of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import unquote

from pocket_plug.codec import default_codec
from pocket_plug.errors import CodecError, PocketError
from pocket_plug.graph.durable.changes import written
from pocket_plug.graph.durable.moving import Seen, seen_of
from pocket_plug.graph.durable.reading import Found, read_each
from pocket_plug.graph.durable.records import RUN, look_at
from pocket_plug.graph.durable.states import RunFailure, trace_id
from pocket_plug.graph.durable.states import RunState as RunState
from pocket_plug.graph.durable.waits import WAIT, read_wait, waits_in
from pocket_plug.graph.durable.waits import Found as Waiting
from pocket_plug.primitives.values import Value
from pocket_plug.store.backend import Entry
from pocket_plug.store.stack import Stack

OPEN: tuple[RunState, ...] = ("pending", "running", "stalled", "waiting", "failed")
"""The states of runs that may go on."""
ENDED: tuple[RunState, ...] = ("cancelled", "finished")


@dataclass(frozen=True, slots=True)
class RunValue:
    """A value as a run has kept it. It is decoded when it is asked for, which may need the program's types."""

    record: bytes = field(repr=False)
    """As the codec has written it."""

    def load(self) -> Value:
        """The value. Raises CodecError, UnknownTypeError for one of a type that is not registered here."""
        return default_codec.decode(self.record)


@dataclass(frozen=True, slots=True)
class RunOwner:
    """The process that executes a run, or that did when it was last seen."""

    host: str
    pid: int
    since: float
    """When it began, in epoch seconds."""
    lease: float
    """Seconds after which it may be taken for dead, unless it moves its run or its process speaks for it."""


@dataclass(frozen=True, slots=True)
class RunQuestion:
    """A question that a run has asked."""

    run_id: str
    id: str
    """The place that asks: `approve#1`, or `review#1[3]/ask#1` in an item of a fan-out."""
    question: RunValue
    asks_for: str
    """The type of an answer, in words."""
    choices: tuple[Value, ...] | None
    """What may be answered, as plain values, where that is a few of them."""
    since: float
    """When it was asked, in epoch seconds."""
    until: float | None
    """When the run goes on without an answer."""
    answer: RunValue | None = None
    settled: float | None = None
    """When it was answered, or its time was over."""

    @property
    def is_open(self) -> bool:
        """Does the run wait for an answer?"""
        return self.settled is None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A durable run at one moment. What is not known of an unreadable one is None."""

    run_id: str
    state: RunState
    graph: str | None = None
    node: str | None = None
    """The node that comes next: `outer/inner` in a nested graph. None once there is none."""
    steps: int | None = None
    """Nodes that it has entered."""
    executions: int | None = None
    """How often somebody has begun, or gone on with it."""
    started: float | None = None
    """When it began, or was submitted, in epoch seconds."""
    updated: float | None = None
    """When its record was last written."""
    since: float | None = None
    """When it came into the state."""
    owner: RunOwner | None = None
    is_ending: bool = False
    """Was it cancelled, and the execution that is at it has not ended yet?"""
    failure: RunFailure | None = None
    """What it has failed with; of a `pending` one what it had failed with before."""
    wake_at: float | None = None
    """When it goes on by itself, if it waits for a time."""
    questions: tuple[RunQuestion, ...] = ()
    """Those that are open, if it is `waiting`."""
    trace_id: str | None = None
    """That of its last execution."""
    expires_at: float | None = None
    """When its record expires, which only those of older versions do."""
    error: str | None = None
    """Why it is `unreadable`."""
    result: RunValue | None = field(default=None, repr=False)
    """What it has left with, if it is `finished`."""

    def _repr_html_(self) -> str:
        """In a notebook: how it stands, without its values."""
        from pocket_plug.primitives.markup import table

        owner = self.owner
        known = {
            "state": _state(self),
            "why": _why(self),
            "graph": self.graph or "",
            "node": self.node or "",
            "steps": _number(self.steps),
            "executions": _number(self.executions),
            "begun (UTC)": _time(self.started),
            "updated": _time(self.updated),
            "at it": "" if owner is None else f"process {owner.pid} on {owner.host}, since {_time(owner.since)}",
            "trace": self.trace_id or "",
        }
        return table(f"run {self.run_id}", (), [(what, said) for what, said in known.items() if said])


@dataclass(frozen=True, slots=True)
class RunPage:
    """A page of runs, the newest first."""

    runs: tuple[RunInfo, ...]
    after: str | None
    """What `list(after=)` takes for the next page; None where this is the last one."""

    def _repr_html_(self) -> str:
        """In a notebook: a row for each."""
        return runs_table(self)


@dataclass(frozen=True, slots=True)
class PassedNode:
    """A node that a run has passed. What can't be read is None."""

    node: str | None
    """Which visit of which node: `/outer#1/inner#2`."""
    next: str | None
    """The node that comes next in its graph."""
    at: float | None


@dataclass(frozen=True, slots=True)
class RunExecution:
    """One execution of a run: its start, or a resume."""

    number: int
    began: float | None
    host: str | None
    pid: int | None
    trace_id: str | None
    left: RunState | None
    """The state in which it left the run, or in which that is."""
    failure: RunFailure | None


@dataclass(frozen=True, slots=True)
class RunHistory:
    """All that is recorded of a run."""

    run: RunInfo
    executions: tuple[RunExecution, ...]
    path: tuple[PassedNode, ...]
    """The nodes that it has passed, in order."""
    visits: Mapping[str, int]
    """How often it has passed each node of the graphs that it is in."""
    input: RunValue | None
    value: RunValue | None
    """What the next node takes, or what the last one has left with."""
    questions: tuple[RunQuestion, ...]
    """All that it has asked, with their answers."""

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """The traces of its executions, in order."""
        return tuple(dict.fromkeys(each.trace_id for each in self.executions if each.trace_id is not None))

    @property
    def failures(self) -> tuple[RunFailure, ...]:
        """What its executions have failed with, in order."""
        return tuple(each.failure for each in self.executions if each.failure is not None)


# ---------------------------------------------------------------- as a notebook shows them
def runs_table(page: RunPage) -> str:
    """HTML for a notebook: a row for each run."""
    from pocket_plug.primitives.markup import table

    columns = ("run", "state", "graph", "node", "steps", "begun (UTC)", "why")
    rows = [
        (
            run.run_id,
            _state(run),
            run.graph or "",
            run.node or "",
            _number(run.steps),
            _time(run.started),
            _why(run),
        )
        for run in page.runs
    ]
    return table("runs" if page.after is None else "runs, those that were begun last", columns, rows)


def _state(run: RunInfo) -> str:
    return "ending" if run.is_ending else run.state


def _why(run: RunInfo) -> str:
    """What keeps it from going on. Not what an exception or a question says: values may be in that."""
    if run.error is not None:
        return run.error
    if run.failure is not None:
        return f"{run.failure.type} at {run.failure.node}" if run.failure.node else run.failure.type
    if run.questions:
        return f"asks at {', '.join(question.id for question in run.questions)}"
    return "" if run.wake_at is None else f"until {_time(run.wake_at)}"


def _number(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _time(moment: float | None) -> str:
    return "" if moment is None else datetime.fromtimestamp(moment, UTC).isoformat(" ", "seconds")[:19]


# ---------------------------------------------------------------- of what is stored
def kept(record: object) -> RunValue | None:
    """A value that a run has kept; None where it has none."""
    return RunValue(record) if isinstance(record, bytes) and record else None


def info_of(seen: Seen, waits: Iterable[Waiting] = ()) -> RunInfo:
    """What there is to say of a run, and of what it waits for."""
    record, state, process = seen.record, seen.state, seen.state.process
    is_running = seen.status == "running"
    frames = seen.checkpoint.frames
    owner = None
    if process is not None and is_running:
        owner = RunOwner(str(process["host"]), int(process["pid"]), state.since, state.lease)
    return RunInfo(
        run_id=seen.run_id,
        state="stalled" if seen.is_stalled else cast("RunState", seen.status),
        graph=record["graph"],
        node=written(frame.node for frame in frames if frame.node is not None) or None,
        steps=record["steps"],
        executions=record["epoch"],
        started=record["started"],
        updated=record["updated"],
        since=state.since,
        owner=owner,
        is_ending=is_running and state.cancelled,
        failure=state.failure,
        wake_at=state.wake_at,
        questions=tuple(each for each in questions_of(seen.run_id, waits) if each.is_open),
        trace_id=trace_id(record["carrier"]),
        expires_at=seen.entry.expires_at,
        result=kept(record["result"]),
    )


def questions_of(run_id: str, waits: Iterable[Waiting]) -> Iterator[RunQuestion]:
    """The questions among what a run waits for, or has waited for."""
    for each in waits:
        wait = each.wait
        if wait.kind == "question" and wait.question is not None:
            yield RunQuestion(
                run_id,
                each.place,
                RunValue(wait.question),
                wait.asks_for,
                None if wait.choices is None else tuple(wait.choices),
                wait.since,
                wait.until,
                kept(wait.answer),
                wait.settled,
            )


def unreadable(name: str, error: Exception) -> RunInfo:
    """What there is to say of a run whose record is damaged, or of a newer version."""
    return RunInfo(run_id=unquote(name), state="unreadable", error=str(error))


def seen_in(name: str, there: str, found: Mapping[str, Found]) -> Seen | Exception:
    """A run of what was read, or why it can't be."""
    key = RUN + name
    try:
        entry, stood = found[key], found.get(there)
        for each in (entry, stood):
            if isinstance(each, CodecError):
                raise each
        assert isinstance(entry, Entry)
        record, checkpoint = look_at(key, entry)
        return seen_of(key, entry, record, checkpoint, there, stood if isinstance(stood, Entry) else None)
    except PocketError as error:
        return error


async def told(stack: Stack, seen: Seen) -> RunInfo:
    """What there is to say of a run, with the questions for which it waits."""
    return info_of(seen, await waits_for(stack, seen) if seen.status == "waiting" else ())


async def waits_for(stack: Stack, seen: Seen) -> Sequence[Waiting]:
    """What a run waits for, or has waited for, in the order in which it began to. What is damaged of it is left out."""
    keys = [key async for key in stack.scan(seen.part + WAIT)]
    found = await read_each(stack, keys)
    waits = waits_in(seen.record, seen.part, seen.checkpoint.frames)
    for key, entry in found.items():
        if isinstance(entry, Entry):
            with suppress(CodecError):
                each = read_wait(seen.part, key, entry)
                waits[each.place] = each
    return sorted(waits.values(), key=lambda each: each.wait.since)


def field_in(found: Found | None, name: str) -> Any:
    """A field of one of a run's further records; None where that is none."""
    value: Value = found.value if isinstance(found, Entry) else None
    return value.get(name) if value.__class__ is dict else None
