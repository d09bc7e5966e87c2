"""Compares two forms of a graph for a run that was begun by the older one, in the part that the run can still reach.

Nothing is replayed, so the nodes that the run has passed don't matter. `Facts` collects from each form what the run depends on:
facts about the nodes where the run and its items are, and about all nodes that can be reached from there. If both forms have the
same facts, the run can resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pocket_plug.graph.nodes.chain import DEFAULT

from .forms import GraphForm, NodeForm
from .standing import Standing, leaf_of

Path = tuple[str, ...]
"""A node: the names of the nodes that contain it, the outermost first, and its own name."""
Fact = tuple[str, Path, str]
"""The kind of fact, the node, and for an edge the action."""
Around = list[tuple[GraphForm, Path, NodeForm]]
"""The nodes that contain a run's position, the outermost first. For each: its graph, its path, its form."""


def path_text(path: Iterable[str]) -> str:
    """A node's path as text."""
    return "/".join(path)


# ---------------------------------------------------------------- what a run depends on
class Facts:
    """What a run at some position depends on, in one form of its graph. Of the position, only its `outline` is used."""

    def __init__(self, form: GraphForm, standing: Standing) -> None:
        self.found: dict[Fact, str | None] = {}
        """The facts and their values; None if an older record doesn't have the value."""
        self.firm: set[Fact] = set()
        """The facts that must not differ even with `allow_changed`: about the nodes where the run is, and about the results of
        items, if some items are done already."""
        self._reached: set[Path] = set()
        self._stand(form, (), standing)

    def _say(self, what: str, path: Path, value: str | None, action: str = "", *, firmly: bool = True) -> None:
        self.found[what, path, action] = value
        if firmly:
            self.firm.add((what, path, action))

    def _stand(self, graph: GraphForm, path: Path, standing: Standing) -> None:
        around: Around = []
        for frame in standing.frames[:-1]:
            here, node = self._node(graph, path, frame.node)
            if node is None or node.kind != "graph" or node.inner is None:
                return  # it is no graph any more; the fact "node" shows that by its kind
            around.append((graph, here, node))
            graph, path = node.inner, here
        last = standing.last
        if last.hooks:
            here, node = self._node(graph, path, last.hooks)
            if node is not None:
                self._say("gives", here, _output_types(node))
        if last.node is None:
            self._leave(around, last.action, bool(last.hooks))
            return
        self._be_within(around)
        here, node = self._node(graph, path, last.node)
        if node is None:
            return
        if standing.items and not standing.under:
            self._lead(graph, here, node)
            self._fan_out(graph, here, node, standing)
            return
        self._say("takes", here, node.takes)
        self._reach(graph, here)
        self._begun(graph, here, node, standing)

    def _begun(self, graph: GraphForm, here: Path, node: NodeForm, standing: Standing) -> None:
        """Facts about an open question or a fan-out in progress, at the node or at the start of the graph that it is."""
        for name in standing.under:
            if node.inner is None:
                return
            self._say("scope", here, node.inner.scope)
            graph = node.inner
            here, found = self._node(graph, here, name)
            if found is None:
                return
            node = found
        if node.kind == "ask":
            self._say("answer", here, node.answer)
        if standing.items:
            self._fan_out(graph, here, node, standing)

    def _node(self, graph: GraphForm, path: Path, name: str | None) -> tuple[Path, NodeForm | None]:
        """The path and the form of a node where the run is; no form if there is no such node."""
        here, node = (*path, name or ""), graph.nodes.get(name or "")
        if node is not None:
            self._say("node", here, node.kind)
        return here, node

    def _be_within(self, around: Around) -> None:
        """Facts about the graphs that contain the position: the scope and the edges of each, since it may leave by any action."""
        for graph, here, node in around:
            if node.inner is not None:
                self._say("scope", here, node.inner.scope)
            self._lead(graph, here, node)

    def _leave(self, around: Around, action: str, has_hooks: bool) -> None:
        """Facts for a run that has left the innermost graph by an action: the next edge outwards for it."""
        if has_hooks:
            for _, here, node in around:
                self._say("scope", here, None if node.inner is None else node.inner.scope)
        for depth in reversed(range(len(around))):
            graph, here, node = around[depth]
            if (target := node.leads.get(action)) is not None:
                self._say("edge", here, target, action)
                self._reach(graph, (*here[:-1], target))
                if target in graph.nodes:
                    self._say("takes", (*here[:-1], target), graph.nodes[target].takes)
                self._be_within(around[:depth])
                return

    def _fan_out(self, graph: GraphForm, here: Path, node: NodeForm, standing: Standing) -> None:
        """Facts about the items of a fan-out in progress; if some have not begun, about all nodes that those will pass."""
        if node.inner is None:
            return
        is_mixed = any(item.is_done for item in standing.items.values())
        if is_mixed:
            self._say("results", here, _results(node.inner))
            if (target := graph.nodes.get(node.leads.get(DEFAULT, ""))) is not None:
                self._say("takes", (*here[:-1], node.leads[DEFAULT]), target.takes)
        known = set(self.found)
        if standing.size is None or len(standing.items) < standing.size:
            self._say("takes", here, node.takes)
            self._begin(here, node.inner)
        for item in standing.items.values():
            self._stand(node.inner, here, item)
        if is_mixed:
            self.firm |= self.found.keys() - known

    # ------------------------------------------------------------ what can be reached
    def _lead(self, graph: GraphForm, here: Path, node: NodeForm) -> None:
        for action, target in node.leads.items():
            self._say("edge", here, target, action, firmly=False)
            self._reach(graph, (*here[:-1], target))

    def _begin(self, path: Path, inner: GraphForm) -> None:
        self._say("start", path, inner.start, firmly=False)
        self._reach(inner, (*path, inner.start))

    def _reach(self, graph: GraphForm, here: Path) -> None:
        """Facts about a node, about all nodes that can be reached from it, and about the nodes inside these."""
        todo = [(graph, here)]
        while todo:
            graph, here = todo.pop()
            node = graph.nodes.get(here[-1])
            if node is None or here in self._reached:
                continue
            self._reached.add(here)
            self.found["node", here, ""] = node.kind
            for action, target in node.leads.items():
                self.found["edge", here, action] = target
                todo.append((graph, (*here[:-1], target)))
            if node.inner is not None:
                self.found["start", here, ""] = node.inner.start
                self.found["scope", here, ""] = node.inner.scope
                todo.append((node.inner, (*here, node.inner.start)))


