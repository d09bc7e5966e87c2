"""The plan of a graph: its steps, joined by its edges, and the checks of both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from types import NoneType
from typing import Any, Protocol, Union

from pocket_plug.errors import ReadOnlyError
from pocket_plug.graph.nodes.chain import DEFAULT, END, AnyChain, Out
from pocket_plug.graph.nodes.node_functions import FunctionNode
from pocket_plug.graph.nodes.phases import result_types
from pocket_plug.graph.observing.shape import Kind, Shape
from pocket_plug.graph.upgrades import Upgrade
from pocket_plug.primitives.typechecks import is_namesake, type_name
from pocket_plug.primitives.typefits import fits
from pocket_plug.primitives.values import Hint
from pocket_plug.store.stack import StorePlace
from pocket_plug.store.store import StoreReader, View

from .step import Step

_DEFINED_AGAIN = "the class was defined again between these nodes; run the code that makes the nodes again"


class Plan:
    """The steps of a graph, joined by its edges. This raises nothing: `findings` collects what is wrong."""

    def __init__(self, chains: Iterable[AnyChain], name: str, step_of: Callable[[Any], Step], needs_loop: bool) -> None:
        self.name = name
        self.needs_loop = needs_loop
        """Does the graph's store need an event loop?"""
        self.steps: dict[int, Step] = {}
        self._step_of = step_of
        self._conflicts: list[str] = []
        self.is_declared = False
        """Does the codec know the types in its nodes' annotations?"""
        self.forms: dict[str, str] = {}
        """The graph's form as durable runs record it (`durable/forms.py`), by the prefix of its keys."""
        chains = list(chains)
        self.start = self._step(chains[0].first)
        for chain in chains:
            self._step(chain.first)
            for source, action, target in chain.edges:
                self._join(self._step(source), action, self._step(target))
        self.asks = any(step.asks for step in self.steps.values())
        """May a run have to wait for an answer at one of the steps?"""
        self.is_elsewhere = any(step.is_elsewhere for step in self.steps.values())
        """Does an executor run `exec` for one of the steps?"""

    def _step(self, node: Any) -> Step:
        if id(node) not in self.steps:
            self.steps[id(node)] = self._step_of(node)
        return self.steps[id(node)]

    def _join(self, source: Step, action: str, target: Step) -> None:
        known = source.actions.setdefault(action, target)
        if action == DEFAULT:
            source.next = known
        if known is not target:
            self._conflicts.append(
                f"node {source.name!r} has two edges for {action!r}: to {known.name!r} and to {target.name!r}; to take both, "
                f"join it to gather({known.name}, {target.name})"
            )

    @property
    def begins(self) -> list[Step]:
        """The steps that a run begins with: one, or the first of each branch of a `gather`."""
        return list(self.start.actions.values()) if self.start.is_hidden else [self.start]

    @property
    def shown(self) -> list[Step]:
        """Its steps without a hidden one, those that a run begins with first."""
        return [step for step in dict.fromkeys((*self.begins, *self.steps.values())) if not step.is_hidden]

    @cached_property
    def is_sync(self) -> bool:
        """Can the graph run without an event loop?"""
        return not self.needs_loop and all(step.is_sync for step in self.steps.values())

    @cached_property
    def repeats(self) -> bool:
        """May a run visit one of its nodes more than once, in a loop or for each item of a fan-out?"""
        from graphlib import CycleError, TopologicalSorter

        try:
            TopologicalSorter({step: step.actions.values() for step in self.steps.values()}).prepare()
        except CycleError:
            return True
        return any(step.passed is not step for step in self.steps.values())

    @cached_property
    def shape(self) -> Shape:
        """Its nodes and edges, for observers of its runs, and for checks of older durable runs."""
        steps = {step.name: step for step in self.shown}
        edges = [(step.name, action, target.name) for step in self.shown for action, target in step.actions.items()]
        asking = {name for name, step in steps.items() if step.asks and step.kind == "node"}
        items: dict[str, tuple[Kind, str]] = {
            name: (step.passed.kind, step.passed.name) for name, step in steps.items() if step.passed is not step
        }
        within = {name: shape for name, step in steps.items() if (shape := step.inner_shape()) is not None}
        kinds: dict[str, Kind] = {name: step.kind for name, step in steps.items()}
        declared = {name: attributes for name, step in steps.items() if (attributes := step.passed.declared)}
        return Shape(kinds, tuple(edges), frozenset(asking), items, within, declared)

    @cached_property
    def output_type(self) -> Hint:
        """The type of what the graph returns as a node of another graph, as `output_type_from` finds it."""
        return self.output_type_from(self.start)

    def output_type_from(self, start: Step) -> Hint:
        """The type of what a run returns that begins at this step: of the nodes that can only end it. Any, in doubt.

        A node that always raises may be declared to return None, so None counts only if no other type is returned. So the run
        may return more than this, and this may only be used to find what the next node certainly can't take.
        """
        reached = _reached(start)
        ends = [step for step in self.steps.values() if step in reached and not step.actions and not step.carried]
        given = tuple(step.output_type for step in ends if step.output_type not in (None, NoneType))
        try:
            return Union[given] if given else NoneType if ends else Any  # noqa: UP007 - not all hints have |
        except TypeError:  # a hint that is no type, or can't be hashed
            return Any

    def named(self, name: str) -> Step | None:
        """The step with this name; None if there is none."""
        return next((step for step in self.steps.values() if step.name == name), None)

    def findings(self, exits: Collection[str] = ()) -> list[str]:
        """Messages about everything that is wrong. `exits` are actions for which an outer graph has an edge."""
        found = list(self._conflicts)
        steps = list(self.steps.values())
        by_name: dict[str, Step] = {}
        for step in steps:
            if step.name in by_name:
                both = " and ".join(f"{each.node!r}{_line_of(each)}" for each in (by_name[step.name], step))
                way = "node(name=…)" if step.name == "<lambda>" else "with_options(name=…)"
                found.append(f"two nodes have the name {step.name!r}: {both}; rename one of them with {way}")
            by_name.setdefault(step.name, step)
            found += step.faults(exits)
            found += self._unrouted(step, exits)
            found += self._misfits(step)
            found += self._idle(step)
        reached = _reached(self.start)
        found += [
            f"node {step.name!r} can't be reached from {self.start.name!r}" for step in steps if step not in reached
        ]
        return found

    def _unrouted(self, step: Step, exits: Collection[str]) -> list[str]:
        if step.kind == "graph":
            return []  # reported for the node inside
        known = {*step.actions, DEFAULT, END.name}
        return [
            f"node {step.name!r} declares the action {action!r}, but has no edge for it; add {_way_out(step, action)} >> other"
            for action in step.carried
            if action not in known and action not in exits
        ]

    def _misfits(self, step: Step) -> list[str]:
        found: list[str] = []
        carried = {DEFAULT: step.output_type, **step.carried}
        for action, target in step.actions.items():
            given = carried.get(action, Any)
            way = "" if action == DEFAULT else f" by {action!r}"
            found += [
                f"node {step.name!r} leaves{way} with {type_name(given)}, but {taker.name!r} takes {type_name(taker.input_type)}"
                + (f"; {_DEFINED_AGAIN}" if is_namesake(given, taker.input_type) else "")
                for taker in _takers(target)
                if not fits(given, taker.input_type)
            ]
        return found

    def _idle(self, step: Step) -> list[str]:
        given, left = step.input_type, step.output_type
        if step.perform is None and not step.phases and not fits(given, left):
            return [
                f"node {step.name!r} overrides no phase, so it can't turn {type_name(given)} into {type_name(left)}"
            ]
        if step.perform is not None or step.exec is None or step.post is not None:
            return []
        results = result_types(step.node)
        if any(fits(result, left) for result in results):
            return []
        return [
            f"node {step.name!r} has no post, so it leaves with what exec returns, {type_name(results[0])}, though it declares "
            f"{type_name(left)}"
        ]


