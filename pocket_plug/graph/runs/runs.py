"""`Runs`: the durable runs of a store, of whatever graphs, for those who operate them; `SyncRuns` is the same without `await`.

Nothing is implemented twice here: each call of the sync one drives the coroutine that the async one makes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Collection, Coroutine, Iterator
from typing import Any, TypeVar, get_args

from pocket_plug.errors import ConfigError, PocketError, suggest
from pocket_plug.graph.durable.indexing import index_old
from pocket_plug.graph.durable.prune import Pruned, prune
from pocket_plug.graph.durable.removal import remove_run
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.following.events import FollowedEvent
from pocket_plug.graph.nodes.node import AnyNode
from pocket_plug.graph.planning.plan import PlannedGraph
from pocket_plug.graph.retention import BY_DEFAULT, Prunable, Retention
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import pause
from pocket_plug.store.store import StoreScope
from pocket_plug.store.sync import SyncScope

from .answering import answer as record_answer
from .following import PAUSES, Pause, follow
from .history import history_of
from .info import ENDED, RunHistory, RunInfo, RunPage, RunQuestion, RunState, questions_of, runs_table, told, waits_for
from .listing import Wanted, page_of
from .operations import Place, cancel, must_see, retry

T = TypeVar("T")
LIMIT = 100
"""Runs of a page, unless another number is given."""
SHOWN = 20
"""Runs that a notebook shows of all."""
_STATES: tuple[RunState, ...] = get_args(RunState)


class Runs:
    """The durable runs that a store keeps, of all graphs. Nothing here needs the graphs, nor the program's types.

    `store` is a Store or a SyncStore, or a scope of one: a store's runs are all in one place. It is opened unless it is open.
    `pause` is awaited between two looks of `wait` and `follow`; a test gives another one.
    """

    def __init__(self, store: StoreScope | SyncScope, /, *, pause: Pause = pause) -> None:
        self.stack, self._pause = store.stack, pause
        self._place = Place(self.stack, StallWatch(self.stack))
        self._is_indexed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.stack!r})"

    def _repr_html_(self) -> str | None:
        """In a notebook: the runs that were begun last, where the store is open and needs no event loop to be read."""
        return _newest(self)

    @property
    def sync(self) -> SyncRuns:
        """The same without `await`."""
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
        """A page of runs, those that were begun last first: `page.runs`, and `page.after` for the next one.

        - `state`, `graph`: only runs in this state, or one of these, and of this graph.
        - `since`, `until`: only those that were begun at or after the one time, and before the other, in epoch seconds.
        - `limit`: how many at most. Each page costs the same, however many runs there are.
        - `after`: the `after` of the page before.

        A run that can't be read is `unreadable`, and keeps no other back. A list of the unreadable ones looks at all runs. Runs
        that an older version has begun are found, too: the first list of a store sees to it.
        """
        if limit < 1:
            raise ConfigError(f"limit={limit}: a page has at least one run")
        wanted = Wanted(states=_states(state), graph=graph, since=since, until=until)
        await self._open()
        if not self._is_indexed:
            await index_old(self.stack)
            self._is_indexed = True
        return await page_of(self._place, wanted, limit, after)

    async def get(self, run_id: str, /) -> RunInfo:
        """A run. Raises UnknownRunError, CorruptRecordError for a damaged record, StoreError for one of a newer version."""
        await self._open()
        return await told(self.stack, await must_see(self._place, run_id))

    async def history(self, run_id: str, /) -> RunHistory:
        """All that is kept of a run: its executions with their traces and failures, its path, its values. Raises as `get`."""
        await self._open()
        return await history_of(self.stack, await must_see(self._place, run_id))

    async def questions(self, run_id: str, /) -> tuple[RunQuestion, ...]:
        """The open questions of a run, whether it waits already or is at work beside them. Raises as `get`."""
        await self._open()
        seen = await must_see(self._place, run_id)
        if seen.status in ENDED:
            return ()
        return tuple(each for each in questions_of(run_id, await waits_for(self.stack, seen)) if each.is_open)

    async def answer(
        self,
        run_id: str,
        answer: Value,
        /,
        *,
        question: str | AnyNode | None = None,
        graph: PlannedGraph | None = None,
    ) -> RunInfo:
        """Answer a question of a run. One that waits becomes `pending`, so that a worker goes on with it.

        - `question`: its id, or the Ask that asks; not needed where the run has asked one only.
        - `graph`: the run's graph, for answers of types that a question alone can't tell, such as a model.

        The same answer may be given again. Raises InputError for an answer of another type than the question asks for,
        RunMismatchError where there is no such question, or it has had another answer, RunStateError for a run that has
        ended, else as `get`.
        """
        await self._open()
        return await record_answer(self._place, run_id, answer, question, graph)

    async def cancel(self, run_id: str, /) -> RunInfo:
        """End a run for good; what its nodes have written stays.

        One that nobody is at is `cancelled` at once. An execution that is at it finds out at its next commit or heartbeat, in
        this process at once: its `exec` is cancelled as asyncio does it, and `on_failure` and `on_complete` run. Until then
        it is `running`, and `is_ending`. Raises RunStateError for one that has finished, else as `get`.
        """
        await self._open()
        return await cancel(self._place, run_id)

    async def retry(self, run_id: str, /) -> RunInfo:
        """Let a failed run, or a stalled one, be gone on with: it becomes `pending`, so that a worker takes it.

        It goes on at the node that has failed. Raises RunStateError for one in another state, else as `get`.
        """
        await self._open()
        return await retry(self._place, run_id)

    async def remove(self, run_id: str, /, *, force: bool = False) -> bool:
        """Remove a run, with all that is kept of it: its id is free again. Was it there?

        Raises RunBusyError for one that is running, unless `force`: then an execution that is at it gets RunFencedError at
        its next commit. What its nodes have written stays.
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
        """Remove old runs that have ended, some at a time, while others go on; says how many that were.

        - `older`: those that ended so long ago, by the clock of this process.
        - `keep`: but the last so many of each graph and state, in the order in which they were begun. One of both is given.
        - `state`: of these states: "finished", "cancelled" and, since it could be retried, only where that is said "failed".
        - `graph`: of this graph only.
        - `dry_run`: nothing is removed.

        Interrupted, it has removed some. Then the file that the store is in shrinks. Raises ConfigError.
        """
        states = (state,) if isinstance(state, str) else tuple(state)
        retention = Retention.of(older=older, keep=keep, states=states, graph=graph)
        await self._open()
        return await prune(self.stack, retention, dry_run=dry_run)

    async def follow(self, run_id: str, /) -> AsyncGenerator[FollowedEvent]:
        """A run's events, by what is recorded of it: `async for event in runs.follow(run_id): …`, from whatever process.

        They begin with its begin: nodes entered and left, items done, questions, and the states that it comes to. The last
        one is `Finished`, with the result, or the `StateChanged` of a run that has failed or was cancelled; while it waits it
        is followed on. It is looked at once a second, and more often while it moves; it doesn't notice, and may be left at any
        time. Raises as `get`: UnknownRunError also once the run is removed.
        """
        await self._open()
        async for event in follow(self._place, run_id, self._pause):
            yield event

    async def wait(
        self,
        run_id: str,
        /,
        *,
        timeout: Duration | None = None,  # noqa: ASYNC109 - the sync one has no other way to be ended
    ) -> RunInfo:
        """Wait until a run is finished, failed or cancelled, whoever is at it. Raises TimeoutError, else as `get`."""
        last = None if timeout is None else time.monotonic() + seconds(timeout, "timeout")
        between, most = PAUSES
        while (info := await self.get(run_id)).state not in ("finished", "failed", "cancelled"):
            if last is not None and time.monotonic() >= last:
                raise TimeoutError(f"run {run_id!r} is {info.state} after the timeout={timeout!r} of wait")
            await self._pause(between)
            between = min(between * 1.5, most)
        return info


