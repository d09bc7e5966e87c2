"""A trace as lines of text: one per span, how long it took, and a bar that shows when."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from pocket_plug.primitives.terminal import escaped

from .recorded import RecordedSpan

MANY = 8
"""Siblings of one name are all shown up to this many."""

FAILED = 3
"""Of more than that the first is shown, and so many of those that failed or go on. The rest is summed up in a line."""


def draw(
    spans: Sequence[RecordedSpan],
    *,
    root: RecordedSpan | None = None,
    width: int = 80,
    plain: bool = False,
    now: int = 0,
    alive: bool = True,
) -> list[Text]:
    """The lines of a tree, at most `width` columns wide; `plain` keeps to ASCII.

    What has no parent among the spans hangs under the `root`, if one is given, else stands by itself. A span without an
    end is drawn until `now`, and said to be running if `alive`.
    """
    ids = {span.span_id for span in spans}
    children: dict[str | None, list[RecordedSpan]] = {}
    for each in sorted(spans, key=lambda span: span.start):
        if each is not root:
            top = None if root is None else root.span_id
            children.setdefault(each.parent_id if each.parent_id in ids else top, []).append(each)
    rows: list[tuple[Text, str, RecordedSpan | None]] = []
    branch, last, pipe, blank = ("|- ", "`- ", "|  ", "   ") if plain else ("├─ ", "└─ ", "│  ", "   ")
    tops = [root] if root is not None else children.get(None) or [*spans[:1]]  # ids in a circle have no top
    waiting: list[tuple[RecordedSpan | list[RecordedSpan], str, str]] = [(span, "", "") for span in reversed(tops)]
    while waiting:  # not by recursion: a trace may be deeper than Python's stack
        found, lead, below = waiting.pop()
        if isinstance(found, list):
            rows.append((Text().append(lead, style="dim").append(_summary(found, plain, now)), "", None))
            continue
        span = found
        rows.append((_label(span, lead, plain, alive), seconds(_took(span, now), plain), span))
        shown = _fold(children.pop(span.span_id, []))
        for position, item in reversed([*enumerate(shown)]):
            end = position == len(shown) - 1
            waiting.append((item, below + (last if end else branch), below + (blank if end else pipe)))
    return _layout(rows, tops, width, plain, now)


def _took(span: RecordedSpan, now: int) -> int:
    return max((span.end or now) - span.start, 0)


def _fold(siblings: Sequence[RecordedSpan]) -> list[RecordedSpan | list[RecordedSpan]]:
    """In the order in which they began; where there are many of a name, the last one shown is followed by the rest."""
    by_name: dict[str, list[RecordedSpan]] = {}
    for span in siblings:
        by_name.setdefault(span.name, []).append(span)
    shown: dict[str, list[RecordedSpan]] = {}  # by id, each with what is summed up after it
    for same in by_name.values():
        failed = [span for span in same[1:] if span.failed or not span.end]
        kept = {span.span_id for span in (same if len(same) <= MANY else [same[0], *failed[:FAILED]])}
        last = max(position for position, span in enumerate(same) if span.span_id in kept)
        for position, span in enumerate(same):
            if span.span_id in kept:
                rest = [other for other in same if other.span_id not in kept] if position == last else []
                shown[span.span_id] = rest
    folded: list[RecordedSpan | list[RecordedSpan]] = []
    for span in siblings:
        if span.span_id in shown:
            folded.append(span)
            if rest := shown[span.span_id]:
                folded.append(rest)
    return folded


def _summary(spans: Sequence[RecordedSpan], plain: bool, now: int) -> Text:
    failed = sum(span.failed for span in spans)
    total = sum(_took(span, now) for span in spans)
    text = f"{'...' if plain else '…'} {len(spans):,} more: {escaped(spans[0].name)}, {seconds(total, plain)} in all, "
    return Text().append(text, style="dim").append(f"{failed} errors", style="red" if failed else "dim")


def _label(span: RecordedSpan, lead: str, plain: bool, alive: bool) -> Text:
    label = Text().append(lead, style="dim").append(escaped(span.name))
    attributes = span.attributes
    attempt = attributes.get("pocket_plug.attempt", 1)
    if attempt != 1:
        label.append(f" #{attempt}", style="dim")
    if not span.end:
        label.append(f" {'...' if plain else '…'} {'running' if alive else 'not ended'}", style="yellow")
    elif span.status == "error":
        label.append(
            f" {'x' if plain else '✗'} {escaped(str(attributes.get('error.type', 'error')))}",
            style="red" if span.failed else "yellow",
        )
    elif "error.type" in attributes:
        label.append(f" {escaped(str(attributes['error.type']).rpartition('.')[2])}", style="yellow")
    items, suppressed = (attributes.get(f"pocket_plug.fan_out.{name}") for name in ("items", "suppressed"))
    if isinstance(items, int) and isinstance(suppressed, int) and suppressed:
        label.append(f" ({items - suppressed:,} of {items:,} items shown)", style="dim")
    return label


def _layout(
    rows: Sequence[tuple[Text, str, RecordedSpan | None]],
    tops: Sequence[RecordedSpan],
    width: int,
    plain: bool,
    now: int,
) -> list[Text]:
    """Labels, durations and bars in three columns; a bar's place and length are the span's within those at the top."""
    time_width = max(len(duration) for _, duration, _ in rows)
    label_width = min(max(label.cell_len for label, _, _ in rows), max(width - time_width - 14, 20))
    bar_width = width - label_width - time_width - 3
    begin = min(span.start for span in tops)
    whole = max(max(span.end or now for span in tops) - begin, 1)
    lines: list[Text] = []
    for label, duration, span in rows:
        if span is None:
            lines.append(label)
            continue
        line = label.copy()
        line.truncate(label_width, overflow="ellipsis", pad=True)
        line.append(f" {duration:>{time_width}}", style="cyan")
        if bar_width > 0:
            start = min(max(span.start - begin, 0), whole)
            took = min(max((span.end or now) - begin - start, 0), whole - start)
            left = min(bar_width - 1, start * bar_width // whole)
            length = min(bar_width - left, max(1, round(took * bar_width / whole)))
            style = "red" if span.failed else "green" if span.end and span.status != "error" else "yellow"
            line.append("  " + " " * left).append(("#" if plain else "▇") * length, style=style)
        lines.append(line)
    return lines


def on_console(console: Console, lines: Sequence[Text], below: str) -> str:
    """The text that a console is to be given: lines of its width at most, and one below that is whole, to be copied from.

    What the console can't encode is replaced, which rich wouldn't do.
    """
    with console.capture() as drawn:
        console.print(Text("\n").join(lines), no_wrap=True, overflow="ellipsis", crop=True)
        console.print(Text(escaped(below), style="dim"), soft_wrap=True)
    return drawn.get().encode(console.encoding, "replace").decode(console.encoding)


def seconds(nanoseconds: int, plain: bool = False) -> str:
    """A duration as one reads it.

    >>> seconds(850_000), seconds(12_400_000), seconds(999_960_000), seconds(242_000_000_000)
    ('850 µs', '12.4 ms', '1.00 s', '4 min 2 s')
    """
    if nanoseconds < 999_500:
        return f"{nanoseconds / 1e3:.0f} {'us' if plain else 'µs'}"
    if nanoseconds < 999_950_000:
        return f"{nanoseconds / 1e6:.1f} ms"
    if nanoseconds < 60_000_000_000:
        return f"{nanoseconds / 1e9:.2f} s"
    return f"{nanoseconds // 60_000_000_000} min {nanoseconds // 1_000_000_000 % 60} s"
