"""The runs in a trace file, a line for each, from a file of any size: spans are counted and not kept."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .live import open_spans
from .recorded import RecordedSpan, TraceFile, own_errors


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One execution of a run: a run that was resumed has several, of one id.

    `outcome`: as on its span; "running" while its process says so; "unfinished" if it neither ended nor goes on, or is
    traced in part. `start` and `duration` in nanoseconds, `duration` so far where it hasn't ended. `spans`, `errors` and
    `retries` are those of the run and all below it.
    """

    run_id: str
    graph: str
    outcome: str
    error: str | None
    start: int
    duration: int
    spans: int
    errors: int
    retries: int
    trace_id: str


@dataclass(slots=True)
class _Counted:
    """What is kept of a trace's spans."""

    ids: array[int] = field(default_factory=lambda: array("Q"))
    parents: array[int] = field(default_factory=lambda: array("Q"))
    failed: dict[int, tuple[int, str | None]] = field(default_factory=dict[int, tuple[int, str | None]])
    suppressed: dict[int, int] = field(default_factory=dict[int, int])
    retried: dict[int, int] = field(default_factory=dict[int, int])
    runs: dict[int, RecordedSpan] = field(default_factory=dict[int, RecordedSpan])
    orphan: RecordedSpan | None = None
    begin: int = 2**64
    end: int = 0

    def add(self, span: RecordedSpan) -> None:
        number = int(span.span_id, 16)
        self.ids.append(number)
        self.parents.append(parent := int(span.parent_id or "0", 16))
        if span.failed:
            self.failed[number] = parent, span.error
        if errors := span.suppressed_errors:
            self.suppressed[number] = errors
        self.begin, self.end = min(self.begin, span.start), max(self.end, span.end)
        if retries := span.retries:
            self.retried[number] = retries
        if span.is_outermost:
            self.runs[number] = span
        elif self.orphan is None and "pocket_plug.run.id" in span.attributes:
            self.orphan = span

    def totals(self) -> dict[int, list[int]]:
        """Of each run, by its span: spans, errors, retries. What is below two runs counts for both."""
        above = dict(zip(self.ids, self.parents, strict=True))
        totals = {run: [0, 0, 0] for run in self.runs}
        errors = self.errors()
        of: dict[int, tuple[int, ...]] = {0: ()}  # a span's runs
        for number in above:
            path: list[int] = []
            while number not in of and number in above and len(path) <= len(above):
                path.append(number)
                of[number] = ()  # until it is known; a circle ends here
                number = above[number]
            runs = of.get(number, ())
            for each in reversed(path):
                runs = of[each] = (*runs, each) if each in self.runs else runs
        for number in above:
            for run in of[number]:
                total = totals[run]
                total[0] += 1
                total[1] += errors[number]
                total[2] += 0 if number in self.runs else self.retried.get(number, 0)
        for run, total in totals.items():
            total[2] = max(total[2], self.retried.get(run, 0))  # once it has ended it knows all
        return totals

    def errors(self) -> Counter[int]:
        """By span, how many errors are its own."""
        return Counter(own_errors(self.failed)) + Counter(self.suppressed)


def runs_in(file: TraceFile, clock: Callable[[], float] = time.time) -> list[RunSummary]:
    """The executions of runs in a file, that which began last first; those that go on included.

    Raises OSError where there is neither the file nor a run that goes on.
    """
    traces: dict[str, _Counted] = {}
    now = open_spans(file.path, clock)
    alive = {each.span.span_id for each in now if each.alive}
    try:
        for span in file.spans():
            traces.setdefault(span.trace_id, _Counted()).add(span)
    except FileNotFoundError:
        if not now:
            raise
    for each in now:
        counted = traces.setdefault(each.span.trace_id, _Counted())
        if int(each.span.span_id, 16) not in counted.ids:  # it may have ended since
            counted.add(each.span)
    found = [summary for counted in traces.values() for summary in _summaries(counted, alive, int(clock() * 1e9))]
    return sorted(found, key=lambda run: run.start, reverse=True)


def _summaries(counted: _Counted, alive: set[str], now: int) -> Iterator[RunSummary]:
    for number, (spans, errors, retries) in (totals := counted.totals()).items():
        run = counted.runs[number]
        outcome = run.attributes.get("pocket_plug.run.outcome")
        if run.end:
            duration = run.duration
        elif run.span_id in alive:
            outcome, duration = "running", max(now - run.start, 0)
        else:
            outcome, duration = None, max(counted.end - run.start, 0)
        yield _summary(run, str(outcome or "unfinished"), run.start, duration, (spans, errors, retries))
    if not totals and counted.orphan is not None:
        numbers = len(counted.ids), counted.errors().total(), sum(counted.retried.values())
        yield _summary(counted.orphan, "unfinished", counted.begin, max(counted.end - counted.begin, 0), numbers)


def _summary(span: RecordedSpan, outcome: str, start: int, duration: int, numbers: tuple[int, int, int]) -> RunSummary:
    error = span.attributes.get("error.type") if span.is_run else None
    return RunSummary(
        str(span.attributes["pocket_plug.run.id"]),
        str(span.attributes.get("pocket_plug.graph.name", "")),
        outcome,
        None if error is None else str(error),
        start,
        duration,
        *numbers,
        trace_id=span.trace_id,
    )
