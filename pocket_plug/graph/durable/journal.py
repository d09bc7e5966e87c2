"""One execution's hold on a durable run: its checkpoint, and the tokens by which it knows its own writes.

Each commit expects the version that the one before has got, so whoever was overtaken can write nothing any more. Each write has
a token of its own, so that after a failure the record tells whether this very write has landed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from pocket_plug.codec import default_codec, payload_of
from pocket_plug.errors import (
    CodecError,
    ConflictError,
    CorruptRecordError,
    InputError,
    OutcomeUnknownError,
    RunFencedError,
    RunMismatchError,
    RunSuspendedError,
    UnknownRunError,
)
from pocket_plug.graph.ask import AskStep
from pocket_plug.graph.context import run_ids
from pocket_plug.graph.plan import PlannedGraph
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.typechecks import type_name
from pocket_plug.primitives.waiting import pause as wait
from pocket_plug.store.backend import Change, Entry, Put
from pocket_plug.store.stack import Stack
from pocket_plug.store.store import MISSING

from .judging import Judge, Kept
from .records import (
    FORM,
    FORMAT,
    RUN,
    RUN_FIELDS,
    Checkpoint,
    Frame,
    Record,
    Status,
    check,
    check_start,
    execution_of,
    field_of,
    keys_of,
    look_key,
    plain,
)
from .standing import step_at

PAUSES: Sequence[float] = (0.05, 0.5)
"""Seconds between the tries to find out whether a failed write has landed."""


class Journal:
    """One execution's hold on a run: its checkpoint, and the tokens by which it knows its own writes."""

    def __init__(
        self, run_id: str, answer: object, allow_changed: bool, graph: PlannedGraph, place: tuple[Stack, str]
    ) -> None:
        self.id, self.graph = run_id, graph
        self.stack, self.prefix = place[0], str(place[1])
        self.given, self.allow_changed = answer, allow_changed
        self.judge = Judge(graph, place)
        key, self.part = keys_of(self.id)
        self.checkpoint = Checkpoint(key)
        self.owner = run_ids.next()
        self.writes = 0
        self.epoch = 1
        self.steps = 0
        self.started = self.stack.clock()
        self.question: bytes | None = None
        self.answer: bytes | None = None
        self.carrier: dict[str, str] = {}
        self.unrecorded: list[Exception] = []
        """Errors of recording items. They are not the items' own, so they are never collected."""
        self.is_to_tell = False
        """Does the run go on, and no observer was notified yet?"""
        self.cancelled: asyncio.CancelledError | None = None
        """A cancellation that came out of a write which has landed."""
        self.is_answered = False
        """Has an answer been given that the node has not taken yet?"""

    def encode(self, value: object, what: str) -> bytes:
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
    ) -> Record:
        """The run's checkpoint, as it is stored."""
        return {
            "format": FORMAT,
            "status": status,
            "graph": self.graph.name,
            "epoch": self.epoch,
            "owner": token,
            "commits": self.checkpoint.commits + 1,
            "steps": self.steps,
            "started": self.started,
            "updated": self.stack.clock(),
            "frames": [plain(frame) for frame in frames],
            "question": self.question,
            "answer": self.answer,
            "is_answered": self.is_answered,
            "result": result,
            "carrier": dict(self.carrier),
        }

    async def claim(self, value: object) -> bytes | None:
        """Make the run this execution's own; give the result where it has one already."""
        checkpoint, start = self.checkpoint, self.part + "start"
        while True:
            found = await self.stack.read_many((checkpoint.key, start))
            entry = found.get(checkpoint.key)
            changes: list[Change] = []
            expect = {checkpoint.key: entry.version if entry else 0}
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
                check(checkpoint.key, entry.value, RUN_FIELDS)
                if begun is None:
                    raise CorruptRecordError(f"run {self.id!r} has lost its record {start!r}; it can only be removed")
                check_start(start, begun.value)
                self._refuse_another(begun.value, value)
                checkpoint.load(entry)
                if entry.value["status"] != "finished":
                    going = await self.judge.going_on(
                        self.stack,
                        Kept(self.id, self.part, entry.value, begun.value, checkpoint.frames),
                        self.allow_changed,
                    )
                    checkpoint.frames = going.frames
                    changes.extend(going.changes)
                    expect.update(going.expect)
                if (result := self._settled(entry)) is not None:
                    return result
            token = self.token()
            record = self.record(token, checkpoint.frames)
            changes.append(Put(checkpoint.key, record))
            try:
                checkpoint.version = await self.stack.write(changes, expect)
            except Exception as error:
                now = (await self._found((checkpoint.key,), error, "the start of this execution")).get(checkpoint.key)
                if now is None or field_of(now, "owner") != token:
                    if isinstance(error, ConflictError):
                        continue  # another execution was faster: look again
                    raise
                checkpoint.version = now.version
            checkpoint.commits = record["commits"]
            checkpoint.is_old = self.is_to_tell = entry is not None
            return None

    def _start(self, key: str, encoded: bytes) -> Put:
        return Put(
            key,
            {
                "graph": self.graph.name,
                "scope": self.prefix,
                "shape": self.judge.text,
                "form": FORM,
                "version": self.graph.version,
                "input": encoded,
                "started": self.started,
            },
        )

    def _refuse_another(self, start: Record, value: object) -> None:
        if (start["graph"], start["scope"]) != (self.graph.name, self.prefix):
            raise RunMismatchError(
                f"run {self.id!r} is one of graph {start['graph']!r} in scope {start['scope']!r}, not of "
                f"{self.graph.name!r} in {self.prefix!r}; give this one another run_id"
            )
        if value is not MISSING and not self._same(start["input"], value):
            raise RunMismatchError(
                f"run {self.id!r} was begun with another input than this {summary(value)}; give this another "
                "run_id, or go on with resume(run_id)"
            )

    def _settled(self, entry: Entry) -> bytes | None:
        """Take over what is known of a run; give its result where it is finished, raise where it waits."""
        record = entry.value
        self.started, self.epoch, self.steps = record["started"], record["epoch"] + 1, record["steps"]
        self.question, self.answer, self.is_answered = record["question"], record["answer"], record["is_answered"]
        self.carrier = dict(record["carrier"])
        answer = self.given
        if record["status"] == "suspended":
            if answer is MISSING:
                raise RunSuspendedError(self.id, default_codec.decode(record["question"]))
            self._take(answer)
        elif answer is not MISSING and (self.answer is None or not self._same(self.answer, answer)):
            raise RunMismatchError(
                f"run {self.id!r} waits for no answer: it is {record['status']}, and {summary(answer)} is "
                "not what it was last given"
            )
        return record["result"] if record["status"] == "finished" else None

    def _take(self, answer: object) -> None:
        step = step_at(self.graph.plan, self.checkpoint.frames)
        if isinstance(step, AskStep) and not step.accepts(answer):
            raise InputError(
                f"node {step.name!r} of graph {self.graph.name!r} asks for {type_name(step.answer_type)}, "
                f"not {type(answer).__name__}; run {self.id!r} still waits"
            )
        self.answer, self.is_answered = self.encode(answer, "the answer"), True

    def _same(self, encoded: bytes, value: object) -> bool:
        """Is it the value that was encoded? The order of a set's members is another one in each process."""
        other = self.encode(value, "the input")
        if other == encoded or sorted(payload_of(other)) != sorted(payload_of(encoded)):
            return other == encoded
        try:
            return bool(default_codec.decode(encoded) == value)
        except Exception:  # noqa: BLE001 - an array, say, that is neither true nor false
            return False

    async def landed(self, checkpoint: Checkpoint, token: str, failed: BaseException, at: str) -> int | None:
        """After a failed write: its version if it has landed all the same (only the answer was lost), else None.

        A ConflictError doesn't tell: a driver may have sent the write twice, the second in conflict with the first. So the
        token in the record is compared. Raises RunFencedError where the run is somebody else's by now, and OutcomeUnknownError.
        """
        what = f"what {at.rpartition('/')[2]!r} has written (at {self.id + at!r})"
        found = await self._found({self.checkpoint.key, checkpoint.key}, failed, what)
        run, own = found.get(self.checkpoint.key), found.get(checkpoint.key)
        if run is None or execution_of(run) != self.owner:
            by = "it was removed" if run is None else f"epoch {field_of(run, 'epoch')} owns it, this was {self.epoch}"
            raise RunFencedError(
                f"run {self.id!r} was taken over by another execution: {by}; nothing of this one landed since"
            ) from failed
        if own is not None and field_of(own, "owner") == token:
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
            await wait(pause)

    def _unknown(self, what: str, why: str) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"run {self.id!r}: whether {what} has landed is not known, since the store failed, and {why}. "
            f"resume({self.id!r}) finds out, and goes on from there"
        )

    def finish(self, token: str, frames: Sequence[Frame], result: bytes) -> list[Change]:
        """The changes that record the end of the run."""
        changes: list[Change] = [Put(self.checkpoint.key, self.record(token, frames, "finished", result))]
        if (keep := self.graph.keep_finished) is not None:
            name = self.checkpoint.key.removeprefix(RUN)
            look = {"owner": token, "keep": keep, "is_seen": False}
            changes.append(Put(look_key(self.stack.clock() + keep, name), look))
        return changes
