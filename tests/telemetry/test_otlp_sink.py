"""The collector of other tests: it decodes what real exporters send, and fails as it is told."""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode
from otlp_sink import Sink


@pytest.fixture
def provider(otlp_sink: Sink) -> Iterator[TracerProvider]:
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{otlp_sink.url}/v1/traces")))
    yield provider
    provider.shutdown()


def post(sink: Sink, path: str = "/v1/traces") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(sink.url).netloc)
    try:
        connection.request("POST", path, b"")
        response = connection.getresponse()
        response.read()
        return response
    finally:
        connection.close()


def test_spans_arrive_completely(otlp_sink: Sink, provider: TracerProvider) -> None:
    """Ids, parents, kinds, scopes, statuses, attributes, events, links and the resource."""
    tracer = provider.get_tracer("shop", "1.2", "https://example.org/schema")
    with tracer.start_as_current_span("outer") as outer:
        former = outer.get_span_context()
        with tracer.start_as_current_span(
            "inner", kind=SpanKind.CLIENT, links=[Link(former, {"why": "test"})]
        ) as inner:
            inner.set_attributes({"list": ["a", "b"], "number": 1, "half": 0.5, "is": True})
            inner.add_event("happened", {"text": "ü"})
            inner.set_status(StatusCode.ERROR, "broken")
    root, child = otlp_sink.one("outer"), otlp_sink.one("inner")
    assert otlp_sink.names() == ["outer", "inner"]
    assert (root.parent_id, root.kind, root.status, root.trace_id) == ("", "INTERNAL", "UNSET", child.trace_id)
    assert (child.parent_id, child.kind, child.status, child.message) == (root.span_id, "CLIENT", "ERROR", "broken")
    assert (child.scope.name, child.scope.version, child.scope.schema_url) == (
        "shop",
        "1.2",
        "https://example.org/schema",
    )
    assert child.attributes == {"list": ["a", "b"], "number": 1, "half": 0.5, "is": True}
    assert [(event.name, event.attributes) for event in child.events] == [("happened", {"text": "ü"})]
    assert [(link.span_id, link.attributes) for link in child.links] == [(root.span_id, {"why": "test"})]
    assert child.resource["service.name"] == "shop"
    assert "ü".encode() in otlp_sink.raw("/v1/traces")


def test_metrics_arrive_completely(otlp_sink: Sink) -> None:
    """Counters, gauges and histograms, each with its points."""
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{otlp_sink.url}/v1/metrics"))
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("shop")
    meter.create_counter("sold", "{order}", "how many").add(3, {"where": "eu"})
    meter.create_histogram("wait", "s", explicit_bucket_boundaries_advisory=[1, 2]).record(1.5)
    provider.force_flush()
    provider.shutdown()
    sold, wait = otlp_sink.metrics[:2]
    assert (sold.name, sold.unit, sold.description, sold.kind, sold.scope.name) == (
        "sold",
        "{order}",
        "how many",
        "sum",
        "shop",
    )
    assert [(point.attributes, point.value) for point in sold.points] == [({"where": "eu"}, 3)]
    assert [(point.value, point.count, point.bounds) for point in wait.points] == [(1.5, 1, (1.0, 2.0))]


def test_it_refuses_hangs_and_drops_as_it_is_told(otlp_sink: Sink) -> None:
    """A status, one with Retry-After, no answer until it is released, no answer at all."""
    otlp_sink.refuse(503)
    assert post(otlp_sink).status == 503
    otlp_sink.refuse(429, retry_after=7)
    response = post(otlp_sink)
    assert (response.status, response.headers["Retry-After"]) == (429, "7")
    otlp_sink.drop()
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        post(otlp_sink)
    otlp_sink.hang()
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(post(otlp_sink).status))
    thread.start()
    otlp_sink.wait_for(lambda: otlp_sink.held)
    assert answers == []
    otlp_sink.accept()
    thread.join(60)
    assert answers == [200]
    assert post(otlp_sink, "/v2/traces").status == 404
    assert [request.status for request in otlp_sink.requests] == [503, 429, 0, 200, 404]


def test_refused_spans_are_not_listed(
    otlp_sink: Sink, provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the requests only."""
    otlp_sink.refuse(400)
    with caplog.at_level(logging.CRITICAL):  # the exporter's error doesn't matter here
        provider.get_tracer("t").start_span("lost").end()
    assert otlp_sink.spans == []
    assert b"lost" in otlp_sink.raw()
    otlp_sink.accept()
    provider.get_tracer("t").start_span("kept").end()
    assert otlp_sink.names() == ["kept"]


def test_a_wait_that_times_out_says_what_was_received(otlp_sink: Sink) -> None:
    """The message has what was received."""
    post(otlp_sink, "/v1/logs")
    with pytest.raises(AssertionError, match=r"not within 0 s; 0 hang, and there came \[\('/v1/logs', 200\)\]"):
        otlp_sink.wait_for(lambda: otlp_sink.spans, seconds=0)
