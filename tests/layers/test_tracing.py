"""Tracing: one correct tree of spans, whatever happens, and nothing at all without a tracer provider."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

import pocket_plug as pp
from pocket_plug import Store, SyncStore
from pocket_plug.errors import ConfigError, ConflictError, StoreError
from pocket_plug.hookspecs import NodeCall, Observer, PhaseCall, Run
from pocket_plug.layers import tracing
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.tracing import Tracing
from pocket_plug.layers.tracing.settings import Listening
from pocket_plug.store.backend import Backend, Change, Entry
from pocket_plug.store.keys import Key
from pocket_plug.store.memory import Memory
from pocket_plug.testing.interrupts import Between
from pocket_plug.testing.spans import SpanCapture

PERSON = Key("person:{}", str)
TENANT = Key("firm:{}")


@pytest.fixture
def capture() -> Iterator[SpanCapture]:
    with SpanCapture() as spans:
        yield spans


def observe(run: Run) -> Observer:
    observer = tracing.TracingPlugin().pocket_observe(run)
    assert observer is not None
    return observer


def enter(manager: AbstractContextManager[Any] | None) -> AbstractContextManager[Any]:
    assert manager is not None
    return manager


@contextmanager
def running(run: Run) -> Iterator[Observer]:
    """A run as the runner executes it: the outcome is set before the observer's manager is left."""
    observer = observe(run)
    assert observer.run is not None
    with enter(observer.run(run)):
        try:
            yield observer
        except BaseException as error:
            run.outcome, run.error = "failure", error
            raise
        run.outcome = "success"


def test_a_run_is_one_tree_with_the_documented_names_and_attributes(capture: SpanCapture) -> None:
    """Run, node and phases are nested, and have their attributes of the start and of the end."""
    run = Run("r1", "shop")
    call = NodeCall(run, "charge", "node", 1, phases=("exec", "post"))
    with running(run) as observer:
        assert observer.node
        assert observer.phase
        with enter(observer.node(call)):
            run.steps += 1
            with enter(observer.phase(PhaseCall(call, "exec", attempt=1, timeout=3.0))):
                pass
            with enter(observer.phase(PhaseCall(call, "post"))):
                pass
            call.outcome, call.action, call.next, call.attempts = "ok", "default", "ship", 1
            call.durations.update(exec=0.5)
    assert capture.tree() == [("run shop", [("node charge", ["exec charge", "post charge"])])]
    assert capture.one("run shop").attributes == {
        "pocket_plug.graph.name": "shop", "pocket_plug.run.id": "r1", "pocket_plug.run.resumed": False,
        "pocket_plug.run.outcome": "success", "pocket_plug.run.steps": 1}  # fmt: skip
    assert capture.one("node charge").attributes == {
        "pocket_plug.node.name": "charge", "pocket_plug.node.type": "node", "pocket_plug.node.visit": 1,
        "pocket_plug.run.id": "r1", "pocket_plug.graph.name": "shop", "pocket_plug.node.attempts": 1,
        "pocket_plug.node.outcome": "ok", "pocket_plug.node.action": "default",
        "pocket_plug.node.next": "ship"}  # fmt: skip
    assert capture.one("exec charge").attributes == {
        "pocket_plug.phase": "exec", "pocket_plug.node.name": "charge", "pocket_plug.attempt": 1,
        "pocket_plug.timeout": 3.0}  # fmt: skip
    scopes = {span.name.split()[0]: getattr(span.instrumentation_scope, "name", "") for span in capture.spans}
    assert scopes == {"run": "pocket_plug.graph", "node": "pocket_plug.graph", "exec": "pocket_plug.phase",
                      "post": "pocket_plug.phase"}  # fmt: skip
    assert all(span.instrumentation_scope.schema_url for span in capture.spans)  # type: ignore[union-attr]
    assert capture.open == 0


