"""How long the spans of each name took, and how often they failed: the figures of tables, in the terminal and elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .failing import failures
from .figures import Figures, figures
from .recorded import RecordedSpan

__all__ = ["NameStats", "stats_by_name"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NameStats(Figures):
    """The spans of one name.

    `errors` counts those that arose in them, not those that came from below, and `retries` those after which the work was tried
    again. `own`, in nanoseconds, is what of their time was not within spans below them.
    """

    name: str
    errors: int
    own: int


def stats_by_name(spans: Sequence[RecordedSpan]) -> list[NameStats]:
    """Of each name, that which took longest by itself first; what hasn't ended isn't counted."""
    ended = [span for span in spans if span.end]
    below: dict[str, list[RecordedSpan]] = {}
    for span in ended:
        if span.parent_id is not None:
            below.setdefault(span.parent_id, []).append(span)
    errors = Counter(failure.span.name for failure in failures(ended))
    retried = Counter(span.name for span in ended if span.status == "error" and not span.failed)
    by_name: dict[str, list[RecordedSpan]] = {}
    for span in ended:
        by_name.setdefault(span.name, []).append(span)
    found = [
        NameStats(
            **figures((span.duration for span in same), retried[name]),
            name=name,
            errors=errors[name],
            own=sum(span.duration - _covered(span, below.get(span.span_id, ())) for span in same),
        )
        for name, same in by_name.items()
    ]
    return sorted(found, key=lambda each: (-each.own, each.name))


def _covered(span: RecordedSpan, parts: Iterable[RecordedSpan]) -> int:
    """How much of a span's time any of these took: what went on at once counts once."""
    covered, until = 0, span.start
    for part in sorted(parts, key=lambda part: part.start):
        begin, end = max(part.start, until), min(part.end, span.end)
        if end > begin:
            covered, until = covered + end - begin, end
    return covered
