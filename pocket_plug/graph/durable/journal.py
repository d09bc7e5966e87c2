"""The journal of one execution of a durable run: its checkpoint, and the tokens by which it recognizes its own writes.

Each commit expects the version of the commit before, so an execution whose run was taken over can't write any more. Each write
has its own token, so that after a failure the record shows whether this write was stored.
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
from pocket_plug.store.stack import StorePlace
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
from .states import LEASE, State, failure_of, notice_attributes, put_state, read_state, state_key
from .waits import PlacedWait

PAUSES: Sequence[float] = (0.05, 0.5)
"""Seconds between the tries to find out whether a failed write was stored."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller wants of a durable run."""

    run_id: str
    answer: object = MISSING
    question: str | AnyNode | None = None
    """The question that is answered: its id, or the node that asks."""
    allow_changed: bool = False
    takeover: bool = False
    """Take the run over even if another execution may still be alive?"""
    lease: float = LEASE
    stalled_at: Mapping[str, int] = field(default_factory=dict[str, int])
    """The versions at which a worker has found the run stalled. It is taken over if they are unchanged."""
    max_tries: float = math.inf
    """After so many executions without progress, the run fails."""
    in_worker: bool = False
    """Does a worker execute the run?"""


class RunReleasedError(RunSuspendedError):
    """Ends an execution between two nodes, since its worker stops; another one resumes the run. Nothing has failed."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id, {}, 0.0)
        self.args = (f"run {run_id!r} was released: its worker stops, and another worker resumes it",)


class WorkingTask:
    """The task of an execution, which a request to cancel the run cancels while a node works."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.loop = task.get_loop()
        self.is_interrupted = False
        self._task, self._cancelled = task, 0

    def interrupt(self) -> None:
        """Cancel it."""
        self.is_interrupted = True
        # Read only now: before Python 3.13, a TaskGroup that has failed may leave a cancellation that isn't taken back.
        self._cancelled = self._task.cancelling()
        self._task.cancel()

    def end_interrupt(self) -> bool:
        """Take back this cancellation, if there is one. Was it the only one?"""
        if not self.is_interrupted:
            return False
        self.is_interrupted = False
        return self._task.uncancel() <= self._cancelled


