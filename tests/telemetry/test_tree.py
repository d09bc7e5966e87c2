"""The tree on the terminal: what a person sees of a trace within a second."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, TextIO

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, Tracer, set_span_in_context

from pocket_plug.telemetry.tree import TreeProcessor

MS = 1_000_000


class Terminal:
    """A tracer whose traces are drawn to a string, and spans with times of the test's choice."""

    def __init__(
        self, file: TextIO | None = None, footer: Callable[[Any], str] = lambda root: f"trace of {root.name}"
    ) -> None:
        self.file: Any = file or io.StringIO()
        self.processor = TreeProcessor(self.file, footer)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(self.processor)
        self.provider = provider
        self.tracer: Tracer = provider.get_tracer("pocket_plug.graph")

    def span(self, name: str, begin: int, parent: Any = None) -> Any:
        context = set_span_in_context(parent) if parent is not None else None
        return self.tracer.start_span(name, context, start_time=begin * MS)

    def text(self) -> str:
        return str(self.file.getvalue())


def test_a_tree_shows_names_durations_bars_errors_and_where_the_file_lies() -> None:
    """Drawn when the root ends, plain when it is no terminal."""
    terminal = Terminal()
    root = terminal.span("run shop", 0)
    node = terminal.span("node charge", 0, root)
    attempt = terminal.span("exec charge", 20, node)
    attempt.set_status(StatusCode.ERROR, "no")
    attempt.set_attribute("error.type", "builtins.ValueError")
    attempt.end(60 * MS)
    again = terminal.span("exec charge", 60, node)
    again.set_attribute("pocket_plug.attempt", 2)
    again.end(80 * MS)
    node.end(80 * MS)
    ship = terminal.span("node ship", 80, root)
    ship.set_attribute("error.type", "asyncio.exceptions.CancelledError")
    ship.end(100 * MS)
    assert terminal.text() == ""
    root.end(100 * MS)
    lines = terminal.text().splitlines()
    names = [re.split(r" +[\d.]+ ms ", line)[0].rstrip() for line in lines]
    assert names == [
        "run shop",
        "├─ node charge",
        "│  ├─ exec charge ✗ builtins.ValueError",
        "│  └─ exec charge #2",
        "└─ node ship CancelledError",
        "trace of run shop",
    ]
    assert "100.0 ms" in lines[0]
    assert "40.0 ms" in lines[2]
    bars = {line.find("▇") - lines[0].find("▇"): line.count("▇") for line in lines[:-1]}
    width = lines[0].count("▇")
    assert lines[2].find("▇") - lines[0].find("▇") == width // 5
    assert lines[2].count("▇") == round(width * 0.4)
    assert max(bars) < width
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b" not in terminal.text()


def test_the_line_that_is_to_be_copied_is_whole() -> None:
    """However narrow the terminal is."""
    opening = "open it: pocket-plug trace show 0886bc7741bb00000001 --open --file somewhere/else/traces.jsonl"
    terminal = Terminal(footer=lambda root: opening)
    terminal.span("run shop", 0).end(MS)
    assert terminal.text().splitlines()[1:] == [opening]


def test_many_siblings_of_one_name_are_summed_up() -> None:
    """Up to eight are shown; of more the first and three that failed, then one line with number, time and errors."""
    terminal = Terminal()
    root = terminal.span("run g", 0)
    for number in range(220):
        span = terminal.span("node measure", number, root)
        if number in (1, 100, 101, 102, 103):
            span.set_status(StatusCode.ERROR)
        span.end((number + 10) * MS)
    for number in range(8):
        terminal.span("node report", 300 + number, root).end(310 * MS)
    root.set_attributes({"pocket_plug.fan_out.items": 1245, "pocket_plug.fan_out.suppressed": 17})
    root.end(400 * MS)
    lines = terminal.text().splitlines()
    assert ["✗" in line for line in lines[1:5]] == [False, True, True, True]
    assert lines[5] == "├─ … 216 more: node measure, 2.16 s in all, 2 errors"
    assert sum("node report" in line for line in lines) == 8
    assert lines[0].startswith("run g (1,228 of 1,245 items shown)")


def test_what_ends_after_its_root_or_never_is_not_kept() -> None:
    """A background task that outlives the run leaks nothing and draws nothing."""
    terminal = Terminal()
    root = terminal.span("run g", 0)
    late = terminal.span("late", 1, root)
    never = terminal.span("never", 1, root)
    root.end(5 * MS)
    drawn = terminal.text()
    late.end(9 * MS)
    assert terminal.text() == drawn
    assert terminal.processor.held == 0
    assert never.is_recording()


def test_a_trace_continued_from_elsewhere_has_its_root_here() -> None:
    """With a remote parent, the local top is the root."""
    terminal = Terminal()
    remote = NonRecordingSpan(SpanContext(3, 4, is_remote=True, trace_flags=TraceFlags(1)))
    terminal.span("run g", 0, remote).end(1 * MS)
    assert terminal.text().startswith("run g")


def test_a_store_operation_by_itself_draws_nothing() -> None:
    """Store use outside of runs would flood the terminal."""
    terminal = Terminal()
    terminal.provider.get_tracer("pocket_plug.store").start_span("get").end()
    assert terminal.text() == ""


def test_a_huge_trace_is_drawn_from_a_bounded_number_of_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond is counted, not held."""
    monkeypatch.setattr("pocket_plug.telemetry.tree.MAX_HELD", 10)
    terminal = Terminal()
    root = terminal.span("run g", 0)
    for _ in range(25):
        terminal.span("node a", 0, root).end(1 * MS)
    assert terminal.processor.held == 10
    root.end(2 * MS)
    assert "… 15 more spans" in terminal.text()


def test_a_terminal_without_unicode_gets_ascii() -> None:
    """No character that it can't show."""
    raw = io.BytesIO()
    terminal = Terminal(io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True))
    root = terminal.span("run g", 0)
    for _ in range(10):
        terminal.span("node ü", 0, root).end(1 * MS)
    root.end(2 * MS)
    text = raw.getvalue().decode("ascii")
    assert "`- ... 9 more" in text
    assert "#" in text


def test_names_cannot_command_the_terminal() -> None:
    """Control characters in names are escaped."""
    terminal = Terminal()
    terminal.span("run \x1b[2J\nx [bold]y[/bold]", 0).end(1 * MS)
    assert terminal.text().splitlines()[0].startswith(r"run \x1b[2J\nx [bold]y[/bold]")


def test_a_broken_terminal_is_said_once_and_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A closed stderr must not end a run."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError("gone")

    terminal = Terminal(Broken())
    for _ in range(2):
        terminal.span("run g", 0).end(1 * MS)
    assert [record.name for record in caplog.records] == ["pocket_plug"]
    assert "drawing a trace failed: BrokenPipeError" in caplog.text
