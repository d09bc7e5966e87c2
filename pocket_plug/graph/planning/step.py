"""A node of a graph, made ready to run: its phases, options and edges, looked up once.

Each kind of node has a kind of step, which it registers with `make_step`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import singledispatch
from typing import Any, Protocol

from pocket_plug.errors import RouteError, UndeclaredKeyError, suggest
from pocket_plug.graph.elsewhere import Address
from pocket_plug.graph.nodes.chain import DEFAULT
from pocket_plug.graph.nodes.node import HOOKS, AnyNode, options_of
from pocket_plug.graph.nodes.node_functions import FunctionNode, PostNode
from pocket_plug.graph.nodes.phases import (
    PHASES,
    Function,
    declared_actions,
    faults,
    input_type,
    output_type,
    overridden,
)
from pocket_plug.graph.nodes.retry import Retry
from pocket_plug.graph.observing.shape import Kind, Shape
from pocket_plug.graph.observing.views import Facts, NodeCall, Phase
from pocket_plug.primitives.failures import capped
from pocket_plug.primitives.signatures import is_async
from pocket_plug.primitives.sources import source_of
from pocket_plug.primitives.typechecks import checker
from pocket_plug.primitives.values import Hint, SpanAttributes, Value
from pocket_plug.store.keys import Key

Visited = tuple["Step | None", Value, asyncio.CancelledError | None]
"""The next step (None: the run ends), its input, and a cancellation that came when the node could not be stopped any more."""
Visiting = Coroutine[Any, Any, Visited]


class Way(Protocol):
    """A path through one node: it takes values through the node's phases."""

    step: Step

    def take(self, run: Any, value: object, call: NodeCall | None, /) -> Visiting:
        """Take a value through the node. `call` is None if nobody observes the run."""
        ...


