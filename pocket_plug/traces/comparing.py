"""Compares two runs, or two executions of one: their outcomes, durations, and the differences by span name."""

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
"""Outcomes of runs that may get more spans, or would have got them."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs. Times in nanoseconds. If a run has several executions, `start` is that of the first, `outcome` and
    `error` are those of the last, and `duration` is the sum, without the time between them.
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
        """The side for the executions of one run, in the order of their start. There must be at least one."""
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
    """The statistics of one span name on both sides; None if a side has no such span.

    `took` is how much longer the spans took after, in nanoseconds. `mark`: "new" (only after), "gone" (only before), "fails now"
    (errors after and none before). If a side hasn't ended, and has no such span or an open one, `mark` is that side's outcome.
    """

    name: str
    before: NameStats | None
    after: NameStats | None
    took: int
    mark: Mark


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides, and their differences, the largest change of time first. `took` is the difference of durations."""

    before: Side
    after: Side
    took: int
    spans: tuple[Difference, ...]


def compared(
    before: tuple[Side, Sequence[RecordedSpan]],
    after: tuple[Side, Sequence[RecordedSpan]],
    until: Mapping[str, int] | None = None,
) -> Comparison:
    """Compare two sides, each with its spans. An open span counts up to its time in `until`, by span id, or else not at all."""
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
    """The statistics of each name, and the names that have an open span."""
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
    """The spans of these executions among those of their traces: the runs' spans and all below them."""
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
    lost = {run.trace_id for run in executions} - {span.trace_id for span in waiting}  # the run's own span is missing
    waiting += [span for span in spans if span.trace_id in lost]
    while waiting:
        span = waiting.pop()
        if (span.trace_id, span.span_id) not in found:  # parent ids may form a cycle
            found[span.trace_id, span.span_id] = span
            waiting += of_trace.get((span.trace_id, span.span_id), ())
    return [*found.values()]
