"""Spans as they are shown on this machine: with the messages of exceptions and their causes. Exported spans have none."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.util.types import AttributeValue

from pocket_plug.layers.tracing.local_messages import Kept, kept
from pocket_plug.traces.recorded import LOCAL, STACK

__all__ = ["with_message"]


def with_message(span: ReadableSpan) -> ReadableSpan:
    """A span that is just ending, with the message of its exception if it was kept."""
    message = kept(span.get_span_context())
    return span if message is None else _SpanWithMessage(span, message)


def _local(sent: Mapping[str, AttributeValue], message: Kept) -> dict[str, AttributeValue]:
    """An exception's attributes for this machine. `LOCAL` marks them; if the stack has messages, it holds the one without."""
    local = {**sent, LOCAL: True}
    if message.message:
        local["exception.message"] = message.message
    if message.stack is not None and STACK in sent:
        local |= {LOCAL: sent[STACK], STACK: message.stack}
    return local


class _SpanWithMessage(ReadableSpan):
    def __init__(self, span: ReadableSpan, message: Kept) -> None:
        events = [*span.events]
        for place in reversed(range(len(events))):
            event = events[place]
            if event.name == "exception":
                events[place] = Event(event.name, _local(event.attributes or {}, message), event.timestamp)
                break
        super().__init__(
            span.name,
            span.get_span_context(),
            span.parent,
            span.resource,
            span.attributes,
            events,
            span.links,
            span.kind,
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )
        self._dropped = span.dropped_attributes, span.dropped_events, span.dropped_links

    @property
    def dropped_attributes(self) -> int:
        """The original span's number."""
        return self._dropped[0]

    @property
    def dropped_events(self) -> int:
        """The original span's number."""
        return self._dropped[1]

    @property
    def dropped_links(self) -> int:
        """The original span's number."""
        return self._dropped[2]
