"""OpenTelemetry's declarative configuration, named by `OTEL_CONFIG_FILE`: `setup()`, `observe()` and `doctor` follow the file.

Only the newest SDK has a loader: with the lowest one this module is skipped, and test_setup.py tests the error.
"""

from __future__ import annotations

import json
import logging
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from otlp_sink import Sink
from scripts import python

from pocket_plug.cli import main
from pocket_plug.errors import ConfigError
from pocket_plug.telemetry.declared import Declared, declared
from pocket_plug.telemetry.exporters import SIGNALS
from pocket_plug.telemetry.providers import OwnIds
from pocket_plug.testing.servers import free_port

WORD = "TheSecret4711"

FILE = """
file_format: "1.0"
resource:
  attributes:
    - {name: service.name, value: shop-service}
    - {name: deployment.environment.name, value: "${STAGE:-development}"}
propagator:
  composite: [{tracecontext: }]
tracer_provider:
  processors:
    - batch:
        exporter:
          otlp_http:
            endpoint: URL/v1/traces
            headers: [{name: authorization, value: "${TOKEN}"}]
    - simple: {exporter: {console: }}
logger_provider:
  processors: [{batch: {exporter: {otlp_http: {endpoint: URL/v1/logs}}}}]
meter_provider:
  readers: [{periodic: {exporter: {otlp_http: {endpoint: URL/v1/metrics}}}}]
"""


def written(folder: Path, text: str, url: str = "http://127.0.0.1:9") -> Path:
    path = folder / "otel.yaml"
    path.write_text(text.replace("URL", url))
    return path


def read(folder: Path, text: str) -> Declared:
    return Declared("OTEL_CONFIG_FILE", written(folder, f'file_format: "1.0"\n{text}'))


# ---------------------------------------------------------------- what is followed
def test_setup_sends_each_signal_where_the_file_says(tmp_path: Path, otlp_sink: Sink) -> None:
    """Its resource, headers and exporters, with `${…}` replaced; no other variable counts. Ids are ours."""
    written(tmp_path, FILE, otlp_sink.url)
    code = """
from opentelemetry import propagate, trace
print(setup())
graph.run_sync("tea")
ids = type(trace.get_tracer_provider().id_generator).__name__
sys.stdout.write(f"{ids} {sorted(propagate.get_global_textmap().fields)}\\n")  # at once: the console has spans meanwhile
"""
    done = python(
        code,
        tmp_path,
        OTEL_CONFIG_FILE="otel.yaml",
        OTEL_TRACES_EXPORTER="none",
        OTEL_SERVICE_NAME="another",
        STAGE="production",
        TOKEN=WORD,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("Telemetry", "OwnIds"))]
    assert said == [
        "Telemetry(mode='otlp_http,console', file=None, metrics='otlp_http', logs='otlp_http')",
        "OwnIds ['traceparent', 'tracestate']",
    ]
    assert {"run shop", "node look"} <= set(otlp_sink.names())
    assert '"name": "run shop"' in done.stdout  # the console's
    assert "looked" in {log.body for log in otlp_sink.logs}
    assert "pocket_plug.run.duration" in {metric.name for metric in otlp_sink.metrics}
    for found in (otlp_sink.spans[0], otlp_sink.logs[0], otlp_sink.metrics[0]):
        assert found.resource["service.name"] == "shop-service"
        assert found.resource["deployment.environment.name"] == "production"
    traces = [request for request in otlp_sink.requests if request.path == "/v1/traces"]
    assert traces[0].headers["authorization"] == WORD
    assert WORD not in done.stdout + done.stderr


def test_the_file_of_the_how_to_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each signal is sent to the collector that the variable in it names."""
    monkeypatch.setenv("COLLECTOR", "http://collector:4318")
    page = (Path(__file__).parents[2] / "docs" / "howto" / "send-traces-to-a-backend.md").read_text("utf-8")
    source = Declared("OTEL_CONFIG_FILE", written(tmp_path, page.partition("```yaml\n")[2].partition("```")[0]))
    source.check()
    for signal in SIGNALS:
        assert source.exporters(signal) == ["otlp_http"]
        assert source.endpoints(signal) == [f"http://collector:4318/v1/{signal}"]
    assert "TraceIdRatioBased{0.1}" in source.tracer_provider(Resource({}), OwnIds()).sampler.get_description()


def test_observe_follows_it_as_it_follows_variables(tmp_path: Path, otlp_sink: Sink) -> None:
    """By the older name of the variable too; spans that it sends are in no local file."""
    written(tmp_path, FILE, otlp_sink.url)
    code = 'print(observe(terminal=False)); graph.run_sync("tea")'
    done = python(code, tmp_path, OTEL_EXPERIMENTAL_CONFIG_FILE=str(tmp_path / "otel.yaml"))
    assert done.stdout.splitlines()[0] == "Telemetry(mode='otlp_http,console', file=None)", done.stderr
    assert "exec look" in otlp_sink.names()
    assert not (tmp_path / ".pocket_plug").exists()


@pytest.mark.parametrize(
    ("text", "modes"), [("disabled: true\n" + FILE, "off off off"), ('file_format: "1.0"', "none none none")]
)
def test_what_the_file_does_not_declare_is_not_sent(tmp_path: Path, text: str, modes: str) -> None:
    """Nor if it is disabled there: there is no local file either, since the file says where traces go."""
    written(tmp_path, text)
    code = """
