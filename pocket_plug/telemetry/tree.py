"""A trace as a tree on the terminal: a line per span, how long it took, and a bar that shows when."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import TextIO

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode
from rich.console import Console
from rich.text import Text

from pocket_plug.reporting import say_once

MANY = 8
"""Siblings of one name are all shown up to this many."""

FAILED = 3
"""Of more than that the first is shown, and so many of those that failed. The rest is summed up in a line."""

MAX_HELD = 20_000
"""Spans of one trace that are held until its root ends; what is beyond is counted only."""

STORE_SCOPE = "pocket_plug.store"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise it. By default rich ends the process."""
        raise BrokenPipeError("the terminal is gone")


class TreeProcessor(SpanProcessor):
    """Holds the spans of each trace until its root in this process ends, and then draws them.

    A store operation outside of any run is no tree and draws none. `footer` gives the last line.
    """

    def __init__(self, file: TextIO | None, footer: Callable[[], str]) -> None:
        self._file = file
        self._console = _Console(file=file, stderr=file is None, highlight=False, soft_wrap=False)
        self._footer = footer
        self._lock = threading.Lock()
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
        with self._lock:
            held = self._held.get(context.trace_id)
            if held is None:
                return
            root, spans, more = held
            if context.span_id != root:
                if len(spans) < MAX_HELD:
                    spans.append(span)
                else:
                    self._held[context.trace_id] = root, spans, more + 1
                return
            del self._held[context.trace_id]
        scope = span.instrumentation_scope
        if spans or scope is None or scope.name != STORE_SCOPE:
            try:
                self._draw(span, spans, more)
            except Exception as error:  # noqa: BLE001 - a closed or broken terminal must not end a run
                say_once("drawing a trace", error)

    @property
    def held(self) -> int:
        """How many spans wait for their root."""
        with self._lock:
            return sum(len(spans) for _, spans, _ in self._held.values())

    def _draw(self, root: ReadableSpan, spans: Sequence[ReadableSpan], more: int) -> None:
        plain = self._console.options.ascii_only
        lines = [*draw(root, spans, width=self._console.width, plain=plain)]
        if more:
            lines.append(Text(f"{'...' if plain else '…'} {more:,} more spans"))
        lines.append(Text(printable(self._footer()), style="dim"))
        # rich makes the text and we write it, since what it can't encode it doesn't replace
        with self._console.capture() as drawn:
            self._console.print(Text("\n").join(lines), no_wrap=True, overflow="ellipsis", crop=True)
        encoding = self._console.encoding
        file = self._file or sys.stderr
        file.write(drawn.get().encode(encoding, "replace").decode(encoding))
        file.flush()


def draw(root: ReadableSpan, spans: Sequence[ReadableSpan], *, width: int = 80, plain: bool = False) -> list[Text]:
    """The lines of a tree, at most `width` columns wide; `plain` keeps to ASCII."""
    children: dict[int, list[ReadableSpan]] = {}
    ids = {_id(span) for span in spans}
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        # a span whose parent isn't here (it was not sampled, or still goes on) hangs under the root
        parent = span.parent.span_id if span.parent is not None and span.parent.span_id in ids else _id(root)
        children.setdefault(parent, []).append(span)
    rows: list[tuple[Text, str, ReadableSpan | None]] = []
    branch, last, pipe, blank = ("|- ", "`- ", "|  ", "   ") if plain else ("├─ ", "└─ ", "│  ", "   ")

    def add(span: ReadableSpan, lead: str, below: str) -> None:
        took = seconds((span.end_time or 0) - (span.start_time or 0), plain)
        rows.append((_label(span, lead, plain), took, span))
        shown = _fold(children.get(_id(span), []))
        for position, item in enumerate(shown):
            end = position == len(shown) - 1
            here, deeper = below + (last if end else branch), below + (blank if end else pipe)
            if isinstance(item, ReadableSpan):
                add(item, here, deeper)
            else:
                rows.append((Text().append(here, style="dim").append(_summary(item, plain)), "", None))

    add(root, "", "")
    return _layout(rows, root, width, plain)


