"""setup(): three signals where the environment says, existing providers are kept, and nothing delays a run or an exit.

It sets the process's global providers, so each case is a process of its own, with a collector in this one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from otlp_sink import Sink
from scripts import WORKFLOW, environment, python

from pocket_plug.testing.servers import free_port


def lines(text: str) -> list[dict[str, object]]:
    """Of JSON."""
    return [json.loads(line) for line in text.splitlines()]


# ---------------------------------------------------------------- destinations
def test_a_configuration_file_without_its_loader_is_an_error(tmp_path: Path) -> None:
    """It isn't ignored; the error says what to install. With the loader, see test_config_file.py."""
    code = """
sys.modules["opentelemetry.configuration"] = None
for start in (setup, observe):
    try:
        start()
    except pp.ConfigError as error:
        print(error)
"""
    done = python(code, tmp_path, OTEL_CONFIG_FILE="otel.yaml", OTEL_TRACES_EXPORTER="console")
    said = (
        "otel.yaml (named by OTEL_CONFIG_FILE): OpenTelemetry's loader of such files is not installed: "
        "pip install 'pocket-plug[config-file]'"
    )
    assert done.stdout.splitlines() == [said] * 2, done.stderr


def test_one_endpoint_gets_all_three_signals_of_one_resource_correlated(tmp_path: Path, otlp_sink: Sink) -> None:
    """Logs have the ids of the current span; the script's own events too, with run, graph and node."""
    done = python(
        'print(setup()); graph.run_sync("tea")',
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url,
        OTEL_SERVICE_NAME="shop-service",
    )
    assert (done.returncode, done.stdout) == (0, "Telemetry(mode='otlp', file=None, metrics='otlp', logs='otlp')\n")
    run, node = otlp_sink.one("run shop"), otlp_sink.one("node look")
    logs = {log.body: log for log in otlp_sink.logs}
    looked, finished = logs["looked"], logs["pocket_plug.run.finished"]
    assert (looked.trace_id, looked.span_id, looked.severity) == (node.trace_id, node.span_id, "INFO")
    assert {
        name: looked.attributes[name] for name in ("colour", "pocket_plug.graph.name", "pocket_plug.node.name")
    } == {"colour": "green", "pocket_plug.graph.name": "shop", "pocket_plug.node.name": "look"}
    assert looked.attributes["pocket_plug.run.id"] == run["pocket_plug.run.id"]
    assert (looked.scope.name, looked.event) == ("structlog", "")
    assert (finished.scope.name, finished.event, finished.span_id) == ("pocket_plug", finished.body, run.span_id)
    assert "pocket_plug.run.duration" in {metric.name for metric in otlp_sink.metrics}
    resources = [found.resource for found in (run, looked, otlp_sink.metrics[0])]
    assert [resource["service.name"] for resource in resources] == ["shop-service"] * 3
    said = {line["event"]: line for line in lines(done.stderr)}
    assert (said["looked"]["trace_id"], said["looked"]["level"]) == (node.trace_id, "info")


def test_without_variables_nothing_is_sent_and_no_provider_set(tmp_path: Path) -> None:
    """Events still go to stderr, as JSON; runs cost nothing more."""
    code = """
from opentelemetry import _logs, metrics, trace
with setup() as telemetry:
    print(telemetry)
    graph.run_sync("tea")
from pocket_plug.layers import tracing
print(tracing.look(), [type(each).__module__.split(".")[1] for each in (
    trace.get_tracer_provider(), metrics.get_meter_provider(), _logs.get_logger_provider())])
"""
    done = python(code, tmp_path)
    assert done.stdout.splitlines() == [
        "Telemetry(mode='none', file=None, metrics='none', logs='none')",
        "None ['trace', 'metrics', '_logs']",
    ]
    assert [line["event"] for line in lines(done.stderr)] == [
        "pocket_plug.run.started",
        "looked",
        "pocket_plug.run.finished",
    ]


