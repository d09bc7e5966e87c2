"""Messages of exceptions and of their causes, for use on this machine only: kept beside the spans, so not exported.

Code that shows them reads them here while a span ends; afterwards they are removed.
"""

from __future__ import annotations

from typing import NamedTuple

from opentelemetry.trace import Span, SpanContext

from pocket_plug.primitives.failures import cause_of, stack_of
from pocket_plug.primitives.redaction import Redact

MOST = 1_000
"""How many are kept at a time, the newest. It fills up only if the spans' provider isn't ours."""


class Kept(NamedTuple):
    """An exception's message, "" if it has none, and if it has causes a stack with their messages."""

    message: str
    stack: str | None


_kept: dict[tuple[int, int], Kept] = {}
_are_wanted = False


def want(yes: bool) -> None:
    """Set whether messages are kept. By default they aren't."""
    global _are_wanted
    _are_wanted = yes


def keep(span: Span, error: BaseException, redact: Redact | None) -> None:
    """Keep the messages of an error whose event was just added to the span, if messages are wanted."""
    if not _are_wanted:
        return
    from .capture import Captured  # here, since few runs fail

    message = Captured("summary", redact).message
    said = Kept(message(error) or "", None if cause_of(error) is None else stack_of(error, message))
    if any(said):
        if len(_kept) >= MOST:
            for oldest in [*_kept][:1]:  # another thread may have removed all of them
                _kept.pop(oldest, None)
        _kept[_id(span.get_span_context())] = said


def kept(context: SpanContext | None) -> Kept | None:
    """The messages of the exception of a span that is ending now."""
    return _kept.get(_id(context)) if _kept and context is not None else None


def forget(context: SpanContext | None) -> None:
    """Remove the messages of a span that has ended."""
    if _kept and context is not None:
        _kept.pop(_id(context), None)


def _id(context: SpanContext) -> tuple[int, int]:
    return context.trace_id, context.span_id
