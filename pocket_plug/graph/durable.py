"""Durable runs: what a run has come to is written with what its nodes write, so that it goes on where it was left.

A run's record is its checkpoint: where it stands, with what input, how often each node was visited, and who owns it. Each
commit expects the version that the one before has got, so whoever was overtaken can write nothing any more. Each write has
a token of its own, so that after a failure the record tells whether this very write has landed. Values stand in it as
bytes of the codec's, so a record can be looked at without the program's types.
"""

# What drives a node makes its views; see runner.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pocket_plug.codec import default_codec, register_type
from pocket_plug.codec.error_values import storable
from pocket_plug.errors import (
    CodecError,
    ConfigError,
    ConflictError,
    CorruptRecordError,
    InputError,
    KeyNameError,
    OutcomeUnknownError,
    RunChangedError,
    RunFencedError,
    RunMismatchError,
    RunSuspendedError,
    StoreError,
    TransactionError,
    UnknownRunError,
)
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.typechecks import declared_types, type_name
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Delete, Entry, Put
from pocket_plug.store.keys import RESERVED
from pocket_plug.store.stack import Stack
from pocket_plug.store.store import MISSING, StoreReader

from .ask import Answered, AskStep
from .chain import DEFAULT
from .context import run_ids
from .host import RunHost
from .nesting import GraphStep
from .phases import declared_actions, hints
from .plan import Plan, Step
from .runner import Commit, Execution, Visited
from .shape import passed

if TYPE_CHECKING:
    from pocket_plug.graph.observing import NodeCall

    from .graph import Graph

FORMAT = 1
RUN = f"{RESERVED}run:"
"""`pocket:run:ID` is a run's checkpoint."""
PART = f"{RESERVED}run-part:"
"""`pocket:run-part:ID:…` is what else there is of it: `start`, `path:N` for each node that it has passed, and `item:…` for
each item of a fan-out that is under way."""
ENDED = f"{RESERVED}run-ended:"
"""`pocket:run-ended:TIME:ID` is the note of a finished run with `keep_finished`: from TIME on the run is to be looked at."""
HEADER = 6
"""The bytes of a codec's record before those of the value."""
CHUNK = 256
"""How many records of a run are removed in one write."""
SWEPT = 4
"""How many finished runs are looked at, at most, when a run ends: more than one, so that a backlog gets smaller."""
PAUSES: Sequence[float] = (0.05, 0.5)
"""Seconds between the tries to find out whether a failed write has landed."""

Status = Literal["running", "suspended", "finished"]

register_type(Answered, tag="pocket_plug.Answered")

_key: ContextVar[str] = ContextVar("pocket_plug.idempotency_key")


def idempotency_key() -> str:
    """The same string each time that this visit of this node is tried again, in whatever process, and no other one's.

    For `exec`, which is done at least once: hand it to a service that does nothing twice for one key. It is made of the
    run's id, the node and the visit. Raises UnknownRunError outside of durable runs.
    """
    try:
        return _key.get()
    except LookupError:
        raise UnknownRunError(
            "idempotency_key(): no durable run goes on here; start it with run(…, run_id=…)"
        ) from None


def _payload(value: Any) -> bytes:
    return default_codec.encode(value)[HEADER:]


def _escaped(text: str, marks: str) -> str:
    for mark in "%" + marks:
        text = text.replace(mark, f"%{ord(mark):02X}")
    return text


# What stands in a record: one that somebody else has written must not be taken for a run. Its `owner` is a write's token:
# the execution's id, and after a dot which of its writes it was (in older records the id alone).
_ITEM: Mapping[str, Any] = {"owner": str, "commits": int, "frames": list}
_RUN: Mapping[str, Any] = {
    **_ITEM, "format": int, "status": str, "graph": str, "epoch": int, "steps": int, "started": float, "updated": float,
    "question": bytes | None, "answer": bytes | None, "is_answered": bool, "result": bytes | None,
    "carrier": dict,
}  # fmt: skip
_START: Mapping[str, Any] = {"graph": str, "scope": str, "shape": list, "input": bytes, "started": float}
_FRAME: Mapping[str, Any] = {"node": str | None, "value": bytes, "visits": dict, "action": str, "hooks": str}


@dataclass(frozen=True, slots=True)
class Frame:
    """How far one graph has come: the node that comes next and its input, or, where there is none, what it has left with."""

    node: str | None
    value: bytes
    visits: Mapping[str, int] = field(default_factory=dict[str, int])
    action: str = DEFAULT
    hooks: str = ""
    """The node whose commit has landed, and whose `on_success` and `on_complete` have not been seen to end."""


