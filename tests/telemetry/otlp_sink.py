"""An OTLP/HTTP collector in a thread of the test: it keeps what it receives, decoded, or fails as it is told.

A plain module, so that a script can use it too: `with Sink() as sink: … OTEL_EXPORTER_OTLP_ENDPOINT=sink.url …`.
"""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Scope:
    """Which instrument it comes from."""

    name: str
    version: str
    schema_url: str


@dataclass(frozen=True)
class Event:
    name: str
    attributes: Attributes


@dataclass(frozen=True)
class Link:
    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True)
class Span:
    """Ids are hexadecimal; a root's `parent_id` is "". `kind` and `status` are OTLP's names: INTERNAL, ERROR."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    scope: Scope
    status: str
    message: str
    attributes: Attributes
    events: tuple[Event, ...]
    links: tuple[Link, ...]
    start: int
    end: int
    resource: Attributes = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        """One of its attributes; None if there is none."""
        return self.attributes.get(name)


@dataclass(frozen=True)
class Point:
    """`value` is a number's, or the sum of a histogram, of `count` records; exemplars are ids of trace and span."""

    attributes: Attributes
    value: float
    count: int
    bounds: tuple[float, ...]
    exemplars: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Metric:
    """`kind` is gauge, sum or histogram."""

    name: str
    unit: str
    description: str
    kind: str
    scope: Scope
    points: tuple[Point, ...]
    resource: Attributes = field(repr=False)


@dataclass(frozen=True)
class Log:
    """`body` is a text or whatever structure it was."""

    body: Any
    event: str
    time: int
    severity: str
    severity_number: int
    attributes: Attributes
    trace_id: str
    span_id: str
    scope: Scope
    resource: Attributes = field(repr=False)


@dataclass(frozen=True)
class Request:
    """As it came, with what it was answered; 0 where the connection was closed. `body` is unpacked, not decoded."""

    path: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    status: int


