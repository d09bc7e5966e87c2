"""Two runs, or two executions of one: how they ended, how long they took, and what is different by the names of their spans."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .by_name import NameStats, stats_by_name
from .recorded import RecordedSpan
from .summary import RunSummary

__all__ = ["Comparison", "Difference", "Side", "compared", "spans_of"]

Mark = Literal["new", "gone", "fails now", "running", "unfinished", "interrupted", ""]

_NOT_ENDED: Mapping[str, Mark] = {"running": "running", "unfinished": "unfinished", "interrupted": "interrupted"}
"""Outcomes of runs that may have more spans, or would have had them."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two. `start` and `duration` in nanoseconds; of several executions the first's start, the last's outcome, and the
    sum of the time that they took, without what lay between them.
    """

    run_id: str
    graph: str
    outcome: str
    error: str | None
    start: int
    duration: int
    traces: tuple[str, ...]

    @classmethod
    def of(cls, executions: Sequence[RunSummary]) -> Side:
        """That of executions of one run, as they began. There must be one."""
        first, last = executions[0], executions[-1]
        return cls(
            first.run_id,
            first.graph,
            last.outcome,
            last.error,
            first.start,
            sum(run.duration for run in executions),
            tuple(dict.fromkeys(run.trace_id for run in executions)),
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """The spans of one name on either side; None where there are none. `took`: how much more time, in all, in nanoseconds.

    `mark`: only after ("new"), only before ("gone"), or with errors after and without any before ("fails now"). Where a side
    hasn't come to its end, and has no such span or one that hasn't ended, it is that side's outcome.
    """

    name: str
    before: NameStats | None
    after: NameStats | None
    took: int
    mark: Mark


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was before, what is after, and the differences between them, that first which changed most."""

    before: Side
    after: Side
    took: int
    spans: tuple[Difference, ...]


def compared(
    before: tuple[Side, Sequence[RecordedSpan]],
    after: tuple[Side, Sequence[RecordedSpan]],
    until: Mapping[str, int] | None = None,
) -> Comparison:
    """Compare two sides, each with its spans. What hasn't ended counts `until` then, by its id, or else not at all."""
    (left, open_left), (right, open_right) = (_by_name(spans, until or {}) for _, spans in (before, after))
    found: list[Difference] = []
    for name in {**left, **right}:
        ours, theirs = left.get(name), right.get(name)
        waits: list[Mark] = [
            _NOT_ENDED[side.outcome]
            for side, stats, is_open in ((after[0], theirs, name in open_right), (before[0], ours, name in open_left))
            if side.outcome in _NOT_ENDED and (stats is None or is_open)
        ]
        found.append(_difference(name, ours, theirs, waits[0] if waits else ""))
    found.sort(key=lambda each: (-abs(each.took), each.name))
    return Comparison(before[0], after[0], after[0].duration - before[0].duration, tuple(found))


def _by_name(spans: Sequence[RecordedSpan], until: Mapping[str, int]) -> tuple[dict[str, NameStats], set[str]]:
    """The figures of each name, and the names of which a span hasn't ended."""
    so_far = [
        span if span.end else replace(span, end=max(span.start, until[span.span_id]) if span.span_id in until else 0)
        for span in spans
    ]
    return {stats.name: stats for stats in stats_by_name(so_far)}, {span.name for span in spans if not span.end}


def _difference(name: str, before: NameStats | None, after: NameStats | None, waits: Mark) -> Difference:
    took = (after.total if after is not None else 0) - (before.total if before is not None else 0)
    fails = after is not None and after.errors > 0 and not (before is not None and before.errors)
    only: Mark = "new" if before is None else "gone" if after is None else ""
    return Difference(name, before, after, took, "fails now" if fails else waits or only)


def spans_of(executions: Collection[RunSummary], spans: Sequence[RecordedSpan]) -> list[RecordedSpan]:
    """Of the spans of the traces that these executions are in, those that are theirs: the runs' own, and all below."""
    begun = {(run.trace_id, run.run_id, run.start) for run in executions}
    of_trace: dict[tuple[str, str | None], list[RecordedSpan]] = {}
    for span in spans:
        of_trace.setdefault((span.trace_id, span.parent_id), []).append(span)
    found: dict[tuple[str, str], RecordedSpan] = {}
    waiting = [
        span
        for span in spans
        if span.is_outermost and (span.trace_id, str(span.attributes["pocket_plug.run.id"]), span.start) in begun
    ]
    lost = {run.trace_id for run in executions} - {span.trace_id for span in waiting}  # its own span is missing
    waiting += [span for span in spans if span.trace_id in lost]
    while waiting:
        span = waiting.pop()
        if (span.trace_id, span.span_id) not in found:  # ids may be in a circle
            found[span.trace_id, span.span_id] = span
            waiting += of_trace.get((span.trace_id, span.span_id), ())
    return [*found.values()]
