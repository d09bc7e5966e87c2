"""Exemplars at /metrics: from the bucket of a duration to the trace that it was measured in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pocket_plug.testing.servers import free_port

from .scripts import python

SCRAPED = """
import json
from urllib.request import Request, urlopen
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import Histogram
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
    """What a scraper finds that takes OpenMetrics, and what the spans of the run were called."""
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
    """A run's and a node's, each in the bucket that its value belongs to. Other metrics are served as they are."""
    found = scraped(tmp_path, OTEL_TRACES_EXPORTER="console", OTEL_LOGS_EXPORTER="none")
    assert len(found["shown"]) == 2
    for name, span in (("run", "run shop"), ("node", "node look")):
        [one] = [each for each in found["shown"] if each["name"] == f"pocket_plug_{name}_duration_seconds_bucket"]
        assert [one["trace_id"], one["span_id"]] == found["spans"][span]
        assert 0 < one["value"] <= one["le"]
    assert found["others"] == [1]
    assert found["plain"] == [], "the older format has no exemplars, and its readers would stumble over one"


def test_a_run_that_is_not_traced_has_no_exemplar(tmp_path: Path) -> None:
    """An id that no backend knows leads nowhere."""
    found = scraped(
        tmp_path, OTEL_TRACES_EXPORTER="console", OTEL_LOGS_EXPORTER="none", OTEL_TRACES_SAMPLER="always_off"
    )
    assert found["shown"] == []
    assert found["others"] == [1]
