"""Off means off: what tracing costs a store read and a node while nobody listens, against the same code without it."""

from __future__ import annotations

import sys
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from pocket_plug import Graph, Pocket
from pocket_plug.layers import Tracing, tracing

from .harness import Bench, Body, row
from .nodes import NODES, Phases, chain
from .store import stack
from .tracing import listening

SAMPLED_OUT = NonRecordingSpan(SpanContext(0x1F0C, 0x1F0D, is_remote=False, trace_flags=TraceFlags(0)))
"""A parent that a sampler has decided against."""

AS_WITHOUT = 1.05
"""What is off costs as much as what isn't there. The rest is the measurement's."""
IDLE_LAYER = 1.3
"""Of a read: a layer that is passed costs a frame, which is a fifth of it."""


def reads(store: Any) -> Body:
    async def body(times: int) -> None:
        for _ in range(times):
            await store.get("key")

    return body


def runs(graph: Graph[int, int], pocket: Pocket) -> Body:
    async def body(times: int) -> None:
        for _ in range(times):
            await graph.run(1, pocket=pocket)

    return body


def sampled_out(body: Body) -> Body:
    async def within(times: int) -> None:
        token = otel_context.attach(trace.set_span_in_context(SAMPLED_OUT))
        try:
            await body(times)
        finally:
            otel_context.detach(token)

    return within


def read_bodies(bench: Bench) -> tuple[Body, Body]:
    """With the layer and without."""
    store, without = stack(Tracing()), stack()
    for each in (store, without):
        bench.run(each.set("key", 1))
    return reads(store), reads(without)


def node_bodies() -> tuple[Body, Body]:
    """With the plugin and without. Logging and metrics are off in both."""
    graph = chain(Phases(), NODES)
    others = ["logging", "metrics"]
    return runs(graph, Pocket(block=others)), runs(graph, Pocket(block=[*others, "tracing"]))


# ---------------------------------------------------------------- without an SDK
@row
def get_without_sdk(bench: Bench) -> None:
    """get through a stack with the tracing layer, no SDK in the process"""
    ours, without = read_bodies(bench)
    bench.case("with the layer", ours)
    bench.case("without the layer", without)
    bench.target("with the layer", IDLE_LAYER, "without the layer")
    assert "opentelemetry.sdk" not in sys.modules


@row
def node_without_sdk(bench: Bench) -> None:
    """a node with prep, exec and post, no SDK in the process"""
    ours, without = node_bodies()
    bench.case("with the plugin", ours, per=NODES)
    bench.case("without the plugin", without, per=NODES)
    bench.target("with the plugin", AS_WITHOUT, "without the plugin")
    assert "opentelemetry.sdk" not in sys.modules


# ---------------------------------------------------------------- with one
@row
def get_with_sdk(bench: Bench) -> None:
    """get through a stack with the tracing layer: below a sampled-out parent, and traced"""
    ours, without = read_bodies(bench)
    tracing.configure(tracer_provider=listening())
    bench.case("sampled out", sampled_out(ours))
    bench.case("sampled out, without the layer", sampled_out(without))
    bench.case("traced", ours)


@row
def node_with_sdk(bench: Bench) -> None:
    """a node with prep, exec and post: below a sampled-out parent, and traced"""
    ours, without = node_bodies()
    tracing.configure(tracer_provider=listening())
    bench.case("sampled out", sampled_out(ours), per=NODES)
    bench.case("sampled out, without the plugin", sampled_out(without), per=NODES)
    bench.case("traced", ours, per=NODES)
    bench.target("sampled out", AS_WITHOUT, "sampled out, without the plugin")
