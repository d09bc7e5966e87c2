"""Telemetry of a program that forks, is terminated twice, or whose exporters fail: everything arrives, and nothing hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from otlp_sink import Sink
from scripts import WORKFLOW, environment, python

from pocket_plug.telemetry.export import SpanExport
from pocket_plug.testing.servers import free_port

FORKS = """
import multiprocessing, signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads

def work(number):
    return graph.run_sync(str(number))
"""


# ---------------------------------------------------------------- forks
def test_a_forked_child_sends_only_its_own_telemetry(tmp_path: Path, otlp_sink: Sink) -> None:
    """Spans, log records and counts in the parent's queues are sent once, by the parent."""
    code = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
telemetry = setup()
graph.run_sync("parent")
if os.fork() == 0:
    assert telemetry.unsent == 0, telemetry.unsent
    graph.run_sync("child")
    telemetry.close()
    os._exit(0)
os.wait()
"""
    done = python(
        code,
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url,
        OTEL_METRICS_EXPORTER="none",
        OTEL_BSP_SCHEDULE_DELAY="60000",
        OTEL_BLRP_SCHEDULE_DELAY="60000",
    )
    assert (done.returncode, "not exported" in done.stderr) == (0, False), done.stderr
    assert otlp_sink.names().count("run shop") == 2
    assert len({span.trace_id for span in otlp_sink.spans}) == 2
    assert [log.body for log in otlp_sink.logs].count("looked") == 2


def test_telemetry_set_up_in_a_thread_is_flushed_on_sigterm_after_a_call_in_the_main_thread(
    tmp_path: Path, otlp_sink: Sink
) -> None:
    """Only the main thread may install signal handlers: it does when it calls setup() itself, which
    returns the thread's set-up.
    """
    code = """
import signal

@pp.node
def stops(name: str) -> str:
    signal.raise_signal(signal.SIGTERM)
    return name

thread = threading.Thread(target=setup); thread.start(); thread.join()
setup(); pp.Graph(stops, name="shop").run_sync("tea")
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, OTEL_METRICS_EXPORTER="none")
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert otlp_sink.one("run shop")["pocket_plug.run.outcome"] == "interrupted"


def test_process_1_of_a_container_ends_at_a_sigterm_too(tmp_path: Path, otlp_sink: Sink) -> None:
    """The kernel drops the signal that would end it. It went on with its runs, which were reported as interrupted."""
    code = """
import os, signal

signal.raise_signal = lambda number: None

@pp.node
def stops(name: str) -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    return name

setup(); pp.Graph(stops, name="shop").run_sync("tea"); print("went on")
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, OTEL_METRICS_EXPORTER="none")
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, ""), done.stderr
    assert otlp_sink.one("run shop")["pocket_plug.run.outcome"] == "interrupted"


def test_a_forked_child_that_is_terminated_ends_no_span_of_its_parents(tmp_path: Path, otlp_sink: Sink) -> None:
    """Open spans at the fork are the parent's, and are sent once, as the parent ended them."""
    code = """
import signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads

@pp.node
def forks(name: str) -> str:
    child = os.fork()
    if child == 0:
        signal.raise_signal(signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return name

setup(); pp.Graph(forks, name="shop").run_sync("tea")
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, OTEL_METRICS_EXPORTER="none")
    assert (done.returncode, done.stdout) == (0, f"{-signal.SIGTERM}\n"), done.stderr
    assert otlp_sink.one("run shop")["pocket_plug.interrupted"] is None
    assert otlp_sink.one("node forks")["pocket_plug.interrupted"] is None


@pytest.mark.parametrize(
    "workers",
    [
        """
workers = [context.Process(target=work, args=(number,)) for number in range(4)]
for worker in workers: worker.start()
for worker in workers: worker.join()
""",
        """
