"""The form of a graph, which is recorded when a durable run begins, so that the graph's later form can be compared with it.

A form contains names only: of nodes, actions, types and scopes. A type's name is the tag of its values in records, so a class may
move to another module. The fields of a class are not in the form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import lru_cache
from types import EllipsisType, NoneType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

from typing_extensions import TypeAliasType

from pocket_plug.codec import default_codec
from pocket_plug.errors import CorruptRecordError
from pocket_plug.graph.kinds.ask import AskStep
from pocket_plug.graph.kinds.nesting import GraphStep
from pocket_plug.graph.kinds.sleep import SleepStep
from pocket_plug.graph.nodes.chain import DEFAULT
from pocket_plug.graph.nodes.phases import declared_actions
from pocket_plug.graph.planning.plan import Plan
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.typechecks import UNIONS
from pocket_plug.primitives.values import Hint, Value
from pocket_plug.store.stack import StorePlace
from pocket_plug.store.store import StoreReader

from .records import Record


@dataclass(frozen=True, slots=True)
class NodeForm:
    """One node of a form. A field that an older version hasn't recorded is None, and counts as equal to anything."""

    kind: str
    """node, ask, sleep, graph or fan_out."""
    leads: Mapping[str, str] = field(default_factory=dict[str, str])
    """The target of each action."""
    takes: str | None = None
    """The type of its input; for a fan-out, the type of an item."""
    gives: Mapping[str, str] | None = None
    """The type of its output, by action."""
    answer: str | None = None
    """The type of the answer to its question."""
    inner: GraphForm | None = None
    """The graph that it is; for a fan-out, a graph whose only node is the one that its items go through."""


@dataclass(frozen=True, slots=True)
class GraphForm:
    """The form of a graph."""

    start: str
    nodes: Mapping[str, NodeForm]
    scope: str | None = None
    """The prefix of its keys."""


MOST_FORMS = 64
"""How many prefixes' forms of a graph are kept: a service may have a scope for each of its tenants."""


def form_of(plan: Plan, place: StorePlace) -> str:
    """The form of a graph whose nodes read and write in this place, as the text that is recorded."""
    prefix = str(place[1])
    form = plan.forms.get(prefix)  # another thread may clear them
    if form is None:
        if len(plan.forms) >= MOST_FORMS:
            plan.forms.clear()
        form = plan.forms[prefix] = json.dumps(
            asdict(_form(plan, place), dict_factory=_said), ensure_ascii=False, sort_keys=True
        )
    return form


@lru_cache(maxsize=64)
def read_form(text: str) -> GraphForm:
    """Decode a recorded form. Raises CorruptRecordError."""
    try:
        return _graph_of(json.loads(text))
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise CorruptRecordError(f"the recorded form of a graph can't be read: {type(error).__name__}") from error


