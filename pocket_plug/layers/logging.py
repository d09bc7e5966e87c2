"""Log events of runs, nodes and stores: through structlog where the program uses it, else by the standard library's logging.

structlog is imported only where it is used. The logger and the enabled levels are looked up when a run starts, and when a
stack is built or opened; a level that is filtered out costs next to nothing then. Events never hold a key or a value, only
declared key templates; and of exceptions the type and the stack, but the message only if the settings ask for it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from opentelemetry import trace
from opentelemetry.context import attach, detach
from typing_extensions import Unpack

from pocket_plug.errors import ConfigError, RouteError, suggest
from pocket_plug.hookspecs import NodeCall, Observer, Run, RunNotice, hookimpl
from pocket_plug.otel import open_runs
from pocket_plug.otel.late import measuring_context
from pocket_plug.otel.reporting import changed, suppressed, surviving
from pocket_plug.primitives.failures import error_type, stack_of
from pocket_plug.primitives.redaction import summary
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Entry, Keeper, Put
from pocket_plug.store.keys import template_of
from pocket_plug.store.layer import Layer, parts

if TYPE_CHECKING:
    from pocket_plug.hookspecs import PluginRecord

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

_logger = logging.getLogger("pocket_plug")
_root = logging.getLogger()


# ---------------------------------------------------------------- settings
@dataclass(frozen=True, slots=True)
class Settings:
    """`events`: are runs and nodes logged? None: if the program has configured structlog, or the standard library's logging.

    If neither is configured, events are not logged, since each would be printed on the terminal.

    `exceptions`: is an exception that escapes a node logged with its message, as `exc_info`? The message may contain
    private data, so by default only the type and the stack are logged.
    """

    events: bool | None = None
    exceptions: bool = False


class Changes(TypedDict, total=False):
    """What `configure` takes."""

    events: bool | None
    exceptions: bool


def configure(**changes: Unpack[Changes]) -> Settings:
    """Change the process's settings of log events, from the next run on; returns the former ones.

    They hold unless a Pocket has other settings: `[plugins.logging] events = true` is for the runs of that Pocket.
    Raises ConfigError for an unknown option.
    """
    global _settings
    former, _settings = _settings, changed("logging", _settings, changes)
    return former


_settings = Settings()


# ---------------------------------------------------------------- hooks
class LoggingPlugin:
    """The plugin; each Pocket has an object of its own: its table `[plugins.logging]` is for its own runs."""

    def __init__(self) -> None:
        self._own: Changes = {}

    @hookimpl
    def pocket_configure(self, options: Changes) -> None:
        """The table of this Pocket; options that it doesn't name are the process's."""
        changed("logging", _settings, options)  # refuses unknown options
        for name, value in options.items():
            if not isinstance(value, bool):
                raise ConfigError(f"logging: {name} must be true or false, not {summary(value)}")
        self._own = options

    @hookimpl
    def pocket_layers(self) -> Sequence[type[Layer]]:
        """The layer `logging`."""
        return [Logging]

    @hookimpl(tryfirst=True)  # so that what other plugins log has the run's id
    def pocket_observe(self, run: Run) -> Observer | None:
        """Log a run if the settings ask for it."""
        chosen = self._chosen()
        if not _wanted(chosen):
            if _looked:
                look()  # a layer logs: a changed configuration holds for it too from here on
            return None
        if suppressed():
            return None
        log = look()
        binds = "structlog" in sys.modules
        if not binds and log["error"] is None:  # our events are filtered out, and no other events get the ids
            return None
        return Observer(
            run=partial(_RunLog, log),
            node=partial(_NodeLog if binds else _NodeFailure, log, chosen.exceptions),
            event=partial(_event, log),
            failures_only=not binds and log["debug"] is None,  # at debug conflicts are logged, which any node may have
        )

    @hookimpl
    def pocket_run_notice(self, notice: RunNotice) -> None:
        """Log what happens to a durable run."""
        if _wanted(self._chosen()) and not suppressed():
            level = "info" if notice.what in ("submitted", "cancelled") else "warning"
            about = {"run_id": notice.run_id, "graph": notice.graph, **notice.attributes}
            _say(look(), level, f"pocket_plug.run.{notice.what}", **about)

    def _chosen(self) -> Settings:
        """The settings that hold for this Pocket now."""
        return replace(_settings, **self._own) if self._own else _settings  # called for each run

    @hookimpl
    def pocket_plugin_failed(self, plugin: PluginRecord, what: str, error: BaseException) -> None:
        """Log the first time that a plugin fails at something."""
        if _wanted(self._chosen()) and not suppressed() and _structlog_is_configured():  # logging has it already
            about = {"plugin": plugin.name, "part": what, "error_type": error_type(error)}
            with surviving("logging that a plugin failed", silent=True):  # a user's processor may raise anything
                _say(look(), "warning", "pocket_plug.plugin.failed", **about)


def _wanted(chosen: Settings) -> bool:
    if chosen.events is not None:
        return chosen.events
    return _structlog_is_configured() or _logging_is_configured()


def _logging_is_configured() -> bool:
    """`_logger.hasHandlers()`, in half the time: each run calls this."""
    return bool(_logger.handlers or (_root.handlers and _logger.propagate))


def _structlog_is_configured() -> bool:
    structlog = sys.modules.get("structlog")  # whoever configures it has imported it
    return structlog is not None and structlog.is_configured()


# ---------------------------------------------------------------- the logger
Method = Callable[..., Any]
Methods = Mapping[str, Method | None]
"""The function that logs, for each level; None for a level that is filtered out."""

_methods: Methods = dict.fromkeys(LEVELS)
_looked = False


def look() -> Methods:
    """Look up how structlog is configured now; if it isn't, how the standard library's logging is."""
    global _methods, _looked
    by_logging = not _structlog_is_configured() and _logging_is_configured()
    _methods, _looked = _by_logging() if by_logging else _by_structlog(), True
    return _methods


def _by_structlog() -> Methods:
    import structlog

    logger: Any = structlog.get_logger("pocket_plug").bind()
    enabled = getattr(logger, "is_enabled_for", None) or getattr(logger, "isEnabledFor", None)
    return {
        name: getattr(logger, name) if enabled is None or enabled(number) else None for name, number in LEVELS.items()
    }


def _by_logging() -> Methods:
    """The logger `pocket_plug` of the standard library's logging."""
    return {name: _writers[name] if _logger.isEnabledFor(number) else None for name, number in LEVELS.items()}


