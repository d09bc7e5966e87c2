"""From here to elsewhere: the exporters that `OTEL_*` variables name, each behind a bounded queue that counts its losses.

Whatever an exporter does, the program goes on: it is called in a thread of its own, and what it raises or says is said once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Literal

from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    ConsoleLogRecordExporter,
    LogRecordExporter,
    LogRecordExportResult,
)
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.failures import say_once
from pocket_plug.primitives.forking import after_fork
from pocket_plug.primitives.locks import Lock

from .local import FileExporter

Signal = Literal["traces", "metrics", "logs"]

QUEUE = 32_768
"""Spans, or log records, that wait to be exported. At OpenTelemetry's own 2,048 a burst of 2,000 runs loses a third of its
spans."""

FILE_DELAY = 200
"""Milliseconds after which what ended is in the file, where somebody may watch."""

_logger = logging.getLogger("pocket_plug")


# ---------------------------------------------------------------- what the environment asks for
def disabled() -> bool:
    """Is all of it switched off?"""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


_ENDPOINTS = {
    "traces": "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "metrics": "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "logs": "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
}
_PROTOCOLS = {
    "traces": "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "metrics": "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
    "logs": "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
}
_EXPORTERS = {
    "traces": ("OTEL_TRACES_EXPORTER", ("otlp", "console", "none")),
    "metrics": ("OTEL_METRICS_EXPORTER", ("otlp", "prometheus", "console", "none")),
    "logs": ("OTEL_LOGS_EXPORTER", ("otlp", "console", "none")),
}


def endpoint(signal: Signal) -> str:
    """The collector that is named for a signal, or for all; else ""."""
    return os.environ.get(_ENDPOINTS[signal]) or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")


def asked(signal: Signal) -> list[str]:
    """The exporters that the environment asks for; an endpoint asks for `otlp`. Raises ConfigError for unknown ones."""
    variable, known = _EXPORTERS[signal]
    texts = [name.strip() for name in os.environ.get(variable, "").split(",")]
    named = [name for name in dict.fromkeys(texts) if name]
    for name in named:
        if name not in known:
            raise ConfigError(
                f"{variable} is {name!r}; known are {', '.join(known[:-1])} and {known[-1]}. For another "
                "exporter set a provider of your own before"
            )
    return named or (["otlp"] if endpoint(signal) else [])


def _needs_otlp(signal: Signal) -> None:
    for variable in (_PROTOCOLS[signal], "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if (protocol := os.environ.get(variable)) and protocol != "http/protobuf":
            raise ConfigError(
                f"{variable} is {protocol!r}; pocket_plug speaks http/protobuf only, usually on port 4318"
            )


_NO_OTLP = "the environment asks for OTLP, and its exporter is not installed: pip install 'pocket-plug[otlp]'"


def _by_process(kind: Any) -> Any:
    """A kind of exporter with a connection of its own in each process: a forked child would write into its parent's."""

    class Exporter(kind):  # type: ignore[misc]
        process = os.getpid()
        inherited: Any = None

        def export(self, *batch: Any, **kwargs: Any) -> Any:
            if self.process != os.getpid():
                inherited = vars(self).copy()
                kind.__init__(self)
                # what was inherited isn't let go of: its locks may be held by threads that aren't here
                self.process, self.inherited = os.getpid(), inherited
            return kind.export(self, *batch, **kwargs)

    Exporter.__name__ = kind.__name__
    return Exporter


def span_exporters() -> list[SpanExporter]:
    """Those that the environment asks for. Raises ConfigError for what can't be followed."""
    found: list[SpanExporter] = []
    for name in asked("traces"):
        if name == "otlp":
            _needs_otlp("traces")
            try:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            except ImportError:
                raise ConfigError(_NO_OTLP) from None
            found.append(_by_process(OTLPSpanExporter)())
        elif name == "console":
            found.append(ConsoleSpanExporter())
    return found


def log_exporters() -> list[LogRecordExporter]:
    """Those that the environment asks for. Raises ConfigError for what can't be followed."""
    found: list[LogRecordExporter] = []
    for name in asked("logs"):
        if name == "otlp":
            _needs_otlp("logs")
            try:
                from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
            except ImportError:
                raise ConfigError(_NO_OTLP) from None
            found.append(_by_process(OTLPLogExporter)())
        elif name == "console":
            found.append(ConsoleLogRecordExporter())
    return found


