"""Four thousand traced runs that fail, are cancelled, time out, are abandoned or succeed: nothing of them is left."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

import pocket_plug as pp
from pocket_plug.graph.running.workers import pool
from pocket_plug.layers import tracing
from pocket_plug.testing.clock import run_virtual

ROUNDS, RUNS = 40, 100


class OpenSpans(SpanProcessor):
    """Counts the spans that have started and not ended, and keeps none."""

    began = ended = 0
    tracer: trace.Tracer

    def on_start(self, span: Span, parent_context: otel_context.Context | None = None) -> None:
        self.began += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.ended += 1


@pytest.fixture
def spans() -> Iterator[OpenSpans]:
    counted = OpenSpans()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(counted)
    counted.tracer = provider.get_tracer("user")
    former = tracing.configure(detail="phase", tracer_provider=provider)
    yield counted
    tracing.configure(detail=former.detail, tracer_provider=former.tracer_provider)


@pp.node
async def add(n: int) -> int:
    await asyncio.sleep(0)
    return n + 1


@pp.node(retry=pp.Retry(attempts=2))
async def fail(n: int) -> int:
    await asyncio.sleep(0)
    raise ValueError(n)


@pp.node(timeout=1)
async def wait(n: int) -> int:
    await asyncio.Event().wait()
    return n


@pp.node
def work(n: int) -> int:
    return n * 2


@pp.node
def stumble(n: int) -> int:
    raise LookupError(n)


class Save(pp.Node[int, int]):
    """Reads and writes, and has something to clean up."""

    async def prep(self, store: pp.StoreReader, n: int) -> int:
        return await store.get("leak:last", 0) or n

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.set("leak:last", n)
        return result

    async def on_complete(self, store: pp.StoreWriter) -> None:
        await store.update("leak:completed", lambda n: n + 1, default=0)


STORE = pp.Store(layers=["tracing"])


@pp.node.post
async def look_through(store: pp.StoreReader, n: int) -> int:
    """Leaves a scan before its end."""
    async for _ in store.keys("leak:"):
        return n
    raise AssertionError("there is a key")


GRAPHS: dict[str, pp.Graph[int, int]] = {
    "well": pp.Graph(add >> Save(), store=STORE, name="well"),
    "nested": pp.Graph(add >> pp.Graph(add >> Save(), name="inner"), store=STORE, name="nested"),
    "error": pp.Graph(add >> pp.Graph(Save() >> fail, name="inner"), store=STORE, name="error"),
    "late": pp.Graph(add >> wait, store=STORE, name="late"),
    "thread": pp.Graph(work >> add, store=STORE, name="thread"),
    "listing": pp.Graph(Save() >> look_through >> add, store=STORE, name="listing"),
    "thread error": pp.Graph(work >> stumble, store=STORE, name="thread_error"),
}
FAN_OUT = pp.Graph(pp.each(pp.Graph(add >> fail, name="item"), concurrency=3), store=STORE, name="fan_out")


async def outcome(run: Awaitable[object]) -> str:
    try:
        await run
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, it is counted
        return type(error).__name__
    return "ok"


async def cancelled(graph: pp.Graph[Any, Any], turns: int, input: object = 1) -> str:
    """Run it, and cancel it after some turns of the loop."""
    run = asyncio.create_task(graph.run(input))
    for _ in range(turns):
        await asyncio.sleep(0)
    run.cancel()
    return await outcome(run)


async def results(n: int) -> AsyncGenerator[str]:
    """A generator of the user's, with runs between its yields."""
    for graph in (GRAPHS["nested"], GRAPHS["error"], GRAPHS["listing"]):
        yield await outcome(graph.run(n))


async def abandoned(wanted: int) -> str:
    """Take some results of a generator, and close it before its end: in a task of its own, as servers do."""
    generator = results(1)
    for _ in range(wanted):
        taken = await anext(generator)
    await asyncio.create_task(generator.aclose())
    return taken


def in_place(graph: pp.Graph[int, int]) -> str:
    try:
        graph.run_sync(1)
    except LookupError as error:
        return type(error).__name__
    return "ok"


