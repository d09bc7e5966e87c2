"""Exporters behind bounded queues: items without room are counted and dropped, and missing or repeated things are logged once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import ReadWriteLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pocket_plug.primitives import failures
from pocket_plug.telemetry.export import LogExport, SpanExport, _WarnsOnce
from pocket_plug.telemetry.exporters import log_exporters, metric_readers, span_exporters


@pytest.mark.parametrize(
    ("signal", "make"), [("traces", span_exporters), ("metrics", metric_readers), ("logs", log_exporters)]
)
def test_the_missing_extra_is_logged_for_each_signal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, signal: str, make: Callable[[], object]
) -> None:
    """If OTLP is configured, by an endpoint or by name, a warning says what to install; no signal is silently missing."""
    for name in [*sys.modules]:
        if name.startswith("opentelemetry.exporter.otlp"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp", None)  # type: ignore[arg-type]
    for variable, value in (
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
        (f"OTEL_{signal.upper()}_EXPORTER", "otlp"),
    ):
        with monkeypatch.context() as asked:
            asked.setenv(variable, value)
            monkeypatch.setattr(failures, "_said", set())
            assert make() == {}
            assert f"sending {signal} by OTLP failed" in caplog.text
            assert "not installed: pip install 'pocket-plug[otlp]'" in caplog.text
            caplog.clear()


def test_spans_without_room_are_dropped(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """They are counted and logged once. Otherwise they would replace older spans in the SDK's own queue."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "2")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    handed: list[str] = []
    exporter = InMemorySpanExporter()
    export = SpanExport(exporter)
    batch = export._batch
    monkeypatch.setattr(batch, "on_end", lambda span: handed.append(span.name))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export)
    for name in ("first", "second", "third", "fourth"):
        provider.get_tracer("app").start_span(name).end()
    assert handed == ["first", "second"]
    assert export.backlog.unsent == 4
    assert [record.message for record in caplog.records] == [
        "telemetry: 2 spans wait to be exported; further ones are dropped and counted (logged once)"
    ]
    provider.shutdown()


def test_log_records_without_room_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same."""
    monkeypatch.setenv("OTEL_BLRP_MAX_QUEUE_SIZE", "1")
    handed: list[object] = []
    export = LogExport(InMemoryLogRecordExporter())
    monkeypatch.setattr(export._batch, "on_emit", lambda record: handed.append(record.log_record.body))
    for body in ("first", "second"):
        export.on_emit(ReadWriteLogRecord(LogRecord(body=body)))
    assert handed == ["first"]
    assert export.backlog.unsent == 2
    export.shutdown()


def test_a_repeated_warning_of_an_exporter_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """By its text, without its arguments: otherwise an endpoint that doesn't answer would be logged for every batch.

    Another warning is logged too, and so is whatever is below a warning, each time.
    """
    name = "opentelemetry.exporter.of_this_test"
    logger = logging.getLogger(name)

    class Fails(SpanExporter):
        __module__ = name

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            logger.warning("no answer from %s, try %d", "host", len(spans))
            logger.error("gave up")
            logger.info("as usual")
            return SpanExportResult.FAILURE

    exports = [SpanExport(Fails()) for _ in range(2)]  # of two exporters of one kind, each message once too
    with caplog.at_level(logging.INFO, name):
        for export in exports:
            for _ in range(3):
                export._batch._batch_processor._exporter.export([])  # type: ignore[attr-defined]
    assert [record.getMessage() for record in caplog.records] == [
        "no answer from host, try 0",
        "gave up",
        *["as usual"] * 6,
    ]
    for export in exports:
        export.shutdown()


def test_a_message_at_debug_does_not_suppress_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Repetitions are suppressed from warnings on; lower levels are neither suppressed nor remembered."""
    logger = logging.getLogger("tests.exporter")
    said = _WarnsOnce()
    logger.addFilter(said)
    try:
        with caplog.at_level(logging.DEBUG, logger.name):
            for level in (logging.DEBUG, logging.WARNING, logging.WARNING, logging.DEBUG):
                logger.log(level, "the batch wasn't taken")
    finally:
        logger.removeFilter(said)
    assert [record.levelname for record in caplog.records] == ["DEBUG", "WARNING", "DEBUG"]
