"""If instrumentation is suppressed, as OpenTelemetry does around an export, nothing is recorded: otherwise an exporter would feed
itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from opentelemetry import _logs, trace
from opentelemetry import context as otel_context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.metrics import _internal
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from structlog.testing import LogCapture

import pocket_plug as pp
from pocket_plug.layers import Logging, Metrics, Tracing, metrics
from pocket_plug.layers import logging as pocket_logging
from pocket_plug.otel import reporting
from pocket_plug.telemetry import export_event
from pocket_plug.testing.spans import SpanCapture


class Told:
    """Everything recorded within the block: spans, metrics other than 0, and events."""

    def __init__(self) -> None:
        self.capture, self.events, self.reader = SpanCapture(detail="debug"), LogCapture(), InMemoryMetricReader()

    def __enter__(self) -> Told:
        self.former = metrics.configure(meter_provider=MeterProvider([self.reader], shutdown_on_exit=False))
        structlog.configure(processors=[self.events], cache_logger_on_first_use=False)
        self.capture.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.capture.__exit__()
        structlog.reset_defaults()
        metrics.configure(meter_provider=self.former.meter_provider)

    def all(self) -> tuple[list[str], dict[str, Any], list[str]]:
        """Without gauges: they are caused by no operation."""
        data = self.reader.get_metrics_data()
        figures = {
            metric.name: sum(getattr(point, "value", getattr(point, "count", 0)) for point in metric.data.data_points)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        counted = {name: number for name, number in figures.items() if number and name != "pocket_plug.store.entries"}
        return [span.name for span in self.capture.spans], counted, [entry["event"] for entry in self.events.entries]


@pytest.fixture
def told() -> Iterator[Told]:
    with Told() as everything:
        yield everything


class Failing(pp.Memory):
    async def read(self, key: str) -> pp.Entry | None:
        if key == "bad":
            raise pp.StoreError("no")
        return await super().read(key)


@pp.node(retry=pp.Retry(attempts=2))
async def twice(n: int) -> int:
    tries.append(n)
    if len(tries) % 2:
        raise ValueError(n)
    return n


tries: list[int] = []


def work(file: Path) -> None:
    """Each operation of a store, failing ones too, and runs of every kind: nested, fanned out, durable, with a retry."""
    store = pp.SyncStore(Failing(), layers=[Logging(), Metrics(durations=True), Tracing()])
    store.set("a", 1)
    store.set_many({"b": 1, "c": 2})
    store.get("a")
    store.get_many(["a", "nothing"])
    store.delete("a")
    with pytest.raises(pp.StoreError):
        store.get("bad")
    with pytest.raises(pp.StoreError):
        store.get_many(["bad"])
    list(store.keys())
    with store.transaction() as tx:
        tx.set("b", tx.get("b"))
    inner = pp.Graph(pp.each(twice), name="inner")
    with pp.SyncStore(f"sqlite:///{file}", layers=["logging", "metrics", "tracing"]) as durable:
        graph = pp.Graph(inner, name="outer", store=durable)
        graph.run_sync([1, 2])
        graph.run_sync([1, 2], run_id="kept")


@contextmanager
def keyed(key: str) -> Iterator[None]:
    token = otel_context.attach(otel_context.set_value(key, True))
    try:
        yield
    finally:
        otel_context.detach(token)


WAYS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "contrib's block": suppress_instrumentation,
    "the API's key, as the SDK sets it": lambda: keyed(_SUPPRESS_INSTRUMENTATION_KEY),
    "the plain key of older instrumentations": lambda: keyed("suppress_instrumentation"),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_recorded_under_suppression(told: Told, way: str, tmp_path: Path) -> None:
    """No span, no metric and no event, of no operation and no run; after the block everything is recorded again."""
    with WAYS[way]():
        work(tmp_path / "suppressed.db")
    assert told.all() == ([], {}, [])
    work(tmp_path / "told.db")
    spans, figures, events = told.all()
    assert {"run outer", "node inner", "run inner", "item twice", "exec twice", "set", "get", "scan"} <= {*spans}
    assert {
        "pocket_plug.run.duration",
        "pocket_plug.node.duration",
        "pocket_plug.node.retries",
        "pocket_plug.store.lookups",
        "pocket_plug.store.writes",
        "pocket_plug.store.errors",
        "db.client.operation.duration",
    } <= {*figures}
    assert {"pocket_plug.store", "pocket_plug.run.started", "pocket_plug.node.retry"} <= {*events}


def test_within_a_run_only_what_is_suppressed_is_left_out(told: Told) -> None:
    """A block in a node: neither the store's operations in it nor a run in it are recorded; the node is, and later operations."""
    store = pp.Store(layers=[Logging(), Metrics(), Tracing()])

    @pp.node
    async def hidden(n: int) -> int:
        return n

    inner = pp.Graph(hidden, name="inner", store=store)

    @pp.node
    async def outer(n: int) -> int:
        with suppress_instrumentation():
            await store.set("of no Key", 1)
            await inner.run(1)
        await store.get("of no Key")
        return n

    asyncio.run(pp.Graph(outer, name="outer").run(1))
    assert told.capture.tree() == [("run outer", [("node outer", [("exec outer", ["get"])])])]
    _, figures, events = told.all()
    assert figures["pocket_plug.store.lookups"] == figures["pocket_plug.run.duration"] == 1
    assert "pocket_plug.store.writes" not in figures
    assert events == ["pocket_plug.run.started", "pocket_plug.store", "pocket_plug.run.finished"]