@pytest.mark.parametrize(("guarded", "below"), [(False, "node a"), (True, ("node a", ["exec a"]))])
def test_at_detail_node_only_guarded_attempts_have_spans(guarded: bool, below: object) -> None:
    """`detail="node"` shows durations as attributes, and attempts if there may be several."""
    run = Run("r", "g")
    call = NodeCall(run, "a", "node", 1, guarded=guarded)
    with SpanCapture(detail="node") as capture, running(run) as observer:
        assert observer.node
        assert observer.phase
        with enter(observer.node(call)):
            for phase in ("prep", "exec", "post"):
                with observer.phase(PhaseCall(call, phase)) or ExitStack():
                    pass
            call.durations.update(prep=0.25, exec=0.5, post=1.0)
    assert capture.tree() == [("run g", [below])]
    attributes = capture.one("node a").attributes
    assert attributes is not None
    assert [attributes[f"pocket_plug.node.{phase}.duration"] for phase in ("prep", "exec", "post")] == [0.25, 0.5, 1.0]


def test_at_detail_run_a_run_is_one_span() -> None:
    """`detail="run"` observes no nodes and shows no store operations."""
    store = SyncStore(layers=[Tracing()])
    with SpanCapture(detail="run") as capture, running(Run("r", "g")) as observer:
        assert observer.node is None
        assert observer.phase is None
        store.get("k")
    assert capture.tree() == ["run g"]


def test_children_of_an_untraced_node_are_below_the_run(capture: SpanCapture) -> None:
    """`trace=False` leaves out the node and its phases, not their children."""
    run = Run("r", "g")
    call = NodeCall(run, "a", "node", 1, trace=False)
    store = SyncStore(layers=[Tracing()])
    with running(run) as observer:
        assert observer.node
        assert observer.phase
        assert observer.node(call) is None
        assert observer.phase(PhaseCall(call, "exec")) is None
        store.get("k")
    assert capture.tree() == [("run g", ["get"])]


def test_an_error_is_recorded_once_where_it_happened_and_marks_all_that_it_passed(capture: SpanCapture) -> None:
    """The exception event is only on the innermost span; every failed span has status and `error.type`."""
    run = Run("r", "g")
    call = NodeCall(run, "a", "node", 1)
    error = ValueError("no funds")
    with pytest.raises(ValueError, match="no funds"), running(run) as observer:
        assert observer.node
        assert observer.phase
        with enter(observer.node(call)):
            try:
                with enter(observer.phase(PhaseCall(call, "exec"))):
                    raise error
            except ValueError:
                call.outcome = "failed"
                raise
    assert capture.tree() == [("run g", [("node a", ["exec a"])])]
    for span in capture.spans:
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "ValueError"
        assert span.attributes is not None
        assert span.attributes["error.type"] == "ValueError"
    assert [(span.name, [event.name for event in span.events]) for span in capture.spans] == [
        ("run g", []), ("node a", []), ("exec a", ["exception"])]  # fmt: skip
    event = dict(capture.one("exec a").events[0].attributes or {})
    assert event.keys() == {"exception.type", "exception.stacktrace"}
    assert event["exception.type"] == "ValueError"
    assert "test_an_error_is_recorded_once" in str(event["exception.stacktrace"])
    assert "no funds" not in str(event["exception.stacktrace"])


def test_an_exception_shared_by_two_runs_is_recorded_in_each(capture: SpanCapture) -> None:
    """This is tracked per run, not marked on the exception."""
    error = ValueError("shared")
    for name in ("one", "two"):
        with pytest.raises(ValueError, match="shared"), running(Run(name, name)):
            raise error
    assert [len(span.events) for span in capture.spans] == [1, 1]


def test_an_error_passes_nested_runs_with_one_event(capture: SpanCapture) -> None:
    """An inner run is below its node and shares the outer run's knowledge of what was recorded."""
    outer = Run("o", "outer")
    call = NodeCall(outer, "sub", "graph", 1)
    with pytest.raises(ValueError, match="deep"), running(outer) as observer:
        assert observer.node
        with enter(observer.node(call)), running(Run("i", "inner", parent=outer, depth=1)):
            call.outcome = "failed"
            raise ValueError("deep")
    assert capture.tree() == [("run outer", [("node sub", ["run inner"])])]
    assert (capture.one("run inner").attributes or {})["pocket_plug.run.parent_id"] == "o"
    assert [len(span.events) for span in capture.spans] == [0, 0, 1]


