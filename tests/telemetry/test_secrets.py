"""Nothing sensitive: what a workflow works with is in no span, metric or log, unless its owner has asked for it.

The reference workflow is played with a secret in its keys, values, inputs, outputs, items, questions, answers, actions and
in the messages, arguments, notes, causes and groups of its exceptions. All bytes that leave the process are searched.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
from otlp_sink import Sink

from pocket_plug.layers.tracing.settings import Detail

HERE = Path(__file__).parent
WORD = "TheSecret4711"

PLAY = """
import logging, sys
sys.path.insert(0, sys.argv[1])
import structlog
from pocket_plug.telemetry import setup
from reference_workflow import Scene

with setup(log_level="debug", detail=sys.argv[2], **eval(sys.argv[3])):
    Scene(sys.argv[4], "reference.db", layers=("tracing", "metrics", "logging")).play()
    structlog.get_logger().info("played")  # the program's own
    logging.getLogger("library").debug("played too")
"""

PLAY_BY_LOGGING = """
import logging, sys
sys.path.insert(0, sys.argv[1])
logging.basicConfig(level="INFO", format="%(name)s %(message)s %(attributes)s")
logging.root.handlers[0].addFilter(lambda record: setattr(record, "attributes", sorted(vars(record).items())) or True)
from reference_workflow import Scene
Scene(sys.argv[2], "reference.db", layers=("tracing", "metrics", "logging")).play()
"""


def python(folder: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POCKET_PLUG_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        env=kept | environment,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


def play(sink: Sink, folder: Path, detail: Detail, **options: object) -> str:
    """Plays all parts in a process of its own; returns its output, which is its log."""
    done = python(folder, "-c", PLAY, HERE, detail, repr(options), WORD, OTEL_EXPORTER_OTLP_ENDPOINT=sink.url)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def lines_with(secret: str, text: str) -> list[str]:
    return [line for line in text.splitlines() if secret.lower() in line.lower()]


@pytest.mark.parametrize("detail", get_args(Detail))
def test_at_the_default_settings_no_secret_leaves_the_process(otlp_sink: Sink, tmp_path: Path, detail: Detail) -> None:
    """Neither in traces, nor in metrics, nor in logs: as OTLP, on stderr as JSON, and by the logger `pocket_plug`."""
    said = play(otlp_sink, tmp_path, detail)
    shown = {span.name for span in otlp_sink.spans}
    assert {"run shop", "run failing", "run stopped", "run approval", "run untidy"} <= shown  # there was what may leak
    assert ("exec fetch" in shown) == (detail != "run")
    assert "pocket_plug.run.duration" in {metric.name for metric in otlp_sink.metrics}
    events = [json.loads(line)["event"] for line in said.splitlines() if line.startswith("{")]
    assert {"pocket_plug.run.finished", "pocket_plug.node.exception", "pocket_plug.node.retry", "played"} <= set(events)
    assert {"pocket_plug.node.exception", "played too"} <= {log.event or log.body for log in otlp_sink.logs}

    found = {
        f"a request to {request.path}"
        for request in otlp_sink.requests
        if WORD.lower().encode() in request.body.lower()
    }
    assert found == set()
    assert lines_with(WORD, said) == []


BESIDE = """
import logging, sys
logging.basicConfig(level="DEBUG", format="%(levelname)s:%(name)s:%(message)s")
logging.captureWarnings(True)
"""


def test_records_of_libraries_contain_no_secret(otlp_sink: Sink, tmp_path: Path) -> None:
    """The records of all loggers, down to debug and asyncio's own, as they are sent.

    A handler of the program's own at level debug gets exceptions' messages from `pocket_plug`, as the reference says.
    """
    command = ("-c", BESIDE + PLAY, HERE, "phase", "{}", WORD)
    done = python(tmp_path, *command, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, PYTHONASYNCIODEBUG="1")
    assert done.returncode == 0, done.stderr
    assert {"asyncio", "library", "pocket_plug"} <= {log.scope.name for log in otlp_sink.logs}
    assert "DEBUG:library:played too" in done.stderr
    assert WORD.lower().encode() not in otlp_sink.raw().lower()
    assert lines_with(WORD, done.stdout) == []
    assert [line for line in lines_with(WORD, done.stderr) if not line.startswith("OSError: ")] == []


def test_standard_logging_alone_contains_no_secret(tmp_path: Path) -> None:
    """A program with `basicConfig` only: events are on the logger `pocket_plug`, and no secret is in them or in other output."""
    done = python(tmp_path, "-c", PLAY_BY_LOGGING, HERE, WORD)
    assert done.returncode == 0, done.stderr
    said = {line.split()[1] for line in done.stderr.splitlines() if line.startswith("pocket_plug ")}
    assert {"pocket_plug.run.finished", "pocket_plug.node.exception", "pocket_plug.node.retry"} <= said
    assert lines_with(WORD, done.stderr) == []


def test_capture_full_shows_everything(otlp_sink: Sink, tmp_path: Path) -> None:
    """With `capture="full"` the secret is in the spans, and still in no metric: so the test above would find it."""
    play(otlp_sink, tmp_path, "phase", capture="full")
    with_it = {name for span in otlp_sink.spans for name, value in span.attributes.items() if WORD in str(value)}
    assert {
        "pocket_plug.run.input",
        "pocket_plug.run.output",
        "pocket_plug.node.input",
        "pocket_plug.node.output",
        "pocket_plug.store.key",
        "pocket_plug.store.value",
    } <= with_it
    events = [event for span in otlp_sink.spans for event in span.events if event.name == "exception"]
    assert any(WORD in event.attributes["exception.message"] for event in events)
    assert WORD.encode() in otlp_sink.raw("/v1/traces")
    assert WORD.encode() not in otlp_sink.raw("/v1/metrics")


APP = """
import sys
sys.path.insert(0, {here!r})
from reference_workflow import shop
import pocket_plug as pp
graph = shop(pp.Store(layers=["tracing"]))
"""


def run_app(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pocket-plug run --trace` of an app with an attempt that fails with the secret in its message."""
    (folder / "app.py").write_text(APP.format(here=str(HERE)))
    command = [Path(sys.executable).with_name("pocket-plug"), "run", "app.py", "--input", json.dumps(WORD), "--trace"]
    done = python(folder, *command, *options, **environment)
    assert done.returncode == 0, done.stderr
    assert WORD in done.stdout
    return done


