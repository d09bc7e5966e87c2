"""Graphs: chains of nodes joined into something that runs, and that is a node itself."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, overload

from .chain import DEFAULT, Chain, Next
from .context import in_own_context
from .errors import GraphError, SyncError
from .keys import Key
from .node import I, Node, O, Options, as_chain, options_of
from .plan import Plan, Step
from .runner import Execution
from .stack import Stack
from .store import Store, StoreReader, View
from .sync import SyncStore
from .ttl import TTL, seconds
from .waiting import drive

if TYPE_CHECKING:
    from .hookspecs import NodeCall
    from .pocket import Pocket

MAX_STEPS = 10_000
MAX_DEPTH = 32
CLEAN_UP_GRACE = 5.0


class Graph(Node[I, O]):
    """A graph of nodes over a store; frozen once made. It begins with the first chain's first node.

    >>> from pocket_plug import node
    >>> @node
    ... def shout(word: str) -> str:
    ...     return word.upper()
    >>> Graph(shout, name="demo").run_sync("hello")
    'HELLO'

    - `store`: where its nodes read and write. Without one that is, as part of another graph, that graph's; else the
      `[store]` of the Pocket's configuration; else one of its own in memory. `scope` gives it a part of that.
    - `max_steps`: the nodes that a run may enter, nested graphs' included; `max_depth`: how deep graphs may nest.
    - `clean_up_grace`: seconds that a hook such as `on_complete` has to end once the run has been cancelled.

    Raises GraphError, with every finding, when it is first validated or run.
    """

    @overload
    def __init__(self, main: Node[I, O, Any] | Chain[I, O], /, *, store: Store | SyncStore | None = None, name: str = "",
                 scope: str | Key[Any] | None = None, max_steps: int = MAX_STEPS, max_depth: int = MAX_DEPTH,
                 clean_up_grace: TTL = CLEAN_UP_GRACE) -> None: ...  # fmt: skip
    @overload
    def __init__(self, main: Node[I, O, Any] | Chain[I, O], /, *more: Chain[Any, O], store: Store | SyncStore | None = None,
                 name: str = "", scope: str | Key[Any] | None = None, max_steps: int = MAX_STEPS,
                 max_depth: int = MAX_DEPTH, clean_up_grace: TTL = CLEAN_UP_GRACE) -> None: ...  # fmt: skip
    def __init__(self, main: Any, /, *more: Any, store: Store | SyncStore | None = None, name: str = "",
                 scope: str | Key[Any] | None = None, max_steps: int = MAX_STEPS, max_depth: int = MAX_DEPTH,
                 clean_up_grace: TTL = CLEAN_UP_GRACE) -> None:  # fmt: skip
        self._options = Options(name=name or "graph")
        self._chains = tuple(as_chain(chain) for chain in (main, *more))
        self._store: Store | SyncStore | None = store
        self._scope = scope
        self.max_steps, self.max_depth, self.clean_up_grace = max_steps, max_depth, seconds(clean_up_grace)
        self.plan = Plan(self._chains, self.name, make_step)
        self._placed: tuple[Stack, str] | None = None
        self._validated: Options | None = None
        self._is_sync = self.plan.is_sync

    @property
    def name(self) -> str:
        """What traces, errors and drawings call it."""
        return self._options.name

    def __repr__(self) -> str:
        return f"<graph {self.name}: {', '.join(step.name for step in self.plan.steps.values())}>"

    async def run(self, input: I, /, *, pocket: Pocket | None = None) -> O:
        """Run it from the first node to the last and give what that left with.

        A run is driven in a context of its own, in the caller's task. `pocket` brings the plugins that watch it; without one
        the process's default is used. Raises what a node raises, GraphError, RouteError, InputError, StepLimitError.
        """
        execution = self._execution(input, pocket, loop=True, threads=True)
        if execution.stack.is_new:
            await execution.stack.ensure_open()
        return await in_own_context(execution.go(input))

    def run_sync(self, input: I, /, *, pocket: Pocket | None = None) -> O:
        """`run` for callers without `await`; `def exec` runs in place here, and `each` one item after the other.

        Where every phase is `def` no event loop is needed. Else one is made, which raises SyncError where one runs. Over a
        store that is bound to an event loop it is `run` on that loop.
        """
        execution = self._execution(input, pocket, loop=False, threads=False)
        if self._is_sync and not execution.stack.needs_loop:
            if execution.stack.is_new:
                execution.stack.open_sync()
            return copy_context().run(drive, execution.go(input))  # type: ignore[no-any-return]
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise SyncError(
                f"graph {self.name!r} has async phases, and an event loop runs in this thread; use `await graph.run(…)`"
            )
        execution.loop = True
        if execution.stack.needs_loop:  # what belongs to a loop can't follow a run from one loop to the next
            execution.threads = True
            if execution.stack.is_new:
                execution.stack.open_sync()
            return execution.stack.run(execution.go(input))  # type: ignore[no-any-return]
        return asyncio.run(self._run_in_place(execution, input))

    async def _run_in_place(self, execution: Execution, input: I) -> O:
        if execution.stack.is_new:
            await execution.stack.ensure_open()
        return await execution.go(input)  # type: ignore[no-any-return]

    def _execution(self, input: I, pocket: Pocket | None, *, loop: bool, threads: bool) -> Execution:
        if self._validated is not self._options:  # a copy may have others
            self.validate()
        if pocket is None:
            from .pocket import default_pocket

            pocket = default_pocket()
        if self._store is None and pocket.config.store.where:
            place = self.place(pocket.store)
        else:
            place = self._placed = self._placed or self.place(Store())
        return Execution(self, place, input, pocket, loop, threads)

    def place(self, outer: View) -> tuple[Stack, str]:
        """Where its nodes read and write, given the outer graph's store."""
        view = self._store if self._store is not None else outer
        return (view if self._scope is None else view.scope(self._scope)).place

    def validate(self) -> None:
        """Raise GraphError with every fault of the graph and those within it at once. The first run does it too."""
        if found := [*self.plan.findings(), *_guards(self)]:
            raise GraphError(f"graph {self.name!r} can't run:", found)
        self._validated = self._options

    def mermaid(self) -> str:
        """The graph as a Mermaid flow chart."""
        from .mermaid import flow_chart

        return flow_chart(self.plan)


