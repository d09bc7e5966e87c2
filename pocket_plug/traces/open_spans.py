"""Reads the open spans of programs that trace to a file: the trace file has only spans that have ended.

Beside the trace file, each process keeps a file with its open spans, as OTLP/JSON with an end of 0; `pocket_plug.telemetry.live`
writes it. The file is replaced or touched at least each second, and removed when no span is open. The file of a killed process
shows what the process was doing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .recorded import RecordedSpan, TraceFile

SILENT = 5.0
"""A process counts as dead when it hasn't touched its file for so many seconds: a live one touches it each second."""


def files_beside(file: Path) -> list[Path]:
    """The files with open spans of processes, and unfinished ones of processes that were killed while writing (`~`)."""
    return sorted(file.parent.glob(f"{file.name}.open-*"))


@dataclass(frozen=True, slots=True)
class OpenSpan:
    """A span that has begun and not ended. `alive`: its process is. `seen`: the process's last sign of life, in nanoseconds."""

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
        except FileNotFoundError:  # all its spans have ended meanwhile
            continue
    return found


def remove_left(file: Path, traces: Set[str]) -> None:
    """Remove files of killed processes, if all spans in them are of these traces."""
    for path in files_beside(file):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= SILENT and traces >= {
                span.trace_id for span in TraceFile(path).spans()
            }:
                path.unlink()
