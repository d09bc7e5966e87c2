"""Fan-outs in traces: the important items have spans, however many there are, and the program's own spans are below them."""

from __future__ import annotations

import asyncio
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider, TraceBasedExemplarFilter
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import StatusCode

import pocket_plug as pp
from pocket_plug.layers import metrics, tracing
from pocket_plug.layers.tracing import runs
from pocket_plug.layers.tracing.fan_outs import MOST, SAMPLE, SLOWEST, Durations, FanOut
from pocket_plug.otel.late import LateSpan
from pocket_plug.testing.spans import SpanCapture

AFTER = SAMPLE + 1
"""No item of the sample, as those are that the next ones begin with."""


@pytest.fixture
def capture() -> Iterator[SpanCapture]:
    with SpanCapture() as spans:
        yield spans


class Clock:
    """Stands still, except for the durations of items."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        return self.now

    def pass_by(self, milliseconds: float) -> None:
        self.now += int(milliseconds * 1e6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(runs, "clock", clock)
    return clock


def items_of(capture: SpanCapture, node: str = "work") -> dict[int, ReadableSpan]:
    """The items' spans, by number."""
    found = [span for span in capture.spans if span.name == f"item {node}"]
    by_number = {attributes(span)["pocket_plug.fan_out.index"]: span for span in found}
    assert len(by_number) == len(found), "an item came twice"
    return by_number


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan | None) -> int:
    assert span is not None
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def below(capture: SpanCapture, parent: ReadableSpan) -> list[ReadableSpan]:
    return [span for span in capture.spans if span.parent and span.parent.span_id == id_of(parent)]


def fan_out_of(capture: SpanCapture, node: str = "each_work") -> dict[str, Any]:
    """The attributes of the fan-out's span about its items."""
    own = attributes(capture.one(f"node {node}"))
    return {name.partition("fan_out.")[2]: value for name, value in own.items() if ".fan_out." in name}


def run_each(work: Callable[[int], Any], number: int, **options: Any) -> list[Any]:
    """Items through a node of this function, one at a time."""
    node = pp.node(name="work", **options)(work)
    return asyncio.run(pp.Graph(pp.each(node, concurrency=1, errors="collect"), name="g").run(range(number)))


def test_an_item_keeps_its_number_when_its_run_is_resumed(tmp_path: Path) -> None:
    """A resume takes only the items that are left: their numbers are their positions, as in their idempotency keys."""
    broken = {1}

    @pp.node
    def work(number: int) -> int:
        if number in broken:
            raise OSError("not yet")
        return number

    graph = pp.Graph(pp.each(work, concurrency=1), name="many")
    with pp.SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        with pytest.raises(OSError, match="not yet"):
            graph.run_sync([0, 1, 2], store=store, run_id="r")
        broken.clear()
        with SpanCapture() as capture:
            assert graph.run_sync([0, 1, 2], store=store, run_id="r") == [0, 1, 2]
    assert sorted(items_of(capture)) == [1, 2]


# ---------------------------------------------------------------- which items
def test_the_slowest_item_has_its_span_wherever_it_stands(capture: SpanCapture, clock: Clock) -> None:
    """One item among 300 takes a second: it has a span, with the phase that took the time."""

    def work(n: int) -> None:
        clock.pass_by(1000 if n == 250 + 1 else 1)

    run_each(work, 300)
    slowest = items_of(capture)[251]
    assert slowest.end_time is not None
    assert slowest.start_time is not None
    assert slowest.end_time - slowest.start_time == 1_000_000_000
    [phase] = below(capture, slowest)
    assert (phase.name, phase.start_time, phase.end_time) == ("exec work", slowest.start_time, slowest.end_time)
    assert fan_out_of(capture)["duration.max"] == 1.0
    assert capture.open == 0


@pytest.mark.parametrize("rising", [True, False])
def test_exactly_the_slowest_are_kept_whatever_their_order(capture: SpanCapture, clock: Clock, rising: bool) -> None:
    """If each item takes longer than all before, no more of them have spans than in the reverse order."""
    number = 1000
    run_each(lambda n: clock.pass_by(1 + (n if rising else number - n)), number)
    found = items_of(capture)
    slowest = range(number - SLOWEST, number) if rising else range(SLOWEST)
    assert set(slowest) <= set(found)
    fan_out = FanOut(pp.Graph)  # type: ignore[arg-type]  # whose it is plays no part here
    assert set(found) == set(slowest) | {n for n in range(number) if fan_out.is_sampled(n)}
    assert fan_out_of(capture)["suppressed"] == number - len(found)


