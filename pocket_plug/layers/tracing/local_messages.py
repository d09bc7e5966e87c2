"""Messages of exceptions and of their causes, for what stays on this machine: kept beside the spans, where no exporter is.

Who shows them looks here while a span ends; afterwards it is forgotten.
"""

from __future__ import annotations

from typing import NamedTuple

from opentelemetry.trace import Span, SpanContext

from pocket_plug.primitives.failures import cause_of, stack_of
from pocket_plug.primitives.redaction import Redact

MOST = 1_000
"""So many are kept at a time, the newest. It fills up only if the spans' provider isn't ours."""


class Kept(NamedTuple):
    """What an exception says: its message, "" where it has none, and where it has causes a stack with what these say."""

    message: str
    stack: str | None


_kept: dict[tuple[int, int], Kept] = {}
_are_wanted = False


def want(yes: bool) -> None:
    """Shall messages be kept? By default they aren't."""
    global _are_wanted
    _are_wanted = yes


def keep(span: Span, error: BaseException, redact: Redact | None) -> None:
    """Keep what the error says whose event is the span's last, if anybody wants it."""
    if not _are_wanted:
        return
    from .capture import Captured  # here, since few runs fail

    message = Captured("summary", redact).message
    said = Kept(message(error) or "", None if cause_of(error) is None else stack_of(error, message))
    if any(said):
        if len(_kept) >= MOST:
            for oldest in [*_kept][:1]:  # another thread may have forgotten all of them
                _kept.pop(oldest, None)
        _kept[_id(span.get_span_context())] = said


def kept(context: SpanContext | None) -> Kept | None:
    """What the exception of a span says that is just ending."""
    return _kept.get(_id(context)) if _kept and context is not None else None


def forget(context: SpanContext | None) -> None:
    """The span has ended, and everybody has seen it."""
    if _kept and context is not None:
        _kept.pop(_id(context), None)


def _id(context: SpanContext) -> tuple[int, int]:
    return context.trace_id, context.span_id
