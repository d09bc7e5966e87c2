"""Decides which spans of a trace have their own line, and which are summarized.

Siblings of one name are summarized if there are many, except those that lead to the first failure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .failing import Failure, failure_of, failures, first_way
from .recorded import RecordedSpan

MANY = 8
"""Up to this many siblings of one name, all are shown."""

FAILED = 3
"""If there are more, the first is shown, and up to this many that failed or are open. The others are summarized in a line."""


class Folding:
    """The lines of a tree. `whole`: each span has its own line.

    Spans without a parent among the `spans` are put below `root`, or at the top without a root.
    """

    def __init__(self, spans: Sequence[RecordedSpan], root: RecordedSpan | None = None, *, whole: bool = False) -> None:
        self._whole = whole
        self._by_id = by_id = {span.span_id: span for span in spans}
        self._children: dict[str | None, list[RecordedSpan]] = {}
        top = None if root is None else root.span_id
        ordered = [each for each in sorted(spans, key=lambda span: span.start) if each is not root]
        for each in ordered:
            self._children.setdefault(each.parent_id if each.parent_id in by_id else top, []).append(each)
        outermost = self._children.setdefault(top, [])
        self._open_circles(ordered, outermost)
        self.tops = [root] if root is not None else outermost
        self._errors = {failure.span.span_id: failure for failure in failures(spans)}
        self._open = {span.span_id for span in first_way([*self._errors.values()], by_id)}

    def _open_circles(self, spans: Sequence[RecordedSpan], outermost: list[RecordedSpan]) -> None:
        """Put the first span of each cycle of parent ids at the top; a cycle may be a span that is its own parent."""
        reached: set[str] = set()
        for start in (*outermost, *spans):
            if start.span_id in reached:
                continue
            if start not in outermost:
                self._children[start.parent_id].remove(start)
                outermost.append(start)
            waiting = [start]
            while waiting:
                span = waiting.pop()
                reached.add(span.span_id)
                waiting += self._children.get(span.span_id, ())

    def nested(self, span: RecordedSpan) -> RecordedSpan | None:
        """The run of a nested graph if it shares its node's line: nothing else is below the node, and both ended alike."""
        below = self._children.get(span.span_id, ())
        if self._whole or len(below) != 1 or span.attributes.get("pocket_plug.node.type") != "graph":
            return None
        (run,) = below
        alike = (run.status, run.error, bool(run.end)) == (span.status, span.error, bool(span.end))
        return run if run.is_run and alike and not self.failure(run) else None

    def failure(self, span: RecordedSpan) -> Failure | None:
        """The error that was raised in a span, also in an attempt that was retried."""
        if span.span_id in self._errors:
            return self._errors[span.span_id]
        found = failure_of(span, self._by_id) if span.status == "error" and not span.failed else None
        return found if found is not None and found.is_known else None

    def below(self, span: RecordedSpan) -> list[RecordedSpan | list[RecordedSpan]]:
        """The children of a span, by start. Siblings that are summarized are a list after the last shown one of their name."""
        siblings = self._children.pop(span.span_id, [])
        by_name: dict[str, list[RecordedSpan]] = {}
        for each in siblings:
            by_name.setdefault(each.name, []).append(each)
        shown: dict[str, list[RecordedSpan]] = {}  # by id, with the siblings that are summarized after it
        for same in by_name.values():
            kept = self._kept(same)
            last = max(position for position, each in enumerate(same) if each.span_id in kept)
            for position, each in enumerate(same):
                if each.span_id in kept:
                    rest = [other for other in same if other.span_id not in kept] if position == last else []
                    shown[each.span_id] = rest
        folded: list[RecordedSpan | list[RecordedSpan]] = []
        for each in siblings:
            if each.span_id in shown:
                folded.append(each)
                if rest := shown[each.span_id]:
                    folded.append(rest)
        return folded

    def _kept(self, same: Sequence[RecordedSpan]) -> set[str]:
        if self._whole or len(same) <= MANY:
            return {span.span_id for span in same}
        failed = [span.span_id for span in same[1:] if span.failed or not span.end]
        opened = [span.span_id for span in same if span.span_id in self._open]
        return {same[0].span_id, *opened, *failed[:FAILED]}

    def errors_in(self, spans: Sequence[RecordedSpan]) -> Counter[str]:
        """The number of errors of each type in these spans and all below, none of which has its own line."""
        errors: Counter[str] = Counter()
        waiting = [*spans]
        while waiting:
            span = waiting.pop()
            if span.span_id in self._errors:
                errors[self._errors[span.span_id].kind] += 1
            if span.suppressed_errors:
                errors["error"] += span.suppressed_errors  # items without a span: the types of their errors are unknown
            waiting += self._children.pop(span.span_id, ())
        return errors
