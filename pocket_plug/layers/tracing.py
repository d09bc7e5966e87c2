"""Spans for runs, nodes, phases and store operations. It speaks the OpenTelemetry API only and sets nothing up.

Whether anybody listens is decided as a run starts, and, for store operations outside of runs, as a stack is built or
opened: without a provider a run costs one look at it. Spans never carry keys or values, only declared key templates.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, cast, get_args

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    TracerProvider,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from typing_extensions import Unpack

from pocket_plug.backend import NO_EXPECTATIONS, Change, Entry, Put
from pocket_plug.errors import ConfigError, Conflict
from pocket_plug.hookspecs import NodeCall, Observer, PhaseCall, Run, hookimpl
from pocket_plug.layer import Layer, parts
from pocket_plug.reporting import (
    SCHEMA_URL,
    capped,
    changed,
    error_text,
    error_type,
    nobody_can,
    own_version,
    say_once,
    stack_of,
    system_of,
    template_of,
)

if TYPE_CHECKING:
    from pocket_plug.pocket import Pocket

Detail = Literal["run", "node", "phase"]
Attributes = dict[str, str | bool | int | float]


# ---------------------------------------------------------------- settings
@dataclass(frozen=True, slots=True)
class Settings:
    """What the process's tracing does. `tracer_provider` None: OpenTelemetry's global one.

    `detail` "run": one span per run. "node": also one per node, with its phases' durations, per attempt where a node
    has a retry, a time-out or a fallback, and per store operation. "phase": one for each phase, instead of durations.
    """

    detail: Detail = "node"
    tracer_provider: TracerProvider | None = None


class Changes(TypedDict, total=False):
    """What `configure` takes."""

    detail: Detail
    tracer_provider: TracerProvider | None


def configure(**changes: Unpack[Changes]) -> Settings:
    """Change the process's tracing, from the next run on; gives the former settings.

    `[plugins.tracing] detail = "phase"` does the same. Raises ConfigError for what isn't an option.
    """
    global _settings, _live
    settings = changed("tracing", _settings, changes)
    detail = settings.detail
    if detail not in get_args(Detail):
        raise ConfigError(f"tracing's detail is one of {', '.join(get_args(Detail))}, not {detail!r}.")
    former, _settings = _settings, settings
    _live = None
    look()
    return former


class _Live:
    """Where spans go while somebody listens. Made whole, never changed."""

    __slots__ = ("detail", "graph", "phase", "provider", "store")

    def __init__(self, provider: TracerProvider, detail: Detail) -> None:
        self.provider, self.detail = provider, detail
        self.graph, self.phase, self.store = [
            provider.get_tracer(f"pocket_plug.{part}", own_version(), SCHEMA_URL)
            for part in ("graph", "phase", "store")
        ]


_settings = Settings()
_live: _Live | None = None


def look() -> _Live | None:
    """See whether somebody listens; None where nobody does. Costs a fraction of a microsecond."""
    global _live
    live = _live
    provider = _settings.tracer_provider
    if provider is None:
        if live is None and nobody_can(TracerProvider):
            return None
        provider = trace.get_tracer_provider()
    if live is None or live.provider is not provider:
        silent = isinstance(provider, ProxyTracerProvider | NoOpTracerProvider)
        live = _live = None if silent else _Live(provider, _settings.detail)
    return live


# ---------------------------------------------------------------- hooks
@hookimpl
def pocket_configure(pocket: Pocket, options: Mapping[str, Any]) -> None:
    """The table `[plugins.tracing]`; without one, settings stay as they are."""
    if options:
        configure(**options)


@hookimpl
def pocket_layers() -> Sequence[type[Layer]]:
    """The layer `tracing`."""
    return [Tracing]


@hookimpl
def pocket_observe(run: Run) -> Observer | None:
    """Watch a run while a provider is set."""
    live = look()
    if live is None:
        return None
    spans = _RunSpan(live, run)
    if live.detail == "run":
        return Observer(run=spans.of_run, event=spans.event, outermost=True)
    return Observer(run=spans.of_run, node=spans.of_node, phase=spans.of_phase, event=spans.event, outermost=True,
                    guarded_only=live.detail == "node")  # fmt: skip


# ---------------------------------------------------------------- what all spans share
_PROPAGATOR: Final = TraceContextTextMapPropagator()

_RECORDED: Final = otel_context.create_key("pocket_plug.recorded")
"""In a run's context: the exceptions that have their event already, so that none is recorded again on its way up."""


