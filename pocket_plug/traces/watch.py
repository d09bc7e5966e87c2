"""A run followed while it goes on, from another process: by the trace file what has ended, by those beside it the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .index import TraceIndex
from .open_spans import SILENT, OpenSpan, open_spans
from .recorded import RecordedSpan, Trace, TraceFile, traces_of


class Watch:
    """The newest run with this id or of this graph that is still running, or else the next one that begins. A run that is
    named by its id may have ended.

    `look()` reads what is new. Then `trace` is what is known of it, None while it hasn't begun; `ended` if it did;
    `lost` if its process shows no sign of life any more.
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
            self._file = TraceFile(self.path)  # from its beginning: parts of it may have ended before we came
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
        """The trace of the newest run that is meant."""
        found = [each.span for each in now if each.alive or self._has_id(each.span)] + new
        runs = [span for span in found if span.is_outermost and self._is_meant(span)]
        return max(runs, key=lambda span: span.start).trace_id if runs else None

    def _is_meant(self, span: RecordedSpan) -> bool:
        return self.name in (None, span.attributes.get("pocket_plug.graph.name")) or self._has_id(span)

    def _has_id(self, span: RecordedSpan) -> bool:
        return self.name is not None and self.name == span.attributes.get("pocket_plug.run.id")
