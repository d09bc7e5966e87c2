"""What goes on right now, for `pocket-plug trace` in another process: OTLP knows only spans that have ended.

Beside the trace file each process keeps one more, the spans that are open, as OTLP/JSON with an end of 0. It is replaced a
few times a second while that changes, touched while it doesn't, and gone when nothing is open. What a killed process
leaves says what it was at.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from pocket_plug.errors import is_fault
from pocket_plug.primitives.failures import say_once
from pocket_plug.primitives.files import make_folder, private
from pocket_plug.primitives.forking import after_fork
from pocket_plug.primitives.locks import Lock

from .local import encode
from .recorded import NO_RUN, RecordedSpan, TraceFile

INTERVAL = 0.2
"""Seconds between two looks at what is open. A run that takes less is never written."""

SILENT = 5.0
"""Seconds without a sign of life after which a process counts as gone: it touches its file each second."""

LEFT = 24 * 3600.0
"""Seconds after which what a killed process left is cleared away by the next one."""

LIMIT = 500
"""So many open spans are written at most, those that began first."""


def _beside(file: Path) -> list[Path]:
    """The files with the open spans of processes, and those that a killed one was just writing (`~`)."""
    return sorted(file.parent.glob(f"{file.name}.open-*"))


# ---------------------------------------------------------------- reading
@dataclass(frozen=True, slots=True)
class OpenSpan:
    """A span that has begun. `alive`: its process shows signs of life. `seen`: the last one, in nanoseconds."""

    span: RecordedSpan
    alive: bool
    seen: int


def open_spans(file: Path, clock: Callable[[], float] = time.time) -> list[OpenSpan]:
    """The open spans of all processes that trace to a file, and of those that were killed."""
    found: list[OpenSpan] = []
    for path in _beside(file):
        if path.name.endswith("~"):
            continue
        try:
            seen = path.stat().st_mtime
            alive = clock() - seen < SILENT
            found += [OpenSpan(span, alive, int(seen * 1e9)) for span in TraceFile(path).spans()]
        except FileNotFoundError:  # all of them have ended meanwhile
            continue
    return found


def remove_left(file: Path, traces: Set[str]) -> None:
    """Remove what killed processes have left, where all of it is of these traces."""
    for path in _beside(file):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= SILENT and traces >= {
                span.trace_id for span in TraceFile(path).spans()
            }:
                path.unlink()


# ---------------------------------------------------------------- writing
class OpenSpans(SpanProcessor):
    """Writes down which spans are open, in a thread of its own that sleeps while there is none.

    `last_run` is the id of the outermost run that began last.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.last_run: str | None = None
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
        """In this process nothing is open, and nothing is written: also after a fork, which leaves the thread behind."""
        self._path: Path | None = None
        self._open: dict[int, Span] = {}
        self._changed = False
        self._touched = 0.0
        self._lock = Lock()
        self._awake, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """The span is open from now on."""
        attributes = span.attributes or {}
        if "pocket_plug.run.id" in attributes and not NO_RUN & attributes.keys():
            self.last_run = str(attributes["pocket_plug.run.id"])
        with self._lock:
            self._open[span.get_span_context().span_id] = span
            self._changed = True
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._work, name="pocket_plug open spans", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # Python 3.12 starts no thread any more while the process ends
                    self._ended.set()
        if not self._awake.is_set():
            self._awake.set()

    def on_end(self, span: ReadableSpan) -> None:
        """The span is no longer open."""
        context = span.get_span_context()
        with self._lock:
            if context is not None and self._open.pop(context.span_id, None) is not None:
                self._changed = True

    def shutdown(self) -> None:
        """Stop, and remove the file."""
        self._ended.set()
        self._awake.set()
        if self._thread is not None:
            self._thread.join()
        self._remove()

    def _work(self) -> None:
        while not self._ended.is_set():
            self._awake.wait()
            if not self._ended.wait(INTERVAL):
                try:
                    self.tell()
                except BaseException as error:  # whatever a full disk or an odd attribute does, the run goes on
                    if not is_fault(error):
                        raise
                    say_once("telling which spans are open", error)

    def tell(self, clock: Callable[[], float] = time.time) -> None:
        """Write what is open now, if that changed, or else show that the process lives."""
        with self._lock:
            changed, self._changed = self._changed, False
            spans = [*self._open.values()]
            if not spans:
                self._awake.clear()
        if not spans:
            self._remove()
        elif changed or self._path is None:
            self._replace(spans[:LIMIT], clock)
        elif clock() - self._touched >= 1:
            try:
                os.utime(self._path)
            except FileNotFoundError:  # somebody cleared the folder
                self._replace(spans[:LIMIT], clock)
            self._touched = clock()

    def _replace(self, spans: list[Span], clock: Callable[[], float]) -> None:
        if self._path is None:
            make_folder(self._file.parent)
            for left in _beside(self._file):
                if clock() - left.stat().st_mtime > LEFT:
                    left.unlink(missing_ok=True)
            self._path = self._file.with_name(f"{self._file.name}.open-{secrets.token_hex(6)}")
        new = self._path.with_name(f"{self._path.name}~")
        with open(new, "w", encoding="utf-8", opener=private) as file:
            file.write(json.dumps(encode(spans)))
        new.replace(self._path)
        self._touched = clock()

    def _remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