def _record(span: Span, error: BaseException) -> None:
    """The exception event, by hand, unless the exception has one in this run."""
    recorded = cast("deque[BaseException] | None", otel_context.get_value(_RECORDED))
    if recorded is not None:
        if any(other is error for other in recorded):
            return
        recorded.append(error)
    span.add_event("exception", {"exception.type": error_type(error), "exception.message": error_text(error),
                                 "exception.stacktrace": stack_of(error)})  # fmt: skip


def _fail(span: Span, error: BaseException, *, cancelled: bool) -> None:
    """A cancellation is no failure: it has its type, but no status and no event."""
    span.set_attribute("error.type", error_type(error))
    if not cancelled:
        _record(span, error)
        span.set_status(StatusCode.ERROR, error_text(error))


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, asyncio.CancelledError | GeneratorExit)


class _FanOut:
    """In the context of a fan-out's items: whose they are, how many began (an item's index), how many had no span."""

    __slots__ = ("began", "failed", "run", "suppressed")

    def __init__(self, run: Run) -> None:
        self.run, self.began, self.failed, self.suppressed = run, 0, 0, 0


_FAN_OUT: Final = otel_context.create_key("pocket_plug.fan_out")

MAX_ITEMS = 100
"""Of one fan-out: so many items have spans, and so many more if they fail. Its span says how many had none."""


class _SpanManager:
    """A span that is current within its block. Whatever happens while it is closed, it is detached and ended.

    The context is handed on to all that need it: the SDK would ask for the current one three times more.
    """

    __slots__ = ("span", "token")
    span: Span
    token: Token[Context]

    def open(self, span: Span, context: Context) -> None:
        self.span = span
        self.token = otel_context.attach(trace.set_span_in_context(span, context))

    def finish(self, error: BaseException | None) -> None:
        raise NotImplementedError

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: object) -> None:
        try:
            self.finish(error)
        finally:
            otel_context.detach(self.token)
            self.span.end()


# ---------------------------------------------------------------- runs, nodes, phases
class _RunSpan(_SpanManager):
    """`run {graph}`, and what gives the spans inside it."""

    __slots__ = ("live", "recorded", "recording", "run", "silent")

    def __init__(self, live: _Live, run: Run) -> None:
        self.live, self.run, self.recording = live, run, False
        self.silent: set[NodeCall] = set()  # those under way whose span isn't recorded: neither are their phases'
        self.recorded: deque[BaseException] = deque(maxlen=64)

    def of_run(self, run: Run) -> _RunSpan | None:
        # a sampler would let a nested run in an item without a span pass: its parent, the fan-out, is sampled
        silent = run.parent is not None and not trace.get_current_span().is_recording()
        return None if silent else self

    def of_node(self, call: NodeCall) -> _NodeSpan | _Suppressed | None:
        if not self.recording or not call.trace:
            return None
        fan_out = cast("_FanOut | None", otel_context.get_value(_FAN_OUT))
        if fan_out is None or fan_out.run is not call.run:
            return _NodeSpan(self, call)
        index = fan_out.began
        fan_out.began += 1
        return _NodeSpan(self, call, index) if index < MAX_ITEMS else _Suppressed(self, call, index, fan_out)

    def of_phase(self, call: PhaseCall) -> _PhaseSpan | None:
        if not self.recording or not call.node.trace:
            return None
        if self.live.detail != "phase" and (call.phase != "exec" or not call.node.guarded):
            return None
        return None if call.node in self.silent else _PhaseSpan(self.live, call)

    def event(self, name: str, call: NodeCall, attributes: Mapping[str, Any]) -> None:
        """What no span shows by itself: conflicts and failed clean-ups, on the span in which they happened."""
        if self.recording and name in ("conflict", "clean_up_failed"):
            error = attributes.get("error")
            kind = {"error.type": error_type(error)} if isinstance(error, BaseException) else {}
            trace.get_current_span().add_event(f"pocket_plug.{name}", kind)

    def __enter__(self) -> None:
        run = self.run
        attributes: Attributes = {"pocket_plug.graph.name": capped(run.graph), "pocket_plug.run.id": capped(run.id)}
        if run.resumed:
            attributes["pocket_plug.run.resumed"] = True
        if run.parent is not None:
            attributes["pocket_plug.run.parent_id"] = capped(run.parent.id)
        context = otel_context.get_current()
        links = () if not run.carrier else _links(run.carrier)
        span = self.live.graph.start_span(f"run {run.graph}", context, attributes=attributes, links=links)
        if run.carrier is not None:
            run.carrier.clear()
            _PROPAGATOR.inject(run.carrier, trace.set_span_in_context(span, context))
        self.recording = span.is_recording()
        outer = otel_context.get_value(_RECORDED, context)
        self.open(span, otel_context.set_value(_RECORDED, self.recorded, context) if outer is None else context)

    def finish(self, error: BaseException | None) -> None:
        if not self.recording:
            return
        run, span = self.run, self.span
        outcome = run.outcome or "success"
        span.set_attributes({"pocket_plug.run.outcome": outcome, "pocket_plug.run.steps": run.steps})
        if error is not None:
            _fail(span, error, cancelled=outcome == "cancelled" or _is_cancellation(error))
        self.recorded.clear()  # its tracebacks lead to the run's context, which holds this