def test_providers_of_the_program_are_used_and_left_as_they_are(tmp_path: Path, otlp_sink: Sink) -> None:
    """For each signal; closing shuts none of them down. The program's logger provider gets structlog's events."""
    code = """
from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
spans, records, reader = InMemorySpanExporter(), InMemoryLogRecordExporter(), InMemoryMetricReader()
class Unhashable(MeterProvider):  # as Logfire's
    __hash__ = None
tracers, loggers, meters = TracerProvider(), LoggerProvider(), Unhashable([reader])
tracers.add_span_processor(SimpleSpanProcessor(spans))
loggers.add_log_record_processor(SimpleLogRecordProcessor(records))
trace.set_tracer_provider(tracers); _logs.set_logger_provider(loggers); metrics.set_meter_provider(meters)
with setup() as telemetry:
    print(telemetry.mode, telemetry.metrics, telemetry.logs)
    graph.run_sync("tea")
graph.run_sync("tea")
print(len([span for span in spans.get_finished_spans() if span.name == "run shop"]), len(records.get_finished_logs()))
print(bool(reader.get_metrics_data().resource_metrics))
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.stdout.splitlines() == ["yours yours yours", "2 6", "True"]
    assert otlp_sink.requests == []


def test_called_twice_it_is_set_up_once_and_again_after_closing(tmp_path: Path, otlp_sink: Sink) -> None:
    """The second call returns the first one's object; nothing is recorded twice; nothing is recorded while it is closed."""
    code = """
first = setup()
assert setup() is first and setup(log_level="info") is first
try:
    setup(log_level="debug", capture="full")
except pp.ConfigError as error:
    assert "other arguments: capture is 'full', and was not given; log_level is 'debug'" in str(error)
else:
    raise AssertionError("it was taken for the same")
graph.run_sync("tea")
first.close(); first.close()
graph.run_sync("in between")
assert first.unsent == 0
from pocket_plug.layers import metrics, tracing
from opentelemetry.metrics import NoOpMeterProvider
assert tracing.look() is None and isinstance(metrics.configure().meter_provider, NoOpMeterProvider)  # it costs nothing
for _ in range(2):
    with setup() as another:
        assert another is not first and another.metrics == "otlp"
        graph.run_sync("tea")
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.returncode == 0, done.stderr
    assert otlp_sink.names().count("run shop") == 3
    assert [log.body for log in otlp_sink.logs].count("looked") == 3
    counts = [
        point.count
        for metric in otlp_sink.metrics
        if metric.name == "pocket_plug.run.duration"
        for point in metric.points
    ]
    assert counts == [1, 1, 1]


@pytest.mark.parametrize("lines_for", ["a file", "people"])
def test_any_log_event_makes_a_line_and_fails_no_node(tmp_path: Path, otlp_sink: Sink, lines_for: str) -> None:
    """What can be logged on a terminal can be logged in a container, as valid JSON lines; each is sent, too."""
    code = f"""
import logging

class Odd:
    def __repr__(self):
        raise RuntimeError("it has none")

circle, nested = {{}}, []
circle["itself"] = circle
for _ in range(300_000):
    nested = [nested]
values = [{{(1, 2): 3}}, float("nan"), [float("inf")], circle, nested, Odd(), "\\udcff", b"x"]

@pp.node
def train(number: int) -> int:
    for value in values:
        structlog.get_logger().info("an odd one", value=value)
        logging.getLogger("library").info("an odd record", extra={{"value": value}})
    return number

if {lines_for!r} == "people":
    sys.stderr.isatty = lambda: True
with setup():
    pp.Graph(train, name="training").run_sync(1)
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert (done.stderr.count("an odd one"), done.stderr.count("an odd record")) == (8, 8)
    bodies = [log.body for log in otlp_sink.logs]
    assert (bodies.count("an odd one"), bodies.count("an odd record")) == (8, 8)
    if lines_for == "a file":
        said = [json.loads(line, parse_constant=pytest.fail) for line in done.stderr.splitlines()]
        shown = [line["value"] for line in said if line.get("event") == "an odd record"]
        assert shown[:4] == ["{(1, 2): 3}", "nan", "[inf]", "{'itself': {...}}"]
        assert shown[4:] == ["(unreadable list)", "(unreadable Odd)", "\udcff", "b'x'"]


