"""A trace file has a maximum size and age, and lines that others append while it is shortened aren't lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pocket_plug.errors import ConfigError
from pocket_plug.telemetry import TraceLimits
from pocket_plug.telemetry.local import LOOK, FileExporter
from pocket_plug.traces.recorded import TraceFile, read_traces
from pocket_plug.traces.retention import appending, cut, without

DAY = 86_400


def spans(*names: str, end: float | None = None) -> list[ReadableSpan]:
    """Each in a trace of its own, which ended so many seconds after the epoch, or now."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter := InMemorySpanExporter()))
    for name in names:
        provider.get_tracer("t").start_span(name, start_time=1).end(None if end is None else int(end * 1e9))
    return [*exporter.get_finished_spans()]


def names(path: Path) -> list[str]:
    """In the file's order."""
    return [span.name for span in TraceFile(path).spans()]


def test_a_file_that_is_too_large_loses_its_oldest_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A quarter more than necessary, so that it isn't done for each batch; a warning says what was removed."""
    path = tmp_path / "t.jsonl"
    FileExporter(path).export(spans("s0"))
    line = path.stat().st_size
    exporter = FileExporter(path, TraceLimits(size=8 * line + 10, age=None))
    for number in range(1, 8):
        exporter.export(spans(f"s{number}"))
    assert len(names(path)) == 8
    assert caplog.text == ""
    exporter.export(spans("s8"))
    assert names(path) == [f"s{number}" for number in range(3, 9)]
    assert f"kB of {path} were removed; it keeps" in caplog.text
    assert os.listdir(tmp_path) == ["t.jsonl"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_spans_that_are_too_old_are_removed(tmp_path: Path) -> None:
    """Checked with the first batch of a process, and each hour."""
    path, now = tmp_path / "t.jsonl", 100.0 * DAY
    old, new = FileExporter(path, TraceLimits(None, None)), FileExporter(path, TraceLimits(age="30d"), lambda: now)
    old.export(spans("old", end=60 * DAY))
    old.export(spans("young", "old too", end=80 * DAY))
    new.export(spans("new", end=100 * DAY))
    assert names(path) == ["young", "old too", "new"]
    now += 15 * DAY
    new.export(spans("newer", end=115 * DAY))
    assert names(path) == ["new", "newer"]
    old.export(spans("late", end=1))
    now += LOOK / 2
    new.export(spans("soon", end=115 * DAY))
    assert names(path) == ["new", "newer", "late", "soon"]


def test_without_limits_everything_is_kept(tmp_path: Path) -> None:
    """None means no limit."""
    path = tmp_path / "t.jsonl"
    FileExporter(path, TraceLimits(None, None)).export(spans("old", end=1))
    assert cut(path, TraceLimits(None, None), 1e9) == 0
    assert names(path) == ["old"]


def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid value is reported with the name of the variable."""
    monkeypatch.setenv("POCKET_PLUG_TRACES_SIZE", "5000")
    monkeypatch.setenv("POCKET_PLUG_TRACES_AGE", "7d")
    assert TraceLimits.from_environment() == TraceLimits(5000, "7d")
    monkeypatch.setenv("POCKET_PLUG_TRACES_SIZE", "none")
    monkeypatch.setenv("POCKET_PLUG_TRACES_AGE", "none")
    assert TraceLimits.from_environment() == TraceLimits(None, None)
    monkeypatch.setenv("POCKET_PLUG_TRACES_SIZE", "100 MB")
    with pytest.raises(ConfigError, match="POCKET_PLUG_TRACES_SIZE is '100 MB', which is not a number of bytes"):
        TraceLimits.from_environment()
    for wrong in ({"size": 0}, {"size": True}, {"size": "5"}, {"age": "soon"}):
        with pytest.raises(ConfigError, match="a trace file's"):
            TraceLimits(**wrong)  # type: ignore[arg-type]


def test_traces_are_removed_and_the_others_stay(tmp_path: Path) -> None:
    """From lines that they share with others, too; unreadable lines are kept."""
    path = tmp_path / "t.jsonl"
    both = spans("a", "b")
    FileExporter(path).export(both)
    FileExporter(path).export(both[:1])
    with path.open("a") as file:
        file.write("noise\n")
    FileExporter(path).export(spans("c"))
    (wanted,) = {trace.id for trace in read_traces(path) if trace.spans[0].name == "a"}
    assert without(path, {wanted}) == 2
    assert names(path) == ["b", "c"]
    assert "noise\n" in path.read_text()
    assert os.listdir(tmp_path) == ["t.jsonl"]


def test_a_file_that_another_process_has_locked_is_not_shortened(tmp_path: Path) -> None:
    """It is left for the next time, or reported."""
    path = tmp_path / "t.jsonl"
    FileExporter(path).export(spans("a"))
    with appending(path):
        assert cut(path, TraceLimits(1, None), 0) == 0
        with pytest.raises(BlockingIOError):
            without(path, {"0" * 32})
    assert cut(path, TraceLimits(1, None), 0) > 0
    assert names(path) == []


WRITER = """
import os, sys
from pathlib import Path
from pocket_plug.traces.retention import TraceLimits, appending, cut
path, me = Path(sys.argv[1]), sys.argv[2]
for number in range(400):
    with appending(path) as file:
        os.write(file, f"{me} {number} {'x' * 50}\\n".encode())
        large = os.fstat(file).st_size > 5000
    if large:
        cut(path, TraceLimits(5000, None), 0)
"""


@pytest.mark.crash
def test_lines_that_are_appended_meanwhile_are_not_lost(tmp_path: Path) -> None:
    """Three processes append and shorten: what is left is the end of each one's lines, complete and in order."""
    path = tmp_path / "t.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(me)]) for me in range(3)]
    assert [each.wait(60) for each in writers] == [0, 0, 0]
    assert path.stat().st_size <= 5000 + 3 * 60
    left: dict[str, list[int]] = {}
    for line in path.read_text().splitlines():
        me, number, rest = line.split(" ")
        assert rest == "x" * 50
        left.setdefault(me, []).append(int(number))
    for kept in left.values():
        assert kept == [*range(kept[0], 400)]
    assert os.listdir(tmp_path) == ["t.jsonl"]