def _links(carrier: Mapping[str, str]) -> Sequence[Link]:
    """To the span of the execution that left a durable run, if that was traced."""
    former = trace.get_current_span(_PROPAGATOR.extract(carrier, Context())).get_span_context()
    return [Link(former)] if former.is_valid else []


class _NodeSpan(_SpanManager):
    """`node {node}`."""

    __slots__ = ("call", "fan_out", "index", "run")

    def __init__(self, run: _RunSpan, call: NodeCall, index: int | None = None) -> None:
        self.run, self.call, self.index = run, call, index
        self.fan_out = _FanOut(call.run) if call.type == "fan_out" else None

    def start(self, context: Context, start: int | None = None) -> Span:
        call = self.call
        run = call.run
        attributes: Attributes = {
            "pocket_plug.node.name": call.name, "pocket_plug.node.type": call.type,
            "pocket_plug.node.visit": call.visit, "pocket_plug.run.id": run.id, "pocket_plug.graph.name": run.graph,
        }  # fmt: skip
        if self.index is not None:
            attributes["pocket_plug.fan_out.index"] = self.index
        return self.run.live.graph.start_span(f"node {call.name}", context, attributes=attributes, start_time=start)

    def __enter__(self) -> None:
        context, fan_out = otel_context.get_current(), self.fan_out
        span = self.start(context)
        if not span.is_recording():
            self.run.silent.add(self.call)
        self.open(span, context if fan_out is None else otel_context.set_value(_FAN_OUT, fan_out, context))

    def finish(self, error: BaseException | None) -> None:
        call, span = self.call, self.span
        self.run.silent.discard(call)
        attributes: Attributes = {"pocket_plug.node.attempts": call.attempts}
        outcome = call.outcome
        if outcome is not None:
            attributes["pocket_plug.node.outcome"] = outcome
        if call.action is not None:
            attributes["pocket_plug.node.action"] = capped(call.action)
        if call.next is not None:
            attributes["pocket_plug.node.next"] = call.next
        if self.run.live.detail == "node":
            for phase, seconds in call.durations.items():
                attributes[f"pocket_plug.node.{phase}.duration"] = seconds
        if self.fan_out is not None and self.fan_out.suppressed:
            attributes["pocket_plug.fan_out.suppressed"] = self.fan_out.suppressed
        span.set_attributes(attributes)
        if error is not None:
            _fail(span, error, cancelled=outcome == "cancelled" or _is_cancellation(error))


