"""Traces of real runs: one exact tree, whatever happens, and the caller's own spans around it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

import pocket_plug as pp
from pocket_plug.testing.clock import run_virtual
from pocket_plug.testing.spans import SpanCapture

PRICE = pp.Key("fare:{}", int)

SHOWN = {  # the attributes that `drawn` shows, and how; usual values are left out
    "node.type": lambda value: "" if value == "node" else value,
    "fan_out.index": lambda value: f"[{value}]",
    "node.visit": lambda value: "" if value == 1 else f"visit {value}",
    "node.attempts": lambda value: "" if value in (0, 1) else f"{value} attempts",
    "node.outcome": lambda value: "" if value == "ok" else value,
    "node.action": lambda value: "" if value == "default" else f"by {value}",
    "node.next": lambda value: f"-> {value}",
    "run.outcome": lambda value: "" if value == "success" else value,
    "attempt": lambda value: "" if value == 1 else f"#{value}",
    "timeout": lambda value: f"within {value:g} s",
    "attempt.will_retry": lambda value: "will retry" if value else "won't retry",
    "retry.delay": lambda value: f"in {value:g} s",
}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def drawn(capture: SpanCapture) -> str:
    """The trees, a line for each span: its name, its unusual attributes, `error.type`, events, ERROR."""
    assert capture.open == 0
    children: dict[int, list[ReadableSpan]] = {}
    for span in capture.spans:
        children.setdefault(span.parent.span_id if span.parent else 0, []).append(span)

    def draw(parent: int) -> str:
        text = ""
        for span in children.get(parent, ()):
            own = {name.removeprefix("pocket_plug."): value for name, value in attributes(span).items()}
            if "fan_out.index" in own:
                assert own.pop("node.visit") == own["fan_out.index"] + 1
            words = [span.name, *(show(own[name]) for name, show in SHOWN.items() if name in own)]
            words += [own["error.type"]] if "error.type" in own else []
            words += [f"!{event.name}" for event in span.events]
            words += ["ERROR"] if span.status.status_code is StatusCode.ERROR else []
            assert span.status.status_code is not StatusCode.OK, "it is for the user to say that all is well"
            context = span.get_span_context()
            assert context is not None
            text += " ".join(filter(None, words)) + "\n" + indent(draw(context.span_id), "  ")
        return text

    return draw(0)


def assert_drawn(capture: SpanCapture, expected: str) -> None:
    assert drawn(capture).splitlines() == dedent(expected).strip().splitlines()


@pytest.fixture
def capture() -> Iterator[SpanCapture]:
    with SpanCapture() as spans:
        yield spans


# ---------------------------------------------------------------- a workflow with some of everything
class Unsteady(pp.Node[int, int], retry=pp.Retry(attempts=3, delay=0.5), timeout=9):
    """Fails once."""

    failed = False

    async def exec(self, n: int) -> int:
        if not self.failed:
            self.failed = True
            raise OSError("the line is busy")
        return n


class Offline(pp.Node[int, int]):
    """Always fails, and has a fallback."""

    def exec(self, n: int) -> int:
        raise ConnectionError("no route")

    async def fallback(self, n: int, error: Exception) -> int:
        return n + 1


class Priced(pp.Node[int, int]):
    """Reads and writes, and is repeated once."""

    again = pp.Action[int]()

    async def prep(self, store: pp.StoreReader, n: int) -> int:
        return await store.get(PRICE("eu"), default=0)

    async def post(self, store: pp.StoreWriter, n: int, before: int, result: int) -> int | pp.Next[Any]:
        await store.set(PRICE("eu"), before + n)
        return self.again(n) if before == 0 else n


@pp.node
def halve(n: int) -> int:
    return n // 2


@pp.node
async def spread(n: int) -> list[int]:
    return [n, n + 1, n + 2]


def reference() -> pp.Graph[int, list[int]]:
    priced = Priced()
    inner = pp.Graph(Unsteady() >> priced, priced.again >> priced, name="inner")
    return pp.Graph(inner >> Offline() >> spread >> pp.each(halve, concurrency=2), name="outer",
                    store=pp.Store(layers=["tracing"]))  # fmt: skip


REFERENCE = """
    run outer
      node inner graph -> offline
        run inner
          node unsteady 2 attempts -> priced
            exec unsteady within 9 s will retry in 0.5 s OSError !exception ERROR
            exec unsteady #2 within 9 s
          node priced by again -> priced
            prep priced
              get fare:{}
            post priced
            set fare:{}
          node priced visit 2
            prep priced
              get fare:{}
            post priced
            set fare:{}
      node offline fallback -> spread
        exec offline won't retry ConnectionError !exception ERROR
        fallback offline
      node spread -> each_halve
        exec spread
      node each_halve fan_out
        item halve [0]
          exec halve
        item halve [1]
          exec halve
        item halve [2]
          exec halve
    """


def test_a_workflow_is_exactly_this_tree(capture: SpanCapture) -> None:
    """Nested, retried, replaced, looping, fanned out, in threads: names, parents, attributes and statuses are exact."""
    assert run_virtual(reference().run(5)) == [3, 3, 4]
    assert_drawn(capture, REFERENCE)
    assert len({span.get_span_context().trace_id for span in capture.spans}) == 1  # type: ignore[union-attr]


def test_without_an_event_loop_it_is_the_same_tree(capture: SpanCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run_sync` makes no difference."""

    async def at_once(seconds: float) -> None: ...

    monkeypatch.setattr(asyncio, "sleep", at_once)
    assert reference().run_sync(5) == [3, 3, 4]
    assert_drawn(capture, REFERENCE)


