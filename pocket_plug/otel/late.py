"""A span that begins only once somebody needs it, with the time at which what it is of began.

For items of a fan-out: which of them are worth a span is known as they end, and what is traced inside of one needs its id before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Status, StatusCode
from opentelemetry.util.types import Attributes, AttributeValue

from pocket_plug.errors import is_fault
from pocket_plug.primitives.failures import say_once
from pocket_plug.primitives.locks import RLock

from .reporting import current_context


class LateSpan(Span):
    """Current while an item is worked on. Who asks for its id, as what traces inside does, gets that of a span that exists.

    So an id that anybody was told, in a log line or in another process, is always to be found. Once it is dismissed it stands
    for the span around it.

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
        """The context that it begins in."""
        self.has_begun = False
        self._begin, self._dismissed = begin, False
        self._span: Span | None = None
        self._lock = RLock()  # worker threads of one item may ask at the same time

    def begun(self) -> Span:
        """The span itself, which begins now if it hasn't."""
        span = self._span
        if span is None:
            with self._lock:
                if self._span is None:
                    self._span = self._outer()  # for who asks meanwhile, as a processor may
                    try:
                        if not self._dismissed:
                            self._span = self._begin()
                            self.has_begun = True
                    except BaseException as error:  # a user's sampler or processor may raise anything
                        if not is_fault(error):
                            raise
                        say_once("tracing an item", error)
                span = self._span
        return span

    def _outer(self) -> Span:
        return NonRecordingSpan(trace.get_current_span(self.around).get_span_context())

    def dismiss(self) -> bool:
        """It is not needed: from now on it never begins. False if it has begun."""
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
        """What the SDK's spans have besides, such as their attributes."""
        return getattr(self.begun(), name)


def measuring_context() -> Context:
    """The context to record a metric or an event of ours in: they ask for the current span, and no item's begins for that."""
    context = current_context()
    span = trace.get_current_span(context)
    return span.around if type(span) is LateSpan and not span.has_begun else context
