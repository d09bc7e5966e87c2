"""Summaries of spans, which the index stores, and of the runs of a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .recorded import RecordedSpan, own_errors


class SpanSummary(NamedTuple):
    """A summary of a span. `run_id`, `graph`, `node`, `outcome` and `error` are its attributes; only a node's span has a `node`.

    `is_run`: it is the span of an outermost run. Times in nanoseconds; `end` is 0 while the span is open. `place`: where it
    failed, or where its node is defined, as "orders.py:41"; `is_users`: that place isn't in a library.
    """

    id: str
    parent: str | None
    start: int
    end: int
    failed: bool
    unseen_errors: int
    retries: int
    is_run: bool
    run_id: str | None
    graph: str | None
    node: str | None
    outcome: str | None
    error: str | None
    place: str | None
    is_users: bool

    @classmethod
    def of(cls, span: RecordedSpan) -> SpanSummary:
        """The summary of a span."""
        attributes = span.attributes

        def text(name: str) -> str | None:
            return None if (value := attributes.get(name)) is None else str(value)

        is_node = "pocket_plug.node.visit" in attributes
        place, is_users = _place_of(span) if span.failed else (None, False)
        return cls(
            id=span.span_id,
            parent=span.parent_id,
            start=span.start,
            end=span.end,
            failed=span.failed,
            unseen_errors=span.suppressed_errors,
            retries=span.retries,
            is_run=span.is_outermost,
            run_id=text("pocket_plug.run.id"),
            graph=text("pocket_plug.graph.name"),
            node=text("pocket_plug.node.name") if is_node else None,
            outcome=text("pocket_plug.run.outcome"),
            error=span.error,
            place=place,
            is_users=is_users,
        )


def _place_of(span: RecordedSpan) -> tuple[str | None, bool]:
    from .failing import failure_of  # here, since only reading a file needs it

    failure = failure_of(span, {})
    return (None, False) if failure is None or failure.at is None else (failure.at.place, failure.at.is_users)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One execution of a run: a run that was resumed has several, of one id.

    `outcome`: that of its span; "running" while its process is alive; "unfinished" if it neither ended nor runs, or if its span
    is missing. `place`: where the error was raised that made it fail. `start` and `duration` in nanoseconds; until it ends,
    `duration` is that so far. `spans`, `errors` and `retries` count those of the run and all below it.
    """

    run_id: str
    graph: str
    outcome: str
    error: str | None
    place: str | None
    start: int
    duration: int
    spans: int
    errors: int
    retries: int
    trace_id: str


def summaries(
    trace_id: str, spans: Sequence[SpanSummary], alive: Collection[str] = (), now: int = 0, seen: int = 0
) -> Iterator[RunSummary]:
    """The executions of runs in a trace. `alive`: ids of open spans whose process is alive; they last until `now` so far.

    A run that neither runs nor has ended lasts until the last known moment: the end of a span, or a sign of life at `seen`.
    Times in nanoseconds since the epoch.
    """
    runs = {span.id: span for span in spans if span.is_run}
    for id, (number, errors, retries) in _totals(spans, runs).items():
        run, outcome = runs[id], runs[id].outcome
        if run.end:
            duration = max(run.end - run.start, 0)
        elif id in alive:
            outcome, duration = "running", max(now - run.start, 0)
        else:
            outcome, duration = None, max(seen, *(span.end for span in spans)) - run.start
            duration = max(duration, 0)
        yield RunSummary(
            run.run_id or "",
            run.graph or "",
            outcome or "unfinished",
            run.error,
            _place(spans, run) if run.failed else None,
            run.start,
            duration,
            number,
            errors,
            retries,
            trace_id,
        )
    orphan = next((span for span in spans if span.run_id is not None), None)
    if not runs and orphan is not None:  # the run's own span is missing
        begin = min(span.start for span in spans)
        yield RunSummary(
            orphan.run_id or "",
            orphan.graph or "",
            "unfinished",
            None,
            None,
            begin,
            max(max(span.end for span in spans) - begin, 0),
            len(spans),
            _errors(spans).total(),
            sum(span.retries for span in spans),
            trace_id,
        )


def _place(spans: Sequence[SpanSummary], run: SpanSummary) -> str | None:
    """Where the first error was raised that made the run fail: the user's innermost place, or else the library's."""
    failed = {span.id: span for span in spans if span.failed}
    for id in sorted(_own_errors(failed.values()), key=lambda id: failed[id].end):
        way, above = [failed[id]], failed.get(failed[id].parent or "")
        while way[-1] is not run and above is not None and len(way) <= len(failed):
            way.append(above)
            above = failed.get(above.parent or "")
        if way[-1] is run and way[0].error == run.error:
            return next((span.place for span in way if span.is_users), way[0].place)
    return None


def _totals(spans: Sequence[SpanSummary], runs: Collection[str]) -> dict[str, list[int]]:
    """The numbers of spans, errors and retries of each run, by span id. A span below two runs counts for both."""
    errors = _errors(spans)
    above = {span.id: span.parent for span in spans}
    totals = {run: [0, 0, 0] for run in runs}
    of: dict[str | None, tuple[str, ...]] = {None: ()}  # the runs above each span
    for span in spans:
        path: list[str] = []
        id: str | None = span.id
        while id is not None and id not in of and id in above and len(path) <= len(above):
            path.append(id)
            of[id] = ()  # for now: so a cycle of parent ids ends here
            id = above[id]
        below = of.get(id, ())
        for each in reversed(path):
            below = of[each] = (*below, each) if each in runs else below
        for run in of[span.id]:
            total = totals[run]
            total[0] += 1
            total[1] += errors[span.id]
            total[2] += 0 if span.id in runs else span.retries
    for span in spans:
        if span.id in runs:
            # an ended run has the retries of all nodes below
            totals[span.id][2] = max(totals[span.id][2], span.retries)
    return totals


def _errors(spans: Sequence[SpanSummary]) -> Counter[str]:
    """The number of errors that were raised in each span, by span id."""
    return Counter(_own_errors(spans)) + Counter({span.id: span.unseen_errors for span in spans})


def _own_errors(spans: Iterable[SpanSummary]) -> list[str]:
    return own_errors({span.id: (span.parent, span.error) for span in spans if span.failed})
