"""A run's retries and errors have the same number in the list, the tree and the metric."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import pocket_plug as pp
from pocket_plug.cli import main
from pocket_plug.layers import metrics, tracing
from pocket_plug.telemetry.local import FileExporter
from pocket_plug.traces.recorded import read_traces

Numbers = Callable[[], dict[str, tuple[int, int]]]


@pytest.fixture
def numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Numbers]:
    """The numbers of each: errors and retries; the metric has no errors, which are then None."""
    file, reader = tmp_path / "traces.jsonl", InMemoryMetricReader()
    spans, meters = TracerProvider(shutdown_on_exit=False), MeterProvider([reader], shutdown_on_exit=False)
    spans.add_span_processor(SimpleSpanProcessor(FileExporter(file)))
    former = tracing.use(tracing.Settings(tracer_provider=spans))
    former_meters = metrics.configure(meter_provider=meters).meter_provider

    def retries() -> int:
        data = json.loads(reader.get_metrics_data().to_json())  # type: ignore[union-attr]  # there is a run's duration
        return sum(
            point["value"]
            for resource in data["resource_metrics"]
            for scope in resource["scope_metrics"]
            for metric in scope["metrics"]
            if metric["name"] == "pocket_plug.node.retries"
            for point in metric["data"]["data_points"]
        )

    def found() -> dict[str, Any]:
        capsys.readouterr()
        assert main(["trace", "ls", "--json", "--file", str(file)]) == 0
        (listed,) = json.loads(capsys.readouterr().out)
        (trace,) = read_traces(file)
        return {
            "ls": (listed["errors"], listed["retries"]),
            "tree": (trace.errors, trace.retries),
            "metric": (None, retries()),
        }

    yield found
    tracing.use(former)
    metrics.configure(meter_provider=former_meters)


def agree(found: dict[str, Any], errors: int, retries: int) -> None:
    assert found == {"ls": (errors, retries), "tree": (errors, retries), "metric": (None, retries)}


class Flaky:
    """Raises as often as told for each item, and always for items that are to fail."""

    def __init__(self, times: int, fails: Callable[[int], bool]) -> None:
        self.times, self.fails = times, fails
        self.tried: Counter[int] = Counter()

    def __call__(self, n: int) -> int:
        self.tried[n] += 1
        if self.tried[n] <= self.times or self.fails(n):
            raise OSError("flaky")
        return n


def node_of(work: Flaky) -> pp.Node[int, int]:
    @pp.node(retry=pp.Retry(attempts=3, delay=0))
    def work_on(n: int) -> int:
        return work(n)

    return work_on


@pytest.mark.parametrize("detail", ["node", "phase"])
def test_of_many_items_without_spans(numbers: Numbers, detail: tracing.Detail) -> None:
    """400 items are retried, most of them without a span, and 150 of them fail: each is one error."""
    tracing.configure(detail=detail)
    each = pp.each(node_of(Flaky(1, lambda n: n >= 250)), errors="collect")
    asyncio.run(pp.Graph(each, name="g").run(range(400)))
    agree(numbers(), 150, 250 + 2 * 150)


def test_of_graphs_as_items(numbers: Numbers) -> None:
    """Retries within an item without a span count."""
    inner = pp.Graph(node_of(Flaky(2, lambda n: False)), name="inner")
    asyncio.run(pp.Graph(pp.each(inner), name="g").run(range(300)))
    agree(numbers(), 0, 600)


def test_with_spans_of_runs_only(numbers: Numbers) -> None:
    """At detail "run" the run's span has the numbers; an error that leaves the run is one."""
    tracing.configure(detail="run")
    with pytest.raises(OSError, match="flaky"):
        pp.Graph(node_of(Flaky(0, lambda n: True)), name="g").run_sync(1)
    agree(numbers(), 1, 2)


def test_of_an_exception_on_its_way_up(numbers: Numbers) -> None:
    """It leaves an attempt, a node, a nested run, the outer node and the run: five spans, one error."""
    inner = pp.Graph(node_of(Flaky(0, lambda n: True)), name="inner")
    with pytest.raises(OSError, match="flaky"):
        pp.Graph(inner, name="g").run_sync(1)
    agree(numbers(), 1, 2)


def test_a_conflict_is_no_retry(numbers: Numbers) -> None:
    """A node that executes exec again because of a concurrent write was not retried for an error."""
    key = pp.Key("n", int)
    store = pp.Store()
    hurried: list[int] = []

    class Adds(pp.Node[int, int]):
        async def prep(self, store: pp.StoreReader, n: int, /) -> int:
            return await store.get(key, default=0)

        async def exec(self, prepared: int) -> int:
            if not hurried:
                hurried.append(1)
                await store.set(key, 100)
            return prepared + 1

        async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int, /) -> int:
            await store.set(key, result)
            return result

    assert asyncio.run(pp.Graph(Adds(), store=store, name="g").run(1)) == 101
    agree(numbers(), 0, 0)
