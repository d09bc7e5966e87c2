"""`observe()` for development, `setup()` for production, and the `Telemetry` that both return.

If the program has set a provider, both use it and add nothing to it. Nothing is set up on import.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import dropwhile
from math import ceil, inf
from pathlib import Path
from typing import Self, TypeVar, cast

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk._logs import LogRecordProcessor
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import NoOpTracerProvider

from pocket_plug.errors import ConfigError
from pocket_plug.layers import metrics as own_metrics
from pocket_plug.layers import tracing
from pocket_plug.primitives.forking import after_fork
from pocket_plug.primitives.locks import RLock
from pocket_plug.primitives.redaction import found, public_url
from pocket_plug.primitives.terminal import is_terminal
from pocket_plug.traces.recorded import DEFAULT_FILE, RecordedSpan
from pocket_plug.traces.retention import TraceLimits

from .declared import declared
from .ending import in_time, no_sigterm, watch_sigterm, watch_the_end
from .environment import Environment, Source
from .export import LogExport, MetricExport, Part, SpanExport, ended_by
from .exporters import Signal
from .live import OpenSpans
from .local import FileExporter, where_to_look
from .logs import StandardLogs, check_level, wire_logging, wire_structlog
from .notebook import NotebookTree, notebook_shell
from .providers import (
    add_spans,
    drop_logs,
    drop_spans,
    logs_are_taken,
    metrics_are_taken,
    set_logs,
    set_metrics,
    traces_are_taken,
)
from .rejections import naming_rejections
from .tree import TreeProcessor

FLUSH_TIMEOUT = 2.0
"""Seconds that the end of a process waits for exporters by default. OpenTelemetry has no variable for this."""

T = TypeVar("T")

_logger = logging.getLogger("pocket_plug")
_lock = RLock()  # reentrant: a SIGTERM within may close
_observed: Telemetry | None = None
_in_production: Telemetry | None = None
_first_given: dict[str, Mapping[str, object]] = {}
"""The arguments with which `observe` and `setup` set up the telemetry in use."""
_chosen: dict[Telemetry, dict[str, tuple[object, object]]] = {}
"""The settings of tracing that each `Telemetry` in use has changed, in that order: the value of each, and the one before."""


def observe(
    *,
    detail: tracing.Detail | None = None,
    file: str | os.PathLike[str] | None = None,
    keep: TraceLimits | None = None,
    terminal: bool | None = None,
    capture: tracing.Capture | None = None,
    redact: tracing.Redact | None = None,
    flavours: Collection[str] | None = None,
    baggage: Collection[str] | None = None,
    flush_timeout: float | None = None,
) -> Telemetry:
    """Trace all runs and traced stores of this process from now on.

    If the program has set a tracer provider, spans go there, and it isn't changed. Otherwise they go where
    `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_TRACES_EXPORTER` says. Otherwise they go to
    `.pocket_plug/traces.jsonl` (one OTLP/JSON request per line) and, if stderr is a terminal, as a tree to the terminal; in a
    notebook as a tree below the cell. `file` and `terminal=True` do this in any case, `terminal=False` switches the tree off.
    `keep` limits the size and age of the file; by default POCKET_PLUG_TRACES_SIZE and POCKET_PLUG_TRACES_AGE do, or else it is
    100 MB and 30 days. `OTEL_SDK_DISABLED=true` and all other variables of the SDK are used; if `OTEL_CONFIG_FILE` names a
    file, that file is used instead of them. The file and the terminal show messages of exceptions; they are sent only if
    `capture` says so.

    The other arguments are the process's settings of tracing until it is closed, used if a Pocket's configuration has none.
    `detail` is "phase" by default; arguments that are None change nothing. `flavours` has no effect any more; 0.3 removes it.

    If it is called again, it returns the same `Telemetry` until that is closed; the arguments must then be those of the first
    call. It is flushed when the process ends, also by SIGTERM, which waits for at most `flush_timeout` seconds: by default
    POCKET_PLUG_FLUSH_TIMEOUT, or else 2. Raises ConfigError for invalid settings, and for arguments that differ from before.
    """
    global _observed
    tracing.warn_of_flavours(flavours)
    path = None if file is None else Path(file)
    given = _given(
        detail=detail,
        file=path,
        keep=keep,
        terminal=terminal,
        capture=capture,
        redact=redact,
        baggage=baggage,
        flush_timeout=flush_timeout,
    )
    with _lock, naming_rejections():
        if _observed is None:
            source = declared() or Environment()
            chosen = _settings(detail or "phase", capture, redact, baggage)
            seconds = _flush_timeout(flush_timeout)
            mode, queues, path = _trace_locally(path, keep, terminal, source)
            with ExitStack() as undoing:
                spans = [ended_by(undoing, queue()) for queue in queues]
                undoing.pop_all()
            made = Telemetry({"traces": mode}, flush_timeout=seconds, spans=spans, file=path)
            with _whole(made, chosen):
                _send_spans(spans, mode, source)
            _first_given["observe"] = {"detail": "phase", "file": path, "flush_timeout": seconds, **given}
            _observed = made
        _refuse_others("observe", given)
        watch_sigterm()  # only the main thread can; the call that set up may have been in another one
        return _observed


def setup(
    *,
    detail: tracing.Detail | None = None,
    capture: tracing.Capture | None = None,
    redact: tracing.Redact | None = None,
    flavours: Collection[str] | None = None,
    baggage: Collection[str] | None = None,
    log_level: str | None = None,
    log_stdlib: bool | None = None,
    flush_timeout: float | None = None,
) -> Telemetry:
    """Send traces, metrics and logs of this process where the `OTEL_*` variables say, from now on.

    For each signal: if the program has set a provider, it is used and not changed. Otherwise the signal goes where
    `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER` or `OTEL_LOGS_EXPORTER` says, or else to the endpoint of
    `OTEL_EXPORTER_OTLP_ENDPOINT` or that of the signal, or else nowhere. If `OTEL_CONFIG_FILE` names a file of OpenTelemetry's
    declarative configuration, the file is used instead of these variables.

    Unless the program has configured structlog, it writes from `log_level` (by default "info") on to stderr: coloured lines on
    a terminal and JSON elsewhere, with the current span's ids. It also sends OpenTelemetry log records. A program with its own
    chain of processors adds `export_event` to it.

    Standard logging, which most libraries use, is included unless `log_stdlib` is False: a handler of the root logger, and of
    each logger that doesn't propagate to it, sends OpenTelemetry log records. If the root logger has no handler yet, the handler
    also writes lines, as structlog does and from the same level on.

    The other arguments are the process's settings of tracing, which are used if a Pocket's configuration has none, until the
    `Telemetry` is closed; arguments that are None change nothing. `flavours` has no effect any more; 0.3 will remove it.

    If it is called again, it returns the same `Telemetry` until that is closed; the arguments must then be those of the first
    call. It is flushed when the process ends, also by SIGTERM, which waits for at most `flush_timeout` seconds: by default
    POCKET_PLUG_FLUSH_TIMEOUT, or else 2. Raises ConfigError for invalid variables or an invalid file, and for arguments that
    differ from those of the first call.
    """
    global _in_production
    tracing.warn_of_flavours(flavours)
    given = _given(
        detail=detail,
        capture=capture,
        redact=redact,
        baggage=baggage,
        log_level=log_level,
        log_stdlib=log_stdlib,
        flush_timeout=flush_timeout,
    )
    with _lock, naming_rejections():
        if _in_production is None:
            source = declared() or Environment()
            chosen = _settings(detail, capture, redact, baggage)
            seconds = _flush_timeout(flush_timeout)
            check_level(log_level or "info")
            _first_given["setup"] = {"log_level": "info", "log_stdlib": True, "flush_timeout": seconds, **given}
            _in_production = _set_up(chosen, log_level or "info", seconds, source)
            if log_stdlib is not False:
                _in_production.standard_logs = wire_logging(log_level or "info")
        _refuse_others("setup", given)
        watch_sigterm()  # only the main thread can; the call that set up may have been in another one
        return _in_production


def _set_up(chosen: tracing.Changes, log_level: str, flush_timeout: float, source: Source) -> Telemetry:
    """Set up all three signals."""
    if source.disabled:
        made = Telemetry(dict.fromkeys(("traces", "metrics", "logs"), "off"), flush_timeout=flush_timeout)
        with _whole(made, chosen):
            wire_structlog(log_level)
        return made
    # all are made before any is used, so that an invalid setting leaves nothing half set up
    queue_spans, span_mode = ([], "yours") if traces_are_taken() else _with_mode(source.spans())
    queue_records, log_mode = ([], "yours") if logs_are_taken() else _with_mode(source.records())
    with ExitStack() as undoing:
        spans = [ended_by(undoing, queue()) for queue in queue_spans]
        records = [ended_by(undoing, queue()) for queue in queue_records]
        # what takes long comes before the readers: their threads begin at once, and warn without a provider
        if spans or records:
            source.resource()
            tracing.additions_of_default()
        readers, metric_mode = ([], "yours") if metrics_are_taken() else _with_mode(source.readers())
        undoing.pop_all()
    modes: dict[Signal, str] = {"traces": span_mode, "metrics": metric_mode, "logs": log_mode}
    made = Telemetry(modes, flush_timeout=flush_timeout, spans=spans, records=records, readers=readers)
    with _whole(made, chosen):
        if spans or records or readers:
            watch_the_end(_close_all)
        if spans:
            add_spans(spans, source)
        if records:
            set_logs(records, source)
        if readers:
            set_metrics(readers, source)
        elif isinstance(own_metrics.configure().meter_provider, NoOpMeterProvider):
            own_metrics.configure(meter_provider=None)  # muted, as tracing may have been
        if set(modes.values()) != {"yours"}:  # otherwise the program has set up OpenTelemetry itself
            source.apply_the_rest()
        wire_structlog(log_level)
    return made


@contextmanager
def _whole(made: Telemetry, chosen: tracing.Changes) -> Generator[None]:
    """Use these settings of tracing. If the block fails, `made` is closed, and the former settings are restored."""
    with ExitStack() as undoing:
        undoing.callback(made.close)
        former = tracing.configure(**chosen)
        undoing.callback(tracing.use, former)
        yield
        undoing.pop_all()
    _chosen[made] = {
        name: (value, getattr(former, name)) for name, value in chosen.items() if name != "tracer_provider"
    }


def _take_back(made: Telemetry) -> None:
    """Set the settings of tracing as if this had never chosen any; but not those that the program has changed since."""
    later = [*dropwhile(lambda each: each is not made, _chosen)][1:]
    now, back = tracing.configure(), dict[str, object]()
    for name, (value, before) in _chosen.pop(made, {}).items():
        overlaid = next((_chosen[each] for each in later if name in _chosen[each]), None)
        if overlaid is None:
            if getattr(now, name) == value:
                back[name] = before
        elif overlaid[name][1] == value:
            overlaid[name] = overlaid[name][0], before
    tracing.configure(**cast("tracing.Changes", back))


def _flush_timeout(given: float | None) -> float:
    """The seconds of the argument, or else of the variable. Raises ConfigError for an invalid value."""
    text = os.environ.get("POCKET_PLUG_FLUSH_TIMEOUT", "").strip()
    try:
        seconds = float(text or FLUSH_TIMEOUT) if given is None else float(given)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < inf:
        what = f"POCKET_PLUG_FLUSH_TIMEOUT is {text!r:.80}" if given is None else f"flush_timeout={given!r:.80}"
        raise ConfigError(f"{what}; give seconds from 0 up, or leave it out for {FLUSH_TIMEOUT:g}")
    return seconds


def _given(**arguments: object) -> dict[str, object]:
    """The arguments of a call that aren't None, with lists as tuples."""
    return {
        name: tuple(cast("Collection[object]", value)) if isinstance(value, list | set | tuple) else value
        for name, value in arguments.items()
        if value is not None
    }


