"""Spans as they are shown on this machine: with messages of exceptions and their causes, which those sent away don't have."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.util.types import AttributeValue

from pocket_plug.layers.tracing.local_messages import Kept, kept
from pocket_plug.traces.recorded import LOCAL, STACK

__all__ = ["with_message"]


def with_message(span: ReadableSpan) -> ReadableSpan:
    """A span that is just ending, with what its exception says if that is kept."""
    said = kept(span.get_span_context())
    return span if said is None else _Told(span, said)


def _told(sent: Mapping[str, AttributeValue], said: Kept) -> dict[str, AttributeValue]:
    """An exception's attributes as they stay here. The mark has the stack without messages, where the one here has some."""
    told = {**sent, LOCAL: True}
    if said.message:
        told["exception.message"] = said.message
    if said.stack is not None and STACK in sent:
        told |= {LOCAL: sent[STACK], STACK: said.stack}
    return told


class _Told(ReadableSpan):
    def __init__(self, span: ReadableSpan, said: Kept) -> None:
        events = [*span.events]
        for place in reversed(range(len(events))):
            event = events[place]
            if event.name == "exception":
                events[place] = Event(event.name, _told(event.attributes or {}, said), event.timestamp)
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