def _write(level: int, event: str, *, exc_info: BaseException | None = None, **fields: object) -> None:
    """Log an event: the fields are in the text, and on the record with their names as attributes."""
    shown = " ".join(f"{name}={value!r}" for name, value in fields.items() if name != "stack")
    stack = f"\n{fields['stack']}" if "stack" in fields else ""
    _logger.log(level, "%s %s%s", event, shown, stack, exc_info=exc_info, extra=attributes_of(event, fields))


_writers = {name: partial(_write, number) for name, number in LEVELS.items()}


_ATTRIBUTES = {
    "run_id": "pocket_plug.run.id",
    "outer_run_id": "pocket_plug.run.outer_id",
    "graph": "pocket_plug.graph.name",
    "node": "pocket_plug.node.name",
    "error_type": "error.type",
    "attempt": "pocket_plug.attempt",
    "delay": "pocket_plug.retry.delay",
    "timeout": "pocket_plug.timeout",
    "label": "pocket_plug.layer.label",
    "reason": "pocket_plug.store.eviction.reason",
    "op": "db.operation.name",
    "stack": "exception.stacktrace",
    # for logging's records; OpenTelemetry's have fields for them
    "trace_id": "trace_id",
    "span_id": "span_id",
}
"""The names of our events' fields as attributes of a log record, as on spans."""


def attributes_of(event: str, fields: Mapping[str, object]) -> dict[str, object]:
    """The fields of one of our events, by their names in OpenTelemetry: the conventions', or with the event's prefix.

    >>> attributes_of("pocket_plug.run.finished", {"graph": "shop", "steps": 2})
    {'pocket_plug.graph.name': 'shop', 'pocket_plug.run.steps': 2}
    """
    subject = ".".join(event.split(".")[:2])
    found = {_ATTRIBUTES.get(name, f"{subject}.{name}"): value for name, value in fields.items()}
    if "stack" in fields:
        found["exception.type"] = fields.get("error_type")
    return found