def test_a_set_up_during_the_close_of_another_is_independent(tmp_path: Path) -> None:
    """A slow collector may delay a close. The next setup() has all three signals of its own, its metrics too."""
    code = f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
from otlp_sink import Sink
with Sink() as sink:
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = sink.url
    first = setup()
    graph.run_sync("coffee")
    sink.hang()
    closing = threading.Thread(target=first.close); closing.start()
    sink.wait_for(lambda: sink.held)
    second = setup()
    sink.accept()
    closing.join()
    sink.clear()
    graph.run_sync("tea")
    second.close()
    print(second.metrics, "run shop" in sink.names(), "looked" in [log.body for log in sink.logs])
    print("pocket_plug.run.duration" in [metric.name for metric in sink.metrics])
"""
    done = python(code, tmp_path)
    assert done.stdout == "otlp True True\nTrue\n", done.stderr


@pytest.mark.parametrize("call", ["setup()", "observe()", "observe(terminal=True)"])
def test_a_service_without_stderr_is_traced(tmp_path: Path, otlp_sink: Sink, call: str) -> None:
    """`sys.stderr` is None with pythonw and if it was closed before the start: lines and trees are dropped then."""
    code = f"""
sys.stderr = None
with {call} as telemetry:
    graph.run_sync("tea")
    print(telemetry.mode)
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{otlp_sink.url}/v1/traces")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "otlp")
    assert "run shop" in otlp_sink.names()
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "none" if call == "setup()" else "local")


def test_beside_observe_each_does_its_part_and_no_span_is_sent_twice(tmp_path: Path, otlp_sink: Sink) -> None:
    """`pocket-plug run --trace` of a program that calls setup()."""
    code = 'observe(file="t.jsonl"); print(setup().mode); graph.run_sync("tea")'
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert (done.returncode, done.stdout) == (0, "yours\n")
    assert otlp_sink.names().count("run shop") == 1
    assert [log.body for log in otlp_sink.logs].count("looked") == 1
    assert otlp_sink.metrics


def test_each_signal_has_its_own_exporter(tmp_path: Path, otlp_sink: Sink) -> None:
    """A signal's own exporter variable counts for that signal; `none` disables it."""
    done = python(
        'setup(); graph.run_sync("tea")',
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url,
        OTEL_TRACES_EXPORTER="none",
        OTEL_LOGS_EXPORTER="console",
    )
    assert done.returncode == 0, done.stderr
    assert {request.path for request in otlp_sink.requests} == {"/v1/metrics"}
    assert '"body": "looked"' in done.stdout


def test_prometheus_finds_metrics_until_it_is_closed(tmp_path: Path) -> None:
    """At OTEL_EXPORTER_PROMETHEUS_PORT. A port in use is logged, and breaks nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        settings = {
            "OTEL_METRICS_EXPORTER": "prometheus",
            "OTEL_EXPORTER_PROMETHEUS_PORT": port,
            "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
        }
        done = python('setup(); print(graph.run_sync("tea"))', tmp_path, **settings)
        assert (done.returncode, done.stdout) == (0, "tea\n")
        assert f"can't serve its metrics to Prometheus on 127.0.0.1:{port}: Address already in use" in done.stderr
        assert "OTEL_METRICS_EXPORTER=otlp" in done.stderr  # the way out
    code = f"""
from urllib.request import urlopen
telemetry = setup()
graph.run_sync("tea")
with urlopen("http://localhost:{port}/metrics") as answer:
    text = answer.read().decode()
print("pocket_plug_run_duration_seconds_count{{" in text, 'pocket_plug_graph_name="shop"' in text)
telemetry.close()
try:
    urlopen("http://localhost:{port}/metrics")
