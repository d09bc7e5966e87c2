"""The standard library's logging beside structlog: included by `setup()`, exported once, and never in a loop."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import cast

import pytest
from opentelemetry import _logs
from opentelemetry.sdk._logs import LoggerProvider, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from otlp_sink import Sink
from scripts import python

import pocket_plug as pp
from pocket_plug.errors import StoreError
from pocket_plug.hookspecs import Run
from pocket_plug.otel.reporting import silenced
from pocket_plug.primitives.failures import Told, say_once
from pocket_plug.telemetry.logs import StandardLogs

LIBRARY = """
import logging
library = logging.getLogger("some.library")

@pp.node
async def buy(name: str) -> str:
    library.debug("too fine")
    library.info("bought %s", name, extra={"boxes": 2})
    try:
        1 / 0
    except ZeroDivisionError:
        library.exception("broke")
    return name

bought = pp.Graph(buy, name="shop", store=pp.Store(layers=["tracing"]))
"""


def said_by(library: str, text: str) -> list[dict[str, object]]:
    return [line for line in map(json.loads, text.splitlines()) if line.get("logger") == library]


def test_records_of_libraries_are_included(tmp_path: Path, otlp_sink: Sink) -> None:
    """As a line like structlog's, and as a log record: ids of trace and run, level, time, place and exception."""
    done = python(LIBRARY + 'with setup(): bought.run_sync("tea")', tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    line, broke = said_by("some.library", done.stderr)
    node = otlp_sink.one("node buy")
    assert (line["event"], line["level"], line["boxes"]) == ("bought tea", "info", 2)
    assert (line["trace_id"], line["span_id"]) == (node.trace_id, node.span_id)
    assert (line["graph"], line["node"]) == ("shop", "buy")
    assert str(line["timestamp"]).endswith("Z")
    assert "division by zero" in str(broke["exception"])

    bought, failed = (log for log in otlp_sink.logs if log.scope.name == "some.library")
    assert (bought.body, bought.severity, bought.severity_number, bought.event) == ("bought tea", "INFO", 9, "")
    assert (bought.trace_id, bought.span_id) == (node.trace_id, node.span_id)
    assert bought.attributes["boxes"] == 2
    assert bought.attributes["pocket_plug.run.id"] == line["run_id"]
    assert bought.attributes["code.function.name"] == "buy"
    assert (failed.severity, failed.severity_number) == ("ERROR", 17)
    assert failed.attributes["exception.type"] == "ZeroDivisionError"
    assert failed.attributes["exception.message"] == "division by zero"
    assert ", in buy" in failed.attributes["exception.stacktrace"]
    assert all(log.time > 0 for log in otlp_sink.logs)


def test_events_are_records_by_the_conventions(tmp_path: Path, otlp_sink: Sink) -> None:
    """Our own attributes have the prefix; an exception's message is in none of them."""
    code = """
with setup():
    try:
        pp.Graph(fail, name="shop").run_sync("tea")
    except ValueError:
        pass
"""
    python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    started, failed, finished = otlp_sink.logs
    assert set(started.attributes) == {"pocket_plug.run.id", "pocket_plug.graph.name"}
    assert set(failed.attributes) == {
        "pocket_plug.run.id",
        "pocket_plug.graph.name",
        "pocket_plug.node.name",
        "pocket_plug.node.visit",
        "error.type",
        "exception.type",
        "exception.stacktrace",
    }
    assert failed.attributes["exception.type"] == "ValueError"
    assert set(finished.attributes) == {
        "pocket_plug.run.id",
        "pocket_plug.graph.name",
        "pocket_plug.run.steps",
        "pocket_plug.run.duration",
        "pocket_plug.run.outcome",
        "error.type",
    }


def test_it_can_be_disabled(tmp_path: Path, otlp_sink: Sink) -> None:
    """`log_stdlib=False`: neither lines nor records, and the root logger is unchanged."""
    code = 'with setup(log_stdlib=False): bought.run_sync("tea"); print(logging.getLogger().handlers)'
    done = python(LIBRARY + code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.stdout == "[]\n"
    assert "bought tea" not in done.stderr
    assert "some.library" not in {log.scope.name for log in otlp_sink.logs}
    assert otlp_sink.logs


def test_a_program_with_its_own_log_lines_is_unchanged(tmp_path: Path, otlp_sink: Sink) -> None:
    """Its handlers and its level stay, no line is written twice, and the records are exported; after a close no more."""
    code = """
logging.basicConfig(level="INFO", format="%(name)s: %(message)s", stream=sys.stdout)
before = list(logging.root.handlers)
with setup():
    bought.run_sync("tea")
library.info("after")
assert logging.root.handlers == before and logging.root.level == logging.INFO
"""
    done = python(LIBRARY + code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.returncode == 0, done.stderr
    own = [line for line in done.stdout.splitlines() if line.startswith("some.library")]
    assert own == ["some.library: bought tea", "some.library: broke", "some.library: after"]
    assert said_by("some.library", done.stderr) == []
    assert [log.body for log in otlp_sink.logs if log.scope.name == "some.library"] == ["bought tea", "broke"]


@pytest.mark.parametrize("exports", ["export_event, ", ""], ids=["its chain exports", "its chain doesn't"])
@pytest.mark.parametrize(
    "last", ["render_to_log_kwargs", "ProcessorFormatter.wrap_for_formatter"], ids=["arguments", "a formatter"]
)
def test_structlog_that_writes_by_logging_is_exported_once(
    tmp_path: Path, otlp_sink: Sink, exports: str, last: str
) -> None:
    """By the chain or by the handler; records of libraries are exported as well, and so are those of a processor."""
    code = f"""
def chatty(logger, method, event):
    if event["event"] == "looked":
        logging.getLogger("processor").warning("seen")
    return event

logging.basicConfig(level="INFO", stream=sys.stdout)
structlog.configure(processors=[{exports}chatty, structlog.stdlib.{last}],
                    logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=structlog.stdlib.BoundLogger)
with setup():
    graph.run_sync("tea")
    library.info("beside")
"""
    done = python(LIBRARY + code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.returncode == 0, done.stderr
    found = sorted(otlp_sink.logs, key=lambda log: log.time)
    first, second = ("looked", "seen") if exports else ("seen", "looked")
    assert [log.body for log in found] == [
        "pocket_plug.run.started",
        first,
        second,
        "pocket_plug.run.finished",
        "beside",
    ]
    finished = found[3]
    assert (finished.event, finished.attributes["pocket_plug.run.outcome"]) == ("pocket_plug.run.finished", "success")


def test_if_structlog_is_the_programs_logging_writes_the_same_as_before(tmp_path: Path, otlp_sink: Sink) -> None:
    """Without any handler: warnings, as plain text. A handler that only exports doesn't change that."""
    code = """
structlog.configure(processors=[lambda *_: ""], logger_factory=structlog.ReturnLoggerFactory())
with setup():
    bought.run_sync("tea")
assert logging.root.handlers == []
"""
    done = python(LIBRARY + code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("broke\nTraceback")
    assert [log.body for log in otlp_sink.logs] == ["broke"]


UVICORN = """
import uvicorn.config
uvicorn.Config(None)  # configures logging, as the server does before it loads the application
access, error = logging.getLogger("uvicorn.access"), logging.getLogger("uvicorn.error")
silent = logging.getLogger("silent")
silent.propagate = False
before = [list(logging.getLogger(name).handlers) for name in ("uvicorn", "uvicorn.access", "silent")]
with setup():
    access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5000", "GET", "/orders", "1.1", 200)
    try:
        1 / 0
    except ZeroDivisionError:
        error.exception("Exception in ASGI application")
    silent.error("not wanted")
    access.propagate = True
    access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5000", "GET", "/handed/on", "1.1", 200)
assert before == [logging.getLogger(name).handlers for name in ("uvicorn", "uvicorn.access", "silent")]
"""


def test_loggers_without_propagation_are_included_too(tmp_path: Path, otlp_sink: Sink) -> None:
    """Such as uvicorn's: they write their own lines, and each record is exported once. Silenced loggers stay silent."""
    done = python(LIBRARY + UVICORN, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert done.returncode == 0, done.stderr
    records = {(log.scope.name, log.body) for log in otlp_sink.logs}
    assert len(records) == len(otlp_sink.logs)
    assert records == {
        ("uvicorn.access", '127.0.0.1:5000 - "GET /orders HTTP/1.1" 200'),
        ("uvicorn.error", "Exception in ASGI application"),
        ("uvicorn.access", '127.0.0.1:5000 - "GET /handed/on HTTP/1.1" 200'),
    }
    (failed,) = (log for log in otlp_sink.logs if log.severity == "ERROR")
    assert failed.attributes["exception.type"] == "ZeroDivisionError"
    written = [line for line in done.stderr.splitlines() + done.stdout.splitlines() if "/orders" in line]
    assert len(written) == 1


def test_an_existing_handler_of_opentelemetry_exports_alone(tmp_path: Path, otlp_sink: Sink) -> None:
    """For example the handler of `opentelemetry-instrument`."""
    code = """
class Handler(logging.NullHandler): pass
Handler.__module__ = "opentelemetry.instrumentation.logging.handler"
logging.root.addHandler(Handler())
with setup():
    bought.run_sync("tea")
"""
    python(LIBRARY + code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert {log.scope.name for log in otlp_sink.logs} == {"pocket_plug"}


# ---------------------------------------------------------------- loops
@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemoryLogRecordExporter:
    """By a provider of the program's whose processor logs each record that it gets."""

    class Chatty(SimpleLogRecordProcessor):
        def on_emit(self, log_record: ReadWriteLogRecord) -> None:
            logging.getLogger("chatty").warning("got one")
            super().on_emit(log_record)

    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # the SDK forgot its `-> None`
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(Chatty(exporter))
    monkeypatch.setattr(_logs, "get_logger_provider", lambda: provider)
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers, StandardLogs()])
    return exporter


def bodies(exporter: InMemoryLogRecordExporter) -> list[object]:
    return [data.log_record.body for data in exporter.get_finished_logs()]


def test_no_record_causes_another_without_end(exported: InMemoryLogRecordExporter) -> None:
    """Neither records that are logged during an export, nor those of an exporter or of OpenTelemetry itself."""
    logging.getLogger("app").warning("one")
    logging.getLogger("opentelemetry.exporter.otlp").warning("refused")
    with silenced():
        logging.getLogger("urllib3").warning("retrying")
    logging.getLogger("opentelemetry_like").warning("two")
    assert bodies(exported) == ["one", "two"]


def test_a_record_that_cannot_be_exported_fails_nobody(
    exported: InMemoryLogRecordExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """A field without a name: logged once, with the resulting error's type. A field whose repr raises is marked unreadable."""

    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("secret")

    for _ in range(2):
        logging.getLogger("app.odd").warning("nameless", extra=cast("dict[str, object]", {5: "secret"}))
    logging.getLogger("app.odd").log(35, "odd", extra={"odd": Odd()})
    said = "logging a record of app.odd failed: AttributeError. The program continues without it (logged once)"
    assert [record.getMessage() for record in caplog.records if record.name == "pocket_plug"] == [said]
    assert bodies(exported) == [said, "odd"]
    assert (exported.get_finished_logs()[-1].log_record.attributes or {})["odd"] == "(unreadable Odd)"


def test_exceptions_in_our_own_records_are_exported_without_their_message(exported: InMemoryLogRecordExporter) -> None:
    """It may quote stored data; a library's exception is exported completely."""
    for name in ("pocket_plug", "library"):
        logging.getLogger(name).warning("could not be written", exc_info=ValueError("secret"))
    own, theirs = (dict(data.log_record.attributes or {}) for data in exported.get_finished_logs())
    assert own["exception.type"] == own["error.type"] == "ValueError"
    assert "secret" not in repr(own)
    assert theirs["exception.message"] == "secret"


def test_a_failure_quoted_by_our_own_records_is_exported_by_its_type(exported: InMemoryLogRecordExporter) -> None:
    """A plugin's exception, a backend's: the text is in the local log only. A plugin's error of pocket_plug is complete."""

    class Watching:
        @pp.hookimpl
        def pocket_observe(self, run: Run) -> None:
            raise ValueError("secret of an observer")

    @pp.node
    async def pay(amount: int) -> int:
        return amount

    pp.Graph(pay).run_sync(1, pocket=pp.Pocket(plugins=[Watching()], autoload=False))
    logging.getLogger("pocket_plug").error("%r rejects the queued writes: %s", "db", StoreError("key secret is taken"))
    say_once("drawing", OSError("secret place"))
    told = Told(pp.ConfigError("no option 'x'"), "ConfigError: no option 'x'")
    logging.getLogger("pocket_plug").warning("it failed: %s", told)
    said = [str(body) for body in bodies(exported)]
    assert [body for body in said if "secret" in body] == []
    assert any("failed at pocket_observe: ValueError (logged once" in body for body in said)
    assert "'db' rejects the queued writes: pocket_plug.errors.StoreError" in said
    assert "it failed: ConfigError: no option 'x'" in said
