"""The global providers: the program's, which are not changed, or ours.

OpenTelemetry lets each provider be set once and never removed. So ours stay, and what changes are the processors behind them.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakSet

from opentelemetry import _logs, metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider

from pocket_plug.layers import metrics as own_metrics
from pocket_plug.layers import tracing
from pocket_plug.layers.tracing import local_messages
from pocket_plug.otel.additions import Parts, added
from pocket_plug.otel.open_runs import INTERRUPTED
from pocket_plug.primitives.forking import after_fork

from .children import OwnResource, count_from_zero
from .environment import Source

MAX_OPEN = 10_000
"""How many open spans are remembered, to end them at a SIGTERM."""

_OUTCOMES = {
    "pocket_plug.run.resumed": "pocket_plug.run.outcome",
    "pocket_plug.node.visit": "pocket_plug.node.outcome",
}
"""The attribute for the outcome of a span, by an attribute that the span has from its start."""


class SpanFan(SpanProcessor):
    """Passes spans to the processors of each open `Telemetry`, and remembers the open spans."""

    def __init__(self) -> None:
        self.processors: tuple[SpanProcessor, ...] = ()
        self._open: dict[int, Span] = {}  # by span id, in the order in which they began
        after_fork(self._forget)

    def _forget(self) -> None:
        """In a forked child: its parent ends the open spans."""
        self._open.clear()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        processors = self.processors
        if processors and len(self._open) < MAX_OPEN:
            self._open[span.get_span_context().span_id] = span
        for processor in processors:
            processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is not None:
            self._open.pop(context.span_id, None)
        for processor in self.processors:
            processor.on_end(span)
        local_messages.forget(context)

    def feed(self, processors: Sequence[SpanProcessor]) -> None:
        """Pass spans to these processors. Exception messages are kept only if one of them shows them on this machine."""
        self.processors = tuple(processors)
        local_messages.want(any(getattr(each, "shows_messages", False) for each in processors))

    def interrupt(self, reason: str) -> None:
        """End the open spans, the innermost first, and mark each as interrupted.

        The process is about to die. A thread that still runs may end a span again; the SDK's warning about that is switched off.
        """
        logging.getLogger("opentelemetry.sdk.trace").disabled = True
        for span in reversed(list(self._open.values())):
            about = {name: INTERRUPTED for mark, name in _OUTCOMES.items() if mark in (span.attributes or {})}
            span.set_attributes({"pocket_plug.interrupted": True, "error.type": reason, **about})
            span.end()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return all(processor.force_flush(timeout_millis) for processor in self.processors)


class LogFan(LogRecordProcessor):
    """Passes log records to the processors of the open `Telemetry`."""

    def __init__(self) -> None:
        self.processors: tuple[LogRecordProcessor, ...] = ()

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        for processor in self.processors:
            processor.on_emit(log_record)

    def enabled(self, **kwargs: object) -> bool:
        return bool(self.processors)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return all(processor.force_flush(timeout_millis) for processor in self.processors)

    def shutdown(self) -> None:
        """Do nothing: each `Telemetry` shuts its own processors down."""


# ---------------------------------------------------------------- ours, once they are set
_spans: TracerProvider | None = None
_span_fan = SpanFan()
_log_records: LoggerProvider | None = None
_log_fan = LogFan()
_meters: WeakSet[MeterProvider] = WeakSet()  # all that were made; OpenTelemetry keeps the first one as the global one


def traces_are_taken() -> bool:
    """Has the program set a tracer provider, or does `observe()` or `setup()` already send traces?"""
    chosen = tracing.configure().tracer_provider  # set by the program, or muted by the last close
    provider = trace.get_tracer_provider() if chosen is None or isinstance(chosen, NoOpTracerProvider) else chosen
    if provider is _spans and _spans is not None:
        return bool(_span_fan.processors)
    return not isinstance(provider, ProxyTracerProvider)


def logs_are_taken() -> bool:
    """Has the program set a logger provider?"""
    provider = _logs.get_logger_provider()
    return provider is not _log_records and not type(provider).__module__.startswith("opentelemetry._logs")


def metrics_are_taken() -> bool:
    """Has the program set a meter provider?"""
    provider = own_metrics.configure().meter_provider
    if provider is None or isinstance(provider, NoOpMeterProvider):
        provider = metrics.get_meter_provider()
    # by identity: Logfire's provider can't be hashed
    return not any(provider is own for own in _meters) and not _is_placeholder(provider)


def _is_placeholder(provider: object) -> bool:
    """Is it one of the API: the placeholder until a provider is set, or one that does nothing?"""
    return type(provider).__module__.startswith("opentelemetry.metrics")


def make_tracers(resource: Resource, fan: SpanFan, source: Source) -> TracerProvider:
    """The source's tracer provider, which passes its spans to `fan`."""
    provider = source.tracer_provider(resource, OwnIds())
    provider.add_span_processor(fan)
    return provider


