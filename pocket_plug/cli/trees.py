"""A trace on the terminal: drawn once, or again and again while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pocket_plug.primitives.terminal import escaped

from .output import echo, echo_drawn, print_table
from .trace_texts import FIGURES, figures_row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pocket_plug.traces.recorded import RecordedSpan, Trace

WATCH_SECONDS = 0.2
"""Between two looks at a run that is watched."""


def print_tree(found: Trace, now: int, alive: bool, *, whole: bool = False) -> None:
    """A trace on stdout, what hasn't ended drawn until `now`; `alive`: it goes on. `whole`: nothing is summed up."""
    _print(found, alive, lambda console: _tree(found, console, now, alive, whole=whole))


def print_errors(found: Trace, now: int, alive: bool) -> None:
    """What failed in a trace, and the way down to it; of errors that are alike the first, and how many they are."""
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
    """The spans to show, and what to say below which."""
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
    """A line for all spans of a name, those first that took longest without what is below them."""
    from pocket_plug.traces.by_name import stats_by_name
    from pocket_plug.traces.figures import seconds

    rows = [(each.name, *figures_row(each), seconds(each.own)) for each in stats_by_name(found.spans)]
    print_table(("span", *FIGURES, "self"), rows)
    echo(_caption(found, alive))


def _caption(found: Trace, alive: bool) -> str:
    numbers = f"{plural(len(found.spans), 'span')}, {plural(found.errors, 'error')}, {plural(found.retries, 'retry')}"
    run = f"run {found.run_id}: " if found.run_id is not None else ""
    outcome = f"{found.outcome or ('running' if alive else 'not ended')}, " if found.runs else ""
    return f"{run}{outcome}{local_time(found.start)}, {numbers}, trace {found.id}"


# ---------------------------------------------------------------- show --watch
def follow(path: Path, wanted: str | None, sleep: Callable[[float], None] = time.sleep) -> int:
    """Draw a run while it goes on: again and again on a terminal, else a line for what begins and for what ends."""
    from pocket_plug.traces.watch import Watch

    watch = Watch(path, wanted)
    shown = _Redrawn() if sys.stdout.isatty() else _Lines()
    echo(f"waiting for {'a run' if wanted is None else f'run {wanted!r}'} in {path}; Ctrl-C ends it", err=True)
    try:
        with shown:
            while True:
                watch.look()
                if watch.trace is not None:
                    shown.show(watch.trace, alive=not watch.lost)
                if watch.ended or watch.lost:
                    break
                sleep(WATCH_SECONDS)
    except KeyboardInterrupt:  # how one stops to watch
        return 0
    if watch.lost:
        echo("its process shows no sign of life any more", err=True)
        return 1
    return 0


class _Redrawn:
    """The tree in its place on a terminal."""

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
        if len(lines) > room:  # what happens now is at the end
            lines = [lines[0], Text("…", style="dim"), *lines[2 - room :]]
        self._live.update(Text("\n", no_wrap=True, overflow="ellipsis").join(lines), refresh=True)


class _Lines:
    """A line for each run and node that begins, and for each that ends."""

    def __init__(self) -> None:
        self._said: set[tuple[str, bool]] = set()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, found: Trace, alive: bool) -> None:
        by_id = {span.span_id: span for span in found.spans}
        for span in sorted(found.spans, key=lambda span: span.end or span.start):
            state = span.span_id, bool(span.end)
            if span.scope == "pocket_plug.graph" and state not in self._said:
                self._said.add(state)
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
    """A time since the epoch as the clock on the wall has it."""
    return datetime.fromtimestamp(nanoseconds / 1e9).astimezone().isoformat(" ", "seconds")[:19]


def plural(number: int, word: str) -> str:
    """So many of it.

    >>> plural(1, "retry"), plural(1200, "retry"), plural(0, "span")
    ('1 retry', '1,200 retries', '0 spans')
    """
    many = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{number:,} {word if number == 1 else many}"