def _reached(start: Step) -> set[Step]:
    reached, frontier = {start}, [start]
    while frontier:
        for step in frontier.pop().actions.values():
            if step not in reached:
                reached.add(step)
                frontier.append(step)
    return reached


def _takers(step: Step) -> list[Step]:
    """The steps that take what a step is given: itself or its branches; and the next one if it returns its input."""
    takers = [step]
    while (last := takers[-1]).returns_input and last.next is not None and last.next not in takers:
        takers.append(last.next)
    return [each for taker in takers for each in taker.branches or (taker,)]


def _way_out(step: Step, action: str) -> str:
    return f"node.{action}" if isinstance(getattr(step.node, action, None), Out) else f"node.on({action!r})"


def _line_of(step: Step) -> str:
    """The line of a function node, since two functions may have the same name; "" for other nodes."""
    line = step.labels.get("code.line.number") if issubclass(type(step.node), FunctionNode) else None
    return "" if line is None else f" (line {line})"


class Validation:
    """A setting of the process: how often graphs are validated."""

    is_kept = True
    """Is a graph validated only once? `pocket_plug.testing` validates before each run, since a test may patch a node later."""


validation = Validation()


class PlannedGraph(Protocol):
    """The part of a graph that its runs use."""

    plan: Plan
    max_steps: int
    max_depth: int
    clean_up_grace: float
    keep_finished: float | None
    timeout: float | None
    version: int
    upgrade: Mapping[int, Upgrade]

    @property
    def name(self) -> str:
        """The graph's name."""
        ...

    def place(self, outer: View) -> StorePlace:
        """The stack and the key prefix of its nodes, given the outer graph's store."""
        ...


def refuse_read_only(graph: PlannedGraph, place: StorePlace) -> None:
    """Raise ReadOnlyError if a node of the graph, or of a nested graph, declares writes and its store is read-only."""
    for step in graph.plan.steps.values():
        if step.passed.writes:
            raise ReadOnlyError(
                f"graph {graph.name!r} can't run: node {step.name!r} declares writes, and its store {place[0]!r} is read-only; "
                "give the graph a store that is not read-only"
            )
        inner = step.inner_graph()
        if inner is not None and (within := inner.place(StoreReader(*place)))[0].read_only:
            refuse_read_only(inner, within)
