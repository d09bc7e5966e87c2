"""Exemplars for Prometheus: they lead from a histogram's bucket to the trace of a measurement in it.

OpenTelemetry's reader for Prometheus drops exemplars. So we record them when the reader receives metrics, and add them to the
metrics that are served. If this fails, the error is logged once, and the metrics are served without exemplars.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, MetricsData
from opentelemetry.trace import format_span_id, format_trace_id

from pocket_plug.otel.reporting import surviving

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.samples import Exemplar

Series = frozenset[tuple[str, str]]
"""The labels that identify a series."""


class Exemplars:
    """The last exemplar of each bucket. It stays until a newer one comes, since several servers may fetch metrics."""

    def __init__(self) -> None:
        self._last: dict[
            str, dict[Series, dict[float, Exemplar]]
        ] = {}  # by the metric's name, then by series, then by the bucket's upper bound

    def note(self, data: MetricsData) -> None:
        """Record the exemplars of newly collected metrics."""
        with surviving("recording exemplars"):
            self._note_all(data)

    def _note_all(self, data: MetricsData) -> None:
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if isinstance(metric.data, Histogram):
                        self._note(metric.name, metric.data)

    def _note(self, name: str, histogram: Histogram) -> None:
        of_metric = self._last.setdefault(_called(name), {})
        for point in histogram.data_points:
            if found := dict(_exemplars(point)):
                of_metric.setdefault(_series(point.attributes or {}), {}).update(found)

    def within(self, registry: Any) -> Any:
        """The registry with exemplars added, for prometheus_client to serve."""
        return _Registry(self, registry)

    def put_on(self, family: Metric) -> Metric:
        """Add exemplars to the buckets of a metric family."""
        if family.type == "histogram":
            with surviving("adding exemplars to a metric"):
                self._put_on(family)
        return family

    def _put_on(self, family: Metric) -> None:
        noted = [*self._last]  # a copy: another thread may add names meanwhile
        names = [name for name in noted if family.name == name or family.name.startswith(f"{name}_")]
        of_metric = self._last[max(names, key=len)] if names else {}
        for number, sample in enumerate(family.samples):
            if sample.name.endswith("_bucket"):
                found = of_metric.get(_series(sample.labels), {}).get(float(sample.labels["le"]))
                if found is not None:
                    family.samples[number] = sample._replace(exemplar=found)


class _Registry:
    def __init__(self, exemplars: Exemplars, registry: Any) -> None:
        self._exemplars, self._registry = exemplars, registry

    def collect(self) -> Iterator[Metric]:
        return map(self._exemplars.put_on, self._registry.collect())

    def restricted_registry(self, names: list[str]) -> Any:
        # it never contains OpenTelemetry's metrics, so no exemplars either
        return self._registry.restricted_registry(names)


def _called(name: str) -> str:
    """The name by Prometheus' rules.

    >>> _called("pocket_plug.run.duration")
    'pocket_plug_run_duration'
    """
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


def _series(labels: Mapping[str, Any]) -> Series:
    """Labels without those of the scope, and without empty ones: the exporter adds these for labels of other series."""
    return frozenset(
        (_called(name), label if isinstance(label, str) else json.dumps(label))  # as the exporter writes it
        for name, label in labels.items()
        if label != "" and name != "le" and not name.startswith("otel_scope_")
    )


def _exemplars(point: HistogramDataPoint) -> Iterator[tuple[float, Exemplar]]:
    """The exemplars of a point, each with the upper bound of its bucket, the newest last."""
    from prometheus_client.samples import Exemplar

    bounds = [*point.explicit_bounds, inf]
    for each in sorted(point.exemplars, key=lambda exemplar: exemplar.time_unix_nano):
        if each.trace_id and each.span_id:
            ids = {"trace_id": format_trace_id(each.trace_id), "span_id": format_span_id(each.span_id)}
            yield bounds[bisect_left(bounds, each.value)], Exemplar(ids, each.value, each.time_unix_nano / 1e9)