class Sink:
    """Listens at `url` from its creation until it is closed.

    It accepts everything, until `refuse`, `hang` or `drop` is called, and again after `accept`. Requests that are not accepted
    are in `requests` only.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._changed = threading.Condition()
        self._answer: tuple[int, Mapping[str, str]] = (200, {})
        self._hanging = False
        self._held = 0
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sink._receive(self, body)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False  # one that keeps its connection waits for requests that nobody sends any more

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the client has gone

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="OTLP sink", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release clients that wait, and stop listening."""
        self.accept()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # ---------------------------------------------------------------- how it answers
    def accept(self) -> None:
        """Accept everything from now on, and requests that wait."""
        self._set((200, {}), hanging=False)

    def refuse(self, status: int = 503, *, retry_after: float | None = None) -> None:
        """Answer with that status, with a Retry-After of so many seconds if given."""
        self._set((status, {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}), hanging=False)

    def hang(self) -> None:
        """Read requests and answer none, until another method is called."""
        self._set(self._answer, hanging=True)

    def drop(self) -> None:
        """Close the connection instead of answering."""
        self._set((0, {}), hanging=False)

    def _set(self, answer: tuple[int, Mapping[str, str]], *, hanging: bool) -> None:
        with self._changed:
            self._answer, self._hanging = answer, hanging
            self._changed.notify_all()

    def _receive(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._hanging)
            self._held -= 1
            status, headers = self._answer
            if status == 200 and handler.path not in KINDS:
                status = 404
            self.requests.append(Request(handler.path, dict(handler.headers), body, status))
            self._changed.notify_all()
        if status:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Type", "application/x-protobuf")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)

    # ---------------------------------------------------------------- what it has
    @property
    def held(self) -> int:
        """The number of requests that wait for an answer."""
        return self._held

    @property
    def spans(self) -> list[Span]:
        """Of all requests, in the order of their start."""
        found = [span for body in self._accepted("/v1/traces") for span in spans_of(body)]
        return sorted(found, key=lambda span: span.start)

    @property
    def metrics(self) -> list[Metric]:
        """Of all requests, in the order of arrival."""
        return [metric for body in self._accepted("/v1/metrics") for metric in metrics_of(body)]

    @property
    def logs(self) -> list[Log]:
        """Of all requests, in the order of arrival."""
        return [log for body in self._accepted("/v1/logs") for log in logs_of(body)]

    def raw(self, path: str = "") -> bytes:
        """The bodies of all requests, accepted or not, in order; all of them, or those to one path."""
        return b"\n".join(request.body for request in self.requests if request.path.startswith(path))

    def one(self, name: str) -> Span:
        """The only span of that name."""
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, f"{len(found)} spans are named {name!r} among {self.names()}"
        return found[0]

    def names(self) -> list[str]:
        """Of the spans, in the order in which they began."""
        return [span.name for span in self.spans]

    def clear(self) -> None:
        """Forget what came so far."""
        with self._changed:
            self.requests.clear()

    def wait_for(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Wait until the condition holds; checked after each request. Fails after a timeout, with what was received."""
        with self._changed:
            if not self._changed.wait_for(condition, seconds):
                came = [(request.path, request.status) for request in self.requests]
                raise AssertionError(
                    f"not within {seconds:g} s; {self._held} hang, and there came {came} with the spans {self.names()}"
                )

    def _accepted(self, path: str) -> Iterable[bytes]:
        return [request.body for request in list(self.requests) if (request.path, request.status) == (path, 200)]


# ---------------------------------------------------------------- decoding
def spans_of(body: bytes) -> list[Span]:
    """The spans of a request to /v1/traces."""
    found: list[Span] = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            found += [Span(
                trace_id=span.trace_id.hex(), span_id=span.span_id.hex(), parent_id=span.parent_span_id.hex(),
                name=span.name, kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                scope=_scope(scope), status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                message=span.status.message, attributes=_attributes(span.attributes),
                events=tuple(Event(event.name, _attributes(event.attributes)) for event in span.events),
                links=tuple(Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes))
                            for link in span.links),
                start=span.start_time_unix_nano, end=span.end_time_unix_nano, resource=about,
            ) for span in scope.spans]  # fmt: skip
    return found


def metrics_of(body: bytes) -> list[Metric]:
    """The metrics of a request to /v1/metrics."""
    found: list[Metric] = []
    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                points = tuple(map(_point, getattr(metric, kind).data_points)) if kind else ()
                found.append(
                    Metric(metric.name, metric.unit, metric.description, kind or "", _scope(scope), points, about)
                )
    return found


def logs_of(body: bytes) -> list[Log]:
    """The log records of a request to /v1/logs."""
    found: list[Log] = []
    for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
        about = _attributes(resource.resource.attributes)
        for scope in resource.scope_logs:
            found += [
                Log(
                    body=_value(log.body),
                    event=log.event_name,
                    time=log.time_unix_nano,
                    severity=log.severity_text,
                    severity_number=log.severity_number,
                    attributes=_attributes(log.attributes),
                    trace_id=log.trace_id.hex(),
                    span_id=log.span_id.hex(),
                    scope=_scope(scope),
                    resource=about,
                )
                for log in scope.log_records
            ]
    return found


KINDS: Mapping[str, Callable[[bytes], list[Any]]] = {
    "/v1/traces": spans_of,
    "/v1/metrics": metrics_of,
    "/v1/logs": logs_of,
}


def _scope(found: Any) -> Scope:
    return Scope(found.scope.name, found.scope.version, found.schema_url)


def _point(point: Any) -> Point:
    if hasattr(point, "bucket_counts"):
        exemplars = tuple((each.trace_id.hex(), each.span_id.hex()) for each in point.exemplars)
        return Point(_attributes(point.attributes), point.sum, point.count, tuple(point.explicit_bounds), exemplars)
    return Point(_attributes(point.attributes), getattr(point, point.WhichOneof("value")), 1, ())


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind) if kind else None
