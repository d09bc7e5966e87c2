"""Traces drawn on the terminal as they end, from what the SDK tells of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode
from rich.console import Console
from rich.text import Text

from pocket_plug.errors import is_fault
from pocket_plug.primitives.failures import say_once
from pocket_plug.primitives.forking import new_lock
from pocket_plug.traces.drawing import draw, on_console
from pocket_plug.traces.recorded import Event, RecordedSpan, Status

from .messages import with_message

MAX_HELD = 20_000
"""Spans of one trace that are held until its root ends; what is beyond is counted only."""

MAX_FAILED = 1_000
"""So many more that failed are held nevertheless."""

STORE_SCOPE = "pocket_plug.store"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise it. By default rich ends the process."""
        raise BrokenPipeError("the terminal is gone")


class TreeProcessor(SpanProcessor):
    """Holds the spans of each trace until its root in this process ends, and then draws them.

    A store operation outside of any run is no tree and draws none. `footer` gives the last line, of the root. Messages of
    exceptions are shown on a terminal only: elsewhere, as in the log of a CI job, nobody knows who reads them.
    """

    def __init__(self, file: TextIO | None, footer: Callable[[RecordedSpan], str]) -> None:
        self.shows_messages = (file or sys.stderr).isatty()
        self._file = file
        self._console = _Console(file=file, stderr=file is None, highlight=False, soft_wrap=False)
        self._footer = footer
        self._lock = new_lock()
        self._held: dict[int, tuple[int, list[ReadableSpan], int]] = {}  # by trace: its root, spans, how many more

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """A root begins a trace; what belongs to no root that was seen to begin is not held."""
        if span.parent is None or span.parent.is_remote:
            context = span.get_span_context()
            with self._lock:
                self._held.setdefault(context.trace_id, (context.span_id, [], 0))

    def on_end(self, span: ReadableSpan) -> None:
        """Hold it; draw the tree if it is the root."""
        context = span.get_span_context()
        if context is None:
            return
        if self.shows_messages:
            span = with_message(span)
        with self._lock:
            held = self._held.get(context.trace_id)
            if held is None:
                return
            root, spans, more = held
            if context.span_id != root:
                failed = span.status.status_code is StatusCode.ERROR
                if len(spans) < MAX_HELD + (MAX_FAILED if failed else 0):
                    spans.append(span)
                else:
                    self._held[context.trace_id] = root, spans, more + 1
                return
            del self._held[context.trace_id]
        scope = span.instrumentation_scope
        if spans or scope is None or scope.name != STORE_SCOPE:
            try:
                self._draw(span, spans, more)
            except BaseException as error:  # a closed or broken terminal must not end a run
                if not is_fault(error):
                    raise
                say_once("drawing a trace", error)

    @property
    def held(self) -> int:
        """How many spans wait for their root."""
        with self._lock:
            return sum(len(spans) for _, spans, _ in self._held.values())

    def _draw(self, root: ReadableSpan, spans: Sequence[ReadableSpan], more: int) -> None:
        width, plain = self._place()
        top = recorded(root)
        lines = draw([top, *map(recorded, spans)], root=top, width=width, plain=plain)
        if more:
            lines.append(Text(f"{'...' if plain else '…'} {more:,} more spans"))
        self._show(lines, self._footer(top))

    def _place(self) -> tuple[int, bool]:
        """How many columns there are, and whether for ASCII only."""
        return self._console.width, self._console.options.ascii_only

    def _show(self, lines: Sequence[Text], below: str) -> None:
        file = self._file or sys.stderr
        file.write(on_console(self._console, lines, below))
        file.flush()


def recorded(span: ReadableSpan) -> RecordedSpan:
    """A span of the SDK's as the trace file would give it back, as far as it is drawn."""
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
