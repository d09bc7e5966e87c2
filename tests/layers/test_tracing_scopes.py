"""More in traces: sessions, a run's origin, baggage, attributes, layers, and scopes that are off."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NoOpTracer, Span, SpanContext, StatusCode, Tracer, TracerProvider

import pocket_plug as pp
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.errors import ConfigError, RunSuspendedError
from pocket_plug.layers import Bounding, Metrics, Tracing, tracing
from pocket_plug.layers.tracing.stores import Probe
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.propagation import inject, session
from pocket_plug.store.backend import Backend, Entry
from pocket_plug.store.layer import Layer, parts
from pocket_plug.testing.layer_contract import FaultyMemory
from pocket_plug.testing.spans import SpanCapture

ELSEWHERE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PRICE = pp.Key("toll:{}", int)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def place(span: ReadableSpan) -> tuple[int, int]:
    return context_of(span).trace_id, context_of(span).span_id


@pp.node
def halve(n: int) -> int:
    return n // 2


@pp.node
def double(n: int) -> int:
    return 2 * n


@contextmanager
def carrying(**entries: str) -> Iterator[None]:
    """A block with entries of baggage."""
    context = otel_context.get_current()
    for name, value in entries.items():
        context = baggage.set_baggage(name, value, context)
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


# ---------------------------------------------------------------- sessions
def sessions(capture: SpanCapture) -> dict[str, Any]:
    return {span.name: attributes(span).get("session.id") for span in capture.spans if span.name.startswith("run ")}


def test_runs_have_their_session() -> None:
    """Nested ones too; outside of a session there is none."""
    inner = pp.Graph(halve, name="inner")
    with SpanCapture() as capture:
        with session("chat-17"):
            pp.Graph(double >> inner, name="outer").run_sync(1)
        inner.with_options(name="alone").run_sync(1)
    assert [attributes(span).get("session.id") for span in capture.spans if span.name.startswith("run ")] == [
        "chat-17", "chat-17", None]  # fmt: skip


def approval(store: pp.Store | None = None) -> pp.Graph[int, Any]:
    ask = pp.Ask[int, bool](bool, question=lambda n: f"Is {n} right?", name="ask")

    @pp.node
    def answered(given: pp.Answered[int, bool]) -> bool:
        return given.answer

    nested = pp.Graph(double, name="nested")
    return pp.Graph(nested >> ask >> answered, name="approval", store=store)


@asynccontextmanager
async def stored(folder: Path) -> AsyncIterator[pp.Store]:
    async with pp.Store(f"sqlite:///{folder / 'state.db'}") as store:
        yield store


async def suspended_and_resumed(folder: Path, first: str | None, second: str | None) -> Any:
    """A durable run that waits for an answer and gets it, each in a session or in none."""
    pocket = Pocket(autoload=False)
    async with stored(folder) as store:
        with pytest.raises(RunSuspendedError), session(first) if first else carrying():
            await approval(store).run(3, run_id="r-1", pocket=pocket)
    async with stored(folder) as store:
        with session(second) if second else carrying():
            return await approval(store).resume("r-1", answer=True, pocket=pocket)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(None, None, "r-1"), ("chat-17", None, "chat-17"), ("chat-17", "chat-18", "chat-17"), (None, "chat-18", "r-1")],
)
def test_a_durable_run_keeps_its_session(tmp_path: Path, first: Any, second: Any, expected: str) -> None:
    """Without a session, its id is its session; the process that resumes it finds the same."""
    with SpanCapture("run") as capture:
        assert asyncio.run(suspended_and_resumed(tmp_path, first, second)) is True
    assert [attributes(span)["session.id"] for span in capture.spans] == [expected] * len(capture.spans)
    assert len(capture.spans) == 3
    resumed = [attributes(span)["pocket_plug.run.resumed"] for span in capture.spans if span.name == "run approval"]
    assert resumed == [False, True]


def test_messages_of_a_durable_run_have_its_session(tmp_path: Path) -> None:
    """`inject` within its nodes includes its session, even if that is only its own id."""
    sent: list[dict[str, str]] = []

    @pp.node
    def send(n: int) -> int:
        sent.append(inject())
        return n

    async def main() -> None:
        async with stored(tmp_path) as store:
            await pp.Graph(send, name="g", store=store).run(1, run_id="r-1", pocket=Pocket(autoload=False))

    with SpanCapture() as capture:
        asyncio.run(main())
    assert sent[0]["session.id"] == "r-1"
    assert sent[0]["traceparent"].split("-")[2] == f"{place(capture.one('exec send'))[1]:016x}"


# ---------------------------------------------------------------- the origin of a run
@pytest.mark.parametrize("way", ["link", "parent"])
def test_a_resumed_run_is_linked_or_a_child(tmp_path: Path, way: Any) -> None:
    """A trace of its own with a link, or one trace for both; in each case only once."""
    with SpanCapture("run", resume_trace=way) as capture:
        asyncio.run(suspended_and_resumed(tmp_path, None, None))
    first, second = (span for span in capture.spans if span.name == "run approval")
    if way == "link":
        assert second.parent is None
        assert [(link.context.trace_id, link.context.span_id) for link in second.links] == [place(first)]
        assert context_of(second).trace_id != context_of(first).trace_id
    else:
        assert second.parent is not None
        assert (second.parent.trace_id, second.parent.span_id) == place(first)
        assert not second.links
        assert context_of(second).trace_id == context_of(first).trace_id


def test_a_submitted_run_is_linked_to_its_submitter(tmp_path: Path) -> None:
    """The link says that it is no former execution; and the span of the write with the checkpoint has its name."""

    @pp.node
    async def send(n: int) -> int:
        return n

    async def main() -> None:
        async with pp.Store(f"sqlite:///{tmp_path / 'state.db'}", layers=["tracing"]) as store:
            graph = pp.Graph(send, name="g", store=store)
            await graph.submit(1, run_id="r-1", traceparent=ELSEWHERE)
            with SpanCapture() as capture:
                await graph.run(1, run_id="r-1")
            (link,) = capture.one("run g").links
            assert link.attributes == {"pocket_plug.link": "submitter"}
            assert f"{link.context.span_id:016x}" == ELSEWHERE.split("-")[2]
            assert capture.one("write checkpoint").parent is not None

    asyncio.run(main())


def test_polling_for_durable_runs_starts_no_trace(tmp_path: Path) -> None:
    """A worker without work polls every second: otherwise backends would get thousands of such traces."""

    async def main() -> None:
        async with pp.Store(f"sqlite:///{tmp_path / 'state.db'}", layers=["tracing"]) as store:
            graph = approval(store)
            with SpanCapture() as capture:
                await pp.Worker([graph]).run(once=True)
                await graph.submit(3, run_id="r-1")
                assert capture.tree() == []
                await pp.Worker([graph]).run(once=True)
            assert [span.name for span in capture.spans if span.parent is None] == ["run approval"]
            with SpanCapture() as capture:
                await pp.Worker([graph]).run(once=True)
                await pp.Runs(store).list()
                await pp.Runs(store).answer("r-1", True)
            assert capture.tree() == []

    asyncio.run(main())


@pytest.mark.parametrize("is_over", [False, True])
def test_a_worker_within_a_span_polls_without_spans(tmp_path: Path, is_over: bool) -> None:
    """A program may start it within a span, which stays open as long as the worker runs, or has ended by then."""

    async def main() -> None:
        async with pp.Store(f"sqlite:///{tmp_path / 'state.db'}", layers=["tracing"]) as store:
            with SpanCapture() as capture, capture.tracer_provider.get_tracer("user").start_as_current_span("s") as s:
                if is_over:
                    s.end()
                await pp.Worker([approval(store)]).run(once=True)
            assert capture.tree() == ["s"]

    asyncio.run(main())


def test_a_child_of_the_former_execution_is_linked_to_the_span_around_it(tmp_path: Path) -> None:
    """The request that resumed it can be found from it."""
    with SpanCapture("run", resume_trace="parent") as capture:
        tracer = capture.tracer_provider.get_tracer("user")
        pocket = Pocket(autoload=False)

        async def main() -> None:
            async with stored(tmp_path) as store:
                with pytest.raises(RunSuspendedError):
                    await approval(store).run(3, run_id="r-1", pocket=pocket)
                with tracer.start_as_current_span("request"):
                    await approval(store).resume("r-1", answer=True, pocket=pocket)

        asyncio.run(main())
    first, second = (span for span in capture.spans if span.name == "run approval")
    assert second.parent is not None
    assert second.parent.span_id == context_of(first).span_id
    assert [link.context.span_id for link in second.links] == [context_of(capture.one("request")).span_id]
    assert [link.attributes for link in second.links] == [{"pocket_plug.link": "caller"}]


@pytest.mark.parametrize(
    "given", [ELSEWHERE, {"traceparent": ELSEWHERE, "session.id": "chat-17"}], ids=["text", "carrier"]
)
def test_a_run_continues_the_trace_that_it_was_given(given: Any) -> None:
    """Its outermost span is a child of the remote one, whatever is current; nested spans are at their usual place."""
    with SpanCapture("run") as capture, capture.tracer_provider.get_tracer("user").start_as_current_span("request"):
        pp.Graph(double >> pp.Graph(halve, name="inner"), name="outer").run_sync(1, traceparent=given)
    outer, inner = capture.one("run outer"), capture.one("run inner")
    assert outer.parent is not None
    assert (outer.parent.trace_id, outer.parent.span_id) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
    assert outer.parent.is_remote
    assert inner.parent is not None
    assert inner.parent.span_id == context_of(outer).span_id
    expected = None if isinstance(given, str) else "chat-17"
    assert sessions(capture) == {"run outer": expected, "run inner": expected}


def test_an_invalid_context_is_ignored() -> None:
    """The run is then below the current span, as without a context."""
    with SpanCapture("run") as capture, capture.tracer_provider.get_tracer("user").start_as_current_span("request"):
        pp.Graph(halve, name="g").run_sync(1, traceparent="nonsense")
    assert capture.tree() == [("request", ["run g"])]


# ---------------------------------------------------------------- baggage
def test_baggage_is_on_spans_only_if_it_is_named() -> None:
    """Under its own name, on every span of ours; other baggage is on none, and none of our attributes is replaced."""
    store = pp.SyncStore(layers=["tracing"])

    @pp.node
    def look(n: int) -> int:
        store.get(PRICE("eu"))
        return n

    graph = pp.Graph(look, name="g")
    everything = {"tenant": "acme", "password": "s3cr3t", "pocket_plug.run.id": "forged"}
    with SpanCapture() as capture, carrying(**everything):
        graph.run_sync(1)
    assert all("tenant" not in attributes(span) for span in capture.spans)
    with SpanCapture(baggage=["tenant", "pocket_plug.run.id", "absent"]) as capture, carrying(**everything):
        graph.run_sync(1)
    assert [span.name for span in capture.spans] == ["run g", "node look", "exec look", "get toll:{}"]
    for span in capture.spans:
        assert attributes(span)["tenant"] == "acme"
        assert "absent" not in attributes(span)
        assert "password" not in attributes(span)
    assert attributes(capture.one("run g"))["pocket_plug.run.id"] != "forged"


@pytest.mark.parametrize("names", [[], ["tenant"]])
def test_a_checkpoint_keeps_the_named_baggage(tmp_path: Path, names: list[str]) -> None:
    """And nothing else of it; the resuming execution has it again."""

    async def main() -> Mapping[str, str]:
        pocket = Pocket(autoload=False)
        async with stored(tmp_path) as store:
            with carrying(tenant="acme", password="s3cr3t"), pytest.raises(RunSuspendedError):  # noqa: S106
                await approval(store).run(3, run_id="r-1", pocket=pocket)
            entry = await store.stack.read("pocket:run:r-1")
            assert entry is not None
            await approval(store).resume("r-1", answer=True, pocket=pocket)
        return dict(entry.value["carrier"])

    with SpanCapture("run", baggage=names) as capture:
        carrier = asyncio.run(main())
    assert carrier.pop("baggage", "") == ("tenant=acme" if names else "")
    assert carrier.keys() == {"traceparent", "session.id"}
    tenants = [attributes(span).get("tenant") for span in capture.spans if span.name == "run approval"]
    assert tenants == (["acme", "acme"] if names else [None, None])


def test_baggage_of_a_carrier_is_used_only_if_it_is_named() -> None:
    """Other programs' baggage is no attribute by default."""
    carrier = {"traceparent": ELSEWHERE, "baggage": "tenant=acme,password=s3cr3t"}
    with SpanCapture("run", baggage=["tenant"]) as capture:
        pp.Graph(halve, name="g").run_sync(1, traceparent=carrier)
    assert attributes(capture.one("run g"))["tenant"] == "acme"
    assert "password" not in attributes(capture.one("run g"))


