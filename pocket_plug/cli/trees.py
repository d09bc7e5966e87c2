"""A trace on the terminal: drawn once, or again and again while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pocket_plug.primitives.terminal import escaped

from .output import echo, echo_drawn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from pocket_plug.telemetry.recorded import RecordedSpan, Trace

WATCH_SECONDS = 0.2
"""Between two looks at a run that is watched."""


def print_tree(found: Trace, now: int, alive: bool) -> None:
    """A trace on stdout, what hasn't ended drawn until `now`; `alive`: it goes on."""
    from rich.console import Console

    from pocket_plug.telemetry.drawing import on_console

    console = Console(highlight=False)
    drawn = on_console(console, _tree(found, console, now, alive), _caption(found, alive))
    echo_drawn(drawn)


def _tree(found: Trace, console: Console, now: int, alive: bool) -> list[Text]:
    from pocket_plug.telemetry.drawing import draw

    return draw(found.spans, width=console.width, plain=console.options.ascii_only, now=now, alive=alive)


def _caption(found: Trace, alive: bool) -> str:
    numbers = f"{plural(len(found.spans), 'span')}, {plural(found.errors, 'error')}, {plural(found.retries, 'retry')}"
    run = f"run {found.run_id}: " if found.run_id is not None else ""
    outcome = f"{found.outcome or ('running' if alive else 'not ended')}, " if found.runs else ""
    return f"{run}{outcome}{local_time(found.start)}, {numbers}, trace {found.id}"


# ---------------------------------------------------------------- show --watch
def follow(path: Path, wanted: str | None, sleep: Callable[[float], None] = time.sleep) -> int:
    """Draw a run while it goes on: again and again on a terminal, else a line for what begins and for what ends."""
    from pocket_plug.telemetry.watch import Watch

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
        for span in sorted(found.spans, key=lambda span: span.end or span.start):
            state = span.span_id, bool(span.end)
            if span.scope == "pocket_plug.graph" and state not in self._said:
                self._said.add(state)
                echo(_line(span))
        sys.stdout.flush()


def _line(span: RecordedSpan) -> str:
    from pocket_plug.telemetry.drawing import seconds

    moment = datetime.fromtimestamp((span.end or span.start) / 1e9).astimezone().isoformat(" ", "milliseconds")[11:23]
    if not span.end:
        return f"{moment}  {escaped(span.name)} began"
    error = f"  ✗ {escaped(str(span.attributes.get('error.type', 'error')))}" if span.status == "error" else ""
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
