"""Draws a trace as text: a line for each span, with its duration, and a bar for its place in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from pocket_plug.primitives.terminal import escaped

from .failing import Failure
from .figures import quantile, seconds
from .folding import Folding
from .recorded import RecordedSpan

MIN_LABEL, MIN_BAR = 20, 14
"""Columns: bars have at least MIN_BAR, and labels get the rest, but never less than MIN_LABEL."""

TIMES = "\N{MULTIPLICATION SIGN}"

KINDS = 3
"""How many types of errors are named in a line that summarizes spans."""


@dataclass
class _Row:
    """The line of a span, and the lead of the lines below it; without a `span`, a line that summarizes others."""

    label: Text
    below: str = ""
    span: RecordedSpan | None = None
    took: str = ""
    failure: Failure | None = None
    note: str = ""


def draw(
    spans: Sequence[RecordedSpan],
    *,
    root: RecordedSpan | None = None,
    width: int = 80,
    plain: bool = False,
    now: int = 0,
    alive: bool = True,
    whole: bool = False,
    notes: Mapping[str, str] | None = None,
) -> list[Text]:
    """The lines of a tree, at most `width` columns wide; `plain` uses ASCII only.

    Spans without a parent among the `spans` are put below `root`, or at the top without a root. An open span is drawn up to `now`
    (nanoseconds since the epoch), and labelled as running if `alive`, or else as unfinished. `whole` shows each span and whole
    messages. `notes` are lines to show below spans, by span id.
    """
    tree = Folding(spans, root, whole=whole)
    rows: list[_Row] = []
    branch, last, pipe, blank = ("|- ", "`- ", "|  ", "   ") if plain else ("├─ ", "└─ ", "│  ", "   ")
    waiting: list[tuple[RecordedSpan | list[RecordedSpan], str, str]] = [(span, "", "") for span in reversed(tree.tops)]
    while waiting:  # not by recursion: a trace may be deeper than Python's stack
        found, lead, below = waiting.pop()
        label = Text().append(lead, style="dim")
        if isinstance(found, list):
            rows.append(_Row(label.append(_summary(tree, found, plain, now))))
            continue
        nested = tree.nested(found)
        shown = tree.below(found)
        if nested is not None:
            shown = tree.below(nested)
        rows.append(
            _Row(
                label.append(_label(found, nested, plain, alive)),
                below + (pipe if shown else blank),
                found,
                seconds(_took(found, now), plain),
                tree.failure(found),
                (notes or {}).get(found.span_id, "").replace(TIMES, "x" if plain else TIMES),
            )
        )
        for position, item in reversed([*enumerate(shown)]):
            end = position == len(shown) - 1
            waiting.append((item, below + (last if end else branch), below + (blank if end else pipe)))
    return _layout(rows, tree.tops, width, plain, now, whole)


def _took(span: RecordedSpan, now: int) -> int:
    return max((span.end or now) - span.start, 0)


def _summary(tree: Folding, spans: Sequence[RecordedSpan], plain: bool, now: int) -> Text:
    """The line that summarizes spans: their number, errors and durations."""
    took = sorted(_took(span, now) for span in spans)
    errors = tree.errors_in(spans).most_common()
    text = Text(f"{'...' if plain else '…'} {len(spans):,} more: {escaped(spans[0].name)}", style="dim")
    if errors:
        kinds = [f"{number:,} {'x' if plain else TIMES} {escaped(kind)}" for kind, number in errors[:KINDS]]
        others = sum(number for _, number in errors[KINDS:])
        said = ", ".join([*kinds, *([f"{others:,} of other types"] if others else [])])
        text = Text().append(text).append(", ", style="dim").append(said, style="red")
    figures = (f"p95 {seconds(quantile(took, 0.95), plain)}", f"max {seconds(took[-1], plain)}")
    return Text().append(text).append(f", {', '.join(figures)}, {seconds(sum(took), plain)} in all", style="dim")


def _label(span: RecordedSpan, nested: RecordedSpan | None, plain: bool, alive: bool) -> Text:
    attributes = span.attributes
    label = Text(escaped(span.name))
    index = attributes.get("pocket_plug.fan_out.index")
    if isinstance(index, int):
        label.append(f" [{index}]")
    if nested is not None:
        graph = escaped(str(nested.attributes.get("pocket_plug.graph.name", "")))
        label.append(" (graph)" if span.name == f"node {graph}" else f" (graph {graph})", style="dim")
    visit = attributes.get("pocket_plug.node.visit")
    if isinstance(visit, int) and visit > 1 and index is None:
        label.append(f" (visit {visit})", style="dim")
    attempt = attributes.get("pocket_plug.attempt", 1)
    if attempt != 1:
        label.append(f" #{attempt}", style="dim")
    kind = escaped((span.error or "error").rpartition(".")[2])
    if not span.end:
        label.append(f" {'...' if plain else '…'} {'running' if alive else 'unfinished'}", style="yellow")
    elif span.status == "error":
        label.append(f" {'x' if plain else '✗'} {kind}", style="red" if span.failed else "yellow")
    elif span.error is not None:
        label.append(f" {kind}", style="yellow")
    items, suppressed = (attributes.get(f"pocket_plug.fan_out.{name}") for name in ("items", "suppressed"))
    if isinstance(items, int) and isinstance(suppressed, int) and suppressed:
        label.append(f" ({items - suppressed:,} of {items:,} items shown)", style="dim")
    return label


def _layout(
    rows: Sequence[_Row], tops: Sequence[RecordedSpan], width: int, plain: bool, now: int, whole: bool
) -> list[Text]:
    """Labels, durations and bars in three columns. A bar's place and length are relative to the time of the top spans."""
    time_width = max(len(row.took) for row in rows)
    room = max(width - time_width - MIN_BAR, MIN_LABEL)
    below = [_said_below(row, room, width, whole) for row in rows]
    label_width = min(max(row.label.cell_len for row in rows if row.span is not None), room)
    begin = min(span.start for span in tops)
    until = max(max(span.end or now for span in tops), begin + 1)
    lines: list[Text] = []
    for row, more in zip(rows, below, strict=True):
        line = row.label.copy()
        if row.span is not None:
            line.truncate(label_width, overflow="ellipsis", pad=True)
            line.append(f" {row.took:>{time_width}}", style="cyan")
            line.append(_bar(row.span, begin, until, width - label_width - time_width - 3, plain, now))
        lines += [line, *more]
    return lines