class Step:
    """One node of one graph. A phase that the node doesn't override is None.

    It has slots, since CPython shares dict keys for 30 attributes at most: with more, each step would have a dict of 2 KiB.
    """

    __slots__ = (
        *("actions", "address", "declared", "exec", "exec_async", "executor", "facts", "fallback", "fallback_async"),
        *("fits", "functions", "guarded", "hooks", "input_class", "input_type", "is_item", "name", "next", "node"),
        *("output_type", "phases", "post", "post_async", "prep", "prep_async", "reads", "retry", "serializable"),
        *("timeout", "title", "trace", "ways", "writes"),
    )
    kind: Kind = "node"
    is_hidden = False
    """Is the node none of the program's? Then observers don't see it, and it can't be replaced."""
    asks = False
    """May a run have to wait for an answer at this step?"""
    perform: Function | None = None
    """Called in place of `exec` for nested graphs, fan-outs, questions and sleeps: an async function of (run, call, value)."""
    branches: Sequence[Step] = ()
    """The first step of each branch of a `gather`, in a graph of its own."""
    ways: Sequence[Way]
    """The paths through the node, one for each place where a run may call `def` phases (see `visit`)."""

    def __init__(self, node: AnyNode) -> None:
        options = options_of(node)
        self.node = node
        self.name = options.name
        self.title = self.name if issubclass(type(node), FunctionNode) else type(node).__name__
        self.retry: Retry | None = options.retry
        self.executor = options.executor
        self.address: Address | None = None
        """How another process finds the node. It is set before the first run, if an executor runs `exec` in other processes."""
        self.timeout = options.timeout
        self.trace = options.trace is not False
        self.declared: SpanAttributes = {} if isinstance(options.trace, bool) else options.trace
        self.serializable = options.isolation == "serializable"
        self.reads, self.writes = options.reads, options.writes
        self.facts: Facts | None = None
        self.is_item = False
        """Does an `each` take its items through this node? Then it has no edges."""
        self.actions: dict[str, Step] = {}
        self.next: Step | None = None  # the target of "default"; None: the run ends
        self.functions = functions = {name: overridden(node, name) for name in (*PHASES, *HOOKS)}
        self.prep, self.exec, self.fallback = functions["prep"], functions["exec"], functions["fallback"]
        self.post = functions["post"]
        self.prep_async, self.exec_async, self.fallback_async, self.post_async = (
            function is not None and is_async(function) for function in (self.prep, self.exec, self.fallback, self.post)
        )
        if issubclass(type(node), PostNode) and self.post is not None:
            self.post = _with_store_and_input(self.post)
        self.hooks: dict[str, tuple[Function, bool]] = {
            name: (function, is_async(function)) for name in HOOKS if (function := functions[name]) is not None
        }
        self.phases: tuple[Phase, ...] = tuple(name for name in PHASES if functions[name] is not None)
        self.guarded = bool(self.retry or self.timeout or self.fallback or self.executor is not None)
        declared = input_type(node)
        self.input_type, self.output_type = declared, output_type(node)
        # An object of exactly this class fits, so `fits` need not be called.
        plain_class = isinstance(declared, type) and type(declared) is type and declared not in (float, complex, object)
        self.input_class: Any = declared if plain_class else None
        self.fits: Function | None = None if declared is Any else checker(declared)

    def find_facts(self) -> Facts:
        """Set and return what observers get at each visit. It is looked up at the first visit that is observed."""
        self.facts = self.name, self.kind, self.trace, self.guarded, self.phases, self.is_item, self.labels
        return self.facts

    @property
    def labels(self) -> SpanAttributes:
        """Attributes of its span: the place of its main phase in the source (`code.*`), and those of `trace={…}`."""
        function = self.functions["exec"] or self.functions["post"] or self.functions["prep"]
        declared = {
            capped(name): capped(value) if isinstance(value, str) else value for name, value in self.declared.items()
        }
        return {**({} if function is None else source_of(function)), **declared}

    @property
    def is_sync(self) -> bool:
        """Can the node run without an event loop?"""
        phases = (self.prep_async, self.exec_async, self.fallback_async, self.post_async)
        return not any((*phases, *(is_async for _, is_async in self.hooks.values())))

    @property
    def is_async(self) -> bool:
        """Are all its phases `async def`, so that it never needs a worker thread?"""
        return all(
            is_async
            for function, is_async in (
                (self.prep, self.prep_async),
                (self.exec, self.exec_async),
                (self.fallback, self.fallback_async),
                (self.post, self.post_async),
            )
            if function is not None
        )

    @property
    def is_elsewhere(self) -> bool:
        """Does an executor run its `exec`, or that of a node inside it?"""
        inner = self.inner_graph()
        return self.passed.executor is not None or (inner is not None and inner.plan.is_elsewhere)

    @property
    def declares_keys(self) -> bool:
        """Does the node declare `reads` or `writes`?"""
        return bool(self.reads or self.writes)

    @property
    def wraps_exec(self) -> bool:
        """Does something run around `exec`, or in its place: several attempts, or other nodes? Then that measures the time."""
        return self.perform is not None or (self.guarded and self.exec is not None)

    def faults(self, exits: Collection[str]) -> list[str]:
        """Messages about what is wrong with the node itself. `exits` are actions for which an outer graph has an edge."""
        found = [*faults(self.node, self.name), *self._patched()]
        if self.executor is not None and self.exec is None:
            found.append(f"node {self.name!r} has an executor, but no exec for it to run")
        if self.fallback is not None and self.exec is None:
            found.append(f"node {self.name!r} has a fallback, but no exec that could fail")
        return found

    def _patched(self) -> list[str]:
        """Messages about phases and hooks that were replaced after the plan was made: the run would never call the new ones."""
        return [
            f"{self.title}.{name} was changed after the graph was made, and the graph would still call the old one; "
            f"use graph.replace({self.name}=another node), or change it before"
            for name, function in self.functions.items()
            if (now := overridden(self.node, name)) != function
            if now == overridden(self.node, name)  # a partialmethod differs at each look-up, so it was not changed
        ]

    @property
    def carried(self) -> dict[str, Hint]:
        """The actions that the node declares, each with the type of its output."""
        return declared_actions(self.node)

    @property
    def passed(self) -> Step:
        """For a fan-out, the step that its items go through; for any other step, the step itself."""
        return self

    @property
    def returns_input(self) -> bool:
        """Does the node always return its input, of whichever type?"""
        return False

    def inner_graph(self) -> Any:
        """The graph that this node is, or that its items go through: a `PlannedGraph`, or None."""
        return None

    def inner_shape(self) -> Shape | None:
        """The shape of the graph that this node is, or that its items go through; or None."""
        inner = self.inner_graph()
        return None if inner is None else inner.plan.shape

    def no_route(self, action: str, graph: str) -> RouteError:
        """The error for an action without an edge."""
        known = ", ".join(sorted({*self.actions, DEFAULT}))
        if not isinstance(action, str):
            return RouteError(
                f"node {self.name!r} of graph {graph!r} left by {type(action).__name__}, which is not the name of an "
                f"action; it has: {known}. Write Next('name', output), or return self.action(output)"
            )
        return RouteError(
            f"node {self.name!r} of graph {graph!r} left by {action!r}; it has: {known}."
            f"{suggest(action, [*self.actions, DEFAULT])}"
        )

    def guard(self, prefix: str) -> Callable[[str, bool], None] | None:
        """A function that refuses keys outside the declared `reads` and `writes`; None if the node declares none."""
        if not self.declares_keys:
            return None
        allowed: set[tuple[str, bool]] = set()

        def may_use(name: str, writing: bool) -> None:
            if (name, writing) in allowed:
                return
            key = name.removeprefix(prefix)
            declared: tuple[Key[Any], ...] = self.writes if writing else (*self.reads, *self.writes)
            if not name.startswith(prefix) or not any(each.matches(key) for each in declared):
                # a delete and an update read the key first, and need it in writes=
                lack = "its writes= does not declare" if writing else "its reads= and writes= do not declare"
                raise UndeclaredKeyError(
                    f"node {self.name!r} {'writes' if writing else 'reads'} {key!r}, which {lack}; it has: "
                    f"{', '.join(each.template for each in declared) or 'nothing'}"
                )
            allowed.add((name, writing))

        return may_use


def _with_store_and_input(function: Function) -> Function:
    def post(store: object, input: object, prepared: object, result: object) -> Value:
        return function(store, input)

    return post


@singledispatch
def make_step(node: AnyNode) -> Step:
    """The step for a node. A kind of node that needs more than a plain `Step` registers a class of its own."""
    return Step(node)