class _Suppressed:
    """An item that is one too many: neither it nor what we do inside has spans. If it fails, it gets one afterwards."""

    __slots__ = ("call", "fan_out", "index", "run", "started", "token")

    def __init__(self, run: _RunSpan, call: NodeCall, index: int, fan_out: _FanOut) -> None:
        self.run, self.call, self.index, self.fan_out = run, call, index, fan_out

    def __enter__(self) -> None:
        self.started = time.time_ns()
        self.run.silent.add(self.call)
        # not recording, but valid: what others trace inside becomes a child of the fan-out
        parent = NonRecordingSpan(trace.get_current_span().get_span_context())
        self.token = otel_context.attach(trace.set_span_in_context(parent))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: object) -> None:
        otel_context.detach(self.token)
        self.run.silent.discard(self.call)
        if error is None or self.call.outcome == "cancelled" or self.fan_out.failed >= MAX_ITEMS:
            self.fan_out.suppressed += 1
            return
        self.fan_out.failed += 1
        late = _NodeSpan(self.run, self.call, self.index)
        late.span = late.start(otel_context.get_current(), self.started)
        try:
            late.finish(error)
        finally:
            late.span.end()


class _PhaseSpan(_SpanManager):
    """`prep|exec|fallback|post {node}`: one attempt."""

    __slots__ = ("call", "live")

    def __init__(self, live: _Live, call: PhaseCall) -> None:
        self.live, self.call = live, call

    def __enter__(self) -> None:
        call = self.call
        phase, node = call.phase, call.node.name
        attributes: Attributes = {"pocket_plug.phase": phase, "pocket_plug.node.name": node}
        if phase == "exec":
            attributes["pocket_plug.attempt"] = call.attempt
            if call.timeout is not None:
                attributes["pocket_plug.timeout"] = call.timeout
        context = otel_context.get_current()
        self.open(self.live.phase.start_span(f"{phase} {node}", context, attributes=attributes), context)

    def finish(self, error: BaseException | None) -> None:
        if error is None:
            return
        call, span = self.call, self.span
        span.set_attribute("pocket_plug.attempt.will_retry", call.will_retry)
        if call.delay is not None:
            span.set_attribute("pocket_plug.retry.delay", call.delay)
        _fail(span, error, cancelled=_is_cancellation(error))


