"""The ledger of a durable run: each commit of a node also writes the run's checkpoint, and a resume begins there."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from pocket_plug.codec import default_codec
from pocket_plug.codec.error_values import storable
from pocket_plug.errors import (
    CodecError,
    ConflictError,
    OutcomeUnknownError,
    RunCancelledError,
    RunFencedError,
    RunSuspendedError,
    RunTimeoutError,
    StoreError,
    TransactionError,
)
from pocket_plug.graph.nodes.chain import DEFAULT
from pocket_plug.graph.observing.views import NodeCall
from pocket_plug.graph.planning.step import Step, Visited
from pocket_plug.graph.running.clean_up import clean_up
from pocket_plug.graph.running.context import idempotency
from pocket_plug.graph.running.places import ACTIONS, uncalled
from pocket_plug.graph.running.protocols import Asking, Commit, Running, Travel
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import pause
from pocket_plug.store.backend import NO_EXPECTATIONS, OUTAGES, Change, Delete, Entry, Put
from pocket_plug.store.store import MISSING

from .claim import claim
from .finished import sweep
from .heartbeat import keep_beating
from .journal import Journal, RunReleasedError
from .processes import this_process
from .records import (
    PATH,
    Checkpoint,
    Frame,
    Status,
    escaped,
    execution_of,
    field_of,
    item_key,
    plain,
    start_key,
    visit_place,
)
from .standing import in_order
from .states import wake_key
from .waits import PlacedWait, Wait, put_wait, read_wait, suspended, wait_key


class RunLedger:
    """The ledger of an execution's outermost graph, of a nested graph, or of an item. All share the journal of the execution."""

    frame: Frame
    """The position in its graph."""

    def __init__(
        self,
        journal: Journal,
        checkpoint: Checkpoint | None = None,
        outer: RunLedger | None = None,
        level: int = 0,
        within: str = "",
    ) -> None:
        self.journal, self.stack, self.outer, self.level = journal, journal.stack, outer, level
        self.checkpoint = journal.checkpoint if checkpoint is None else checkpoint
        self.items: dict[str, None] = {}
        """The keys of the item records of the current fan-out."""
        self.within = self.current = within
        """The place of its graph, and the place of the current visit: `/outer#1/inner#2`."""

    @property
    def fence(self) -> Mapping[str, int]:
        """The versions that each write expects: this execution still owns the run, and the state has no new request."""
        return self.journal.fence

    @property
    def age(self) -> float:
        """Seconds since the run began."""
        return self.stack.clock() - self.journal.started

    @property
    def in_worker(self) -> bool:
        """Does a worker execute the run?"""
        return self.journal.wanted.in_worker

    def nested(self) -> RunLedger:
        """The ledger of the graph that is the current node."""
        return RunLedger(self.journal, self.checkpoint, self, self.level + 1, self.current)

    async def claim(self, run: Running, value: object) -> Value:
        """Record this execution as the run's owner. Returns the result of a finished run, else MISSING."""
        if self.outer is not None:
            return MISSING
        journal = self.journal
        # Before the claim is written: otherwise other executions of this process would take this one for ended.
        this_process().held[journal.owner] = journal
        result = await claim(journal, value)
        if result is not None:
            return default_codec.decode(result)
        run.steps = journal.steps
        run.run.resumed, run.run.carrier = journal.epoch > 1, journal.carrier
        if value is MISSING:
            begun = await self.stack.read(start_key(journal.part))
            with suppress(CodecError):  # the input is only for observers
                run.run.input = default_codec.decode(begun.value["input"]) if begun is not None else None
        return MISSING

    def unregister(self) -> None:
        """This execution has ended: the process doesn't list it any more."""
        if self.outer is None:
            this_process().held.pop(self.journal.owner, None)
            self.journal.end_interrupt()

    async def refence(self, conflict: ConflictError) -> bool:
        """After a conflict of a write that expected the fence: does the run still belong to this execution?"""
        journal = self.journal
        if journal.checkpoint.key in conflict.keys:
            return False
        if journal.state_key in conflict.keys:
            found = await self.stack.read_many((journal.checkpoint.key, journal.state_key))
            if execution_of(found.get(journal.checkpoint.key)) != journal.owner:
                return False
            journal.read_request(found.get(journal.state_key))
        return True

    async def hold(self, run: Running, travel: Travel, value: object) -> Value:
        """Take the value through the run's graph. If that fails, is cancelled by an operator or is released, record it."""
        if self.outer is not None:
            return await travel(value)
        self.journal.listen(run)
        keep_beating(self.journal.lease)
        try:
            return await travel(value)
        except BaseException as error:
            # A timeout that comes after the end was recorded is too late.
            if self.journal.status == "finished" and isinstance(error, RunTimeoutError):
                return default_codec.decode(self.frame.value)
            is_left = isinstance(error, GeneratorExit | RunSuspendedError | RunFencedError | OutcomeUnknownError)
            if not is_left or isinstance(error, RunReleasedError):
                await self._end_early(run, error)
            raise

    async def _end_early(self, run: Running, error: BaseException) -> None:
        """Record that the run has failed, was cancelled or released. Nothing is recorded if the program itself stops the run."""
        journal = self.journal
        if journal.status != "running":  # another state is recorded already, such as "suspended" just before a timeout
            return
        is_ours = journal.end_interrupt() or not isinstance(error, asyncio.CancelledError)
        if not is_ours or not (isinstance(error, Exception) or journal.is_cancelled):
            return
        is_kept = isinstance(error, RunReleasedError) or self._is_outage(error)
        late = await run.to_its_end(journal.record_end(error, "pending" if is_kept else "failed"))
        if journal.ended is not None:
            run.pocket.notify(journal.ended)
        if late is not None and not journal.end_interrupt():
            raise late from error
        if journal.is_cancelled and not isinstance(error, RunCancelledError):
            raise journal.cancelled_error() from error

    def _is_outage(self, error: BaseException) -> bool:
        """Was the run's own store away, or locked by others, for too long? That isn't the run's fault: workers try it again.

        A commit whose answer was lost has been looked for, and wasn't stored.

        But not for ever: a node may cause it each time, by a value that takes too long to read. Without a worker, the caller gets
        the error, and decides.
        """
        journal = self.journal
        if not self.in_worker or not isinstance(error, OUTAGES) or journal.tries >= journal.wanted.max_tries:
            return False
        of_writes = (self.checkpoint.failed, *journal.unrecorded)
        return error.stack is self.stack or any(error is each for each in of_writes)

    async def close(self) -> None:
        """The run has finished: remove other runs that have finished long ago."""
        if self.outer is None and self.journal.graph.keep_finished is not None:
            await sweep(self.stack)

    async def begin(self, run: Running, value: object) -> Visited:
        """Where to begin: at the graph's start, or at the position in the checkpoint. Calls hooks that may not have ended."""
        try:
            return await self._begin(run, value)
        except Exception as error:
            self.checkpoint.failed = error
            raise

    async def _begin(self, run: Running, value: object) -> Visited:
        checkpoint, start = self.checkpoint, run.plan.start
        if self.journal.is_cancelled:
            raise self.journal.cancelled_error()
        if len(checkpoint.frames) <= self.level:
            assert self.outer is not None
            encoded = self.outer.frame.value or self.journal.encode(value, f"the input of graph {run.run.graph!r}")
            self.frame = Frame(start.name, encoded)
            return start, value, None
        self.frame = frame = checkpoint.frames[self.level]
        if self.outer is None and not checkpoint.is_old:
            return start, value, None
        run.visits = defaultdict(int, frame.visits)
        run.left_by = frame.action
        value = default_codec.decode(frame.value)
        cancelled = None
        # With more frames, a nested graph had begun, so the hooks before it had ended.
        if frame.hooks and len(checkpoint.frames) == self.level + 1:
            left = run.plan.named(frame.hooks)
            assert left is not None
            self._stand_at(visit_place(self.within, left.name, frame.visits.get(left.name, 1)))
            cancelled = await clean_up(run, left, None, ("on_success", "on_complete"), value)
        if frame.node is None:
            return None, value, cancelled
        step = run.plan.named(frame.node)
        assert step is not None  # the claim has checked the positions of the run and its items in this graph
        return step, value, cancelled

    def stand_at(self, step: Step) -> None:
        """Called before each node. Sets the run's position. Raises RunReleasedError if the run is to be released."""
        if self.journal.is_released:
            raise self._released()
        self._stand_at(visit_place(self.within, step.name, self.frame.visits.get(step.name, 0) + 1))

    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt at an `exec`. Raises RunReleasedError once the run is to be released."""
        if not self.in_worker:
            return await pause(seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.journal.leaves.wait()
            raise self._released()

    def has_released(self, error: BaseException) -> bool:
        """Has `pause` raised this error? No other run raises it in a phase: only a worker's runs are released."""
        return isinstance(error, RunReleasedError)

    def _released(self) -> RunReleasedError:
        """The error that releases the run here. The record notes that the hooks of the node before have ended."""
        # If the record has more frames, a resume inside a nested graph has just begun, and the record stays as it is.
        if self.checkpoint is self.journal.checkpoint and len(self.checkpoint.frames) <= self.level + 1:
            frames = [plain(each) for each in self._frames(replace(self.frame, hooks=""))]
            self.journal.landed_record = {**self.journal.landed_record, "frames": frames}
        return RunReleasedError(self.journal.id)

    def report_resumed(self, run: Running, call: NodeCall) -> None:
        """Notify the observers, once, at the node where the run resumes."""
        if self.journal.resume_unreported and len(self.checkpoint.frames) <= self.level + 1:
            self.journal.resume_unreported = False
            run.event("resume", call, {"epoch": self.journal.epoch})

    def _stand_at(self, current: str) -> None:
        self.current = current
        idempotency.set(escaped(self.journal.id, "/") + current)

    # ------------------------------------------------------------ commits
    async def commit(
        self, run: Running, step: Step, target: Step | None, output: object, commit: Commit | None
    ) -> asyncio.CancelledError | None:
        """Write a node's changes together with the checkpoint. A cancellation that comes meanwhile is returned."""
        changes, expect = commit if commit is not None else ((), NO_EXPECTATIONS)
        what = f"the output of node {step.name!r}" if target is None else f"the input of node {target.name!r}"
        visits = {**self.frame.visits, step.name: self.frame.visits.get(step.name, 0) + 1}
        try:
            if isinstance(output, ACTIONS):
                raise uncalled(run, step, output)
            frame = Frame(
                node=target.name if target is not None else None,
                value=self.journal.encode(output, what),
                visits=visits,
                action=run.left_by if target is None else DEFAULT,
                hooks=step.name if step.hooks else "",
            )
            ends = target is None and self.outer is None and not frame.hooks
            self.stack.gates.refuse_to_overtake(expect)
            if step.kind == "fan_out":
                changes = [*changes, *(Delete(key) for key in self.items)]
            status: Status = "finished" if ends else "running"
            cancelled = await self._save(run, frame, status, changes, expect, leaving=True)
        except Exception as error:
            self.checkpoint.failed = error
            raise
        self.items = {}
        return cancelled

    async def end(self, run: Running) -> asyncio.CancelledError | None:
        """Called after the last node's hooks. Records that the run has finished."""
        if self.outer is not None or not self.frame.hooks:
            return None
        return await self._save(run, self.frame, "finished")

    def _frames(self, last: Frame) -> list[Frame]:
        return [*(self.outer._frames(self.outer.frame) if self.outer is not None and self.level else ()), last]

    async def _save(
        self,
        run: Running,
        frame: Frame,
        status: Status = "running",
        changes: Sequence[Change] = (),
        expect: Mapping[str, int] = NO_EXPECTATIONS,
        leaving: bool = False,
    ) -> asyncio.CancelledError | None:
        """Write the checkpoint together with a node's changes; to its end, once begun."""
        cancelled = await run.to_its_end(self._write(run, frame, status, changes, expect, leaving))
        late, self.journal.late_cancellation = self.journal.late_cancellation, None
        return cancelled or late

    async def _write(
        self,
        run: Running,
        frame: Frame,
        status: Status,
        changes: Sequence[Change],
        expect: Mapping[str, int],
        leaving: bool,
    ) -> None:
        journal, checkpoint = self.journal, self.checkpoint
        frames, commits, token = self._frames(frame), checkpoint.commits + 1, journal.token()
        if journal.is_cancelled:
            raise journal.cancelled_error()
        is_of_run = checkpoint is journal.checkpoint  # else an item's
        others: list[Change] = []
        if is_of_run:
            journal.steps = run.outermost.steps - self.level  # a resume enters the nodes around this graph again
            record = journal.record(token, frames, status, frame.value if status == "finished" else None)
            if status == "finished":
                others += journal.finish(token)
            if leaving:
                passed = {"node": self.current, "next": frame.node, "at": self.stack.clock()}
                others.append(Put(f"{journal.part}{PATH}{commits:09}", passed))
        else:
            record = {"owner": token, "commits": commits, "frames": [plain(each) for each in frames]}
        everything = [*changes, Put(checkpoint.key, record), *others]
        version = await self._store_commit(everything, expect, token, status != "running")
        if is_of_run:
            journal.landed_record, journal.status = record, status
        checkpoint.version, checkpoint.commits, checkpoint.frames, checkpoint.is_old = version, commits, frames, False
        journal.tries = 0
        checkpoint.failed = None  # its traceback would keep this execution alive
        self.frame = frame

    async def _store_commit(
        self, changes: Sequence[Change], expect: Mapping[str, int], token: str, leaves: bool
    ) -> int:
        """Write, and return the version. If only the run's state is in conflict, read the request there, and write again."""
        journal, checkpoint = self.journal, self.checkpoint
        while True:
            try:
                return await self.stack.write(changes, {**expect, **self.fence, checkpoint.key: checkpoint.version})
            except (Exception, asyncio.CancelledError) as error:
                landed = await journal.landed(checkpoint, token, error, self.current, leaves)
                if landed is not None:
                    if isinstance(error, asyncio.CancelledError):
                        journal.late_cancellation = error
                    return landed
                if journal.is_cancelled:  # found by this call, by another item or by the heartbeat
                    raise journal.cancelled_error() from error
                if not isinstance(error, ConflictError) or error.keys != frozenset((journal.state_key,)):
                    raise

    # ------------------------------------------------------------ items and questions
    def in_order(self, items: Iterable[Value]) -> Iterable[Value]:
        """The items of a fan-out, in an order that is the same in each process."""
        return in_order(items)

    async def item(self, run: Running, step: Step, item: object, position: int) -> Visited:
        """Take an item through its node, with a checkpoint of its own. If that says that the item is done, return its output."""
        if self.journal.is_released:
            raise RunReleasedError(self.journal.id)
        current = f"{self.current}[{position}]"
        key = item_key(self.journal.part, current)
        # An item in `items` has waited before.
        checkpoint = Checkpoint(key, is_old=self.checkpoint.is_old or key in self.items)
        self.items[key] = None
        ledger = RunLedger(self.journal, checkpoint, self, 0, self.within)
        ledger._stand_at(current)
        own: Exception | None = None
        try:
            if checkpoint.is_old and (entry := await self._item_entry(key)) is not None:
                checkpoint.load(entry)
            ledger.frame = checkpoint.frames[0] if checkpoint.frames else Frame(step.name, b"")
            try:
                visited = await ledger._visit(run.beside(ledger), step, item, position)
            except Exception as error:
                own = error if error is not checkpoint.failed else None
                raise
            return await ledger._end_item(run, step, visited)
        except Exception as error:
            if error is not own:
                self.journal.unrecorded.append(error)
            raise

    async def _item_entry(self, key: str) -> Entry | None:
        """The record of an item. Raises RunFencedError if another execution owns the run: it may have removed the items.

        The run's state says in a few bytes who owns it. The run's record, which says why it was lost, has the input of all items.
        """
        journal = self.journal
        found = await self.stack.read_many((key, journal.state_key))
        if field_of(found.get(journal.state_key), "owner") != journal.owner:
            found = await self.stack.read_many((key, journal.checkpoint.key))
            journal.check_owner(found)
        return found.get(key)

    async def _visit(self, run: Running, step: Step, item: object, position: int) -> Visited:
        if self.frame.node is not None:
            return await run.visit(step, item, position)
        output = default_codec.decode(self.frame.value)
        late = None
        if self.frame.hooks:
            late = await clean_up(run, step, None, ("on_success", "on_complete"), output)
        return None, output, late

    async def _end_item(self, run: Running, step: Step, visited: Visited) -> Visited:
        """Record that the item's hooks have ended."""
        if not (step.hooks and self.frame.hooks):
            return visited
        cancelled = await self._save(run, Frame(None, self.frame.value))
        return visited[0], visited[1], visited[2] or cancelled

    def must_end(self, error: Exception) -> bool:
        """Is this an error of the run or its store, not of the item? Then the item has no result, and a resume executes it again.

        These are errors of recording an item or reading its record, and errors of the run's store in the item's phases.
        """
        return (
            isinstance(error, RunFencedError | RunCancelledError)
            or any(error is each for each in self.journal.unrecorded)
            or (isinstance(error, StoreError) and not isinstance(error, TransactionError) and error.stack is self.stack)
        )

    def collected(self, error: Exception) -> Exception:
        """The error in a form that can be stored. This execution uses that form too, so that a resume makes no difference."""
        return storable(error)

    # ------------------------------------------------------------ waits
    async def ask(self, run: Running, step: Step, made: Callable[[], Asking]) -> Value:
        """The answer to the current node's question; MISSING once its timeout is over. If there is neither, suspend the run."""

        def new() -> Wait:
            asking, now = made(), self.stack.clock()
            return Wait(
                "question",
                now,
                self.journal.encode(asking.question, f"the question of node {step.name!r}"),
                asking.answer_type,
                asking.choices,
                None if asking.timeout is None else now + asking.timeout,
            )

        settled = await self._wait(run, new)
        return MISSING if settled.answer is None else default_codec.decode(settled.answer)

    async def sleep(self, run: Running, until: Callable[[], float]) -> None:
        """Return once the time has come; before that, suspend the run."""
        await self._wait(run, lambda: Wait("sleep", self.stack.clock(), until=until()))

    async def _wait(self, run: Running, new: Callable[[], Wait]) -> Wait:
        """The wait at this place, once it is settled. Raises RunSuspendedError before that."""
        place, part = self.current[1:], self.journal.part
        key = wait_key(part, place)
        may_be_there = self.checkpoint.is_old or key in self.journal.waited
        self.journal.waited.add(key)
        while True:
            entry = await self.stack.read(key) if may_be_there else None
            found = read_wait(part, key, entry) if entry is not None else PlacedWait(place, new())
            wait, now = found.wait, self.stack.clock()
            if not wait.is_open:
                return wait
            is_due = wait.until is not None and wait.until <= now
            try:
                if is_due:
                    settled = replace(wait, settled=now)
                    await self._put([put_wait(part, place, settled)], {key: found.version})
                    return settled
                if self.checkpoint is self.journal.checkpoint:
                    await self.suspend(run, [found])
                elif not found.version:
                    version = await self._put([put_wait(part, place, wait)], {key: 0})
                    found = PlacedWait(place, wait, version)
            except ConflictError as conflict:
                if key not in conflict.keys:
                    raise
                may_be_there = True
                continue  # it was answered meanwhile, or an earlier execution has recorded it
            raise suspended(self.journal.id, [found])

    async def suspend(self, run: Running, waits: Sequence[PlacedWait]) -> None:
        """Record that the run waits for these, and raise RunSuspendedError. Raises ConflictError if one of them is settled."""
        journal = self.journal
        if journal.is_released:
            raise self._released()
        if self.checkpoint is not journal.checkpoint:
            raise suspended(journal.id, waits)  # an item of a fan-out: the other items may continue
        expect = {wait_key(journal.part, each.place): each.version for each in waits}
        changes: list[Change] = [put_wait(journal.part, each.place, each.wait) for each in waits if not each.version]
        asked = [each.wait.since for each in waits if each.wait.kind == "question"]
        wake_at = journal.wakes(waits)
        changes += journal.changes_to(
            "suspended", wake_at=wake_at, questions=len(asked), asked=min(asked, default=None)
        )
        if wake_at is not None:
            changes.append(Put(wake_key(journal.graph.name, wake_at, journal.name), True))
        frame = replace(self.frame, hooks="")  # the hooks of the node before have ended
        cancelled = await self._save(run, frame, "suspended", changes, expect)
        if cancelled is not None:
            raise cancelled
        raise suspended(journal.id, waits, wake_at)

    async def _put(self, changes: Sequence[Change], expect: Mapping[str, int]) -> int:
        """Write outside of the run's commits, while this execution owns the run. Returns the version."""
        while True:
            try:
                return await self.stack.write(changes, {**expect, **self.fence})
            except ConflictError as conflict:
                if not await self.refence(conflict):
                    raise RunFencedError(f"run {self.journal.id!r} was taken over by another execution") from conflict
                if self.journal.is_cancelled:
                    raise self.journal.cancelled_error() from conflict
                if conflict.keys & expect.keys():
                    raise
            except StoreError as error:
                self.journal.unrecorded.append(error)  # so that it is not taken for an item's own error
                raise
