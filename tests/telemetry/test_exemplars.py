"""What Prometheus fetches leads to traces: buckets of histograms have exemplars, in the format that has a place for them."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pocket_plug.telemetry.exporters import prometheus_reader
from pocket_plug.testing.servers import free_port

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
NAME = "pocket_plug_test_duration_seconds"

tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")


@pytest.fixture
def place() -> Iterator[tuple[str, Histogram]]:
    """Where it is fetched, and what is measured."""
    port = free_port()
    reader = prometheus_reader("127.0.0.1", port, "test")
    buckets = View(instrument_name="*", aggregation=ExplicitBucketHistogramAggregation([0.1, 0.5]))
    provider = MeterProvider([reader], views=[buckets], shutdown_on_exit=False)
    yield (
        f"http://127.0.0.1:{port}/metrics",
        provider.get_meter("test").create_histogram("pocket_plug.test.duration", "s"),
    )
    provider.shutdown()


def fetch(url: str, accept: str = OPEN_METRICS) -> str:
    request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310 - our own server's
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        text: str = answer.read().decode()
    return text


def exemplars(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """By graph and upper bound."""
    return {
        (sample.labels["pocket_plug_graph_name"], sample.labels["le"]): sample.exemplar.labels
        for family in text_string_to_metric_families(text)
        if family.name == NAME
        for sample in family.samples
        if sample.exemplar is not None
    }


def test_a_bucket_leads_to_the_last_trace_in_it(place: tuple[str, Histogram]) -> None:
    """Of each series and bucket its own; whoever fetches next finds it too."""
    url, histogram = place
    expected: dict[tuple[str, str], dict[str, str]] = {}
    for graph, seconds, bound in [
        ("shop", 0.05, "0.1"),
        ("shop", 0.5, "0.5"),
        ("bank", 7.0, "+Inf"),
        ("shop", 0.07, "0.1"),
    ]:
        with tracer.start_as_current_span("run") as span:
            histogram.record(seconds, {"pocket_plug.graph.name": graph})
        context = span.get_span_context()
        ids = {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}
        expected[graph, bound] = ids
        assert exemplars(fetch(url)) == expected
    histogram.record(0.05, {"pocket_plug.graph.name": "shop"})  # by nobody's span
    assert exemplars(fetch(url)) == expected
    assert "python_info" in fetch(f"{url}?name[]=python_info")  # what the registry has besides


def test_the_older_format_has_the_figures_alone(place: tuple[str, Histogram]) -> None:
    """It has no place for more."""
    url, histogram = place
    with tracer.start_as_current_span("run"):
        histogram.record(0.5, {"pocket_plug.graph.name": "shop"})
    text = fetch(url, "text/plain")
    assert f"{NAME}_count{{" in text
    assert "trace_id" not in text