except OSError as error:
    print("closed")
"""
    done = python(code, tmp_path, **settings)
    assert done.stdout.splitlines() == ["True True", "closed"], done.stderr


def test_invalid_variables_are_an_error_and_nothing_is_half_set_up(tmp_path: Path) -> None:
    """An unknown exporter of any signal, a port, a level."""
    code = """
from opentelemetry import trace
for name, value in (("OTEL_METRICS_EXPORTER", "statsd"), ("OTEL_LOGS_EXPORTER", "syslog"),
                    ("OTEL_EXPORTER_PROMETHEUS_PORT", "http")):
    former, os.environ[name] = os.environ.get(name, ""), value
    try:
        setup()
    except pp.ConfigError as error:
        print(error)
    os.environ[name] = former
for level in ("loud", 20):
    try:
        setup(log_level=level)
    except pp.ConfigError as error:
        print(error)
print(type(trace.get_tracer_provider()).__name__)
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_METRICS_EXPORTER="prometheus")
    metrics, logs, *others = done.stdout.splitlines()
    assert "'statsd'; give otlp, prometheus, console or none" in metrics
    assert "'syslog'; give otlp, console or none" in logs
    assert others == [
        "OTEL_EXPORTER_PROMETHEUS_PORT is 'http'; give a port, 1 to 65535",
        "log_level can't be 'loud'; give one of debug, info, warning, error, critical.",
        "log_level can't be 20; give one of debug, info, warning, error, critical.",
        "ProxyTracerProvider",
    ]


def test_setup_that_fails_leaves_no_thread_no_port_and_no_setting(tmp_path: Path) -> None:
    """Whatever was invalid; and after the correction it works."""
    port = free_port()
    asking = {
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp,prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }
    cases: list[tuple[dict[str, object], dict[str, str]]] = [
        ({}, asking | {"OTEL_METRICS_EXPORTER": "statsd"}),
        ({}, asking | {"OTEL_BLRP_SCHEDULE_DELAY": "-1"}),
        ({}, asking | {"OTEL_EXPORTER_PROMETHEUS_PORT": "http"}),
        ({"log_level": "loud"}, asking),
        ({"flush_timeout": -1}, asking),
        *(({name: "nonsense"}, asking) for name in ("detail", "capture", "redact", "baggage")),
    ]
    code = f"""
from opentelemetry import trace
from prometheus_client import REGISTRY
from urllib.request import urlopen
from pocket_plug.layers import tracing

def state():
    return ([thread.name for thread in threading.enumerate()], structlog.is_configured(), len([*REGISTRY.collect()]),
            tracing.look(), tracing.settings.settings, type(trace.get_tracer_provider()).__name__)

before = state()
for arguments, variables in {cases!r}:
    os.environ.update(variables)
    try:
        print("set up", arguments, variables, setup(**arguments))
    except pp.ConfigError:
        if state() != before:
            print("left", arguments, variables, state())
    for name in variables:
        del os.environ[name]
os.environ.update(OTEL_METRICS_EXPORTER="prometheus", OTEL_EXPORTER_PROMETHEUS_PORT="{port}")
with setup(log_level="warning"):
    graph.run_sync("tea")
    print("pocket_plug_run_duration" in urlopen("http://localhost:{port}/metrics").read().decode())
"""
    done = python(code, tmp_path)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_a_failure_in_the_last_step_undoes_the_previous_ones(tmp_path: Path) -> None:
    """The queues are shut down, there are no observers, and tracing's settings are restored."""
    code = """
from pocket_plug.layers import tracing
from pocket_plug.telemetry import ending
from pocket_plug.telemetry.environment import Environment
former = tracing.configure()

def fail(self):
    raise pp.ConfigError("propagators")

for start in (setup, observe):
    with_it, Environment.apply_the_rest = Environment.apply_the_rest, fail
    try:
        start(detail="debug", capture="keys")
    except pp.ConfigError as error:
        now = tracing.configure()
        standbys = [each.thread for each in ending._standbys]  # Python 3.12 has some
        threads = [thread.name for thread in threading.enumerate() if thread not in standbys]
        print(error, threads, tracing.look(), now.detail == former.detail, now.capture == former.capture)
    Environment.apply_the_rest = with_it
    with start() as telemetry:
        graph.run_sync("tea")
        print(telemetry.flush(), telemetry.unsent)
"""
    done = python(
        code, tmp_path, OTEL_TRACES_EXPORTER="console", OTEL_METRICS_EXPORTER="console", OTEL_LOGS_EXPORTER="console"
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(("propagators", "True", "False"))]
    assert said == ["propagators ['MainThread'] None True True", "True 0"] * 2, done.stderr


