"""The process's own providers. OpenTelemetry lets each be set once and never taken back, so what they feed changes."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator

from pocket_plug.primitives.forking import after_fork

from .export import endpoint

MAX_OPEN = 10_000
"""Spans that are remembered while they are open, in case a SIGTERM ends them."""


class Spans(TracerProvider):
    """The process's tracer provider, once one was made here."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource=resource, id_generator=OwnIds(), shutdown_on_exit=False)
        self.fan = SpanFan()
        self.add_span_processor(self.fan)


class SpanFan(SpanProcessor):
    """Hands spans to the processors of what is open, and knows which have begun and not ended."""

    def __init__(self) -> None:
        self.processors: tuple[SpanProcessor, ...] = ()
        self._open: dict[int, Span] = {}  # by span id, in the order in which they began
        after_fork(self._forget)

    def _forget(self) -> None:
        """In a forked child: what is open is its parent's to end."""
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

    def interrupt(self, reason: str) -> None:
        """End the spans that are open, the innermost first, and say on each that it wasn't its own end.

        The process is about to die: that a thread which goes on ends a span once more is nothing to say.
        """
        logging.getLogger("opentelemetry.sdk.trace").disabled = True
        for span in reversed(list(self._open.values())):
            span.set_attributes({"pocket_plug.interrupted": True, "error.type": reason})
            span.end()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return all(processor.force_flush(timeout_millis) for processor in self.processors)


class Logs(LoggerProvider):
    """The process's logger provider, once one was made here."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource=resource, shutdown_on_exit=False)
        self.fan = LogFan()
        self.add_log_record_processor(self.fan)


class LogFan(LogRecordProcessor):
    """Hands log records to the processors of what is open."""

    def __init__(self) -> None:
        self.processors: tuple[LogRecordProcessor, ...] = ()

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        for processor in self.processors:
            processor.on_emit(log_record)

    def enabled(self, **kwargs: Any) -> bool:
        return bool(self.processors)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return all(processor.force_flush(timeout_millis) for processor in self.processors)

    def shutdown(self) -> None:
        """Those who put processors there shut them down."""


def make_resource(flavours: Sequence[str]) -> Resource:
    """The environment's; for OpenInference's tools with a project.

    The service is called as `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` says, else as the script.
    """
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": Path(sys.argv[0]).stem or "pocket_plug"}))
    if "openinference" not in flavours or "openinference.project.name" in resource.attributes:
        return resource
    project = os.environ.get("PHOENIX_PROJECT_NAME") or resource.attributes["service.name"]
    return resource.merge(Resource({"openinference.project.name": project}))


def wants_openinference() -> bool:
    """Do traces go to Phoenix or MLflow?

    So it is where one of Phoenix's own variables is set, where a header says MLflow's experiment, and where the
    endpoint has Phoenix's port or a host that is called after either.
    """
    if any(os.environ.get(f"PHOENIX_{name}") for name in ("COLLECTOR_ENDPOINT", "PROJECT_NAME", "API_KEY")):
        return True
    headers = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")
    if "x-mlflow-experiment-id" in headers.lower():
        return True
    try:
        address = urlsplit(endpoint("traces"))
        host, port = address.hostname or "", address.port
    except ValueError:  # the exporter will say what is wrong with it
        return False
    return port == 6006 or any(part in ("phoenix", "mlflow") for part in host.replace("-", ".").split("."))


class OwnIds(IdGenerator):
    """Ids from a source of its own: a node that calls `random.seed(42)` would merge traces. Other ones after a fork."""

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
        """All of it."""
        return True