with context.Pool(2) as pool: pool.map(work, range(4))
""",
        """
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2, mp_context=context) as pool: list(pool.map(work, range(4)))
""",
    ],
    ids=["Process", "Pool", "ProcessPoolExecutor"],
)
def test_workers_of_multiprocessing_send_their_telemetry_when_they_end(
    tmp_path: Path, otlp_sink: Sink, workers: str
) -> None:
    """They end without the functions of `atexit`."""
    code = FORKS + 'context = multiprocessing.get_context("fork"); setup(log_level="error")' + workers
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, OTEL_BSP_SCHEDULE_DELAY="60000")
    assert done.returncode == 0, done.stderr
    assert otlp_sink.names().count("run shop") == 4
    counts = [
        point.count
        for metric in otlp_sink.metrics
        if metric.name == "pocket_plug.run.duration"
        for point in metric.points
    ]
    assert sum(counts) == 4


def test_a_worker_of_multiprocessing_is_terminated_before_its_first_step(tmp_path: Path) -> None:
    """On one processor the signal arrives before the child runs; Python drops it, unless it is blocked until after the fork."""
    code = (
        FORKS
        + """
setup(log_level="error")
context = multiprocessing.get_context("fork")
forever = context.Semaphore(0)
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for _ in range(10):
    worker = context.Process(target=forever.acquire)
    worker.start()
    worker.terminate()
    worker.join()
    print(worker.exitcode)
print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    )
    done = python(code, tmp_path, OTEL_TRACES_EXPORTER="console")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{-signal.SIGTERM}\n" * 10 + "set()\n"


def test_a_worker_of_multiprocessing_ends_by_a_sigterm_that_came_as_it_began_to_wait(
    tmp_path: Path, otlp_sink: Sink
) -> None:
    """Python notes it and calls no handler until the wait is over, so the termination of a pool would wait without end."""
    code = (
        FORKS
        + """
import ctypes

def terminated_as_it_waits():
    work(1)
    sys.setswitchinterval(1000)  # so the other thread runs once this one waits, and has released the GIL for that
    threading.Thread(target=note, daemon=True).start()
    release.release()
    forever.acquire()

def note():
    release.acquire()
    ctypes.pythonapi.PyErr_SetInterruptEx(signal.SIGTERM)  # what a signal does but for the interruption

setup(log_level="error")
release, forever = threading.Semaphore(0), multiprocessing.Semaphore(0)
worker = multiprocessing.get_context("fork").Process(target=terminated_as_it_waits)
worker.start()
worker.join()
print(worker.exitcode)
"""
    )
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, OTEL_BSP_SCHEDULE_DELAY="60000")
    assert (done.returncode, done.stdout) == (0, f"{-signal.SIGTERM}\n"), done.stderr
    assert otlp_sink.names().count("run shop") == 1


def test_a_forked_child_has_a_connection_of_its_own(tmp_path: Path, otlp_sink: Sink) -> None:
    """It doesn't write into its parent's connection, which was open before."""
    code = (
        FORKS
        + """
telemetry = setup(log_level="error")
work(0); telemetry.flush()
children = []
for number in range(4):
    children.append(os.fork())
    if not children[-1]: break
for _ in range(25):
    work(number); telemetry.flush()
if not children[-1]:
    telemetry.close()
    os._exit(0)
for child in children: os.waitpid(child, 0)
"""
    )
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert (done.returncode, "export" in done.stderr) == (0, False), done.stderr
    assert otlp_sink.names().count("run shop") == 1 + 5 * 25
    assert otlp_sink.metrics


def test_a_child_forked_while_a_thread_writes_a_line_can_write_its_own(tmp_path: Path) -> None:
    """No lock of that thread is inherited."""
    code = (
        FORKS
        + """
writing, go_on = threading.Event(), threading.Event()

class Slow:
    def isatty(self): return False
    def flush(self): pass
    def write(self, text):
        if os.getpid() == parent:
            writing.set()
            go_on.wait()

parent, sys.stderr = os.getpid(), Slow()
setup()
thread = threading.Thread(target=work, args=(1,))
thread.start()
writing.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    work(2)
    os._exit(0)
print(os.waitpid(child, 0)[1])
go_on.set()
thread.join()
"""
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_forked_children_count_from_zero_as_separate_instances(tmp_path: Path, otlp_sink: Sink) -> None:
    """The parent's earlier counts are in no child's metrics; all three signals of a process have the same instance id."""
    code = (
        FORKS
        + """
telemetry = setup(log_level="warning")
for _ in range(4): work(0)
for times in (1, 2):
    if os.fork() == 0:
        for _ in range(times): work(times)
        telemetry.close()
        os._exit(0)
for _ in range(2): os.wait()
"""
    )
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, OTEL_METRIC_EXPORT_INTERVAL="600000")
    assert done.returncode == 0, done.stderr
    counts = {
        metric.resource["service.instance.id"]: point.count
        for metric in otlp_sink.metrics
        if metric.name == "pocket_plug.run.duration"
        for point in metric.points
    }
    spans = Counter(span.resource["service.instance.id"] for span in otlp_sink.spans if span.name == "run shop")
    assert sorted(counts.values()) == [1, 2, 4]
    assert spans == counts