def _results(graph: GraphForm) -> str | None:
    """The types of a graph's possible outputs by "default"; None if one of them is not recorded."""
    found = set[str | None]()
    for node in graph.nodes.values():
        if DEFAULT not in node.leads:
            found.add(_results(node.inner) if node.kind == "graph" and node.inner is not None else _output_type(node))
    return None if None in found else " | ".join(sorted(filter(None, found)))


def _output_type(node: NodeForm) -> str | None:
    if node.kind == "fan_out" and node.inner is not None:
        given = _results(node.inner)
        return None if given is None else f"list[{given}]"
    return None if node.gives is None else node.gives.get(DEFAULT)


def _output_types(node: NodeForm) -> str | None:
    """The types of a node's outputs for all its actions; None if they are not recorded."""
    if node.gives is None or list(node.gives) == [DEFAULT]:
        return _output_type(node)
    return ", ".join(f"{type} by {action!r}" for action, type in sorted(node.gives.items()))


# ---------------------------------------------------------------- two forms
@dataclass(frozen=True, slots=True)
class Differences:
    """The differences between two forms, for a run at some position."""

    lines: Sequence[str]
    is_firm: bool
    """Is one of them about a fact in `Facts.firm`, so that `allow_changed` doesn't help?"""


def differences(before: Facts, now: Facts) -> Differences:
    """The differences between the facts of two forms, a line for each."""
    found: list[str] = []
    is_firm = False
    for fact in sorted(before.found.keys() | now.found.keys()):
        said = [(sign, facts.found[fact]) for sign, facts in (("-", before), ("+", now)) if fact in facts.found]
        values = {value for _, value in said}
        if None not in values and (len(values) > 1 or len(said) == 1):
            found += [f"{sign} {_line(fact, value)}" for sign, value in said if value is not None]
            is_firm = is_firm or fact in before.firm or fact in now.firm
    return Differences(found, is_firm)


def _line(fact: Fact, value: str) -> str:
    what, path, action = fact
    node = path_text(path)
    if what == "node":
        return f"{value} {node}"
    if what == "edge":
        return f"edge {node} -{action}-> {path_text((*path[:-1], value))}"
    if what == "start":
        return f"start {path_text((*path, value))}"
    if what == "scope":
        return f"graph {node} in scope {value!r}"
    if what == "answer":
        return f"ask {node} for {value}"
    if what == "results":
        return f"items of {node} give {value}"
    return f"node {node} {what} {value}"


# ---------------------------------------------------------------- one form
def misplaced(form: GraphForm, standing: Standing) -> str | None:
    """Why this position is impossible in a graph of this form; None if it is possible."""
    return _misplaced(form, standing, "it")


def _misplaced(graph: GraphForm, standing: Standing, who: str, path: Path = ()) -> str | None:
    frames, wait = standing.frames, standing.wait
    leaf = leaf_of(graph, frames, "").node
    if wait is not None and wait.wait.kind == "question" and (leaf is None or leaf.kind != "ask"):
        place = path_text((*path, *(frame.node for frame in frames if frame.node is not None), *standing.under))
        verb = "waits for" if wait.wait.is_open else "has been given"
        return f"{who} {verb} an answer at {place!r}, but no node asks there"
    leads: list[Mapping[str, str]] = []
    node: NodeForm | None = None
    for depth, frame in enumerate(frames):
        for name, verb in ((frame.hooks if depth == len(frames) - 1 else "", "has left"), (frame.node, "is at")):
            if name and name not in graph.nodes:
                return f"{who} {verb} node {path_text((*path, name))!r}, which doesn't exist there"
        if frame.node is None:
            break
        path, node = (*path, frame.node), graph.nodes[frame.node]
        if depth < len(frames) - 1:
            if node.kind != "graph" or node.inner is None:
                return f"{who} is inside {path_text(path)!r}, which is not a graph; its kind is {node.kind}"
            leads.append(node.leads)
            graph = node.inner
    last = frames[-1]
    if last.node is None:
        if last.action != DEFAULT and not any(last.action in each for each in leads):
            return f"{who} leaves {path_text(path)!r} by {last.action!r}, for which there is no edge"
        return None
    return _items_misplaced(node, standing, who, path)


def _items_misplaced(node: NodeForm | None, standing: Standing, who: str, path: Path) -> str | None:
    if not standing.items:
        return None
    for name in standing.under:
        path = (*path, name)
        node = None if node is None or node.inner is None else node.inner.nodes.get(name)
    if node is None or node.kind != "fan_out" or node.inner is None:
        return f"{who} is halfway through the fan-out {path_text(path)!r}, which doesn't exist there"
    for position, item in standing.items.items():
        inner = _misplaced(node.inner, item, f"item {position} of {path_text(path)!r}", path)
        if inner is not None:
            return inner
    return None
