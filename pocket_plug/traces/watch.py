"""Follows a running run from another process: ended spans are in the trace file, open ones in the files beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .index import TraceIndex
from .open_spans import SILENT, OpenSpan, open_spans
from .recorded import RecordedSpan, Trace, TraceFile, traces_of


class Watch:
    """Watches the newest running run with this id or of this graph, or else the next one that begins. If `name` is a run's id,
    the run may also have ended.

    `look()` reads what is new. Then `trace` has the run's spans so far, or is None before it begins; `ended`: the run has ended;
    `lost`: it hasn't, and its process shows no sign of life.
    """

    def __init__(self, path: Path, name: str | None = None, clock: Callable[[], float] = time.time) -> None:
        self.path, self.name, self.ended, self.lost = path, name, False, False
        self.trace: Trace | None = None
        self._clock = clock
        self._spans: dict[str, RecordedSpan] = {}
        self._news = 0.0
        self._file = TraceFile(path)
        if name is not None and path.exists():
            # the latest of its executions may have ended already
            with TraceIndex(path, clock) as index:
                self._id = next((run.trace_id for run in index.runs() if run.run_id == name), None)
        else:
            self._id = None
        if self._id is None:
            self._file.skip()

    def look(self) -> None:
        """Read what is new."""
        now = open_spans(self.path, self._clock)
        new = self._new()
        if self._id is None:
            self._id = self._chosen(now, new)
            if self._id is None:
                return
            self._file = TraceFile(self.path)  # from its beginning: some spans may have ended before this watch began
            new = self._new()
        before = len(self._spans), sum(span.end > 0 for span in self._spans.values())
        alive = False
        for each in now:
            if each.span.trace_id == self._id:
                self._spans.setdefault(each.span.span_id, each.span)
                alive = alive or each.alive
        for span in new:
            self._spans[span.span_id] = span
        if not self._spans:
            return
        if alive or before != (len(self._spans), sum(span.end > 0 for span in self._spans.values())):
            self._news = self._clock()
        (self.trace,) = traces_of([*self._spans.values()])
        self.ended = bool(self.trace.runs) and all(run.end for run in self.trace.runs)
        gone = any(each.span.trace_id == self._id for each in now) and not alive
        self.lost = not self.ended and (gone or self._clock() - self._news > SILENT)

    def _new(self) -> list[RecordedSpan]:
        try:
            return [*self._file.spans(None if self._id is None else {self._id}, growing=True)]
        except FileNotFoundError:  # nothing has ended yet
            return []

    def _chosen(self, now: list[OpenSpan], new: list[RecordedSpan]) -> str | None:
        """The trace id of the newest run that matches the name."""
        found = [each.span for each in now if each.alive or self._has_id(each.span)] + new
        runs = [span for span in found if span.is_outermost and self._matches(span)]
        return max(runs, key=lambda span: span.start).trace_id if runs else None

    def _matches(self, span: RecordedSpan) -> bool:
        return self.name in (None, span.attributes.get("pocket_plug.graph.name")) or self._has_id(span)

    def _has_id(self, span: RecordedSpan) -> bool:
        return self.name is not None and self.name == span.attributes.get("pocket_plug.run.id")
