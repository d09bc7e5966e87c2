"""Draws traces in the terminal when they end, from the spans of the SDK."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode
from rich.console import Console
from rich.text import Text

from pocket_plug.otel.reporting import surviving
from pocket_plug.primitives.forking import new_rlock
from pocket_plug.primitives.terminal import is_terminal
from pocket_plug.traces.drawing import draw, on_console
from pocket_plug.traces.recorded import Event, RecordedSpan, Status

from .messages import with_message

MAX_HELD = 20_000
"""How many spans of a tree are held until its root ends; further ones are only counted."""

MAX_FAILED = 1_000
"""This many more are held if they failed."""

MAX_KNOWN = 50_000
"""How many spans of a tree, open or held, are remembered to find the tree of their children."""

STORE_SCOPE = "pocket_plug.store"


@dataclass(slots=True)
class _Tree:
    """The spans below one root, until the root ends."""

    root: int
    spans: list[ReadableSpan] = field(default_factory=list[ReadableSpan])
    more: int = 0
    known: int = 0


@dataclass(slots=True)
class _Trace:
    """The trees of one trace: one for each root in this process. Several may be open at a time."""

    open: dict[int, _Tree] = field(default_factory=dict[int, _Tree])  # by the root's span id
    known: dict[int, _Tree] = field(default_factory=dict[int, _Tree])  # by span id, for spans that are open or held

    def begin(self, root: int) -> None:
        self.open[root] = self.known[root] = _Tree(root)

    def find(self, *spans: int) -> _Tree | None:
        """The tree of the first known span. If none is known, as below a span of another provider: the only open tree."""
        for span in spans:
            if (tree := self.known.get(span)) is not None:
                return tree
        trees = [*self.open.values()]
        return trees[0] if len(trees) == 1 else None

    def note(self, span: int, parent: int) -> None:
        tree = self.find(parent)
        if tree is not None and tree.known < MAX_KNOWN:
            self.known[span] = tree
            tree.known += 1

    def hold(self, tree: _Tree, number: int, span: ReadableSpan) -> None:
        """Keep a span that ended, so that children which begin later find their tree; only count it if the tree is large."""
        if tree.root in self.open:
            failed = span.status.status_code is StatusCode.ERROR
            if len(tree.spans) < MAX_HELD + (MAX_FAILED if failed else 0):
                tree.spans.append(span)
                return
            tree.more += 1
        if self.known.pop(number, None) is not None:
            tree.known -= 1

    def end(self, tree: _Tree) -> Sequence[ReadableSpan]:
        """End a tree and return its spans. Those still open stay known until they end, so that they join no other tree."""
        del self.open[tree.root], self.known[tree.root]
        spans, tree.spans = tree.spans, []
        for span in spans:
            if (context := span.get_span_context()) is not None:
                self.known.pop(context.span_id, None)
        return spans


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise an error: by default, rich ends the process."""
        raise BrokenPipeError("the terminal is gone")


class TreeProcessor(SpanProcessor):
    """Holds the spans below each root of this process until the root ends, and then draws them as a tree.

    A store operation outside of any run is not drawn. `footer` makes the last line from the root. Messages of exceptions are
    shown on a terminal only: the output may otherwise be a log that others read, as in a CI job.
    """

    def __init__(self, file: TextIO | None, footer: Callable[[RecordedSpan], str]) -> None:
        self.shows_messages = is_terminal(file or sys.stderr)
        self._file = file
        self._console = _Console(file=file, stderr=file is None, highlight=False, soft_wrap=False)
        self._footer = footer
        self._lock = new_rlock()  # reentrant: a signal's handler or garbage collection may end a span while it is held
        self._held: dict[int, _Trace] = {}  # by trace id, those with an open root

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Begin a tree if the span is a root or has a remote parent; else add the span to its parent's tree.

        Spans below a root whose start was not seen are not held.
        """
        context, parent = span.get_span_context(), span.parent
        with self._lock:
            if parent is None or parent.is_remote:
                self._held.setdefault(context.trace_id, _Trace()).begin(context.span_id)
            elif (trace := self._held.get(context.trace_id)) is not None:
                trace.note(context.span_id, parent.span_id)

    def on_end(self, span: ReadableSpan) -> None:
        """Hold the span, or draw the tree if it is the root."""
        context = span.get_span_context()
        if context is None:
            return
        above = span.parent.span_id if span.parent is not None else context.span_id
        if self.shows_messages:
            span = with_message(span)
        with self._lock:
            trace = self._held.get(context.trace_id)
            tree = trace.find(context.span_id, above) if trace is not None else None
            if trace is None or tree is None:
                return
            if context.span_id != tree.root:
                trace.hold(tree, context.span_id, span)
                return
            spans, more = trace.end(tree), tree.more
            if not trace.open:
                self._held.pop(context.trace_id, None)
        scope = span.instrumentation_scope
        if spans or scope is None or scope.name != STORE_SCOPE:
            with surviving("drawing a trace"):  # the terminal may be closed or broken
                self._draw(span, spans, more)

    @property
    def held(self) -> int:
        """How many spans wait for their root."""
        with self._lock:
            return sum(len(tree.spans) for trace in self._held.values() for tree in trace.open.values())

    def _draw(self, root: ReadableSpan, spans: Sequence[ReadableSpan], more: int) -> None:
        width, plain = self._place()
        top = recorded(root)
        lines = draw([top, *map(recorded, spans)], root=top, width=width, plain=plain)
        if more:
            lines.append(Text(f"{'...' if plain else '…'} {more:,} more spans"))
        self._show(lines, self._footer(top))

    def _place(self) -> tuple[int, bool]:
        """The number of columns, and whether only ASCII can be shown."""
        return self._console.width, self._console.options.ascii_only

    def _show(self, lines: Sequence[Text], below: str) -> None:
        file = self._file or sys.stderr
        file.write(on_console(self._console, lines, below))
        file.flush()


def recorded(span: ReadableSpan) -> RecordedSpan:
    """A span of the SDK as it would be read from the trace file, with the fields that are drawn."""
    context, scope, parent = span.get_span_context(), span.instrumentation_scope, span.parent
    return RecordedSpan(
        trace_id=f"{context.trace_id:032x}" if context is not None else "",
        span_id=f"{context.span_id:016x}" if context is not None else "",
        parent_id=f"{parent.span_id:016x}" if parent is not None else None,
        name=span.name,
        kind=span.kind.value + 1,
        scope=scope.name if scope is not None else "",
        start=span.start_time or 0,
        end=span.end_time or 0,
        attributes=span.attributes or {},
        status=_STATUSES[span.status.status_code],
        message=span.status.description or "",
        events=tuple(Event(each.name, each.timestamp, each.attributes or {}) for each in span.events),
    )


_STATUSES: dict[StatusCode, Status] = {StatusCode.UNSET: "unset", StatusCode.OK: "ok", StatusCode.ERROR: "error"}