def _fold(siblings: Sequence[ReadableSpan]) -> list[ReadableSpan | list[ReadableSpan]]:
    """In the order in which they began; where there are many of a name, the last one shown is followed by the rest."""
    by_name: dict[str, list[ReadableSpan]] = {}
    for span in siblings:
        by_name.setdefault(span.name, []).append(span)
    shown: dict[int, list[ReadableSpan]] = {}  # by id, each with what is summed up after it
    for same in by_name.values():
        failed = [span for span in same[1:] if span.status.status_code is StatusCode.ERROR]
        kept = {_id(span) for span in (same if len(same) <= MANY else [same[0], *failed[:FAILED]])}
        last = max(position for position, span in enumerate(same) if _id(span) in kept)
        for position, span in enumerate(same):
            if _id(span) in kept:
                rest = [other for other in same if _id(other) not in kept] if position == last else []
                shown[_id(span)] = rest
    folded: list[ReadableSpan | list[ReadableSpan]] = []
    for span in siblings:
        if _id(span) in shown:
            folded.append(span)
            if rest := shown[_id(span)]:
                folded.append(rest)
    return folded


def _summary(spans: Sequence[ReadableSpan], plain: bool) -> Text:
    failed = sum(span.status.status_code is StatusCode.ERROR for span in spans)
    total = sum((span.end_time or 0) - (span.start_time or 0) for span in spans)
    text = (
        f"{'...' if plain else '…'} {len(spans):,} more: {printable(spans[0].name)}, {seconds(total, plain)} in all, "
    )
    return Text().append(text, style="dim").append(f"{failed} errors", style="red" if failed else "dim")


def _label(span: ReadableSpan, lead: str, plain: bool) -> Text:
    label = Text().append(lead, style="dim").append(printable(span.name))
    attributes = span.attributes or {}
    attempt = attributes.get("pocket_plug.attempt", 1)
    if attempt != 1:
        label.append(f" #{attempt}", style="dim")
    if span.status.status_code is StatusCode.ERROR:
        label.append(f" {'x' if plain else '✗'} {printable(str(attributes.get('error.type', 'error')))}", style="red")
    elif suppressed := attributes.get("pocket_plug.fan_out.suppressed"):
        label.append(f" ({suppressed} more items without spans)", style="dim")
    elif "error.type" in attributes:
        label.append(f" {printable(str(attributes['error.type']).rpartition('.')[2])}", style="yellow")
    return label


def _layout(rows: Sequence[tuple[Text, str, ReadableSpan | None]], root: ReadableSpan, width: int,
            plain: bool) -> list[Text]:  # fmt: skip
    """Labels, durations and bars in three columns; a bar's place and length are the span's within the root's."""
    time_width = max(len(duration) for _, duration, _ in rows)
    label_width = min(max(label.cell_len for label, _, _ in rows), max(width - time_width - 14, 20))
    bar_width = width - label_width - time_width - 3
    begin, whole = root.start_time or 0, max((root.end_time or 0) - (root.start_time or 0), 1)
    lines: list[Text] = []
    for label, duration, span in rows:
        if span is None:
            lines.append(label)
            continue
        line = label.copy()
        line.truncate(label_width, overflow="ellipsis", pad=True)
        line.append(f" {duration:>{time_width}}", style="cyan")
        if bar_width > 0:
            start = min(max((span.start_time or 0) - begin, 0), whole)
            took = min(max((span.end_time or 0) - begin - start, 0), whole - start)
            left = min(bar_width - 1, start * bar_width // whole)
            length = min(bar_width - left, max(1, round(took * bar_width / whole)))
            failed = span.status.status_code is StatusCode.ERROR
            bar = ("#" if plain else "▇") * length
            line.append("  " + " " * left).append(bar, style="red" if failed else "green")
        lines.append(line)
    return lines


def seconds(nanoseconds: int, plain: bool = False) -> str:
    """A duration as one reads it.

    >>> seconds(850_000), seconds(12_400_000), seconds(3_100_000_000), seconds(242_000_000_000)
    ('850 µs', '12.4 ms', '3.10 s', '4 min 2 s')
    """
    if nanoseconds < 1_000_000:
        return f"{nanoseconds / 1e3:.0f} {'us' if plain else 'µs'}"
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1e6:.1f} ms"
    if nanoseconds < 60_000_000_000:
        return f"{nanoseconds / 1e9:.2f} s"
    return f"{nanoseconds // 60_000_000_000} min {nanoseconds // 1_000_000_000 % 60} s"


def _id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    return context.span_id if context is not None else 0


def printable(text: str) -> str:
    """Without what a terminal would obey: names may come from anywhere."""
    return "".join(char if char.isprintable() else "?" for char in text)