def metric_readers() -> list[MetricReader]:
    """Those that the environment asks for. Raises ConfigError for what can't be followed."""
    found: list[MetricReader] = []
    for name in asked("metrics"):
        if name == "otlp":
            _needs_otlp("metrics")
            try:
                from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            except ImportError:
                raise ConfigError(_NO_OTLP) from None
            found.append(MetricExport(_said_once(_by_process(OTLPMetricExporter))))
        elif name == "console":
            found.append(MetricExport(_said_once(ConsoleMetricExporter)))
        elif name == "prometheus":
            found.append(_prometheus())
    return found


def _prometheus() -> MetricReader:
    """Metrics at `/metrics`, as OpenTelemetry's variables say. A port that is taken is said, and breaks nothing."""
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import start_http_server
    except ImportError:
        raise ConfigError(
            "OTEL_METRICS_EXPORTER asks for prometheus, and its exporter is not installed: "
            "pip install 'pocket-plug[prometheus]'"
        ) from None
    host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "localhost"
    text = os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT") or "9464"
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(f"OTEL_EXPORTER_PROMETHEUS_PORT is {text!r}; give a port, 1 to 65535")
    port = int(text)

    class Reader(PrometheusMetricReader):
        """With its server, which ends with it."""

        def __init__(self) -> None:
            super().__init__()
            self.server: Any = None
            try:
                self.server, _ = start_http_server(port, host)
            except OSError as error:
                say_once(f"serving metrics to Prometheus on {host}:{port}", error)

        def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
            super().shutdown(timeout_millis, **kwargs)  # pyright: ignore[reportUnknownMemberType]
            if self.server is not None:
                self.server.shutdown()
                self.server.server_close()

    return Reader()


# ---------------------------------------------------------------- queues
class Backlog:
    """How much was handed over, dropped for want of room, and sent. Adds no more than `size` at a time.

    >>> backlog = Backlog("spans", size=2)
    >>> backlog.add(), backlog.add(), backlog.unsent
    (True, True, 2)
    >>> backlog.done(2, sent=True)
    >>> backlog.unsent
    0
    """

    def __init__(self, what: str, size: int) -> None:
        self.what, self._size = what, size
        self._reset()
        after_fork(self._reset)

    def _reset(self) -> None:
        """In a forked child too: what waits there, its parent exports."""
        self._lock = Lock()
        self._added = self._finished = self._sent = self._dropped = 0

    @property
    def unsent(self) -> int:
        """What was handed over and is not exported: it waits, had no room, or was refused."""
        return max(self._added + self._dropped - self._sent, 0)

    def add(self) -> bool:
        """One more; False where there is no room, which is said once."""
        with self._lock:
            if self._added - self._finished < self._size:
                self._added += 1
                return True
            self._dropped += 1
            first = self._dropped == 1
        if first:
            _logger.warning(
                "telemetry: %d %s wait to be exported; what comes on top is dropped and counted (said once)",
                self._size,
                self.what,
            )
        return False

    def done(self, number: int, *, sent: bool) -> None:
        """So many were exported, or refused.

        There is one export at a time, so it takes no lock: a signal may have interrupted who holds that.
        """
        self._finished += number
        if sent:
            self._sent += number


def _number(variable: str, default: int) -> int:
    """A positive one, as the environment has it. Another text is said and passed over, as OpenTelemetry demands."""
    text = os.environ.get(variable, "").strip()
    if text.isdecimal() and int(text):
        return int(text)
    if text:
        _logger.warning("telemetry: %s is %r, not a positive number; it is taken as %d", variable, text, default)
    return default


def _sizes(queue: str, batch: str) -> tuple[int, int]:
    """Of a processor's queue and its batches, by their variables; a batch is no larger than its queue."""
    size = _number(queue, QUEUE)
    return size, min(size, _number(batch, 512))


