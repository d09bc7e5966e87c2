"""What all spans have in common: how they begin, become current, fail and end, and which of them are not recorded.

A span that isn't recorded has two meanings. If a sampler dropped it, all our spans inside are dropped with it. If its
scope is switched off, it never began: spans inside are children of the span around it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Token
from typing import Final, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode

from pocket_plug.primitives.failures import capped, error_type, stack_of
from pocket_plug.propagation import named_baggage

from . import local_messages
from .settings import Live

Attributes = dict[str, str | bool | int | float]

NOTED: Final = otel_context.create_key("pocket_plug.noted")
"""In a run's context: its `Noted`."""


class Noted:
    """What is noted of a run and of the runs nested in it, while they run."""

    __slots__ = ("around", "recorded", "retries")

    def __init__(self, around: Noted | None) -> None:
        self.around = around
        """What is noted of the run around, if a node's own code began this one there."""
        self.recorded: deque[BaseException] = deque(maxlen=64) if around is None else around.recorded
        """The exceptions that have an event already, so that none is recorded again on an outer span."""
        self.retries = 0

    def count_retry(self) -> None:
        """Count a retry, also for all runs around."""
        note: Noted | None = self
        while note is not None:
            note.retries += 1
            note = note.around


def noted() -> Noted | None:
    """What is noted of the current run."""
    return cast("Noted | None", otel_context.get_value(NOTED))


class SpanManager:
    """A span that is current within its block. Whatever happens while it is closed, it is detached and ended.

    The context is passed to all calls that need it: the SDK would look up the current one three times more.
    """

    __slots__ = ("span", "token")
    span: Span
    token: Token[Context]

    def open(self, span: Span, context: Context) -> bool:
        """Make it current in a context, unless its scope is switched off; returns whether it is recorded."""
        self.span = span
        is_recorded = span.is_recording()
        if is_recorded or not is_off(span, context):
            context = trace.set_span_in_context(span, context)
        self.token = otel_context.attach(context)
        return is_recorded

    def finish(self, error: BaseException | None) -> None:
        """Set the span's attributes about the outcome."""
        raise NotImplementedError

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: object) -> None:
        try:
            self.finish(error)
        finally:
            self.close()

    def close(self) -> None:
        """Detach and end the span, whatever happens."""
        try:
            otel_context.detach(self.token)
        finally:
            # else there is nothing to end, or it was ended, as by `observe()` at a SIGTERM
            if self.span.is_recording():
                self.span.end()


def is_off(span: Span, context: Context) -> bool:
    """Did a span that isn't recorded never begin? Then its context is that of the span around it, or invalid."""
    own = span.get_span_context()
    return not own.is_valid or own.span_id == trace.get_current_span(context).get_span_context().span_id


def is_dropped(span: Span) -> bool:
    """Did a sampler of this process drop this span? One that has ended, or that stands for another span, isn't recorded either,
    but is sampled."""
    if span.is_recording():
        return False
    context = span.get_span_context()
    return context.is_valid and not context.is_remote and not context.trace_flags.sampled


def inside_dropped() -> bool:
    """Are we inside of a span of this process that a sampler dropped?"""
    return is_dropped(trace.get_current_span())


def carried(live: Live, context: Context) -> Attributes:
    """The entries of baggage that the settings name, as attributes with the same names."""
    return {name: capped(value) for name, value in named_baggage(live.baggage, context).items()}


def fail(live: Live, span: Span, error: BaseException, *, cancelled: bool) -> None:
    """Mark a span with the error that ended it.

    A cancellation is no failure: the span gets its type, but no status and no event. If the span isn't recorded, the next
    outer span gets the event.
    """
    if not span.is_recording():
        return
    kind = error_type(error)
    span.set_attribute("error.type", kind)
    if not cancelled:
        record(live, span, error)
        message = live.capture.message(error) if live.capture is not None else None
        span.set_status(StatusCode.ERROR, kind if message is None else message)


def record(live: Live, span: Span, error: BaseException) -> None:
    """Add the exception's event, without the SDK's help, unless it has one in this run."""
    if (known := noted()) is not None:
        if any(other is error for other in known.recorded):
            return
        known.recorded.append(error)
    message = _none if live.capture is None else live.capture.message
    event = {"exception.type": error_type(error), "exception.stacktrace": stack_of(error, message)}
    text = message(error)
    span.add_event("exception", event if text is None else event | {"exception.message": text})
    if live.tells_locally:
        local_messages.keep(span, error, live.redact)


def _none(error: BaseException) -> None:
    """No message: it may contain anything, so it needs `capture`."""


def is_cancellation(error: BaseException) -> bool:
    """Was it stopped, and did not fail?"""
    return isinstance(error, asyncio.CancelledError | GeneratorExit)
