"""A graph made ready to run: each node a `Step` with its phases, colours and ways out looked up once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pocket_plug.errors import RouteError, UndeclaredKeyError, suggest
from pocket_plug.primitives.signatures import is_async
from pocket_plug.primitives.typechecks import checker, fits, type_name
from pocket_plug.store.keys import Key

from .chain import DEFAULT, Chain
from .node import Node, options_of
from .node_functions import FunctionNode, PostNode
from .options import Traced
from .phases import HOOKS, PHASES, declared_actions, faults, input_type, output_type, overridden
from .retry import Retry

if TYPE_CHECKING:
    from pocket_plug.graph.observing import Phase

    from .shape import Shape

Function = Callable[..., Any]


class Step:
    """One node of one graph. A phase that the node doesn't override is None."""

    kind: Literal["node", "graph", "fan_out"] = "node"
    is_item = False
    """Is it what an `each` takes its items through? No action leads out of it."""
    asks = False
    """May a run have to wait there for an answer?"""
    perform: Any = None
    """What stands in for exec where the step is more than one node: async, of (execution, value, call)."""

    def __init__(self, node: Node[Any, Any, Any]) -> None:
        options = options_of(node)
        self.node = node
        self.name = options.name
        self.title = self.name if issubclass(type(node), FunctionNode) else type(node).__name__
        self.retry: Retry | None = options.retry
        self.timeout = options.timeout
        self.trace: Traced = options.trace
        self.serializable = options.isolation == "serializable"
        self.reads, self.writes = options.reads, options.writes
        self.actions: dict[str, Step] = {}
        self.next: Step | None = None  # where "default" leads; None: the run ends
        functions = {name: overridden(node, name) for name in (*PHASES, *HOOKS)}
        self.prep, self.exec, self.fallback = functions["prep"], functions["exec"], functions["fallback"]
        self.post = functions["post"]
        self.prep_async, self.exec_async = self._colour("prep"), self._colour("exec")
        self.fallback_async, self.post_async = self._colour("fallback"), self._colour("post")
        if issubclass(type(node), PostNode) and self.post is not None:
            self.post = _of_two(self.post)
        self.hooks: dict[str, tuple[Function, bool]] = {
            name: (function, is_async(function)) for name in HOOKS if (function := functions[name]) is not None
        }
        self.phases: tuple[Phase, ...] = tuple(name for name in PHASES if functions[name] is not None)  # type: ignore[misc]
        self.guarded = bool(self.retry or self.timeout or self.fallback)
        declared = input_type(node)
        self.input_type, self.output_type = declared, output_type(node)
        # a class that isinstance can check needs no call
        plain_class = isinstance(declared, type) and type(declared) is type and declared not in (float, complex, object)
        self.input_class: Any = declared if plain_class else None
        self.fits: Function | None = None if declared is Any else checker(declared)
        # prep, exec and post where there is nothing else to a visit of this node: what the runner does in one go
        colours = {is_async(function) for name in PHASES if (function := functions[name]) is not None}
        simple = not (self.hooks or self.guarded or self.reads or self.writes or self.perform) and (
            self.fits is None or self.input_class is not None)  # fmt: skip
        plain = (self.prep, self.exec, self.post)
        self.plain_async = plain if simple and colours == {True} else None
        self.plain_def = plain if simple and colours == {False} else None

    def _colour(self, phase: str) -> bool:
        function = overridden(self.node, phase)
        return function is not None and is_async(function)

    @property
    def is_sync(self) -> bool:
        """Can it run without an event loop?"""
        functions = ((self.prep, self.prep_async), (self.exec, self.exec_async), (self.post, self.post_async),
                     (self.fallback, self.fallback_async), *self.hooks.values())  # fmt: skip
        return not any(function is not None and colour for function, colour in functions)

    def faults(self, exits: Collection[str]) -> list[str]:
        """What is wrong with the node itself, in words. `exits` are actions that an outer graph takes care of."""
        return faults(self.node, self.name)

    def no_route(self, action: str, graph: str) -> RouteError:
        """The error for an action that leads nowhere."""
        known = ", ".join(sorted({*self.actions, DEFAULT}))
        if not isinstance(action, str):
            return RouteError(f"node {self.name!r} of graph {graph!r} left by {type(action).__name__}, which is no name of an "
                              f"action; it has: {known}. Write Next('name', output), or return self.action(output)")  # fmt: skip
        return RouteError(f"node {self.name!r} of graph {graph!r} left by {action!r}; it has: {known}."
                          f"{suggest(action, [*self.actions, DEFAULT])}")  # fmt: skip

    def guard(self, prefix: str) -> Callable[[str, bool], None] | None:
        """What refuses keys outside the declared `reads` and `writes`; None where nothing is declared."""
        if not self.reads and not self.writes:
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
    def post(store: Any, input: Any, prepared: Any, result: Any) -> Any:
        return function(store, input)

    return post