class GraphStep(Step):
    """A graph as a node of another."""

    kind = "graph"

    def __init__(self, graph: Graph[Any, Any]) -> None:
        super().__init__(graph)
        self.graph = graph
        first = graph.plan.start
        self.input_type, self.fits, self.input_class = first.input_type, None, None

    @property
    def is_sync(self) -> bool:
        store = self.graph._store  # pyright: ignore[reportPrivateUsage]
        return self.graph.plan.is_sync and (store is None or not store.place[0].needs_loop)

    def faults(self, exits: Collection[str]) -> list[str]:
        found = [f"in graph {self.name!r}: {fault}" for fault in self.graph.plan.findings({*exits, *self.actions})]
        return [*found, *_guards(self.graph)]

    async def perform(self, execution: Execution, value: Any, call: NodeCall | None) -> Any:
        graph = self.graph
        place = graph.place(StoreReader(execution.stack, execution.prefix))
        if place[0].is_new:
            await place[0].ensure_open()
        inner = Execution(graph, place, value, execution.pocket, execution.loop, execution.threads, parent=execution)
        inner.exits = {**execution.exits, **self.actions}
        output = await in_own_context(inner.go(value))
        return output if inner.left_by == DEFAULT else Next(inner.left_by, output)


def _guards(graph: Graph[Any, Any]) -> list[str]:
    options = options_of(graph)
    if options.retry is None and options.timeout is None:
        return []
    return [f"graph {options.name!r} can't have a retry or a timeout; give them to its nodes"]


def make_step(node: Node[Any, Any, Any]) -> Step:
    """The step for a node of whatever kind."""
    from .concurrency import Each, EachStep

    if isinstance(node, Graph):
        return GraphStep(node)
    return EachStep(node) if isinstance(node, Each) else Step(node)  # pyright: ignore[reportUnknownArgumentType]