class Weigh(pp.Node[int, int]):
    """Has code of its own in `post` only."""

    async def post(self, store: pp.StoreWriter, input: int, prepared: int, result: int, /) -> int:
        return input


def listed(weight: int) -> list[int]:
    return [weight]


@pp.node
async def cut(weight: int) -> int:
    return weight


def test_a_node_has_the_location_of_its_code(capture: SpanCapture) -> None:
    """By the conventions' names: for a function, a class, an item; but not for nodes without code, a
    fan-out and a nested graph.
    """
    graph = pp.Graph(pp.Graph(Weigh(), name="inner") >> pp.node(listed) >> pp.each(cut), name="g")
    asyncio.run(graph.run(1))
    found = {
        span.name: {name: value for name, value in (span.attributes or {}).items() if name.startswith("code.")}
        for span in capture.spans
        if span.name.startswith(("node", "item"))
    }
    assert found == {
        name: {}
        if code is None
        else {
            "code.function.name": f"{__name__}.{code.co_qualname}",
            "code.file.path": __file__,
            "code.line.number": code.co_firstlineno,
        }
        for name, code in {
            "node inner": None,
            "node listed": listed.__code__,
            "node weigh": Weigh.post.__code__,
            "node each_cut": None,
            "item cut": cut.functions["exec"].__code__,
        }.items()
    }


def test_every_span_has_its_run(capture: SpanCapture) -> None:
    """Runs have ids, an inner run its parent's too; nodes have graph and run, so that they can be searched for."""
    run_virtual(reference().run(5))
    outer, inner = attributes(capture.one("run outer")), attributes(capture.one("run inner"))
    assert outer["pocket_plug.run.id"] != inner["pocket_plug.run.id"]
    assert inner["pocket_plug.run.parent_id"] == outer["pocket_plug.run.id"]
    assert "pocket_plug.run.parent_id" not in outer
    assert (outer["pocket_plug.run.steps"], inner["pocket_plug.run.steps"]) == (7, 3)
    for span in capture.spans:
        own = attributes(span)
        if span.name.startswith("node "):
            run = inner if own["pocket_plug.graph.name"] == "inner" else outer
            assert own["pocket_plug.run.id"] == run["pocket_plug.run.id"]
            assert own["pocket_plug.node.name"] == span.name.removeprefix("node ")


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ("run", "run outer\n  run inner\n"),
        (
            "node",
            """
            run outer
              node inner graph -> offline
                run inner
                  node unsteady 2 attempts -> priced
                    exec unsteady within 9 s will retry in 0.5 s OSError !exception ERROR
                    exec unsteady #2 within 9 s
                  node priced by again -> priced
                    get fare:{}
                    set fare:{}
                  node priced visit 2
                    get fare:{}
                    set fare:{}
              node offline fallback -> spread
                exec offline won't retry ConnectionError !exception ERROR
              node spread -> each_halve
              node each_halve fan_out
                item halve [0]
                item halve [1]
                item halve [2]
            """,
        ),
    ],
)
def test_detail_leaves_out_spans_and_changes_nothing_else(detail: Any, expected: str) -> None:
    """At "run" a span for each run; at "node" attempts if there may be several, and durations for the phases."""
    with SpanCapture(detail) as capture:
        assert run_virtual(reference().run(5)) == [3, 3, 4]
    assert_drawn(capture, expected)
    for span in capture.spans:
        durations = {name.split(".")[2] for name in attributes(span) if name.endswith(".duration")}
        wanted = {"node priced": {"prep", "post"}, "item halve": {"exec"}, "node unsteady": {"exec"}, "node spread": {"exec"},
                  "node offline": {"exec", "fallback"}}  # fmt: skip
        assert durations == (wanted.get(span.name, set()) if detail == "node" else set()), span.name


