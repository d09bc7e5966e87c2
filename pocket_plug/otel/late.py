"""A span that begins only when it is needed, with the start time of its item.

For items of a fan-out: which of them deserve a span is known when they end, but spans inside an item need its span's id before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode
from opentelemetry.util.types import Attributes, AttributeValue

from pocket_plug.primitives.locks import RLock

from .reporting import current_context, surviving


class LateSpan(Span):
    """The current span while an item is worked on. It begins when its id is requested, as by a span inside the item.

    So an id that was written to a log line or sent to another process always belongs to an existing span. After `dismiss`, it
    acts as the span around it.

    >>> from opentelemetry.trace import INVALID_SPAN_CONTEXT
    >>> begun = []
    >>> span = LateSpan(lambda: begun.append("now") or NonRecordingSpan(INVALID_SPAN_CONTEXT), Context())
    >>> span.is_recording(), span.has_begun
    (True, False)
    >>> span.get_span_context().is_valid, begun
    (False, ['now'])
    """

    def __init__(self, begin: Callable[[], Span], around: Context) -> None:
        self.around = around
        """The context around the item, in which the span begins."""
        self.has_begun = False
        self._begin, self._dismissed = begin, False
        self._span: Span | None = None
        self._lock = RLock()  # worker threads of one item may ask at the same time

    def begun(self) -> Span:
        """The real span; begin it if it hasn't begun."""
        span = self._span
        if span is None:
            with self._lock:
                if self._span is None:
                    self._span = self._outer()  # for requests during `_begin`, as a processor may make
                    with surviving("tracing an item"):  # a user's sampler or processor may raise anything
                        if not self._dismissed:
                            self._span = self._begin()
                            self.has_begun = True
                span = self._span
        return span

    def _outer(self) -> Span:
        return NonRecordingSpan(trace.get_current_span(self.around).get_span_context())

    def dismiss(self) -> bool:
        """Never begin the span. Returns False if it has begun already."""
        with self._lock:
            self._dismissed = not self.has_begun
            return self._dismissed

    def get_span_context(self) -> SpanContext:
        return self.begun().get_span_context()

    def is_recording(self) -> bool:
        span = self._span
        return not self._dismissed if span is None else span.is_recording()

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self.begun().set_attributes(attributes)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self.begun().set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        self.begun().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        self.begun().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self.begun().update_name(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self.begun().set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        self.begun().record_exception(exception, attributes, timestamp, escaped)

    def end(self, end_time: int | None = None) -> None:
        self.begun().end(end_time)

    def __getattr__(self, name: str) -> Any:
        """Further attributes of the SDK's spans."""
        return getattr(self.begun(), name)


def measuring_context() -> Context:
    """The context for our metrics and log events. These read the current span's id, which must not begin the span of an item."""
    context = current_context()
    span = trace.get_current_span(context)
    return span.around if type(span) is LateSpan and not span.has_begun else context
