"""Log events as OpenTelemetry log records: a processor for structlog, and a handler for the standard library's logging.

A program that hasn't configured structlog gets a chain of processors, too. Most libraries use the standard library's logging.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from inspect import currentframe
from io import StringIO
from typing import TextIO, cast

import structlog
from opentelemetry import _logs
from opentelemetry._logs import SeverityNumber
from opentelemetry.util.types import AnyValue
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from pocket_plug.errors import ConfigError, is_fault, suggest
from pocket_plug.layers import logging as own_events
from pocket_plug.layers.logging import LEVELS, add_ids, attributes_of
from pocket_plug.otel.reporting import SCHEMA_URL, own_version, suppressed, surviving
from pocket_plug.primitives.failures import Told, capped, error_text, error_type, stack_of
from pocket_plug.primitives.terminal import escaped, is_terminal

_SEVERITIES = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
_OTHER_NAMES = {"warn": "warning", "exception": "error", "err": "error", "fatal": "critical", "msg": "info"}
_BOUND = ("run_id", "outer_run_id", "graph", "node", "error_type", "stack")
"""Fields that get the same attribute names as those of pocket_plug's own events, in records of a run or of pocket_plug."""

_ELSEWHERE = ("event", "level", "timestamp", "logger", "trace_id", "span_id", "exc_info", "exception")


