"""The cost of a recorded span, compared with a bare span of OpenTelemetry's SDK with the same attributes. Nothing is exported."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Literal

import pocket_plug as pp
from pocket_plug import Graph, Key
from pocket_plug.layers import Tracing, tracing

from . import peers
from .harness import Bench, Body, row
from .nodes import FEW, NODES, Phases, chain
from .store import stack

if TYPE_CHECKING:  # the SDK is imported by the rows that need it: others measure what there is without
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import Tracer

Attributes = dict[str, Any]
USER = Key("user:{}")


def listening(processor: SpanProcessor | None = None) -> TracerProvider:
    """A provider that records every span; by default its processor does nothing."""
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    provider = TracerProvider()
    provider.add_span_processor(processor or SpanProcessor())
    return provider


def kept() -> tuple[TracerProvider, InMemorySpanExporter]:
    """A provider whose spans are kept, and the exporter that keeps them."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans = InMemorySpanExporter()
    return listening(SimpleSpanProcessor(spans)), spans


def spans_of(bench: Bench, body: Body, spans: InMemorySpanExporter) -> list[tuple[str, list[str]]]:
    """The name and the attributes' names of every span that a case makes in one call, in the order of their ends."""
    spans.clear()
    bench.run(body(1))
    found: tuple[ReadableSpan, ...] = spans.get_finished_spans()
    return [(span.name, sorted(span.attributes or ())) for span in found]


# ---------------------------------------------------------------- a store operation
@row
def get_recorded(bench: Bench) -> None:
    """get through a stack with the tracing layer, recorded"""

    async def bare(times: int) -> None:
        for _ in range(times):
            span = tracer.start_span("get", attributes={"db.system.name": "memory", "db.operation.name": "get"})
            span.set_attribute("pocket_plug.store.hit", True)
            span.end()

    async def ours(times: int) -> None:
        for _ in range(times):
            await store.get("key")

    store = stack(Tracing())
    recording, spans = kept()
    bench.run(store.set("key", 1))
    tracing.configure(tracer_provider=recording)
    tracer = recording.get_tracer("bare")
    assert spans_of(bench, ours, spans) == spans_of(bench, bare, spans)

    provider = listening()
    tracing.configure(tracer_provider=provider)
    tracer = provider.get_tracer("bare")
    bench.case("pocket_plug", ours)
    bench.case("a bare span", bare)
    bench.target("pocket_plug", 1.15, "a bare span")


@row
def many_keys(bench: Bench) -> None:
    """a traced get by a key that was never used before, made of a template; and after 100,000 others"""

    def getting() -> Body:
        store, numbers = stack(Tracing()), count()

        async def body(times: int) -> None:
            for number in islice(numbers, times):
                await store.get(USER(number))

        return body

    tracing.configure(tracer_provider=listening())
    many = getting()
    bench.run(many(100_000))
    bench.case("the first keys", getting())
    bench.case("after 100,000 others", many)
    bench.target("after 100,000 others", 1.1, "the first keys")


# ---------------------------------------------------------------- a node that reads and writes, exported
class ReadsAndWrites(pp.Node[int, int]):
    """A get and a set, and nothing else."""

    async def prep(self, store: pp.StoreReader, n: int) -> Any:
        return await store.get(USER("x"), default=n)

    async def post(self, store: pp.StoreWriter, n: int, prepared: Any, result: Any) -> int:
        await store.set(USER("x"), n)
        return n