@pytest.mark.parametrize("outcome", ["ok", "fallback"])
def test_a_retried_or_replaced_error_leaves_its_node_unset(capture: SpanCapture, outcome: Any) -> None:
    """The attempt failed and has the status; the node did not."""
    run = Run("r", "g")
    call = NodeCall(run, "a", "node", 1, guarded=True)
    with running(run) as observer:
        assert observer.node
        assert observer.phase
        with enter(observer.node(call)):
            attempt = PhaseCall(call, "exec")
            with pytest.raises(OSError, match="flaky"), enter(observer.phase(attempt)):
                attempt.will_retry, attempt.delay = True, 0.2
                raise OSError("flaky")
            call.outcome = outcome
    attributes = capture.one("exec a").attributes or {}
    assert capture.one("exec a").status.status_code is StatusCode.ERROR
    assert attributes["pocket_plug.attempt.will_retry"] is True
    assert attributes["pocket_plug.retry.delay"] == 0.2
    assert capture.one("node a").status.status_code is StatusCode.UNSET
    assert "error.type" not in (capture.one("node a").attributes or {})


def test_a_cancellation_has_its_type_but_is_no_failure(capture: SpanCapture) -> None:
    """Cancelled spans stay UNSET, with `error.type` and without an event."""
    run = Run("r", "g")
    call = NodeCall(run, "a", "node", 1)
    observer = observe(run)
    assert observer.run
    assert observer.node
    with pytest.raises(asyncio.CancelledError), enter(observer.run(run)):
        run.outcome = "cancelled"
        with enter(observer.node(call)):
            call.outcome = "cancelled"
            raise asyncio.CancelledError
    for span in capture.spans:
        assert span.status.status_code is StatusCode.UNSET
        assert (span.attributes or {})["error.type"] == "asyncio.exceptions.CancelledError"
        assert not span.events


class Unspeakable(Exception):
    """An exception whose text can't be read."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_exception_whose_str_raises_leaves_no_span_open() -> None:
    """It is recorded by its type, and the context is as before."""
    before = otel_context.get_current()
    with SpanCapture(capture="summary") as capture, pytest.raises(Unspeakable), running(Run("r", "g")):
        raise Unspeakable
    assert capture.open == 0
    assert otel_context.get_current() is before
    assert (capture.one("run g").events[0].attributes or {})["exception.message"] == "(its text can't be read)"


def test_every_text_is_limited_and_valid() -> None:
    """4 KiB of valid UTF-8 at most: one oversized or malformed attribute makes a backend refuse a whole batch."""

    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise ValueError("ü" * 100_000 + "\ud800")

    with SpanCapture(capture="full") as capture, pytest.raises(ValueError, match="ü"), running(Run("r" * 5000, "g")):
        deep(200)
    span = capture.one("run g")
    texts = [*(span.attributes or {}).values(), *(span.events[0].attributes or {}).values(), span.status.description]
    assert all(len(str(text).encode()) <= 4096 for text in texts)
    assert str((span.events[0].attributes or {})["exception.stacktrace"]).count("in test_every") == 16


def test_after_any_failure_inside_a_span_the_context_is_restored(capture: SpanCapture) -> None:
    """If a processor of the user's raises when a span ends, the span was detached before."""

    class Raising(SpanCapture):
        def on_end(self, span: Any) -> None:
            raise RuntimeError("exporter")

    before = otel_context.get_current()
    with Raising(), pytest.raises(RuntimeError, match="exporter"), running(Run("r", "g")):
        assert otel_context.get_current() is not before
    assert otel_context.get_current() is before


