"""Attributes on the spans of pocket-plug, by which Arize Phoenix, MLflow and tools for GenAI show runs and nodes.

They follow two conventions: OpenInference's span kinds, inputs and outputs, and OpenTelemetry's `gen_ai.*` for agents, tools and
retrievals. A node declares its kind, `@pp.node(trace=TOOL)`, or the option `kinds` does. All other spans are a
CHAIN. Spans keep their names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypedDict, get_args
from weakref import WeakKeyDictionary

from pocket_plug import ConfigError, hookimpl
from pocket_plug.errors import suggest
from pocket_plug.graph.observing.shape import Shape
from pocket_plug.hookspecs import NodeCall, PhaseCall, Run, SpanAdditions, SpanAttributes
from pocket_plug.propagation import SESSION, current_session

Kind = Literal[
    "AGENT",
    "CHAIN",
    "DECISION",
    "EMBEDDING",
    "EVALUATOR",
    "GUARDRAIL",
    "LLM",
    "PROMPT",
    "RERANKER",
    "RETRIEVER",
    "TOOL",
]

KIND: Final = "openinference.span.kind"
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


def _kind(kind: Kind) -> SpanAttributes:
    return MappingProxyType({KIND: kind})


AGENT: Final = _kind("AGENT")
"""Reasons, and calls models and tools."""
CHAIN: Final = _kind("CHAIN")
"""A step between others. A node that declares no kind is a CHAIN."""
DECISION: Final = _kind("DECISION")
"""Chooses the next step."""
EMBEDDING: Final = _kind("EMBEDDING")
"""Computes embeddings."""
EVALUATOR: Final = _kind("EVALUATOR")
"""Evaluates the output of a model."""
GUARDRAIL: Final = _kind("GUARDRAIL")
"""Rejects or changes inputs or outputs that aren't allowed."""
LLM: Final = _kind("LLM")
"""Calls a model. If an instrumentation traces the client, its span has this kind; then don't declare it on the node as well."""
PROMPT: Final = _kind("PROMPT")
"""Renders a prompt."""
RERANKER: Final = _kind("RERANKER")
"""Sorts documents by their relevance."""
RETRIEVER: Final = _kind("RETRIEVER")
"""Finds documents."""
TOOL: Final = _kind("TOOL")
"""A function that a model or an agent calls."""


class Options(TypedDict, total=False):
    """The table `[plugins.openinference]`."""

    kinds: Mapping[str, str]
    """Kinds by the name of a node or a graph, if the kind can't be declared in the code: `{chat = "agent"}`."""