def _refuse_others(function: str, given: Mapping[str, object]) -> None:
    """Raise ConfigError if a later call has other arguments than the first one; the message says what differs."""
    first = _first_given[function]
    differing = [
        f"{name} is {_in_words(value)}, and was {_in_words(first.get(name))}"
        for name, value in given.items()
        if value != first.get(name)
    ]
    if differing:
        raise ConfigError(
            f"{function}() was called before with other arguments: {'; '.join(differing)}. It sets up the "
            f"whole process: pass the same arguments or none, or first close what the first call returned"
        )


def _in_words(argument: object) -> str:
    if argument is None:
        return "not given"
    return str(argument) if isinstance(argument, Path) else getattr(argument, "__qualname__", repr(argument))


class Telemetry:
    """What `observe()` or `setup()` set up. `mode` says where traces go; `file` is the trace file, if one is written.

    `metrics` and `logs` say where metrics and logs go. Close it, or use it in a `with` block, to end it before the process ends.
    """

    def __init__(
        self,
        modes: dict[Signal, str],
        *,
        flush_timeout: float,
        spans: Sequence[SpanProcessor] = (),
        records: Sequence[LogRecordProcessor] = (),
        readers: Sequence[MetricReader] = (),
        file: Path | None = None,
    ) -> None:
        self.mode = modes["traces"]
        self.metrics = modes.get("metrics", "none")
        self.logs = modes.get("logs", "none")
        self.file = file
        self.flush_timeout = flush_timeout
        self._spans, self._records, self._readers = tuple(spans), tuple(records), tuple(readers)
        self.standard_logs: StandardLogs | None = None
        self._closed = False

    def __repr__(self) -> str:
        others = "" if self is not _in_production else f", metrics={self.metrics!r}, logs={self.logs!r}"
        return f"Telemetry(mode={self.mode!r}, file={str(self.file) if self.file else None!r}{others})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def unsent(self) -> int:
        """How many ended spans and log records are not exported: they are queued, were dropped from a full queue, or refused."""
        return sum(part.backlog.unsent for part in self._queues())

    def _parts(self) -> list[Part]:
        return [*self._spans, *self._records, *self._readers]

    @property
    def run_id(self) -> str | None:
        """The id of the outermost run that began last, if a trace file is written."""
        return next((part.last_run for part in self._spans if isinstance(part, OpenSpans)), None)

    def _queues(self) -> Iterator[SpanExport | LogExport]:
        for part in (*self._spans, *self._records):
            if isinstance(part, SpanExport | LogExport):
                yield part

    def flush(self, timeout: float | None = None) -> bool:
        """Export everything so far; False if this takes longer than `timeout` seconds, by default `flush_timeout`."""
        return in_time([part.force_flush for part in self._parts()], self.flush_timeout if timeout is None else timeout)

    def close(self, timeout: float | None = None) -> None:
        """Flush and shut the exporters down, in at most `timeout` seconds, by default `flush_timeout`.

        Logs how much wasn't exported, if any. May be called twice.
        """
        with no_sigterm():
            self._close(self.flush_timeout if timeout is None else timeout)

    def _close(self, timeout: float) -> None:
        global _observed, _in_production
        with _lock:
            if self._closed:
                return
            self._closed = True
            if self is _observed:
                _observed = None
            if self is _in_production:
                _in_production = None
            _take_back(self)
            drop_spans(self._spans)
            if self._records:
                drop_logs()
        is_done = in_time([part.shutdown for part in self._parts()], timeout)
        with _lock:
            if self._readers and _in_production is None:  # otherwise a new setup() already uses the metrics
                own_metrics.mute()
        # rounded up to tenths of a second, since at exit an earlier close may have used a part of the limit
        self._say_losses("" if is_done else f"; exporting didn't finish within {ceil(10 * timeout) / 10:g} s")
        if self.standard_logs is not None:
            self.standard_logs.unwire()

    def _say_losses(self, why: str) -> None:
        for part in self._queues():
            if part.backlog.unsent:
                _logger.warning("telemetry: %d %s were not exported%s", part.backlog.unsent, part.backlog.what, why)
        if any(isinstance(reader, MetricExport) and reader.is_behind for reader in self._readers):
            _logger.warning("telemetry: the last metrics were not exported%s", why)