class Plan:
    """The steps of a graph, joined. Faults are collected by `findings`, not raised here."""

    def __init__(self, chains: Iterable[Chain[Any, Any]], name: str, make: Callable[[Any], Step]) -> None:
        self.name = name
        self.steps: dict[int, Step] = {}
        self._make = make
        self._conflicts: list[str] = []
        self.is_declared = False
        """Does the codec know the types that its nodes are annotated with?"""
        chains = list(chains)
        self.start = self._step(chains[0].first)
        for chain in chains:
            self._step(chain.first)
            for source, action, target in chain.edges:
                self._join(self._step(source), action, self._step(target))
        self.asks = any(step.asks for step in self.steps.values())
        """May a run have to wait at one of the steps for an answer?"""

    def _step(self, node: Any) -> Step:
        if id(node) not in self.steps:
            self.steps[id(node)] = self._make(node)
        return self.steps[id(node)]

    def _join(self, source: Step, action: str, target: Step) -> None:
        known = source.actions.setdefault(action, target)
        if action == DEFAULT:
            source.next = known
        if known is not target:
            self._conflicts.append(f"node {source.name!r} has two edges for {action!r}: to {known.name!r} and to "
                                   f"{target.name!r}")  # fmt: skip

    @property
    def is_sync(self) -> bool:
        """Can every step run without an event loop?"""
        return all(step.is_sync for step in self.steps.values())

    @cached_property
    def loops(self) -> bool:
        """May a run come to one of its nodes more than once?"""
        from graphlib import CycleError, TopologicalSorter

        try:
            TopologicalSorter({step: step.actions.values() for step in self.steps.values()}).prepare()
        except CycleError:
            return True
        return False

    @cached_property
    def shape(self) -> Shape:
        """Its nodes and edges, for those that watch its runs or go on with them."""
        from .shape import Shape  # which knows all kinds of steps, and they this

        return Shape(self)

    def named(self, name: str) -> Step | None:
        """The step of that name."""
        return next((step for step in self.steps.values() if step.name == name), None)

    def findings(self, exits: Collection[str] = ()) -> list[str]:
        """Every fault, in words. `exits` are actions that an outer graph takes care of."""
        found = list(self._conflicts)
        steps = list(self.steps.values())
        by_name: dict[str, Step] = {}
        for step in steps:
            if step.name in by_name:
                found.append(f"two nodes are called {step.name!r}: {by_name[step.name].node!r} and {step.node!r}; "
                             f"name one of them with with_options(name=…)")  # fmt: skip
            by_name.setdefault(step.name, step)
            found += step.faults(exits)
            found += self._unrouted(step, exits)
            found += self._misfits(step)
            found += self._idle(step)
        reached = self._reached()
        found += [
            f"node {step.name!r} can't be reached from {self.start.name!r}" for step in steps if step not in reached
        ]
        return found

    def _reached(self) -> set[Step]:
        reached, frontier = {self.start}, [self.start]
        while frontier:
            for step in frontier.pop().actions.values():
                if step not in reached:
                    reached.add(step)
                    frontier.append(step)
        return reached

    def _unrouted(self, step: Step, exits: Collection[str]) -> list[str]:
        return [f"node {step.name!r} declares the action {action!r}, which leads nowhere; add node.{action} >> other"
                for action in declared_actions(step.node) if action not in step.actions and action not in exits]  # fmt: skip

    def _misfits(self, step: Step) -> list[str]:
        found: list[str] = []
        carried = {DEFAULT: step.output_type, **declared_actions(step.node)}
        for action, target in step.actions.items():
            given = carried.get(action, Any)
            if not fits(given, target.input_type):
                way = "" if action == DEFAULT else f" by {action!r}"
                found.append(f"node {step.name!r} leaves{way} with {type_name(given)}, but {target.name!r} takes "
                             f"{type_name(target.input_type)}")  # fmt: skip
        return found

    def _idle(self, step: Step) -> list[str]:
        given, left = step.input_type, step.output_type
        if step.perform is None and not step.phases and not fits(given, left):
            return [f"node {step.name!r} overrides no phase, so it can't make {type_name(left)} of {type_name(given)}"]
        return []
