"""Draws traces in a notebook when they end: one output for each cell, however many runs the cell makes.

Nothing here imports IPython.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Protocol

from rich.console import Console
from rich.style import Style
from rich.text import Text

from pocket_plug.primitives.forking import new_lock
from pocket_plug.primitives.terminal import escaped
from pocket_plug.traces.recorded import RecordedSpan

from .tree import TreeProcessor

SHOWN = 3
"""How many trees of a cell are shown: the last ones. Earlier ones are counted."""

INTERVAL = 0.5
"""Minimal seconds between two updates of an output. Later trees are shown by the next update, or when the cell ends."""

WIDTH = 110

_COLOURS = {"red": "#dc3f43", "yellow": "#a56f00", "green": "#1f8a3c", "cyan": "#0b83a2"}
"""Contrast at least 4:1, both on white and on the background of a dark theme: the theme is unknown here."""


class _Events(Protocol):
    def register(self, event: str, function: Callable[[object], None]) -> None: ...
    def unregister(self, event: str, function: Callable[[object], None]) -> None: ...


class _Publisher(Protocol):
    def publish(
        self, data: Mapping[str, str], *, metadata: Mapping[str, str], transient: Mapping[str, str], update: bool
    ) -> None: ...


class Shell(Protocol):
    """The used part of IPython's shell."""

    execution_count: int
    events: _Events
    display_pub: _Publisher


def notebook_shell() -> Shell | None:
    """The notebook's shell, if this process is the kernel of a notebook; None otherwise, also for IPython in a terminal."""
    ipython = sys.modules.get("IPython")
    shell: Shell | None = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


class NotebookTree(TreeProcessor):
    """Draws each trace in the output of the cell during which its root span ends."""

    def __init__(
        self, shell: Shell, footer: Callable[[RecordedSpan], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(None, footer)
        self.shows_messages = False  # a notebook is kept and shared with its outputs
        self._shell, self._clock = shell, clock
        self._cell_lock = new_lock()
        self._begin_cell()
        shell.events.register("post_run_cell", self._end_cell)

    def _begin_cell(self) -> None:
        self._cell = self._shell.execution_count
        self._drawn: deque[Sequence[Text]] = deque(maxlen=SHOWN)
        self._number, self._below = 0, ""
        self._id: str | None = None
        self._is_waiting, self._next_at = False, 0.0

    def _place(self) -> tuple[int, bool]:
        return WIDTH, False

    def _show(self, lines: Sequence[Text], below: str) -> None:
        if self._cell != self._shell.execution_count:
            self._end_cell()
        with self._cell_lock:
            if self._cell != self._shell.execution_count:
                self._begin_cell()
            self._drawn.append(lines)
            self._number += 1
            self._below = below
            self._is_waiting = True
            if self._clock() < self._next_at:
                return
        self._publish()

    def _end_cell(self, _result: object = None) -> None:
        """Show the trees since the last update."""
        if self._is_waiting:
            self._publish()

    def _publish(self) -> None:
        with self._cell_lock:
            lines = [line for drawn in self._drawn for line in drawn]
            before = self._number - len(self._drawn)
            below = self._below
            known = self._id
            self._id = known or f"pocket_plug-{id(self)}-{self._cell}"
            shown = self._id
            self._is_waiting, self._next_at = False, self._clock() + INTERVAL
        if before:
            lines.insert(0, Text(f"… {before:,} earlier traces of this cell", style="dim"))
        both = {
            "text/plain": "\n".join([*(line.plain for line in lines), escaped(below)]),
            "text/html": _html(lines, below),
        }
        place = {"display_id": shown}
        self._shell.display_pub.publish(both, metadata={}, transient=place, update=known is not None)

    def shutdown(self) -> None:
        """Show the remaining trees, and stop watching the notebook."""
        self._end_cell()
        self._shell.events.unregister("post_run_cell", self._end_cell)


def _html(lines: Sequence[Text], below: str) -> str:
    """The lines as HTML. Their text is already escaped for the terminal; here it is escaped for HTML."""
    console = Console()
    rows = ["".join(_piece(piece.text, piece.style) for piece in line.render(console)) for line in lines]
    rows.append(f'<span style="opacity:.7">{escape(escaped(below))}</span>')
    text = "\n".join(rows)
    return f'<pre style="line-height:1.25;overflow-x:auto">{text}</pre>'


def _piece(text: str, style: Style | None) -> str:
    look = ""
    if style is not None and style.color is not None:
        look = f"color:{_COLOURS[style.color.name]}"
    elif style is not None and style.dim:
        look = "opacity:.7"
    return f'<span style="{look}">{escape(text)}</span>' if look else escape(text)