@dataclass(slots=True)
class Checkpoint:
    """A run's record, or that of one item of a fan-out, as it was last seen."""

    key: str
    version: int = 0
    commits: int = 0
    frames: Sequence[Frame] = ()
    """Of the outermost graph first, and then of those that are nested in it at its node."""
    is_old: bool = False
    """Was it left by an execution before this one?"""
    failed: Exception | None = None
    """The error of the last read or write of the checkpoint, if it failed."""

    def load(self, entry: Entry) -> None:
        """Take it from what is stored."""
        _check(self.key, {name: entry.value.get(name) for name in _ITEM}, _ITEM)
        self.version, self.commits = entry.version, entry.value["commits"]
        for frame in entry.value["frames"]:
            _check(self.key, frame, _FRAME)
        self.frames = tuple(Frame(**frame) for frame in entry.value["frames"])
        if not self.frames:
            raise CorruptRecordError(f"{self.key!r} is no record of a durable run: it says not where that stands")


def _check(key: str, record: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Raise CorruptRecordError unless it is a record of those fields, and StoreError if it is a newer one."""
    found = record if isinstance(record, dict) else {}
    if isinstance(format := found.get("format"), int) and format > FORMAT:
        raise StoreError(f"{key!r} was written by a newer pocket_plug; go on with that one")
    if found.keys() != fields.keys():
        raise CorruptRecordError(f"{key!r} is no record of a durable run; once it is removed the run begins anew")
    for name, kind in fields.items():
        if not isinstance(found[name], kind):
            raise CorruptRecordError(f"{key!r} is no record of a durable run: its {name!r} is {summary(found[name])}")


def _field(entry: Entry, name: str) -> Any:
    record: Mapping[str, Any] = entry.value
    return record.get(name) if isinstance(record, dict) else None


def execution_of(entry: Entry) -> str | None:
    """The id of the execution that wrote a record."""
    owner = _field(entry, "owner")
    return owner.partition(".")[0] if isinstance(owner, str) else None


def keys_of(run_id: str) -> tuple[str, str]:
    """The key of a run's checkpoint, and how those of its parts begin. Raises KeyNameError."""
    if not isinstance(run_id, str) or not run_id:
        raise KeyNameError(f"a run_id is a string that is not empty, not {summary(run_id)}")
    try:
        run_id.encode()
    except UnicodeEncodeError:
        raise KeyNameError(f"run_id {run_id!r:.80} has a lone surrogate, which no store can write") from None
    name = _escaped(run_id, ":")
    return RUN + name, f"{PART}{name}:"


def look_at(key: str, entry: Entry) -> tuple[Mapping[str, Any], Checkpoint]:
    """A run's record as it is stored, and its checkpoint, for whoever only looks. Raises StoreError, CorruptRecordError."""
    _check(key, entry.value, _RUN)
    checkpoint = Checkpoint(key)
    checkpoint.load(entry)
    return entry.value, checkpoint


class Request:
    """What is asked of a durable run."""

    def __init__(self, run_id: str | None, answer: Any, allow_changed: bool) -> None:
        if run_id is None:
            raise ConfigError("allow_changed is for durable runs; give the run's id: run(…, run_id=…)")
        keys_of(run_id)  # refused here where it can be no id
        self.run_id, self.answer, self.allow_changed = run_id, answer, allow_changed

    def execution(self, graph: Graph[Any, Any], place: tuple[Stack, str], input: Any, pocket: RunHost, loop: bool,
                  threads: bool) -> DurableExecution:  # fmt: skip
        """What does it. Raises ConfigError where the graph's stores can't keep it."""
        stack = place[0]
        if not stack.survives or stack.buffered:
            found = "may lose what was acknowledged" if stack.survives else "does not"
            raise ConfigError(
                f"run_id={self.run_id!r}: the run of graph {graph.name!r} is to survive this process, and its store "
                f"{stack!r} {found}; give the graph one that does: Graph(…, store=Store('sqlite:///state.db'))"
            )
        _check_stores(graph.plan, place)
        _declare(graph.plan)
        execution = DurableExecution(graph, place, input, pocket, loop, threads, run_id=self.run_id)
        execution.journal = Journal(self, graph, place, loop)
        execution.checkpoint = execution.journal.checkpoint
        return execution


# ---------------------------------------------------------------- what is known of a graph
def _check_stores(plan: Plan, place: tuple[Stack, str]) -> None:
    for step in map(passed, plan.steps.values()):
        if isinstance(step, GraphStep):
            inner = step.graph.place(StoreReader(*place))
            if inner[0] is not place[0]:
                raise ConfigError(
                    f"graph {step.name!r} has a store of its own, and a durable run is kept in one: its writes there "
                    f"and the checkpoint in {plan.name!r}'s store could not land together; use that store, or a scope of it"
                )
            _check_stores(step.graph.plan, inner)


def _declare(plan: Plan) -> None:
    """Let the codec know the types that nodes are annotated with: their inputs are stored."""
    if plan.is_declared:
        return
    plan.is_declared = True
    for step in map(passed, plan.steps.values()):
        declared_types.extend((step.input_type, step.output_type, *declared_actions(step.node).values()))
        for function in (step.prep, step.exec, step.fallback, step.post):
            if function is not None:
                declared_types.extend(hints(function).values())
        if isinstance(step, AskStep):
            declared_types.append(step.answer_type)
        if isinstance(step, GraphStep):
            _declare(step.graph.plan)


def step_at(plan: Plan, frames: Iterable[Frame]) -> Step | str | None:
    """The step at which the innermost frame stands; its name where the graph has none such."""
    step: Step | None = None
    for frame in frames:
        if isinstance(step, GraphStep):
            plan = step.graph.plan
        for name in filter(None, (frame.node, frame.hooks)):
            found = plan.named(name)
            if found is None:
                return name
            step = found
        if frame.node is None:
            step = None
    return step


# ---------------------------------------------------------------- the records of one run
class Journal:
    """One execution's hold on a run: its checkpoint, and the tokens by which it knows its own writes."""

    def __init__(self, request: Request, graph: Graph[Any, Any], place: tuple[Stack, str], loop: bool) -> None:
        self.request, self.graph = request, graph
        self.stack, self.prefix = place
        self.id = request.run_id
        key, self.part = keys_of(self.id)
        self.checkpoint = Checkpoint(key)
        self.owner = run_ids.next()
        self.writes = 0
        self.loop = loop
        self.epoch = 1
        self.steps = 0
        self.started = self.stack.clock()
        self.question: bytes | None = None
        self.answer: bytes | None = None
        self.carrier: dict[str, str] = {}
        self.unrecorded: list[Exception] = []
        """Errors of recording items. They are not the items' own, so they are never collected."""
        self.is_to_tell = False
        """Does the run go on, and nobody was told yet?"""
        self.cancelled: asyncio.CancelledError | None = None
        """A cancellation that came out of a write which has landed."""
        self.is_answered = False
        """Has an answer been given that the node has not taken yet?"""

    def encode(self, value: Any, what: str) -> bytes:
        """A value's bytes; the error of one that can't be stored says what it was."""
        try:
            return default_codec.encode(value)
        except CodecError as error:
            raise type(error)(f"{what} can't be kept for run {self.id!r}: {error}") from error

    def token(self) -> str:
        """A new token for the next write. It is unique, so no write is ever taken for another one."""
        self.writes += 1
        return f"{self.owner}.{self.writes}"

    def record(
        self, token: str, frames: Sequence[Frame], status: Status = "running", result: bytes | None = None
    ) -> dict[str, Any]:
        """The run's checkpoint, as it is stored."""
        return {
            "format": FORMAT, "status": status, "graph": self.graph.name, "epoch": self.epoch, "owner": token,
            "commits": self.checkpoint.commits + 1, "steps": self.steps, "started": self.started,
            "updated": self.stack.clock(), "frames": [_plain(frame) for frame in frames], "question": self.question,
            "answer": self.answer, "is_answered": self.is_answered, "result": result,
            "carrier": dict(self.carrier),
        }  # fmt: skip

    async def claim(self, value: Any) -> bytes | None:
        """Make the run this execution's own; give the result where it has one already."""
        checkpoint, start = self.checkpoint, self.part + "start"
        while True:
            found = await self.stack.read_many((checkpoint.key, start))
            entry = found.get(checkpoint.key)
            changes: list[Change] = []
            if entry is None:
                if value is MISSING:
                    raise UnknownRunError(
                        f"there is no run {self.id!r} in {self.stack!r}; start it: run(input, run_id=…)"
                    )
                first = self.graph.plan.start.name
                encoded = self.encode(value, f"the input of graph {self.graph.name!r}")
                checkpoint.frames = (Frame(first, encoded),)
                changes.append(self._start(start, encoded))
            else:
                begun = found.get(start)
                try:  # a tier that is nearer than the authority may be behind it
                    await self.stack.write((), {checkpoint.key: entry.version})
                except ConflictError:
                    continue
                _check(checkpoint.key, entry.value, _RUN)
                if begun is None:
                    raise CorruptRecordError(f"run {self.id!r} has lost its record {start!r}; it can only be removed")
                _check(start, begun.value, _START)
                if (result := self._settled(entry, begun.value, value)) is not None:
                    return result
                if changed := self._changed(begun.value):
                    changes.append(Put(start, {**begun.value, "shape": changed}))
            token = self.token()
            record = self.record(token, checkpoint.frames)
            changes.append(Put(checkpoint.key, record))
            try:
                checkpoint.version = await self.stack.write(changes, {checkpoint.key: entry.version if entry else 0})
            except Exception as error:
                now = (await self._found((checkpoint.key,), error, "the start of this execution")).get(checkpoint.key)
                if now is None or _field(now, "owner") != token:
                    if isinstance(error, ConflictError):
                        continue  # another execution was faster: look again
                    raise
                checkpoint.version = now.version
            checkpoint.commits = record["commits"]
            checkpoint.is_old = self.is_to_tell = entry is not None
            return None

    def _start(self, key: str, encoded: bytes) -> Put:
        return Put(key, {"graph": self.graph.name, "scope": self.prefix, "shape": self.graph.plan.shape.lines, "input": encoded,
                         "started": self.started})  # fmt: skip

    def _settled(self, entry: Entry, start: Mapping[str, Any], value: Any) -> bytes | None:
        """Take over what is known of a run; give its result where it is finished, raise where it can't go on."""
        record = entry.value
        if (start["graph"], start["scope"]) != (self.graph.name, self.prefix):
            raise RunMismatchError(f"run {self.id!r} is one of graph {start['graph']!r} in scope {start['scope']!r}, not of "
                              f"{self.graph.name!r} in {self.prefix!r}; give this one another run_id")  # fmt: skip
        if value is not MISSING and not self._same(start["input"], value):
            raise RunMismatchError(f"run {self.id!r} was begun with another input than this {summary(value)}; give this another "
                              "run_id, or go on with resume(run_id)")  # fmt: skip
        self.started, self.epoch, self.steps = record["started"], record["epoch"] + 1, record["steps"]
        self.question, self.answer, self.is_answered = record["question"], record["answer"], record["is_answered"]
        self.checkpoint.load(entry)
        self.carrier = dict(record["carrier"])
        answer = self.request.answer
        if record["status"] == "suspended":
            if answer is MISSING:
                raise RunSuspendedError(self.id, default_codec.decode(record["question"]))
            self._take(answer)
        elif answer is not MISSING and (self.answer is None or not self._same(self.answer, answer)):
            raise RunMismatchError(f"run {self.id!r} waits for no answer: it is {record['status']}, and {summary(answer)} is "
                              "not what it was last given")  # fmt: skip
        return record["result"] if record["status"] == "finished" else None

    def _take(self, answer: Any) -> None:
        step = step_at(self.graph.plan, self.checkpoint.frames)
        if isinstance(step, AskStep) and not step.accepts(answer):
            raise InputError(f"node {step.name!r} of graph {self.graph.name!r} asks for {type_name(step.answer_type)}, "
                             f"not {type(answer).__name__}; run {self.id!r} still waits")  # fmt: skip
        self.answer, self.is_answered = self.encode(answer, "the answer"), True

    def _same(self, encoded: bytes, value: Any) -> bool:
        """Is it the value that was encoded? The order of a set's members is another one in each process."""
        other = self.encode(value, "the input")
        if other == encoded or sorted(other[HEADER:]) != sorted(encoded[HEADER:]):
            return other == encoded
        try:
            return bool(default_codec.decode(encoded) == value)
        except Exception:  # noqa: BLE001 - an array, say, that is neither true nor false
            return False

    def _changed(self, start: Mapping[str, Any]) -> list[str] | None:
        """The graph's new shape, where that is allowed to have changed; None where it is what it was."""
        before, now = start["shape"], self.graph.plan.shape.lines
        stands = step_at(self.graph.plan, self.checkpoint.frames)
        if before == now and not isinstance(stands, str):
            return None
        differences = [
            *(f"- {line}" for line in before if line not in now),
            *(f"+ {line}" for line in now if line not in before),
        ]
        if isinstance(stands, str):
            raise RunChangedError(f"run {self.id!r} stands at node {stands!r}, which graph {self.graph.name!r} no longer has; "
                             "go on with the graph that it was begun by:", differences)  # fmt: skip
        if not self.request.allow_changed:
            raise RunChangedError(f"run {self.id!r} was begun by another form of graph {self.graph.name!r}; go on with that, or "
                             "with this one by allow_changed=True:", differences)  # fmt: skip
        return now

    async def landed(self, checkpoint: Checkpoint, token: str, failed: BaseException, at: str) -> int | None:
        """After a failed write: its version if it has landed all the same (only the answer was lost), else None.

        A ConflictError doesn't tell: a driver may have sent the write twice, the second in conflict with the first. So the
        token in the record is compared. Raises RunFencedError where the run is somebody else's by now, and OutcomeUnknownError.
        """
        what = f"what {at.rpartition('/')[2]!r} has written (at {self.id + at!r})"
        found = await self._found({self.checkpoint.key, checkpoint.key}, failed, what)
        run, own = found.get(self.checkpoint.key), found.get(checkpoint.key)
        if run is None or execution_of(run) != self.owner:
            by = "it was removed" if run is None else f"epoch {_field(run, 'epoch')} owns it, this was {self.epoch}"
            raise RunFencedError(f"run {self.id!r} was taken over by another execution: {by}; nothing of this one landed "
                            "since") from failed  # fmt: skip
        if own is not None and _field(own, "owner") == token:
            return own.version
        if (own.version if own is not None else 0) != checkpoint.version:
            raise self._unknown(what, "an earlier try has landed in the meantime") from failed
        return None

    async def _found(self, keys: Iterable[str], failed: BaseException, what: str) -> dict[str, Entry]:
        """Look, a few times if need be, whether a failed write has landed. Raises OutcomeUnknownError where no look succeeds."""
        pauses = iter(PAUSES)
        while True:
            try:
                return await self.stack.read_many(keys)
            except Exception as error:
                pause = next(pauses, None)
                if pause is None:
                    if isinstance(failed, asyncio.CancelledError):
                        raise failed from error  # it ends the execution as well
                    raise self._unknown(what, f"looking for it failed too: {error}") from failed
            if self.loop:
                await asyncio.sleep(pause)
            else:
                time.sleep(pause)  # noqa: ASYNC251 - no event loop runs here

    def _unknown(self, what: str, why: str) -> OutcomeUnknownError:
        return OutcomeUnknownError(f"run {self.id!r}: whether {what} has landed is not known, since the store failed, and {why}. "
                              f"resume({self.id!r}) finds out, and goes on from there")  # fmt: skip

    # ------------------------------------------------------------ removing finished runs
    def finish(self, token: str, frames: Sequence[Frame], result: bytes) -> list[Change]:
        """The changes that record the end of the run."""
        changes: list[Change] = [Put(self.checkpoint.key, self.record(token, frames, "finished", result))]
        if (keep := self.graph.keep_finished) is not None:
            name = self.checkpoint.key.removeprefix(RUN)
            look = {"owner": token, "keep": keep, "is_seen": False}
            changes.append(Put(_look_key(self.stack.clock() + keep, name), look))
        return changes

    async def sweep(self) -> None:
        """Remove some of the finished runs whose `keep_finished` is over. What it leaves, the next run that ends does.

        No record of a run has a deadline: each client would judge it by its own clock, and one that is ahead would do a
        finished run again. A run is removed when two looks, of whatever clients, have each found that `keep_finished` has
        passed: the first look since the run's end, the second since the first. So a single wrong clock can't remove it early.
        """
        keys = self.stack.scan(ENDED)
        try:
            now, swept = self.stack.clock(), 0
            async for key in keys:
                if swept == SWEPT or _look_time(key) > now:
                    break
                # another client may be removing it, and a damaged note does no harm
                with suppress(ConflictError, CodecError):
                    await self._look_again(key, now)
                    swept += 1
        except Exception as error:  # noqa: BLE001 - the run has ended well, whatever becomes of others' records
            from pocket_plug.primitives.failures import log_failure

            log_failure(logging.WARNING, "removing finished runs failed; the next one that ends tries again", error)
        finally:
            if isinstance(keys, AsyncGenerator):
                await keys.aclose()

    async def _look_again(self, key: str, now: float) -> None:
        name = key.removeprefix(ENDED).partition(":")[2]
        run, part = RUN + name, f"{PART}{name}:"
        found = await self.stack.read_many((key, run))
        look, ended = found.get(key), found.get(run)
        if look is None:
            return
        keep = _field(look, "keep")
        if ended is None or _field(ended, "owner") != _field(look, "owner") or not isinstance(keep, int | float):
            await self.stack.write([Delete(key)], {key: look.version})  # it was removed by hand, and perhaps begun anew
        elif not _field(look, "is_seen"):
            seen = Put(_look_key(now + keep, name), {**look.value, "is_seen": True})
            await self.stack.write([Delete(key), seen], {key: look.version})
        else:
            doomed = [each async for each in self.stack.scan(part) if each != part + "start"]
            for at in range(0, len(doomed), CHUNK):
                await self.stack.write([Delete(each) for each in doomed[at : at + CHUNK]], {run: ended.version})
            # till the last write it is a finished run, with its result
            await self.stack.write([Delete(each) for each in (part + "start", run, key)], {run: ended.version})


def _look_key(time: float, name: str) -> str:
    return f"{ENDED}{min(time, 1e15):020.3f}:{name}"  # in the order of time


def _look_time(key: str) -> float:
    with suppress(ValueError):
        return float(key.removeprefix(ENDED).partition(":")[0])
    return 0.0  # not written by us; it sorts first, and is removed


def _plain(frame: Frame) -> dict[str, Any]:
    return {
        "node": frame.node,
        "value": frame.value,
        "visits": dict(frame.visits),
        "action": frame.action,
        "hooks": frame.hooks,
    }


# ---------------------------------------------------------------- the run
class DurableExecution(Execution):
    """An execution whose commits bring the run's checkpoint along; nested ones share its journal."""

    __slots__ = ("checkpoint", "current", "frame", "items", "journal", "level", "outer", "within")

    journal: Journal
    checkpoint: Checkpoint
    frame: Frame

    def __init__(self, graph: Graph[Any, Any], place: tuple[Stack, str], input: Any, pocket: RunHost, loop: bool,
                 threads: bool, parent: DurableExecution | None = None, run_id: str = "") -> None:  # fmt: skip
        super().__init__(graph, place, input, pocket, loop, threads, parent, run_id)
        self.outer = parent
        self.level = 0
        """How many graphs of this checkpoint it is nested in."""
        self.items: list[str] = []
        """The records of the items of the fan-out under way."""
        self.within = self.current = ""
        """Where its nodes are, and which visit of which node it is at: `/outer#1/inner#2`."""
        if parent is not None:
            self.journal, self.checkpoint = parent.journal, parent.checkpoint
            self.level, self.within = parent.level + 1, parent.current

    @property
    def fence(self) -> Mapping[str, int]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The run is still this execution's."""
        own = self.journal.checkpoint
        return {own.key: own.version}

    async def go(self, value: Any) -> Any:
        """Claim the run, and go on from where it was left; where it is finished, give the result."""
        if self.outer is None:
            result = await self.journal.claim(value)
            if result is not None:
                return default_codec.decode(result)
            self.steps = self.journal.steps
            self.run.resumed, self.run.carrier = self.checkpoint.is_old, self.journal.carrier
            if value is MISSING:
                begun = await self.stack.read(self.journal.part + "start")
                with suppress(CodecError):  # only who watches the run wants to know
                    self.run.input = default_codec.decode(begun.value["input"]) if begun is not None else None
        output = await super().go(value)
        if self.outer is None and self.journal.graph.keep_finished is not None:
            await self.journal.sweep()
        return output

    async def _walk(self, value: Any) -> Any:
        try:
            step, value, cancelled = await self._enter(value)
        except Exception as error:
            self.checkpoint.failed = error
            raise
        counter, yields, watched = self.outermost, self.loop, bool(self.observers)
        while step is not None:
            if cancelled is not None:
                raise cancelled
            counter.steps = steps = counter.steps + 1
            if steps > counter.max_steps:
                raise self.too_many(step)
            if yields:
                await counter.give_way()
            self._stand_at(self._visit_of(step, self.frame.visits.get(step.name, 0) + 1))
            step, value, cancelled = await (self.watch(step, value) if watched else self.visit(step, value, None))
        if self.outer is None and self.frame.hooks:  # the last node's are done with
            cancelled = await self._checkpointed(self._save(self.frame, "finished")) or cancelled
        if cancelled is not None:
            raise cancelled
        return value

    async def _enter(self, value: Any) -> Visited:
        """Where to begin: at the start, or where the checkpoint says."""
        checkpoint, start = self.checkpoint, self.plan.start
        if len(checkpoint.frames) <= self.level:
            assert self.outer is not None
            encoded = self.outer.frame.value or self.journal.encode(value, f"the input of graph {self.run.graph!r}")
            self.frame = Frame(start.name, encoded)
            return start, value, None
        self.frame = frame = checkpoint.frames[self.level]
        if self.outer is None and not checkpoint.is_old:
            return start, value, None
        self.visits = dict(frame.visits)
        self.left_by = frame.action
        value = default_codec.decode(frame.value)
        cancelled = None
        if frame.hooks:
            left = self.plan.named(frame.hooks)
            assert left is not None
            self._stand_at(self._visit_of(left, frame.visits.get(left.name, 1)))
            cancelled = await self._clean_up(left, None, ("on_success", "on_complete"), value)
        if frame.node is None:
            return None, value, cancelled
        step = self.plan.named(frame.node)
        if step is None:  # in a graph that an item goes through: the others were looked at before
            raise RunChangedError(f"run {self.journal.id!r} stands at node {frame.node!r} in {self.within!r}, which graph "
                             f"{self.run.graph!r} no longer has; go on with the graph that it was begun by")  # fmt: skip
        return step, value, cancelled

    def visit_of(self, step: Step) -> int:
        """As the checkpoint has it."""
        return self.frame.visits.get(step.name, 0) + 1

    def _visit_of(self, step: Step, visit: int) -> str:
        return f"{self.within}/{_escaped(step.name, '/#[')}#{visit}"

    def _stand_at(self, current: str) -> None:
        self.current = current
        _key.set(_escaped(self.journal.id, "/") + current)

    async def visit(self, step: Step, value: Any, call: NodeCall | None) -> Visited:
        """As any run's; where one that goes on does so is told of."""
        if self.journal.is_to_tell and len(self.checkpoint.frames) <= self.level + 1:
            self.journal.is_to_tell = False
            self.event("resume", call, {"epoch": self.journal.epoch})
        return await super().visit(step, value, call)

    # ------------------------------------------------------------ commits
    async def _land(self, step: Step, target: Step | None, output: Any,
                    commit: Commit | None) -> asyncio.CancelledError | None:  # fmt: skip
        changes, expect = commit if commit is not None else ((), NO_EXPECTATIONS)
        what = f"what node {step.name!r} left with" if target is None else f"the input of node {target.name!r}"
        visits = {**self.frame.visits, step.name: self.frame.visits.get(step.name, 0) + 1}
        try:
            frame = Frame(target.name if target is not None else None, self.journal.encode(output, what), visits,
                          self.left_by if target is None else DEFAULT, step.name if step.hooks else "")  # fmt: skip
            ends = target is None and self.outer is None and not frame.hooks
            self.stack.gates.refuse_to_overtake(expect)
            if step.kind == "fan_out":
                changes = [*changes, *(Delete(key) for key in self.items)]
            cancelled = await self._checkpointed(
                self._save(frame, "finished" if ends else "running", changes, expect, leaving=True)
            )
        except Exception as error:
            self.checkpoint.failed = error
            raise
        self.items = []
        return cancelled

    async def _checkpointed(self, saving: Coroutine[Any, Any, None]) -> asyncio.CancelledError | None:
        """`_commit` of a checkpoint, whose write may itself have landed and been cancelled."""
        cancelled = await self._commit(saving)
        late, self.journal.cancelled = self.journal.cancelled, None
        return cancelled or late

    def _frames(self, last: Frame) -> list[Frame]:
        return [*(self.outer._frames(self.outer.frame) if self.outer is not None and self.level else ()), last]

    async def _save(self, frame: Frame, status: Status = "running", changes: Sequence[Change] = (),
                    expect: Mapping[str, int] = NO_EXPECTATIONS, leaving: bool = False) -> None:  # fmt: skip
        """Write the checkpoint, with what a node has changed."""
        journal, checkpoint = self.journal, self.checkpoint
        frames, commits, token = self._frames(frame), checkpoint.commits + 1, journal.token()
        expect = {**expect, **self.fence, checkpoint.key: checkpoint.version}
        if checkpoint is not journal.checkpoint:
            record = {"owner": token, "commits": commits, "frames": [_plain(each) for each in frames]}
            records: list[Change] = [Put(checkpoint.key, record)]
        else:
            journal.steps = self.outermost.steps - self.level  # the nodes around are entered again
            if status == "finished":
                records = journal.finish(token, frames, frame.value)
            else:
                records = [Put(checkpoint.key, journal.record(token, frames, status))]
            if leaving:
                passed = {"node": self.current, "next": frame.node, "at": self.stack.clock()}
                records.append(Put(f"{journal.part}path:{commits:09}", passed))
        try:
            version = await self.stack.write([*changes, *records], expect)
        except (Exception, asyncio.CancelledError) as error:
            landed = await journal.landed(checkpoint, token, error, self.current)
            if landed is None:
                raise
            version = landed
            if isinstance(error, asyncio.CancelledError):
                journal.cancelled = error
        checkpoint.version, checkpoint.commits, checkpoint.frames, checkpoint.is_old = version, commits, frames, False
        checkpoint.failed = None  # it holds frames, and with them this execution
        self.frame = frame

    async def _clean_up(self, step: Step, call: NodeCall | None, hooks: tuple[str, str],
                        outcome: Any) -> asyncio.CancelledError | None:  # fmt: skip
        """As in any run. If it isn't known whether the node has failed, no hook is called: the next execution does."""
        if isinstance(outcome, OutcomeUnknownError):
            return None
        return await super()._clean_up(step, call, hooks, outcome)

    # ------------------------------------------------------------ items and questions
    def in_order(self, items: Iterable[Any]) -> Iterable[Any]:
        """A set's by their bytes: another process must find the same one at each position."""
        return sorted(items, key=_payload) if isinstance(items, Set) else items

    async def item(self, step: Step, item: Any, position: int) -> Visited:
        """Take an item through its node, under a checkpoint of its own; not again where that is done."""
        current = f"{self.current}[{position}]"
        checkpoint = Checkpoint(f"{self.journal.part}item:{_escaped(current, ':')}", is_old=self.checkpoint.is_old)
        self.items.append(checkpoint.key)
        own = copy.copy(self)
        own.checkpoint, own.level, own.outer, own.items = checkpoint, 0, self, []
        of_item: Exception | None = None
        try:
            if checkpoint.is_old and (entry := await self.stack.read(checkpoint.key)) is not None:
                checkpoint.load(entry)
            own.frame = checkpoint.frames[0] if checkpoint.frames else Frame(step.name, b"")
            own._stand_at(current)
            if own.frame.node is not None:
                try:
                    visited = await super(DurableExecution, own).item(step, item, position)
                except Exception as error:
                    of_item = error if error is not checkpoint.failed else None
                    raise
            else:
                visited = None, default_codec.decode(own.frame.value), None
                if own.frame.hooks:
                    hooks = ("on_success", "on_complete")
                    visited = *visited[:2], await own._clean_up(step, None, hooks, visited[1])
            if step.hooks and own.frame.hooks:
                cancelled = await own._checkpointed(own._save(Frame(None, own.frame.value)))
                visited = visited[0], visited[1], visited[2] or cancelled
        except Exception as error:
            if error is not of_item:
                self.journal.unrecorded.append(error)
            raise
        return visited

    def must_end(self, error: Exception) -> bool:
        """Is this an error of the run's store, not of the item? Then the item has no result yet, and a resume does it.

        So it is for errors of recording an item or reading its record, and of the run's store in the item's phases.
        """
        return (
            isinstance(error, RunFencedError)
            or any(error is each for each in self.journal.unrecorded)
            or (isinstance(error, StoreError) and not isinstance(error, TransactionError) and error.stack is self.stack)
        )

    def collected(self, error: Exception) -> Exception:
        """What can be stored of it; handed on at once too, so that a resume makes no difference."""
        return storable(error)

    async def ask(self, step: AskStep, value: Any) -> Answered[Any, Any]:
        """The answer, if it was given; else suspend the run."""
        journal = self.journal
        if journal.is_answered and journal.answer is not None:
            journal.is_answered = False
            return Answered(value, default_codec.decode(journal.answer))
        question = step.question(value)
        journal.question = journal.encode(question, f"the question of node {step.name!r}")
        cancelled = await self._checkpointed(self._save(self.frame, "suspended"))
        if cancelled is not None:
            raise cancelled
        raise RunSuspendedError(journal.id, question)