def export_event(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A structlog processor that emits each event as an OpenTelemetry log record, if a logger provider is set.

    The event becomes the body, its level the severity, its fields the attributes; the record gets the current span's ids.
    The event is passed on unchanged. Put it before the renderer:
    `structlog.configure(processors=[merge_contextvars, …, export_event, JSONRenderer()])`.
    """
    with surviving("exporting a log event", silent=True):
        if not suppressed():  # otherwise an exporter that logs would export its own records for ever
            _emit(method, event)
    return event


def _emit(method: str, event: Mapping[str, object], record: logging.LogRecord | None = None) -> None:
    """Emit an event of structlog. If it comes from a standard `record`, its time and place in the code are taken from there."""
    body = capped(str(event.get("event", "")))
    own = body.startswith("pocket_plug.") and " " not in body
    name, version, schema = ("pocket_plug", own_version(), SCHEMA_URL) if own else (_named(event), None, None)
    level = str(event.get("level", method)).lower()
    level = _OTHER_NAMES.get(level, level)
    severity = _SEVERITIES.get(level, SeverityNumber.UNSPECIFIED) if record is None else _severity(record.levelno)
    exporter = _logs.get_logger_provider().get_logger(name, version, schema)
    enabled = getattr(exporter, "enabled", None)  # only since OpenTelemetry 1.45
    if enabled is not None and not enabled(severity_number=severity):
        return
    exporter.emit(
        timestamp=time.time_ns() if record is None else int(record.created * 1e9),
        severity_number=severity,
        severity_text=level.upper(),
        body=body,
        attributes=_attributes(body if own else None, event, record),
        event_name=body if own else None,
    )


def _attributes(own: str | None, event: Mapping[str, object], record: logging.LogRecord | None) -> dict[str, AnyValue]:
    """The fields, with names of the semantic conventions if they have one. `own` is the name of a pocket_plug event."""
    fields = {key: value for key, value in event.items() if key not in _ELSEWHERE}
    if own is not None:
        fields = attributes_of(own, fields)
    elif "run_id" in fields or event.get("logger") == "pocket_plug":
        bound = attributes_of("", {key: fields.pop(key) for key in _BOUND if key in fields})
        fields |= bound
    found: dict[str, AnyValue] = {capped(key): _plain(value) for key, value in fields.items()}
    if record is not None:
        found |= {
            "code.file.path": capped(record.pathname),
            "code.function.name": capped(record.funcName or ""),
            "code.line.number": record.lineno,
        }
    if (error := _error(event.get("exc_info"))) is not None:
        found |= {
            "exception.type": error_type(error),
            "exception.message": error_text(error),
            "exception.stacktrace": stack_of(error, error_text),
        }
    return found


def _severity(level: int) -> SeverityNumber:
    """The severity of a standard level, also of one between two named levels.

    >>> _severity(25), _severity(5), _severity(90)
    (<SeverityNumber.INFO: 9>, <SeverityNumber.TRACE: 1>, <SeverityNumber.FATAL: 21>)
    """
    return SeverityNumber(min(max(level // 10, 0), 5) * 4 + 1)


def _named(event: Mapping[str, object]) -> str:
    return str(event.get("logger") or "structlog")


def _plain(value: object) -> str | bool | int | float:
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    return capped(value if isinstance(value, str) else _repr(value))


def _repr(value: object) -> str:
    """The value's repr, or a placeholder if that raises: a log line must not raise."""
    try:
        return repr(value)
    except BaseException as error:
        if not is_fault(error):
            raise
        return f"(unreadable {type(value).__name__})"


def _error(exc_info: object) -> BaseException | None:
    """The exception in the field `exc_info`, which is an exception, a tuple with one, or True for the one being handled."""
    if isinstance(exc_info, tuple):
        parts = cast("tuple[object, ...]", exc_info)
        exc_info = parts[1] if len(parts) > 1 else None
    if isinstance(exc_info, BaseException):
        return exc_info
    return sys.exc_info()[1] if exc_info else None


def _escape(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A structlog processor for terminals: it escapes control characters in events."""
    return {escaped(name): _shown(name, value) for name, value in event.items()}


def _shown(name: str, value: object) -> object:
    if name == "exc_info":
        return value  # _traceback escapes it
    if isinstance(value, str):
        return escaped(value, keep="\n\t" if name in ("stack", "exception") else "")
    return _Shown(escaped(_repr(value)))


class _Shown:
    """An object whose repr is this text: the renderer shows it without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _traceback(sio: TextIO, exc_info: ExcInfo) -> None:
    text = StringIO()
    structlog.dev.plain_traceback(text, exc_info)  # structlog's default shows values of local variables
    sio.write(escaped(text.getvalue(), keep="\n\t"))


class _Lines:
    """Writes each event as a line, in one call, so that lines of threads aren't mixed; without a file it writes nothing.

    It holds no lock. structlog's own loggers do, and a child that is forked meanwhile would wait for it for ever.
    """

    def __init__(self, file: TextIO | None) -> None:
        self._write: Callable[[str], object] = file.write if file is not None else lambda _: None

    def msg(self, line: str) -> None:
        self._write(f"{line}\n")

    debug = info = warning = warn = error = err = exception = critical = fatal = log = msg


def check_level(level: str) -> None:
    """Raise ConfigError for an unknown level."""
    if level not in LEVELS:
        raise ConfigError(
            f"log_level can't be {level!r}; give one of {', '.join(LEVELS)}.{suggest(str(level), LEVELS)}"
        )


def wire_structlog(level: str) -> None:
    """Configure structlog, unless the program did: lines to stderr, coloured on a terminal or else JSON, and log records."""
    global _chain
    if structlog.is_configured():
        return
    _chain = [
        structlog.contextvars.merge_contextvars,
        add_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        export_event,
        *_rendering(),
    ]
    lines = _Lines(sys.stderr)
    structlog.configure(
        processors=_chain,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: lines,
    )


_chain: list[Processor] | None = None
"""structlog's processors, if they were configured here."""


def _rendering() -> list[Processor]:
    """The processors that render an event as a line."""
    if is_terminal(sys.stderr):
        return [
            _escape,
            structlog.dev.ConsoleRenderer(colors=not os.environ.get("NO_COLOR"), exception_formatter=_traceback),
        ]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]


def _json(event: EventDict, **_: object) -> str:
    """An event as JSON. A value that JSON can't express (a key that isn't a string, NaN, a cycle) is written as its repr.

    >>> _json({"event": "trained", "loss": float("nan"), "weights": {(0, 1): 0.5}, "steps": {"all": 7}})
    '{"event": "trained", "loss": "nan", "weights": "{(0, 1): 0.5}", "steps": {"all": 7}}'
    """
    try:
        return _dumped(event)
    except _NO_JSON:
        return _dumped({name: _for_json(value) for name, value in event.items()})


_NO_JSON = (TypeError, ValueError, RecursionError)


def _for_json(value: object) -> object:
    try:
        _dumped(value)
    except _NO_JSON:
        return _repr(value)
    return value


def _dumped(value: object) -> str:
    return json.dumps(value, default=_repr, allow_nan=False)


# ---------------------------------------------------------------- the standard library's logging
def wire_logging(level: str) -> StandardLogs | None:
    """Export records of the standard library's logging, by a handler of the root logger; `unwire` removes it.

    Handlers that write lines continue to do so. If the root logger has none, lines are written from `level` on, as structlog's
    are if structlog was configured here, or else as logging does without a handler. Returns None if a handler of OpenTelemetry
    exports the records already.
    """
    root = logging.getLogger()
    if any(type(handler).__module__.startswith("opentelemetry.") for handler in root.handlers):
        return None
    if root.handlers:
        wired = StandardLogs()
    elif _chain is not None and structlog.get_config()["processors"] is _chain:
        wired = StandardLogs(_rendering())
        wired.former_level, wired.own_level = root.level, LEVELS[level]
        root.setLevel(wired.own_level)
    else:
        wired = StandardLogs()
        if logging.lastResort is not None:  # logging itself calls it only if there is no handler at all
            wired.last_resort = logging.lastResort
            root.addHandler(wired.last_resort)
    root.addHandler(wired)
    wired.handle_non_propagating()
    _wired.add(wired)
    return wired


_wired: set[StandardLogs] = set()


def put_logging_back() -> None:
    """Add our handlers again after another library has reset logging; its handlers write the lines now."""
    root = logging.getLogger()
    for handler in _wired:
        if handler not in root.handlers:
            handler.write_no_lines()
            root.addHandler(handler)
        handler.handle_non_propagating()


class StandardLogs(logging.Handler):
    """Exports standard log records, and writes them as lines if `rendering` has processors.

    It holds no lock, which a signal handler or a forked child could wait for.
    """

    def __init__(self, rendering: Sequence[Processor] = ()) -> None:
        super().__init__()
        self._rendering = rendering
        self._write = _Lines(sys.stderr).msg
        self.former_level = self.own_level = logging.NOTSET
        self.last_resort: logging.Handler | None = None
        self._non_propagating: list[NonPropagatingHandler] = []

    def createLock(self) -> None:
        """Create no lock, as the standard NullHandler does."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Handle the record without a lock."""
        if passes := bool(self.filter(record)):
            self.emit(record)
        return passes

    def emit(self, record: logging.LogRecord) -> None:
        """Export the record, and write its line. An error is logged once."""
        if record.levelno == logging.DEBUG and _is_private(record):
            return  # the record before it reports the same exception, without its message
        # `str` of a logged object may raise anything
        with surviving(f"logging a record of {record.name}", silent=True):
            event = _event_of(record)
            if not (suppressed() or _emitting.get() or _is_exported_elsewhere(record)):
                _emit_once(event, record)
            if self._rendering and (record.levelno >= logging.WARNING or not suppressed()):
                self._write_line(event, record)

    def _write_line(self, event: EventDict, record: logging.LogRecord) -> None:
        made = datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z")
        line: object = {**event, "timestamp": made}
        for processor in self._rendering:
            line = processor(None, str(event["level"]), cast("EventDict", line))
        self._write(str(line))

    def write_no_lines(self) -> None:
        """Stop writing lines: other handlers do."""
        self._rendering = ()

    def unwire(self) -> None:
        """Restore the root logger."""
        _wired.discard(self)
        root = logging.getLogger()
        root.removeHandler(self)
        if self.last_resort is not None:
            root.removeHandler(self.last_resort)
        if self.own_level and root.level == self.own_level:
            root.setLevel(self.former_level)
        for handler in self._non_propagating:
            handler.unwire()

    def handle_non_propagating(self) -> None:
        """Add a handler to loggers that don't propagate and have their own handlers, such as uvicorn's; the others are silent."""
        for logger in [*logging.root.manager.loggerDict.values()]:
            if isinstance(logger, logging.Logger) and not logger.propagate:
                kinds = {type(handler) for handler in logger.handlers}
                if kinds - {logging.NullHandler} and NonPropagatingHandler not in kinds:
                    self._non_propagating.append(NonPropagatingHandler(logger))


class NonPropagatingHandler(StandardLogs):
    """Exports the records of a logger while it doesn't propagate them. The logger's own handlers write the lines."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Export the record, unless it propagates to the root logger's handler."""
        if not self._logger.propagate:
            super().emit(record)

    def unwire(self) -> None:
        """Restore the logger."""
        self._logger.removeHandler(self)


_emitting: ContextVar[bool] = ContextVar("emitting", default=False)
"""True while a record is emitted here. If a log processor of the program logs meanwhile, this prevents an endless recursion."""

_OF_ALL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""The attributes of every record. All others were added by the program."""


def _emit_once(event: EventDict, record: logging.LogRecord) -> None:
    token = _emitting.set(True)
    try:
        _emit(str(event["level"]), event, record)
    finally:
        _emitting.reset(token)


def _event_of(record: logging.LogRecord) -> EventDict:
    """The record as a structlog event, with the ids of the run and the span."""
    event: dict[str, object] = {
        name: value for name, value in vars(record).items() if name not in _OF_ALL and not name.startswith("_")
    }
    said: object = record.msg
    if isinstance(said, dict):  # an event of structlog, meant for its ProcessorFormatter
        event |= cast("dict[str, object]", said)
    else:
        event["event"] = record.getMessage() if own_events.configure().exceptions else _without_texts(record)
    event |= {"level": record.levelname.lower(), "logger": record.name}
    if record.stack_info:
        event["stack"] = record.stack_info
    error = _error(record.exc_info)
    if error is not None and _is_private(record):
        event |= {"error_type": error_type(error), "stack": stack_of(error, lambda _: None)}
    elif error is not None:
        event["exc_info"] = record.exc_info
    return add_ids(None, "", structlog.contextvars.merge_contextvars(None, "", event))


def _without_texts(record: logging.LogRecord) -> str:
    """The record's message. In pocket_plug's own records, exceptions become their types: a text may contain stored values."""
    if record.name != "pocket_plug" or not isinstance(record.args, tuple):
        return record.getMessage()
    said = (
        each.type if isinstance(each, Told) else error_type(each) if isinstance(each, BaseException) else each
        for each in record.args
    )
    return str(record.msg) % tuple(said)


def _is_private(record: logging.LogRecord) -> bool:
    """Has it an exception of pocket_plug, whose message may contain stored values? The setting `exceptions` shows these."""
    return bool(record.exc_info) and record.name == "pocket_plug" and not own_events.configure().exceptions


def _is_exported_elsewhere(record: logging.LogRecord) -> bool:
    """Is it a record of OpenTelemetry, which would lead to another one for ever, or of structlog, which exports its events?"""
    if record.name.partition(".")[0] == "opentelemetry":
        return True
    if export_event not in structlog.get_config()["processors"]:
        return False
    frame = currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "structlog._base":
            return frame.f_code.co_name == "_proxy_to_logger"  # the final logger, and not a processor that logs
        frame = frame.f_back
    return False
