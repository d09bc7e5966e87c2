"""A running run is visible in a backend within seconds, long before its span is sent; and metrics lead to traces."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from otlp_sink import Point, Sink
from scripts import WORKFLOW, environment

LONG = """
ORDER = pp.Key("order:{}", str)

@pp.node.post
def order(store: pp.SyncWriter, name: str) -> None:
    store.set(ORDER(name), "ordered")

@pp.node
def wait(given: object) -> None:
    sys.stdin.readline()

with setup():
    store = pp.Store("sqlite:///orders.db", layers=["tracing", "metrics"])
    pp.Graph(order >> wait, name="long", store=store).run_sync("tea")
"""


@pytest.mark.parametrize("end", ["its own", "SIGTERM"])
def test_a_run_is_visible_while_it_is_executed_and_its_metrics_lead_to_its_trace(
    tmp_path: Path, otlp_sink: Sink, end: str
) -> None:
    """Its start is a log record with run, graph, trace and span, the number of runs a metric. Exemplars name its spans."""

    def points(name: str) -> list[Point]:
        return [point for metric in otlp_sink.metrics if metric.name == name for point in metric.points]

    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WORKFLOW + LONG],
        cwd=tmp_path,
        env=environment(OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, OTEL_METRIC_EXPORT_INTERVAL="100"),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        otlp_sink.wait_for(
            lambda: (
                otlp_sink.logs
                and any(point.value == 1 for point in points("pocket_plug.run.active"))
                and "set order:{}" in otlp_sink.names()
            )
        )
        [started] = otlp_sink.logs
        assert "run long" not in otlp_sink.names()
        assert (started.event, started.severity) == ("pocket_plug.run.started", "INFO")
        assert started.attributes["pocket_plug.graph.name"] == "long"
        if end == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGTERM if end == "SIGTERM" else 0), said
    run = otlp_sink.one("run long")
    assert (started.trace_id, started.span_id) == (run.trace_id, run.span_id)
    assert started.attributes["pocket_plug.run.id"] == run["pocket_plug.run.id"]
    leads_to = {
        "pocket_plug.run.duration": {"run long"},
        "pocket_plug.node.duration": {"node order", "node wait"} if end == "its own" else {"node order"},
        "db.client.operation.duration": {"set order:{}"},
    }
    for name, spans in leads_to.items():
        exemplars = {(run.trace_id, otlp_sink.one(span).span_id) for span in spans}
        assert {each for point in points(name) for each in point.exemplars} == exemplars, name
