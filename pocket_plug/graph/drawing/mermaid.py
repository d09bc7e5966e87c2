"""A graph as a Mermaid flow chart: text that documentation sites and editors draw."""

from __future__ import annotations

from pocket_plug.graph.nodes.chain import DEFAULT
from pocket_plug.graph.planning.plan import Plan
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.redaction import public_url

_SHAPES = {"node": ('["', '"]'), "graph": ('[["', '"]]'), "fan_out": ('[/"', '"/]')}


def flow_chart(plan: Plan) -> str:
    """The chart of a plan. Under a node's name are its declared reads and writes, and its executor."""
    ids = {step: f"n{number}" for number, step in enumerate(plan.steps.values())}
    lines = ["flowchart TD"]
    for step, id in ids.items():
        left, right = _SHAPES[step.kind]
        lines.append(f"    {id}{left}{'<br/>'.join(_label(step))}{right}")
    for step, id in ids.items():
        for action, target in step.actions.items():
            arrow = "-->" if action == DEFAULT else f'-- "{_escape(action)}" -->'
            lines.append(f"    {id} {arrow} {ids[target]}")
    return "\n".join(lines)


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