async def a_round() -> Counter[str]:
    """A hundred runs, most of them at the same time."""
    ended = Counter(await asyncio.gather(
        *(outcome(GRAPHS["well"].run(n)) for n in range(13)),
        *(outcome(GRAPHS["listing"].run(n)) for n in range(5)),
        *(abandoned(wanted) for wanted in (1, 2)),  # three runs
        *(outcome(GRAPHS["nested"].run(n)) for n in range(10)),
        *(outcome(GRAPHS["error"].run(n)) for n in range(20)),
        *(outcome(FAN_OUT.run(range(5))) for _ in range(3)),
        *(cancelled(FAN_OUT, turns, range(5)) for turns in (4, 9)),
        *(cancelled(GRAPHS["nested"], turns) for turns in range(6)),
        *(cancelled(GRAPHS["late"], turns) for turns in range(14)),
        *(outcome(GRAPHS["late"].run(n)) for n in range(10)),
    ))  # fmt: skip
    for n in range(5):  # one after the other: there is no timer now to which virtual time could jump
        ended[await outcome(GRAPHS["thread"].run(n))] += 1
        ended[await outcome(GRAPHS["thread error"].run(n))] += 1
        ended[in_place(GRAPHS["thread error"])] += 1
    return ended


def objects() -> Counter[str]:
    gc.collect()
    return Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())


def test_nothing_is_left_of_thousands_of_runs(
    spans: OpenSpans,
    new_threads: Callable[[], list[threading.Thread]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No span is open, the current span is unchanged; no context variable, thread, task or object is left.

    Nothing was logged either, such as OpenTelemetry's error about a span of a "different Context".
    """

    async def main() -> Counter[str]:
        ended: Counter[str] = Counter()
        before = [otel_context.get_current(), dict(contextvars.copy_context().items())]
        with spans.tracer.start_as_current_span("request") as request:
            for _ in range(ROUNDS):
                ended += await a_round()
                assert asyncio.all_tasks() == {asyncio.current_task()}
                assert trace.get_current_span() is request
        assert [otel_context.get_current(), dict(contextvars.copy_context().items())] == before
        assert not trace.get_current_span().get_span_context().is_valid
        return ended

    # failed runs are logged as they should be, and pytest would keep all log records
    monkeypatch.setattr(
        logging.getLogger("pocket_plug"), "filters", [lambda record: " run_id=" not in record.getMessage()]
    )
    measures: list[Callable[[], object]] = [lambda: len(new_threads()), lambda: pool().abandoned]
    run_virtual(a_round())  # objects that are made once exist now
    counted, found = objects(), [measure() for measure in measures]

    ended = run_virtual(main())

    assert sum(ended.values()) == ROUNDS * RUNS
    assert {"ok", "ValueError", "LookupError", "NodeTimeoutError", "CancelledError"} == set(ended)
    assert min(ended.values()) >= ROUNDS * 5
    assert [measure() for measure in measures] == found
    grown = {name: more for name, more in (objects() - counted).items() if more > ROUNDS}
    assert grown == {}
    assert spans.began == spans.ended > 20_000
    assert caplog.records == []


class Input:
    """The input of a run; the test waits until it is garbage-collected."""


@pp.node
async def forget(given: Input) -> None:
    await asyncio.sleep(0)


@pp.node
def drop(given: Input) -> None:
    """It keeps no reference to its input."""


@pytest.mark.parametrize("node", [forget, drop], ids=["async", "def"])
def test_the_input_of_a_run_is_released_when_it_ends(node: pp.Node[Input, None]) -> None:
    """No run refers to itself, so nothing waits for the garbage collector."""
    graph = pp.Graph(pp.Graph(node, name="inner"), name="outer")
    graph.run_sync(Input())  # objects that are made once exist now
    given = Input()
    left = weakref.ref(given)
    gc.disable()
    try:
        graph.run_sync(given)
        del given
        assert left() is None
    finally:
        gc.enable()


def test_a_durable_run_releases_its_store_when_it_ends(tmp_path: Path) -> None:
    """While it waits, the heartbeat thread references no execution, nor the store of an ended one."""

    def run() -> weakref.ref[object]:
        with pp.SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
            pp.Graph(add, store=store).run_sync(1, run_id="a")
            return weakref.ref(store.stack)

    left = run()
    gc.collect()
    assert left() is None
