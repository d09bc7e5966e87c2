"""What is to be sent where, and by which providers: the one interface of the two who may say so, and OpenTelemetry's variables.

The other one is the configuration file that such a variable names: `declared.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator

from .export import LogExport, SpanExport
from .exporters import Signal, asked, disabled, endpoint, log_exporters, metric_readers, span_exporters

__all__ = ["Environment", "Source"]


class Source(Protocol):
    """Who says what is to be sent where. Each method raises ConfigError for what can't be followed."""

    @property
    def disabled(self) -> bool:
        """Is OpenTelemetry switched off?"""
        ...

    def leaves_out(self, signal: Signal) -> bool:
        """Does it say that a signal goes nowhere?"""
        ...

    def endpoints(self, signal: Signal) -> list[str]:
        """Where a signal goes, as far as it says it."""
        ...

    def spans(self) -> list[tuple[str, Callable[[], SpanExport]]]:
        """Of each exporter of spans the name, and what puts a queue before it."""
        ...

    def records(self) -> list[tuple[str, Callable[[], LogExport]]]:
        """The same of log records."""
        ...

    def readers(self) -> list[tuple[str, MetricReader]]:
        """Of each reader of metrics the name of its exporter, and the reader."""
        ...

    def resource(self) -> Resource:
        """What it says of the process."""
        ...

    def tracer_provider(self, resource: Resource, ids: IdGenerator) -> TracerProvider:
        """One without a processor; with these ids, unless it names a generator."""
        ...

    def logger_provider(self, resource: Resource) -> LoggerProvider:
        """One without a processor."""
        ...

    def meter_provider(self, resource: Resource, readers: Sequence[MetricReader]) -> MeterProvider:
        """One with these readers."""
        ...

    def apply_the_rest(self) -> None:
        """What it says besides: propagators, say."""
        ...


class Environment:
    """OpenTelemetry's variables. Its SDK reads samplers, limits and propagators from them by itself."""

    @property
    def disabled(self) -> bool:
        """By OTEL_SDK_DISABLED."""
        return disabled()

    def leaves_out(self, signal: Signal) -> bool:
        """By "none" for its exporter."""
        return asked(signal) == ["none"]

    def endpoints(self, signal: Signal) -> list[str]:
        """The signal's, else that of all."""
        return [endpoint(signal)]

    def spans(self) -> list[tuple[str, Callable[[], SpanExport]]]:
        """Those of OTEL_TRACES_EXPORTER."""
        return [(name, partial(SpanExport, exporter)) for name, exporter in span_exporters().items()]

    def records(self) -> list[tuple[str, Callable[[], LogExport]]]:
        """Those of OTEL_LOGS_EXPORTER."""
        return [(name, partial(LogExport, exporter)) for name, exporter in log_exporters().items()]

    def readers(self) -> list[tuple[str, MetricReader]]:
        """Those of OTEL_METRICS_EXPORTER."""
        return [*metric_readers().items()]

    def resource(self) -> Resource:
        """By OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME."""
        return Resource.create()

    def tracer_provider(self, resource: Resource, ids: IdGenerator) -> TracerProvider:
        """One without a processor."""
        return TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)

    def logger_provider(self, resource: Resource) -> LoggerProvider:
        """One without a processor."""
        return LoggerProvider(resource=resource, shutdown_on_exit=False)

    def meter_provider(self, resource: Resource, readers: Sequence[MetricReader]) -> MeterProvider:
        """One with these readers."""
        return MeterProvider(list(readers), resource=resource, shutdown_on_exit=False)

    def apply_the_rest(self) -> None:
        """There is none."""
