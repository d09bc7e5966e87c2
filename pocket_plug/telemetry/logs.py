"""structlog, from the program's events to OpenTelemetry's logs: a processor for any chain, and a chain for who has none."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from io import StringIO
from typing import TextIO, cast

import structlog
from opentelemetry import _logs
from opentelemetry._logs import SeverityNumber
from opentelemetry.util.types import AnyValue
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from pocket_plug.errors import ConfigError, is_fault, suggest
from pocket_plug.layers.logging import LEVELS, add_ids
from pocket_plug.otel.reporting import SCHEMA_URL, own_version, suppressed
from pocket_plug.primitives.failures import capped, error_text, error_type, say_once, stack_of
from pocket_plug.primitives.terminal import escaped

_SEVERITIES = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
_OTHER_NAMES = {"warn": "warning", "exception": "error", "err": "error", "fatal": "critical", "msg": "info"}
_OURS = {
    "run_id": "pocket_plug.run.id",
    "graph": "pocket_plug.graph.name",
    "node": "pocket_plug.node.name",
    "error_type": "error.type",
}
_ELSEWHERE = ("event", "level", "timestamp", "logger", "trace_id", "span_id", "exc_info", "exception")


def export_event(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A structlog processor that emits each event as an OpenTelemetry log record, where a logger provider is set.

    The event is the body, its level the severity, its fields the attributes, and the current span's ids are the
    record's. It changes nothing, so it stands before whatever renders:
    `structlog.configure(processors=[merge_contextvars, …, export_event, JSONRenderer()])`.
    """
    try:
        if not suppressed():  # an exporter that logs would feed itself
            _emit(method, event)
    except BaseException as error:  # a log that can't be exported must not fail who logs
        if not is_fault(error):
            raise
        say_once("exporting a log event", error, silent=True)
    return event


def _emit(method: str, event: Mapping[str, object]) -> None:
    body = capped(str(event.get("event", "")))
    own = body.startswith("pocket_plug.")
    name, version, schema = ("pocket_plug", own_version(), SCHEMA_URL) if own else (_named(event), None, None)
    level = str(event.get("level", method)).lower()
    level = _OTHER_NAMES.get(level, level)
    severity = _SEVERITIES.get(level, SeverityNumber.UNSPECIFIED)
    exporter = _logs.get_logger_provider().get_logger(name, version, schema)
    enabled = getattr(exporter, "enabled", None)  # since OpenTelemetry 1.45; before that, who asked got all
    if enabled is not None and not enabled(severity_number=severity):
        return
    within = "run_id" in event
    attributes: dict[str, AnyValue] = {
        capped(_OURS.get(key, key) if within else key): _plain(value)
        for key, value in event.items()
        if key not in _ELSEWHERE
    }
    if (error := _error(event.get("exc_info"))) is not None:
        attributes |= {
            "exception.type": error_type(error),
            "exception.message": error_text(error),
            "exception.stacktrace": stack_of(error, error_text),
        }
    exporter.emit(
        severity_number=severity,
        severity_text=level.upper(),
        body=body,
        attributes=attributes,
        event_name=body if own else None,
    )


def _named(event: Mapping[str, object]) -> str:
    return str(event.get("logger") or "structlog")


def _plain(value: object) -> str | bool | int | float:
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    return capped(value if isinstance(value, str) else repr(value))


def _error(exc_info: object) -> BaseException | None:
    """As structlog's users give it: the exception, a tuple with it, or True for the one being handled."""
    if isinstance(exc_info, tuple):
        parts = cast("tuple[object, ...]", exc_info)
        exc_info = parts[1] if len(parts) > 1 else None
    if isinstance(exc_info, BaseException):
        return exc_info
    return sys.exc_info()[1] if exc_info else None


def _escape(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A structlog processor for what is drawn on the terminal: no text in an event is obeyed by it."""
    return {escaped(name): _shown(name, value) for name, value in event.items()}


def _shown(name: str, value: object) -> object:
    if name == "exc_info":
        return value  # see _traceback
    text = value if isinstance(value, str) else repr(value)
    shown = escaped(text, keep="\n\t" if name in ("stack", "exception") else "")
    return value if shown == text else shown


def _traceback(sio: TextIO, exc_info: ExcInfo) -> None:
    text = StringIO()
    structlog.dev.plain_traceback(text, exc_info)  # the usual one shows the values of local names
    sio.write(escaped(text.getvalue(), keep="\n\t"))


class _Lines:
    """Writes each event as a line, in one call: what threads write isn't mixed, and no lock is held.

    structlog's own loggers have one, for which a child forked meanwhile would wait for ever.
    """

    def __init__(self, file: TextIO) -> None:
        self._write = file.write

    def msg(self, line: str) -> None:
        self._write(f"{line}\n")

    debug = info = warning = warn = error = err = exception = critical = fatal = log = msg


def wire_structlog(level: str) -> bool:
    """Configure structlog, unless that was done: lines to stderr, coloured on a terminal, else JSON; and OpenTelemetry.

    Raises ConfigError for a level that there isn't.
    """
    if level not in LEVELS:
        raise ConfigError(f"log_level {level!r} is none of {', '.join(LEVELS)}.{suggest(level, LEVELS)}")
    if structlog.is_configured():
        return False
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        export_event,
    ]
    if sys.stderr.isatty():
        last: list[Processor] = [
            _escape,
            structlog.dev.ConsoleRenderer(colors=not os.environ.get("NO_COLOR"), exception_formatter=_traceback),
        ]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=repr)]
    lines = _Lines(sys.stderr)
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: lines,
    )
    return True
