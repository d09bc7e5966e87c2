"""What is kept of a span to say what its run was, and the runs of a trace, a line for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .recorded import RecordedSpan, own_errors


class SpanSummary(NamedTuple):
    """A span in short. `run_id` and those below it are what its attributes say, `node` that of a node's span only.

    `is_run`: it is that of an outermost run. Times in nanoseconds, `end` 0 while it goes on. `place`: where it failed, or
    where its node is written, as "orders.py:41"; `is_users`, unless that is of a library.
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
        """That of a span."""
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
    from .failing import failure_of  # here, since it is needed only where a file is read

    failure = failure_of(span, {})
    return (None, False) if failure is None or failure.at is None else (failure.at.place, failure.at.is_users)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One execution of a run: a run that was resumed has several, of one id.

    `outcome`: as on its span; "running" while its process says so; "unfinished" if it neither ended nor goes on, or is
    traced in part. `place`: where the error of one that failed arose. `start` and `duration` in nanoseconds, `duration` so far
    where it hasn't ended. `spans`, `errors` and `retries` are those of the run and all below it.
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
    """The executions of runs in a trace. What is `alive`, by the ids of spans, goes on, and took until `now` so far.

    What neither goes on nor has ended took until the last thing that is known: a span's end, or a sign of life at `seen`.
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
    """Where the first error arose that made the run fail: that place of the user's which is the innermost, else a library's."""
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
    """Of each run, by its span: spans, errors, retries. What is below two runs counts for both."""
    errors = _errors(spans)
    above = {span.id: span.parent for span in spans}
    totals = {run: [0, 0, 0] for run in runs}
    of: dict[str | None, tuple[str, ...]] = {None: ()}  # a span's runs
    for span in spans:
        path: list[str] = []
        id: str | None = span.id
        while id is not None and id not in of and id in above and len(path) <= len(above):
            path.append(id)
            of[id] = ()  # until it is known; a circle ends here
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
            totals[span.id][2] = max(totals[span.id][2], span.retries)  # once it has ended it knows all
    return totals


def _errors(spans: Sequence[SpanSummary]) -> Counter[str]:
    """By span, how many errors are its own."""
    return Counter(_own_errors(spans)) + Counter({span.id: span.unseen_errors for span in spans})


def _own_errors(spans: Iterable[SpanSummary]) -> list[str]:
    return own_errors({span.id: (span.parent, span.error) for span in spans if span.failed})