# ---------------------------------------------------------------- the graph
def test_a_run_span_has_its_graph() -> None:
    """The version always; nodes and edges, also those not taken, if every phase is shown."""

    class Fork(pp.Node[int, int]):
        odd = pp.Action[int]()

        def exec(self, n: int) -> int:
            return n

    fork = Fork()
    graph = pp.Graph(fork >> pp.Graph(halve, name="sub"), fork.odd >> double, double >> fork, name="g")
    for detail in ("run", "node", "phase", "debug"):
        with SpanCapture(detail) as capture:  # type: ignore[arg-type]
            graph.run_sync(4)
        own = attributes(capture.one("run g"))
        assert own["pocket_plug.graph.version"] == graph.plan.shape.version
        shown = detail in ("phase", "debug")
        assert own.get("pocket_plug.graph.nodes") == (("fork\tnode", "sub\tgraph", "double\tnode") if shown else None)
        edges = ("fork\tdefault\tsub", "fork\todd\tdouble", "double\tdefault\tfork")
        assert own.get("pocket_plug.graph.edges") == (edges if shown else None)


def test_a_graph_that_is_too_large_for_an_attribute_is_cut() -> None:
    """4 KiB of nodes, and of edges: whole ones."""
    names = [f"{'n' * 60}_{number}" for number in range(100)]
    chain: Any = halve.with_options(name="first")
    for name in names:
        chain = chain >> halve.with_options(name=name)
    with SpanCapture("phase") as capture:
        pp.Graph(chain, name="g").run_sync(1)
    for name in ("nodes", "edges"):
        texts = attributes(capture.one("run g"))[f"pocket_plug.graph.{name}"]
        assert 3900 < sum(map(len, texts)) <= 4096
        assert all(text.count("\t") == (1 if name == "nodes" else 2) for text in texts)


