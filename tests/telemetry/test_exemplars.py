"""Metrics in Prometheus lead to traces: buckets of histograms have exemplars, in the format that supports them."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client import REGISTRY, Metric
from prometheus_client import Histogram as OtherHistogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pocket_plug.primitives import failures
from pocket_plug.telemetry.exemplars import Exemplars
from pocket_plug.telemetry.exporters import prometheus_reader
from pocket_plug.testing.servers import free_port

from .scripts import python

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
NAME = "pocket_plug_test_duration_seconds"

tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")


@pytest.fixture
def place() -> Iterator[tuple[str, Histogram]]:
    """The address of the metrics, and a histogram."""
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
    """Each series and bucket has its own, with its time in epoch seconds; later scrapes find it too."""
    url, histogram = place
    began = int(time.time())
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
    for family in text_string_to_metric_families(fetch(url)):
        for sample in family.samples:
            assert sample.exemplar is None or 0 <= float(sample.exemplar.timestamp) - began < 3600
    histogram.record(0.05, {"pocket_plug.graph.name": "shop"})  # without a span
    assert exemplars(fetch(url)) == expected
    assert "python_info" in fetch(f"{url}?name[]=python_info")  # the registry's other metrics


def test_the_older_format_has_the_figures_alone(place: tuple[str, Histogram]) -> None:
    """It doesn't support exemplars."""
    url, histogram = place
    with tracer.start_as_current_span("run"):
        histogram.record(0.5, {"pocket_plug.graph.name": "shop"})
    text = fetch(url, "text/plain")
    assert f"{NAME}_count{{" in text
    assert "trace_id" not in text


def test_the_programs_own_metrics_are_unchanged(place: tuple[str, Histogram]) -> None:
    """The registry is the program's as well: its own histogram keeps its exemplars."""
    url, _ = place
    others = OtherHistogram("others_of_the_program", "Not ours")
    try:
        others.observe(1, exemplar={"trace_id": "theirs"})
        families = [*text_string_to_metric_families(fetch(url))]
    finally:
        REGISTRY.unregister(others)
    shown = [sample.exemplar for family in families for sample in family.samples if sample.exemplar]
    assert [exemplar.labels for exemplar in shown] == [{"trace_id": "theirs"}]


@pytest.mark.parametrize(
    ("broken", "said"),
    [("_exemplars", "recording exemplars failed"), ("_series", "adding exemplars to a metric failed")],
)
def test_a_failure_with_exemplars_breaks_no_scrape(
    place: tuple[str, Histogram],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
    said: str,
) -> None:
    """The metrics are served without them, and this is logged once."""

    def fail(*_: object) -> None:
        raise AttributeError("another version")

    monkeypatch.setattr(f"pocket_plug.telemetry.exemplars.{broken}", fail)
    monkeypatch.setattr(failures, "_said", set())
    url, histogram = place
    histogram.record(0.05, {"pocket_plug.graph.name": "shop"})
    for _ in range(2):
        text = fetch(url)
        assert f"{NAME}_count{{" in text
        assert exemplars(text) == {}
    assert caplog.text.count(said) == 1


def test_concurrent_scrapes_are_independent(caplog: pytest.LogCaptureFixture) -> None:
    """Each is served in a thread of its own."""

    class Slow(str):
        """The name of a family; before it is read, another metric is recorded."""

        __slots__ = ()

        def startswith(self, *arguments: Any) -> bool:
            noted._last[f"other{len(noted._last)}"] = {}
            return super().startswith(*arguments)

    noted = Exemplars()
    noted._last = {"one": {}, "two": {}}
    family = Metric("three", "Not noted", "histogram")
    family.name = Slow("three")
    assert noted.put_on(family) is family
    assert len(noted._last) == 4
    assert caplog.text == ""


# ---------------------------------------------------------------- of a run
SCRAPED = """
import json
from urllib.request import Request, urlopen
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import Histogram
from prometheus_client import REGISTRY, Metric
from prometheus_client import Histogram as OtherHistogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families

def metrics(accepted):
    port = os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"]
    with urlopen(Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accepted})) as answer:
        return answer.read().decode()

Histogram("others", "Not ours").observe(1)
telemetry, spans = setup(), InMemorySpanExporter()
if hasattr(trace.get_tracer_provider(), "add_span_processor"):
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))
graph.run_sync("tea")
text = metrics("application/openmetrics-text; version=1.0.0")
samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
found = json.dumps({
    "shown": [
        {"name": sample.name, "le": float(sample.labels["le"]), "value": sample.exemplar.value, **sample.exemplar.labels}
        for sample in samples if sample.exemplar
    ],
    "spans": {span.name: [format(span.context.trace_id, "032x"), format(span.context.span_id, "016x")]
              for span in spans.get_finished_spans()},
    "others": [sample.value for sample in samples if sample.name == "others_count"],
    "plain": [line for line in metrics("text/plain").splitlines() if "trace_id" in line],
})
telemetry.close()
print(found)
"""


def scraped(folder: Path, **env: str) -> dict[str, Any]:
    """A scrape in the OpenMetrics format, and the ids of the run's spans."""
    done = python(
        SCRAPED,
        folder,
        OTEL_METRICS_EXPORTER="prometheus",
        OTEL_EXPORTER_PROMETHEUS_HOST="127.0.0.1",
        OTEL_EXPORTER_PROMETHEUS_PORT=str(free_port()),
        **env,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_scrape_leads_from_a_duration_to_its_span(tmp_path: Path) -> None:
    """A run's and a node's, each in the bucket of its value. Other metrics are served unchanged."""
    found = scraped(tmp_path, OTEL_TRACES_EXPORTER="console", OTEL_LOGS_EXPORTER="none")
    assert len(found["shown"]) == 2
    for name, span in (("run", "run shop"), ("node", "node look")):
        [one] = [each for each in found["shown"] if each["name"] == f"pocket_plug_{name}_duration_seconds_bucket"]
        assert [one["trace_id"], one["span_id"]] == found["spans"][span]
        assert 0 < one["value"] <= one["le"]
    assert found["others"] == [1]
    assert found["plain"] == [], "the older format has no exemplars, and its readers would stumble over one"


def test_a_run_that_is_not_traced_has_no_exemplar(tmp_path: Path) -> None:
    """A link to an id that no backend knows would be useless."""
    found = scraped(
        tmp_path, OTEL_TRACES_EXPORTER="console", OTEL_LOGS_EXPORTER="none", OTEL_TRACES_SAMPLER="always_off"
    )
    assert found["shown"] == []
    assert found["others"] == [1]