def _close_all() -> None:
    """Close each open `Telemetry`, at the end of the process."""
    began = time.monotonic()
    for telemetry in (_observed, _in_production):
        if telemetry is not None:
            telemetry.close(max(telemetry.flush_timeout - (time.monotonic() - began), 0))


def _in_forked_child() -> None:
    global _lock
    _lock = RLock()  # a thread of the parent, which the child doesn't have, may have held it


after_fork(_in_forked_child)


# ---------------------------------------------------------------- set-up
def _settings(
    detail: tracing.Detail | None,
    capture: tracing.Capture | None,
    redact: tracing.Redact | None,
    baggage: Collection[str] | None,
) -> tracing.Changes:
    """The settings of tracing that were given. Raises ConfigError for an invalid value."""
    given = {"detail": detail, "capture": capture, "redact": redact, "baggage": baggage}
    changes: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if isinstance(tracing.configure().tracer_provider, NoOpTracerProvider):
        changes["tracer_provider"] = (
            None  # it was muted, by an earlier close or `uninstrument`; the program wants it again
        )
    return cast("tracing.Changes", tracing.checked(changes))


def _with_mode(made: list[tuple[str, T]]) -> tuple[list[T], str]:
    """The parts, and the mode: their names with commas between, such as `otlp`, or `none`."""
    return [part for _, part in made], ",".join(name for name, _ in made) or "none"


