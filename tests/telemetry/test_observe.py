"""observe(): where traces go, that they arrive, and that it neither slows nor breaks a run.

It sets the process's global provider, so each case is a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

WORKFLOW = """
import asyncio, sys
import pocket_plug as pp
from pocket_plug.layers.tracing import Tracing
from pocket_plug.telemetry import observe

PRICE = pp.Key("price:{}", int)

@pp.node
async def look(name: str) -> str:
    return name

class Pay(pp.Node[str, int]):
    async def prep(self, store: pp.StoreReader, name: str, /) -> int:
        return await store.get(PRICE(name), 3)

    async def post(self, store: pp.StoreWriter, name: str, prepared: int, result: int, /) -> int:
        await store.set(PRICE(name), result + 1)
        return result

store = pp.Store(layers=[Tracing()])
graph = pp.Graph(look >> Pay(), store=store, name="shop")
"""
SHOP = ["get price:{}", "node look", "exec look", "node pay", "prep pay", "post pay", "run shop", "set price:{}"]


def python(code: str, cwd: Path, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", WORKFLOW + code]
    return subprocess.run(
        command, cwd=cwd, env=environment(env), text=True, capture_output=True, timeout=timeout, check=False
    )


def environment(env: dict[str, str]) -> dict[str, str]:
    ours = ("OTEL_", "POCKET_PLUG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {"COLUMNS": "100", "POCKET_PLUG_FLUSH_TIMEOUT": "60"} | env  # a busy machine loses nothing


def spans_in(path: Path) -> list[dict[str, Any]]:
    """All spans of a trace file."""
    requests = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        span
        for request in requests
        for resource in request["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def names_in(path: Path) -> list[str]:
    return sorted(span["name"] for span in spans_in(path))


# ---------------------------------------------------------------- on this machine
def test_one_line_gives_a_trace_file_flushed_at_exit(tmp_path: Path) -> None:
    """In a pipe there is no tree; the spans are in .pocket_plug/traces.jsonl, with phases and store operations."""
    done = python('observe(); print(asyncio.run(graph.run("tea")))', tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
    path = tmp_path / ".pocket_plug" / "traces.jsonl"
    assert names_in(path) == sorted(SHOP)
    assert len({span["traceId"] for span in spans_in(path)}) == 1


def test_it_is_idempotent_and_can_be_closed_and_started_again(tmp_path: Path) -> None:
    """The second call returns the first one's object; after `close` nothing is traced; a new call may choose another file."""
    done = python(
        """
first = observe(detail="run", file="one.jsonl")
assert observe() is first and observe(file="one.jsonl", detail="run") is first and first.mode == "local"
graph.run_sync("a")
assert first.flush() and first.unsent == 0
first.close(); first.close()
from pocket_plug.layers import tracing
assert tracing.look() is None  # so that runs cost again what they cost before
graph.run_sync("b")
with observe(file="two.jsonl") as second:
    assert second is not first
    graph.run_sync("c")
graph.run_sync("d")
""",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert names_in(tmp_path / "one.jsonl") == ["run shop"]
    assert names_in(tmp_path / "two.jsonl") == sorted(SHOP)


def test_what_it_records_of_your_data_ends_with_it(tmp_path: Path) -> None:
    """In whatever order this and `setup` are closed; but what the program itself has set meanwhile stays."""
    done = python(
        """
from pocket_plug.layers import tracing
from pocket_plug.telemetry import setup

def now():
    return tracing.configure().capture, tracing.configure().detail

with observe(capture="full", file="one.jsonl", detail="debug"):
    pass
assert now() == (None, "node"), now()
with observe(file="two.jsonl"):
    graph.run_sync("secret")
for setup_first in (False, True):
    production, development = setup(capture="keys"), observe(capture="full", detail="run")
    assert now() == ("full", "run")
    for each in (production, development) if setup_first else (development, production):
        each.close()
    assert now() == (None, "node"), now()
with observe(capture="full"):
    tracing.configure(capture="summary")
assert now()[0] == "summary"
with observe(capture="keys"):
    pass
assert now()[0] == "summary"
for given in ("keys", "full"):
    with observe(capture="full"):
        tracing.configure(capture="none")
        with setup(capture=given):
            pass
        assert now()[0] == "none", now()
    assert now()[0] == "none", now()
""",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "secret" not in (tmp_path / "two.jsonl").read_text()


def test_a_second_call_with_other_arguments_is_refused(tmp_path: Path) -> None:
    """It configures the whole process, so the second call would have no effect; the message says what differs."""
    done = python(
        """
from pocket_plug.errors import ConfigError
def hide(path, value): return "***"
first = observe(file="one.jsonl", baggage=["tenant"])
assert observe(detail="phase", baggage=("tenant",)) is first
for other in ({"file": "other.jsonl"}, {"detail": "run", "redact": hide}, {"terminal": False}, {"baggage": []}):
    try:
        observe(**other)
    except ConfigError as error:
        print(str(error).partition(": ")[2].partition(". It sets")[0])
first.close()
with observe(file="other.jsonl"):
    graph.run_sync("a")
""",
        tmp_path,
    )
    assert done.stdout.splitlines() == [
        "file is other.jsonl, and was one.jsonl",
        "detail is 'run', and was 'phase'; redact is hide, and was not given",
        "terminal is False, and was not given",
        "baggage is (), and was ('tenant',)",
    ], done.stderr
    assert names_in(tmp_path / "other.jsonl") == sorted(SHOP)


def test_a_tree_on_request_ends_with_the_files_path(tmp_path: Path) -> None:
    """terminal=True draws it also in a pipe: plain, on stderr."""
    done = python('observe(terminal=True); asyncio.run(graph.run("tea"))', tmp_path)
    lines = done.stderr.splitlines()
    assert [line.split()[1:3] for line in lines if "node" in line] == [["node", "look"], ["node", "pay"]]
    assert re.fullmatch(r"trace: \.pocket_plug/traces\.jsonl · open it: pocket-plug trace show \w+ --open", lines[-1])
    assert "\x1b" not in done.stderr
    assert done.stdout == ""


def test_a_provider_of_the_program_is_used_and_left_as_it_is(tmp_path: Path) -> None:
    """Nothing is added to it, no file is written, and closing doesn't shut it down: it goes on with the detail from before."""
    done = python(
        """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
memory, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(memory))
trace.set_tracer_provider(provider)
with observe() as telemetry:
    graph.run_sync("a")
assert telemetry.mode == "yours" and telemetry.file is None
assert trace.get_tracer_provider() is provider
print(len(memory.get_finished_spans()))
memory.clear()
graph.run_sync("b")
print(len(memory.get_finished_spans()))
""",
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
    )
    assert (done.stdout, done.stderr) == ("8\n5\n", "")
    assert not (tmp_path / ".pocket_plug").exists()


def test_the_sdk_can_be_switched_off(tmp_path: Path) -> None:
    """OTEL_SDK_DISABLED=true: nothing is set up."""
    code = 'print(observe(terminal=True).mode); asyncio.run(graph.run("tea"))'
    done = python(code, tmp_path, OTEL_SDK_DISABLED="true")
    assert (done.stdout, done.stderr) == ("off\n", "")
    assert not (tmp_path / ".pocket_plug").exists()


def test_a_node_that_seeds_the_global_random_merges_no_traces(tmp_path: Path) -> None:
    """Ids come from a random generator of their own; a forked child generates others than its parent."""
    done = python(
        """
import os, random, warnings
from opentelemetry import trace
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
observe(file="t.jsonl", detail="run")
for _ in range(2):
    random.seed(42)
    graph.run_sync("a")
def ids():
    return trace.get_tracer("t").start_span("s").get_span_context()
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, str(ids().trace_id).encode())
    os._exit(0)
os.wait()
assert str(ids().trace_id) != os.read(reading, 100).decode()
""",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len({span["traceId"] for span in spans_in(tmp_path / "t.jsonl")}) == 2


def test_spans_are_flushed_on_sigterm_which_still_kills(tmp_path: Path) -> None:
    """The process dies of the signal, after its spans are written."""
    # Python calls no handler for a signal just before a call that blocks: such a call must be short
    code = (
        'import time; observe(file="t.jsonl"); graph.run_sync("a"); print("ready", flush=True)\n'
        "while True:\n    time.sleep(0.1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", WORKFLOW + code], cwd=tmp_path, env=environment({}), text=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
    assert names_in(tmp_path / "t.jsonl") == sorted(SHOP)


def test_a_file_that_cannot_be_written_breaks_nothing_and_is_logged(tmp_path: Path) -> None:
    """The run's result is unchanged; the cause is logged once, with the number of lost spans."""
    (tmp_path / ".pocket_plug").write_text("in the way")
    done = python('observe(); print(asyncio.run(graph.run("tea")))', tmp_path)
    assert (done.returncode, done.stdout) == (0, "3\n")
    assert done.stderr.count("exporting spans by FileExporter failed") == 1
    assert "8 spans were not exported" in done.stderr


# ---------------------------------------------------------------- over the network
class Sink:
    """An OTLP/HTTP endpoint in this process; keeps the requests, or answers as told."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.hold = threading.Event()
        self.hold.set()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sink.hold.wait(60)
                if self.path == "/v1/traces":
                    sink.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def spans(self) -> dict[bytes, Any]:
        """By id."""
        return {
            span.span_id: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.close()


def test_with_an_endpoint_in_the_environment_a_collector_gets_the_tree(tmp_path: Path, sink: Sink) -> None:
    """One trace, every parent right, scopes and resource as documented, and no local file."""
    done = python(
        'print(observe().mode); asyncio.run(graph.run("tea"))',
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint,
        OTEL_SERVICE_NAME="shop-service",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "otlp\n", "")
    spans = sink.spans()
    tree = {span.name: spans[span.parent_span_id].name if span.parent_span_id else "" for span in spans.values()}
    assert tree == {
        "run shop": "",
        "node look": "run shop",
        "exec look": "node look",
        "node pay": "run shop",
        "prep pay": "node pay",
        "get price:{}": "prep pay",
        "post pay": "node pay",
        "set price:{}": "node pay",
    }
    assert len({span.trace_id for span in spans.values()}) == 1
    (resource,) = {
        resource.resource.SerializeToString(True) for request in sink.requests for resource in request.resource_spans
    }
    assert b"shop-service" in resource
    scopes = {
        scope.scope.name: scope.schema_url
        for request in sink.requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
    }
    assert set(scopes) == {"pocket_plug.graph", "pocket_plug.phase", "pocket_plug.store"}
    assert all(scopes.values())
    assert not (tmp_path / ".pocket_plug").exists()


def test_a_burst_while_the_collector_is_slow_arrives_completely(tmp_path: Path, sink: Sink) -> None:
    """More spans than the SDK's own queue would hold, while none can be sent: none is lost."""
    sink.hold.clear()
    code = """
async def main():
    await asyncio.gather(*[graph.run("tea") for _ in range(700)])
observe(detail="node")
asyncio.run(main())
print("ran", flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", WORKFLOW + code],
        cwd=tmp_path,
        text=True,
        stdin=subprocess.PIPE,
        env=environment({"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ran\n"
        sink.hold.set()
        _, errors = process.communicate("go on\n", timeout=60)
    assert errors == ""
    names = [span.name for span in sink.spans().values()]
    assert {name: names.count(name) for name in ("run shop", "node look", "node pay")} == {
        "run shop": 700,
        "node look": 700,
        "node pay": 700,
    }


def test_a_collector_that_hangs_delays_the_end_of_the_process_by_a_limit(tmp_path: Path, sink: Sink) -> None:
    """The run is not slowed; closing ends after the limit and says what was not exported."""
    sink.hold.clear()
    code = 'telemetry = observe(); print(asyncio.run(graph.run("tea")), flush=True); telemetry.close(timeout=0.1)'
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert (done.returncode, done.stdout) == (0, "3\n")
    assert "8 spans were not exported; exporting didn't finish within 0.1 s" in done.stderr


def test_an_unknown_exporter_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    """It names the variable and the known values."""
    code = """
try:
    observe()
except pp.ConfigError as error:
    print(error)
"""
    done = python(code, tmp_path, OTEL_TRACES_EXPORTER="zipkin")
    assert done.stderr == ""
    assert "OTEL_TRACES_EXPORTER is 'zipkin'; give otlp, console or none" in done.stdout


def test_the_sdks_names_of_otlp_with_its_protocol_are_known(tmp_path: Path) -> None:
    """`opentelemetry-instrument` takes them, so they are set for whole machines. The name counts, not the protocol's variable."""
    code = """
from pocket_plug.telemetry.exporters import asked, transport
for signal in ("traces", "metrics", "logs"):
    print(asked(signal), transport(signal))
"""
    names = {
        "OTEL_TRACES_EXPORTER": "otlp_proto_http",
        "OTEL_METRICS_EXPORTER": "otlp_proto_grpc",
        "OTEL_LOGS_EXPORTER": "console, otlp",
    }
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_PROTOCOL="grpc", **names)
    assert done.stdout.splitlines() == ["['otlp'] http", "['otlp'] grpc", "['console', 'otlp'] grpc"], done.stderr


def test_the_retention_of_runs_is_no_limit_of_the_trace_file(tmp_path: Path) -> None:
    """It is refused at once: it would fail when the first spans are written, and all of them would be lost."""
    code = """
try:
    observe(keep=pp.Retention(keep=3))
except pp.ConfigError as error:
    print(error)
"""
    done = python(code, tmp_path)
    assert done.stdout == "observe: keep can't be Retention; give pocket_plug.telemetry.TraceLimits(size=…, age=…)\n"


def test_observe_that_fails_leaves_no_thread_and_no_notebook_hook(tmp_path: Path) -> None:
    """Whatever was invalid, and any number of times."""
    code = """
import os, threading
from types import SimpleNamespace
from pocket_plug.telemetry import ending, wiring

ends = []
shell = SimpleNamespace(execution_count=1, events=SimpleNamespace(
    register=lambda event, function: ends.append(function), unregister=lambda event, function: ends.remove(function)))
wiring.notebook_shell = lambda: shell

def fails(**arguments):
    try:
        print("observes", observe(**arguments))
    except pp.ConfigError:
        print([thread.name for thread in threading.enumerate() if thread not in standbys()], ends)

def standbys():
    return [each.thread for each in ending._standbys]  # Python 3.12 has some

for name in ("detail", "capture", "redact", "baggage"):
    fails(**{name: "nonsense"})
fails(flush_timeout=-1)
os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "-1"
fails()
del os.environ["OTEL_BSP_SCHEDULE_DELAY"]
wiring.add_spans = lambda *_: wiring._flush_timeout(-1)  # as what fails late does
fails()
"""
    done = python(code, tmp_path)
    assert done.stdout.splitlines() == ["['MainThread'] []"] * 7, done.stderr


GRPC = "opentelemetry.exporter.otlp.proto.grpc"

SHOW = """
import logging
logging.basicConfig(format="%(message)s", stream=sys.stdout)
telemetry = observe(terminal=False)
print(asyncio.run(graph.run("tea")), telemetry.mode)
telemetry.close()
"""


def test_a_missing_protocol_is_logged_and_the_run_is_traced_all_the_same(tmp_path: Path, sink: Sink) -> None:
    """With `http/protobuf` if the protocol is unknown; in the local file if the exporter isn't installed."""
    done = python(SHOW, tmp_path, OTEL_EXPORTER_OTLP_PROTOCOL="http/json", OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint)
    assert done.stdout == (
        "telemetry: OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'; it can be http/protobuf or grpc. "
        "traces are sent by http/protobuf\n3 otlp\n"
    ), done.stderr
    assert sink.spans()
    for name, protocol, package in (
        (GRPC, "grpc", "opentelemetry-exporter-otlp-proto-grpc"),
        ("opentelemetry.exporter.otlp.proto.http", "http/protobuf", "'pocket-plug[otlp]'"),
    ):
        missing = f"sys.modules['{name}'] = None\n"
        done = python(missing + SHOW, tmp_path, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, OTEL_TRACES_EXPORTER="otlp")
        assert f"is not installed: pip install {package}. The program continues without it (logged once)" in done.stdout
        assert done.stdout.endswith("\n3 local\n"), done.stderr


def test_grpc_is_used_if_its_exporter_is_installed(tmp_path: Path) -> None:
    """Its exporter gets the spans, and the HTTP exporter doesn't."""
    code = f"""
from types import ModuleType
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
module = sys.modules["{GRPC}"] = ModuleType("grpc")
module = sys.modules["{GRPC}.trace_exporter"] = ModuleType("trace_exporter")
made = []
class OTLPSpanExporter(InMemorySpanExporter):
    def __init__(self):
        super().__init__()
        made.append(self)
module.OTLPSpanExporter = OTLPSpanExporter
{SHOW}
print(len(made), made[0].get_finished_spans()[-1].name)
"""
    done = python(code, tmp_path, OTEL_TRACES_EXPORTER="otlp", OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="grpc")
    assert done.stdout == "3 otlp\n1 run shop\n", done.stderr