def test_a_plugin_that_fails_there_makes_no_event(told: Told) -> None:
    """It is still logged by the logger `pocket_plug`, which is no telemetry."""
    record: Any = SimpleNamespace(name="any")
    plugin = pocket_logging.LoggingPlugin()
    with suppress_instrumentation():
        plugin.pocket_plugin_failed(record, "observing", ValueError())
    assert told.all()[2] == []
    plugin.pocket_plugin_failed(record, "observing", ValueError())
    assert told.all()[2] == ["pocket_plug.plugin.failed"]


def test_an_exporter_over_a_traced_store_feeds_itself_nothing() -> None:
    """OpenTelemetry suppresses instrumentation during `export`: operations there make no span."""
    exported: list[ReadableSpan] = []

    class Keeps(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            exported.extend(spans)
            if len(exported) < 50:
                store.set(f"span:{len(exported)}", 1)
            return SpanExportResult.SUCCESS

    store = pp.SyncStore(layers=[Tracing()])
    with SpanCapture() as capture:
        capture.tracer_provider.add_span_processor(SimpleSpanProcessor(Keeps()))
        capture.tracer_provider.get_tracer("app").start_span("one").end()
        pp.Graph(pp.node(lambda n: n, name="same"), name="g").run_sync(1)
    assert [span.name for span in exported] == ["one", "exec same", "node same", "run g"]


def test_an_exporter_of_logs_that_logs_feeds_itself_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`export_event` exports nothing under suppression, and a logging store logs nothing there."""
    exported: list[Any] = []

    class Keeps(LogRecordExporter):
        def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
            exported.extend(record.log_record.body for record in batch)
            if len(exported) < 50:
                structlog.get_logger().info("kept")
                store.set("k", 1)
            return LogRecordExportResult.SUCCESS

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return True

    def drop(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        raise structlog.DropEvent

    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(Keeps()))
    monkeypatch.setattr(_logs, "get_logger_provider", lambda: provider)
    structlog.configure(processors=[export_event, drop])
    try:
        store = pp.SyncStore(layers=[Logging()])
        structlog.get_logger().info("one")
    finally:
        structlog.reset_defaults()
    assert exported == ["one"]


def test_a_custom_context_is_read_through_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """`OTEL_PYTHON_CONTEXT` may name another implementation than context variables."""
    monkeypatch.setattr(otel_context, "attach", lambda context: object())
    monkeypatch.setattr(otel_context, "detach", lambda token: None)
    assert reporting._reader_of_context() is otel_context.get_current


def test_a_private_global_that_is_missing_is_read_through_the_api() -> None:
    """Its name is private: a release without it costs time, and loses nothing."""
    names = reporting.globals_of(otel_context, "_NO_SUCH_PROVIDER", lambda: "the API's answer")
    assert names["_NO_SUCH_PROVIDER"] == "the API's answer"
    for module, name in ((trace, "_TRACER_PROVIDER"), (_internal, "_METER_PROVIDER")):  # so far they exist
        assert reporting.globals_of(module, name, list) is vars(module)
