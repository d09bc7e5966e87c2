"""`observe()`: traces within one line, sent where the environment says, or drawn here and kept in a file.

The only part of pocket_plug, next to its testing kit, that imports the OpenTelemetry SDK. Nothing is set up on import.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal, Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator

from pocket_plug.errors import ConfigError
from pocket_plug.layers import tracing
from pocket_plug.reporting import say_once

from .live import OpenSpans
from .local import DEFAULT_FILE, FileExporter, where_to_look
from .recorded import RecordedSpan
from .tree import TreeProcessor

__all__ = ["Telemetry", "observe"]

QUEUE = 32_768
"""Spans that wait to be exported. At OpenTelemetry's own 2,048 a burst of 2,000 runs loses a third of its spans."""

FILE_DELAY = 200
"""Milliseconds after which what ended is in the file, where somebody may watch."""

FLUSH_SECONDS = 5.0
"""How long the end of a process may wait for an exporter."""

_logger = logging.getLogger("pocket_plug")
_lock = threading.RLock()  # re-entered by a SIGTERM within
_current: Telemetry | None = None
_provider: _Provider | None = None


def observe(*, detail: tracing.Detail = "phase", file: str | os.PathLike[str] | None = None,
            terminal: bool | None = None) -> Telemetry:  # fmt: skip
    """Trace all runs and traced stores of this process from now on.

    Where they go: to the tracer provider that the program has set already, which is left as it is. Else where
    `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_TRACES_EXPORTER` says. Else to
    `.pocket_plug/traces.jsonl` (one OTLP/JSON request per line) and, if stderr is a terminal, as a tree to it. `file`
    and `terminal=True` ask for these in any case, `terminal=False` leaves the tree out.
    `OTEL_SDK_DISABLED=true` is honoured, as is every other variable of the SDK.

    Called again it gives the same `Telemetry`, until that was closed. It is flushed when the process ends, by SIGTERM
    too. Raises ConfigError for variables that can't be followed.
    """
    global _current
    with _lock:
        if _current is None:
            _current = _set_up(Path(file) if file is not None else None, terminal)
            tracing.configure(detail=detail)
        return _current


class Telemetry:
    """What `observe()` set up. `mode` says where traces go; `file` is where they lie, if in one.

    Close it, or use it as a block, to end tracing before the process ends.
    """

    def __init__(self, mode: Literal["yours", "otlp", "local", "off"], processors: Sequence[SpanProcessor],
                 file: Path | None) -> None:  # fmt: skip
        self.mode = mode
        self.file = file
        self._processors = processors

    def __repr__(self) -> str:
        return f"Telemetry(mode={self.mode!r}, file={str(self.file) if self.file else None!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def unsent(self) -> int:
        """Spans that ended and are not exported: those that wait, had no room in the queue, or were refused."""
        return sum(processor.unsent for processor in self._processors if isinstance(processor, Export))

    @property
    def run_id(self) -> str | None:
        """The outermost run that began last, where a file is written."""
        return next((each.last_run for each in self._processors if isinstance(each, OpenSpans)), None)

    def flush(self, timeout: float = FLUSH_SECONDS) -> bool:
        """Export what ended so far; False if that took longer than `timeout` seconds."""
        return _in_time(lambda: [processor.force_flush() for processor in self._processors], timeout)

    def close(self, timeout: float = FLUSH_SECONDS) -> None:
        """Flush, let go, and trace no more. Says how many spans weren't exported, if any. May be called twice."""
        global _current
        with _lock:
            if _current is not self:
                return
            _current = None
        if _provider is None or not self._processors:
            return
        tracing.configure(tracer_provider=trace.NoOpTracerProvider())
        _provider.fan.processors = ()
        in_time = _in_time(self._shut_down, timeout)
        if self.unsent:
            why = "" if in_time else f"; exporting took longer than {timeout:g} s and was given up"
            _logger.warning("telemetry: %d spans were not exported%s", self.unsent, why)

    def _shut_down(self) -> None:
        for processor in self._processors:
            processor.shutdown()