def test_a_node_may_be_left_out(capture: SpanCapture) -> None:
    """`trace=False`: neither the node nor its phases have spans; its store operations are below the run."""
    priced = Priced().with_options(trace=False)
    graph = pp.Graph(halve >> priced, priced.again >> priced, name="g", store=pp.Store(layers=["tracing"]))
    graph.run_sync(4)
    assert_drawn(capture, """
        run g
          node halve -> priced
            exec halve
          get fare:{}
          set fare:{}
          get fare:{}
          set fare:{}
    """)  # fmt: skip


# ---------------------------------------------------------------- failures
def test_a_failure_is_recorded_once_and_marks_what_it_passed(capture: SpanCapture) -> None:
    """The event where it happened; ERROR and the type on every span up to the outermost run."""

    @pp.node
    async def divide(n: int) -> int:
        return n // 0

    graph = pp.Graph(halve >> pp.Graph(divide, name="inner"), name="outer")
    with pytest.raises(ZeroDivisionError):
        asyncio.run(graph.run(4))
    assert_drawn(capture, """
        run outer failure ZeroDivisionError ERROR
          node halve -> inner
            exec halve
          node inner graph failed ZeroDivisionError ERROR
            run inner failure ZeroDivisionError ERROR
              node divide failed ZeroDivisionError ERROR
                exec divide won't retry ZeroDivisionError !exception ERROR
    """)  # fmt: skip


def test_an_attempt_that_times_out(capture: SpanCapture) -> None:
    """Each attempt has its own timeout; the run's outcome is a timeout."""

    @pp.node(timeout=2, retry=pp.Retry(attempts=2))
    async def wait(n: int) -> int:
        await asyncio.Event().wait()
        return n

    with pytest.raises(pp.NodeTimeoutError):
        run_virtual(pp.Graph(wait, name="g").run(1))
    late = "pocket_plug.errors.NodeTimeoutError"
    assert_drawn(capture, f"""
        run g timeout {late} ERROR
          node wait 2 attempts failed {late} ERROR
            exec wait within 2 s will retry in 0 s {late} !exception ERROR
            exec wait #2 within 2 s won't retry {late} !exception ERROR
    """)  # fmt: skip


@pytest.mark.parametrize("colour", ["async", "def"])
def test_a_cancelled_run(capture: SpanCapture, colour: str) -> None:
    """Cancelled is no failure: no status and no event, but the type, on every open span."""

    async def main() -> None:
        entered, let_go = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        async def waits(n: int) -> int:
            entered.set()
            await asyncio.Event().wait()
            return n

        def blocks(n: int) -> int:
            loop.call_soon_threadsafe(entered.set)
            let_go.wait(30)
            return n

        node: Any = pp.node(name="wait")(waits if colour == "async" else blocks)
        run = asyncio.create_task(pp.Graph(halve >> pp.Graph(node, name="inner"), name="outer").run(1))
        await entered.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        let_go.set()

    asyncio.run(main())
    cancelled = "asyncio.exceptions.CancelledError"
    assert_drawn(capture, f"""
        run outer cancelled {cancelled}
          node halve -> inner
            exec halve
          node inner graph cancelled {cancelled}
            run inner cancelled {cancelled}
              node wait cancelled {cancelled}
                exec wait won't retry {cancelled}
    """)  # fmt: skip