class Journal:
    """The journal of one execution of a durable run: its checkpoint, and the tokens by which it recognizes its own writes."""

    def __init__(self, wanted: Wanted, graph: PlannedGraph, place: StorePlace) -> None:
        self.wanted, self.id, self.graph = wanted, wanted.run_id, graph
        self.stack, prefix = place
        self.prefix = str(prefix)
        self.other_scope: str | None = None
        """The scope of the run, if a claim has found that it isn't this one."""
        self.judge = Judge(graph, place)
        key, self.part = keys_of(self.id)
        self.name = key.removeprefix(RUN)
        self.checkpoint = Checkpoint(key)
        self.state_key, self.state_version = "", 0
        """The key of the run's state while this execution owns the run, and the last known version of that entry."""
        self.owner = run_ids.next()
        self.writes = 0
        self.epoch = 1
        self.steps = 0
        self.tries = 0
        """How many executions have begun without progress, this one included; 0 once this one has made some."""
        self.started = self.stack.clock()
        self.carrier: dict[str, str] = {}
        self.unrecorded: list[Exception] = []
        """Errors of recording items. They are no errors of the items themselves, so they are never collected."""
        self.resume_unreported = False
        """Is this a resume of which observers were not notified yet?"""
        self.late_cancellation: asyncio.CancelledError | None = None
        """A cancellation that a write raised although it was stored."""
        self.waited: set[str] = set()
        """The keys of the waits that this execution has reached."""
        self.landed_record: Record = {}
        """The run's record as this execution has written it last."""
        self.lease = wanted.lease
        self._task: WorkingTask | None = None
        self.is_cancelled = False
        """Has this execution seen a request to cancel the run?"""
        self.status: Status = "running"
        """The state that this execution has recorded. After any other than "running", it doesn't record its end any more."""
        self.ended: RunNotice | None = None
        """The notice about the end that was recorded, for plugins."""
        self.is_released = False
        """Shall the run be released after the current node? Set in any thread."""
        self.leaves = asyncio.Event()
        """Set after that, on the worker's event loop: a node that waits for its next attempt doesn't wait any longer."""

    def encode(self, value: object, what: str) -> bytes:
        """Encode a value. `what` describes it in the CodecError for a value that can't be stored."""
        try:
            return default_codec.encode(value)
        except CodecError as error:
            raise type(error)(f"{what} can't be stored for run {self.id!r}: {error}") from error

    def token(self) -> str:
        """A new, unique token for the next write."""
        self.writes += 1
        return f"{self.owner}.{self.writes}"

    def record(
        self, token: str, frames: Sequence[Frame], status: Status = "running", result: bytes | None = None
    ) -> Record:
        """The run's record with a position, as it is stored."""
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
        """The versions that each write expects: this execution still owns the run, and the state has no new request."""
        return {self.checkpoint.key: self.checkpoint.version, self.state_key: self.state_version}

    def changes_to(self, status: Status, **facts: Any) -> list[Change]:
        """The changes by which the run leaves `running` for another state."""
        state_at = state_key(status, self.graph.name, self.started, self.name)
        return [Delete(self.state_key), put_state(state_at, State(self.stack.clock(), **facts))]

    def wakes(self, waits: Iterable[PlacedWait]) -> float | None:
        """When a run that waits for these continues by itself: at the earliest of their times and the graph's timeout."""
        times = [each.wait.until for each in waits]
        times.append(None if self.graph.timeout is None else self.started + self.graph.timeout)
        return min((time for time in times if time is not None), default=None)

    def read_request(self, entry: Entry | None) -> bool:
        """Read the run's current state. Returns True if it has a request to cancel the run that was not seen before."""
        self.state_version = entry.version if entry is not None else 0
        if entry is None or not read_state(self.state_key, entry).cancelled or self.is_cancelled:
            return False
        self.is_cancelled = True
        return True

    @property
    def moves(self) -> int:
        """A number that changes with each commit."""
        return self.checkpoint.version

    def listen(self, run: Running) -> None:
        """From now on, a request to cancel the run cancels its task while a node works, if the run has an event loop."""
        if run.loop and (task := asyncio.current_task()) is not None:
            self._task = WorkingTask(task)

    def receive_state(self, entry: Entry | None) -> None:
        """Receive the run's current state, which may contain a request to cancel. Called in any thread."""
        if self._task is None:
            self.read_request(entry)  # the next commit finds it, too
        else:
            with suppress(RuntimeError):  # the loop is closed, so the run has ended
                self._task.loop.call_soon_threadsafe(self._interrupt_if_asked, self._task, entry)

    def _interrupt_if_asked(self, task: WorkingTask, entry: Entry | None) -> None:
        if self.owner in this_process().held and not task.is_interrupted and self.read_request(entry):
            task.interrupt()

    def end_interrupt(self) -> bool:
        """Take back the cancellation of the task, if a request to cancel the run has caused it. Was that the only one?"""
        return self._task is not None and self._task.end_interrupt()

    def cancelled_error(self) -> RunCancelledError:
        """The error that ends an execution of a cancelled run."""
        return RunCancelledError(
            f"run {self.id!r} was cancelled; what its nodes have written is kept. To start it again, use another "
            "run_id, or remove the run"
        )

    async def record_end(self, error: BaseException, left_as: Status) -> None:
        """Record that the run was cancelled, is pending again or has failed.

        If that can't be written, a warning is logged, and the run looks stalled. For a run that was to be released, the error of
        the write is raised as well.
        """
        try:
            while not await self._put_end(error, "cancelled" if self.is_cancelled else left_as):
                pass  # the run's state has changed: it may have been cancelled
        except RunFencedError:  # another execution owns the run, and continues it
            if isinstance(error, RunReleasedError):
                raise  # this execution hasn't released it
        except Exception as failed:
            log_failure(logging.WARNING, f"recording the end of run {self.id!r} failed; the run looks stalled", failed)
            if isinstance(error, RunReleasedError):
                raise

    async def _put_end(self, error: BaseException, status: Status) -> bool:
        """Record that this error has ended the run, or only this execution; False after a conflict about the run's state."""
        token, now = self.token(), self.stack.clock()
        failure = failure_of(error, now, self.carrier) if status == "failed" else None
        left = {**self.landed_record, "owner": token, "status": status, "updated": now, "carrier": dict(self.carrier)}
        facts: dict[str, Any] = {"failure": failure}
        if status == "pending" and not isinstance(error, RunReleasedError):
            facts |= {"tries": self.tries, "commits": left["commits"]}  # the next execution goes on counting
        try:
            await self.stack.write([Put(self.checkpoint.key, left), *self.changes_to(status, **facts)], self.fence)
        except Exception as failed:
            if await self.landed(self.checkpoint, token, failed, "", True) is None:
                if isinstance(failed, ConflictError):
                    return False
                raise
        self.status = status
        if status in ("failed", "cancelled"):
            about = {} if failure is None else notice_attributes(failure)
            self.ended = RunNotice(status, self.id, self.graph.name, about)
        return True

    async def landed(
        self, checkpoint: Checkpoint, token: str, failed: BaseException, at: str, leaves: bool
    ) -> int | None:
        """After a failed write: its version if it was stored nevertheless, so that only the answer was lost; else None.

        A ConflictError doesn't show that it wasn't stored: a driver may have sent the write twice, and the second conflicts with
        the first. So the token in the record is compared. If the write was to leave the run (`leaves`), others may have changed
        it since: then the old version is returned, and a further write conflicts. Raises RunFencedError if another execution owns
        the run by now, and OutcomeUnknownError.
        """
        what = f"the write of {at.rpartition('/')[2]!r} (at {self.id + at!r})"
        found = await self.found({self.checkpoint.key, checkpoint.key, self.state_key}, failed, what)
        if leaves and await self._was_left_by(token, found.get(self.checkpoint.key), failed, what):
            return checkpoint.version
        self.check_owner(found, failed)
        own = found.get(checkpoint.key)
        if own is not None and field_of(own, "owner") == token:
            return own.version
        if (own.version if own is not None else 0) != checkpoint.version:
            raise self._unknown(what, "an earlier try was stored in the meantime") from failed
        self.read_request(found.get(self.state_key))
        return None

    async def _was_left_by(self, token: str, run: Entry | None, failed: BaseException, what: str) -> bool:
        """Was this the last write of this execution, before an operator or another execution changed the run?"""
        if run is None or execution_of(run) in (None, self.owner):
            return False
        if field_of(run, "epoch") == self.epoch:  # an operator has changed it
            return last_write(run.value) == token
        key = execution_key(self.part, self.epoch + 1)
        former: Mapping[str, Any] = field_of((await self.found((key,), failed, what)).get(key), "former") or {}
        return former.get("write") == token

    def check_owner(self, found: Mapping[str, Entry], failed: BaseException | None = None) -> None:
        """Raise RunFencedError if, in these entries, this execution doesn't own the run any more."""
        run = found.get(self.checkpoint.key)
        if execution_of(run) != self.owner:
            by = (
                "it was removed"
                if run is None
                else f"epoch {field_of(run, 'epoch')} owns it, this is epoch {self.epoch}"
            )
            raise RunFencedError(
                f"run {self.id!r} was taken over by another execution: {by}; this execution has stored nothing since"
            ) from failed

    async def found(self, keys: Iterable[str], failed: BaseException, what: str) -> dict[str, Entry]:
        """Read these keys after a failed write, with a few tries. Raises OutcomeUnknownError if none succeeds."""
        pauses = iter(PAUSES)
        while True:
            try:
                return await self.stack.read_many(keys)
            except Exception as error:
                pause = next(pauses, None)
                if pause is None:
                    if isinstance(failed, asyncio.CancelledError):
                        raise failed from error  # which ends the execution as well
                    raise self._unknown(what, f"reading the record failed too: {error}") from failed
            await wait(pause)

    def _unknown(self, what: str, why: str) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"run {self.id!r}: whether {what} was stored is not known, since the store failed, and {why}. "
            f"resume({self.id!r}) finds out, and continues from there"
        )

    def finish(self, token: str) -> list[Change]:
        """The changes that end the run, besides that of its record, which has this token."""
        if (keep := self.graph.keep_finished) is None:
            return self.changes_to("finished")
        look, look_at = {"owner": token, "keep": keep, "is_seen": False}, self.stack.clock() + keep
        return [*self.changes_to("finished", look_at=look_at), Put(look_key(look_at, self.name), look)]