def _newest(runs: Runs) -> str | None:
    if runs.stack.is_new or runs.stack.needs_loop:
        return None
    try:
        return runs_table(runs.stack.run(runs.list(limit=SHOWN)))
    except PocketError:  # to look at a thing never fails; whoever lists them is told
        return None


def _states(state: RunState | Collection[RunState] | None) -> Collection[RunState]:
    """The states that are asked for. Raises ConfigError for what is none."""
    if state is None:
        return _STATES
    wanted: set[RunState] = {state} if isinstance(state, str) else set(state)
    for each in wanted - set(_STATES):
        raise ConfigError(f"state={each!r:.80} is none of a run's: {', '.join(_STATES)}.{suggest(each, _STATES)}")
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
        stack = self._runs.stack
        if stack.is_new:
            stack.open_sync()
        return stack.run(coroutine)

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
        """A page of runs, those that were begun last first, as on Runs."""
        page = self._runs.list(state=state, graph=graph, since=since, until=until, limit=limit, after=after)
        return self._run(page)

    def get(self, run_id: str, /) -> RunInfo:
        """A run, as on Runs."""
        return self._run(self._runs.get(run_id))

    def history(self, run_id: str, /) -> RunHistory:
        """All that is kept of a run, as on Runs."""
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
        """End a run for good, as on Runs."""
        return self._run(self._runs.cancel(run_id))

    def retry(self, run_id: str, /) -> RunInfo:
        """Let a failed run be gone on with, as on Runs."""
        return self._run(self._runs.retry(run_id))

    def remove(self, run_id: str, /, *, force: bool = False) -> bool:
        """Remove a run, as on Runs. Was it there?"""
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
        """A run's events, by what is recorded of it, as on Runs: `for event in runs.follow(run_id): …`."""
        events = self._runs.follow(run_id)
        try:
            while (event := self._run(_next(events))) is not None:
                yield event
        finally:
            self._run(events.aclose())


async def _next(events: AsyncGenerator[FollowedEvent]) -> FollowedEvent | None:
    return await anext(events, None)
