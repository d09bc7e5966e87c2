"""`Source`: the interface of what says which signals are sent where. `Environment`: OpenTelemetry's variables.

The other source is a configuration file that such a variable names: `declared.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
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
    """Says which signals are sent where. Each method raises ConfigError for invalid settings."""

    @property
    def disabled(self) -> bool:
        """Is OpenTelemetry switched off?"""
        ...

    def leaves_out(self, signal: Signal) -> bool:
        """Does the source say that a signal is not sent?"""
        ...

    def endpoints(self, signal: Signal) -> list[str]:
        """The endpoints that the source names for a signal."""
        ...

    def spans(self) -> list[tuple[str, Callable[[], SpanExport]]]:
        """Each exporter of spans: its name, and a function that makes a queue before it."""
        ...

    def records(self) -> list[tuple[str, Callable[[], LogExport]]]:
        """The same for log records."""
        ...

    def readers(self) -> list[tuple[str, MetricReader]]:
        """Each reader of metrics: the name of its exporter, and the reader."""
        ...

    def resource(self) -> Resource:
        """The attributes of this process."""
        ...

    def tracer_provider(self, resource: Resource, ids: IdGenerator) -> TracerProvider:
        """A provider without a processor. `ids` is used if the source names no generator."""
        ...

    def logger_provider(self, resource: Resource) -> LoggerProvider:
        """A provider without a processor."""
        ...

    def meter_provider(self, resource: Resource, readers: Sequence[MetricReader]) -> MeterProvider:
        """A provider with these readers."""
        ...

    def apply_the_rest(self) -> None:
        """Apply the settings that no other method returns, such as propagators."""
        ...


class Environment:
    """OpenTelemetry's variables. Its SDK reads samplers, limits and propagators from them by itself."""

    @property
    def disabled(self) -> bool:
        """By OTEL_SDK_DISABLED."""
        return disabled()

    def leaves_out(self, signal: Signal) -> bool:
        """The variable of its exporter is "none"."""
        return asked(signal) == ["none"]

    def endpoints(self, signal: Signal) -> list[str]:
        """The endpoint of the signal, or else that of all signals."""
        return [endpoint(signal)]

    def spans(self) -> list[tuple[str, Callable[[], SpanExport]]]:
        """The exporters of OTEL_TRACES_EXPORTER."""
        return [(name, partial(SpanExport, exporter)) for name, exporter in span_exporters().items()]

    def records(self) -> list[tuple[str, Callable[[], LogExport]]]:
        """The exporters of OTEL_LOGS_EXPORTER."""
        return [(name, partial(LogExport, exporter)) for name, exporter in log_exporters().items()]

    def readers(self) -> list[tuple[str, MetricReader]]:
        """The readers for OTEL_METRICS_EXPORTER."""
        return [*metric_readers().items()]

    def resource(self) -> Resource:
        """From OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME, and the detectors that are installed and asked for."""
        return self._resource

    @cached_property
    def _resource(self) -> Resource:
        """Made once for all signals: a detector may ask a server of the cloud, which takes seconds."""
        return Resource.create()

    def tracer_provider(self, resource: Resource, ids: IdGenerator) -> TracerProvider:
        """A provider without a processor."""
        return TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)

    def logger_provider(self, resource: Resource) -> LoggerProvider:
        """A provider without a processor."""
        return LoggerProvider(resource=resource, shutdown_on_exit=False)

    def meter_provider(self, resource: Resource, readers: Sequence[MetricReader]) -> MeterProvider:
        """A provider with these readers."""
        return MeterProvider(list(readers), resource=resource, shutdown_on_exit=False)

    def apply_the_rest(self) -> None:
        """Nothing: the SDK applies all other variables itself."""
