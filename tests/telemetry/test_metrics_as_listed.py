"""Metrics as a collector receives them by OTLP: names, kinds, units and attributes are those that the reference lists."""

from __future__ import annotations

import asyncio
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from otlp_sink import Metric, Sink

from pocket_plug import Store
from pocket_plug.layers import Bounding, Metrics, Persistence, metrics

ROOT = Path(__file__).parents[2]
KINDS = {"counter": "sum", "up-down counter": "sum", "gauge": "gauge", "histogram": "histogram"}


def listed() -> Iterator[tuple[str, str, str, set[str], set[str]]]:
    """The reference's rows: name, kind, unit, the attributes that are always present, and the optional ones."""
    section = (ROOT / "docs" / "reference.md").read_text("utf-8").partition("### Metrics published\n")[2]
    for row in section.partition("\n### ")[0].splitlines():
        if cells := re.match(r"\| `([\w.]+)` \| ([\w -]+), (\S+) \| (.*) \|$", row):
            name, kind, unit, attributes = cells.groups()
            attributes = attributes.partition(";")[0]
            sometimes = set(re.findall(r"\[`([\w.]+)`\]", attributes))
            yield name, kind, unit, set(re.findall(r"`([\w.]+)`", attributes)) - sometimes, sometimes


LISTED = list(listed())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """The metrics of the example's shop after a good day and a bad one."""
    example = runpy.run_path(str(ROOT / "examples" / "monitoring" / "serve.py"))

    async def trade(folder: Path, trouble: bool) -> None:
        behind = Persistence(to=f"sqlite:///{folder / 'state.db'}", mode="behind")
        async with (
            Store(layers=[Metrics(namespace="state"), behind, Bounding(max_entries=5)]) as state,
            Store(f"sqlite:///{folder / 'archive.db'}", layers=[Metrics(namespace="archive")]) as archive,
            Store(f"sqlite:///{folder / 'desk.db'}", layers=[Metrics(namespace="desk")]) as desk,
        ):
            await example["take_orders"](example["shop"](state, archive, desk, trouble=trouble), 40, 0)
            assert provider.force_flush()

    with Sink() as sink:
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{sink.url}/v1/metrics"), 3_600_000)
        provider = MeterProvider([reader], shutdown_on_exit=False)
        former = metrics.configure(meter_provider=provider)
        try:
            for trouble in (False, True):
                asyncio.run(trade(tmp_path_factory.mktemp("shop"), trouble))
            sent = {metric.name: metric for metric in sink.metrics}
        finally:
            metrics.configure(meter_provider=former.meter_provider)
            provider.shutdown()
    return sent


@pytest.mark.parametrize(("name", "kind", "unit", "always", "sometimes"), LISTED, ids=[row[0] for row in LISTED])
def test_a_metric_is_as_listed(
    published: dict[str, Metric], name: str, kind: str, unit: str, always: set[str], sometimes: set[str]
) -> None:
    """Kind, UCUM unit and scope; each point has the required attributes, and none that isn't listed."""
    metric = published[name]
    assert (metric.kind, metric.unit, metric.scope.name) == (KINDS[kind], unit, "pocket_plug")
    assert metric.scope.schema_url.startswith("https://opentelemetry.io/schemas/")
    assert metric.description
    assert not name.endswith("total")
    found = [set(point.attributes) for point in metric.points]
    assert found
    for attributes in found:
        assert always <= attributes <= always | sometimes
    assert sometimes - {"db.namespace"} <= set().union(*found)
    if kind == "histogram":
        bounds = {len(point.bounds) for point in metric.points}
        assert bounds == {9 if name.startswith("db.") else 14}


def test_no_other_metric_is_sent(published: dict[str, Metric]) -> None:
    """The reference lists all metrics."""
    assert published.keys() == {name for name, *_ in LISTED}
