"""Statistics by span name: how long the spans took, and how often they failed. For tables in the terminal and elsewhere."""

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
    """Statistics of all spans of one name.

    `errors` counts the errors that were raised in these spans, and not below them; `retries` counts failures that were followed
    by a retry. `own` is their time outside of child spans, in nanoseconds.
    """

    name: str
    errors: int
    own: int


def stats_by_name(spans: Sequence[RecordedSpan]) -> list[NameStats]:
    """The statistics of each name, that with the most own time first. Open spans aren't counted."""
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
    """The part of a span's time that child spans cover, in nanoseconds; overlapping ones count once."""
    covered, until = 0, span.start
    for part in sorted(parts, key=lambda part: part.start):
        begin, end = max(part.start, until), min(part.end, span.end)
        if end > begin:
            covered, until = covered + end - begin, end
    return covered