# ---------------------------------------------------------------- the option `trace` of a node
def test_a_node_is_traced_or_not() -> None:
    """Anything but attributes is refused when it is written; the error names the node and what is allowed."""
    with pytest.raises(
        ConfigError, match=r"node 'halve': trace can't be a str of 5 characters; give True, False, or a mapping"
    ):
        halve.with_options(trace="agent")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="node 'odd': trace can't be a str of"):
        pp.node(name="odd", trace="no")(lambda n: n)  # type: ignore[call-overload]


# ---------------------------------------------------------------- the store
def test_a_store_has_a_namespace() -> None:
    """The layer's option, as for metrics."""
    with SpanCapture() as capture:
        store = pp.SyncStore(layers=[Tracing(namespace="orders")])
        store.get("k")
        store.set("k", 1)
        store.get_many(["k"])
        assert list(store.keys()) == ["k"]
    assert [attributes(span)["db.namespace"] for span in capture.spans] == ["orders"] * 4


def test_two_layers_of_a_stack_are_distinguished_by_label() -> None:
    """The spans of two tracing layers, and at detail "debug" those of any two layers of one class."""
    label = "pocket_plug.layer.label"
    with SpanCapture("debug") as capture:
        bounds = [Bounding(max_entries=9, label=name) for name in ("near", "far")]
        layers = [Tracing(label="outer"), bounds[0], Tracing(label="inner"), bounds[1]]
        store = pp.SyncStore(layers=layers)
        store.set("k", 1)
    found = [(span.name, attributes(span).get(label)) for span in capture.spans]
    assert [each for each in found if each[0] == "set"] == [("set", "outer"), ("set", "inner")]
    assert {("layer bounding", "near"), ("layer bounding", "far"), ("layer tracing", "inner")} <= {*found}


