"""OpenTelemetry's own test kit, as contrib's instrumentors use it: before every test it replaces the global providers."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.test import test_base  # the module: pytest would collect the class
from scripts import python

import pocket_plug as pp
from pocket_plug.instrumentor import PocketPlugInstrumentor
from pocket_plug.layers import Metrics, Tracing


@pp.node
async def look(name: str) -> str:
    return name


GRAPH = pp.Graph(look, name="shop")


SPANS = ["get", "get", "node look", "run shop", "write"]


class Kit(test_base.TestBase):
    """The helpers of these tests."""

    store: pp.SyncStore
    """Made before there is any provider, as stores at module level are; in its place, since no other test wants its figures."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.store = pp.SyncStore(layers=[Tracing(), Metrics(namespace="kit")])

    @classmethod
    def tearDownClass(cls) -> None:
        del cls.store
        gc.collect()
        super().tearDownClass()

    def work(self) -> None:
        """One run, two writes, two lookups, one of which is a hit."""
        GRAPH.run_sync("tea")
        self.store.set_many({"of the kit": 1, "of it too": 2})
        self.store.get("of the kit")
        self.store.get("not there")

    def spans(self) -> list[str]:
        """The names of the ended spans."""
        return sorted(span.name for span in self.get_finished_spans())

    def figures(self, reader: Any = None) -> dict[str, Any]:
        """The published metrics: sums over all attributes."""
        data = (reader or self.memory_metrics_reader).get_metrics_data()
        return {
            metric.name.removeprefix("pocket_plug."): sum(
                getattr(point, "value", getattr(point, "count", 0)) for point in metric.data.data_points
            )
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            if scope.scope.name == "pocket_plug"
            for metric in scope.metrics
        }

    def check_all_is_recorded(self) -> None:
        """Exactly the telemetry of `work`, once."""
        assert self.spans() == SPANS
        figures = self.figures()
        wanted = {"run.duration": 1, "node.duration": 1, "store.writes": 2, "store.lookups": 2}
        assert {name: figures.get(name) for name in wanted} == wanted

    def check_nothing_is_recorded(self) -> None:
        """Neither spans nor metrics, except the number of entries, which isn't caused by the work."""
        assert self.spans() == []
        assert {name for name, value in self.figures().items() if value} <= {"store.entries"}


class TestInstrumented(Kit):
    """With `instrument()` in `setUp` and `uninstrument()` in `tearDown`, as in contrib's tests."""

    def setUp(self) -> None:
        super().setUp()
        PocketPlugInstrumentor().instrument()

    def tearDown(self) -> None:
        if PocketPlugInstrumentor().is_instrumented_by_opentelemetry:
            PocketPlugInstrumentor().uninstrument()
        super().tearDown()

    def test_a_run_and_a_store_are_recorded(self) -> None:
        """By the providers of this test."""
        self.work()
        self.check_all_is_recorded()

    def test_each_test_sees_its_own_only(self) -> None:
        """Whichever of the two tests comes second: nothing of the other one is left."""
        self.work()
        self.check_all_is_recorded()

    def test_uninstrumented_it_records_nothing_and_instrumented_again_it_does(self) -> None:
        """Any number of times."""
        for _ in range(2):
            PocketPlugInstrumentor().uninstrument()
            self.work()
            self.check_nothing_is_recorded()
            PocketPlugInstrumentor().instrument()
        self.work()
        self.check_all_is_recorded()

    def test_under_suppression_it_is_silent(self) -> None:
        """Runs, nodes and stores, in async code too; after the block they are told of."""
        with suppress_instrumentation():
            self.work()
            asyncio.run(GRAPH.run("tea"))
        self.check_nothing_is_recorded()
        self.work()
        self.check_all_is_recorded()

    def test_other_settings_do_not_undo_uninstrument(self) -> None:
        """`uninstrument` holds, whatever is configured after it."""
        from pocket_plug.layers import metrics, tracing

        PocketPlugInstrumentor().uninstrument()
        tracing.configure(detail="node")
        metrics.configure(node_duration=True)
        self.work()
        self.check_nothing_is_recorded()


class TestWithProviders(Kit):
    """`instrument(tracer_provider=…, meter_provider=…)`."""

    def test_they_are_used_until_the_end_and_the_global_ones_are_not(self) -> None:
        """An existing store uses them as well; after `uninstrument` nothing is recorded."""
        tracers, spans = self.create_tracer_provider()
        reader = InMemoryMetricReader()
        self.work()
        self.check_all_is_recorded()
        PocketPlugInstrumentor().instrument(tracer_provider=tracers, meter_provider=MeterProvider([reader]))
        self.work()
        PocketPlugInstrumentor().uninstrument()
        self.work()
        self.check_all_is_recorded()
        assert sorted(span.name for span in spans.get_finished_spans()) == SPANS
        assert self.figures(reader)["store.lookups"] == 2


class TestAlone(Kit):
    """Without an instrumentor, pocket_plug uses the providers that are set."""

    def test_a_former_test_that_ended_uninstrumented_affects_no_other(self) -> None:
        """New providers are used at once."""
        PocketPlugInstrumentor().instrument()
        PocketPlugInstrumentor().uninstrument()
        self.tearDown()
        self.setUp()
        self.work()
        self.check_all_is_recorded()

    def test_between_two_tests_nothing_is_recorded(self) -> None:
        """Work without a provider is counted nowhere, and breaks nothing."""
        self.tearDown()
        self.work()
        self.setUp()
        self.work()
        self.check_all_is_recorded()

    def test_entries_of_a_store_that_nobody_uses_are_shown(self) -> None:
        """The first run under a provider finds all existing stores."""
        self.store.set_many({"of the kit": 1, "of it too": 2})
        self.tearDown()
        self.setUp()
        GRAPH.run_sync("tea")
        assert self.figures()["store.entries"] == 2


def test_observe_and_setup_start_again_after_the_globals_were_reset(tmp_path: Path) -> None:
    """Their own providers become the global ones again; after `close()` the next provider is used."""
    code = """
import warnings
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
with warnings.catch_warnings(action="ignore"):  # older ones call themselves deprecated
    from opentelemetry.test.globals_test import reset_logging_globals, reset_metrics_globals, reset_trace_globals

from pocket_plug.telemetry import setup

for name in ("one", "two"):
    for reset in (reset_trace_globals, reset_metrics_globals, reset_logging_globals):
        reset()
    with observe(terminal=False, file=f"{name}.jsonl") as first:
        graph.run_sync("tea")
    reset_trace_globals()
    with setup() as second:
        graph.run_sync("tea")
    reset_trace_globals()
    spans, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracers)
    graph.run_sync("tea")
    print(first.mode, second.mode, second.metrics, second.logs, len(spans.get_finished_spans()) > 0)
"""
    done = python(
        code, tmp_path, OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="console", OTEL_LOGS_EXPORTER="console"
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.endswith(" True")]
    assert said == ["console console console console True"] * 2
    assert done.stdout.count('"name": "run shop"') == 4  # spans of `observe()` and of `setup()`, both times
    assert done.stdout.count('"name": "pocket_plug.run.duration"') == 2
    assert [len((tmp_path / f"{name}.jsonl").read_text().splitlines()) > 0 for name in ("one", "two")] == [True, True]
