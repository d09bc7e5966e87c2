"""What operators see of a run, and how it is made from the run's records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast
from urllib.parse import unquote

from pocket_plug.codec import default_codec
from pocket_plug.errors import CodecError, PocketError
from pocket_plug.graph.durable.moving import Seen, seen_of
from pocket_plug.graph.durable.records import RUN, node_of
from pocket_plug.graph.durable.states import RunFailure, trace_id
from pocket_plug.graph.durable.states import RunState as RunState
from pocket_plug.graph.durable.waits import PlacedWait, current_place, read_wait, wait_key, waits_in
from pocket_plug.primitives.values import Value
from pocket_plug.store.backend import Backend, Entry
from pocket_plug.store.reading import Found, read_each, readable

OPEN: tuple[RunState, ...] = ("pending", "running", "stalled", "suspended", "failed")
"""The states of runs that may still be resumed."""
ENDED: tuple[RunState, ...] = ("cancelled", "finished")


@dataclass(frozen=True, slots=True)
class RunValue:
    """A value that a run has stored. `load` decodes it, which may need the program's types."""

    record: bytes = field(repr=False)
    """The bytes that the codec has encoded."""

    def load(self) -> Value:
        """Decode the value. Raises CodecError; UnknownTypeError if its type is not registered here."""
        return default_codec.decode(self.record)


@dataclass(frozen=True, slots=True)
class RunOwner:
    """The process that executes a run; for a stalled run, the one that did."""

    host: str
    pid: int
    since: float
    """When this execution began, in epoch seconds."""
    lease: float
    """Seconds after which the execution may be considered dead if it has neither a commit nor a heartbeat."""
    seen: float
    """When its last commit or heartbeat was written, in epoch seconds by its own clock."""


@dataclass(frozen=True, slots=True)
class RunQuestion:
    """A question that a run has asked."""

    run_id: str
    id: str
    """The place that asks: `approve#1`, or `review#1[3]/ask#1` in an item of a fan-out."""
    question: RunValue
    asks_for: str
    """The name of the answer's type."""
    choices: tuple[Value, ...] | None
    """The possible answers as plain values, if the type has only a few; else None."""
    since: float
    """When it was asked, in epoch seconds."""
    until: float | None
    """When the run continues without an answer, in epoch seconds."""
    answer: RunValue | None = None
    settled: float | None = None
    """When it was answered, or when the run continued without an answer, in epoch seconds."""

    @property
    def is_open(self) -> bool:
        """Does the run wait for an answer?"""
        return self.settled is None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """A durable run at one moment. For an unreadable run, fields that are not known are None."""

    run_id: str
    state: RunState
    graph: str | None = None
    node: str | None = None
    """The node that comes next: `outer/inner` in a nested graph. None if there is none."""
    steps: int | None = None
    """How many nodes it has entered."""
    executions: int | None = None
    """How many executions it has had: its start, and each resume."""
    started: float | None = None
    """When it began, or was submitted, in epoch seconds."""
    updated: float | None = None
    """When its record was last written, in epoch seconds."""
    since: float | None = None
    """When it entered its state, in epoch seconds."""
    owner: RunOwner | None = None
    """The process that executes it; None unless it is `running` or `stalled`."""
    is_ending: bool = False
    """Was it cancelled, but its execution has not ended yet?"""
    failure: RunFailure | None = None
    """The error of a `failed` run; for a `pending` run, the one before it was retried."""
    wake_at: float | None = None
    """When it continues by itself, in epoch seconds, if it waits for a time."""
    questions: tuple[RunQuestion, ...] = ()
    """The open questions of a `suspended` run."""
    trace_id: str | None = None
    """The trace of its last execution."""
    expires_at: float | None = None
    """When its record expires, in epoch seconds. Only records of older versions expire."""
    error: str | None = None
    """Why the run is `unreadable`."""
    result: RunValue | None = field(default=None, repr=False)
    """The output of a `finished` run."""

    def _repr_html_(self) -> str:
        """For a notebook: a table of the run's state, without its values."""
        from pocket_plug.primitives.markup import table

        owner = self.owner
        known = {
            "state": shown_state(self),
            "why": _why(self),
            "graph": self.graph or "",
            "node": self.node or "",
            "steps": _number(self.steps),
            "executions": _number(self.executions),
            "started (UTC)": _time(self.started),
            "updated": _time(self.updated),
            "executed by": "" if owner is None else f"process {owner.pid} on {owner.host}, since {_time(owner.since)}",
            "trace": self.trace_id or "",
        }
        return table(f"run {self.run_id}", (), [(what, said) for what, said in known.items() if said])


@dataclass(frozen=True, slots=True)
class RunPage:
    """A page of runs, the newest first."""

    runs: tuple[RunInfo, ...]
    after: str | None
    """The argument of `list(after=…)` for the next page; None if this is the last one."""

    def _repr_html_(self) -> str:
        """For a notebook: a table with a row for each run."""
        return runs_table(self)


