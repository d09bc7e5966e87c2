"""`Runs`: the durable runs of a store, of all graphs, for operators. `SyncRuns` is the same without `await`.

Nothing is implemented twice: each method of SyncRuns drives the coroutine of the same method of Runs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Collection, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar, get_args

from pocket_plug.errors import ConfigError, PocketError, suggest
from pocket_plug.graph.durable.indexing import index_old
from pocket_plug.graph.durable.prune import Pruned, prune
from pocket_plug.graph.durable.removal import remove_run
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.following.events import FollowedEvent
from pocket_plug.graph.nodes.node import AnyNode
from pocket_plug.graph.observing.host import RunHost, default_host
from pocket_plug.graph.planning.plan import PlannedGraph
from pocket_plug.graph.retention import BY_DEFAULT, Prunable, Retention
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.polls import polling
from pocket_plug.primitives.redaction import named
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import pause
from pocket_plug.store.driven import driven
from pocket_plug.store.store import StoreScope
from pocket_plug.store.sync import SyncScope

from .answering import answer as record_answer
from .following import PAUSES, Pause, follow
from .history import history_of
from .info import (
    ENDED,
    RunHistory,
    RunInfo,
    RunPage,
    RunQuestion,
    RunState,
    info_with_questions,
    questions_of,
    runs_table,
    waits_now,
)
from .listing import Wanted, page_of
from .operations import cancel, must_see, retry

T = TypeVar("T")
LIMIT = 100
"""How many runs a page has by default, at most."""
SHOWN = 20
"""How many runs a notebook shows, at most."""
_STATES: tuple[RunState, ...] = get_args(RunState)


class Runs:
    """The durable runs in a store, of all graphs. Its methods need neither the graphs nor the program's types.

    `store` is a Store, a SyncStore, or a scope of one; the runs of all scopes are listed together. The store is opened if it
    isn't open. `pause(seconds)` is awaited between two reads of `wait` and `follow`; tests can replace it. `cancel` notifies the
    plugins of the `pocket`, by default those of the process's default Pocket.
    """

    def __init__(
        self, store: StoreScope | SyncScope, /, *, pause: Pause = pause, pocket: RunHost | None = None
    ) -> None:
        if not isinstance(store, StoreScope | SyncScope):
            raise ConfigError(f"Runs takes a Store, a SyncStore, or a scope of one, not {named(store)}")
        self.stack, self._pause, self._pocket = store.stack, pause, pocket
        self._watch = StallWatch(self.stack)
        self._is_indexed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.stack!r})"

    def _repr_html_(self) -> str | None:
        """For a notebook: a table of the newest runs, if the store is open and can be read without an event loop."""
        return _newest(self)

    @property
    def sync(self) -> SyncRuns:
        """The same runs without `await`."""
        return SyncRuns(self)

    async def _open(self) -> None:
        if self.stack.is_new:
            await self.stack.ensure_open()

    async def list(
        self,
        *,
        state: RunState | Collection[RunState] | None = None,
        graph: str | None = None,
        since: float | None = None,
        until: float | None = None,
        limit: int = LIMIT,
        after: str | None = None,
    ) -> RunPage:
        """A page of runs, the newest first: `page.runs`, and `page.after` for the next page.

        - `state`, `graph`: only runs in this state, or in one of these, and of this graph.
        - `since`, `until`: only runs that began at or after `since`, and before `until`, in epoch seconds.
        - `limit`: how many at most. Each page costs the same, however many runs there are.
        - `after`: the `after` of the page before.

        A run that can't be read has the state `unreadable`, and doesn't keep others from being listed. A list of unreadable runs
        reads all runs. Runs of older versions are listed too: the first list of a store creates their keys. Raises ConfigError
        for an invalid argument.
        """
        if limit < 1:
            raise ConfigError(f"limit={limit}: give 1 or more")
        wanted = Wanted(states=_states(state), graph=graph, since=since, until=until)
        await self._open()
        if not self._is_indexed:
            await index_old(self.stack)
            self._is_indexed = True
        return await page_of(self._watch, wanted, limit, after)

    async def get(self, run_id: str, /) -> RunInfo:
        """A run. Raises UnknownRunError; CorruptRecordError for a damaged record; StoreError for a record of a newer version."""
        await self._open()
        return await info_with_questions(self.stack, await must_see(self._watch, run_id))

    async def history(self, run_id: str, /) -> RunHistory:
        """All that is recorded of a run: its executions with their traces and failures, its path, its values. Raises as `get`."""
        await self._open()
        return await history_of(self.stack, await must_see(self._watch, run_id))

    async def questions(self, run_id: str, /) -> tuple[RunQuestion, ...]:
        """The open questions of a run, which may be suspended, or still be executing other items. Raises as `get`."""
        await self._open()
        seen = await must_see(self._watch, run_id)
        if seen.status in ENDED:
            return ()
        return tuple(each for each in questions_of(run_id, await waits_now(self.stack, seen)) if each.is_open)

    async def answer(
        self,
        run_id: str,
        answer: Value,
        /,
        *,
        question: str | AnyNode | None = None,
        graph: PlannedGraph | None = None,
    ) -> RunInfo:
        """Answer a question of a run. A suspended run becomes `pending`, so that a worker resumes it.

        - `question`: its id, or the Ask that asks; not needed if the run has asked only one.
        - `graph`: the run's graph, for types of answers that can't be checked without it, such as a model.

        The same answer may be given again. Raises InputError if the answer has another type than the question asks for,
        RunMismatchError if there is no such question or if it has another answer, RunStateError for a run that has ended, else
        as `get`.
        """
        await self._open()
        return await record_answer(self._watch, run_id, answer, question, graph)

    async def cancel(self, run_id: str, /) -> RunInfo:
        """Cancel a run. It can't be resumed after that; what its nodes have written is kept.

        A run that isn't being executed is `cancelled` at once. An execution sees the request at its next commit or heartbeat, and
        at once in this process: its `exec` is cancelled as asyncio cancels a task, and `on_failure` and `on_complete` run. Until
        then the run is `running` with `is_ending`. Raises RunStateError for a run that has finished, else as `get`.
        """
        await self._open()
        return await cancel(self._watch, run_id, self._pocket or default_host())

    async def retry(self, run_id: str, /) -> RunInfo:
        """Retry a failed or a stalled run: it becomes `pending`, so that a worker resumes it.

        It resumes at the node that has failed. Raises RunStateError for a run in another state, else as `get`.
        """
        await self._open()
        return await retry(self._watch, run_id)

    async def remove(self, run_id: str, /, *, force: bool = False) -> bool:
        """Remove a run with all its records, so that its id is free again. Returns False if there was no such run.

        What its nodes have written is kept. Raises RunBusyError for a run that is running, unless `force` is given: then its
        execution gets RunFencedError at its next commit.
        """
        await self._open()
        return await remove_run(self.stack, run_id, force=force)

    async def prune(
        self,
        *,
        older: Duration | None = None,
        keep: int | None = None,
        state: Prunable | Collection[Prunable] = BY_DEFAULT,
        graph: str | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Remove old runs that have ended, a few at a time, while others continue. Returns how many were removed.

        - `older`: only runs that ended this long ago or earlier, by the clock of this process.
        - `keep`: how many runs of each graph and state to keep: those that began last. Give `older`, `keep`, or both.
        - `state`: only runs in this state, or in one of these: "finished" and "cancelled" by default. "failed" must be given,
          since failed runs can still be retried.
        - `graph`: only runs of this graph.
        - `dry_run`: count the runs, but remove nothing.

        At the end, the store's file shrinks. If this is interrupted, some runs are removed. Raises ConfigError for an invalid
        argument.
        """
        retention = Retention(older, keep, state, graph)
        await self._open()
        return await prune(self.stack, retention, dry_run=dry_run)

    async def follow(self, run_id: str, /) -> AsyncGenerator[FollowedEvent]:
        """Yield a run's events from its records, in any process: `async for event in runs.follow(run_id): …`.

        The events begin with the run's start: nodes entered and left, items done, questions, and changes of the state. The last
        one is `Finished`, with the result, or `StateChanged` to "failed" or "cancelled"; a suspended run is followed further. The
        run is read once a second, and more often while it makes progress; this doesn't affect the run, and the loop may be left
        at any time. Raises as `get`, and UnknownRunError once the run is removed.
        """
        await self._open()
        async with aclosing(follow(self._watch, run_id, self._pause)) as events:
            while True:
                with polling():  # not around `yield`: what the caller does with the event is no poll
                    event = await anext(events, None)
                if event is None:
                    return
                yield event

    async def wait(
        self,
        run_id: str,
        /,
        *,
        timeout: Duration | None = None,  # noqa: ASYNC109 - callers of SyncRuns have no other way to end it
    ) -> RunInfo:
        """Wait until a run is finished, failed or cancelled, in any process. Raises TimeoutError, else as `get`."""
        last = None if timeout is None else time.monotonic() + seconds(timeout, "timeout")
        between, most = PAUSES
        while True:
            with polling():
                info = await self.get(run_id)
            if info.state in ("finished", "failed", "cancelled"):
                return info
            if last is not None and time.monotonic() >= last:
                raise TimeoutError(f"run {run_id!r} is still {info.state} after wait(…, timeout={timeout!r})")
            await self._pause(between)
            between = min(between * 1.5, most)


