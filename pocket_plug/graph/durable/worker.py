"""A worker: claims runs that are ready in a store, which it may share with other workers, and executes them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, cast

from pocket_plug.errors import (
    ConfigError,
    PocketError,
    RunBusyError,
    RunCancelledError,
    RunStuckError,
    RunSuspendedError,
    StoreClosedError,
    StoreError,
    WrappedSystemExitError,
)
from pocket_plug.graph.nodes.options import check_count
from pocket_plug.graph.observing.host import RunHost, default_host
from pocket_plug.graph.observing.views import RunNotice
from pocket_plug.graph.planning.plan import Plan, PlannedGraph
from pocket_plug.graph.retention import Retention
from pocket_plug.graph.running.execution import Execution
from pocket_plug.graph.running.places import place_of
from pocket_plug.graph.running.protocols import Running, Travel
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.failures import describe, error_type, log_failure, loggable_text
from pocket_plug.primitives.polls import polling
from pocket_plug.primitives.redaction import named
from pocket_plug.primitives.signals import raised_by_handler
from pocket_plug.primitives.values import Value
from pocket_plug.store.stack import StorePlace
from pocket_plug.store.store import MISSING, StoreScope
from pocket_plug.store.sync import SyncScope

from .journal import Journal, RunReleasedError, Wanted
from .ledger import RunLedger
from .prune import EVERY, Pruner
from .ready import Finder, Ready, versions_of
from .records import Status
from .request import prepare
from .states import LEASE
from .waking import sleeping

_logger = logging.getLogger("pocket_plug")

POLL = 0.05
"""Seconds between two polls for runs that other processes have submitted."""
REVIEW = 1.0
"""Seconds between two checks for stalled runs; less if the lease is short."""
DUTY = 3
"""After a poll that takes long, the pause is this many times as long as the poll."""
MAX_TRIES = 5
"""After so many executions without progress a run fails. Otherwise a run that ends its process would end all workers in turn."""
SUSPECT = 3
"""After so many executions without progress a run is executed alone: it may end its process, and other runs with that."""
ALONE = 30.0
"""Seconds for which a worker starts no run so that such a run is alone, at most: runs may take hours, and others wait."""
CONCURRENCY = 10

Became = Literal["taken", "finished", "suspended", "failed", "cancelled", "released", "lost", "refused"]


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What has become of a run in a worker.

    `taken`: the worker has claimed it. Then one of: `finished`; `suspended`, for an answer or a time; `failed`; `cancelled`;
    `released`, since the worker stops. These are recorded in the store. `lost`: another execution has taken the run over, or the
    store failed; then the run is pending, or looks stalled, until another execution resumes it. `refused`, reported once: the run
    can't resume in this worker's graph.
    """

    became: Became
    run_id: str
    graph: str
    error: Exception | None = None
    """The error, if the run has failed, was lost or was refused."""


class Served(PlannedGraph, Protocol):
    """A graph whose runs a worker executes."""

    def validate(self, *, pocket: RunHost | None = None) -> None:
        """Raise GraphError if the graph can't run."""
        ...

    def own_place(self, pocket: RunHost, store: StoreScope | SyncScope | None = None) -> StorePlace:
        """The stack and the key prefix of the graph when it is not nested."""
        ...