def _trace_locally(
    file: Path | None, keep: TraceLimits | None, terminal: bool | None, source: Source
) -> tuple[str, list[Callable[[], SpanProcessor]], Path | None]:
    if not isinstance(terminal, bool | None):
        raise ConfigError(f"observe: terminal can't be {found(terminal)}; give True, False or None")
    limits = TraceLimits.from_environment() if keep is None else keep
    if not isinstance(limits, TraceLimits):
        raise ConfigError(
            f"observe: keep can't be {found(keep)}; give pocket_plug.telemetry.TraceLimits(size=…, age=…)"
        )
    if source.disabled:
        return "off", [], None
    if traces_are_taken():
        return "yours", [], None
    queues, mode = _with_mode(source.spans())
    # if an exporter isn't installed, runs are traced here instead
    named = bool(queues) or source.leaves_out("traces")
    if file is None and not named:
        file = DEFAULT_FILE
    made: list[Callable[[], SpanProcessor]] = [*queues]
    if file is not None:
        made += [partial(SpanExport, FileExporter(file, limits)), partial(OpenSpans, file)]
    to = " and ".join(map(public_url, source.endpoints("traces")))
    shell, footer = notebook_shell(), partial(_footer, file, to)
    if terminal if terminal is not None else not named and (shell is not None or is_terminal(sys.stderr)):
        made.append(partial(TreeProcessor, None, footer) if shell is None else partial(NotebookTree, shell, footer))
    return mode if named else "local", made, file


def _send_spans(spans: Sequence[SpanProcessor], mode: str, source: Source) -> None:
    """Send spans to these processors from now on."""
    if spans:
        watch_the_end(_close_all)
        add_spans(spans, source)
    if mode not in ("off", "yours"):
        source.apply_the_rest()


def _footer(file: Path | None, to: str, root: RecordedSpan) -> str:
    if file is None:
        return f"trace: sent to {to}"
    return where_to_look(file, root.attributes.get("pocket_plug.run.id"))