def _newest(runs: Runs) -> str | None:
    if runs.stack.is_new or runs.stack.needs_loop:
        return None
    try:
        return runs_table(runs.stack.run(runs.list(limit=SHOWN)))
    except PocketError:  # showing an object must not fail; `list` raises the error
        return None


def _states(state: RunState | Collection[RunState] | None) -> Collection[RunState]:
    """The states to list. Raises ConfigError for an unknown state."""
    if state is None:
        return _STATES
    wanted: set[RunState] = {state} if isinstance(state, str) else set(state)
    for each in wanted - set(_STATES):
        raise ConfigError(
            f"state={each!r:.80} is not a state of a run; give one of: {', '.join(_STATES)}.{suggest(each, _STATES)}"
        )
    return wanted


class SyncRuns:
    """`Runs` without `await`."""

    def __init__(self, store: StoreScope | SyncScope | Runs, /) -> None:
        self._runs = store if isinstance(store, Runs) else Runs(store)

    def __repr__(self) -> str:
        return f"Sync{self._runs!r}"

    def _repr_html_(self) -> str | None:
        return _newest(self._runs)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runs.stack.run(coroutine)

    def list(
        self,
        *,
        state: RunState | Collection[RunState] | None = None,
        graph: str | None = None,
        since: float | None = None,
        until: float | None = None,
        limit: int = LIMIT,
        after: str | None = None,
    ) -> RunPage:
        """A page of runs, the newest first, as on Runs."""
        page = self._runs.list(state=state, graph=graph, since=since, until=until, limit=limit, after=after)
        return self._run(page)

    def get(self, run_id: str, /) -> RunInfo:
        """A run, as on Runs."""
        return self._run(self._runs.get(run_id))

    def history(self, run_id: str, /) -> RunHistory:
        """All that is recorded of a run, as on Runs."""
        return self._run(self._runs.history(run_id))

    def questions(self, run_id: str, /) -> tuple[RunQuestion, ...]:
        """The open questions of a run, as on Runs."""
        return self._run(self._runs.questions(run_id))

    def answer(
        self,
        run_id: str,
        answer: Value,
        /,
        *,
        question: str | AnyNode | None = None,
        graph: PlannedGraph | None = None,
    ) -> RunInfo:
        """Answer a question of a run, as on Runs."""
        return self._run(self._runs.answer(run_id, answer, question=question, graph=graph))

    def cancel(self, run_id: str, /) -> RunInfo:
        """Cancel a run, as on Runs."""
        return self._run(self._runs.cancel(run_id))

    def retry(self, run_id: str, /) -> RunInfo:
        """Retry a failed or a stalled run, as on Runs."""
        return self._run(self._runs.retry(run_id))

    def remove(self, run_id: str, /, *, force: bool = False) -> bool:
        """Remove a run, as on Runs. Returns False if there was no such run."""
        return self._run(self._runs.remove(run_id, force=force))

    def prune(
        self,
        *,
        older: Duration | None = None,
        keep: int | None = None,
        state: Prunable | Collection[Prunable] = BY_DEFAULT,
        graph: str | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Remove old runs that have ended, as on Runs."""
        return self._run(self._runs.prune(older=older, keep=keep, state=state, graph=graph, dry_run=dry_run))

    def wait(self, run_id: str, /, *, timeout: Duration | None = None) -> RunInfo:
        """Wait until a run is finished, failed or cancelled, as on Runs."""
        return self._run(self._runs.wait(run_id, timeout=timeout))

    def follow(self, run_id: str, /) -> Iterator[FollowedEvent]:
        """Yield a run's events from its records, as on Runs: `for event in runs.follow(run_id): …`."""
        events = self._runs.follow(run_id)
        try:
            yield from driven(self._run, events)
        finally:
            self._run(events.aclose())
