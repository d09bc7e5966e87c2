"""One execution's hold on a durable run: its checkpoint, and the tokens by which it knows its own writes.

Each commit expects the version that the one before has got, so whoever was overtaken can write nothing any more. Each write has
a token of its own, so that after a failure the record tells whether this very write has landed.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pocket_plug.codec import default_codec
from pocket_plug.errors import (
    CodecError,
    ConflictError,
    OutcomeUnknownError,
    RunCancelledError,
    RunFencedError,
    RunSuspendedError,
)
from pocket_plug.graph.nodes.node import AnyNode
from pocket_plug.graph.observing.views import RunNotice
from pocket_plug.graph.planning.plan import PlannedGraph
from pocket_plug.graph.running.context import run_ids
from pocket_plug.graph.running.protocols import Running
from pocket_plug.primitives.failures import log_failure
from pocket_plug.primitives.waiting import pause as wait
from pocket_plug.store.backend import Change, Delete, Entry, Put
from pocket_plug.store.stack import Stack
from pocket_plug.store.store import MISSING

from .executions import execution_key
from .judging import Judge
from .processes import this_process
from .records import (
    FORMAT,
    RUN,
    Checkpoint,
    Frame,
    Record,
    Status,
    execution_of,
    field_of,
    keys_of,
    last_write,
    look_key,
    plain,
)
from .states import LEASE, State, failure_of, noticed, plain_state, read_state, state_key
from .waits import Found

PAUSES: Sequence[float] = (0.05, 0.5)
"""Seconds between the tries to find out whether a failed write has landed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a durable run."""

    run_id: str
    answer: object = MISSING
    question: str | AnyNode | None = None
    """What the answer is for: the question's id, or the node that asks."""
    allow_changed: bool = False
    takeover: bool = False
    """Is the run to be taken from an execution that is at it?"""
    lease: float = LEASE
    seen: Mapping[str, int] = field(default_factory=dict[str, int])
    """The versions at which an observer has found the run stalled: it is taken over if nothing has moved since."""
    max_tries: float = math.inf
    """After so many executions without progress the run has failed."""