telemetry = setup()
print(telemetry.mode, telemetry.metrics, telemetry.logs)
print(observe().mode)
graph.run_sync("tea")
"""
    done = python(code, tmp_path, OTEL_CONFIG_FILE="otel.yaml")
    assert done.stdout.splitlines() == [modes, modes.split()[0]], done.stderr
    assert not (tmp_path / ".pocket_plug").exists()


def test_an_exporter_without_an_answer_delays_no_exit_and_its_losses_are_logged(
    tmp_path: Path, otlp_sink: Sink
) -> None:
    """The time limit of a flush is ours, and so are the queues."""
    otlp_sink.hang()
    written(tmp_path, FILE, otlp_sink.url)
    done = python(
        'setup(); graph.run_sync("tea")', tmp_path, OTEL_CONFIG_FILE="otel.yaml", POCKET_PLUG_FLUSH_TIMEOUT="0.2"
    )
    assert done.returncode == 0
    assert "spans were not exported; exporting didn't finish within 0.2 s" in done.stderr
    assert "telemetry: the last metrics were not exported" in done.stderr


def test_a_full_queue_of_the_files_size_is_logged(
    tmp_path: Path, otlp_sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """And counted, as any other queue's."""
    otlp_sink.hang()
    source = read(
        tmp_path,
        "tracer_provider: {processors: [{batch: {max_queue_size: 3, exporter: {otlp_http: {endpoint: URL/v1/traces}}}}]}"
        .replace("URL", otlp_sink.url),
    )  # fmt: skip
    [(_, queued)] = source.spans()
    export = queued()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export)
    for _ in range(10):
        provider.get_tracer("test").start_span("span").end()
    assert export.backlog.unsent == 10
    assert "3 spans wait to be exported; further ones are dropped and counted" in caplog.text
    otlp_sink.accept()
    provider.shutdown()
    assert export.backlog.unsent == 10 - len(otlp_sink.spans) == 7


def test_sampler_limits_and_ids_are_the_files(tmp_path: Path) -> None:
    """An id generator that it names is used; otherwise ours, whose ids no `random.seed` repeats."""
    source = read(
        tmp_path,
        "tracer_provider: {processors: [{batch: {exporter: {console: }}}], "
        "sampler: {parent_based: {root: {trace_id_ratio_based: {ratio: 0.25}}}}}",
    )
    provider = source.tracer_provider(Resource({}), OwnIds())
    assert "TraceIdRatioBased{0.25}" in provider.sampler.get_description()
    assert isinstance(provider.id_generator, OwnIds)
    named = read(
        tmp_path, "tracer_provider: {processors: [{batch: {exporter: {console: }}}], id_generator: {random: }}"
    )
    assert type(named.tracer_provider(Resource({}), OwnIds()).id_generator) is RandomIdGenerator
    sampled = read(
        tmp_path,
        "attribute_limits: {attribute_count_limit: 1}\ntracer_provider: {processors: [{batch: {exporter: {console: }}}]}",
    )
    span = sampled.tracer_provider(Resource({}), OwnIds()).get_tracer("test").start_span("span")
    span.set_attributes({"one": 1, "two": 2})
    assert len(getattr(span, "attributes")) == 1  # noqa: B009 - the API's spans have none


def test_prometheus_is_served_until_the_reader_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the server that ends with the reader; parts of the file that aren't followed are logged."""
    port = free_port()
    source = read(
        tmp_path,
        "meter_provider: {readers: [{pull: {exporter: {prometheus/development: "
        f"{{host: 127.0.0.1, port: {port}, scope_info_enabled: true}}}}}}}}]}}",
    )
    [(name, reader)] = source.readers()
    assert isinstance(reader, MetricReader)
    provider = source.meter_provider(Resource({}), [reader])
    provider.get_meter("test").create_counter("cups").add(2)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        assert b"cups_total" in answer.read()
    reader.shutdown()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60)
    assert name == "prometheus_development"
    assert "pocket_plug ignores scope_info_enabled" in caplog.text