def test_spans_that_were_ended_elsewhere_are_left_alone(capture: SpanCapture, caplog: pytest.LogCaptureFixture) -> None:
    """`observe()` ends them when the process gets a signal to end, while the run continues."""
    store = SyncStore(layers=[Tracing()])

    @pp.node
    def work(n: int) -> int:
        around = trace.get_current_span()
        for span in (around, *began):
            span.end()
        store.get("k")
        return n

    began: list[Any] = []
    on_start = capture.on_start
    capture.on_start = lambda span, parent_context=None: (began.append(span), on_start(span))  # type: ignore[method-assign]
    assert pp.Graph(work, name="g").run_sync(1) == 1
    # the test's own one
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")] == [
        "Calling end() on an ended span."
    ]


def test_without_a_provider_a_run_is_silent() -> None:
    """There is no observer, so the run costs one check."""
    with SpanCapture():
        tracing.configure(tracer_provider=trace.NoOpTracerProvider())
        assert tracing.TracingPlugin().pocket_observe(Run("r", "g")) is None
        assert SyncStore(layers=[Tracing()]).get("k") is None


def test_a_stack_built_before_the_provider_is_set_shows_its_layers_too() -> None:
    """At detail "debug" the parts are observed from the beginning, whenever a provider is set."""
    with SpanCapture(detail="debug") as capture:
        tracing.configure(tracer_provider=trace.NoOpTracerProvider())
        store = SyncStore(layers=[Tracing(), Bounding(max_entries=10), "metrics"])
        assert store.get("k") is None
        tracing.configure(tracer_provider=capture.tracer_provider)
        assert store.get("k") is None
    assert capture.tree() == [("get", [("layer bounding", ["layer metrics"])])]


def test_the_provider_that_the_environment_names_is_loaded_by_a_stores_first_operation() -> None:
    """`OTEL_PYTHON_TRACER_PROVIDER` is read by the API; a store calls it as a run does."""
    code = """
import pocket_plug as pp
from opentelemetry import trace
store = pp.SyncStore(layers=["tracing"])
before = trace._TRACER_PROVIDER
store.get("k")
print(before, type(trace._TRACER_PROVIDER).__module__)
"""
    env = os.environ | {"OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "None opentelemetry.sdk.trace\n"), done.stderr


@pytest.mark.parametrize(("layer", "variable"), [("tracing", "TRACER"), ("metrics", "METER")])
def test_a_provider_that_the_environment_names_and_that_isnt_installed_fails_no_store(
    layer: str, variable: str
) -> None:
    """Then there is no tracing, which is logged once: a variable for all programs of a machine fails none of them."""
    code = f"""
import pocket_plug as pp
store = pp.SyncStore(layers=["{layer}"])
for number in range(3):
    store.set("k", number)
print(store.get("k"))

@pp.node
def shout(word: str) -> str:
    return word.upper()

print(pp.Graph(shout, store=store).run_sync("hello"))
"""
    env = os.environ | {f"OTEL_PYTHON_{variable}_PROVIDER": "nowhere_provider"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "2\nHELLO\n"), done.stderr
    assert done.stderr.count(f"loading the provider that OTEL_PYTHON_{variable}_PROVIDER names failed") == 1


def test_an_unsampled_run_has_no_spans_inside() -> None:
    """If the run's span isn't recorded, its nodes, phases and store operations have no spans."""
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    store = SyncStore(layers=[Tracing()])
    run = Run("r", "g")
    call = NodeCall(run, "a", "node", 1)
    with SpanCapture() as capture:
        provider.add_span_processor(capture)
        tracing.configure(tracer_provider=provider)
        with running(run) as observer:
            assert observer.node
            assert observer.phase
            assert observer.node(call) is None
            assert observer.phase(PhaseCall(call, "exec")) is None
            store.get("k")
    assert capture.tree() == []


def test_options_are_checked() -> None:
    """An invalid option is refused; the error says what is allowed."""
    with pytest.raises(ConfigError, match=r"no option 'detial'.* Did you mean 'detail'"):
        tracing.configure(detial="phase")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="detail must be one of run, node, phase, debug, not 'fine'"):
        tracing.configure(detail="fine")  # type: ignore[arg-type]


