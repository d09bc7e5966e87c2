"""What a graph looks like from outside: its nodes and edges, and a version that tells two forms of it apart."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from .concurrency import EachStep
from .nesting import GraphStep

if TYPE_CHECKING:
    from .plan import Plan, Step


class Shape:
    """The nodes and edges of one graph, as plugins see them. Each is made out when it is first asked for.

    >>> from pocket_plug import Graph, node
    >>> @node
    ... def parse(text: str) -> int:
    ...     return int(text)
    >>> @node
    ... def double(n: int) -> int:
    ...     return 2 * n
    >>> shape = Graph(parse >> double).plan.shape
    >>> shape.nodes, shape.edges
    ({'parse': 'node', 'double': 'node'}, (('parse', 'default', 'double'),))
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @cached_property
    def nodes(self) -> dict[str, Literal["node", "graph", "fan_out"]]:
        """The kind of each node, by name; the one that a run begins with is the first."""
        steps = self._plan.steps.values()
        return {step.name: step.kind for step in (self._plan.start, *steps)}

    @cached_property
    def edges(self) -> tuple[tuple[str, str, str], ...]:
        """Source, action and target of each edge."""
        return tuple(
            (step.name, action, target.name)
            for step in self._plan.steps.values()
            for action, target in step.actions.items()
        )

    @cached_property
    def lines(self) -> list[str]:
        """Nodes and edges, nested graphs' too, a line each: what a durable run relies on."""
        return _lines(self._plan, "")

    @cached_property
    def version(self) -> str:
        """12 hex digits that are others if a node or an edge is, in a nested graph too."""
        return hashlib.sha256("\n".join(self.lines).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _lines(plan: Plan, within: str) -> list[str]:
    lines = [f"start {within}{plan.start.name}"]
    for step in plan.steps.values():
        name, inner = f"{within}{step.name}", passed(step)
        lines.append(f"{'ask' if step.asks and step.kind == 'node' else step.kind} {name}")
        lines.extend(f"edge {name} -{action}-> {within}{target.name}" for action, target in step.actions.items())
        if inner is not step:
            lines.append(f"{inner.kind} {name}/{inner.name}")
        if isinstance(inner, GraphStep):
            lines.extend(_lines(inner.graph.plan, f"{name}/"))
    return sorted(lines)


def passed(step: Step) -> Step:
    """Of a fan-out the step that its items go through; any other step itself."""
    return step.inner if isinstance(step, EachStep) else step