class SpanExport(SpanProcessor):
    """The SDK's batch processor with a longer queue, which counts what it was not rid of and says once why."""

    def __init__(self, exporter: SpanExporter) -> None:
        size, batch = _sizes("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
        self.backlog = Backlog("spans", size)
        soon = isinstance(exporter, FileExporter) and "OTEL_BSP_SCHEDULE_DELAY" not in os.environ
        self._batch = BatchSpanProcessor(
            _Spans(exporter, self.backlog),
            max_queue_size=size,
            schedule_delay_millis=FILE_DELAY if soon else None,
            max_export_batch_size=batch,
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Queue it."""
        context = span.get_span_context()
        if context is not None and context.trace_flags.sampled and self.backlog.add():
            self._batch.on_end(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what waits."""
        return self._batch.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Export what waits, and let go of the exporter."""
        self._batch.shutdown()  # type: ignore[no-untyped-call]


class _Spans(SpanExporter):
    def __init__(self, exporter: SpanExporter, backlog: Backlog) -> None:
        self._exporter, self._backlog = exporter, backlog
        _say_repeats_once(exporter)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        sent = False
        try:
            sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except BaseException as error:  # noqa: BLE001 - whatever an exporter raises, its thread goes on
            say_once(f"exporting spans by {type(self._exporter).__name__}", error)
        finally:
            self._backlog.done(len(spans), sent=sent)
        return SpanExportResult.SUCCESS if sent else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._exporter.shutdown()


class LogExport(LogRecordProcessor):
    """The same for log records."""

    def __init__(self, exporter: LogRecordExporter) -> None:
        size, batch = _sizes("OTEL_BLRP_MAX_QUEUE_SIZE", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE")
        self.backlog = Backlog("log records", size)
        self._batch = BatchLogRecordProcessor(
            _Logs(exporter, self.backlog), max_queue_size=size, max_export_batch_size=batch
        )

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Queue it."""
        if self.backlog.add():
            self._batch.on_emit(log_record)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what waits."""
        return self._batch.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Export what waits, and let go of the exporter."""
        self._batch.shutdown()  # type: ignore[no-untyped-call]


class _Logs(LogRecordExporter):
    def __init__(self, exporter: LogRecordExporter, backlog: Backlog) -> None:
        self._exporter, self._backlog = exporter, backlog
        _say_repeats_once(exporter)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        sent = False
        try:
            sent = self._exporter.export(batch) is LogRecordExportResult.SUCCESS
        except BaseException as error:  # noqa: BLE001 - whatever an exporter raises, its thread goes on
            say_once(f"exporting log records by {type(self._exporter).__name__}", error)
        finally:
            self._backlog.done(len(batch), sent=sent)
        return LogRecordExportResult.SUCCESS if sent else LogRecordExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class MetricExport(PeriodicExportingMetricReader):
    """The SDK's periodic reader, of an exporter that knows whether the last figures went out."""

    def __init__(self, exporter: MetricExporter) -> None:
        self.exporter: Any = exporter
        _say_repeats_once(exporter)
        super().__init__(exporter)

    @property
    def is_behind(self) -> bool:
        """Was the last export refused? The next one that isn't makes up for it: figures add up."""
        return bool(self.exporter.is_behind)


def _said_once(kind: Any) -> MetricExporter:
    """An exporter of this kind that says once what it raises. A subclass, since a reader asks it more than its methods."""

    class Exporter(kind):  # type: ignore[misc]
        is_behind = False

        def export(
            self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
        ) -> MetricExportResult:
            self.is_behind = True
            try:
                result = kind.export(self, metrics_data, timeout_millis, **kwargs)
            except BaseException as error:  # noqa: BLE001 - whatever an exporter raises, its thread goes on
                say_once(f"exporting metrics by {kind.__name__}", error)
                return MetricExportResult.FAILURE
            self.is_behind = result is not MetricExportResult.SUCCESS
            return MetricExportResult.FAILURE if self.is_behind else MetricExportResult.SUCCESS

    exporter: MetricExporter = Exporter()
    return exporter


# ---------------------------------------------------------------- what exporters say themselves
class _SaidOnce(logging.Filter):
    """Passes a message the first time. An endpoint that doesn't answer is told of at every batch and try otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        if record.levelno < logging.WARNING or message not in self._said:
            self._said.add(message)
            return True
        return False


_quiet: set[str] = set()


def _say_repeats_once(exporter: object) -> None:
    """An exporter logs under its module's name."""
    for kind in type(exporter).__mro__:
        name = kind.__module__
        if name.startswith("opentelemetry.exporter.") and name not in _quiet:
            _quiet.add(name)
            logging.getLogger(name).addFilter(_SaidOnce())