def test_up_to_a_hundred_items_all_have_spans(capture: SpanCapture) -> None:
    """All items of a small fan-out have spans; the sample of a large one has some of each part, and stays small."""
    run_each(lambda n: n, SAMPLE)
    assert [*items_of(capture)] == [*range(SAMPLE)]
    assert fan_out_of(capture)["suppressed"] == 0
    fan_out = FanOut(pp.Graph)  # type: ignore[arg-type]  # as above
    sample = [n for n in range(1_000_000) if fan_out.is_sampled(n)]
    assert len(sample) < 250
    assert any(n > 900_000 for n in sample)


def test_a_retried_item_has_its_span_and_its_failed_attempts(capture: SpanCapture) -> None:
    """Both the failed attempts and the successful one are shown, and the item has not failed."""
    tried: Counter[int] = Counter()

    def work(n: int) -> None:
        tried[n] += 1
        if n == AFTER and tried[n] < 3:
            raise OSError("flaky")

    run_each(work, 150, retry=pp.Retry(attempts=3, delay=0))
    item = items_of(capture)[AFTER]
    assert item.status.status_code is StatusCode.UNSET
    assert attributes(item)["pocket_plug.node.retries"] == 2
    tries = below(capture, item)
    assert [attributes(each)["pocket_plug.attempt"] for each in tries] == [1, 2, 3]
    assert [[event.name for event in each.events] for each in tries] == [["exception"], ["exception"], []]
    assert [attributes(each).get("pocket_plug.attempt.will_retry") for each in tries] == [True, True, None]
    assert attributes(capture.one("run g"))["pocket_plug.run.retries"] == 2
    assert fan_out_of(capture)["retried"] == 1


def test_failed_items_have_spans_and_their_exception_is_recorded_once(capture: SpanCapture) -> None:
    """On the attempt in which it was raised; the item's span has the status."""

    def work(n: int) -> None:
        if n > SAMPLE and n % 50 == 1:
            raise LookupError(n)

    results = run_each(work, 300)
    failed = [n for n, result in enumerate(results) if result is not None]
    assert failed == [101, 151, 201, 251]
    found = items_of(capture)
    for n in failed:
        assert found[n].status.status_code is StatusCode.ERROR
        assert found[n].events == ()
        [attempt] = below(capture, found[n])
        assert [event.name for event in attempt.events] == ["exception"]
    assert capture.one("node each_work").status.status_code is StatusCode.UNSET
    assert fan_out_of(capture)["failed"] == 4


