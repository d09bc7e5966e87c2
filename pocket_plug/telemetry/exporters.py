"""The exporters that `OTEL_*` variables name.

The name of an unknown exporter raises ConfigError, which names the variable. If only OTLP's exporter isn't installed, the
program continues with a warning: these variables are often set for all programs of a machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib import import_module
from typing import Any, Literal, TypeVar, get_args

from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter, LogRecordExporter
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, MetricsData
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.failures import say_once

from .exemplars import Exemplars
from .export import MetricExport, Part, ended_by
from .serving import MetricsServer

T = TypeVar("T", bound=Part)
Signal = Literal["traces", "metrics", "logs"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)

_logger = logging.getLogger("pocket_plug")


def disabled() -> bool:
    """Is OpenTelemetry switched off by its variable?"""
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
    """The collector's endpoint for a signal, or for all signals; else ""."""
    return os.environ.get(_ENDPOINTS[signal]) or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")


_WITH_TRANSPORT: Mapping[str, Literal["http", "grpc"]] = {"otlp_proto_http": "http", "otlp_proto_grpc": "grpc"}
"""The names that OpenTelemetry's SDK for Python has for `otlp` with a certain transport."""


def _named(signal: Signal) -> list[str]:
    """The names in the variable of a signal's exporters."""
    texts = [name.strip() for name in os.environ.get(_EXPORTERS[signal][0], "").split(",")]
    return [name for name in texts if name]


def asked(signal: Signal) -> list[str]:
    """The exporters that the environment asks for; an endpoint asks for `otlp`. Raises ConfigError for unknown ones."""
    variable, known = _EXPORTERS[signal]
    named = [*dict.fromkeys("otlp" if name in _WITH_TRANSPORT else name for name in _named(signal))]
    for name in named:
        if name not in known:
            raise ConfigError(
                f"{variable} is {name!r}; give {', '.join(known[:-1])} or {known[-1]}. To use "
                "another exporter, set your own provider first"
            )
    return named or (["otlp"] if endpoint(signal) else [])


_OTLP = {
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
}


def transport(signal: Signal) -> Literal["http", "grpc"]:
    """OTLP's transport for a signal, by the exporter's name if that has one, or else by the variables of the protocol.

    A protocol other than `http/protobuf` and `grpc` is logged, and `http/protobuf` is used: OpenTelemetry's specification demands
    this. A collector that takes `http/json` takes `http/protobuf` at the same URL.
    """
    for name in _named(signal):
        if name in _WITH_TRANSPORT:
            return _WITH_TRANSPORT[name]
    for variable in (_PROTOCOLS[signal], "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(variable, "").strip()
        if protocol == "grpc":
            return "grpc"
        if protocol and protocol != "http/protobuf":
            _logger.warning(
                "telemetry: %s is %r; it can be http/protobuf or grpc. %s are sent by http/protobuf",
                variable,
                protocol,
                signal,
            )
        if protocol:
            break
    return "http"


_INSTALL = {"http": "'pocket-plug[otlp]'", "grpc": "opentelemetry-exporter-otlp-proto-grpc"}


def otlp_exporter_class(signal: Signal) -> Any:
    """The class of a signal's OTLP exporter. Raises ConfigError if it isn't installed."""
    way = transport(signal)
    module, name = _OTLP[signal]
    try:
        kind = getattr(import_module(f"opentelemetry.exporter.otlp.proto.{way}.{module}"), name)
    except ImportError:
        raise ConfigError(
            f"the environment asks for OTLP by {way}, and its exporter is not installed: pip install {_INSTALL[way]}"
        ) from None
    return kind


def by_process(make: Callable[[], Any]) -> Any:
    """An exporter that makes a new connection in each forked child, which would otherwise write into its parent's."""
    exporter = make()
    kind: Any = exporter.__class__

    class Exporter(kind):  # type: ignore[misc]  # a class that is known at run time only
        process = os.getpid()
        inherited: object = None

        def export(self, *batch: object, **kwargs: object) -> object:
            if self.process != os.getpid():
                inherited = vars(self).copy()
                self.__dict__ |= make().__dict__
                # the parent's exporter is kept and never closed: threads of the parent may hold its locks
                self.process, self.inherited = os.getpid(), inherited
            return kind.export(self, *batch, **kwargs)

    Exporter.__name__ = kind.__name__
    exporter.__class__ = Exporter
    return exporter


def span_exporters() -> dict[str, SpanExporter]:
    """The span exporters that the environment asks for, by name, if installed. Raises ConfigError for unknown ones."""
    return _made("traces", {"otlp": lambda: by_process(otlp_exporter_class("traces")), "console": ConsoleSpanExporter})


def log_exporters() -> dict[str, LogRecordExporter]:
    """The log exporters that the environment asks for, by name, if installed. Raises ConfigError for unknown ones."""
    return _made("logs", {"otlp": lambda: by_process(otlp_exporter_class("logs")), "console": ConsoleLogRecordExporter})


def metric_readers() -> dict[str, MetricReader]:
    """The metric readers that the environment asks for, by name. Raises ConfigError for invalid variables."""
    return _made(
        "metrics",
        {
            "otlp": lambda: MetricExport(by_process(otlp_exporter_class("metrics"))),
            "console": lambda: MetricExport(ConsoleMetricExporter()),
            "prometheus": _prometheus,
        },
    )


def _made(signal: Signal, ways: dict[str, Callable[[], T]]) -> dict[str, T]:
    made: dict[str, T] = {}
    with ExitStack() as undoing:
        for name in asked(signal):
            try:
                if name in ways:
                    made[name] = ended_by(undoing, ways[name]())
            except ConfigError as error:
                if name != "otlp":
                    raise
                say_once(f"sending {signal} by OTLP", error)
        undoing.pop_all()
    return made


def _prometheus() -> MetricReader:
    """A reader that serves metrics at `/metrics`, on the host and port of OpenTelemetry's variables."""
    host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "localhost"
    text = os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT") or "9464"
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(f"OTEL_EXPORTER_PROMETHEUS_PORT is {text!r}; give a port, 1 to 65535")
    return prometheus_reader(host, int(text), "OTEL_METRICS_EXPORTER")


def prometheus_reader(host: str, port: int, asking: str) -> MetricReader:
    """A reader that serves metrics at `/metrics`. A port that is in use is logged and raises nothing.

    `asking` is what the error names if the exporter isn't installed.
    """
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import REGISTRY
    except ImportError:
        raise ConfigError(
            f"{asking} asks for prometheus, and its exporter is not installed: pip install 'pocket-plug[prometheus]'"
        ) from None

    class Reader(PrometheusMetricReader):
        """The exporter's reader, with a server that ends with the reader."""

        def __init__(self) -> None:
            super().__init__()
            self.exemplars = Exemplars()
            self.server = MetricsServer(host, port, self.exemplars.within(REGISTRY))

        def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: object) -> None:
            self.exemplars.note(metrics_data)
            super()._receive_metrics(metrics_data, timeout_millis, **kwargs)  # pyright: ignore[reportUnknownMemberType] - nor here

        def shutdown(self, timeout_millis: float = 30_000, **kwargs: object) -> None:
            super().shutdown(timeout_millis, **kwargs)  # pyright: ignore[reportUnknownMemberType] - it has no types for `kwargs`
            self.server.close()

    return Reader()