def kept_messages(folder: Path) -> list[str]:
    """The messages of exceptions in the trace file; its other bytes, and the files beside it, contain no secret. Also the stacks
    with messages of causes. All files are readable by their owner only.
    """
    messages: list[str] = []

    def without(said: dict[str, object]) -> dict[str, object]:
        value = str(said.get("value"))
        if said.get("key") == "exception.message" or (
            said.get("key") == "exception.stacktrace" and "caused by KeyError: " in value
        ):
            messages.append(value)
            return {}
        return said

    assert "exec fetch" in (folder / "traces.jsonl").read_text("utf-8")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for kept in folder.iterdir():
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600, kept.name
        data = kept.read_bytes()
        if kept.name == "traces.jsonl":
            data = b"".join(json.dumps(json.loads(line, object_hook=without)).encode() for line in data.splitlines())
        assert WORD.lower().encode() not in data.lower(), kept.name
    return messages


def test_the_command_line_keeps_messages_in_its_own_file_only(tmp_path: Path) -> None:
    """`pocket-plug run --trace`: neither keys nor values anywhere, messages in the trace file only, none in its index or in a
    pipe.
    """
    done = run_app(tmp_path)
    assert lines_with(WORD, done.stderr) == []
    command = Path(sys.executable).with_name("pocket-plug")
    listed = python(tmp_path, command, "trace", "ls", "--error", "ConnectionError")
    assert (listed.returncode, lines_with(WORD, listed.stdout + listed.stderr)) == (0, [])
    folder = tmp_path / ".pocket_plug"
    assert (folder / "traces.jsonl.index").is_file()
    messages = kept_messages(folder)
    assert any(f"no line to {WORD}" in message for message in messages)
    assert any(f"caused by KeyError: '{WORD}'" in message.replace("\\'", "'") for message in messages)
    assert lines_with(WORD, python(tmp_path, command, "trace", "show").stdout), "who looks at his own file sees them"
    assert f"caused by KeyError: '{WORD}'" in python(tmp_path, command, "trace", "show", "--all").stdout