@row
def node_exported(bench: Bench) -> None:
    """a node with a get and a set, exported as setup() does it, up to the bytes that would be sent"""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    from pocket_plug.telemetry.environment import Environment
    from pocket_plug.telemetry.export import SpanExport
    from pocket_plug.telemetry.providers import SpanFan, make_tracers

    class Encoded(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            encode_spans(spans).SerializeToString()
            return SpanExportResult.SUCCESS

    def ours_to(provider: TracerProvider) -> Body:
        async def body(times: int) -> None:
            tracing.configure(tracer_provider=provider, detail="node")
            for _ in range(times):
                await graph.run(1)
            provider.force_flush()

        return body

    def bare_to(provider: TracerProvider) -> Body:
        tracer = provider.get_tracer("bare")

        async def body(times: int) -> None:
            for _ in range(times):
                with tracer.start_as_current_span("run graph", attributes=run) as span:
                    for n in range(FEW):
                        bare_node(
                            tracer, f"node_{n}", {"pocket_plug.node.next": f"node_{n + 1}"} if n < FEW - 1 else {}
                        )
                    span.set_attributes({"pocket_plug.run.outcome": "success", "pocket_plug.run.steps": FEW})
            provider.force_flush()

        return body

    run = {
        "pocket_plug.graph.name": "graph",
        "pocket_plug.graph.version": "f00d",
        "pocket_plug.run.id": "1f0c",
        "pocket_plug.run.resumed": False,
    }
    graph = chain(ReadsAndWrites(), FEW, stack(Tracing()))
    bench.run(graph.run(1))  # from now on the get is a hit
    recording, spans = kept()
    assert spans_of(bench, ours_to(recording), spans) == spans_of(bench, bare_to(recording), spans)
    fan = SpanFan()
    setup = make_tracers(Resource({}), fan, Environment())
    sdk = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    fan.processors = (SpanExport(Encoded()),)
    sdk.add_span_processor(BatchSpanProcessor(Encoded(), max_queue_size=32_768))
    bench.case("pocket_plug", ours_to(setup), per=FEW)
    bench.case("three bare spans of the SDK", bare_to(sdk), per=FEW)
    bench.target("pocket_plug", 1.3, "three bare spans of the SDK")


def at_start(name: str) -> Attributes:
    """The attributes with which a node's span is started."""
    return {
        "pocket_plug.node.name": name,
        "pocket_plug.node.type": "node",
        "pocket_plug.node.visit": 1,
        "pocket_plug.run.id": "1f0c",
        "pocket_plug.graph.name": "graph",
        "code.function.name": "tests.bench.nodes.Phases.exec",
        "code.file.path": "/app/tests/bench/nodes.py",
        "code.line.number": 17,
    }


def bare_node(tracer: Tracer, name: str, end: Attributes) -> None:
    """A node's span with those of a get and a set, as the manual of OpenTelemetry has them."""
    with tracer.start_as_current_span(
        f"node {name}",
        attributes=at_start(name),
    ) as node:
        for operation in ("get", "set"):
            about = {"db.system.name": "memory", "db.operation.name": operation}
            with tracer.start_as_current_span(f"{operation} user:{{}}", attributes=about) as span:
                if operation == "get":
                    span.set_attribute("pocket_plug.store.hit", True)
        durations = {f"pocket_plug.node.{phase}.duration": 1e-6 for phase in ("prep", "post")}
        ended = {"pocket_plug.node.attempts": 0, "pocket_plug.node.outcome": "ok", "pocket_plug.node.action": "default"}
        node.set_attributes(ended | durations | end)


# ---------------------------------------------------------------- a node
def traced(graph: Graph[int, int], provider: TracerProvider, detail: Literal["node", "phase"]) -> Body:
    """Runs of a graph, traced."""

    async def body(times: int) -> None:
        tracing.configure(tracer_provider=provider, detail=detail)
        for _ in range(times):
            await graph.run(1)

    return body


def bare_run(tracer: Tracer, nodes: int, detail: Literal["node", "phase"]) -> Body:
    """The same spans with the same attributes, each opened and closed as the manual of OpenTelemetry has it."""

    async def body(times: int) -> None:
        for _ in range(times):
            with tracer.start_as_current_span(
                "run graph",
                attributes={
                    "pocket_plug.graph.name": "graph",
                    "pocket_plug.graph.version": "f00d",
                    "pocket_plug.run.id": "1f0c",
                    "pocket_plug.run.resumed": False,
                },
            ) as run:
                for n in range(nodes):
                    name = f"node_{n}"
                    with tracer.start_as_current_span(
                        f"node {name}",
                        attributes=at_start(name),
                    ) as node:
                        if detail == "phase":
                            phases(name)
                        end = ends[:]
                        if n < nodes - 1:
                            end.append(("pocket_plug.node.next", f"node_{n + 1}"))
                        node.set_attributes(dict(end))
                if detail == "phase":
                    run.set_attributes({"pocket_plug.graph.nodes": ["node"], "pocket_plug.graph.edges": ["edge"]})
                run.set_attributes({"pocket_plug.run.outcome": "success", "pocket_plug.run.steps": nodes})

    def phases(name: str) -> None:
        with tracer.start_as_current_span(
            f"prep {name}",
            attributes={
                "pocket_plug.phase": "prep",
                "pocket_plug.node.name": name,
            },
        ):
            pass
        with tracer.start_as_current_span(
            f"exec {name}",
            attributes={
                "pocket_plug.phase": "exec",
                "pocket_plug.node.name": name,
                "pocket_plug.attempt": 1,
            },
        ):
            pass
        with tracer.start_as_current_span(
            f"post {name}",
            attributes={
                "pocket_plug.phase": "post",
                "pocket_plug.node.name": name,
            },
        ):
            pass

    ends: list[tuple[str, Any]] = [
        ("pocket_plug.node.attempts", 1),
        ("pocket_plug.node.outcome", "ok"),
        ("pocket_plug.node.action", "default"),
    ]
    if detail == "node":
        ends += [(f"pocket_plug.node.{phase}.duration", 1e-6) for phase in ("prep", "exec", "post")]
    return body


def compare(bench: Bench, nodes: int, per: int, limits: dict[Literal["node", "phase"], float | None]) -> None:
    (recording, spans), provider = kept(), listening()
    graph = chain(Phases(), nodes)
    for detail, limit in limits.items():
        ours, bare = traced(graph, recording, detail), bare_run(recording.get_tracer("bare"), nodes, detail)
        assert spans_of(bench, ours, spans) == spans_of(bench, bare, spans)
        name, floor = f"pocket_plug, detail={detail!r}", f"{'bare span' if detail == 'node' else 'four bare spans'}"
        bench.case(name, traced(graph, provider, detail), per=per)
        bench.case(floor, bare_run(provider.get_tracer("bare"), nodes, detail), per=per)
        if limit is not None:
            bench.target(name, limit, floor)


@row
def node_traced(bench: Bench) -> None:
    """a node with prep, exec and post, traced"""
    compare(bench, NODES, NODES, {"node": 1.2, "phase": 1.1})


@row
def node_traced_by_peers(bench: Bench) -> None:
    """a node of the peers, traced; in a row of its own, for Logfire sets the process's providers"""
    import logfire
    from burr.integrations.opentelemetry import OpenTelemetryBridge
    from openinference.instrumentation.langchain import LangChainInstrumentor
    from opentelemetry.sdk.trace import SpanProcessor

    provider = listening()
    bridge: Any = OpenTelemetryBridge(tracer=provider.get_tracer("burr"))
    bench.case("Burr + its OpenTelemetryBridge", peers.burr(FEW, bridge), per=FEW)
    logfire.configure(send_to_logfire=False, console=False, additional_span_processors=[SpanProcessor()])
    bench.case("pydantic-graph + Logfire", peers.pydantic_graph(FEW, traced=True), per=FEW)
    LangChainInstrumentor().instrument(tracer_provider=provider)
    bench.case("LangGraph + OpenInference", peers.langgraph(FEW), per=FEW)


@row
def run_of_one_node_traced(bench: Bench) -> None:
    """a run of one node, traced"""
    compare(bench, 1, 1, {"node": None})
