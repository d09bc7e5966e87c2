"""Exemplars for Prometheus' scrapes: the trace that a duration was measured in. OpenTelemetry's exporter leaves them out."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import Histogram, MetricsData
from prometheus_client import CollectorRegistry
from prometheus_client.core import REGISTRY, Metric, Sample
from prometheus_client.core import Exemplar as Shown

_Series = tuple[str, frozenset[tuple[str, str]]]
"""A histogram's name as the exporter writes it, and the labels that have a value, but for `le` and those of the scope."""


class ExemplifiedRegistry(CollectorRegistry):
    """What prometheus_client's own registry has, with the exemplars of the histograms that were last collected.

    Of histograms in seconds only. A scraper sees them that accepts OpenMetrics, as Prometheus does.
    """

    def __init__(self) -> None:
        super().__init__(auto_describe=False)
        self._found: Mapping[_Series, Mapping[float, Exemplar]] = {}

    def take(self, data: MetricsData) -> None:
        """Keep the exemplars of a collection, in place of those of the last one."""
        self._found = dict(_series(data))

    def collect(self) -> Iterator[Metric]:
        for family in REGISTRY.collect():  # during which the exporter collects, and `take` is called
            if family.type == "histogram":
                family.samples = [self._shown(family.name, sample) for sample in family.samples]
            yield family

    def _shown(self, name: str, sample: Sample) -> Sample:
        labels = frozenset(
            (label, value)
            for label, value in sample.labels.items()
            if value and label != "le" and not label.startswith("otel_scope_")
        )
        buckets = self._found.get((name, labels), {})
        if (found := buckets.get(float(sample.labels.get("le", "nan")))) is None:
            return sample
        ids = {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}
        return sample._replace(exemplar=Shown(ids, found.value, found.time_unix_nano / 1e9))


def _series(data: MetricsData) -> Iterator[tuple[_Series, Mapping[float, Exemplar]]]:
    for metric in (
        metric for each in data.resource_metrics for scope in each.scope_metrics for metric in scope.metrics
    ):
        if not isinstance(metric.data, Histogram) or metric.unit != "s":
            continue
        for point in metric.data.data_points:
            bounds = (*point.explicit_bounds, math.inf)
            buckets = {
                bounds[bisect_left(bounds, exemplar.value)]: exemplar
                for exemplar in point.exemplars
                if exemplar.trace_id and exemplar.span_id
            }
            if buckets:
                labels = frozenset((_plain(key), _text(value)) for key, value in (point.attributes or {}).items())
                yield (f"{_plain(metric.name)}_seconds", labels), buckets


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _text(value: object) -> str:
    """As the exporter writes it."""
    return value if isinstance(value, str) else json.dumps(value)