DETECTOR = """
import gc, sys
from opentelemetry.sdk.resources import Resource, ResourceDetector

class Cloud(ResourceDetector):
    def detect(self):
        MetricExport = getattr(sys.modules.get("pocket_plug.telemetry.export"), "MetricExport", None)
        if MetricExport is None:  # the SDK asks too, when it is imported
            return Resource({})
        print("detected")
        for reader in gc.get_objects():
            if isinstance(reader, MetricExport):
                reader.collect()  # as its thread does, meanwhile
        return Resource({"cloud.region": "north"})
"""


def test_a_detector_of_resources_is_asked_once_and_may_take_its_time(tmp_path: Path, otlp_sink: Sink) -> None:
    """It may ask a server of the cloud. All three signals have what it found; no reader is due meanwhile, which would warn."""
    (tmp_path / "cloud.py").write_text(DETECTOR)
    installed = tmp_path / "cloud-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: cloud\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[opentelemetry_resource_detector]\ncloud = cloud:Cloud\n")
    done = python(
        'setup(log_level="warning"); structlog.get_logger().warning("hot"); graph.run_sync("tea")',
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url,
        OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="cloud",
    )
    assert done.stdout == "detected\n"
    assert [line["event"] for line in lines(done.stderr)] == ["hot"], done.stderr
    found = [each.resource["cloud.region"] for each in (*otlp_sink.spans, *otlp_sink.metrics, *otlp_sink.logs)]
    assert set(found) == {"north"}


def test_variables_that_opentelemetry_refuses_are_an_error_too(tmp_path: Path) -> None:
    """The error has OpenTelemetry's text, raised by `setup()`."""
    code = """
try:
    setup()
except pp.ConfigError as error:
    print(error)
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_METRIC_EXPORT_INTERVAL="0")
    assert done.stdout.startswith("OpenTelemetry rejects an OTEL_* variable: interval value 0.0 is invalid and")


def test_invalid_sizes_are_ignored(tmp_path: Path, otlp_sink: Sink) -> None:
    """A text that is no number is logged; a batch is no larger than its queue; an exporter named twice is one."""
    done = python(
        'print(setup(log_level="error").mode); graph.run_sync("tea")',
        tmp_path,
        OTEL_METRICS_EXPORTER="none",
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url,
        OTEL_TRACES_EXPORTER="otlp,otlp",
        OTEL_BSP_MAX_QUEUE_SIZE="plenty",
        OTEL_BLRP_MAX_EXPORT_BATCH_SIZE="99999",
    )
    assert (done.returncode, done.stdout) == (0, "otlp\n"), done.stderr
    assert "OTEL_BSP_MAX_QUEUE_SIZE is 'plenty', not a positive number; 32768 is used" in done.stderr
    assert otlp_sink.names().count("run shop") == 1


def test_the_default_service_name_is_the_scripts(tmp_path: Path, otlp_sink: Sink) -> None:
    """A package that is run by `python -m`, as servers are, has the package's name. Another attribute with that suffix doesn't
    count.
    """
    (tmp_path / "stall").mkdir()
    for file in ("shopping.py", "stall/__main__.py"):
        (tmp_path / file).write_text(WORKFLOW + 'observe(); graph.run_sync("tea")')
    for attributes, *command in (
        ("peer.service.name=other", "shopping.py"),
        ("service.name=shop", "shopping.py"),
        ("", "-m", "stall"),
    ):
        subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            timeout=60,
            check=True,
            env=environment(OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, OTEL_RESOURCE_ATTRIBUTES=attributes),
        )
    names = [span.resource["service.name"] for span in otlp_sink.spans if span.name == "run shop"]
    assert names == ["shopping", "shop", "stall"]


def test_switched_off_only_structlog_is_configured(tmp_path: Path) -> None:
    """OTEL_SDK_DISABLED=true."""
    done = python(
        """
