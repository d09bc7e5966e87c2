"""Messages of exceptions for what stays on this machine: kept beside the spans, so that no exporter can send them.

Who shows them looks here while a span ends; afterwards it is forgotten.
"""

from __future__ import annotations

from opentelemetry.trace import Span, SpanContext

from pocket_plug.primitives.redaction import Redact

MOST = 1_000
"""So many are kept at a time, the newest. It fills up only if the spans' provider isn't ours."""

_kept: dict[tuple[int, int], str] = {}
_are_wanted = False


def want(yes: bool) -> None:
    """Shall messages be kept? By default they aren't."""
    global _are_wanted
    _are_wanted = yes


def keep(span: Span, error: BaseException, redact: Redact | None) -> None:
    """Keep the message of the error whose event is the span's last, if anybody wants it."""
    if not _are_wanted:
        return
    from .capture import Captured  # here, since few runs fail

    message = Captured("summary", redact).message(error)
    if message:
        if len(_kept) >= MOST:
            for oldest in [*_kept][:1]:  # another thread may have forgotten all of them
                _kept.pop(oldest, None)
        _kept[_id(span.get_span_context())] = message


def kept(context: SpanContext | None) -> str | None:
    """The message of a span that is just ending."""
    return _kept.get(_id(context)) if _kept and context is not None else None


def forget(context: SpanContext | None) -> None:
    """The span has ended, and everybody has seen it."""
    if _kept and context is not None:
        _kept.pop(_id(context), None)


def _id(context: SpanContext) -> tuple[int, int]:
    return context.trace_id, context.span_id
