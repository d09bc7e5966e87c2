"""A node of a graph, made ready to run: its phases, options and ways out, looked up once.

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
from pocket_plug.graph.nodes.node import AnyNode, options_of
from pocket_plug.graph.nodes.node_functions import FunctionNode, PostNode
from pocket_plug.graph.nodes.phases import (
    HOOKS,
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
"""Where to go (None: the run ends), with what, and a cancellation that came while the node was past stopping."""
Visiting = Coroutine[Any, Any, Visited]


class Way(Protocol):
    """What takes values through one node."""

    step: Step

    def take(self, run: Any, value: object, call: NodeCall | None, /) -> Visiting:
        """Take a value through it, in a run that is watched if there is a call."""
        ...


class Step:
    """One node of one graph. A phase that the node doesn't override is None.

    Its attributes are more than a class's objects can share a dict for: each would have one of 2 KiB.
    """

    __slots__ = (
        *("actions", "address", "declared", "exec", "exec_async", "executor", "facts", "fallback", "fallback_async"),
        *("fits", "functions", "guarded", "hooks", "input_class", "input_type", "is_item", "name", "next", "node"),
        *("output_type", "phases", "post", "post_async", "prep", "prep_async", "reads", "retry", "serializable"),
        *("timeout", "title", "trace", "ways", "writes"),
    )
    kind: Kind = "node"
    asks = False
    """May a run have to wait there for an answer?"""
    perform: Function | None = None
    """What stands in for exec where the step is more than one node: async, of (run, call, value)."""
    ways: Sequence[Way]
    """What takes a value through the node, for each place where a run may call `def` phases (see `visit`)."""

    def __init__(self, node: AnyNode) -> None:
        options = options_of(node)
        self.node = node
        self.name = options.name
        self.title = self.name if issubclass(type(node), FunctionNode) else type(node).__name__
        self.retry: Retry | None = options.retry
        self.executor = options.executor
        self.address: Address | None = None
        """Where another process finds the node; there before the first run, if its exec runs in one."""
        self.timeout = options.timeout
        self.trace = options.trace is not False
        self.declared: SpanAttributes = {} if isinstance(options.trace, bool) else options.trace
        self.serializable = options.isolation == "serializable"
        self.reads, self.writes = options.reads, options.writes
        self.facts: Facts | None = None
        self.is_item = False
        """Is it what an `each` takes its items through? No action leads out of it."""
        self.actions: dict[str, Step] = {}
        self.next: Step | None = None  # where "default" leads; None: the run ends
        self.functions = functions = {name: overridden(node, name) for name in (*PHASES, *HOOKS)}
        self.prep, self.exec, self.fallback = functions["prep"], functions["exec"], functions["fallback"]
        self.post = functions["post"]
        self.prep_async, self.exec_async, self.fallback_async, self.post_async = (
            function is not None and is_async(function) for function in (self.prep, self.exec, self.fallback, self.post)
        )
        if issubclass(type(node), PostNode) and self.post is not None:
            self.post = _of_two(self.post)
        self.hooks: dict[str, tuple[Function, bool]] = {
            name: (function, is_async(function)) for name in HOOKS if (function := functions[name]) is not None
        }
        self.phases: tuple[Phase, ...] = tuple(name for name in PHASES if functions[name] is not None)
        self.guarded = bool(self.retry or self.timeout or self.fallback or self.executor is not None)
        declared = input_type(node)
        self.input_type, self.output_type = declared, output_type(node)
        # an object of exactly this class fits, and needs no call
        plain_class = isinstance(declared, type) and type(declared) is type and declared not in (float, complex, object)
        self.input_class: Any = declared if plain_class else None
        self.fits: Function | None = None if declared is Any else checker(declared)

    def find_facts(self) -> Facts:
        """What observers are told of each visit: looked up at the first that is watched."""
        self.facts = self.name, self.kind, self.trace, self.guarded, self.phases, self.is_item, self.labels
        return self.facts

    @property
    def labels(self) -> SpanAttributes:
        """What its span says of the node itself: where its main phase stands (`code.*`), and what `trace` declares."""
        function = self.functions["exec"] or self.functions["post"] or self.functions["prep"]
        declared = {
            capped(name): capped(value) if isinstance(value, str) else value for name, value in self.declared.items()
        }
        return {**({} if function is None else source_of(function)), **declared}

    @property
    def is_sync(self) -> bool:
        """Can it run without an event loop?"""
        phases = (self.prep_async, self.exec_async, self.fallback_async, self.post_async)
        return not any((*phases, *(is_async for _, is_async in self.hooks.values())))

    @property
    def is_async(self) -> bool:
        """Can it run without a worker thread, wherever that is?"""
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
        """Does its exec run elsewhere, or that of a node within it?"""
        inner = self.passed.inner_graph()
        return self.passed.executor is not None or (inner is not None and inner.plan.is_elsewhere)

    @property
    def declares_keys(self) -> bool:
        """Has it `reads` or `writes`?"""
        return bool(self.reads or self.writes)

    @property
    def wraps_exec(self) -> bool:
        """Is there something around `exec`, or in its place: several attempts, or other nodes? Then that measures it."""
        return self.perform is not None or (self.guarded and self.exec is not None)

    def faults(self, exits: Collection[str]) -> list[str]:
        """What is wrong with the node itself, in words. `exits` are actions that an outer graph takes care of."""
        found = [*faults(self.node, self.name), *self._patched()]
        if self.executor is not None and self.exec is None:
            found.append(f"node {self.name!r} has an executor, but no exec that would run there")
        if self.fallback is not None and self.exec is None:
            found.append(f"node {self.name!r} has a fallback, but no exec that it would answer for")
        return found

    def _patched(self) -> list[str]:
        """Phases and hooks that were put in the place of those which the graph has found: it would never call them."""
        return [
            f"{self.title}.{name} was changed after the graph was made, which calls what it found by then; "
            f"use graph.replace({self.name}=another node), or change it before"
            for name, function in self.functions.items()
            if (now := overridden(self.node, name)) != function
            if now == overridden(self.node, name)  # else it is made anew each time, as a partialmethod is
        ]

    @property
    def carried(self) -> dict[str, Hint]:
        """The actions that it says it leaves by, each with the type that goes along."""
        return declared_actions(self.node)

    @property
    def passed(self) -> Step:
        """Of a fan-out the step that its items go through; any other step itself."""
        return self

    def inner_graph(self) -> Any:
        """The graph that it is, or that its items go through: a `PlannedGraph`, or None."""
        return None

    def inner_shape(self) -> Shape | None:
        """The shape of the graph that it is, or that its items go through."""
        return None

    def no_route(self, action: str, graph: str) -> RouteError:
        """The error for an action that leads nowhere."""
        known = ", ".join(sorted({*self.actions, DEFAULT}))
        if not isinstance(action, str):
            return RouteError(
                f"node {self.name!r} of graph {graph!r} left by {type(action).__name__}, which is no name of an "
                f"action; it has: {known}. Write Next('name', output), or return self.action(output)"
            )
        return RouteError(
            f"node {self.name!r} of graph {graph!r} left by {action!r}; it has: {known}."
            f"{suggest(action, [*self.actions, DEFAULT])}"
        )

    def guard(self, prefix: str) -> Callable[[str, bool], None] | None:
        """What refuses keys outside the declared `reads` and `writes`; None where nothing is declared."""
        if not self.declares_keys:
            return None
        allowed: set[tuple[str, bool]] = set()

        def may_use(name: str, writing: bool) -> None:
            if (name, writing) in allowed:
                return
            key = name.removeprefix(prefix)
            declared: tuple[Key[Any], ...] = self.writes if writing else (*self.reads, *self.writes)
            if not name.startswith(prefix) or not any(each.matches(key) for each in declared):
                verb, option = ("writes", "writes") if writing else ("reads", "reads")
                raise UndeclaredKeyError(
                    f"node {self.name!r} {verb} {key!r}, which its {option}= does not declare; it "
                    f"has: {', '.join(each.template for each in declared) or 'nothing'}"
                )
            allowed.add((name, writing))

        return may_use


def _of_two(function: Function) -> Function:
    def post(store: object, input: object, prepared: object, result: object) -> Value:
        return function(store, input)

    return post


@singledispatch
def make_step(node: AnyNode) -> Step:
    """The step for a node; its kind registers another class for it where a plain `Step` doesn't do."""
    return Step(node)