class Upper(Layer):
    """Overrides only reads."""

    async def read(self, key: str) -> Entry | None:
        return await self.inner.read(key)


def test_at_debug_each_part_of_the_stack_has_a_span() -> None:
    """Below the operation's, nested as the stack is; a layer that only passes it on has none."""
    with SpanCapture("debug") as capture:
        store = pp.Store(FaultyMemory(), layers=["tracing", Metrics(), Upper(), Bounding(max_entries=9)])

        async def main() -> None:
            await store.set(PRICE("eu"), 3)
            await store.get(PRICE("eu"))
            await store.get_many([PRICE("eu"), PRICE("us")])

        asyncio.run(main())
    below: Any = ("layer bounding", ["backend faultymemory"])
    assert capture.tree() == [
        ("set toll:{}", [("layer metrics", [below])]),
        ("get toll:{}", [("layer metrics", [("layer upper", [below])])]),
        # the first and the last check whether it is one moment
        ("get_many", [("layer metrics", [("layer upper", 4 * [below])])]),
    ]
    assert attributes(capture.spans[1]) == {"pocket_plug.layer": "metrics", "db.operation.name": "write"}
    assert capture.open == 0


def test_bounding_by_memory_stays_so_at_debug() -> None:
    """Bounding directly over Memory is done by Memory: debugging doesn't change that."""
    with SpanCapture("debug") as capture:
        store = pp.SyncStore(layers=["tracing", Bounding(max_entries=1)])
        store.set(PRICE("a"), 1)
        store.set(PRICE("b"), 2)
        assert store.get(PRICE("a")) is None
    assert [type(part).__name__ for part in parts(store.stack)] == ["Stack", "Tracing", "Probe", "Bounding", "Memory"]
    assert capture.tree() == [
        ("set toll:{}", ["layer bounding"]), ("set toll:{}", ["layer bounding"]),
        ("get toll:{}", ["layer bounding"])]  # fmt: skip