def test_if_one_reader_fails_the_others_are_closed(
    tmp_path: Path, new_threads: Callable[[], list[threading.Thread]]
) -> None:
    """Each has a thread from the start."""
    source = read(
        tmp_path,
        "meter_provider: {readers: [{periodic: {exporter: {console: }}}, {periodic: {exporter: {unknown: {}}}}]}",
    )
    with pytest.raises(ConfigError, match=r"readers\[1\].periodic.*: Plugin 'unknown' not found"):
        source.readers()
    assert new_threads() == []


def test_a_program_with_providers_of_its_own_keeps_its_propagators_too(tmp_path: Path) -> None:
    """As `opentelemetry-instrument` leaves it, which follows the file itself."""
    written(tmp_path, FILE)
    code = """
from opentelemetry import _logs, metrics, propagate, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
own = propagate.get_global_textmap()
trace.set_tracer_provider(TracerProvider()); _logs.set_logger_provider(LoggerProvider())
metrics.set_meter_provider(MeterProvider())
telemetry = setup()
print(telemetry.mode, telemetry.metrics, telemetry.logs, propagate.get_global_textmap() is own)
"""
    done = python(code, tmp_path, OTEL_CONFIG_FILE="otel.yaml")
    assert done.stdout == "yours yours yours True\n", done.stderr


def test_where_opentelemetry_is_switched_off_the_file_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variable counts for all programs."""
    monkeypatch.setenv("OTEL_CONFIG_FILE", "gone.yaml")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert declared() is None


# ---------------------------------------------------------------- invalid files
TRACES = 'file_format: "1.0"\ntracer_provider: '
WRONG = {
    TRACES + "{procesors: []}": "tracer_provider: .*'procesors' was unexpected.*; allowed: processors, ",
    TRACES + f"{{processors: [{{batch: {{schedule_delay: {WORD}, exporter: {{console: }}}}}}]}}":
        r"tracer_provider.processors\[0\].batch.schedule_delay: found a str of 13 characters, expected integer or null",
    TRACES + "{processors: [{batch: {exporter: {}}}]}":
        r"tracer_provider.processors\[0\].batch.exporter: found nothing, expected at least 1",
    TRACES + "{processors: [{batch: {exporter: {console: , otlp_http: }}}]}": "found console, otlp_http, expected at most 1",
    TRACES + f"{{processors: [{{batch: {{exporter: {{unknown: {{key: {WORD}}}}}}}}}]}}":
        r"tracer_provider.processors\[0\].batch.exporter: Plugin 'unknown' not found",
    TRACES + "{processors: [{mine: {}}]}": r"processors\[0\].mine: only batch and simple are supported",
    TRACES + "{processors: [{batch: {exporter: {console: }}}], sampler: {unknown: }}":
        "tracer_provider: Plugin 'unknown' not found",
    f"a: [{WORD}": r"invalid YAML: line 1, column 18: expected ',' or '\]'",
    'file_format: "7.0"': "Unsupported file_format '7.0': this SDK supports schema version 1.x",
    "": "Configuration file is empty",
    f"\0{WORD}": "invalid YAML: ",
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=range(len(WRONG)))
def test_an_invalid_file_is_reported_with_the_place_and_without_any_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str, message: str
) -> None:
    """A value may be a password: neither the error, nor its cause, nor the loader's own log contains one."""
    path = written(tmp_path, text)
    monkeypatch.setenv("OTEL_CONFIG_FILE", str(path))
    with pytest.raises(ConfigError, match=message) as caught:
        source = declared()
        assert source is not None
        source.spans()
    assert str(caught.value).startswith(f"{path} (named by OTEL_CONFIG_FILE): ")
    assert WORD not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_an_invalid_pair_is_reported_without_its_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of headers, or of the resource's attributes. The loader would log it, in one of its modules."""
    source = read(
        tmp_path,
        f"tracer_provider: {{processors: [{{batch: {{exporter: {{otlp_http: {{headers_list: {WORD}}}}}}}}}]}}\n"
        f"resource: {{attributes_list: {WORD}}}",
    )
    source.spans()
    source.resource()
    assert "Invalid header pair" in caplog.text
    assert "Invalid resource attribute pair" in caplog.text
    assert WORD not in caplog.text
    assert not any(logger.filters for logger in loaders())  # for other users of the loader


