"""`opentelemetry-instrument python app.py`: pocket_plug is traced, without a change of the program and without duplicates."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp_sink import Sink

import pocket_plug as pp
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.instrumentor import PocketPlugInstrumentor
from pocket_plug.layers import metrics, tracing
from pocket_plug.primitives.waiting import drive
from pocket_plug.traces.index import TraceIndex

APP = """
import sys
import pocket_plug as pp

@pp.node
async def look(name: str) -> str:
    return name

graph = pp.Graph(look, name="shop")
"""
CHECK = """
from pocket_plug.instrumentor import PocketPlugInstrumentor
print(PocketPlugInstrumentor().is_instrumented_by_opentelemetry)
"""


def instrumented(code: str, folder: Path, sink: Sink) -> subprocess.CompletedProcess[str]:
    (folder / "app.py").write_text(APP + code)
    ours = ("OTEL_", "POCKET_PLUG_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    command = [Path(sys.executable).parent / "opentelemetry-instrument", sys.executable, "app.py"]
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=60, check=False)


def test_a_program_without_set_up_is_traced_and_measured(tmp_path: Path, otlp_sink: Sink) -> None:
    """The entry point is loaded, and spans go where the command's variables say."""
    done = instrumented(CHECK + 'graph.run_sync("tea")', tmp_path, otlp_sink)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert otlp_sink.names() == ["run shop", "node look"]
    assert "pocket_plug.run.duration" in {metric.name for metric in otlp_sink.metrics}


def test_setup_in_such_a_program_adds_nothing_but_structlog(tmp_path: Path, otlp_sink: Sink) -> None:
    """Each span is sent once, and log events go to the command's logger provider."""
    code = (
        'from pocket_plug.telemetry import setup\nt = setup(); print(t.mode, t.metrics, t.logs)\ngraph.run_sync("tea")'
    )
    done = instrumented(code, tmp_path, otlp_sink)
    assert (done.returncode, done.stdout) == (0, "yours yours yours\n"), done.stderr
    assert otlp_sink.names() == ["run shop", "node look"]
    assert [log.body for log in otlp_sink.logs] == ["pocket_plug.run.started", "pocket_plug.run.finished"]


def test_it_takes_providers_is_idempotent_and_can_be_ended() -> None:
    """After `uninstrument` nothing is recorded, though the providers still exist."""

    @pp.node
    async def look(name: str) -> str:
        return name

    spans, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    reader = InMemoryMetricReader()
    instrumentor = PocketPlugInstrumentor()
    former = tracing.configure().tracer_provider, metrics.configure().meter_provider
    try:
        instrumentor.instrument(tracer_provider=tracers, meter_provider=MeterProvider([reader]))
        assert PocketPlugInstrumentor() is instrumentor
        instrumentor.instrument()  # logs that it is done already, and changes nothing
        pp.Graph(look, name="shop").run_sync("tea")
        instrumentor.uninstrument()
        pp.Graph(look, name="shop").run_sync("tea")
    finally:
        tracing.configure(tracer_provider=former[0])
        metrics.configure(meter_provider=former[1])
    assert [span.name for span in spans.get_finished_spans()] == ["node look", "run shop"]
    data = reader.get_metrics_data()
    assert data is not None
    counts = {
        point.count
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "pocket_plug.run.duration"
        for point in metric.data.data_points
        if hasattr(point, "count")
    }
    assert counts == {1}


def test_pocket_plug_needs_nothing_of_it() -> None:
    """A traced run imports no part of it, so the extra may be missing."""
    code = (
        APP
        + """
from pocket_plug.telemetry import setup
sys.modules["opentelemetry.instrumentation"] = None
with setup():
    print(graph.run_sync("tea"))
"""
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "tea\n"), done.stderr


def test_instrumentation_of_sqlite3_does_not_change_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry replaces `sqlite3.connect`, by a function whose connections trace each statement. Those of a store's own
    threads would be traces of their own, and `backup` accepts no such object.
    """

    def connect(*_: object, **__: object) -> None:
        raise AssertionError("sqlite3.connect was called")

    for module in (sqlite3, sqlite3.dbapi2):
        monkeypatch.setattr(module, "connect", connect)
    backend, trace_file = SQLite(tmp_path / "state.db"), tmp_path / "traces.jsonl"
    with pp.SyncStore(backend) as store:
        store.set("cup", 1)
        assert store.get("cup") == 1
        backend.backup(tmp_path / "backup.db")
    drive(backend.probe(1))
    trace_file.touch()
    TraceIndex(trace_file).close()
