"""Upgrades of durable runs that an older version of their graph has begun: a function returns the position to resume at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.redaction import found
from pocket_plug.primitives.values import Value


@dataclass(frozen=True, kw_only=True)
class RunPosition:
    """The position of a durable run. An upgrade gets it, and returns another one, made by `renamed` or `replace`.

    >>> from dataclasses import replace
    >>> position = RunPosition(run_id="order-17", path=("charge",), value=5)
    >>> replace(position.renamed("charge", "pay"), value={"amount": 5})
    RunPosition(run_id='order-17', path=('pay',), value={'amount': 5}, ...)
    """

    run_id: str
    path: tuple[str, ...]
    """The node that comes next: the names of the nodes that contain it, the outermost first, and its own name. For an item it
    begins with the node that items go through."""
    value: Value
    """The input of that node; if `left_by` is given, the output."""
    left_by: str | None = None
    """The action by which the run has left the graph at `path`; with an empty path, by which the run, or the item, has ended."""
    hooks: str | None = None
    """The node of the innermost graph whose `on_success` and `on_complete` are still to be called."""
    visits: tuple[Mapping[str, int], ...] = ()
    """How often each node was visited: a mapping for each graph, the outermost first. `idempotency_key()` contains the number."""
    waits: bool = False
    """Does it wait for an answer, or for a time?"""
    items: Mapping[int, RunPosition] = field(default_factory=dict[int, "RunPosition"])
    """At a fan-out, the items that have begun, by position."""

    def renamed(self, old: str | Sequence[str], new: str) -> RunPosition:
        """The same position after a node was renamed; items are changed as well.

        `old` is a node of the outermost graph, or the path of a nested one: `renamed(("review", "approve"), "sign")`. In a
        fan-out the path is the fan-out, the node that items go through, and the node in that. Raises ConfigError if `new` is no
        name.
        """
        if not isinstance(new, str):
            raise ConfigError(f"renamed: the new name can't be {found(new)}; give the node's own name, without a path")
        return self._renamed((old,) if isinstance(old, str) else tuple(old), new)

    def _renamed(self, old: tuple[str, ...], new: str) -> RunPosition:
        *around, name = old
        depth = len(around)
        items = self.items
        if len(self.path) <= depth and self.path == old[: len(self.path)] and self.path:
            inside = old[len(self.path) :]
            items = {position: item._renamed(inside, new) for position, item in items.items()}
        if self.path[:depth] != tuple(around):
            return replace(self, items=items)
        path, visits, hooks = self.path, list(self.visits), self.hooks
        if path[depth : depth + 1] == (name,):
            path = (*path[:depth], new, *path[depth + 1 :])
        if depth < len(visits):
            visits[depth] = {(new if each == name else each): count for each, count in visits[depth].items()}
        if hooks == name and depth == self._depth:
            hooks = new
        return replace(self, path=path, visits=tuple(visits), hooks=hooks, items=items)

    @property
    def _depth(self) -> int:
        """How deep the innermost graph is nested."""
        return len(self.path) if self.left_by is not None else len(self.path) - 1


Upgrade = Callable[[RunPosition], RunPosition]
"""Takes a run's position in one version of its graph, and returns its position in the next version."""


def check_upgrade(given: object, version: int, graph: str) -> Mapping[int, Upgrade]:
    """Check the option `upgrade`, and return it. Raises ConfigError unless it maps older versions of the graph to functions."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"graph {graph!r}: upgrade can't be {found(given)}; give a dict such as {{1: function}}")
    for step, function in cast("Mapping[object, object]", given).items():
        if not isinstance(step, int) or not 1 <= step < version:
            raise ConfigError(
                f"graph {graph!r}: upgrade has the key {found(step)}; its keys must be versions below {version}, which is the "
                "graph's (version=…)"
            )
        if not callable(function):
            raise ConfigError(
                f"graph {graph!r}: upgrade from {step} can't be {found(function)}; give a function that takes a RunPosition"
            )
    return cast("Mapping[int, Upgrade]", dict(cast("Mapping[int, Upgrade]", given)))
