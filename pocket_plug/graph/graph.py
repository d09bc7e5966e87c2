"""Graphs: chains of nodes joined into something that runs, and that is a node itself."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

from pocket_plug.errors import ConfigError, GraphError
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.values import Value
from pocket_plug.store.keys import Key
from pocket_plug.store.stack import StorePlace
from pocket_plug.store.store import MISSING, Store, StoreScope, View
from pocket_plug.store.sync import SyncScope

from .addresses import executor_faults
from .drawing.drawn import Drawn
from .kinds.ask import Ask
from .kinds.nesting import GraphStep
from .nodes.chain import Chain, Ends, I, O, T, Y, as_chain
from .nodes.node import AnyNode, Node
from .nodes.options import GraphOptions, Options, ResumeOptions, check_count, check_options, check_place
from .observing.host import RunHost, default_host
from .observing.views import Carrier
from .planning.plan import Plan, validation
from .planning.step import make_step
from .running.context import in_own_context
from .running.execution import Execution
from .running.protocols import RecordedState
from .running.visit import step_of
from .upgrades import Upgrade, check_upgrade

if TYPE_CHECKING:
    from .durable.check import RunCheck
    from .durable.request import Request
    from .following.streaming import RunStream


class Graph(Drawn, Node[I, O]):
    """A graph of nodes over a store. It can't be changed after it is made. A run begins with the first node of the first chain.

    >>> from pocket_plug import node
    >>> @node
    ... def shout(word: str) -> str:
    ...     return word.upper()
    >>> Graph(shout, name="demo").run_sync("hello")
    'HELLO'

    - `store`: the store of its nodes. Without one: the outer graph's store, or else the `[store]` of the Pocket's
      configuration, or else a new store in memory. `scope` selects a scope of it.
    - `max_steps`: how many nodes a run may enter, those of nested graphs included; `max_depth`: how deep graphs may nest.
    - `clean_up_grace`: how many seconds a hook such as `on_complete` may still take after the run was cancelled.
    - `timeout`: how long a whole run may take; for a durable run from its start, waits included. After that it fails with
      RunTimeoutError. The timeout of a nested graph is ignored.
    - `keep_finished`: the records of a finished durable run are kept at least this long, even if a client's clock is wrong;
      without it, until they are removed. Once they are removed, a run with the same id begins from the start.
    - `version` and `upgrade`: for durable runs of older versions of this graph. `upgrade={1: fn}` has a function for each
      older version, which takes the `RunPosition` of such a run and returns its position in the next version.

    Raises GraphError, with everything that is wrong, when it is first validated or run.
    """

    _takes = frozenset({"name", "trace"})

    # A branch may lead back into the first chain. If it doesn't, its last output is one more output of the graph.
    @overload
    def __init__(self, main: Chain[I, O, T], /, *more: Ends[Any, T], **options: Unpack[GraphOptions]) -> None: ...
    @overload
    def __init__(
        self, main: Chain[I, O, T], /, *more: Ends[Any, T] | Ends[Any, O], **options: Unpack[GraphOptions]
    ) -> None: ...
    @overload
    def __init__(
        self, main: Node[I, O, Any] | Ends[I, O], /, *more: Ends[Any, O], **options: Unpack[GraphOptions]
    ) -> None: ...
    def __init__(
        self,
        main: Any,
        /,
        *more: Any,
        store: StoreScope | SyncScope | None = None,
        name: str = "",
        scope: str | Key[Any] | None = None,
        max_steps: int = 10_000,
        max_depth: int = 32,
        clean_up_grace: Duration = 5.0,
        keep_finished: Duration | None = None,
        timeout: Duration | None = None,
        version: int = 1,
        upgrade: Mapping[int, Upgrade] | None = None,
        **unknown: object,
    ) -> None:
        check_options("a graph", unknown, GraphOptions.__annotations__)
        self._options = Options().changed(self._takes, name="graph" if name == "" else name)
        check_place(self.name, store, scope)
        self._chains = tuple(as_chain(chain) for chain in (main, *more))
        self._store: StoreScope | SyncScope | None = store
        self._scope = scope
        self.max_steps, self.max_depth = check_count(max_steps, "max_steps"), check_count(max_depth, "max_depth")
        self.clean_up_grace = seconds(clean_up_grace, "clean_up_grace")
        self.keep_finished = None if keep_finished is None else seconds(keep_finished, "keep_finished")
        self.version, self.upgrade = check_count(version, "version"), check_upgrade(upgrade, version, self.name)
        self.timeout = None if timeout is None else seconds(timeout, "timeout")
        needs_loop = store is not None and store.stack.needs_loop
        self.plan = Plan(self._chains, self.name, step_of, needs_loop)
        self._placed: StorePlace | None = None
        self._validated: Options | None = None

    @property
    def name(self) -> str:
        """The graph's name in traces, errors and drawings."""
        return self._options.name

    def __repr__(self) -> str:
        return f"<graph {self.name}: {', '.join(step.name for step in self.plan.steps.values())}>"

    async def run(
        self,
        input: I,
        /,
        *,
        pocket: RunHost | None = None,
        run_id: str | None = None,
        allow_changed: bool = False,
        takeover: bool = False,
        store: StoreScope | SyncScope | None = None,
        traceparent: Carrier | None = None,
    ) -> O:
        """Run the graph from its first node to the last, and return the output of the last one.

        The run executes in the caller's task, in a context of its own. `pocket` has the plugins that observe it; by default the
        process's default Pocket. Raises what a node raises, GraphError, RouteError, InputError, StepLimitError.

        With a `run_id` the run is durable: the same line starts it, resumes it after a crash, or returns its result if it has
        finished. Raises ConfigError if the store is not persistent, RunSuspendedError if the run has to wait for an answer or a
        time, RunFencedError if another execution has taken it over, RunMismatchError if the run with this id has another input
        or graph, and RunChangedError if the graph has changed and `allow_changed` isn't given.

        `traceparent` is a W3C trace context, or what `pocket_plug.propagation.inject` returned elsewhere: its trace continues.
        `store` is the store of this run, for a graph that was made without one.
        """
        request = _request(run_id, MISSING, allow_changed, takeover)
        execution = self._execution(input, pocket, request, store, traceparent, loop=True)
        if execution.stack.is_new:
            await execution.stack.ensure_open()
        return await in_own_context(execution.go())

    def stream(
        self,
        input: I,
        /,
        *,
        buffer: int = 100,
        store: StoreScope | SyncScope | None = None,
        pocket: RunHost | None = None,
        run_id: str | None = None,
        allow_changed: bool = False,
        takeover: bool = False,
        traceparent: Carrier | None = None,
    ) -> RunStream[O]:
        """Run it, and yield its events as they happen: `async for event in graph.stream(order): …`.

        The run begins with the first event that is requested, in a task of its own. It may be `buffer` events ahead of
        its reader; then it waits, between two nodes or items. The last event is `Finished`, with the output, or
        `Suspended` if the run waits for an answer or a time. Any error that `run` would raise is raised by the loop,
        after all events before it.

        Leaving the loop cancels the run. `async with graph.stream(order) as events:` also waits until the run has ended.
        """
        from .following.feed import Feed
        from .following.streaming import RunStream, StreamHost

        request = _request(run_id, MISSING, allow_changed, takeover)
        feed = Feed(check_count(buffer, "buffer"))
        host = StreamHost(default_host() if pocket is None else pocket, feed)
        return RunStream(feed, self._execution(input, host, request, store, traceparent, loop=True))

    @overload
    async def resume(
        self, run_id: str, /, *, answer: Y, question: Ask[Any, Y], **options: Unpack[ResumeOptions]
    ) -> O: ...
    @overload
    async def resume(
        self, run_id: str, /, *, answer: object = ..., question: str | None = ..., **options: Unpack[ResumeOptions]
    ) -> O: ...
    async def resume(
        self,
        run_id: str,
        /,
        *,
        answer: object = MISSING,
        question: str | Ask[Any, Any] | None = None,
        pocket: RunHost | None = None,
        allow_changed: bool = False,
        takeover: bool = False,
        store: StoreScope | SyncScope | None = None,
        traceparent: Carrier | None = None,
    ) -> O:
        """Resume a durable run without its input, or answer the question that it waits for.

        `question` is the question's id, or the Ask, which lets type checkers check the answer. The other options are those of
        `run`. Raises UnknownRunError if there is no run with that id, InputError for an answer of another type, else as `run`.
        """
        request = _request(run_id, answer, allow_changed, takeover, question)
        execution = self._execution(MISSING, pocket, request, store, traceparent, loop=True)
        if execution.stack.is_new:
            await execution.stack.ensure_open()
        return await in_own_context(execution.go())

    def run_sync(
        self,
        input: I,
        /,
        *,
        pocket: RunHost | None = None,
        run_id: str | None = None,
        allow_changed: bool = False,
        takeover: bool = False,
        store: StoreScope | SyncScope | None = None,
        traceparent: Carrier | None = None,
    ) -> O:
        """`run` for callers without `await`: each `def exec` runs in the caller's thread.

        If every phase is `def`, no event loop is needed. Otherwise a new one is started; raises SyncError if one already runs
        in this thread. With a store that is bound to an event loop, the run executes on that loop.
        """
        request = _request(run_id, MISSING, allow_changed, takeover)
        execution = self._execution(input, pocket, request, store, traceparent, loop=False)
        output: O = execution.go_in_place()
        return output

    @overload
    def resume_sync(
        self, run_id: str, /, *, answer: Y, question: Ask[Any, Y], **options: Unpack[ResumeOptions]
    ) -> O: ...
    @overload
    def resume_sync(
        self, run_id: str, /, *, answer: object = ..., question: str | None = ..., **options: Unpack[ResumeOptions]
    ) -> O: ...
    def resume_sync(
        self,
        run_id: str,
        /,
        *,
        answer: object = MISSING,
        question: str | Ask[Any, Any] | None = None,
        pocket: RunHost | None = None,
        allow_changed: bool = False,
        takeover: bool = False,
        store: StoreScope | SyncScope | None = None,
        traceparent: Carrier | None = None,
    ) -> O:
        """`resume` for callers without `await`."""
        request = _request(run_id, answer, allow_changed, takeover, question)
        execution = self._execution(MISSING, pocket, request, store, traceparent, loop=False)
        output: O = execution.go_in_place()
        return output

    async def submit(
        self,
        input: I,
        /,
        *,
        run_id: str,
        pocket: RunHost | None = None,
        store: StoreScope | SyncScope | None = None,
        traceparent: Carrier | None = None,
    ) -> RecordedState:
        """Record a durable run as `pending`, for a `Worker` here or in another process; return its state.

        The same id with the same input is recorded only once, however often it is submitted: later calls return its
        current state. Raises RunMismatchError if the run with this id has another input or graph, InputError if the first
        node doesn't accept the input, and ConfigError if the store is not persistent.
        """
        from .durable.submitting import submit

        pocket = pocket or default_host()
        place = self.own_place(pocket, store)
        stack, _ = place
        await stack.ensure_open()
        return await submit(self, place, run_id, input, pocket, traceparent)

    def submit_sync(
        self,
        input: I,
        /,
        *,
        run_id: str,
        pocket: RunHost | None = None,
        store: StoreScope | SyncScope | None = None,
        traceparent: Carrier | None = None,
    ) -> RecordedState:
        """`submit` for callers without `await`."""
        pocket = pocket or default_host()
        stack, _ = self.own_place(pocket, store)
        return stack.run(self.submit(input, run_id=run_id, pocket=pocket, store=store, traceparent=traceparent))

    async def check_runs(
        self, *, pocket: RunHost | None = None, store: StoreScope | SyncScope | None = None
    ) -> list[RunCheck]:
        """Check which open durable runs of this graph can resume in its current form. None is executed, nothing is written.

        Functions given as `upgrade` are called. Raises ConfigError if its store can't keep durable runs.
        """
        from .durable.check import check_runs

        place = self.own_place(pocket or default_host(), store)
        stack, _ = place
        await stack.ensure_open()
        return await check_runs(self, place)

    def check_runs_sync(
        self, *, pocket: RunHost | None = None, store: StoreScope | SyncScope | None = None
    ) -> list[RunCheck]:
        """`check_runs` for callers without `await`."""
        pocket = pocket or default_host()
        stack, _ = self.own_place(pocket, store)
        return stack.run(self.check_runs(pocket=pocket, store=store))

    def own_place(self, pocket: RunHost, store: StoreScope | SyncScope | None = None) -> StorePlace:
        """The stack and the key prefix of the graph when it is not nested, with `store` if that is given.

        Raises ConfigError if that isn't a store, or if the graph was made with one.
        """
        if store is not None and self._store is not None:
            raise ConfigError(f"graph {self.name!r} has a store of its own; leave out store=, here or in Graph(…)")
        if store is None and self._store is None:
            store = pocket.default_store()
        if store is not None:
            check_place(self.name, store, None)
            return self.place(store)
        self._placed = self._placed or self.place(Store())
        return self._placed

    def _execution(
        self,
        input: Value,
        pocket: RunHost | None,
        request: Request | None,
        store: StoreScope | SyncScope | None,
        traceparent: Carrier | None,
        *,
        loop: bool,
    ) -> Execution:
        pocket = pocket or default_host()
        if self._validated is not self._options:  # a copy may have other options
            self.validate(pocket=pocket)
        if "IPython" in sys.modules:
            from .planning.former import warn_of_former_nodes

            warn_of_former_nodes(self.plan)
        place = self.own_place(pocket, store)
        if request is not None:
            execution: Execution = request.execution(self, place, input, pocket, loop)
        elif self.plan.asks:
            raise ConfigError(f"graph {self.name!r} asks, so its run may wait; give the run an id: run(…, run_id=…)")
        else:
            execution = Execution(self, place, input, pocket, loop)
        if traceparent is not None:
            execution.run.traceparent = {"traceparent": traceparent} if isinstance(traceparent, str) else traceparent
        return execution

    def place(self, outer: View) -> StorePlace:
        """The stack and the key prefix of its nodes, given the outer graph's store."""
        view = self._store if self._store is not None else outer
        return (view if self._scope is None else view.scope(self._scope)).place

    def validate(self, *, pocket: RunHost | None = None) -> None:
        """Raise GraphError with everything that is wrong with the graph and its nested graphs; the first run does this too.

        `pocket` knows the executors of its nodes; by default the process's default Pocket.
        """
        found = self.plan.findings()
        if self.plan.is_elsewhere:
            found += executor_faults(self, pocket or default_host())
        if found:
            raise GraphError(f"graph {self.name!r} can't run:", found)
        self._validated = self._options if validation.is_kept else None

    def replace(self, /, **nodes: AnyNode) -> Self:
        """A copy of this graph in which the nodes with these names are replaced; this graph stays as it is.

        It is mostly for tests: a fake gets the name and the edges of the node that it replaces. The node that an `each` takes
        its items through can be replaced too. For a node of a nested graph, replace the nested graph:
        `shop.replace(payment=payment.replace(charge=fake))`.

        Raises GraphError if there is no such node, if several nodes have the name, or if a type doesn't fit: the new node must
        accept every input of the old one, and return a type that the old one may return.

        >>> from pocket_plug import node
        >>> @node
        ... def charge(amount: int) -> str:
        ...     raise ConnectionError("no network here")
        >>> @node
        ... def fake(amount: int) -> str:
        ...     return f"receipt for {amount}"
        >>> Graph(charge, name="shop").replace(charge=fake).run_sync(9)
        'receipt for 9'
        """
        from .replacing import replaced

        graph = copy.copy(self)
        graph._chains, graph.plan = replaced(self._chains, self.plan, nodes)
        graph._placed = graph._validated = None
        return graph


def _request(
    run_id: str | None, answer: object, allow_changed: bool, takeover: bool, question: object = None
) -> Request | None:
    """The request for a durable run, or None for another run: that doesn't load the modules of durable runs."""
    if run_id is None and not allow_changed and not takeover:
        return None
    from .durable.request import Request

    return Request(run_id, answer=answer, question=question, allow_changed=allow_changed, takeover=takeover)


make_step.register(Graph, GraphStep)