# ---------------------------------------------------------------- store operations
class Tracing(Layer):
    """One span for each operation that reaches the stack, named by the declared template of its key: `get user:{}`.

    Where a provider is set after the stack was built, spans begin with the next run, `open`, `observe()`, or in the
    first recorded span. Keys and values are never shown; a name that no `Key` declares is left out. Inner operations
    that suspend run with the span as their current one; those in memory have nothing below them to show.
    """

    inline_read = inline_write = True

    def on_build(self) -> None:
        backend = parts(self.inner)[-1]
        network = backend.needs_loop and not backend.inline_read
        self._kind = SpanKind.CLIENT if network else SpanKind.INTERNAL
        self._system = system_of(backend)
        self._of_get = self._attributes("get")
        look()

    def _attributes(self, operation: str) -> Attributes:
        return {"db.system.name": self._system, "db.operation.name": operation}

    async def open(self) -> None:
        look()
        await super().open()

    async def read(self, key: str) -> Entry | None:
        context = otel_context.get_current()
        tracer = _store_tracer(context)
        if tracer is None:
            return await self.inner.read(key)
        span = self._start(tracer, "get", template_of(key), self._of_get, context)
        if span is None:
            return await self.inner.read(key)
        if not self.inner.inline_read:
            with _Operation(span, attach=True) as operation:
                entry = await self.inner.read(key)
                operation.result = ("pocket_plug.store.hit", entry is not None)
                return entry
        try:  # what the block above does, without it: that would be as much again as the read itself
            entry = await self.inner.read(key)
        except BaseException as error:
            _finish(span, error, None, None)
            raise
        _finish(span, None, ("pocket_plug.store.hit", entry is not None), None)
        return entry

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        context = otel_context.get_current()
        tracer = _store_tracer(context)
        if tracer is None:
            return await self.inner.read_many(keys)
        keys = list(keys)
        attributes = self._attributes("get_many") | {"db.operation.batch.size": len(keys)}
        span = self._start(tracer, "get_many", "", attributes, context)
        if span is None:
            return await self.inner.read_many(keys)
        with _Operation(span, attach=not self.inner.inline_read) as operation:
            entries = await self.inner.read_many(keys)
            operation.result = ("db.response.returned_rows", len(entries))
            return entries

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        context = otel_context.get_current()
        tracer = _store_tracer(context)
        if tracer is None:
            return await self.inner.write(changes, expect)
        if len(changes) == 1:
            name = "set" if isinstance(changes[0], Put) else "delete"
            span = self._start(tracer, name, template_of(changes[0].key), self._attributes(name), context)
        else:
            name = "write" if changes else "check"
            size = len(changes) or len(expect)
            span = self._start(tracer, name, "", self._attributes(name) | {"db.operation.batch.size": size}, context)
        if span is None:
            return await self.inner.write(changes, expect)
        with _Operation(span, attach=not self.inner.inline_write):
            return await self.inner.write(changes, expect)

    def scan(self, prefix: str = "") -> AsyncIterator[str]:
        tracer = _store_tracer(otel_context.get_current())
        return self.inner.scan(prefix) if tracer is None else self._scanned(tracer, prefix)

    async def _scanned(self, tracer: Tracer, prefix: str) -> AsyncIterator[str]:
        """The span is made at the end, as long as the store worked: none is open while the caller has the key."""
        parent, start = otel_context.get_current(), time.time_ns()
        busy, count, error = 0, 0, None
        began = time.perf_counter_ns()
        try:
            async for key in self.inner.scan(prefix):
                busy += time.perf_counter_ns() - began
                count += 1
                yield key
                began = time.perf_counter_ns()
            busy += time.perf_counter_ns() - began
        except Exception as failure:
            busy += time.perf_counter_ns() - began
            error = failure
            raise
        finally:
            attributes = self._attributes("scan") | {"db.response.returned_rows": count}
            span = self._start(tracer, "scan", template_of(prefix.removesuffix(":")), attributes, parent, start)
            if span is not None:
                _finish(span, error, None, start + busy)

    def _start(self, tracer: Tracer, operation: str, template: str, attributes: Attributes,
               parent: Context, start: int | None = None) -> Span | None:  # fmt: skip
        """A recording span, or None. A tracing that fails must not fail the store."""
        try:
            name = f"{operation} {template}" if template else operation
            span = tracer.start_span(name, parent, self._kind, attributes, start_time=start)
        except Exception as error:  # noqa: BLE001 - a user's sampler or processor may raise anything
            say_once("tracing a store operation", error)
            return None
        return span if span.is_recording() else None


def _store_tracer(context: Context) -> Tracer | None:
    """Where a store operation's span goes; None where nobody listens, or the span around it isn't recorded."""
    live = _live
    if context:  # an empty one, as outside of runs and requests, has no span: to look would cost as much as the read
        parent = trace.get_current_span(context)
        if parent.is_recording():
            live = live or look()
        elif live is not None:
            around = parent.get_span_context()
            if around.is_valid and not around.is_remote:
                return None
    return None if live is None or live.detail == "run" else live.store


class _Operation:
    """The block in which a store operation runs. What it raises itself is said once, never raised."""

    __slots__ = ("result", "span", "token")

    def __init__(self, span: Span, *, attach: bool) -> None:
        self.span = span
        self.result: tuple[str, bool | int] | None = None
        self.token = otel_context.attach(trace.set_span_in_context(span)) if attach else None

    def __enter__(self) -> _Operation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: object) -> None:
        if self.token is not None:
            otel_context.detach(self.token)
        _finish(self.span, error, self.result, None)


def _finish(span: Span, error: BaseException | None, result: tuple[str, bool | int] | None, end: int | None) -> None:
    try:
        try:
            if result is not None:
                span.set_attribute(*result)
            if error is not None:
                _fail(span, error, cancelled=_is_cancellation(error) or isinstance(error, Conflict))
        finally:
            span.end(end)
    except Exception as failure:  # noqa: BLE001 - a user's span processor may raise anything
        say_once("tracing a store operation", failure)
