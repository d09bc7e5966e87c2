"""A graph as a Mermaid flow chart: text that documentation sites and editors draw."""

from __future__ import annotations

from collections.abc import Iterator

from pocket_plug.graph.nodes.chain import DEFAULT
from pocket_plug.graph.planning.plan import Plan
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.redaction import public_url

from .kinds import kind_of

_SHAPES = {"node": ('["', '"]'), "fan_out": ('[/"', '"/]')}


def flow_chart(plan: Plan) -> str:
    """The chart of a plan. Under a node's name are its declared reads and writes, and its executor."""
    return "\n".join(["flowchart TD", *_lines(plan, "n", "    ")])


def _lines(plan: Plan, prefix: str, indent: str) -> Iterator[str]:
    """The nodes of a graph, each nested graph as a subgraph, and the edges between them."""
    ids = {step: f"{prefix}{number}" for number, step in enumerate(plan.shown)}
    for step, id in ids.items():
        label = _label(step)
        if (inner := step.inner_graph()) is not None:
            yield f'{indent}subgraph {id}["{", ".join([f"{label[0]} ({kind_of(step)})", *label[1:]])}"]'
            yield from _lines(inner.plan, f"{id}_", f"{indent}    ")
            yield f"{indent}end"
        else:
            left, right = _SHAPES[step.kind]
            yield f"{indent}{id}{left}{'<br/>'.join(label)}{right}"
    for step, id in ids.items():
        for action, target in step.actions.items():
            arrow = "-->" if action == DEFAULT else f'-- "{_escape(action)}" -->'
            yield f"{indent}{id} {arrow} {ids[target]}"


def _label(step: Step) -> list[str]:
    reads = [f"reads {key.template}" for key in step.reads]
    writes = [f"writes {key.template}" for key in step.writes]
    executor = step.passed.executor
    where = [f"on {public_url(executor)}"] if isinstance(executor, str) else []
    return [_escape(line) for line in (step.name, *reads, *writes, *where)]


def _escape(text: str) -> str:
    for character, code in (
        ("&", "&amp;"),
        ('"', "&quot;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("{", "&#123;"),
        ("}", "&#125;"),
    ):
        text = text.replace(character, code)
    return text