def _bar(span: RecordedSpan, begin: int, until: int, width: int, plain: bool, now: int) -> Text:
    if width <= 0:
        return Text()
    whole = until - begin
    start = min(max(span.start - begin, 0), whole)
    took = min(max((span.end or now) - begin - start, 0), whole - start)
    left = min(width - 1, start * width // whole)
    length = min(width - left, max(1, round(took * width / whole)))
    style = "red" if span.failed else "green" if span.end and span.status != "error" else "yellow"
    return Text("  " + " " * left).append(("#" if plain else "▇") * length, style=style)


def _said_below(row: _Row, room: int, width: int, whole: bool) -> list[Text]:
    """The lines below a span: its note and its error. The error's place goes on the span's line if there is room."""
    said = [escaped(row.note)] if row.note else []
    failure = row.failure
    if failure is not None:
        place, lines = escaped(failure.place), [escaped(line) for line in failure.message.splitlines() if line.strip()]
        if place and row.label.cell_len + len(place) < room:
            row.label.append(f" {place}")
        elif place:
            lines[:1] = [f"{place}: {lines[0]}" if lines else place]
        said += [*lines, *map(escaped, failure.causes)] if whole else lines[:1]
    if whole:
        said = [part for line in said for part in wrap(line, max(width - len(row.below), MIN_LABEL))]
    below = [Text().append(row.below, style="dim").append(line) for line in said]
    for line in below:
        line.truncate(width, overflow="ellipsis")
    return below


def on_console(console: Console, lines: Sequence[Text], below: str) -> str:
    """The text to write to a console: lines cut to its width, and `below` uncut, so that it can be copied.

    Characters that the console can't encode are replaced; rich would raise.
    """
    with console.capture() as drawn:
        if lines:
            console.print(Text("\n").join(lines), no_wrap=True, overflow="ellipsis", crop=True)
        console.print(Text(escaped(below), style="dim"), soft_wrap=True)
    return drawn.get().encode(console.encoding, "replace").decode(console.encoding)