from pocket_plug.layers import tracing
t = setup(capture="full")
print(t.mode, t.metrics, t.logs)
graph.run_sync("tea")
t.close()
assert tracing.configure().capture is None
""",
        tmp_path,
        OTEL_SDK_DISABLED="true",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
    )
    assert done.stdout == "off off off\n"
    assert "looked" in [line["event"] for line in lines(done.stderr)]


ADDING = """
from pocket_plug.hookspecs import SpanAdditions, hookimpl
from pocket_plug.plugins import default_pocket

class Adding:
    @hookimpl
    def pocket_span_additions(self):
        return SpanAdditions(resource=lambda own: {"project": own["service.name"] + "!", "service.name": "theirs"})

default_pocket().register(Adding())
"""


@pytest.mark.parametrize("call", ["setup", "observe"])
def test_plugins_add_to_the_resource(tmp_path: Path, otlp_sink: Sink, call: str) -> None:
    """Plugins of the default Pocket, which get its present attributes; the environment's attributes stay."""
    python(
        f'{ADDING}\n{call}(); graph.run_sync("tea")',
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url,
        OTEL_SERVICE_NAME="shop",
    )
    resource = otlp_sink.one("run shop").resource
    assert (resource.get("project"), resource.get("service.name")) == ("shop!", "shop")


@pytest.mark.parametrize("call", ["setup", "observe"])
def test_flavours_are_a_plugin_now(tmp_path: Path, call: str) -> None:
    """The option is accepted until 0.3, and says what to install."""
    (tmp_path / "program.py").write_text(
        f'from pocket_plug.telemetry import {call}\n{call}(flavours=["openinference"])\n'
    )
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment(), text=True, capture_output=True, timeout=60
    )
    assert "program.py:2: DeprecationWarning: flavours has no effect any more" in done.stderr
    assert "pip install pocket-plug-openinference" in done.stderr


# ---------------------------------------------------------------- structlog
def test_the_programs_chain_is_unchanged_and_export_event_exports(tmp_path: Path, otlp_sink: Sink) -> None:
    """Attributes are plain, long ones are cut, an exception is recorded, and the event is passed on unchanged."""
    code = """
kept = []
structlog.configure(processors=[export_event, lambda logger, method, event: kept.append(dict(event)) or str(event)],
                    logger_factory=structlog.ReturnLoggerFactory())
with setup():
    log = structlog.get_logger()
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("broke", many=[1, 2], long="x" * 10_000, huge=2**70, node="mine")
print(sorted(kept[0]))
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert (done.stdout, done.stderr) == ("['event', 'exc_info', 'huge', 'long', 'many', 'node']\n", "")
    (log,) = otlp_sink.logs
    assert (log.body, log.severity, log.trace_id) == ("broke", "ERROR", "")
    assert log.attributes["many"] == "[1, 2]"
    assert log.attributes["huge"] == str(2**70)
    assert log.attributes["node"] == "mine"  # outside of runs a field has the program's name
    assert len(log.attributes["long"]) == 4096
    assert log.attributes["exception.type"] == "ZeroDivisionError"
    assert "division by zero" in log.attributes["exception.stacktrace"]


def test_an_event_that_cannot_be_exported_fails_nobody(tmp_path: Path, otlp_sink: Sink) -> None:
    """An event with an unreadable text: the program's line is written, and the failure is logged once. The field is marked
    unreadable.
    """
    code = """