@pytest.mark.parametrize("level", ["none", "keys"])
def test_messages_can_be_disabled(tmp_path: Path, level: str) -> None:
    """Also in the file: an explicit level counts, here as elsewhere."""
    run_app(tmp_path, "--capture", level)
    text = (tmp_path / ".pocket_plug" / "traces.jsonl").read_text("utf-8")
    assert "exception.message" not in text
    assert (WORD in text) == (level == "keys")


def test_messages_can_be_disabled_in_a_configuration(tmp_path: Path) -> None:
    """The table of a Pocket has the same effect as an argument."""
    (tmp_path / "pocket.toml").write_text('[plugins.tracing]\ncapture = "none"\n')
    run_app(tmp_path)
    assert kept_messages(tmp_path / ".pocket_plug") == []


BOTH = """
import sys
sys.path.insert(0, sys.argv[1])
import pocket_plug as pp
from pocket_plug.layers.tracing import local_messages
from reference_workflow import Scene

hide = (lambda path, value: "***") if sys.argv[3] == "redacted" else None
with pp.observe(file="kept/traces.jsonl", terminal=True, redact=hide):
    Scene(sys.argv[2], "reference.db", layers=("tracing", "metrics", "logging")).play()
assert not local_messages._kept, "nothing is kept once a span has ended"
"""


def test_sent_spans_have_no_messages_though_a_file_has_them(otlp_sink: Sink, tmp_path: Path) -> None:
    """Both from the same spans; a tree in a pipe has none either."""
    done = python(tmp_path, "-c", BOTH, HERE, WORD, "", OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.returncode == 0, done.stderr
    assert "exec fetch" in {span.name for span in otlp_sink.spans}
    assert WORD.lower().encode() not in otlp_sink.raw("/v1/traces").lower()
    assert "run shop" in done.stderr
    assert lines_with(WORD, done.stderr) == []
    assert any(WORD in message for message in kept_messages(tmp_path / "kept"))


def test_redact_applies_to_messages_in_the_file(tmp_path: Path) -> None:
    """It is called for each message, as for captured values."""
    done = python(tmp_path, "-c", BOTH, HERE, WORD, "redacted")
    assert done.returncode == 0, done.stderr
    messages = kept_messages(tmp_path / "kept")
    stacks = {message for message in messages if "Traceback" in message}
    assert {"{'stringValue': '***'}"} == set(messages) - stacks
    assert stacks
    assert all("caused by KeyError: ***" in stack for stack in stacks)


def test_a_terminal_shows_messages_and_the_programs_own_processors_get_none(tmp_path: Path) -> None:
    """An exporter that the program adds to the provider of `observe()` gets no messages."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import pocket_plug as pp
from opentelemetry import trace
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from reference_workflow import shop

with pp.observe():
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    shop(pp.Store(layers=["tracing"])).run_sync(sys.argv[2])
"""
    master, slave = os.openpty()
    with open(master, "rb", buffering=0) as terminal:
        command = [sys.executable, "-W", "error", "-c", code, str(HERE), WORD]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POCKET_PLUG_"))}
        done = subprocess.run(
            command, cwd=tmp_path, env=kept, stdout=subprocess.PIPE, stderr=slave, timeout=60, check=False
        )
        os.close(slave)
        drawn = b""
        with suppress(OSError):  # on Linux, this means that the other end was closed
            while chunk := os.read(terminal.fileno(), 65536):
                drawn += chunk
    assert done.returncode == 0, drawn
    assert WORD.encode() in drawn
    assert b"exec fetch" in done.stdout
    assert WORD.encode() not in done.stdout


def test_trace_send_sends_no_messages_either(otlp_sink: Sink, tmp_path: Path) -> None:
    """`trace send` leaves out what was kept for this machine only; captured values are sent."""
    command = [
        Path(sys.executable).with_name("pocket-plug"),
        "trace",
        "send",
        ".pocket_plug/traces.jsonl",
        "--to",
        otlp_sink.url,
    ]
    run_app(tmp_path)
    assert python(tmp_path, *command).returncode == 0
    assert WORD.lower().encode() not in otlp_sink.raw("/v1/traces").lower()
    events = [event for span in otlp_sink.spans for event in span.events if event.name == "exception"]
    assert {*events[0].attributes} == {"exception.type", "exception.stacktrace"}
    run_app(tmp_path, "--capture", "summary")
    assert python(tmp_path, *command).returncode == 0
    assert WORD.encode() in otlp_sink.raw("/v1/traces")
