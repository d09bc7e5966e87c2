"""How long the spans of each name took, and how often they failed: the figures of tables, in the terminal and elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .failing import failures
from .recorded import RecordedSpan

__all__ = ["NameStats", "quantile", "stats_by_name"]


@dataclass(frozen=True, slots=True)
class NameStats:
    """The spans of one name. Durations in nanoseconds.

    `total` is their sum, `own` what of it was not within spans below them. `errors` counts those that happened in them, not
    those that came from below.
    """

    name: str
    count: int
    errors: int
    retries: int
    p50: int
    p95: int
    max: int
    total: int
    own: int


def quantile(ordered: Sequence[int], share: float) -> int:
    """What about that share of them, of 1, doesn't exceed. There must be one at least.

    >>> quantile([1, 2, 3, 4, 5], 0.5), quantile([7], 0.95)
    (3, 7)
    """
    return ordered[round(share * (len(ordered) - 1))]


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
    found: list[NameStats] = []
    for name, same in by_name.items():
        took = sorted(span.duration for span in same)
        found.append(
            NameStats(
                name,
                len(same),
                errors[name],
                retried[name],
                p50=quantile(took, 0.5),
                p95=quantile(took, 0.95),
                max=took[-1],
                total=sum(took),
                own=sum(span.duration - _covered(span, below.get(span.span_id, ())) for span in same),
            )
        )
    return sorted(found, key=lambda each: (-each.own, each.name))


def _covered(span: RecordedSpan, parts: Iterable[RecordedSpan]) -> int:
    """How much of a span's time any of these took: what went on at once counts once."""
    covered, until = 0, span.start
    for part in sorted(parts, key=lambda part: part.start):
        begin, end = max(part.start, until), min(part.end, span.end)
        if end > begin:
            covered, until = covered + end - begin, end
    return covered