def test_importing_the_layer_does_not_import_the_sdk() -> None:
    """The SDK is for set-up and tests only."""
    code = ("import sys, pocket_plug.layers.tracing, pocket_plug.layers.metrics, pocket_plug.layers.logging;"
            "print([m for m in sys.modules if m.startswith(('opentelemetry.sdk', 'structlog'))])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- the store
def attributes_of(capture: SpanCapture, name: str) -> Mapping[str, Any]:
    return capture.one(name).attributes or {}


def test_each_store_operation_is_one_span_named_by_its_template(capture: SpanCapture) -> None:
    """Names have low cardinality; the values in the key are never shown."""

    async def main() -> None:
        store = Store(layers=[Tracing()])
        await store.set(PERSON("secret-1"), "Alice")
        await store.get(PERSON("secret-1"))
        await store.get(PERSON("secret-2"))
        await store.scope(TENANT("secret-3")).get(PERSON("secret-4"))
        await store.scope(TENANT("secret-3")).get("secret-5")
        await store.get("secret-6")
        await store.get_many([PERSON("secret-1"), "secret-7"])
        await store.set_many({"secret-8": 1, "secret-9": 2})
        await store.delete(PERSON("secret-1"))
        assert [key async for key in store.keys("secret")] == ["secret-8", "secret-9"]

    asyncio.run(main())
    assert [span.name for span in capture.spans] == [
        "set person:{}", "get person:{}", "get person:{}", "get firm:{}:person:{}", "get firm:{}", "get", "get_many",
        "write", "get person:{}", "delete person:{}", "scan"]  # fmt: skip
    assert attributes_of(capture, "set person:{}") == {"db.system.name": "memory", "db.operation.name": "set"}
    hits = [
        (span.attributes or {}).get("pocket_plug.store.hit") for span in capture.spans if span.name == "get person:{}"
    ]
    assert hits == [True, False, True]
    assert attributes_of(capture, "get_many")["pocket_plug.store.size"] == 2
    assert "db.operation.batch.size" not in attributes_of(capture, "get_many")  # by the conventions for Redis' MGET
    assert attributes_of(capture, "get_many")["db.response.returned_rows"] == 1
    assert attributes_of(capture, "write")["db.operation.batch.size"] == 2
    assert attributes_of(capture, "scan")["db.response.returned_rows"] == 2
    assert "secret" not in repr([(span.name, dict(span.attributes or {})) for span in capture.spans])
    assert all(span.status.status_code is StatusCode.UNSET for span in capture.spans)
    assert capture.open == 0


def test_a_key_built_at_run_time_is_not_shown(capture: SpanCapture) -> None:
    """`Key(f"user:{id}")` is refused by pyright only: neither its text nor a part of it is in a span's name."""
    store = SyncStore(layers=[Tracing()])
    for user in ("secret-1", "secret-2"):
        store.set(Key(f"user:{user}"), 1)
        store.get(Key(f"user:{user}"))
        store.scope(Key(f"user:{user}")).get(PERSON("secret-3"))
    assert [span.name for span in capture.spans] == ["set", "get", "get person:{}"] * 2


def calls_in(work: Callable[[], object]) -> Counter[str]:
    """Which functions the work calls, and how often: its cost, without a clock."""
    found: Counter[str] = Counter()

    def count(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            found[frame.f_code.co_qualname if event == "call" else argument.__qualname__] += 1

    gc.disable()  # callbacks of the garbage collector are no part of the work
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


def test_many_different_keys_cost_what_one_costs() -> None:
    """The last of 10^5 keys takes the same steps as the first, traced too; no data of them stays."""
    store = SyncStore(layers=[Tracing()])

    def get(number: int) -> None:
        store.get(Key(f"user:{number}"))
        store.get(PERSON(number))

    with SpanCapture():
        get(0)
        first = calls_in(lambda: get(1))
    for number in range(100_000):
        get(number)
    with SpanCapture() as capture:
        get(0)
        assert calls_in(lambda: get(100_001)) == first
        assert [span.name for span in capture.spans] == ["get", "get person:{}"] * 2
    gc.collect()
    assert not [key for key in gc.get_objects() if isinstance(key, Key) and key.template.startswith("user:1000")]


def test_store_spans_are_children_of_the_task_and_the_thread_they_are_in(capture: SpanCapture) -> None:
    """Parents are right with gather and in threads that got the context."""
    store = Store(layers=[Tracing()])
    tracer = capture.tracer_provider.get_tracer("test")

    async def branch(name: str) -> None:
        with tracer.start_as_current_span(name):
            await asyncio.sleep(0)
            await store.set("x", name)
            await asyncio.to_thread(store.sync.get, "x")

    async def main() -> None:
        await asyncio.gather(*map(branch, "abc"))

    asyncio.run(main())
    assert sorted(capture.tree()) == [("a", ["set", "get"]), ("b", ["set", "get"]), ("c", ["set", "get"])]


class Network(Backend):
    """Suspends, as a backend across a network does, and fails on demand."""

    system = "postgresql"
    address = ("db.internal", 5432)

    def __init__(self) -> None:
        self.fails: BaseException | None = None
        self.seen: list[str] = []

    def _seen(self) -> None:
        self.seen.append(getattr(trace.get_current_span(), "name", "nothing"))

    async def read(self, key: str) -> Entry | None:
        self._seen()
        await asyncio.sleep(0)
        if self.fails is not None:
            raise self.fails
        return Entry("v", 1)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        self._seen()
        if self.fails is not None:
            raise self.fails
        return 1

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        for key in ("a", "b"):
            self._seen()
            await asyncio.sleep(0)
            yield key
        if self.fails is not None:
            raise self.fails


def test_what_a_network_backend_does_is_below_its_operation(capture: SpanCapture) -> None:
    """The operation's span is current inside, with kind CLIENT."""
    backend = Network()
    asyncio.run(Store(backend, layers=[Tracing()]).get("k"))
    assert backend.seen == ["get"]
    assert capture.one("get").kind is SpanKind.CLIENT
    found = attributes_of(capture, "get")
    assert (found["db.system.name"], found["server.address"], found["server.port"]) == (
        "postgresql",
        "db.internal",
        5432,
    )


def test_a_backend_with_a_loop_is_not_a_client_for_that_reason(capture: SpanCapture) -> None:
    """A backend that names no database and no server is within the process: its spans are INTERNAL, and name none."""
    backend = Network()
    backend.system, backend.address = "", None
    asyncio.run(Store(backend, layers=[Tracing()]).get("k"))
    assert capture.one("get").kind is SpanKind.INTERNAL
    assert not [name for name in attributes_of(capture, "get") if name.startswith("server.")]


def test_a_failing_backend_is_an_error_and_a_miss_is_not(capture: SpanCapture) -> None:
    """Status, `error.type` and the event are on the operation, and not repeated on the run that it ends."""
    backend = Network()
    backend.fails = StoreError("disk on fire")
    store = Store(backend, layers=[Tracing()])
    with pytest.raises(StoreError), running(Run("r", "g")):
        asyncio.run(store.get("k"))
    span = capture.one("get")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "pocket_plug.errors.StoreError"
    assert [event.name for event in span.events] == ["exception"]
    assert not capture.one("run g").events


@pytest.mark.parametrize("error", [ConflictError(["k"]), asyncio.CancelledError()])
def test_conflicts_and_cancellations_are_recorded_but_no_failures(capture: SpanCapture, error: BaseException) -> None:
    """They are normal for a store: UNSET, with their type."""
    backend = Network()
    backend.fails = error
    with pytest.raises(type(error)):
        asyncio.run(Store(backend, layers=[Tracing()]).set("k", 1))
    span = capture.one("set")
    assert span.status.status_code is StatusCode.UNSET
    assert str((span.attributes or {})["error.type"]).endswith(type(error).__name__)
    assert not span.events


def test_a_scan_has_no_open_span_while_the_caller_has_the_key(capture: SpanCapture) -> None:
    """What the caller does between two keys is neither below the scan nor in its duration; an early end is traced."""

    async def main() -> None:
        store = Store(Network(), layers=[Tracing()])
        async for _ in store.keys():
            assert capture.open == 0
            assert not trace.get_current_span().is_recording()
            break

    asyncio.run(main())
    assert attributes_of(capture, "scan")["db.response.returned_rows"] == 1
    assert capture.open == 0


def test_a_failing_scan_is_recorded(capture: SpanCapture) -> None:
    """Its span has the error."""
    backend = Network()
    backend.fails = StoreError("gone")

    async def main() -> None:
        async for _ in Store(backend, layers=[Tracing()]).keys():
            pass

    with pytest.raises(StoreError):
        asyncio.run(main())
    assert capture.one("scan").status.status_code is StatusCode.ERROR


def test_a_remote_parent_is_continued(capture: SpanCapture) -> None:
    """A traceparent from another process makes the operation part of its trace."""
    remote = NonRecordingSpan(SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    token = otel_context.attach(trace.set_span_in_context(remote))
    try:
        SyncStore(layers=[Tracing()]).get("k")
    finally:
        otel_context.detach(token)
    context = capture.one("get").get_span_context()
    assert context is not None
    assert context.trace_id == 7


@pytest.mark.parametrize("sampled", [True, False])
def test_a_parent_that_is_only_known_by_its_ids_decides_by_its_flag(capture: SpanCapture, sampled: bool) -> None:
    """A program may pass the ids of a span on, in this process too. What is inside is dropped only if that span was."""
    known = NonRecordingSpan(SpanContext(7, 9, is_remote=False, trace_flags=TraceFlags(sampled)))
    token = otel_context.attach(trace.set_span_in_context(known))
    try:
        SyncStore(layers=[Tracing()]).get("k")
    finally:
        otel_context.detach(token)
    parents = [span.parent.span_id for span in capture.spans if span.parent is not None]
    assert parents == [9] * sampled


def test_operations_after_the_end_of_the_span_around_are_traced(capture: SpanCapture) -> None:
    """A task may outlive the request that has started it."""
    store = Store(layers=[Tracing()])

    async def later(request_is_over: asyncio.Event) -> None:
        await request_is_over.wait()
        await store.set(PERSON(1), "Ada")
        await store.get(PERSON(1))

    async def main() -> None:
        over = asyncio.Event()
        with capture.tracer_provider.get_tracer("web").start_as_current_span("request"):
            task = asyncio.create_task(later(over))
        over.set()
        await task

    asyncio.run(main())
    request = capture.one("request").context
    assert [(span.name, span.parent) for span in capture.spans[1:]] == [
        ("set person:{}", request),
        ("get person:{}", request),
    ]


class RaisingSampler(Sampler):
    """A user's sampler with a bug."""

    def should_sample(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("sampler")

    def get_description(self) -> str:
        return "raises"


def test_tracing_that_fails_never_fails_the_store(caplog: pytest.LogCaptureFixture) -> None:
    """A sampler or span processor that raises costs the span, not the operation; it is logged once."""

    class RaisingProcessor(SpanCapture):
        def on_end(self, span: Any) -> None:
            raise LookupError("exporter")

    with SpanCapture():
        tracing.configure(tracer_provider=TracerProvider(sampler=RaisingSampler(), shutdown_on_exit=False))
        store = SyncStore(layers=[Tracing()])
        store.set("k", 1)
        assert store.get("k") == 1
    with RaisingProcessor():
        assert store.get("k") == 1
    said = [record.getMessage() for record in caplog.records if record.name == "pocket_plug"]
    assert [text.split(": ")[1] for text in said] == ["RuntimeError", "LookupError"]


def test_threads_share_one_traced_store(capture: SpanCapture) -> None:
    """Eight threads, one store: every operation has its span, none stays open."""
    store = SyncStore(layers=[Tracing()])

    def work() -> None:
        for _ in range(50):
            store.update("hits", lambda n: n + 1, default=0)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("hits") == 400
    assert capture.open == 0
    assert sum(span.name == "set" for span in capture.spans) >= 400


def test_a_scan_without_tracing_is_the_inner_one() -> None:
    """Without a provider the layer is not between the caller and the keys."""
    memory = Memory()
    with SpanCapture():
        tracing.configure(tracer_provider=trace.NoOpTracerProvider())
        layer = Tracing().build(memory)
        assert type(layer.scan()) is type(memory.scan())
        assert layer.scan().__class__.__name__ == "async_generator"


# ---------------------------------------------------------------- through the runner
@pp.node
async def double(n: int) -> int:
    return 2 * n


class Remember(pp.Node[int, int]):
    """Reads, works, writes."""

    async def prep(self, store: pp.StoreReader, n: int, /) -> int:
        return n + (await store.get(PERSON("last"), "") == "x")

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int, /) -> int:
        await store.set(PERSON("last"), str(result))
        return result


def test_a_real_run_gives_the_whole_tree(capture: SpanCapture) -> None:
    """Nested graphs, phases and store operations are at the right place; the commit is below the node."""
    inner = pp.Graph(Remember(), name="inner")
    graph = pp.Graph(double >> inner, store=Store(layers=[Tracing()]), name="outer")
    assert asyncio.run(graph.run(4)) == 8
    remember = [("prep remember", ["get person:{}"]), "post remember", "set person:{}"]
    assert capture.tree() == [
        (
            "run outer",
            [("node double", ["exec double"]), ("node inner", [("run inner", [("node remember", remember)])])],
        )
    ]
    assert capture.open == 0


def test_sync_runs_and_their_threads_give_the_same_tree(capture: SpanCapture) -> None:
    """`run_sync` and `def` phases in worker threads keep their parents."""

    @pp.node
    def work(n: int) -> int:
        store.get(PERSON("x"))
        return n

    store = SyncStore(layers=[Tracing()])
    graph = pp.Graph(work, name="g")
    graph.run_sync(1)
    asyncio.run(graph.run(1))
    assert capture.tree() == 2 * [("run g", [("node work", [("exec work", ["get person:{}"])])])]


def test_a_successful_retry_leaves_the_node_and_the_run_unset(capture: SpanCapture) -> None:
    """Each attempt has a span below the node."""
    tries = iter([OSError("flaky"), None])

    @pp.node(retry=pp.Retry(attempts=2))
    async def flaky(n: int) -> int:
        if error := next(tries):
            raise error
        return n

    asyncio.run(pp.Graph(flaky, name="g").run(1))
    assert capture.tree() == [("run g", [("node flaky", ["exec flaky", "exec flaky"])])]
    assert [span.status.status_code for span in capture.spans] == [
        StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR, StatusCode.UNSET]  # fmt: skip
    assert (capture.one("node flaky").attributes or {})["pocket_plug.node.attempts"] == 2


def test_a_cancelled_run_closes_every_span_and_leaks_no_context(capture: SpanCapture) -> None:
    """Cancelled in the middle of exec: outcome cancelled, no open span, the caller's context as before."""

    async def main() -> None:
        entered = asyncio.Event()

        @pp.node
        async def wait(n: int) -> int:
            entered.set()
            await asyncio.Event().wait()
            return n

        task = asyncio.create_task(pp.Graph(wait, name="g").run(1))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not trace.get_current_span().is_recording()

    asyncio.run(main())
    assert capture.tree() == [("run g", [("node wait", ["exec wait"])])]
    assert capture.open == 0
    assert (capture.one("run g").attributes or {})["pocket_plug.run.outcome"] == "cancelled"
    assert all(span.status.status_code is StatusCode.UNSET for span in capture.spans)


def test_settings_that_change_in_the_middle_of_their_change_wait_for_nothing() -> None:
    """A SIGTERM closes what `observe` returned, in a thread that may be just changing the settings, or making a Pocket."""

    def sweep() -> None:
        for use in (tracing.configure, Listening):
            for place in itertools.count(1):
                with Between(place, tracing.configure) as between:
                    use()
                if not between.where:
                    break
        swept.append(place)

    swept: list[int] = []
    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    thread.join(60)
    assert swept, "a deadlock"