def test_a_child_forked_while_metrics_are_sent_sends_its_own(tmp_path: Path, otlp_sink: Sink) -> None:
    """A collector that hangs blocks the parent's lock, and not the child's."""
    otlp_sink.hang()
    code = (
        FORKS
        + """
telemetry = setup(log_level="warning")
work(0)
thread = threading.Thread(target=telemetry.flush, args=(60,), daemon=True)
thread.start()
print("sends", flush=True)
sys.stdin.readline()
if os.fork() == 0:
    work(1)
    telemetry.close()
    os._exit(0)
print(os.wait()[1], flush=True)
thread.join()
"""
    )
    with subprocess.Popen(
        [sys.executable, "-c", WORKFLOW + code],
        cwd=tmp_path,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, OTEL_TRACES_EXPORTER="none", OTEL_LOGS_EXPORTER="none"
        ),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "sends\n"
        otlp_sink.wait_for(lambda: otlp_sink.held == 1)
        process.stdin.write("\n")
        process.stdin.flush()
        otlp_sink.wait_for(lambda: otlp_sink.held == 2)  # the child's, in addition
        otlp_sink.accept()
        assert process.stdout.readline() == "0\n"
        process.stdin.close()
    assert len({metric.resource["service.instance.id"] for metric in otlp_sink.metrics}) == 2


def test_a_child_forked_while_metrics_are_collected_sends_its_own(tmp_path: Path, otlp_sink: Sink) -> None:
    """The lock is held while the program's own callback is called."""
    code = (
        FORKS
        + """
from opentelemetry import metrics

def observe_slowly(options):
    if os.getpid() == parent:
        asked.set()
        go_on.wait()
    return []

parent, asked, go_on = os.getpid(), threading.Event(), threading.Event()
telemetry = setup(log_level="warning")
metrics.get_meter("shop").create_observable_gauge("slow", [observe_slowly])
thread = threading.Thread(target=telemetry.flush, args=(60,), daemon=True)
thread.start()
asked.wait()
if os.fork() == 0:
    work(1)
    telemetry.close()
    os._exit(0)
print(os.wait()[1])
go_on.set()
thread.join()
"""
    )
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, POCKET_PLUG_FLUSH_TIMEOUT="30")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert "pocket_plug.run.duration" in {metric.name for metric in otlp_sink.metrics}
    assert "given up" not in done.stderr


def test_a_forked_child_logs_once_that_prometheus_does_not_see_it(tmp_path: Path) -> None:
    """One child, for all; none keeps the port open after its parent's end."""
    port = str(free_port())
    code = (
        FORKS
        + f"""
telemetry = setup(log_level="warning")
reading, writing = os.pipe()
heard, ready = os.pipe()
for _ in range(2):
    if os.fork() == 0:
        os.close(writing)
        work(0)
        for thread in threading.enumerate():
            if thread.name == "pocket_plug serving": thread.join()
        os.write(ready, b".")
        os.read(reading, 1)
        os._exit(0)
    os.read(heard, 1)
telemetry.close()
with socket.create_server(("127.0.0.1", {port})): print("free")
os.close(writing)
for _ in range(2): os.wait()
"""
    )
    done = python(
        "import socket\n" + code,
        tmp_path,
        OTEL_METRICS_EXPORTER="prometheus",
        OTEL_EXPORTER_PROMETHEUS_PORT=port,
        OTEL_EXPORTER_PROMETHEUS_HOST="127.0.0.1",
    )
    assert (done.returncode, done.stdout) == (0, "free\n"), done.stderr
    said = [line for line in done.stderr.splitlines() if f"to Prometheus on 127.0.0.1:{port}" in line]
    assert len(said) == 1, done.stderr
    assert "OTEL_METRICS_EXPORTER=otlp" in said[0]