def test_an_error_passes_the_layers_with_one_event() -> None:
    """Each span is marked, and the error is recorded where it happened."""
    backend = FaultyMemory()
    with SpanCapture("debug") as capture:
        store = pp.Store(backend, layers=["tracing", Bounding(max_entries=9)])

        @pp.node
        async def look(n: int) -> int:
            await store.get("k")
            return n

        backend.error = pp.StoreError("disk on fire")
        with pytest.raises(pp.StoreError):
            asyncio.run(pp.Graph(look, name="g").run(1))
    assert {span.status.status_code for span in capture.spans} == {StatusCode.ERROR}
    assert [span.name for span in capture.spans if span.events] == ["backend faultymemory"]


def test_without_debug_a_stack_is_unchanged() -> None:
    """Nothing is put between its parts, so it costs nothing; a stack that was built at debug stops making such spans."""
    for detail in ("run", "node", "phase"):
        with SpanCapture(detail):  # type: ignore[arg-type]
            store = pp.SyncStore(layers=["tracing", "metrics"])
        assert not any(isinstance(part, Probe) for part in parts(store.stack))
    with SpanCapture("debug"):
        store = pp.SyncStore(FaultyMemory(), layers=["tracing"])
    with SpanCapture("phase") as capture:
        store.get("a name of no Key")
    assert capture.tree() == ["get"]


# ---------------------------------------------------------------- scopes that are off
class Partly(TracerProvider):
    """A provider that gives some scopes a tracer which records nothing, as a tracer configurator does."""

    def __init__(self, inner: TracerProvider, off: Sequence[str], silent: Tracer) -> None:
        self._inner, self._off, self._silent = inner, [f"pocket_plug.{scope}" for scope in off], silent

    def get_tracer(self, name: str, *others: Any, **more: Any) -> Tracer:
        return self._silent if name in self._off else self._inner.get_tracer(name, *others, **more)


class Invalid(NoOpTracer):
    """A provider that returns no span at all, as older versions of OpenTelemetry do."""

    def start_span(self, *arguments: Any, **more: Any) -> Span:
        return trace.INVALID_SPAN


def work() -> pp.Graph[int, Any]:
    """Some of everything: nested, fanned out, store operations, and the user's own spans in the middle."""

    class Priced(pp.Node[int, int], retry=pp.Retry(attempts=2)):
        async def prep(self, store: pp.StoreReader, n: int) -> int:
            await store.get(PRICE("eu"), default=0)
            return n

        async def exec(self, n: int) -> int:
            with trace.get_tracer("user", tracer_provider=tracing.configure().tracer_provider).start_as_current_span(
                "own"
            ):
                return n

        async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
            await store.set(PRICE("eu"), n)
            return result

    @pp.node
    async def spread(n: int) -> list[int]:
        return [n, n]

    inner = pp.Graph(Priced(), name="inner")
    return pp.Graph(inner >> spread >> pp.each(halve), name="outer", store=pp.Store(layers=["tracing"]))


def tree(spans: Sequence[ReadableSpan], off: Sequence[str] = ()) -> list[Any]:
    """The names by parent; as if some scopes' spans didn't exist, and their children had moved up."""
    names = [f"pocket_plug.{scope}" for scope in off]
    hidden = {context_of(span).span_id: span.parent for span in spans
              if span.instrumentation_scope and span.instrumentation_scope.name in names}  # fmt: skip
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in spans:
        if context_of(span).span_id not in hidden:
            parent = span.parent
            while parent is not None and parent.span_id in hidden:
                parent = hidden[parent.span_id]
            children.setdefault(parent.span_id if parent else None, []).append(span)

    def below(parent: int | None) -> list[Any]:
        return [(span.name, below(context_of(span).span_id)) for span in children.get(parent, ())]

    assert sum(map(len, children.values())) == len(spans) - len(hidden)
    return below(None)