class OpenInference:
    """The plugin. Each Pocket has its own instance.

    >>> import pocket_plug as pp
    >>> from pocket_plug.testing.spans import SpanCapture
    >>> @pp.node(trace=TOOL)
    ... def weather(city: str) -> str:
    ...     return "rain"
    >>> with SpanCapture("node") as capture:
    ...     pocket = pp.Pocket(plugins=[OpenInference], autoload=False)
    ...     pp.Graph(weather, name="chat").run_sync("Paris", pocket=pocket)
    'rain'
    >>> [(span.name, span.attributes[KIND]) for span in capture.spans]
    [('run chat', 'CHAIN'), ('node weather', 'TOOL')]
    """

    def __init__(self) -> None:
        self._kinds: Mapping[str, Kind] = {}
        self._declaring: WeakKeyDictionary[Shape, bool] = WeakKeyDictionary()

    @hookimpl
    def pocket_configure(self, options: Options) -> None:
        """Read the table of options. Raises ConfigError for an unknown option, and for an unknown kind."""
        if unknown := options.keys() - {"kinds"}:
            raise ConfigError(f"openinference has no option {min(unknown)!r}; it has: kinds")
        given = options.get("kinds", {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"openinference: kinds is a {type(given).__name__}; give a table of names and kinds")
        self._kinds = {str(name): _known(str(name), kind) for name, kind in given.items()}
        self._declaring.clear()

    @hookimpl
    def pocket_span_additions(self) -> SpanAdditions:
        """The functions that return additional attributes, for each sort of span."""
        return SpanAdditions(
            run=self._of_run,
            node=self._of_node,
            phase=_of_phase,
            store=_of_store,
            value=self._of_value,
            resource=_project,
        )

    def _of_run(self, run: Run, own: SpanAttributes) -> SpanAttributes:
        """The kind that `kinds` has for the graph, or CHAIN.

        The outermost run of a graph whose nodes have kinds is also a workflow, unless it is an AGENT.
        """
        kind = self._kinds.get(run.graph, "CHAIN")
        found: dict[str, str | bool | int | float] = {KIND: kind}
        session = own.get(SESSION)
        if kind == "AGENT":
            found |= _agent(run.graph, session)
        elif run.parent is None and run.shape is not None and self._declares(run.shape):
            found |= {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": run.graph}
            if session is not None:
                found["gen_ai.conversation.id"] = session
        return found

    def _declares(self, shape: Shape) -> bool:
        """Does a node of the graph, or of a nested one, have a kind, declared or by name? The answer is cached for each shape."""
        declares = self._declaring.get(shape)
        if declares is None:
            declares = self._declaring[shape] = (
                any(KIND in attributes for attributes in shape.declared.values())
                or any(name in self._kinds for name in shape.nodes)
                or any(map(self._declares, shape.within.values()))
            )
        return declares

    def _kind_of(self, call: NodeCall) -> str:
        """The declared kind, else the one that `kinds` has for the name, else CHAIN.

        A fan-out (`each`) declares none: its items have their node's kind. A nested graph takes none from `kinds`: its run does.
        """
        named = "CHAIN" if call.type == "graph" else self._kinds.get(call.name, "CHAIN")
        return str(call.attributes.get(KIND, named))

    def _of_node(self, call: NodeCall, own: SpanAttributes) -> SpanAttributes:
        kind = self._kind_of(call)
        if kind == "AGENT":
            return {KIND: kind, **_agent(call.name, current_session())}
        if kind == "TOOL":
            return {
                KIND: kind,
                "tool.name": call.name,
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": call.name,
                "gen_ai.tool.type": "function",
            }
        return {KIND: kind, "gen_ai.operation.name": "retrieval"} if kind == "RETRIEVER" else {KIND: kind}

    def _of_value(
        self, call: Run | NodeCall | PhaseCall | None, way: Literal["input", "output"], text: str, mime_type: str
    ) -> SpanAttributes:
        """The input or output, under the names that these tools read."""
        found = {f"{way}.value": text, f"{way}.mime_type": mime_type}
        if isinstance(call, NodeCall) and self._kind_of(call) == "TOOL":
            found["gen_ai.tool.call.arguments" if way == "input" else "gen_ai.tool.call.result"] = text
        return found


def _known(name: str, given: object) -> Kind:
    """The kind of this name, in any case. Raises ConfigError if there is none."""
    for kind in KINDS:
        if isinstance(given, str) and kind == given.upper():
            return kind
    words = [kind.lower() for kind in KINDS]
    meant = suggest(given, words) if isinstance(given, str) else ""
    raise ConfigError(f"openinference: kinds.{name} is {given!r:.80}; give one of: {', '.join(words)}.{meant}")


def _agent(name: str, session: str | bool | int | float | None) -> dict[str, str | bool | int | float]:
    found: dict[str, str | bool | int | float] = {
        "agent.name": name,
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": name,
    }
    if session is not None:
        found["gen_ai.conversation.id"] = session
    return found


def _of_phase(call: PhaseCall, own: SpanAttributes) -> SpanAttributes:
    """CHAIN: a phase is only a part of its node, which has the kind."""
    return CHAIN


def _of_store(own: SpanAttributes) -> SpanAttributes:
    """CHAIN, and never RETRIEVER: a store reads state, not documents."""
    return CHAIN


def _project(own: SpanAttributes) -> SpanAttributes:
    """The project in which Phoenix shows the traces: `PHOENIX_PROJECT_NAME`, else the service's name."""
    return {"openinference.project.name": os.environ.get("PHOENIX_PROJECT_NAME") or own["service.name"]}