@dataclass(frozen=True, slots=True)
class PassedNode:
    """A node that a run has passed. Fields that can't be read are None."""

    node: str | None
    """The node and the number of its visit: `outer#1/inner#2`."""
    next: str | None
    """The node that comes next in its graph."""
    at: float | None
    """When the run left the node, in epoch seconds."""


@dataclass(frozen=True, slots=True)
class RunExecution:
    """One execution of a run: its start, or a resume."""

    number: int
    began: float | None
    host: str | None
    pid: int | None
    trace_id: str | None
    left: RunState | None
    """The state of the run when this execution ended; for the last execution, the run's current state."""
    failure: RunFailure | None


@dataclass(frozen=True, slots=True)
class RunHistory:
    """All that is recorded of a run."""

    run: RunInfo
    executions: tuple[RunExecution, ...]
    path: tuple[PassedNode, ...]
    """The nodes that it has passed, in order."""
    visits: Mapping[str, int]
    """How often it has passed each node, for the nodes of the graphs that it is in now."""
    input: RunValue | None
    value: RunValue | None
    """The input of the next node; if there is none, the output of the last one."""
    questions: tuple[RunQuestion, ...]
    """All questions that it has asked, with their answers."""

    @property
    def trace_ids(self) -> tuple[str, ...]:
        """The traces of its executions, in order."""
        return tuple(dict.fromkeys(each.trace_id for each in self.executions if each.trace_id is not None))

    @property
    def failures(self) -> tuple[RunFailure, ...]:
        """The failures of its executions, in order."""
        return tuple(each.failure for each in self.executions if each.failure is not None)


# ---------------------------------------------------------------- for notebooks
def runs_table(page: RunPage) -> str:
    """HTML for a notebook: a row for each run."""
    from pocket_plug.primitives.markup import table

    columns = ("run", "state", "graph", "node", "steps", "started (UTC)", "why")
    rows = [
        (
            run.run_id,
            shown_state(run),
            run.graph or "",
            run.node or "",
            _number(run.steps),
            _time(run.started),
            _why(run),
        )
        for run in page.runs
    ]
    return table("runs" if page.after is None else "the newest runs", columns, rows)


def shown_state(run: RunInfo) -> str:
    """The state of a run in words: `ending` for one that was cancelled while it is executed."""
    return "ending" if run.is_ending else run.state


def _why(run: RunInfo) -> str:
    """Why the run doesn't continue. Without the texts of exceptions and questions, which may contain values."""
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


# ---------------------------------------------------------------- made from records
def kept(record: object) -> RunValue | None:
    """The RunValue for a field of a record; None if the field has no value."""
    return RunValue(record) if isinstance(record, bytes) and record else None


def info_of(seen: Seen, waits: Iterable[PlacedWait] = ()) -> RunInfo:
    """The RunInfo of a run with these waits."""
    record, state, process = seen.record, seen.state, seen.state.process
    is_running = seen.status == "running"
    frames = seen.checkpoint.frames
    owner = None
    if process is not None and is_running:
        last = max(record["updated"], seen.beat)
        owner = RunOwner(str(process["host"]), int(process["pid"]), state.since, state.lease, last)
    return RunInfo(
        run_id=seen.run_id,
        state="stalled" if seen.is_stalled else cast("RunState", seen.status),
        graph=record["graph"],
        node=node_of(frames) or None,
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


def questions_of(run_id: str, waits: Iterable[PlacedWait]) -> Iterator[RunQuestion]:
    """The questions among a run's waits, open and settled."""
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
    """The RunInfo of a run whose record is damaged, or of a newer version."""
    return RunInfo(run_id=unquote(name), state="unreadable", error=str(error))


def seen_in(name: str, state_at: str, found: Mapping[str, Found]) -> Seen | Exception:
    """A run from these entries, or the error if they can't be read. `state_at` is the key of its state."""
    key = RUN + name
    try:
        entry, state_entry = readable(found[key]), readable(found.get(state_at))
        return seen_of(key, entry, state_at, state_entry)
    except PocketError as error:
        return error


async def info_with_questions(stack: Backend, seen: Seen) -> RunInfo:
    """The RunInfo of a run, with its open questions if it is suspended."""
    return info_of(seen, await waits_now(stack, seen) if seen.status == "suspended" else ())


async def waits_now(stack: Backend, seen: Seen) -> Sequence[PlacedWait]:
    """The waits where a run is now, open and settled: a long run may have had thousands before."""
    return await waits_for(stack, seen, current_place(seen.checkpoint.frames))


async def waits_for(stack: Backend, seen: Seen, at: str = "") -> Sequence[PlacedWait]:
    """A run's waits whose places begin with `at`, open and settled, the oldest first. Damaged ones are left out."""
    keys = [key async for key in stack.scan(wait_key(seen.part, at))]
    found = await read_each(stack, keys)
    waits = waits_in(seen.record, seen.checkpoint.frames)
    for key, entry in found.items():
        if isinstance(entry, Entry):
            with suppress(CodecError):
                each = read_wait(seen.part, key, entry)
                waits[each.place] = each
    return sorted(waits.values(), key=lambda each: each.wait.since)