def test_a_forked_childs_warning_about_prometheus_is_sent(tmp_path: Path, otlp_sink: Sink) -> None:
    """It is logged when the child has new queues; before, it would be dropped, or wait for a lock of the parent's."""
    port = str(free_port())
    code = (
        FORKS
        + """
telemetry = setup(log_level="warning")
child = os.fork()
if child == 0:
    for thread in threading.enumerate():
        if thread.name == "pocket_plug serving": thread.join()
    telemetry.close()
    os._exit(0)
os.wait()
"""
    )
    done = python(
        code,
        tmp_path,
        OTEL_METRICS_EXPORTER="prometheus",
        OTEL_EXPORTER_PROMETHEUS_PORT=port,
        OTEL_EXPORTER_PROMETHEUS_HOST="127.0.0.1",
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url,
    )
    assert done.returncode == 0, done.stderr
    assert len([log for log in otlp_sink.logs if f"to Prometheus on 127.0.0.1:{port}" in str(log.body)]) == 1


def test_a_log_call_at_a_childs_start_waits_for_no_thread_of_its_parent(tmp_path: Path) -> None:
    """A fork waits until no thread changes a queue's count; logging at the fork itself waits for nobody."""
    code = (
        FORKS
        + """
from pocket_plug.primitives import forking
from pocket_plug.telemetry.export import Backlog

forking.after_fork(lambda: backlog.add())
backlog = Backlog("log records", 9)

def count():
    with backlog._lock:
        counting.set()
        while not forking.is_under_way(): pass

counting = threading.Event()
threading.Thread(target=count).start()
counting.wait()
child = os.fork()
if child == 0:
    os._exit(backlog.add() - 1)
print(os.waitpid(child, 0)[1])
"""
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


# ---------------------------------------------------------------- signals
@pytest.mark.parametrize("goes_on", ["sys.stdin.read()", "sys.exit()", "telemetry.close(); sys.stdin.read()"])
def test_a_sigterm_interrupts_no_flush(tmp_path: Path, otlp_sink: Sink, goes_on: str) -> None:
    """Neither the flush of an earlier SIGTERM, nor that of an exit or of `close()`."""
    otlp_sink.hang()
    code = f"""
import signal
telemetry = setup(log_level="error"); graph.run_sync("tea")
print("ran", flush=True)
{goes_on}
"""
    with subprocess.Popen(
        [sys.executable, "-c", WORKFLOW + code],
        cwd=tmp_path,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, OTEL_METRICS_EXPORTER="none", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="1"
        ),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ran\n"
        if goes_on == "sys.stdin.read()":
            process.send_signal(signal.SIGTERM)
        otlp_sink.wait_for(lambda: otlp_sink.held)
        process.send_signal(signal.SIGTERM)
        otlp_sink.accept()
        assert process.wait(timeout=60) == -signal.SIGTERM
    assert "run shop" in otlp_sink.names()


# ---------------------------------------------------------------- exporters
class Exits(SpanExporter):
    """Raises SystemExit the first time it is called."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.twice = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked += [span.name for span in spans]
        if len(self.asked) == 1:
            raise SystemExit(1)
        self.twice.set()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def test_an_exporter_that_raises_system_exit_is_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporting thread continues after any exception."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    provider, exporter = TracerProvider(), Exits()
    processor = SpanExport(exporter)
    provider.add_span_processor(processor)
    for name in ("first", "second"):
        provider.get_tracer("test").start_span(name).end()
    assert exporter.twice.wait(60)
    provider.shutdown()
    assert exporter.asked == ["first", "second"]
    assert processor.backlog.unsent == 1
