"""Each exporter behind a bounded queue that counts its losses.

No exporter can stop the program: it is called in its own thread, and each of its errors and warnings is logged once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    LogRecordExporter,
    LogRecordExportResult,
)
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from pocket_plug.primitives.failures import say_once
from pocket_plug.primitives.forking import after_fork, new_rlock

from .local import FileExporter
from .messages import with_message

QUEUE = 32_768
"""How many spans or log records may wait to be exported. With OpenTelemetry's default, 2,048, a burst of 2,000 runs loses a
third of its spans."""

FILE_DELAY = 200
"""Milliseconds until a span that has ended is in the file: short, since somebody may watch the file."""

_logger = logging.getLogger("pocket_plug")


class Part(Protocol):
    """A processor, reader or exporter: it can be flushed and shut down."""

    def force_flush(self, timeout_millis: int = ..., /) -> bool: ...
    def shutdown(self) -> None: ...


P = TypeVar("P", bound=Part)


def ended_by(undoing: ExitStack, part: P) -> P:
    """The same part, which `undoing` shuts down if a later part can't be made. Many start a thread when they are made."""
    undoing.callback(part.shutdown)
    return part


# ---------------------------------------------------------------- queues
class Backlog:
    """Counts what was queued, dropped because the queue was full, and exported. The queue holds `size` at most.

    >>> backlog = Backlog("spans", size=2)
    >>> backlog.add(), backlog.add(), backlog.unsent
    (True, True, 2)
    >>> backlog.done(2, sent=True)
    >>> backlog.unsent
    0
    """

    def __init__(self, what: str, size: int) -> None:
        self.what, self._size = what, size
        self._lock = new_rlock()  # reentrant: a signal handler that logs may interrupt the code that holds it
        self._reset()
        after_fork(self._reset)

    def _reset(self) -> None:
        """Also in a forked child: its parent exports what was queued before the fork."""
        self._added = self._finished = self._sent = self._dropped = 0

    @property
    def unsent(self) -> int:
        """How many were not exported: still queued, dropped, or refused."""
        return max(self._added + self._dropped - self._sent, 0)

    def add(self) -> bool:
        """Count one more; False if the queue is full, which is logged once."""
        with self._lock:
            if self._added - self._finished < self._size:
                self._added += 1
                return True
            self._dropped += 1
            first = self._dropped == 1
        if first:
            _logger.warning(
                "telemetry: %d %s wait to be exported; further ones are dropped and counted (logged once)",
                self._size,
                self.what,
            )
        return False

    def done(self, number: int, *, sent: bool) -> None:
        """Count spans or log records that the exporter took, or refused.

        It takes no lock, since there is one export at a time, and a signal may have interrupted the code that holds the lock.
        """
        self._finished += number
        if sent:
            self._sent += number


def _number(variable: str, default: int) -> int:
    """A positive number from the environment. Any other text is logged and ignored, as OpenTelemetry's specification demands."""
    text = os.environ.get(variable, "").strip()
    if text.isdecimal() and int(text):
        return int(text)
    if text:
        _logger.warning("telemetry: %s is %r, not a positive number; %d is used", variable, text, default)
    return default


@dataclass(frozen=True, slots=True)
class Queue:
    """The limits of a queue: its size, the size of a batch, and the milliseconds until a batch is sent at the latest.

    `delay=None` means OpenTelemetry's variable for the delay, or its default.
    """

    size: int = QUEUE
    batch: int = 512
    delay: float | None = None

    @classmethod
    def of(cls, size: str, batch: str) -> Queue:
        """A queue with the values of these two variables; a batch is no larger than its queue."""
        most = _number(size, QUEUE)
        return cls(most, min(most, _number(batch, 512)))