def _in_time(work: Callable[[], object], timeout: float) -> bool:
    """Do it in a thread of its own, since an exporter may hang."""
    thread = threading.Thread(target=work, name="pocket_plug telemetry", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # Python 3.12.0 starts no thread any more while the process ends
        work()
        return True
    thread.join(timeout)
    return not thread.is_alive()


def _at_exit() -> None:
    if _current is not None:
        _current.close()


def _flush_on_sigterm() -> None:
    """Where nobody handles it: flush, then die of it as before."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    _at_exit()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


# ---------------------------------------------------------------- set-up
class _Provider(TracerProvider):
    """The global provider, once `observe()` made one. There is no taking it back: what it feeds changes instead."""

    def __init__(self) -> None:
        super().__init__(resource=_resource(), id_generator=OwnIds(), shutdown_on_exit=False)
        self.fan = _Fan()
        self.add_span_processor(self.fan)


class _Fan(SpanProcessor):
    """Hands spans to the processors of the Telemetry that is open."""

    processors: Sequence[SpanProcessor] = ()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for processor in self.processors:
            processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        for processor in self.processors:
            processor.on_end(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return all(processor.force_flush(timeout_millis) for processor in self.processors)


def _set_up(file: Path | None, terminal: bool | None) -> Telemetry:
    global _provider
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Telemetry("off", (), None)
    chosen = tracing.configure().tracer_provider  # by the program, or what the last close left
    provider = trace.get_tracer_provider() if chosen is None or isinstance(chosen, trace.NoOpTracerProvider) else chosen
    if provider is not _provider and not isinstance(provider, trace.ProxyTracerProvider):
        return Telemetry("yours", (), None)
    exporters, asked = _exporters()
    if file is None and not asked:
        file = DEFAULT_FILE
    if file is not None:
        exporters.append(FileExporter(file))
    processors: list[SpanProcessor] = [Export(exporter) for exporter in exporters]
    if file is not None:
        processors.append(OpenSpans(file))
    if terminal if terminal is not None else not asked and sys.stderr.isatty():
        processors.append(TreeProcessor(None, partial(_footer, file)))
    if _provider is None:
        _provider = _Provider()
        trace.set_tracer_provider(_provider)
        atexit.register(_at_exit)
        _flush_on_sigterm()
    _provider.fan.processors = processors
    tracing.configure(tracer_provider=None)
    return Telemetry("otlp" if asked else "local", processors, file)


def _footer(file: Path | None, root: RecordedSpan) -> str:
    if file is None:
        return f"trace: sent to {_endpoint()}"
    return where_to_look(file, root.attributes.get("pocket_plug.run.id"))


def _endpoint() -> str:
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _exporters() -> tuple[list[SpanExporter], bool]:
    """The exporters that the environment asks for, and whether it asks for any."""
    named = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if not named:
        named = ["otlp"] if _endpoint() else []
    exporters: list[SpanExporter] = []
    for name in named:
        if name == "otlp":
            exporters.append(_otlp())
        elif name == "console":
            exporters.append(ConsoleSpanExporter())
        elif name != "none":
            raise ConfigError(f"OTEL_TRACES_EXPORTER is {name!r}; observe() knows otlp, console and none. For another "
                              "exporter set a tracer provider of your own before")  # fmt: skip
    return exporters, bool(named)


def _otlp() -> SpanExporter:
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if (protocol := os.environ.get(variable)) and protocol != "http/protobuf":
            raise ConfigError(f"{variable} is {protocol!r}; observe() speaks http/protobuf only, usually on port 4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigError("the environment asks for OTLP, and its exporter is not installed: "
                          "pip install 'pocket-plug[otlp]'") from None  # fmt: skip
    return OTLPSpanExporter()


def _resource() -> Resource:
    """The environment's, with the script's name where that names no service."""
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({} if named else {"service.name": Path(sys.argv[0]).stem or "pocket_plug"})


class OwnIds(IdGenerator):
    """Ids from a source of its own: a node that calls `random.seed(42)` would merge traces. Other ones after a fork."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(16))  # noqa: S311 - ids are no secrets
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: self._random.seed(os.urandom(16)))

    def generate_span_id(self) -> int:
        """64 bits, not all 0."""
        return self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        """128 bits, not all 0."""
        return self._random.getrandbits(128) or 1

    def is_trace_id_random(self) -> bool:
        """All of it."""
        return True


class Export(SpanProcessor):
    """The SDK's batch processor with a longer queue, which counts what it was not rid of and says once why."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._counted = _Counted(exporter)
        size = None if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else QUEUE
        soon = isinstance(exporter, FileExporter) and "OTEL_BSP_SCHEDULE_DELAY" not in os.environ
        self._batch = BatchSpanProcessor(
            self._counted, max_queue_size=size, schedule_delay_millis=FILE_DELAY if soon else None
        )
        self._ended = 0
        self._lock = threading.Lock()

    @property
    def unsent(self) -> int:
        """Spans that ended and are not exported."""
        return max(self._ended - self._counted.sent, 0)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue it."""
        context = span.get_span_context()
        if context is not None and context.trace_flags.sampled:
            self._batch.on_end(span)
            with self._lock:  # not before: a SIGTERM between the two would have it counted as lost
                self._ended += 1

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what waits."""
        return self._batch.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Export what waits, and let go of the exporter."""
        self._batch.shutdown()  # type: ignore[no-untyped-call]


class _Counted(SpanExporter):
    """The exporter; what it sent is counted, what it raises is said once."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.sent = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the program goes on
            say_once(f"exporting spans by {type(self._exporter).__name__}", error)
            return SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.sent += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()