class Worker:
    """Executes the pending, stalled and due runs of some graphs, `concurrency` at a time.

    Any number of workers, in any number of processes, can share one store. `lease` is how long a run may stay unchanged before
    others take it over; for longer nodes the process sends a heartbeat. `store` is for graphs that have no store of their own.
    `report` is called with a `WorkerReport` when the worker claims a run, and when its execution ends. `retention` says which old
    runs of the stores are removed, those of other graphs too.

    >>> import asyncio
    >>> from pocket_plug import Graph, Store, node
    >>> @node
    ... async def double(n: int) -> int:
    ...     return 2 * n
    >>> async def main(url: str) -> int:
    ...     async with Store(url) as store:
    ...         graph = Graph(double, store=store, name="doubling")
    ...         await graph.submit(21, run_id="d-1")
    ...         await Worker([graph]).run(once=True)
    ...         return await graph.resume("d-1")
    >>> from tempfile import mkdtemp
    >>> asyncio.run(main(f"sqlite:///{mkdtemp()}/state.db"))
    42

    Raises ConfigError if there is no graph, for something that is no graph, for two graphs with the same name, and for a
    `retention` that is no `Retention`.
    """

    def __init__(
        self,
        graphs: Sequence[Served],
        /,
        *,
        store: StoreScope | SyncScope | None = None,
        concurrency: int = CONCURRENCY,
        lease: Duration = LEASE,
        pocket: RunHost | None = None,
        report: Callable[[WorkerReport], None] | None = None,
        retention: Retention | None = None,
    ) -> None:
        if retention is not None and not isinstance(retention, Retention):
            raise ConfigError(
                f"a worker's retention can't be {named(retention)}; give pocket_plug.Retention(older=…, keep=…)"
            )
        self._graphs, self._store, self._pocket, self._report = _checked(graphs), store, pocket, report
        self.concurrency, self.lease = check_count(concurrency, "concurrency"), seconds(lease, "lease")
        self._finders: list[Finder] = []
        self._journals: dict[tuple[Finder, str], Journal] = {}
        """The journals of the runs that it executes, or is about to claim."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._suspect: asyncio.Task[None] | None = None
        """The execution of a run that may end this process."""
        self._alone_until: float | None = None
        """Until when no other run is started: such a run is executed, or waits for the others to end."""
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._review_at = 0.0
        self._unreachable: StoreError | None = None
        """The error of a store in which a run could not be claimed."""
        self._said: set[object] = set()
        """The kinds of such errors that were logged since a run was claimed."""
        self.retention = retention

    # ------------------------------------------------------------ the worker
    async def run(self, *, once: bool = False) -> None:
        """Execute runs until `stop`, or with `once` until no run is ready. If this is cancelled, its runs are cancelled as tasks.

        If a store fails, a warning is logged and the store is tried again; with `once` the error is raised. Raises
        StoreClosedError if a store was closed, or its file deleted or replaced, ConfigError if a graph's store can't keep durable
        runs, and GraphError for a graph that can't run.
        """
        self._loop, pocket = asyncio.get_running_loop(), self._pocket or default_host()
        self._woken = asyncio.Event()  # belongs to one event loop, and the next call may run in another
        self._review_at, failures, self._unreachable = 0.0, 0, None
        self._finders = [await self._finder(graph, pocket) for graph in self._graphs]
        pruning = asyncio.create_task(self._prune(once=once))
        sleeping.add(self._wake)
        try:
            while not self._is_stopping:
                self._woken.clear()
                began = self._loop.time()
                is_review = began >= self._review_at
                try:
                    taken = await self._take(pocket, is_review)
                    failures = 0
                except StoreError as error:
                    if once or isinstance(error, StoreClosedError):  # this lasts until the store is opened again
                        raise
                    taken, failures = 0, failures + 1
                    log_failure(logging.WARNING, "a worker could not look for runs; it tries again", error)
                if once and not taken and not self._tasks:
                    if not is_review and self._unreachable is None:
                        self._review_at = began  # more may be stalled than the last review had room for
                        continue
                    await pruning
                    if self._unreachable is not None:
                        raise self._unreachable
                    return
                if not taken:
                    took = self._loop.time() - began
                    await self._sleep(max(POLL * 2 ** min(failures, 7), DUTY * took))
            for journal in self._journals.values():
                journal.leaves.set()
            await self._ended()
        finally:
            sleeping.discard(self._wake)
            for task in (pruning, *self._tasks):
                task.cancel()
            await asyncio.wait([pruning])
            await self._ended()
            self._loop = None

    def stop(self) -> None:
        """Claim no more runs, and release those in progress between two nodes or attempts. Can be called in any thread.

        `run` returns once the last run is released.
        """
        self._is_stopping = True
        for journal in tuple(self._journals.values()):
            journal.is_released = True
        self._wake()

    async def _ended(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _wake(self) -> None:
        """Poll again at once. Can be called in any thread."""
        if (loop := self._loop) is not None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._woken.set)

    async def _sleep(self, pause: float) -> None:
        """Wait until `_wake`, or for about `pause` seconds: a random time, so that workers don't poll at the same moments."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause * random.uniform(0.5, 1.5)):  # noqa: S311 - no secret
                await self._woken.wait()

    async def _finder(self, graph: Served, pocket: RunHost) -> Finder:
        assert self._loop is not None
        graph.validate(pocket=pocket)
        place = graph.own_place(pocket, self._store)
        prepare(graph, place, "worker: ")
        stack, _ = place
        if stack.is_new:
            await stack.ensure_open()
        return Finder(graph, place, self._loop.time)

    async def _prune(self, *, once: bool) -> None:
        """Remove old runs, a few at a time; with `once` in one pass."""
        if self.retention is None:
            return
        pruners = [Pruner(stack, self.retention) for stack in dict.fromkeys(finder.stack for finder in self._finders)]
        while pruners:
            rests: list[float] = []
            for pruner in pruners:
                try:
                    rests.append(await pruner.slice())
                except PocketError as error:
                    if once:
                        raise
                    rests.append(EVERY)
                    log_failure(logging.WARNING, "a worker could not remove old runs; it tries again", error)
            if once:
                pruners = [pruner for pruner, rest in zip(pruners, rests, strict=True) if rest < EVERY]
            await asyncio.sleep(min(rests) if pruners else 0)

    # ------------------------------------------------------------ the runs
    async def _take(self, pocket: RunHost, is_review: bool) -> int:
        """Start executions of ready runs, as many as there is room for; return their number.

        A run whose executions have made no progress is a suspect: it may end this process. It is started once no other run is
        executed, and nothing else is started beside it, nor while it waits for the others to end; both for `ALONE` at most.
        """
        assert self._loop is not None
        room, now = self.concurrency - len(self._tasks), self._loop.time()
        is_alone = self._alone_until is not None and now < self._alone_until
        if room <= 0 or (is_alone and (self._suspect in self._tasks or (self._tasks and not is_review))):
            return 0
        free = await self._free(is_review)
        suspects = [each for each in free if each[1].left is not None and each[1].left.tries >= SUSPECT]
        if suspects and not self._tasks:
            self._suspect, self._alone_until = self._begin(*suspects[0], pocket), now + ALONE
            return 1
        if is_review:  # only a review finds suspects
            self._alone_until = (self._alone_until or now + ALONE) if suspects else None
        if suspects and now < (self._alone_until or 0):
            return 0
        for finder, ready in free[:room]:
            self._begin(finder, ready, pocket)
        return len(free[:room])

    async def _free(self, is_review: bool) -> list[tuple[Finder, Ready]]:
        """The ready runs that this worker doesn't execute already, in a random order."""
        assert self._loop is not None
        if is_review:
            self._review_at = self._loop.time() + min(REVIEW, self.lease / 4)
        found: list[tuple[Finder, Ready]] = []
        with polling():  # a span around the worker would get these reads as children, again and again
            for finder in self._finders:
                stalled = await finder.review() if is_review else []
                # As many as are executed at a time: some of those that are found may be executed already.
                found += [(finder, ready) for ready in [*stalled, *await finder.find(self.concurrency)]]
        random.shuffle(found)
        return [(finder, ready) for finder, ready in found if (finder, ready.run_id) not in self._journals]

    def _begin(self, finder: Finder, ready: Ready, pocket: RunHost) -> asyncio.Task[None]:
        journal = self._journal(finder, ready, finder.place)
        task = asyncio.create_task(self._execute(finder, ready, journal, pocket), name=f"run {ready.run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _journal(self, finder: Finder, ready: Ready, place: StorePlace) -> Journal:
        wanted = Wanted(ready.run_id, lease=self.lease, stalled_at=ready.versions, max_tries=MAX_TRIES, in_worker=True)
        journal = self._journals[finder, ready.run_id] = Journal(wanted, finder.graph, place)
        if self._is_stopping:
            journal.is_released = True
        return journal

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._woken.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log_failure(logging.ERROR, "a worker could not end the execution of a run", error)

    async def _execute(self, finder: Finder, ready: Ready, journal: Journal, pocket: RunHost) -> None:
        """Execute a run, if it can be claimed, and report what becomes of it."""

        def taken() -> None:
            self._said.clear()
            if (left := ready.left) is not None:
                about = {name: (left.process or {}).get(name) for name in ("host", "pid")} | {"since": left.since}
                pocket.notify(RunNotice("stalled", journal.id, journal.graph.name, about))
            self._tell("taken", journal)

        ledger, scope, place = _WorkerLedger(journal, taken), None, (journal.stack, journal.prefix)
        try:
            execution = Execution(finder.graph, place, MISSING, pocket, loop=True, ledger=ledger, run_id=journal.id)
            await execution.go()
        except Exception as error:  # noqa: BLE001 - it is the run's error, and is recorded there
            if ledger.is_taken:
                became = _became(error, journal.status)
                self._tell(became, journal, error if became in ("failed", "lost") else None)
            elif (scope := finder.scope_within(journal.other_scope)) is None:
                await self._not_taken(finder, journal, error, pocket)
        else:
            if ledger.is_taken:
                self._tell("finished", journal)
        finally:
            del self._journals[finder, journal.id]
        if scope is not None and not self._is_stopping:
            await self._execute(finder, ready, self._journal(finder, ready, (finder.stack, scope)), pocket)

    async def _not_taken(self, finder: Finder, journal: Journal, error: Exception, pocket: RunHost) -> None:
        """Called if a run could not be claimed: skip it until its record changes, or until the next review if it is only busy."""
        if isinstance(error, RunStuckError):
            pocket.notify(RunNotice("stuck", journal.id, journal.graph.name, {"tries": MAX_TRIES}))
            pocket.notify(RunNotice("failed", journal.id, journal.graph.name, {"error_type": error_type(error)}))
            self._tell("failed", journal, error)
        elif isinstance(error, RunBusyError | RunSuspendedError | RunCancelledError):
            finder.refuse(journal.id, None)  # another execution was faster
        elif isinstance(error, StoreError):
            finder.refuse(journal.id, None)
            self._unreachable = error
            # A full disk fails all ready runs, again and again; a log on the same disk would make it worse.
            if (kind := (type(error), error.loggable or journal.id)) not in self._said:
                self._said.add(kind)
                what = f"a worker could not take run {journal.id!r}; it tries again (logged once until it takes a run)"
                log_failure(logging.WARNING, what, error)
        else:
            seen = journal.checkpoint.version or (await versions_of(finder.stack, [journal.id]))[journal.id]
            finder.refuse(journal.id, seen)
            self._tell("refused", journal, error)
            check = "`pocket-plug runs check` or `graph.check_runs()` shows the reason"
            _logger.warning(
                "a worker skips run %r of graph %r until its record changes: %s. %s",
                *(journal.id, journal.graph.name, loggable_text(error) or error_type(error)),
                check if journal.other_scope is None else "it is in another scope",
            )

    def _tell(self, became: Became, journal: Journal, error: Exception | None = None) -> None:
        if self._report is not None:
            try:
                self._report(WorkerReport(became, journal.id, journal.graph.name, error))
            except Exception as failed:  # noqa: BLE001 - an error of the callback must not end the run
                log_failure(logging.ERROR, f"a worker's report of run {journal.id!r} ({became}) failed", failed)


class _WorkerLedger(RunLedger):
    """The ledger of a worker's execution. It calls `taken` once the run is claimed."""

    is_taken = False

    def __init__(self, journal: Journal, taken: Callable[[], None]) -> None:
        super().__init__(journal)
        self._taken = taken

    async def hold(self, run: Running, travel: Travel, value: object) -> Value:
        self.is_taken = True
        self._taken()
        return await super().hold(run, partial(self._contained, travel), value)

    async def _contained(self, travel: Travel, value: object) -> Value:
        """Take the value through the graph. A SystemExit of a node is the run's failure, and doesn't end the worker."""
        try:
            return await travel(value)
        except SystemExit as error:
            if raised_by_handler(error):  # the process was told to end, and this node happened to be at work
                raise
            failed = WrappedSystemExitError(
                f"a node of run {self.journal.id!r} raised {describe(error)}; in a worker, this error fails the run"
            )
            if (place := place_of(error)) is not None:
                failed.add_note(place)
            raise failed from error


def _became(error: Exception, status: Status) -> Became:
    """What has become of a run: `error` has ended its execution, and `status` is the last state that the execution recorded."""
    match error:
        case RunReleasedError():
            return "released"
        case RunSuspendedError():
            return "suspended"
        case RunCancelledError():
            return "cancelled"
        case _:
            return status if status in ("suspended", "failed") else "lost"


def _checked(graphs: Sequence[Served]) -> Sequence[Served]:
    if not isinstance(graphs, Iterable):
        raise ConfigError(f"a worker needs a list of graphs, not {named(cast('object', graphs))}: Worker([graph])")
    names: set[str] = set()
    for graph in graphs:
        if not isinstance(getattr(graph, "plan", None), Plan):
            raise ConfigError(f"a worker needs a list of graphs, but {named(graph)} is not a graph: Worker([graph])")
        if graph.name in names:
            raise ConfigError(
                f"two graphs of this worker have the name {graph.name!r}; give each graph a name of its own"
            )
        names.add(graph.name)
    if not names:
        raise ConfigError("this worker has no graph; give at least one: Worker([graph])")
    return tuple(graphs)
