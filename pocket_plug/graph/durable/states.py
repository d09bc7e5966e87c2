"""A run's state: what operators see of it, and where they write requests to its owner.

The key `pocket:run-state:STATE:GRAPH:STARTED:ID` is created when a run enters a state and deleted when it leaves it, in the write
of the run's record. So runs are listed by state and graph, in the order in which they began, and a list costs as much as it
shows. While a run is `running`, only its owner writes its record. To request something from the owner, an operator writes the
state, and the owner's next commit finds it, since each commit expects the state's version as well.
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
from pocket_plug.store.backend import Backend, Entry, Put
from pocket_plug.store.keys import RESERVED

from .records import Record, escaped, status_of

STATE = f"{RESERVED}run-state:"
KEY_PIECES = 6
"""How many parts the key of a state has, between colons."""
WAKE = f"{RESERVED}run-wake:"
"""`pocket:run-wake:GRAPH:TIME:ID` exists while a run waits for a time."""

LEASE = 30.0
"""Seconds after which an execution without a commit or a heartbeat is taken for dead."""


RunState = Literal["pending", "running", "stalled", "suspended", "failed", "cancelled", "finished", "unreadable"]
"""The states that operators see. `stalled`: recorded as running, but nobody executes it any more. `unreadable`: its record is
damaged, or of a newer version."""


def states_of(status: str, graph: str | None = None) -> str:
    """The prefix of the keys of the runs in a state, or of one graph's runs in that state."""
    return f"{STATE}{status}:" if graph is None else f"{STATE}{status}:{state_name(graph)}:"


def state_name(graph: str) -> str:
    """A graph's name, escaped for these keys."""
    return escaped(graph, ":")


def sortable_time(time: float) -> str:
    """A time as a text that sorts like the time."""
    return f"{min(max(time, 0.0), 1e15):023.6f}"


def state_key(status: str, graph: str, started: float, name: str) -> str:
    """The key of a run's state. `name` is the run's id, escaped for keys."""
    return f"{states_of(status, graph)}{sortable_time(started)}:{name}"


def wake_key(graph: str, at: float, name: str) -> str:
    """The key of the note of a run that waits for a time."""
    return f"{wakes_of(graph)}{sortable_time(at)}:{name}"


def wakes_of(graph: str) -> str:
    """The prefix of the keys of these notes for one graph; they sort by the time."""
    return f"{WAKE}{state_name(graph)}:"


def state_of(record: Record, name: str) -> str:
    """The key of the state of the run with this record."""
    return state_key(status_of(record), record["graph"], record["started"], name)


@dataclass(frozen=True, slots=True)
class StateKey:
    """The parts of a state's key."""

    status: str
    graph: str
    started: float
    run_id: str

    @classmethod
    def parse(cls, key: str) -> StateKey:
        """Take a state's key apart. Raises CorruptRecordError for another key."""
        try:
            status, graph, started, name = key.removeprefix(STATE).split(":")
            return cls(status, unquote(graph), float(started), unquote(name))
        except ValueError:
            raise CorruptRecordError(f"{key!r} is not the key of a run's state") from None


async def prefixes_in(stack: Backend, status: str = "", most: int | None = None) -> list[str]:
    """The prefixes of the keys of runs in a state, or in any: one for each graph that has such runs, at most `most`.

    Each costs one read, however many runs it has. A damaged key is left out.
    """
    within = states_of(status) if status else STATE
    found: list[str] = []
    after = ""
    while len(found) != most and (page := [key async for key in stack.scan(within, after=after, limit=1)]):
        pieces, after = page[0].split(":"), page[0]
        if len(pieces) == KEY_PIECES:
            found.append(":".join(pieces[:-2]) + ":")
            after = found[-1][:-1] + ";"  # the next character after ":", so after all keys with this prefix
    return found


def graph_of(prefix: str) -> str:
    """The graph of the keys with one of these prefixes."""
    return unquote(prefix.split(":")[-2])


@dataclass(frozen=True, slots=True)
class RunFailure:
    """The error that ended a run, and its place."""

    type: str
    """The full name of the exception's class."""
    message: str
    node: str
    """The node, after the nodes that contain it: `outer/inner`."""
    visit: int
    item: int | None
    """In a fan-out, the position of the item."""
    attempts: int
    at: float
    """When the run failed, in epoch seconds."""
    trace_id: str | None


def failure_of(error: BaseException, at: float, carrier: Mapping[str, str]) -> RunFailure:
    """The RunFailure for an error that ends a run at this time, with the trace of this carrier."""
    place = place_of(error)
    nodes = "/".join(reversed(place.nodes)) if place is not None else ""
    visit, item, attempts = (place.visit, place.item, place.attempts) if place is not None else (0, None, 0)
    return RunFailure(error_type(error), error_text(error), nodes, visit, item, attempts, at, trace_id(carrier))


def notice_attributes(failure: RunFailure) -> dict[str, Any]:
    """A notice's attributes for a failure. Without the message, which may contain values."""
    about: dict[str, Any] = {"error_type": failure.type}
    if failure.node:
        about |= {"node": failure.node, "visit": failure.visit, "attempts": failure.attempts}
    return about if failure.item is None else {**about, "item": failure.item}


def trace_id(carrier: Mapping[str, object]) -> str | None:
    """The trace id of a W3C trace context; None if it has none."""
    pieces = str(carrier.get("traceparent", "")).split("-")
    return pieces[1] if len(pieces) > 1 else None


@dataclass(frozen=True, slots=True)
class State:
    """The details of a run's state."""

    since: float
    """When the run entered the state, in epoch seconds."""
    owner: str = ""
    """The id of the execution that owns the run."""
    process: Mapping[str, Any] | None = None
    """The process of that execution."""
    lease: float = LEASE
    tries: int = 0
    """How many executions have begun since the run's last commit, this one included."""
    commits: int = 0
    """The run's number of commits when this execution began."""
    cancelled: bool = False
    """Has an operator requested that the run ends?"""
    failure: RunFailure | None = None
    wake_at: float | None = None
    """When the run continues by itself, if it waits for a time."""
    questions: int = 0
    """How many open questions the run waits for."""
    asked: float | None = None
    """When the first of these questions was asked."""
    look_at: float | None = None
    """The time in the key of its note for `keep_finished`, if it has one."""


_DEFAULTS = {each.name: each.default for each in fields(State) if each.name != "since"}


def plain_state(state: State) -> dict[str, Any]:
    """A state as it is stored: without fields that have their default."""
    record: dict[str, Any] = {"since": state.since}
    for name, default in _DEFAULTS.items():
        if (value := getattr(state, name)) != default:
            record[name] = value
    if state.failure is not None:
        record["failure"] = asdict(state.failure)
    return record


def put_state(key: str, state: State, expires_at: float | None = None) -> Put:
    """The change that records a state."""
    return Put(key, plain_state(state), expires_at)


def read_state(key: str, entry: Entry) -> State:
    """Decode a stored state. Raises CorruptRecordError."""
    found: Any = entry.value
    try:
        if found.get("failure") is not None:
            found = {**found, "failure": RunFailure(**found["failure"])}
        return State(**found)
    except (AttributeError, TypeError):
        raise CorruptRecordError(f"{key!r} is not the state of a run: {summary(found)}") from None