SUBSETS = [off for size in range(4) for off in itertools.combinations(("graph", "phase", "store"), size)]


@pytest.mark.parametrize("way", ["option", "provider", "older provider"])
@pytest.mark.parametrize("around", [True, False], ids=["in a request", "alone"])
@pytest.mark.parametrize("off", SUBSETS, ids="+".join)
def test_a_scope_that_is_off_leaves_no_orphans(off: tuple[Any, ...], around: bool, way: str) -> None:
    """Their children are below the nearest existing span: the tree is the complete one without that scope's spans."""

    def traced(capture: SpanCapture) -> list[ReadableSpan]:
        tracer = capture.tracer_provider.get_tracer("user")
        before = otel_context.get_current()
        if around:
            with tracer.start_as_current_span("request"):
                assert asyncio.run(work().run(4)) == [2, 2]
        else:
            assert asyncio.run(work().run(4)) == [2, 2]
        assert otel_context.get_current() == before
        assert capture.open == 0
        ids = {context_of(span).span_id for span in capture.spans}
        assert all(span.parent is None or span.parent.span_id in ids for span in capture.spans)
        return [*capture.spans]

    with SpanCapture() as capture:
        whole = traced(capture)
    scopes: Any = [scope for scope in ("graph", "phase", "store") if scope not in off]
    if way == "option":
        with SpanCapture(scopes=scopes) as capture:
            found = traced(capture)
    else:
        with SpanCapture() as capture:
            tracing.configure(
                tracer_provider=Partly(capture.tracer_provider, off, NoOpTracer() if way == "provider" else Invalid())
            )
            found = traced(capture)
    assert tree(found) == tree(whole, off)


def test_durations_of_phases_without_spans_are_on_the_node() -> None:
    """At any detail; the run's span has the graph all the same."""
    with SpanCapture("phase", scopes=["graph"]) as capture:
        pp.Graph(halve, name="g").run_sync(4)
    assert capture.tree() == [("run g", ["node halve"])]
    assert "pocket_plug.node.exec.duration" in attributes(capture.one("node halve"))
    assert "pocket_plug.graph.nodes" in attributes(capture.one("run g"))


def test_a_scope_that_is_off_hides_no_error() -> None:
    """It is recorded on an existing span, and the run raises it."""

    @pp.node
    async def fail(n: int) -> int:
        raise ValueError(n)

    for scopes, marked in ((["phase"], ["exec fail"]), (["graph"], ["run g", "node fail"]), ([], [])):
        with SpanCapture(scopes=scopes) as capture, pytest.raises(ValueError, match="7"):  # type: ignore[arg-type]
            asyncio.run(pp.Graph(fail, name="g").run(7))
        assert [span.name for span in capture.spans if span.status.status_code is StatusCode.ERROR] == marked
        assert sum(len(span.events) for span in capture.spans) == min(len(marked), 1)


def test_a_durable_run_without_a_span_of_its_own_keeps_the_trace_around_it(tmp_path: Path) -> None:
    """The checkpoint has the nearest existing span, so that the next execution is linked to something."""

    async def main(tracer: Tracer) -> Mapping[str, str]:
        async with stored(tmp_path) as store:
            with tracer.start_as_current_span("request"), pytest.raises(RunSuspendedError):
                await approval(store).run(3, run_id="r-1", pocket=Pocket(autoload=False))
            entry = await store.stack.read("pocket:run:r-1")
            assert entry is not None
            return dict(entry.value["carrier"])

    with SpanCapture(scopes=["phase", "store"]) as capture:
        carrier = asyncio.run(main(capture.tracer_provider.get_tracer("user")))
    assert carrier["traceparent"].split("-")[2] == f"{place(capture.one('request'))[1]:016x}"


def test_spans_of_a_database_have_kind_client_and_those_of_memory_have_not(tmp_path: Path) -> None:
    """A backend with a server's address, or with a database's name, is a client, also SQLite, though it is embedded."""

    class Remote(FaultyMemory):
        address = ("db.example", 5432)

    async def read(backend: Backend) -> None:
        async with pp.Store(backend, layers=["tracing"]) as store:
            await store.get("a name of no Key")

    for backend, kind in (
        (pp.Memory(), "INTERNAL"),
        (Remote(), "CLIENT"),
        (SQLite(tmp_path / "a.db"), "CLIENT"),
    ):
        with SpanCapture() as capture:
            asyncio.run(read(backend))
        assert capture.one("get").kind.name == kind
    assert isinstance(backend, Backend)
