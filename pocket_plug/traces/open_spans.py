"""The spans that are open right now, in programs that trace to a file: OTLP knows only those that have ended.

Beside the trace file each process keeps one more, the spans that are open, as OTLP/JSON with an end of 0
(`pocket_plug.telemetry.live` writes it). It is replaced or touched all the while, and gone when nothing is open. What a
killed process leaves says what it was at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .recorded import RecordedSpan, TraceFile

SILENT = 5.0
"""Seconds without a sign of life after which a process counts as gone: it touches its file each second."""


def files_beside(file: Path) -> list[Path]:
    """The files with the open spans of processes, and those that a killed one was just writing (`~`)."""
    return sorted(file.parent.glob(f"{file.name}.open-*"))


@dataclass(frozen=True, slots=True)
class OpenSpan:
    """A span that has begun. `alive`: its process shows signs of life. `seen`: the last one, in nanoseconds."""

    span: RecordedSpan
    alive: bool
    seen: int


def open_spans(file: Path, clock: Callable[[], float] = time.time) -> list[OpenSpan]:
    """The open spans of all processes that trace to a file, and of those that were killed."""
    found: list[OpenSpan] = []
    for path in files_beside(file):
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
    for path in files_beside(file):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= SILENT and traces >= {
                span.trace_id for span in TraceFile(path).spans()
            }:
                path.unlink()
