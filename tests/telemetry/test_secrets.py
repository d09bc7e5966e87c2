"""Nothing sensitive: what a workflow works with is in no span, metric or log, unless its owner has asked for it.

The reference workflow is played with a secret in its keys, values, inputs, outputs, items, questions, answers, actions and
in the messages, arguments, notes, causes and groups of its exceptions. All bytes that leave the process are searched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    """Plays all parts in a process of its own; gives what it printed, which is its log."""
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


def test_what_libraries_log_by_logging_brings_no_secret_along(otlp_sink: Sink, tmp_path: Path) -> None:
    """The records of all loggers, down to debug and asyncio's own, as they are sent.

    A handler of the program's own that asks for debug is told by `pocket_plug` what an exception says, as the reference has it.
    """
    command = ("-c", BESIDE + PLAY, HERE, "phase", "{}", WORD)
    done = python(tmp_path, *command, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, PYTHONASYNCIODEBUG="1")
    assert done.returncode == 0, done.stderr
    assert {"asyncio", "library", "pocket_plug"} <= {log.scope.name for log in otlp_sink.logs}
    assert "DEBUG:library:played too" in done.stderr
    assert WORD.lower().encode() not in otlp_sink.raw().lower()
    assert lines_with(WORD, done.stdout) == []
    assert [line for line in lines_with(WORD, done.stderr) if not line.startswith("OSError: ")] == []


def test_by_logging_alone_no_secret_is_said(tmp_path: Path) -> None:
    """A program with `basicConfig` only: events are on the logger `pocket_plug`, and no secret is in them or beside them."""
    done = python(tmp_path, "-c", PLAY_BY_LOGGING, HERE, WORD)
    assert done.returncode == 0, done.stderr
    said = {line.split()[1] for line in done.stderr.splitlines() if line.startswith("pocket_plug ")}
    assert {"pocket_plug.run.finished", "pocket_plug.node.exception", "pocket_plug.node.retry"} <= said
    assert lines_with(WORD, done.stderr) == []


def test_who_asks_for_everything_gets_it(otlp_sink: Sink, tmp_path: Path) -> None:
    """With `capture="full"` the secret is in the spans, and still in no metric: the test above can find it."""
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


def test_the_command_line_draws_and_keeps_no_secret(tmp_path: Path) -> None:
    """`pocket-plug run --trace`: the output is the program's; the tree and the file are telemetry."""
    (tmp_path / "app.py").write_text(APP.format(here=str(HERE)))
    command = [Path(sys.executable).with_name("pocket-plug"), "run", "app.py", "--input", json.dumps(WORD), "--trace"]
    done = python(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert WORD in done.stdout
    assert lines_with(WORD, done.stderr) == []
    (file,) = (tmp_path / ".pocket_plug").glob("traces.jsonl")
    assert "exec fetch" in file.read_text("utf-8")
    for kept in (tmp_path / ".pocket_plug").iterdir():
        assert WORD.encode() not in kept.read_bytes(), kept.name