def add_ids(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor that adds the current span's `trace_id` and `span_id` to every event of the program.

    `run_id`, `graph` and `node` come by structlog's own `merge_contextvars`.
    """
    event.update(_ids())
    return event


def _ids() -> dict[str, str]:
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}


# ---------------------------------------------------------------- runs and nodes
def _say(log: Methods, level: str, event: str, **fields: Any) -> None:
    method = log[level]
    if method is not None:
        _log_with_ids(method, event, **fields)


def _log_with_ids(method: Method, event: str, **fields: Any) -> None:
    token = attach(measuring_context())  # our log record must not begin an item's span: it gets the fan-out's id then
    try:
        method(event, **_ids(), **fields)
    finally:
        detach(token)


def _bind(**names: str) -> Mapping[str, Token[Any]]:
    """Bind names for all that structlog logs inside; nothing to do if it isn't imported."""
    if "structlog" not in sys.modules:
        return {}
    from structlog.contextvars import bind_contextvars

    return bind_contextvars(**names)


def _unbind(tokens: Mapping[str, Token[Any]]) -> None:
    if tokens:
        from structlog.contextvars import reset_contextvars

        reset_contextvars(**tokens)


_escaped: ContextVar[deque[BaseException] | None] = ContextVar("escaped", default=None)
"""In a run's context: the exceptions that were logged already, so that the graph around logs none again."""


class _RunLog:
    """Binds the run's id and graph for all that is logged inside, and logs its start and its end."""

    __slots__ = ("__weakref__", "log", "run", "span", "started", "tokens")

    def __init__(self, log: Methods, run: Run) -> None:
        self.log, self.run = log, run

    def __enter__(self) -> None:
        run = self.run
        self.tokens = _bind(**_names_of(run))
        if run.parent is None:
            _escaped.set(deque(maxlen=64))  # in the outermost run's own context: there is nothing to reset
        self.started = time.perf_counter()
        parent = {"parent_id": run.parent.id} if run.parent is not None else {}
        self.span = trace.get_current_span()
        begun = "pocket_plug.run.resumed" if run.resumed else "pocket_plug.run.started"
        _say(self.log, "info", begun, **_names_of(run), **parent)
        open_runs.begun(self)

    def __exit__(self, *_: object) -> None:
        run = self.run
        _unbind(self.tokens)
        if run.parent is None and (escaped := _escaped.get()) is not None:
            escaped.clear()  # its tracebacks lead to the run's context, which holds this
        if open_runs.ended(self):
            failure = {} if run.error is None else {"error_type": error_type(run.error)}
            self._finish(run.outcome, failure)

    def interrupt(self, reason: str) -> None:
        """Log that the run ends with the process."""
        with trace.use_span(self.span):
            self._finish(open_runs.INTERRUPTED, {"error_type": reason})

    def _finish(self, outcome: str | None, failure: Mapping[str, str]) -> None:
        run = self.run
        about = {**_names_of(run), "steps": run.steps, "duration": time.perf_counter() - self.started}
        if outcome == "suspended":  # it waits for an answer; nothing has failed
            _say(self.log, "info", "pocket_plug.run.suspended", **about)
            return
        level = "info" if outcome in ("success", "cancelled") else "warning"
        _say(self.log, level, "pocket_plug.run.finished", **about, outcome=outcome, **failure)


class _NodeFailure:
    """Logs an exception that escapes a node, once per run."""

    __slots__ = ("call", "log", "whole")

    def __init__(self, log: Methods, whole: bool, call: NodeCall) -> None:
        self.log, self.whole, self.call = log, whole, call

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, stack: object) -> None:
        if error is not None and self.call.outcome == "failed" and not _was_logged(error):
            missing = isinstance(error, RouteError)
            event = "pocket_plug.route.missing" if missing else "pocket_plug.node.exception"
            _say(self.log, "error", event, **_about(self.call), **_error_fields(error, self.whole))


class _NodeLog(_NodeFailure):
    """Binds the node's name for all that is logged inside, too."""

    __slots__ = ("tokens",)

    def __enter__(self) -> None:
        self.tokens = _bind(node=self.call.name)

    def __exit__(self, kind: object, error: BaseException | None, stack: object) -> None:
        try:
            super().__exit__(kind, error, stack)
        finally:
            _unbind(self.tokens)


def _error_fields(error: BaseException, whole: bool) -> dict[str, Any]:
    """The fields of an event about an exception: with its message, if it is logged `whole`."""
    what = {"exc_info": error} if whole else {"stack": stack_of(error, lambda _: None)}
    return {"error_type": error_type(error), **what}


def _was_logged(error: BaseException) -> bool:
    """Was it logged in this run before? From now on it was."""
    escaped = _escaped.get()
    if escaped is None or any(other is error for other in escaped):
        return escaped is not None
    escaped.append(error)
    return False