class RunReleasedError(RunSuspendedError):
    """An execution has ended between two nodes, for others to go on: its worker stops. Nothing has failed."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id, {}, 0.0)
        self.args = (f"run {run_id!r} was released: its worker stops, and another one resumes it",)


class Journal:
    """One execution's hold on a run: its checkpoint, and the tokens by which it knows its own writes."""

    def __init__(self, wanted: Wanted, graph: PlannedGraph, place: tuple[Stack, str]) -> None:
        self.wanted, self.id, self.graph = wanted, wanted.run_id, graph
        self.stack, self.prefix = place[0], str(place[1])
        self.judge = Judge(graph, place)
        key, self.part = keys_of(self.id)
        self.name = key.removeprefix(RUN)
        self.checkpoint = Checkpoint(key)
        self.state_key, self.state_version = "", 0
        """Where the run's state stands while this execution is at it, and the version that was last seen of it."""
        self.owner = run_ids.next()
        self.writes = 0
        self.epoch = 1
        self.steps = 0
        self.started = self.stack.clock()
        self.carrier: dict[str, str] = {}
        self.unrecorded: list[Exception] = []
        """Errors of recording items. They are not the items' own, so they are never collected."""
        self.is_to_tell = False
        """Does the run go on, and no observer was notified yet?"""
        self.cancelled: asyncio.CancelledError | None = None
        """A cancellation that came out of a write which has landed."""
        self.waited: set[str] = set()
        """Where this execution has come to what is waited for, by the keys of the records."""
        self.landed_record: Record = {}
        """The run's record as this execution has last written it."""
        self.lease = wanted.lease
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._is_interrupted = False
        self.is_cancelled = False
        """Was the run cancelled, as far as this execution knows?"""
        self.status: Status = "running"
        """As this execution has recorded the run. Once it is anything else, nothing of how it ends is recorded any more."""
        self.ended: RunNotice | None = None
        """What observers are to be told of that."""
        self.is_released = False
        """Is the run to be left to others, once no node is at work? Set by whatever thread."""

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
            "result": result,
            "carrier": dict(self.carrier),
        }

    # ------------------------------------------------------------ the run's state
    @property
    def fence(self) -> Mapping[str, int]:
        """What every write expects: the run is still this execution's, and nobody has left word for it."""
        return {self.checkpoint.key: self.checkpoint.version, self.state_key: self.state_version}

    def come_to(self, status: Status, **facts: Any) -> list[Change]:
        """The changes by which the run leaves `running` for another state."""
        left = State(self.stack.clock(), **facts)
        there = state_key(status, self.graph.name, self.started, self.name)
        return [Delete(self.state_key), Put(there, plain_state(left))]

    def wakes(self, waits: Iterable[Found]) -> float | None:
        """When the run goes on by itself that waits for these: once the first has its time, or its graph's time-out is over."""
        times = [each.wait.until for each in waits]
        times.append(None if self.graph.timeout is None else self.started + self.graph.timeout)
        return min((time for time in times if time is not None), default=None)

    def take_word(self, entry: Entry | None) -> bool:
        """Take over what stands in the run's state now. Is it that the run is to end, and that is news?"""
        self.state_version = entry.version if entry is not None else 0
        if entry is None or not read_state(self.state_key, entry).cancelled or self.is_cancelled:
            return False
        self.is_cancelled = True
        return True

    @property
    def moves(self) -> int:
        """Another number once this execution has moved its run."""
        return self.checkpoint.version

    def listen(self, run: Running) -> None:
        """From now on the run can be cancelled while a node is at work: in a loop, as asyncio cancels the task."""
        if run.loop:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()

    def hear(self, entry: Entry | None) -> None:
        """Called by whatever thread: this is what stands in the run's state now."""
        if self._loop is None:
            self.take_word(entry)  # the next commit finds it, too
        else:
            with suppress(RuntimeError):  # the loop has ended, and with it the run
                self._loop.call_soon_threadsafe(self._hear, entry)

    def _hear(self, entry: Entry | None) -> None:
        is_at_work = self.owner in this_process().held and not self._is_interrupted
        if is_at_work and self.take_word(entry) and self._task is not None:
            self._is_interrupted = True
            # counted only now: before Python 3.13 a TaskGroup that has failed may leave one
            self._cancelling = self._task.cancelling()
            self._task.cancel()

    def end_interrupt(self) -> bool:
        """Take back the task's cancellation, if there was one for the run's. Was that the only one?"""
        if not self._is_interrupted or self._task is None:
            return False
        self._is_interrupted = False
        return self._task.uncancel() <= self._cancelling

    def cancelled_error(self) -> RunCancelledError:
        """What an execution ends with once its run was cancelled."""
        return RunCancelledError(
            f"run {self.id!r} was cancelled; what its nodes had written stays. To begin it anew give it another "
            "run_id, or remove it"
        )

    async def record_end(self, error: BaseException) -> None:
        """Record that the run was cancelled, released or has failed. If that can't be written, it is said: the run is stalled.

        Then the error is raised of a run that was to be released, since nobody has released it.
        """
        left_as: Status = "pending" if isinstance(error, RunReleasedError) else "failed"
        try:
            while True:
                status: Status = "cancelled" if self.is_cancelled else left_as
                failure = failure_of(error, self.stack.clock(), self.carrier) if status == "failed" else None
                token = self.token()
                left = {**self.landed_record, "owner": token, "status": status, "updated": self.stack.clock()}
                left["carrier"] = dict(self.carrier)
                record = Put(self.checkpoint.key, left)
                try:
                    await self.stack.write([record, *self.come_to(status, failure=failure)], self.fence)
                    break
                except Exception as failed:
                    if await self.landed(self.checkpoint, token, failed, "", True) is not None:
                        break
                    if not isinstance(failed, ConflictError):
                        raise
            self.status = status
            if status in ("failed", "cancelled"):
                about = {} if failure is None else noticed(failure)
                self.ended = RunNotice(status, self.id, self.graph.name, about)
        except RunFencedError:  # it is another execution's, which goes on with it
            if isinstance(error, RunReleasedError):
                raise  # so it wasn't left to others by this one
        except Exception as failed:
            log_failure(logging.WARNING, f"recording that run {self.id!r} has ended failed; it looks stalled", failed)
            if isinstance(error, RunReleasedError):
                raise

    async def landed(
        self, checkpoint: Checkpoint, token: str, failed: BaseException, at: str, leaves: bool
    ) -> int | None:
        """After a failed write: its version if it has landed all the same (only the answer was lost), else None.

        A ConflictError doesn't tell: a driver may have sent the write twice, the second in conflict with the first. So the
        token in the record is compared. Of a write by which this execution `leaves` the run, others may have gone on since: then
        the version is the one before, with which nothing more can be written. Raises RunFencedError where the run is somebody
        else's by now, and OutcomeUnknownError.
        """
        what = f"what {at.rpartition('/')[2]!r} has written (at {self.id + at!r})"
        found = await self.found({self.checkpoint.key, checkpoint.key, self.state_key}, failed, what)
        if leaves and await self._was_left_by(token, found.get(self.checkpoint.key), failed, what):
            return checkpoint.version
        self.check_owner(found, failed)
        own = found.get(checkpoint.key)
        if own is not None and field_of(own, "owner") == token:
            return own.version
        if (own.version if own is not None else 0) != checkpoint.version:
            raise self._unknown(what, "an earlier try has landed in the meantime") from failed
        self.take_word(found.get(self.state_key))
        return None

    async def _was_left_by(self, token: str, run: Entry | None, failed: BaseException, what: str) -> bool:
        """Was this write the last one of this execution, before somebody else moved the run or went on with it?"""
        if run is None or execution_of(run) in (None, self.owner):
            return False
        if field_of(run, "epoch") == self.epoch:  # an operator has moved it
            return last_write(run.value) == token
        key = execution_key(self.part, self.epoch + 1)
        note = (await self.found((key,), failed, what)).get(key)
        former: Mapping[str, Any] = (field_of(note, "former") if note is not None else None) or {}
        return former.get("write") == token

    def check_owner(self, found: Mapping[str, Entry], failed: BaseException | None = None) -> None:
        """Raise RunFencedError if, by what was found, the run is somebody else's by now."""
        run = found.get(self.checkpoint.key)
        if run is None or execution_of(run) != self.owner:
            by = "it was removed" if run is None else f"epoch {field_of(run, 'epoch')} owns it, this was {self.epoch}"
            raise RunFencedError(
                f"run {self.id!r} was taken over by another execution: {by}; nothing of this one landed since"
            ) from failed

    async def found(self, keys: Iterable[str], failed: BaseException, what: str) -> dict[str, Entry]:
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
        if (keep := self.graph.keep_finished) is None:
            return [*changes, *self.come_to("finished")]
        look, look_at = {"owner": token, "keep": keep, "is_seen": False}, self.stack.clock() + keep
        return [*changes, *self.come_to("finished", look_at=look_at), Put(look_key(look_at, self.name), look)]