def add_spans(processors: Sequence[SpanProcessor], source: Source) -> None:
    """Pass spans to these processors too, by our provider."""
    global _spans
    if _spans is None:
        _spans = make_tracers(_resource(source), _span_fan, source)
    if trace.get_tracer_provider() is not _spans:  # a test may have reset it
        trace.set_tracer_provider(_spans)
    _span_fan.feed([*_span_fan.processors, *processors])
    tracing.configure(tracer_provider=None)


def drop_spans(processors: Sequence[SpanProcessor]) -> None:
    """Stop passing spans to these processors."""
    if _spans is not None and processors:
        _span_fan.feed([part for part in _span_fan.processors if part not in processors])
        if not _span_fan.processors:
            tracing.mute()  # our provider stays the global one; muted, runs are as fast as before


def interrupt_spans(reason: str) -> None:
    """End the open spans, since the process is about to die."""
    _span_fan.interrupt(reason)


def set_logs(processors: Sequence[LogRecordProcessor], source: Source) -> None:
    """Pass log records to these processors, by our provider."""
    global _log_records
    if _log_records is None:
        _log_records = source.logger_provider(_resource(source))
        _log_records.add_log_record_processor(_log_fan)
    if _logs.get_logger_provider() is not _log_records:
        _logs.set_logger_provider(_log_records)
    _log_fan.processors = tuple(processors)


def drop_logs() -> None:
    """Stop passing log records on."""
    _log_fan.processors = ()


def set_metrics(readers: Sequence[MetricReader], source: Source) -> None:
    """Let these readers read the metrics. A provider keeps its readers for ever: after a close, ours use a new provider."""
    meters = source.meter_provider(_resource(source), readers)
    _meters.add(meters)
    count_from_zero(meters)
    free = _is_placeholder(metrics.get_meter_provider())
    if free:
        metrics.set_meter_provider(meters)
    own_metrics.configure(meter_provider=None if free else meters)


def _resource(source: Source) -> Resource:
    return OwnResource(make_resource(source.resource(), tracing.additions_of_default().resource))


# ---------------------------------------------------------------- the resource: attributes of the process
def make_resource(resource: Resource, asked: Parts = ()) -> Resource:
    """The resource of a source, with the attributes that plugins add.

    The service has the name that the source, `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` gives, or else the script's.
    """
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": _script() or "pocket_plug"}))
    more = added("resource", asked, dict(resource.attributes))
    return resource.merge(Resource({name: value for name, value in more.items() if name not in resource.attributes}))


def _script() -> str:
    """The script's name, or the name of the package that `python -m` runs."""
    script = Path(sys.argv[0])
    return script.parent.name if script.stem == "__main__" else script.stem


class OwnIds(IdGenerator):
    """Ids from a private generator, seeded again after a fork. Else a node that calls `random.seed(42)` would merge traces."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(16))  # noqa: S311 - ids are no secrets
        after_fork(self._begin_anew)

    def _begin_anew(self) -> None:
        self._random.seed(os.urandom(16))

    def generate_span_id(self) -> int:
        """64 bits, not all 0."""
        return self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        """128 bits, not all 0."""
        return self._random.getrandbits(128) or 1

    def is_trace_id_random(self) -> bool:
        """True: all 128 bits are."""
        return True