class Odd:
    def __repr__(self): raise RuntimeError("secret")
structlog.configure(processors=[export_event, lambda logger, method, event: "odd"])
with setup():
    for _ in range(2):
        structlog.get_logger().info(Odd())
    structlog.get_logger().info("a field", odd=Odd())
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.stdout == "odd\nodd\nodd\n"
    assert done.stderr.count("exporting a log event failed: RuntimeError.") == 1
    assert "secret" not in done.stderr
    (field,) = [log for log in otlp_sink.logs if log.body == "a field"]
    assert field.attributes["odd"] == "(unreadable Odd)"


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["colours", "NO_COLOR"])
def test_a_terminal_gets_lines_for_people(tmp_path: Path, env: dict[str, str], coloured: bool) -> None:
    """In colours unless NO_COLOR is set."""
    master, slave = os.openpty()
    command = [sys.executable, "-c", WORKFLOW + 'setup(); graph.run_sync("tea")']
    with open(master, "rb", buffering=0) as terminal:
        done = subprocess.run(command, cwd=tmp_path, env=environment(**env), stderr=slave, timeout=60, check=False)
        os.close(slave)
        text = b""
        while chunk := _read(terminal.fileno()):
            text += chunk
    assert done.returncode == 0
    assert b"looked" in text
    assert b"{" not in text
    assert (b"\x1b[" in text) is coloured


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # on Linux, this means that the other end was closed
        return b""