def _about(call: NodeCall) -> dict[str, Any]:
    return {**_names_of(call.run), "node": call.name, "visit": call.visit}


def _names_of(run: Run) -> dict[str, str]:
    """The names of a run for all that is logged in it; in a nested graph also the id of the outermost run."""
    names = {"run_id": run.id, "graph": run.graph}
    if (outer := run.parent) is not None:
        while outer.parent is not None:
            outer = outer.parent
        names["outer_run_id"] = outer.id
    return names


def _event(log: Methods, name: str, call: NodeCall, attributes: Mapping[str, Any]) -> None:
    """Log retries, fallbacks and timeouts at warning; conflicts, which are usual, at debug."""
    if name in ("retry", "fallback", "timeout", "conflict"):
        fields = {key: value for key, value in attributes.items() if key != "error"}
        if isinstance(error := attributes.get("error"), BaseException):
            fields["error_type"] = error_type(error)
        _say(log, "debug" if name == "conflict" else "warning", f"pocket_plug.node.{name}", **_about(call), **fields)


# ---------------------------------------------------------------- the layer
class Logging(Layer):
    """Logs each operation that reaches the stack, with its key's template, hit and duration in seconds.

    `level` is the level of its events: "debug", "info", "warning" or "error". They go where structlog's configuration
    says; if there is none, to the logger `pocket_plug` if logging is configured, else to stdout. A changed configuration
    holds from the next `open`, stack or logged run on.
    """

    level: str = "debug"

    inline_read = inline_write = True

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ConfigError(
                f"logging: level {self.level!r} is not one of {', '.join(LEVELS)}.{suggest(self.level, LEVELS)}"
            )

    def on_build(self) -> None:
        look()
        self._about = {"label": self.label} if self.label else {}
        layers = parts(self.inner)[:-1]  # evictions by the backend itself are not logged
        keepers = [part for part in layers if isinstance(part, Keeper)]
        self._keepers = [(keeper, Counter(keeper.evictions)) for keeper in keepers]

    async def open(self) -> None:
        look()
        await super().open()

    async def read(self, key: str) -> Entry | None:
        method = _methods[self.level]
        if method is None or suppressed():
            return await self.inner.read(key)
        started = time.perf_counter()
        try:
            entry = await self.inner.read(key)
        except BaseException as error:
            self._say_done(method, started, error, op="get", template=template_of(key))
            raise
        self._say_done(method, started, None, op="get", template=template_of(key), hit=entry is not None)
        return entry

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        method = _methods[self.level]
        if method is None or suppressed():
            return await self.inner.read_many(keys)
        keys = list(keys)
        started = time.perf_counter()
        try:
            entries = await self.inner.read_many(keys)
        except BaseException as error:
            self._say_done(method, started, error, op="get_many", size=len(keys))
            raise
        self._say_done(method, started, None, op="get_many", size=len(keys), hits=len(entries))
        return entries

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        method = _methods[self.level]
        if method is None or suppressed():
            return await self.inner.write(changes, expect)
        if len(changes) == 1:
            op = "set" if isinstance(changes[0], Put) else "delete"
            fields: dict[str, Any] = {"op": op, "template": template_of(changes[0].key)}
        else:
            fields = {"op": "write" if changes else "check", "size": len(changes) or len(expect)}
        started = time.perf_counter()
        try:
            version = await self.inner.write(changes, expect)
        except BaseException as error:
            self._say_done(method, started, error, **fields)
            raise
        self._say_done(method, started, None, **fields)
        if self._keepers and (debug := _methods["debug"]) is not None:
            self._say_evictions(debug)
        return version

    def _say_evictions(self, method: Method) -> None:
        """Log how many entries the layers below have evicted since the last logged write, and why."""
        for keeper, known in self._keepers:
            for reason, count in keeper.evictions.items():
                if (new := count - known[reason]) > 0:
                    known[reason] = count
                    self._log(method, "pocket_plug.store.evicted", reason=reason, entries=new)

    def _say_done(self, method: Method, started: float, error: BaseException | None, **fields: object) -> None:
        duration = time.perf_counter() - started
        if error is not None:
            fields["error_type"] = error_type(error)
        self._log(method, "pocket_plug.store", duration=duration, **fields)

    def _log(self, method: Method, event: str, **fields: object) -> None:
        with surviving("logging a store operation", silent=True):  # a user's processor may raise anything
            _log_with_ids(method, event, **self._about, **fields)
