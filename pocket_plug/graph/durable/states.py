"""A run's state: what an operator is told of it, and where its owner is left word.

The key `pocket:run-state:STATE:GRAPH:STARTED:ID` is put when a run comes into a state and deleted when it leaves it, in the same
write as the run's record. So runs are listed by state and graph, in the order in which they began, at the cost of what is
listed. While a run is `running`, nobody but its owner writes its record; whoever wants something of the owner writes the
state, and the owner finds out, since each of its commits expects the state's version as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal
from urllib.parse import unquote

from pocket_plug.errors import CorruptRecordError
from pocket_plug.graph.running.places import place_of
from pocket_plug.primitives.failures import error_text, error_type
from pocket_plug.primitives.redaction import summary
from pocket_plug.store.backend import Entry
from pocket_plug.store.keys import RESERVED

from .records import Record, escaped, status_of

STATE = f"{RESERVED}run-state:"
WAKE = f"{RESERVED}run-wake:"
"""`pocket:run-wake:GRAPH:TIME:ID` is there for a run that waits for a time."""

LEASE = 30.0
"""Seconds after which an execution that has not moved its run may be taken for dead."""


RunState = Literal["pending", "running", "stalled", "waiting", "failed", "cancelled", "finished", "unreadable"]
"""As operators are told it. `stalled` is a running one that nobody is at any more, `unreadable` one whose record is damaged or
of a newer version."""


def states_of(status: str, graph: str | None = None) -> str:
    """How the keys begin of the runs in a state, or of those of one graph."""
    return f"{STATE}{status}:" if graph is None else f"{STATE}{status}:{state_name(graph)}:"


def state_name(graph: str) -> str:
    """A graph's name as such keys have it."""
    return escaped(graph, ":")


def in_order(time: float) -> str:
    """A time as a text that sorts as the time does."""
    return f"{min(max(time, 0.0), 1e15):023.6f}"


def state_key(status: str, graph: str, started: float, name: str) -> str:
    """Where a run's state stands. `name` is the run's id, as keys have it."""
    return f"{states_of(status, graph)}{in_order(started)}:{name}"


def wake_key(graph: str, at: float, name: str) -> str:
    """Where the note stands of a run that waits for a time."""
    return f"{wakes_of(graph)}{in_order(at)}:{name}"


def wakes_of(graph: str) -> str:
    """How the notes begin of a graph's runs that wait for a time; they are in the order of these times."""
    return f"{WAKE}{state_name(graph)}:"


def state_of(record: Record, name: str) -> str:
    """The same for a run whose record is at hand."""
    return state_key(status_of(record), record["graph"], record["started"], name)


@dataclass(frozen=True, slots=True)
class StateKey:
    """What such a key says."""

    status: str
    graph: str
    started: float
    run_id: str

    @classmethod
    def parse(cls, key: str) -> StateKey:
        """Read one. Raises CorruptRecordError."""
        try:
            status, graph, started, name = key.removeprefix(STATE).split(":")
            return cls(status, unquote(graph), float(started), unquote(name))
        except ValueError:
            raise CorruptRecordError(f"{key!r} is no key of a run's state") from None


@dataclass(frozen=True, slots=True)
class RunFailure:
    """The error that a run has failed with, and its place."""

    type: str
    """The full name of the exception's class."""
    message: str
    node: str
    """The node, after those of the graphs around it: `outer/inner`."""
    visit: int
    item: int | None
    """Of a fan-out, the position of the item."""
    attempts: int
    at: float
    """When, in epoch seconds."""
    trace_id: str | None


def failure_of(error: BaseException, at: float, carrier: Mapping[str, str]) -> RunFailure:
    """What there is to say of the error that a run has failed with."""
    place = place_of(error)
    nodes = "/".join(reversed(place.nodes)) if place is not None else ""
    visit, item, attempts = (place.visit, place.item, place.attempts) if place is not None else (0, None, 0)
    return RunFailure(error_type(error), error_text(error), nodes, visit, item, attempts, at, trace_id(carrier))


def noticed(failure: RunFailure) -> dict[str, Any]:
    """What a notice says of it: no message, which may hold anything."""
    about: dict[str, Any] = {"error_type": failure.type}
    if failure.node:
        about |= {"node": failure.node, "visit": failure.visit, "attempts": failure.attempts}
    return about if failure.item is None else {**about, "item": failure.item}


def trace_id(carrier: Mapping[str, object]) -> str | None:
    """The trace of a W3C trace context."""
    pieces = str(carrier.get("traceparent", "")).split("-")
    return pieces[1] if len(pieces) > 1 else None


@dataclass(frozen=True, slots=True)
class State:
    """The facts of the state that a run is in."""

    since: float
    """When it came into the state, in epoch seconds."""
    owner: str = ""
    """The id of the execution that is at it."""
    process: Mapping[str, Any] | None = None
    lease: float = LEASE
    tries: int = 0
    """How many executions have begun since the run last moved, this one included."""
    commits: int = 0
    """How often it had moved when this execution began."""
    cancelled: bool = False
    """Was it told to end?"""
    failure: RunFailure | None = None
    wake_at: float | None = None
    """When it goes on by itself, if it waits for a time."""
    questions: int = 0
    """How many it waits to be answered."""
    asked: float | None = None
    """When the first of these was asked."""
    look_at: float | None = None
    """The time in the key of its note for `keep_finished`, if it has one."""


_DEFAULTS = {each.name: each.default for each in fields(State) if each.name != "since"}


def plain_state(state: State) -> dict[str, Any]:
    """A state as it is stored: without what it doesn't say."""
    record: dict[str, Any] = {"since": state.since}
    for name, default in _DEFAULTS.items():
        if (value := getattr(state, name)) != default:
            record[name] = value
    if state.failure is not None:
        record["failure"] = asdict(state.failure)
    return record


def read_state(key: str, entry: Entry) -> State:
    """A state as it was stored. Raises CorruptRecordError."""
    found: Any = entry.value
    try:
        if found.get("failure") is not None:
            found = {**found, "failure": RunFailure(**found["failure"])}
        return State(**found)
    except (AttributeError, TypeError):
        raise CorruptRecordError(f"{key!r} is no state of a run: {summary(found)}") from None
