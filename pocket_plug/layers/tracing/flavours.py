"""Attributes that others' tools look for: OpenInference's, as Phoenix and MLflow draw them, and those of GenAI agents.

They come on top of ours, where `flavours` asks for them. No span is called otherwise for it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pocket_plug.hookspecs import NodeCall, Phase, Run
from pocket_plug.primitives.failures import capped

Attributes = dict[str, str | bool | int | float]

KIND = "openinference.span.kind"


def of_run(flavours: Collection[str], run: Run, session: str | None) -> Attributes:
    """A run: a chain; the outermost one a workflow of agents."""
    found: Attributes = {}
    if "openinference" in flavours:
        found[KIND] = "CHAIN"
    if "gen_ai" in flavours and run.parent is None:
        found |= {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.workflow.name": capped(run.graph),
        } | _conversation(session)
    return found


def of_node(flavours: Collection[str], call: NodeCall, is_agent: bool, session: str | None) -> Attributes:
    """A node: a chain, or an agent."""
    found: Attributes = {}
    if "openinference" in flavours:
        found |= {KIND: "AGENT", "agent.name": capped(call.name)} if is_agent else {KIND: "CHAIN"}
    if "gen_ai" in flavours and is_agent:
        found |= {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": capped(call.name)} | _conversation(
            session
        )
    return found


def _conversation(session: str | None) -> Attributes:
    return {} if session is None else {"gen_ai.conversation.id": capped(session)}


def of_phase(flavours: Collection[str], phase: Phase) -> Attributes:
    """An attempt at exec is the use of a tool."""
    return {KIND: "TOOL" if phase == "exec" else "CHAIN"} if "openinference" in flavours else {}


def of_operation(flavours: Collection[str], operation: str) -> Attributes:
    """What reads from a store retrieves."""
    reads = operation in ("get", "get_many", "scan")
    return {KIND: "RETRIEVER" if reads else "CHAIN"} if "openinference" in flavours else {}


def of_value(flavours: Collection[str], way: Literal["input", "output"], text: str, mime_type: str) -> Attributes:
    """What went in or came out, where that is captured."""
    return {f"{way}.value": text, f"{way}.mime_type": mime_type} if "openinference" in flavours else {}
