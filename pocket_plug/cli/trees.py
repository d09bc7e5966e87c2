"""Draws a trace in the terminal: once, or again and again while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pocket_plug.primitives.terminal import escaped

from .output import echo, echo_drawn, plural, print_table
from .trace_texts import figures_head, figures_row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pocket_plug.traces.recorded import RecordedSpan, Trace

WATCH_SECONDS = 0.2
"""Seconds between two reads of a watched run."""


def print_tree(found: Trace, now: int, alive: bool, *, whole: bool = False) -> None:
    """Draw a trace on stdout. Open spans are drawn up to `now`; `alive`: they are running. `whole`: each span has a line."""
    _print(found, alive, lambda console: _tree(found, console, now, alive, whole=whole))


def print_errors(found: Trace, now: int, alive: bool) -> None:
    """Draw the failed spans of a trace, and those above them; of similar errors only the first, with their number."""
    shown, notes = _errors(found)
    failed = replace(found, spans=shown)
    _print(found, alive, lambda console: _tree(failed, console, now, alive, whole=True, notes=notes) if shown else [])


def _print(found: Trace, alive: bool, drawn: Callable[[Console], list[Text]]) -> None:
    from rich.console import Console

    from pocket_plug.traces.drawing import on_console

    console = Console(highlight=False)
    echo_drawn(on_console(console, drawn(console), _caption(found, alive)))


def _tree(
    found: Trace,
    console: Console,
    now: int,
    alive: bool,
    *,
    whole: bool = False,
    notes: Mapping[str, str] | None = None,
) -> list[Text]:
    from pocket_plug.traces.drawing import draw

    plain = console.options.ascii_only
    return draw(found.spans, width=console.width, plain=plain, now=now, alive=alive, whole=whole, notes=notes)


def _errors(found: Trace) -> tuple[tuple[RecordedSpan, ...], dict[str, str]]:
    """The spans to show, and notes to print below them, by span id."""
    from pocket_plug.traces.drawing import TIMES
    from pocket_plug.traces.failing import failures, grouped, way_to

    by_id = {span.span_id: span for span in found.spans}
    shown: set[str] = set()
    notes: dict[str, str] = {}
    for group in grouped(failures(found.spans)):
        first = group[0]
        way = way_to(first.span, by_id)
        shown.update(span.span_id for span in way)
        if len(group) > 1:
            indices = [index for span in way if (index := span.attributes.get("pocket_plug.fan_out.index")) is not None]
            where = f", first in item [{indices[-1]}]" if indices else ", this is the first"
            at = f" at {first.place}" if first.place else ""
            notes[first.span.span_id] = f"{len(group):,} {TIMES} {first.kind}{at}{where}"
    for span in found.spans:
        if span.suppressed_errors:
            shown.update(above.span_id for above in way_to(span, by_id))
            notes[span.span_id] = f"{plural(span.suppressed_errors, 'more item')} failed and left no span"
    return tuple(span for span in found.spans if span.span_id in shown), notes


def print_stats(found: Trace, alive: bool) -> None:
    """Print a line for each span name, the largest own time first."""
    from pocket_plug.traces.by_name import stats_by_name
    from pocket_plug.traces.figures import seconds

    rows = [(each.name, *figures_row(each, each.errors), seconds(each.own)) for each in stats_by_name(found.spans)]
    print_table(("span", *figures_head("errors"), "self"), rows)
    echo(_caption(found, alive))


def _caption(found: Trace, alive: bool) -> str:
    numbers = f"{plural(len(found.spans), 'span')}, {plural(found.errors, 'error')}, {plural(found.retries, 'retry')}"
    run = f"run {found.run_id}: " if found.run_id is not None else ""
    outcome = f"{found.outcome or ('running' if alive else 'unfinished')}, " if found.runs else ""
    return f"{run}{outcome}{local_time(found.start)}, {numbers}, trace {found.id}"


# ---------------------------------------------------------------- show --watch
def follow(path: Path, wanted: str | None, sleep: Callable[[float], None] = time.sleep) -> int:
    """Draw a run while it runs: on a terminal again and again, elsewhere a line for each span that begins or ends."""
    from pocket_plug.traces.watch import Watch

    watch = Watch(path, wanted)
    shown = _Redrawn() if sys.stdout.isatty() else _Lines()
    echo(f"waiting for {'a run' if wanted is None else f'run {wanted!r}'} in {path}; Ctrl-C stops", err=True)
    try:
        with shown:
            while True:
                watch.look()
                if watch.trace is not None:
                    shown.show(watch.trace, alive=not watch.lost)
                if watch.ended or watch.lost:
                    break
                sleep(WATCH_SECONDS)
    except KeyboardInterrupt:  # the way to stop watching
        return 0
    if watch.lost:
        echo("the run has not ended, but its process has stopped writing; it may have been killed", err=True)
        return 1
    return 0


class _Redrawn:
    """Draws the tree at the same place of the terminal again and again."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, found: Trace, alive: bool) -> None:
        from rich.text import Text

        lines = [
            *_tree(found, self._console, time.time_ns(), alive),
            Text(escaped(_caption(found, alive)), style="dim"),
        ]
        room = max(self._console.height - 2, 4)
        if len(lines) > room:  # the newest spans are at the end
            lines = [lines[0], Text("…", style="dim"), *lines[2 - room :]]
        self._live.update(Text("\n", no_wrap=True, overflow="ellipsis").join(lines), refresh=True)


class _Lines:
    """Prints a line for each run and node that begins, and for each that ends."""

    def __init__(self) -> None:
        self._printed: set[tuple[str, bool]] = set()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, found: Trace, alive: bool) -> None:
        by_id = {span.span_id: span for span in found.spans}
        for span in sorted(found.spans, key=lambda span: span.end or span.start):
            state = span.span_id, bool(span.end)
            if span.scope == "pocket_plug.graph" and state not in self._printed:
                self._printed.add(state)
                echo(_line(span, by_id))
        sys.stdout.flush()


def _line(span: RecordedSpan, by_id: Mapping[str, RecordedSpan]) -> str:
    from pocket_plug.traces.failing import failure_of
    from pocket_plug.traces.figures import seconds

    moment = datetime.fromtimestamp((span.end or span.start) / 1e9).astimezone().isoformat(" ", "milliseconds")[11:23]
    if not span.end:
        return f"{moment}  {escaped(span.name)} began"
    failure = failure_of(span, by_id) if span.status == "error" else None
    error = "" if failure is None else f"  ✗ {escaped(f'{failure.kind} {failure.place}'.rstrip())}"
    return f"{moment}  {escaped(span.name)} ended after {seconds(span.duration)}{error}"


def local_time(nanoseconds: int) -> str:
    """A time in nanoseconds since the epoch as local time."""
    return datetime.fromtimestamp(nanoseconds / 1e9).astimezone().isoformat(" ", "seconds")[:19]
