"""What becomes of durable runs that an older version of their graph has begun: a function moves each to where it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.redaction import found
from pocket_plug.primitives.values import Value


@dataclass(frozen=True, kw_only=True)
class RunPosition:
    """Where a durable run stands, as an upgrade of its graph is given it; it gives another one, made by `renamed` or `replace`.

    >>> from dataclasses import replace
    >>> position = RunPosition(run_id="order-17", path=("charge",), value=5)
    >>> replace(position.renamed("charge", "pay"), value={"amount": 5})
    RunPosition(run_id='order-17', path=('pay',), value={'amount': 5}, ...)
    """

    run_id: str
    path: tuple[str, ...]
    """The node that comes next: the nodes that it is nested in, from the outermost graph's, and its own name. Of an item it
    begins with the node that items go through."""
    value: Value
    """Its input; where `left_by` is given, what was left with."""
    left_by: str | None = None
    """The action by which the graph that `path` leads to has been left, or, of a path that is empty, the run or the item."""
    hooks: str | None = None
    """The node of the innermost graph whose `on_success` and `on_complete` have still to be called."""
    visits: tuple[Mapping[str, int], ...] = ()
    """How often each node has been visited, for each graph from the outermost in: it numbers visits in `idempotency_key()`."""
    waits: bool = False
    """Does it wait for an answer, or for a time?"""
    items: Mapping[int, RunPosition] = field(default_factory=dict[int, "RunPosition"])
    """Of a fan-out under way, the items that have been begun, by position."""

    def renamed(self, old: str | Sequence[str], new: str) -> RunPosition:
        """The same place, where a node is called otherwise now, for the run's items too.

        `old` is a node of the outermost graph, or the path of one within: `renamed(("review", "approve"), "sign")`. In a
        fan-out that is the fan-out, the node that items go through, and the node in that.
        """
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
"""Makes of where a run stands in one version of its graph where it stands in the next."""


def check_upgrade(given: object, version: int, graph: str) -> Mapping[int, Upgrade]:
    """What was given as `upgrade`. Raises ConfigError unless it has functions for versions before that of the graph."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"graph {graph!r}: upgrade can't be {found(given)}; give a dict such as {{1: function}}")
    for step, function in cast("Mapping[object, object]", given).items():
        if not isinstance(step, int) or not 1 <= step < version:
            raise ConfigError(
                f"graph {graph!r}: upgrade has {found(step)}; it is from versions below {version}, which is the "
                "graph's (version=…)"
            )
        if not callable(function):
            raise ConfigError(
                f"graph {graph!r}: upgrade from {step} can't be {found(function)}; give a function of a RunPosition"
            )
    return cast("Mapping[int, Upgrade]", dict(cast("Mapping[int, Upgrade]", given)))
