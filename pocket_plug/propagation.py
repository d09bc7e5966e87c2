"""The trace context as a plain mapping of texts, for work that continues elsewhere: another process, a queue, an HTTP call.

It uses the OpenTelemetry API only, and W3C's Trace Context on the wire, so the other side need not be pocket_plug.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import TypeGuard

from opentelemetry import baggage as otel_baggage
from opentelemetry import context as otel_context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.names import is_unicode
from pocket_plug.primitives.redaction import summary

SESSION = "session.id"
"""The name of the session in a carrier, on spans, and in OpenTelemetry's context, where OpenInference uses it as well."""

_TRACE = TraceContextTextMapPropagator()
_BAGGAGE = W3CBaggagePropagator()


def inject(*, baggage: Iterable[str] = ()) -> dict[str, str]:
    """The current span and session as a carrier: put it in the message, or among the request's headers.

    It includes the entries of OpenTelemetry's baggage that `baggage` names, and no others. Without a span, a session
    and baggage it is empty. On the other side: `graph.run(…, traceparent=carrier)`, or `extract(carrier)`.

    >>> with session("chat-17"):
    ...     inject()
    {'session.id': 'chat-17'}
    """
    context = otel_context.get_current()
    carrier: dict[str, str] = {}
    _TRACE.inject(carrier, context)
    if (current := current_session()) is not None:
        carrier[SESSION] = current
    entries = named_baggage(baggage)
    if entries:
        chosen = Context()
        for name, value in entries.items():
            chosen = otel_baggage.set_baggage(name, value, chosen)
        _BAGGAGE.inject(carrier, chosen)
    return carrier


@contextmanager
def extract(carrier: Mapping[str, str] | str, /, *, baggage: Iterable[str] = ()) -> Generator[None]:
    """Within the block, spans belong to the trace that a carrier comes from. It may be a plain `traceparent` text too.

    A carrier that can't be read is ignored, as W3C demands: spans then begin a trace of their own.

    >>> with extract({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}):
    ...     inject()["traceparent"]
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
    """
    token = otel_context.attach(context_of(carrier, baggage=baggage))
    try:
        yield
    finally:
        otel_context.detach(token)


@contextmanager
def session(id: str, /) -> Generator[None]:
    """Within the block, runs belong to a session, such as a conversation: their spans have its id as `session.id`.

    A durable run keeps its session over crashes and suspensions. Raises ConfigError for an id that isn't a str, or is empty.

    >>> with session("chat-17"):
    ...     current_session()
    'chat-17'
    >>> current_session()
    """
    if not _is_session(id):
        raise ConfigError(f"session({summary(id)}): the id of a session must be a non-empty str that UTF-8 can encode")
    token = otel_context.attach(otel_context.set_value(SESSION, id))
    try:
        yield
    finally:
        otel_context.detach(token)


def current_session(context: Context | None = None) -> str | None:
    """The session that runs belong to here; None outside of any."""
    found = otel_context.get_value(SESSION, context)
    return found if _is_session(found) else None


def _is_session(id: object) -> TypeGuard[str]:
    return _is_text(id) and id != ""


def _is_text(value: object) -> TypeGuard[str]:
    """Servers may pass an unreadable byte as a lone surrogate, which neither a store nor a request accepts."""
    return isinstance(value, str) and is_unicode(value)


def context_of(
    carrier: Mapping[str, str] | str, context: Context | None = None, *, baggage: Iterable[str] = ()
) -> Context:
    """A context (the current one, unless given) with the span, the session and the named baggage of a carrier."""
    given: Mapping[str, object] = {"traceparent": carrier} if isinstance(carrier, str) else carrier
    texts = {str(name).lower(): value for name, value in given.items() if _is_text(value)}
    context = _TRACE.extract(texts, otel_context.get_current() if context is None else context)
    if SESSION in texts:
        context = otel_context.set_value(SESSION, texts[SESSION], context)
    sent = _BAGGAGE.extract(texts, Context())
    for name, value in named_baggage(baggage, sent).items():
        context = otel_baggage.set_baggage(name, value, context)
    return context


def named_baggage(names: Iterable[str], context: Context | None = None) -> dict[str, str]:
    """The entries of OpenTelemetry's baggage with these names that exist, and that can be encoded."""
    found = {name: otel_baggage.get_baggage(name, context) for name in names}
    texts = {name: str(value) for name, value in found.items() if value is not None}
    return {name: text for name, text in texts.items() if is_unicode(text)}