class SpanExport(SpanProcessor):
    """The SDK's batch processor with a longer queue, which counts what it could not export and logs the reason once."""

    def __init__(self, exporter: SpanExporter, queue: Queue | None = None) -> None:
        queue = queue or Queue.of("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
        self.backlog = Backlog("spans", queue.size)
        self.shows_messages = isinstance(exporter, FileExporter)
        soon = self.shows_messages and "OTEL_BSP_SCHEDULE_DELAY" not in os.environ
        self._batch = BatchSpanProcessor(
            _Spans(exporter, self.backlog),
            max_queue_size=queue.size,
            schedule_delay_millis=FILE_DELAY if soon else queue.delay,
            max_export_batch_size=queue.batch,
        )

    def on_end(self, span: ReadableSpan) -> None:
        """Queue the span, if it is sampled and there is room."""
        context = span.get_span_context()
        if context is not None and context.trace_flags.sampled and self.backlog.add():
            self._batch.on_end(with_message(span) if self.shows_messages else span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export everything that is queued."""
        return self._batch.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Export everything that is queued, and shut the exporter down."""
        self._batch.shutdown()  # type: ignore[no-untyped-call]  # the SDK forgot its `-> None`


class _Spans(SpanExporter):
    def __init__(self, exporter: SpanExporter, backlog: Backlog) -> None:
        self._exporter, self._backlog = exporter, backlog
        _log_repeats_once(exporter)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        sent = False
        try:
            sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except BaseException as error:  # noqa: BLE001 - whatever an exporter raises, its thread continues
            say_once(f"exporting spans by {type(self._exporter).__name__}", error)
        finally:
            self._backlog.done(len(spans), sent=sent)
        return SpanExportResult.SUCCESS if sent else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._exporter.shutdown()


class LogExport(LogRecordProcessor):
    """What SpanExport is, for log records."""

    def __init__(self, exporter: LogRecordExporter, queue: Queue | None = None) -> None:
        queue = queue or Queue.of("OTEL_BLRP_MAX_QUEUE_SIZE", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE")
        self.backlog = Backlog("log records", queue.size)
        self._batch = BatchLogRecordProcessor(
            _Logs(exporter, self.backlog),
            max_queue_size=queue.size,
            schedule_delay_millis=queue.delay,
            max_export_batch_size=queue.batch,
        )

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Queue the record, if there is room."""
        if self.backlog.add():
            self._batch.on_emit(log_record)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export everything that is queued."""
        return self._batch.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Export everything that is queued, and shut the exporter down."""
        self._batch.shutdown()  # type: ignore[no-untyped-call]  # the SDK forgot its `-> None`


class _Logs(LogRecordExporter):
    def __init__(self, exporter: LogRecordExporter, backlog: Backlog) -> None:
        self._exporter, self._backlog = exporter, backlog
        _log_repeats_once(exporter)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        sent = False
        try:
            sent = self._exporter.export(batch) is LogRecordExportResult.SUCCESS
        except BaseException as error:  # noqa: BLE001 - whatever an exporter raises, its thread continues
            say_once(f"exporting log records by {type(self._exporter).__name__}", error)
        finally:
            self._backlog.done(len(batch), sent=sent)
        return LogRecordExportResult.SUCCESS if sent else LogRecordExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK forgot its `-> None`


class MetricExport(PeriodicExportingMetricReader):
    """The SDK's periodic reader, with an exporter that remembers whether its last export failed."""

    def __init__(self, exporter: MetricExporter, **options: Any) -> None:
        self.exporter: Any = metric_exporter(exporter)
        _log_repeats_once(exporter)
        super().__init__(exporter, **options)

    @property
    def is_behind(self) -> bool:
        """Did the last export fail? A later one makes up for it, since metrics are cumulative."""
        return bool(self.exporter.is_behind)


def metric_exporter(exporter: Any) -> MetricExporter:
    """Make the exporter log each error once. It gets a subclass, not a wrapper: the reader also uses its private attributes."""
    kind: Any = exporter.__class__

    class Exporter(kind):  # type: ignore[misc]  # a class that is known at run time only
        is_behind = False

        def export(
            self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: object
        ) -> MetricExportResult:
            self.is_behind = True
            try:
                result = kind.export(self, metrics_data, timeout_millis, **kwargs)
            except BaseException as error:  # noqa: BLE001 - whatever an exporter raises, its thread continues
                say_once(f"exporting metrics by {kind.__name__}", error)
                return MetricExportResult.FAILURE
            self.is_behind = result is not MetricExportResult.SUCCESS
            return MetricExportResult.FAILURE if self.is_behind else MetricExportResult.SUCCESS

    exporter.__class__ = Exporter
    return cast("MetricExporter", exporter)


# ---------------------------------------------------------------- what exporters log
class _WarnsOnce(logging.Filter):
    """Passes each warning once. Otherwise an endpoint that doesn't answer would be logged with every batch and retry."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        message = str(record.msg)
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new


_quiet: set[str] = set()


def _log_repeats_once(exporter: object) -> None:
    """Filter the loggers of an exporter, which are named after the modules of its classes."""
    for kind in type(exporter).__mro__:
        name = kind.__module__
        if name.startswith("opentelemetry.exporter.") and name not in _quiet:
            _quiet.add(name)
            logging.getLogger(name).addFilter(_WarnsOnce())
