"""Spans as they are shown on this machine: with the messages of exceptions, which those that are sent away don't have."""

from __future__ import annotations

from opentelemetry.sdk.trace import Event, ReadableSpan

from pocket_plug.layers.tracing.local_messages import kept
from pocket_plug.traces.recorded import LOCAL

__all__ = ["with_message"]


def with_message(span: ReadableSpan) -> ReadableSpan:
    """A span that is just ending, with the message of its exception if one is kept."""
    message = kept(span.get_span_context())
    return span if message is None else _Told(span, message)


class _Told(ReadableSpan):
    def __init__(self, span: ReadableSpan, message: str) -> None:
        events = [*span.events]
        for place in reversed(range(len(events))):
            event = events[place]
            if event.name == "exception":
                told = {**(event.attributes or {}), "exception.message": message, LOCAL: True}
                events[place] = Event(event.name, told, event.timestamp)
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
        """As it was."""
        return self._dropped[0]

    @property
    def dropped_events(self) -> int:
        """As it was."""
        return self._dropped[1]

    @property
    def dropped_links(self) -> int:
        """As it was."""
        return self._dropped[2]
