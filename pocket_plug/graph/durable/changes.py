"""May a run go on in a graph that has changed since it was begun? Judged by what lies ahead of where it stands.

Nothing is replayed, so what the run has passed doesn't matter. Facts are taken from both forms of the graph: of the nodes
at which the run and its items stand, and of all that can be reached from there. It goes on where they are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pocket_plug.graph.nodes.chain import DEFAULT

from .forms import GraphForm, NodeForm
from .standing import Standing, leaf_of

Path = tuple[str, ...]
"""A node: those that it is nested in, from the outermost graph's, and its own name."""
Fact = tuple[str, Path, str]
"""What is said, of which node, and for an edge of which action."""
Around = list[tuple[GraphForm, Path, NodeForm]]
"""The nodes that a run is within, outermost first: the graph that each stands in, its path, its form."""


def written(path: Iterable[str]) -> str:
    """A node's path as text."""
    return "/".join(path)


# ---------------------------------------------------------------- what a run depends on
class Facts:
    """What a run depends on from where it stands, in one form of its graph. Of the standing only its `outline` counts."""

    def __init__(self, form: GraphForm, standing: Standing) -> None:
        self.found: dict[Fact, str | None] = {}
        """None where an older record doesn't say it."""
        self.firm: set[Fact] = set()
        """Those of the place where it stands, and of what would be mixed with the results of items that are done."""
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
                return  # that the run stands within it is said by its kind
            around.append((graph, here, node))
            graph, path = node.inner, here
        last = standing.last
        if last.hooks:
            here, node = self._node(graph, path, last.hooks)
            if node is not None:
                self._say("gives", here, _gifts(node))
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
        """What waits, or is under way, at the node itself, or where the graph begins that it is."""
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
        """A node at which it stands, if there is one of that name."""
        here, node = (*path, name or ""), graph.nodes.get(name or "")
        if node is not None:
            self._say("node", here, node.kind)
        return here, node

    def _be_within(self, around: Around) -> None:
        """The graphs that it is in go on, each with its scope, and may be left by any action."""
        for graph, here, node in around:
            if node.inner is not None:
                self._say("scope", here, node.inner.scope)
            self._lead(graph, here, node)

    def _leave(self, around: Around, action: str, has_hooks: bool) -> None:
        """The innermost graph has been left: by the nearest edge for that action."""
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
        """Where its items stand; where some have not been begun, all that these will go through."""
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
        """A node, all that it leads to, and all that is within these."""
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
    """The types of what a graph may be left with by "default"; None where one is not said."""
    found = set[str | None]()
    for node in graph.nodes.values():
        if DEFAULT not in node.leads:
            found.add(_results(node.inner) if node.kind == "graph" and node.inner is not None else _given(node))
    return None if None in found else " | ".join(sorted(filter(None, found)))


def _given(node: NodeForm) -> str | None:
    if node.kind == "fan_out" and node.inner is not None:
        given = _results(node.inner)
        return None if given is None else f"list[{given}]"
    return None if node.gives is None else node.gives.get(DEFAULT)


def _gifts(node: NodeForm) -> str | None:
    """The types of what a node leaves with, by whatever action."""
    if node.gives is None or list(node.gives) == [DEFAULT]:
        return _given(node)
    return ", ".join(f"{type} by {action!r}" for action, type in sorted(node.gives.items()))


# ---------------------------------------------------------------- two forms
@dataclass(frozen=True, slots=True)
class Differences:
    """What differs between two forms, for a run that stands there."""

    lines: Sequence[str]
    is_firm: bool
    """Is something of it where the run stands, or among what would be mixed with the results of items that are done?"""


def differences(before: Facts, now: Facts) -> Differences:
    """What differs, a line each."""
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
    node = written(path)
    if what == "node":
        return f"{value} {node}"
    if what == "edge":
        return f"edge {node} -{action}-> {written((*path[:-1], value))}"
    if what == "start":
        return f"start {written((*path, value))}"
    if what == "scope":
        return f"graph {node} in scope {value!r}"
    if what == "answer":
        return f"ask {node} for {value}"
    if what == "results":
        return f"items of {node} give {value}"
    return f"node {node} {what} {value}"


# ---------------------------------------------------------------- one form
def misplaced(form: GraphForm, standing: Standing) -> str | None:
    """Why nothing can stand there in a graph of this form, whatever it was before; None where it can."""
    return _misplaced(form, standing, "it")


def _misplaced(graph: GraphForm, standing: Standing, who: str, path: Path = ()) -> str | None:
    frames, wait = standing.frames, standing.wait
    leaf = leaf_of(graph, frames, "").node
    if wait is not None and wait.wait.kind == "question" and (leaf is None or leaf.kind != "ask"):
        place = written((*path, *(frame.node for frame in frames if frame.node is not None), *standing.under))
        verb = "waits for" if wait.wait.is_open else "has been given"
        return f"{who} {verb} an answer at {place!r}, where nothing asks"
    leads: list[Mapping[str, str]] = []
    node: NodeForm | None = None
    for depth, frame in enumerate(frames):
        for name, verb in ((frame.hooks if depth == len(frames) - 1 else "", "has left"), (frame.node, "is at")):
            if name and name not in graph.nodes:
                return f"{who} {verb} node {written((*path, name))!r}, which doesn't exist there"
        if frame.node is None:
            break
        path, node = (*path, frame.node), graph.nodes[frame.node]
        if depth < len(frames) - 1:
            if node.kind != "graph" or node.inner is None:
                return f"{who} is inside {written(path)!r}, which is no graph but a {node.kind}"
            leads.append(node.leads)
            graph = node.inner
    last = frames[-1]
    if last.node is None:
        if last.action != DEFAULT and not any(last.action in each for each in leads):
            return f"{who} leaves {written(path)!r} by {last.action!r}, for which there is no edge"
        return None
    return _items_misplaced(node, standing, who, path)


def _items_misplaced(node: NodeForm | None, standing: Standing, who: str, path: Path) -> str | None:
    if not standing.items:
        return None
    for name in standing.under:
        path = (*path, name)
        node = None if node is None or node.inner is None else node.inner.nodes.get(name)
    if node is None or node.kind != "fan_out" or node.inner is None:
        return f"{who} is halfway through the fan-out {written(path)!r}, which doesn't exist there"
    for position, item in standing.items.items():
        inner = _misplaced(node.inner, item, f"item {position} of {written(path)!r}", path)
        if inner is not None:
            return inner
    return None