def _said(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    """The fields of a form that are recorded: those that aren't empty."""
    return {name: value for name, value in pairs if value is not None and value != {}}


def _graph_of(found: Record) -> GraphForm:
    nodes = {name: _node_of(node) for name, node in found["nodes"].items()}
    return GraphForm(str(found["start"]), nodes, _text(found.get("scope")))


def _node_of(found: Record) -> NodeForm:
    leads, gives, inner = found.get("leads", {}), found.get("gives"), found.get("inner")
    return NodeForm(
        kind=str(found["kind"]),
        leads={action: _text(target) for action, target in leads.items()},
        takes=_text(found.get("takes")),
        gives=None if gives is None else {action: _text(type) for action, type in gives.items()},
        answer=_text(found.get("answer")),
        inner=None if inner is None else _graph_of(inner),
    )


def _text(found: Value) -> Value:
    if not isinstance(found, str | None):
        raise TypeError
    return found


def _form(plan: Plan, place: StorePlace) -> GraphForm:
    steps = {step.name: step for step in (plan.start, *plan.steps.values())}
    return GraphForm(plan.start.name, {name: _node(step, place) for name, step in steps.items()}, str(place[1]))


def _node(step: Step, place: StorePlace) -> NodeForm:
    leads = {action: target.name for action, target in step.actions.items()}
    if step.passed is not step:
        item = _node(step.passed, place)
        return NodeForm(step.kind, leads, item.takes, inner=GraphForm(step.passed.name, {step.passed.name: item}))
    takes = type_tag(step.input_type)
    if isinstance(step, GraphStep):
        inner = _form(step.graph.plan, step.graph.place(StoreReader(*place)))
        return NodeForm(step.kind, leads, inner.nodes[inner.start].takes, inner=inner)
    carried = {DEFAULT: step.output_type, **declared_actions(step.node)}
    gives = {action: type_tag(hint) for action, hint in carried.items()}
    if isinstance(step, AskStep):
        return NodeForm("ask", leads, takes, gives, type_tag(step.answer_type))
    return NodeForm("sleep" if isinstance(step, SleepStep) else step.kind, leads, takes, gives)


# ---------------------------------------------------------------- types
def type_tag(hint: Hint) -> str:
    """A name for a type. It is the same in each process, for each module that contains the type, and each way to write it.

    >>> from typing import Optional
    >>> type_tag(list[int | None]), type_tag(list[Optional[int]])
    ('list[None | int]', 'list[None | int]')
    """
    if hint is Any or isinstance(hint, TypeVar):
        return "Any"
    if hint is None or hint is NoneType:
        return "None"
    if isinstance(hint, TypeAliasType):
        return hint.__name__  # not its value, since an alias may be recursive
    if (meant := getattr(hint, "__supertype__", None)) is not None:  # a NewType, whose values have this type
        return type_tag(meant)
    origin: Hint = get_origin(hint)
    arguments = get_args(hint)
    if origin is Annotated:
        return type_tag(arguments[0])
    if origin in UNIONS:
        return " | ".join(sorted({type_tag(each) for each in arguments}))
    if origin is Literal:
        return f"Literal[{', '.join(sorted(map(_literal, arguments)))}]"
    if origin is not None:
        inner = f"[{', '.join(map(_argument, arguments))}]" if arguments else ""
        return f"{type_tag(origin)}{inner}"
    if isinstance(hint, type):
        return default_codec.tag_of(hint)
    return str(getattr(hint, "__forward_arg__", None) or getattr(hint, "__qualname__", None) or hint)


def _argument(argument: Hint) -> str:
    if isinstance(argument, EllipsisType):
        return "..."
    parameters = cast("list[Hint]", argument)
    if isinstance(argument, list):  # the parameters of a Callable
        return f"[{', '.join(map(_argument, parameters))}]"
    return type_tag(argument)


def _literal(value: object) -> str:
    return f"{type_tag(type(value))}.{value.name}" if isinstance(value, Enum) else repr(value)


# ---------------------------------------------------------------- the older form
@lru_cache(maxsize=64)
def read_lines(lines: tuple[str, ...]) -> GraphForm:
    """The form from the lines of a `Shape`, which older versions recorded; it has no types. Raises CorruptRecordError."""
    kinds: dict[str, str] = {}
    starts: dict[str, str] = {}
    edges: list[str] = []
    for line in lines:
        kind, _, rest = str(line).partition(" ")
        if kind == "edge":
            edges.append(rest)
        elif kind == "start":
            starts[rest.rpartition("/")[0]] = rest
        else:
            kinds[rest] = kind
    leads: dict[str, dict[str, str]] = {}
    for edge in edges:
        source, action, target = _split(edge, kinds)
        leads.setdefault(source, {})[action] = target
    if "" not in starts:
        raise CorruptRecordError("the recorded form of a graph can't be read: it has no start")
    return _nested("", kinds, starts, leads)


def _split(edge: str, kinds: Mapping[str, str]) -> tuple[str, str, str]:
    """Source, action and target of an edge. Names may contain " -" and "-> ", so both ends must be nodes of the graph."""
    for source in kinds:
        for target in kinds if edge.startswith(f"{source} -") else ():
            if edge.endswith(f"-> {target}") and len(edge) > len(source) + len(target) + len(" --> "):
                return source, edge[len(source) + 2 : -len(target) - 3], target
    raise CorruptRecordError(
        f"the recorded form of a graph can't be read: it has an edge {edge!r:.80} between nodes that it doesn't have"
    )


def _nested(
    prefix: str, kinds: Mapping[str, str], starts: Mapping[str, str], leads: Mapping[str, Mapping[str, str]]
) -> GraphForm:
    """The form of the graph whose nodes have this prefix in their paths."""
    nodes: dict[str, NodeForm] = {}
    for path, kind in kinds.items():
        outer, _, name = path.rpartition("/")
        if outer != prefix:
            continue
        inner = _nested(path, kinds, starts, leads) if path in starts else None
        if kind == "fan_out":
            inner = _items(path, kinds, inner)
        ways = {action: target.rpartition("/")[2] for action, target in leads.get(path, {}).items()}
        nodes[name] = NodeForm(kind, ways, inner=inner)
    return GraphForm(starts[prefix].rpartition("/")[2], nodes)


def _items(path: str, kinds: Mapping[str, str], inner: GraphForm | None) -> GraphForm:
    """The form of a fan-out's items: a graph of the one node that they go through.

    If that node is a graph, the lines of its nodes have the same prefix. It is the one that can't be reached inside the graph.
    """
    reached = set[str]() if inner is None else _reached(inner)
    for each, kind in kinds.items():
        outer, _, name = each.rpartition("/")
        if outer == path and name not in reached and kind in ("node", "graph", "fan_out"):
            return GraphForm(name, {name: NodeForm(kind, inner=inner)})
    raise CorruptRecordError(
        f"the recorded form of a graph can't be read: it has no node for the items of {path!r:.80}"
    )


def _reached(graph: GraphForm) -> set[str]:
    found, frontier = {graph.start}, [graph.start]
    while frontier:
        for target in graph.nodes[frontier.pop()].leads.values():
            if target not in found and target in graph.nodes:
                found.add(target)
                frontier.append(target)
    return found