# ---------------------------------------------------------------- exporters that fail
def test_a_run_ends_while_the_collector_still_hangs(tmp_path: Path, otlp_sink: Sink) -> None:
    """A full queue accepts no more; dropped spans and log records are counted and logged once."""
    otlp_sink.hang()
    code = """
telemetry = setup()
for _ in range(50):
    graph.run_sync("tea")
print("ran", flush=True)
sys.stdin.readline()
print(telemetry.unsent > 0, telemetry.flush(0.0))
telemetry.close(timeout=0.1)
"""
    env = environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url,
        OTEL_BSP_MAX_QUEUE_SIZE="10",
        OTEL_BLRP_MAX_QUEUE_SIZE="10",
        OTEL_BSP_SCHEDULE_DELAY="10",
        OTEL_BLRP_SCHEDULE_DELAY="10",
    )
    with subprocess.Popen(
        [sys.executable, "-c", WORKFLOW + code],
        cwd=tmp_path,
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ran\n"
        otlp_sink.wait_for(lambda: otlp_sink.held)
        output, errors = process.communicate("go on\n", timeout=60)
    assert (process.returncode, output) == (0, "True False\n")
    assert errors.count("10 spans wait to be exported") == 1
    assert errors.count("10 log records wait to be exported") == 1
    assert "100 spans were not exported; exporting didn't finish within 0.1 s" in errors
    # three of each run, and the two above
    assert "152 log records were not exported; exporting didn't finish within 0.1 s" in errors
    assert "the last metrics were not exported" in errors


@pytest.mark.parametrize("how", ["refuse", "drop", "nobody"])
def test_a_collector_that_refuses_everything_is_logged_once(tmp_path: Path, otlp_sink: Sink, how: str) -> None:
    """No stack trace, no line for each batch; the run's result is unchanged."""
    url = otlp_sink.url
    if how == "refuse":
        otlp_sink.refuse(400)
    elif how == "drop":
        otlp_sink.drop()
    else:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
    code = """
structlog.configure(processors=[export_event, lambda *_: ""], logger_factory=structlog.ReturnLoggerFactory())
telemetry = setup()
for _ in range(3):
    print(graph.run_sync("tea"))
    telemetry.flush(60)
telemetry.close(0.1)
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_TIMEOUT="0.5")
    assert (done.returncode, done.stdout) == (0, "tea\n" * 3)
    assert "Traceback" not in done.stderr
    assert "6 spans were not exported" in done.stderr
    assert "9 log records were not exported" in done.stderr
    assert "the last metrics were not exported" in done.stderr
    # logged by the exporter, or raised by OpenTelemetry before 1.45
    failed = [line for line in done.stderr.splitlines() if re.match(r"Failed to export|exporting .* failed: ", line)]
    assert len(failed) >= 3  # of each signal,
    assert len(failed) == len(set(failed))  # and each once


# ---------------------------------------------------------------- the end of the process
def test_on_sigterm_open_spans_are_in_the_trace(tmp_path: Path, otlp_sink: Sink) -> None:
    """Ended and marked, with their tree, without a status; metrics and logs are flushed; the process ends by the signal.

    The run has its outcome and its duration in all three, and its log line has the ids of its span.
    """
    code = """
@pp.node
async def wait(name: str) -> str:
    print("waiting", flush=True)
    await asyncio.Event().wait()
    return name

setup(); pp.Graph(look >> wait, name="shop").run_sync("tea")
"""
    with subprocess.Popen(
        [sys.executable, "-c", WORKFLOW + code],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == -signal.SIGTERM
    run, look, wait = (otlp_sink.one(name) for name in ("run shop", "node look", "node wait"))
    assert [span.parent_id for span in (run, look, wait)] == ["", run.span_id, run.span_id]
    assert [(span["pocket_plug.interrupted"], span["error.type"], span.status) for span in (run, look, wait)] == [
        (True, "SIGTERM", "UNSET"),
        (None, None, "UNSET"),
        (True, "SIGTERM", "UNSET"),
    ]
    assert [run["pocket_plug.run.outcome"], wait["pocket_plug.node.outcome"]] == ["interrupted"] * 2
    logs = {log.body: log for log in otlp_sink.logs}
    assert "looked" in logs
    finished = logs["pocket_plug.run.finished"]
    assert (finished.span_id, finished.severity) == (run.span_id, "WARNING")
    assert finished.attributes["pocket_plug.run.outcome"] == "interrupted"
    assert finished.attributes["pocket_plug.run.duration"] >= 0
    (duration,) = [metric for metric in otlp_sink.metrics if metric.name == "pocket_plug.run.duration"]
    assert duration.points[0].attributes == {
        "pocket_plug.graph.name": "shop",
        "pocket_plug.run.outcome": "interrupted",
        "error.type": "SIGTERM",
    }


@pytest.mark.parametrize("how", ["exit", "SIGTERM"])
def test_a_collector_that_hangs_does_not_keep_a_process_from_ending(tmp_path: Path, otlp_sink: Sink, how: str) -> None:
    """After the limit it is abandoned, which is logged; the process ends in the same way."""
    otlp_sink.hang()
    code = f"""
setup(flush_timeout=0.1); graph.run_sync("tea")
if {how!r} == "SIGTERM":
    import signal
    signal.raise_signal(signal.SIGTERM)
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.returncode == (0 if how == "exit" else -signal.SIGTERM)
    assert "2 spans were not exported; exporting didn't finish within 0.1 s" in done.stderr


@pytest.mark.parametrize("how", ["interrupt", "cancel"])
def test_an_interrupt_and_a_cancellation_end_all_spans_and_flush(tmp_path: Path, otlp_sink: Sink, how: str) -> None:
    """Automatically: the outcome is `cancelled`, or as Ctrl-C ends the run."""
    code = f"""
@pp.node
async def wait(name: str) -> str:
    if {how!r} == "cancel":
        asyncio.current_task().cancel()
    else:
        import signal
        signal.raise_signal(signal.SIGINT)
    await asyncio.Event().wait()
    return name

setup(); asyncio.run(pp.Graph(wait, name="shop").run("tea"))
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.returncode != 0
    run, wait = otlp_sink.one("run shop"), otlp_sink.one("node wait")
    assert run["pocket_plug.run.outcome"] == wait["pocket_plug.node.outcome"] == "cancelled"
    assert run["pocket_plug.interrupted"] is None
    assert "pocket_plug.run.finished" in [log.body for log in otlp_sink.logs]