def test_failed_and_retried_items_with_spans_are_limited(capture: SpanCapture) -> None:
    """At most a hundred of each kind besides the sample; the fan-out's span has the right numbers all the same."""
    tried: Counter[int] = Counter()

    def work(n: int) -> None:
        tried[n] += 1
        if n % 2 or tried[n] == 1:
            raise OSError("flaky")

    number = 1000
    run_each(work, number, retry=pp.Retry(attempts=2, delay=0))
    found = items_of(capture)
    sampled = sum(FanOut(pp.Graph).is_sampled(n) for n in range(number))  # type: ignore[arg-type]  # as above
    assert 2 * MOST + SAMPLE <= len(found) <= 2 * MOST + sampled + SLOWEST
    said = fan_out_of(capture)
    assert (said["items"], said["failed"], said["retried"]) == (number, number // 2, number)
    assert said["suppressed"] == number - len(found)
    assert attributes(capture.one("run g"))["pocket_plug.run.retries"] == number
    assert capture.open == 0


def test_items_that_were_cancelled_are_no_failures(capture: SpanCapture) -> None:
    """The first error cancels the rest: one item has failed, and the numbers say so."""

    async def work(n: int) -> None:
        if n == 140:
            raise LookupError(n)
        if n > 140:
            await asyncio.Event().wait()

    graph = pp.Graph(pp.each(pp.node(work), concurrency=7), name="g")
    with pytest.raises(LookupError):
        asyncio.run(graph.run(range(1000)))
    said = fan_out_of(capture)
    assert 141 <= said["items"] <= 147
    assert said["failed"] == 1
    assert items_of(capture)[140].status.status_code is StatusCode.ERROR
    assert capture.open == 0


# ---------------------------------------------------------------- the user's spans
@pytest.mark.parametrize("detail", ["node", "phase"])
@pytest.mark.parametrize("threads", [True, False])
def test_the_programs_spans_are_below_their_item(detail: tracing.Detail, threads: bool) -> None:
    """Sampled or not: each item with a span of the program has its own span, and the program's is below it."""
    with SpanCapture(detail=detail) as capture:
        tracer = capture.tracer_provider.get_tracer("user")

        def work(n: int) -> None:
            if n % 3 == 0:
                with tracer.start_as_current_span("own", attributes={"n": n}):
                    pass

        graph = pp.Graph(pp.each(pp.node(work), concurrency=4), name="g")
        asyncio.run(graph.run(range(400))) if threads else graph.run_sync(range(400))
    by_id = {id_of(span): span for span in capture.spans}
    own = [span for span in capture.spans if span.name == "own"]
    assert len(own) == 134
    for span in own:
        above = by_id[span.parent.span_id] if span.parent else None
        while above is not None and above.name != "item work":
            above = by_id[above.parent.span_id] if above.parent else None
        assert above is not None
        assert attributes(above)["pocket_plug.fan_out.index"] == attributes(span)["n"]
    assert {id_of(span) for span in capture.spans} >= {span.parent.span_id for span in capture.spans if span.parent}
    assert fan_out_of(capture)["suppressed"] == 400 - len(items_of(capture))
    assert capture.open == 0


def test_changes_of_the_current_span_go_to_the_item(capture: SpanCapture) -> None:
    """The current span is the item's, also in phases without a span: attributes, events, status, name and id."""

    def work(n: int) -> None:
        if n == AFTER:
            span = trace.get_current_span()
            assert span.is_recording()
            span.set_attribute("mine", n)
            span.set_attributes({"other": n})
            span.add_event("thing")
            span.record_exception(ValueError("x"))
            span.set_status(StatusCode.ERROR, "bad")
            assert span.attributes["mine"] == n  # type: ignore[attr-defined]  # as the SDK's spans have it

    run_each(work, 130)
    item = items_of(capture)[AFTER]
    assert (attributes(item)["mine"], attributes(item)["other"]) == (AFTER, AFTER)
    assert [event.name for event in item.events] == ["thing", "exception"]
    assert item.status.description == "bad"


def test_a_span_of_a_task_that_outlives_its_item_is_below_the_fan_out(capture: SpanCapture) -> None:
    """If a task that an item has left behind makes a span later, when the item has no span, its parent exists all the same."""
    tracer = capture.tracer_provider.get_tracer("user")
    left: list[asyncio.Task[None]] = []

    async def late() -> None:
        await over.wait()
        tracer.start_span("late").end()

    async def work(n: int) -> None:
        if n == AFTER:
            left.append(asyncio.create_task(late()))

    async def main() -> None:
        await pp.Graph(pp.each(pp.node(work), concurrency=1), name="g").run(range(400))
        over.set()
        await left[0]

    over = asyncio.Event()
    asyncio.run(main())
    parent = capture.one("late").parent
    assert parent is not None
    expected = items_of(capture).get(AFTER) or capture.one("node each_work")  # it may be among the slowest
    assert parent.span_id == id_of(expected)
    assert capture.open == 0


def test_metrics_alone_cause_no_span(capture: SpanCapture) -> None:
    """An exemplar asks for the current span. With exemplars, no more items have spans than without."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], exemplar_filter=TraceBasedExemplarFilter(), shutdown_on_exit=False)
    former = metrics.configure(meter_provider=provider)
    try:
        run_each(lambda n: n, 300)
        data = reader.get_metrics_data()
        assert data is not None
        assert '"span_id":' in data.to_json(), "there is no exemplar at all"
    finally:
        metrics.configure(meter_provider=former.meter_provider)
        provider.shutdown()
    assert len(items_of(capture)) <= 100 + 15 + SLOWEST


def test_log_events_alone_cause_no_span(capture: SpanCapture, caplog: pytest.LogCaptureFixture) -> None:
    """The layer `logging` logs ids with each operation: in an item without a span those of the fan-out's span, which exists."""

    @pp.node.post
    def work(store: pp.SyncWriter, n: int) -> int:
        store.set("last", n)
        return n

    caplog.set_level("INFO", "pocket_plug")
    store = pp.Store(layers=["tracing", pp.layers.Logging(level="info")])
    pp.Graph(pp.each(work), store=store, name="many").run_sync(range(300))
    said = [id for line in caplog.messages if "op='set'" in line for id in re.findall("span_id='([0-9a-f]{16})'", line)]
    assert len(said) == 300
    assert {int(id, 16) for id in said} <= {id_of(span) for span in capture.spans}
    assert len(items_of(capture)) <= 100 + 15 + SLOWEST


def test_an_item_that_is_a_graph_shows_its_inside_only_in_the_sample(capture: SpanCapture) -> None:
    """In other items the program's own spans are directly below the item, and retries inside are counted all the same."""
    tracer = capture.tracer_provider.get_tracer("user")
    tried: Counter[int] = Counter()

    def work(n: int) -> int:
        tried[n] += 1
        if n == AFTER:
            with tracer.start_as_current_span("own"):
                if tried[n] == 1:
                    raise OSError("flaky")
        return n

    node = pp.node(retry=pp.Retry(attempts=2, delay=0))(work)
    inner = pp.Graph(node, name="inner", store=pp.Store(layers=["tracing"]))
    asyncio.run(pp.Graph(pp.each(inner, concurrency=2), name="g").run(range(150)))
    item = items_of(capture, "inner")[AFTER]
    assert [span.name for span in below(capture, item)] == ["own", "own"]
    assert attributes(capture.one("run g"))["pocket_plug.run.retries"] == 1
    assert len([span for span in capture.spans if span.name == "run inner"]) == 105  # those of the sample
    assert capture.open == 0


def test_a_fan_out_within_an_item_without_a_span_is_not_counted(capture: SpanCapture) -> None:
    """Its items are not counted as items of the outer one."""
    graph = pp.Graph(pp.each(pp.each(pp.node(lambda n: n), concurrency=1), concurrency=1), name="g")
    asyncio.run(graph.run([[1, 2]] * 300))
    outer, *inner = [span for span in capture.spans if attributes(span).get("pocket_plug.node.type") == "fan_out"]
    assert attributes(outer)["pocket_plug.fan_out.items"] == 300
    assert {attributes(span).get("pocket_plug.fan_out.items") for span in inner} <= {2, None}
    assert capture.open == 0


def test_untraced_items_have_no_figures(capture: SpanCapture) -> None:
    """With `trace=False` they have neither spans nor figures."""
    run_each(lambda n: n, 150, trace=False)
    assert items_of(capture) == {}
    assert fan_out_of(capture) == {}


def test_a_sampler_that_raises_harms_no_item() -> None:
    """It is called once more when an item's span is needed; the run continues without it."""

    class Fails(Sampler):
        def should_sample(
            self, parent_context: Any, trace_id: int, name: str, kind: Any = None, attributes: Any = None, *others: Any
        ) -> SamplingResult:
            if attributes and attributes.get("pocket_plug.fan_out.index", 0) >= SAMPLE:
                raise RuntimeError("broken")
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

        def get_description(self) -> str:
            return "fails"

    with SpanCapture() as capture:
        capture.tracer_provider.sampler = Fails()

        def work(n: int) -> int:
            assert trace.get_current_span().get_span_context().is_valid
            return n

        assert run_each(work, 120) == [*range(120)]
        assert len(items_of(capture)) == SAMPLE


# ---------------------------------------------------------------- figures
@given(st.lists(st.integers(min_value=1, max_value=10**13), min_size=1, max_size=300))
def test_quantiles_are_near_and_the_ends_exact(values: list[int]) -> None:
    """Within 1.1 % of one of the neighbouring values."""
    durations = Durations()
    for value in values:
        durations.add(value)
    assert (durations.least, durations.greatest) == (min(values), max(values))
    ordered = sorted(values)
    for share in (0.5, 0.95):
        exact = ordered[-(-int(share * 100) * len(values) // 100) - 1]
        assert abs(durations.quantile(share) - exact) <= 0.011 * exact + 1


def test_figures_of_a_fan_out_are_those_of_all_items(capture: SpanCapture, clock: Clock) -> None:
    """Those of items without a span too."""
    run_each(lambda n: clock.pass_by(n + 1), 1000)
    said = fan_out_of(capture)
    assert (said["duration.min"], said["duration.max"]) == (0.001, 1.0)
    assert said["duration.median"] == pytest.approx(statistics.median(range(1, 1001)) / 1e3, rel=0.012)
    assert said["duration.p95"] == pytest.approx(0.95, rel=0.012)


def test_a_fan_out_without_items_says_so(capture: SpanCapture) -> None:
    """No items, no durations."""
    run_each(lambda n: n, 0)
    assert fan_out_of(capture) == {"items": 0, "failed": 0, "retried": 0, "suppressed": 0}


# ---------------------------------------------------------------- late spans
def test_while_a_late_span_starts_the_current_span_is_its_parent() -> None:
    """A processor that reads the current span while one starts doesn't start it again."""
    began: list[int] = []

    def begin() -> trace.Span:
        began.append(span.get_span_context().span_id)
        return trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))

    around = trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(1, 7, is_remote=False)))
    span = LateSpan(begin, around)
    assert span.get_span_context().span_id == 2
    assert began == [7]
    assert not span.dismiss()


def test_a_dismissed_span_stands_for_the_one_around() -> None:
    """And records nothing any more."""
    around = trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(1, 7, is_remote=False)))
    span = LateSpan(lambda: pytest.fail("it began"), around)
    assert span.is_recording()
    assert span.dismiss()
    assert not span.is_recording()
    assert span.get_span_context().span_id == 7
