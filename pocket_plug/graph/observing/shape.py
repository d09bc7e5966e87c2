"""The shape of a graph: its nodes and edges, and a version that differs if they differ."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from pocket_plug.primitives.values import SpanAttributes

Kind = Literal["node", "graph", "fan_out"]


@dataclass(frozen=True, eq=False)
class Shape:
    """The nodes and edges of one graph, as plugins see them.

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

    nodes: Mapping[str, Kind]
    """The kind of each node, by name; the first is the node that a run begins with."""
    edges: tuple[tuple[str, str, str], ...]
    """Source, action and target of each edge."""
    asking: Set[str] = field(default=frozenset(), repr=False)
    """The nodes at which a run may have to wait for an answer."""
    items: Mapping[str, tuple[Kind, str]] = field(default_factory=dict[str, tuple[Kind, str]], repr=False)
    """For each fan-out, the kind and the name of the node that its items go through."""
    within: Mapping[str, Shape] = field(default_factory=dict[str, "Shape"], repr=False)
    """The shapes of nested graphs, by the name of the node that is such a graph, or takes its items through it."""

    declared: Mapping[str, SpanAttributes] = field(default_factory=dict[str, "SpanAttributes"], repr=False)
    """The attributes of nodes from `trace={…}`, by name; for a fan-out, those of the node that its items go through."""

    @cached_property
    def lines(self) -> list[str]:
        """A line for each node and each edge, nested graphs included. Runs of older versions were recorded with these lines."""
        return _lines(self, "")

    @cached_property
    def version(self) -> str:
        """12 hex digits that change if a node or an edge changes, in a nested graph too."""
        from hashlib import sha256  # it loads OpenSSL, and a run that nobody observes needs no version

        return sha256("\n".join(self.lines).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _lines(shape: Shape, prefix: str) -> list[str]:
    lines = [f"start {prefix}{next(iter(shape.nodes))}"]
    for name, kind in shape.nodes.items():
        lines.append(f"{'ask' if name in shape.asking else kind} {prefix}{name}")
        if name in shape.items:
            item_kind, item = shape.items[name]
            lines.append(f"{item_kind} {prefix}{name}/{item}")
        if name in shape.within:
            lines.extend(_lines(shape.within[name], f"{prefix}{name}/"))
    lines.extend(f"edge {prefix}{source} -{action}-> {prefix}{target}" for source, action, target in shape.edges)
    return sorted(lines)
