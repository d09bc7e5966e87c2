"""How drawings call the kinds of nodes."""

from __future__ import annotations

from pocket_plug.graph.planning.step import Step


def kind_of(step: Step) -> str:
    """The kind of a node in a word; "" for a plain node."""
    if step.kind == "fan_out":
        return "branches" if step.branches else "fan-out"
    if step.kind == "graph":
        return "graph"
    return "asks" if step.asks else ""