def test_a_fan_out_whose_first_error_cancels_the_rest(capture: SpanCapture) -> None:
    """The failed item is marked, the items that it stopped are cancelled, the rest never started."""

    @pp.node
    async def pick(n: int) -> int:
        if n == 1:
            raise LookupError(n)
        await asyncio.Event().wait()
        return n

    with pytest.raises(LookupError):
        asyncio.run(pp.Graph(pp.each(pick, concurrency=3), name="g").run(range(9)))
    cancelled = "asyncio.exceptions.CancelledError"
    assert_drawn(capture, f"""
        run g failure LookupError ERROR
          node each_pick fan_out failed LookupError ERROR
            item pick [0] cancelled {cancelled}
              exec pick won't retry {cancelled}
            item pick [1] failed LookupError ERROR
              exec pick won't retry LookupError !exception ERROR
    """)  # fmt: skip


def test_a_conflict_is_an_event_of_the_node(capture: SpanCapture) -> None:
    """post is run again: it has a second span, and the event is between the two; nothing failed."""
    store = pp.Store(layers=["tracing"])

    class Slow(pp.Node[int, int]):
        met = False

        async def post(self, view: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
            await view.update(PRICE("eu"), lambda price: price + n, default=0)
            if not self.met:
                self.met = True
                with SpanCapture():  # another caller's span, in another trace
                    await store.set(PRICE("eu"), 100)
            return n

    asyncio.run(pp.Graph(Slow(), name="g", store=store).run(1))
    assert_drawn(capture, """
        run g
          node slow !pocket_plug.conflict
            post slow
              get fare:{}
            set fare:{} pocket_plug.errors.ConflictError
            post slow
              get fare:{}
            set fare:{}
    """)  # fmt: skip


# ---------------------------------------------------------------- the user's own spans
def test_concurrent_runs_are_below_the_span_around_them(capture: SpanCapture) -> None:
    """Two graphs with `asyncio.gather` in a span of the user's: each is complete, none has the other's children."""
    tracer = capture.tracer_provider.get_tracer("user")
    turns = [asyncio.Event(), asyncio.Event()]

    def meeting(mine: int) -> pp.Node[int, int]:
        @pp.node(name=f"meet_{mine}")
        async def meet(n: int) -> int:  # both are in the middle at the same time
            with tracer.start_as_current_span(f"own {mine}"):
                turns[mine].set()
                await turns[1 - mine].wait()
            return n

        return meet

    async def main() -> None:
        graphs = [pp.Graph(meeting(mine) >> pp.Graph(halve, name=f"sub_{mine}"), name=f"g_{mine}") for mine in (0, 1)]
        with tracer.start_as_current_span("request") as request:
            before = otel_context.get_current()
            await asyncio.gather(*(graph.run(4) for graph in graphs))
            assert trace.get_current_span() is request
            assert otel_context.get_current() == before
        assert not trace.get_current_span().get_span_context().is_valid

    asyncio.run(main())
    assert_drawn(capture, "request\n" + "".join(f"""\
  run g_{mine}
    node meet_{mine} -> sub_{mine}
      exec meet_{mine}
        own {mine}
    node sub_{mine} graph
      run sub_{mine}
        node halve
          exec halve
""" for mine in (0, 1)))  # fmt: skip


@pytest.mark.parametrize("ending", ["ok", "failed"])
def test_after_a_run_the_current_span_is_restored(capture: SpanCapture, ending: str) -> None:
    """In a task, in sync code, after success and after failure."""

    @pp.node
    def fail(n: int) -> int:
        raise ValueError(n)

    graph: Any = pp.Graph(halve if ending == "ok" else halve >> fail, name="g")

    async def main() -> None:
        before = otel_context.get_current()
        with suppress(ValueError):
            await graph.run(2)
        assert otel_context.get_current() == before

    before = otel_context.get_current()
    asyncio.run(main())
    with capture.tracer_provider.get_tracer("user").start_as_current_span("mine") as mine:
        with suppress(ValueError):
            graph.run_sync(2)
        assert trace.get_current_span() is mine
    assert otel_context.get_current() == before
    assert [name if isinstance(name, str) else name[0] for name in capture.tree()] == ["run g", "mine"]


def test_spans_in_worker_threads_keep_their_parent(capture: SpanCapture) -> None:
    """`def` phases run in worker threads: the user's spans and runs within are children of the phase."""
    tracer = capture.tracer_provider.get_tracer("user")
    threads: set[threading.Thread] = set()

    class Threaded(pp.Node[int, int]):
        def exec(self, n: int) -> int:
            threads.add(threading.current_thread())
            with tracer.start_as_current_span("own"):
                return pp.Graph(halve, name="within").run_sync(n)

    asyncio.run(pp.Graph(pp.each(Threaded(), concurrency=3), name="g").run([1, 2, 3]))
    assert threading.main_thread() not in threads
    assert_drawn(capture, "run g\n  node each_threaded fan_out\n" + "".join(f"""\
    item threaded [{n}]
      exec threaded
        own
          run within
            node halve
              exec halve
""" for n in range(3)))  # fmt: skip


# ---------------------------------------------------------------- exporters
FLOW = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_tracing_of_runs import reference
import pocket_plug as pp

async def main():
    with pp.observe(terminal=False):
        print(await reference().run(5))

asyncio.run(main())
"""


class Sink:
    """A collector: an OTLP/HTTP endpoint in a thread."""

    def __init__(self) -> None:
        self.request = ExportTraceServiceRequest()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sink.request.MergeFromString(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def tree_of(request: ExportTraceServiceRequest) -> list[Any]:
    """Names, statuses and event names by parent, in the order in which the spans began."""
    spans = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
    spans.sort(key=lambda span: span.start_time_unix_nano)
    assert len({span.trace_id for span in spans}) == 1
    assert {len(span.trace_id) for span in spans} == {16}
    assert {len(span.span_id) for span in spans} == {8}

    def below(parent: bytes) -> list[Any]:
        return [(span.name, span.status.code, [event.name for event in span.events], below(span.span_id))
                for span in spans if span.parent_span_id == parent]  # fmt: skip

    return below(b"")


def traced(folder: Path, **env: str) -> None:
    ours = ("OTEL_", "POCKET_PLUG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run([sys.executable, "-c", FLOW], cwd=folder, env=kept | env, capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "[3, 3, 4]\n", "")


def test_a_collector_and_the_file_get_the_same_tree(tmp_path: Path) -> None:
    """Sent as OTLP/protobuf, and written as OTLP/JSON that protobuf's own JSON reader accepts: the run's tree."""
    sink = Sink()
    try:
        traced(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    finally:
        sink.close()
    assert not (tmp_path / ".pocket_plug").exists()
    sent = tree_of(sink.request)

    traced(tmp_path)
    written = ExportTraceServiceRequest()
    for line in (tmp_path / ".pocket_plug" / "traces.jsonl").read_text().splitlines():
        written.MergeFrom(json_format.ParseDict(with_base64_ids(json.loads(line)), ExportTraceServiceRequest()))
    assert tree_of(written) == sent

    [(name, status, events, children)] = sent
    assert (name, status, events) == ("run outer", 0, [])
    assert [child[0] for child in children] == ["node inner", "node offline", "node spread", "node each_halve"]
    names = [" ".join(line.split()[:2]) for line in REFERENCE.strip().splitlines()]
    assert sorted(flattened(sent)) == sorted(names)


def flattened(tree: list[Any]) -> Iterator[str]:
    for name, _, _, below in tree:
        yield name
        yield from flattened(below)


def with_base64_ids(value: Any) -> Any:
    """The only difference of OTLP/JSON to protobuf's JSON: ids in hex."""
    if isinstance(value, list):
        return [with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: base64.urlsafe_b64encode(bytes.fromhex(item)).decode() if key in ("traceId", "spanId", "parentSpanId")
            else with_base64_ids(item) for key, item in value.items()}  # fmt: skip
