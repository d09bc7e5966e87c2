"""What operators are told of a run, and how that is read from what is stored of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from urllib.parse import unquote

from pocket_plug.codec import default_codec
from pocket_plug.errors import CodecError, PocketError
from pocket_plug.graph.durable.changes import written
from pocket_plug.graph.durable.moving import Seen, seen_of
from pocket_plug.graph.durable.reading import Found
from pocket_plug.graph.durable.records import RUN, look_at
from pocket_plug.graph.durable.states import RunFailure, trace_id
from pocket_plug.primitives.values import Value
from pocket_plug.store.backend import Entry

RunState = Literal["pending", "running", "stalled", "waiting", "failed", "cancelled", "finished", "unreadable"]
"""`stalled` is a running one that nobody is at any more, `unreadable` one whose record is damaged or of a newer version."""

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
    """The execution that is at a run, or was when it was last heard of."""

    host: str
    pid: int
    since: float
    """When it began, in epoch seconds."""
    lease: float
    """Seconds after which it may be taken for dead, unless it moves its run or its process speaks for it."""


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
    trace_id: str | None = None
    """That of its last execution."""
    expires_at: float | None = None
    """When its record expires, which only those of older versions do."""
    error: str | None = None
    """Why it is `unreadable`."""
    result: RunValue | None = field(default=None, repr=False)
    """What it has left with, if it is `finished`."""


@dataclass(frozen=True, slots=True)
class RunPage:
    """Some runs, those that were begun last first."""

    runs: tuple[RunInfo, ...]
    after: str | None
    """What `list(after=)` takes for the next page; None where this is the last one."""


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
    """One execution of a run: somebody began it, or went on with it."""

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
    """All that is kept of a run."""

    run: RunInfo
    executions: tuple[RunExecution, ...]
    path: tuple[PassedNode, ...]
    """The nodes that it has passed, in order."""
    visits: Mapping[str, int]
    """How often it has passed each node of the graphs that it is in."""
    input: RunValue | None
    value: RunValue | None
    """What the next node takes, or what the last one has left with."""
    question: RunValue | None
    answer: RunValue | None

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """The traces of its executions, in order."""
        return tuple(dict.fromkeys(each.trace_id for each in self.executions if each.trace_id is not None))

    @property
    def failures(self) -> tuple[RunFailure, ...]:
        """What its executions have failed with, in order."""
        return tuple(each.failure for each in self.executions if each.failure is not None)


def kept(record: object) -> RunValue | None:
    """A value that a run has kept; None where it has none."""
    return RunValue(record) if isinstance(record, bytes) and record else None


def info_of(seen: Seen) -> RunInfo:
    """What there is to say of a run."""
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
        trace_id=trace_id(record["carrier"]),
        expires_at=seen.entry.expires_at,
        result=kept(record["result"]),
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


def field_in(found: Found | None, name: str) -> Any:
    """A field of one of a run's further records; None where that is none."""
    value: Value = found.value if isinstance(found, Entry) else None
    return value.get(name) if value.__class__ is dict else None