def loaders() -> list[logging.Logger]:
    """The loggers of OpenTelemetry's loader."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("opentelemetry.configuration")]
    assert len(names) > 2
    return [logging.getLogger(name) for name in names]


def test_a_block_that_ends_within_another_leaves_that_its_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each block removes its own filter, and nothing else."""
    source = read(tmp_path, "")
    with source._saying("around"):
        with source._saying("within"):
            pass
        for logger in loaders():
            logger.error("invalid YAML: %s", WORD)
    assert caplog.text == ""
    assert not any(logger.filters for logger in loaders())


@pytest.mark.parametrize(
    "name",
    [
        "_tracer_provider._create_span_exporter",
        "_meter_provider._create_push_metric_exporter",
        "_meter_provider._create_cardinality_limits",
        "_logger_provider._create_log_record_exporter",
        "file.create_resource",
        "file.create_tracer_provider",
        "load_config_file",
    ],
)
def test_a_loader_that_is_not_known_is_to_blame_and_not_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A beta may rename its functions; the error names the missing one, and the ways out."""
    path = written(tmp_path, FILE)
    monkeypatch.delattr(f"opentelemetry.configuration.{name}")
    with pytest.raises(
        ConfigError,
        match=rf"^pocket_plug doesn't know this version of opentelemetry-configuration, .* no .*\.{name}\. ",
    ) as caught:
        source = Declared("OTEL_CONFIG_FILE", path)
        source.check()
        source.spans()
        source.records()
        source.readers()
    assert path.name not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.yaml", "."])
def test_a_missing_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Or isn't a file."""
    monkeypatch.setenv("OTEL_CONFIG_FILE", str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"named by OTEL_CONFIG_FILE\): Configuration (file|path) (is )?not"):
        declared()


# ---------------------------------------------------------------- doctor
def test_doctor_says_which_file_counts_and_sends_a_span_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], otlp_sink: Sink
) -> None:
    """A refused span and an invalid file are found; a password in an address is hidden."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_CONFIG_FILE", "otel.yaml")
    url = otlp_sink.url.replace("//", f"//me:{WORD}@")
    written(tmp_path, FILE, url)

    def telemetry() -> dict[str, tuple[str, str]]:
        main(["doctor", "--json"])
        out, err = capsys.readouterr()
        assert WORD not in out + err
        checks = json.loads(out)["checks"]
        return {each["name"]: (each["verdict"], each["says"]) for each in checks if each["section"] == "telemetry"}

    shown = url.replace(WORD, "***")
    assert telemetry() == {
        "configuration file": ("ok", "otel.yaml (named by OTEL_CONFIG_FILE) is used, and no other OTEL_* variable"),
        "traces": ("ok", f"otlp_http, console to {shown}/v1/traces"),
        "span": ("ok", f"{shown}/v1/traces accepted a test span"),
        "metrics": ("ok", f"otlp_http to {shown}/v1/metrics"),
        "logs": ("ok", f"otlp_http to {shown}/v1/logs"),
    }
    assert otlp_sink.names() == ["pocket-plug doctor"]
    otlp_sink.refuse(400)
    assert telemetry()["span"] == ("wrong", "not accepted: otlp_http could not send it; its log says why")
    written(tmp_path, "a: [")
    assert telemetry()["configuration file"][0] == "wrong"


@pytest.mark.parametrize(
    ("text", "name", "place"),
    [
        ("tracer_provider: {processors: [{batch: {exporter: {zipkin: }}}]}", "traces", "tracer_provider.processors[0]"),
        ("logger_provider: {processors: [{simple: {exporter: {odd: }}}]}", "logs", "logger_provider.processors[0]"),
        ("meter_provider: {readers: [{periodic: {exporter: {odd: }}}]}", "metrics", "meter_provider.readers[0]"),
        ("propagator: {composite_list: nope}", "configuration file", "propagator"),
        ("propagator: {composite: [{nope: }]}", "configuration file", "propagator"),
    ],
)
def test_doctor_reports_what_setup_would_refuse(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    name: str,
    place: str,
) -> None:
    """Exporters and propagators that can't be loaded, with their place in the file; the exit code shows it too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_CONFIG_FILE", "otel.yaml")
    written(tmp_path, f'file_format: "1.0"\n{text}')
    assert main(["doctor", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    (wrong,) = (each for each in checks if each["section"] == "telemetry" and each["verdict"] == "wrong")
    assert wrong["name"] == name
    assert f"otel.yaml (named by OTEL_CONFIG_FILE): {place}" in wrong["says"]
