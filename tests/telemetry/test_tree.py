"""The tree in the terminal: a person understands a trace within a second."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, TextIO

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, Tracer, set_span_in_context

from pocket_plug.telemetry.tree import TreeProcessor
from pocket_plug.traces.drawing import TIMES

MS = 1_000_000


def names(terminal: Terminal) -> list[str]:
    """The lines of a tree without durations and bars."""
    return [re.split(r" +[\d.]+ m?s  ", line)[0].rstrip() for line in terminal.text().splitlines()]


class Terminal:
    """A tracer whose traces are drawn to a string, and spans with chosen times."""

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
    """Drawn when the root ends, plain if it is no terminal."""
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
    assert names(terminal) == [
        "run shop",
        "├─ node charge",
        "│  ├─ exec charge ✗ ValueError",
        "│  │     no",
        "│  └─ exec charge #2",
        "└─ node ship CancelledError",
        "trace of run shop",
    ]
    assert "100.0 ms" in lines[0]
    assert "40.0 ms" in lines[2]
    lines = [line for line in lines if "▇" in line]
    bars = {line.find("▇") - lines[0].find("▇"): line.count("▇") for line in lines}
    width = lines[0].count("▇")
    assert lines[2].find("▇") - lines[0].find("▇") == width // 5
    assert lines[2].count("▇") == round(width * 0.4)
    assert max(bars) < width
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b" not in terminal.text()


def test_the_command_to_copy_is_never_cut() -> None:
    """However narrow the terminal is."""
    opening = "open it: pocket-plug trace show 0886bc7741bb00000001 --open --file somewhere/else/traces.jsonl"
    terminal = Terminal(footer=lambda root: opening)
    terminal.span("run shop", 0).end(MS)
    assert terminal.text().splitlines()[1:] == [opening]


def test_many_siblings_of_one_name_are_summed_up() -> None:
    """Up to eight are shown; of more the first and three that failed, then one line with number, errors and times."""
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
    assert lines[5] == f"├─ … 216 more: node measure, 2 {TIMES} error, p95 10.0 ms, max 10.0 ms, 2.16 s in all"
    assert sum("node report" in line for line in lines) == 8
    assert lines[0].startswith("run g (1,228 of 1,245 items shown)")


def test_spans_that_end_after_their_root_or_never_are_dropped() -> None:
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
    """With a remote parent, the topmost local span is the root."""
    terminal = Terminal()
    remote = NonRecordingSpan(SpanContext(3, 4, is_remote=True, trace_flags=TraceFlags(1)))
    terminal.span("run g", 0, remote).end(1 * MS)
    assert terminal.text().startswith("run g")


REMOTE = NonRecordingSpan(SpanContext(3, 4, is_remote=True, trace_flags=TraceFlags(1)))


@pytest.mark.parametrize("first", [0, 1])
def test_runs_of_one_trace_are_drawn_each_with_its_own_spans(first: int) -> None:
    """For example two of one web request, whichever ends first: also spans whose parent has ended, or whose run has."""
    terminal = Terminal()
    roots = [terminal.span(f"run {number}", 0, REMOTE) for number in range(2)]
    nodes = [terminal.span(f"node {number}", 0, root) for number, root in enumerate(roots)]
    for number, node in enumerate(nodes):
        node.end(1 * MS)
        terminal.span(f"after {number}", 1, node).end(2 * MS)
    late = terminal.span("late", 1, roots[first])
    roots[first].end(3 * MS)
    below = terminal.span("below late", 3, late)
    for span in (below, late, roots[1 - first]):
        span.end(4 * MS)
    assert names(terminal) == [
        line
        for number in (first, 1 - first)
        for line in (f"run {number}", f"└─ node {number}", f"   └─ after {number}", f"trace of run {number}")
    ]
    assert terminal.processor.held == 0
    assert terminal.processor._held == {}


def test_a_root_that_never_ends_keeps_no_other_of_its_trace_from_being_drawn() -> None:
    """Nor does it take the other's spans."""
    terminal = Terminal()
    never = terminal.span("run never", 0, REMOTE)
    for number in range(3):
        root = terminal.span(f"run {number}", 0, REMOTE)
        terminal.span(f"node {number}", 0, root).end(1 * MS)
        root.end(2 * MS)
    assert names(terminal) == [
        line for number in range(3) for line in (f"run {number}", f"└─ node {number}", f"trace of run {number}")
    ]
    assert list(terminal.processor._held[3].known) == [never.get_span_context().span_id]


def test_a_span_with_an_unknown_parent_belongs_to_the_only_run_of_its_trace() -> None:
    """For example below another provider's span; if there are several runs, it is in none of them."""
    terminal = Terminal()
    for number in (1, 2):
        roots = [terminal.span(f"run {each}", 0, REMOTE) for each in range(number)]
        foreign = NonRecordingSpan(SpanContext(3, 5, is_remote=False, trace_flags=TraceFlags(1)))
        terminal.span("run nested", 0, foreign).end(1 * MS)
        for root in roots:
            root.end(2 * MS)
    assert [line.lstrip("└─ ") for line in names(terminal)] == [
        "run 0",
        "run nested",
        "trace of run 0",
        "run 0",
        "trace of run 0",
        "run 1",
        "trace of run 1",
    ]


def test_a_limited_number_of_open_spans_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that never end take limited memory; spans above the limit still belong to their parent's tree, and to no other."""
    monkeypatch.setattr("pocket_plug.telemetry.tree.MAX_KNOWN", 10)
    terminal = Terminal()
    other, root = terminal.span("run other", 0, REMOTE), terminal.span("run g", 0, REMOTE)
    open_spans = [terminal.span("never", 0, root) for _ in range(30)]
    terminal.span("node a", 0, root).end(1 * MS)
    assert len(terminal.processor._held[3].known) == 12
    root.end(2 * MS)
    assert names(terminal) == ["run g", "└─ node a", "trace of run g"]
    other.end(2 * MS)
    assert terminal.processor._held == {}
    assert open_spans[0].is_recording()


def test_a_store_operation_by_itself_draws_nothing() -> None:
    """Store operations outside of runs would flood the terminal."""
    terminal = Terminal()
    terminal.provider.get_tracer("pocket_plug.store").start_span("get").end()
    assert terminal.text() == ""


def test_a_huge_trace_is_drawn_from_a_limited_number_of_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans above the limit are counted, not kept."""
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


# ---------------------------------------------------------------- failures
STACK = """Traceback (most recent call last):
  File "/app/shop/orders.py", line 41, in charge
  File "/x/lib/python3.12/site-packages/bank/api.py", line 9, in post
%s"""


def fail(span: Any, end: int, kind: str = "shop.Declined", message: str | None = None, place: bool = True) -> None:
    """Ends a span as failed, at first where the error happened, with `place`."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, kind)
    said = {} if message is None else {"exception.message": message}
    if place:
        span.add_event("exception", {"exception.type": kind, "exception.stacktrace": STACK % kind, **said})
    span.end(end * MS)


def test_a_failed_span_shows_the_users_line_and_the_message() -> None:
    """Where the error happened: its type without the module, and the user's frame, not that of a called library."""
    terminal = Terminal()
    root = terminal.span("run shop", 0)
    node = terminal.span("node charge", 0, root)
    fail(terminal.span("exec charge", 0, node), 5, message="no funds\nask \x1b[31mlater")
    fail(node, 6, place=False)
    fail(root, 7, place=False)
    assert names(terminal) == [
        "run shop ✗ Declined",
        "└─ node charge ✗ Declined",
        "   └─ exec charge ✗ Declined orders.py:41",
        "         no funds",
        "trace of run shop",
    ]
    assert "later" not in terminal.text()


def test_if_the_line_is_too_short_the_place_is_below() -> None:
    """Before the message, rather than cut."""
    terminal = Terminal()
    root = terminal.span("run shop", 0)
    fail(terminal.span(f"exec {'charge' * 8}", 0, root), 5, message="no funds")
    root.end(6 * MS)
    lines = terminal.text().splitlines()
    assert "orders.py" not in lines[1]
    assert lines[2] == "      orders.py:41: no funds"


def test_a_retried_attempt_shows_its_place_too() -> None:
    """It is no error, but useful to see."""
    terminal = Terminal()
    root = terminal.span("run shop", 0)
    attempt = terminal.span("exec charge", 0, root)
    attempt.set_attribute("pocket_plug.attempt.will_retry", True)
    fail(attempt, 5)
    root.end(6 * MS)
    assert "exec charge ✗ Declined orders.py:41" in terminal.text()


def test_an_error_that_a_span_has_handled_is_not_taken_for_its_own() -> None:
    """Of several exceptions on a span the last one of its type counts."""
    terminal = Terminal()
    root = terminal.span("GET /", 0)
    root.add_event("exception", {"exception.type": "KeyError", "exception.stacktrace": STACK.replace("41", "7") % ""})
    root.add_event("exception", {"exception.type": "ValueError", "exception.stacktrace": STACK % "ValueError"})
    root.add_event("exception", {"exception.type": "OSError", "exception.stacktrace": STACK.replace("41", "9") % ""})
    root.set_attribute("error.type", "ValueError")
    root.set_status(StatusCode.ERROR)
    root.end(5 * MS)
    assert "GET / ✗ ValueError orders.py:41" in terminal.text()


def items(terminal: Terminal, number: int, failing: set[int]) -> Any:
    """A fan-out in a run, some of whose items fail, each in its exec."""
    root = terminal.span("run g", 0)
    each = terminal.span("node each", 0, root)
    for index in range(number):
        item = terminal.span("item square", index, each)
        item.set_attribute("pocket_plug.fan_out.index", index)
        part = terminal.span("exec square", index, item)
        if index in failing:
            fail(part, index + 1, "ValueError")
            fail(item, index + 2, "ValueError", place=False)
        else:
            part.end((index + 1) * MS)
            item.end((index + 2) * MS)
    return root, each


def test_the_first_failure_is_unfolded() -> None:
    """However many siblings there are: its line and all its ancestors; and items show their number."""
    terminal = Terminal()
    root, each = items(terminal, 300, {250})
    fail(each, 400, "ValueError", place=False)
    fail(root, 401, "ValueError", place=False)
    assert [name.lstrip("│└├─ ") for name in names(terminal)][:-1] == [
        "run g ✗ ValueError",
        "node each ✗ ValueError",
        "item square [0]",
        "exec square",
        "item square [250] ✗ ValueError",
        "exec square ✗ ValueError orders.py:41",
        "… 298 more: item square, p95 2.0 ms, max 2.0 ms, 596.0 ms in all",
    ]


def test_the_cause_of_the_runs_failure_is_unfolded_rather_than_a_handled_error() -> None:
    """A visit that failed and had a fallback came first, but isn't why the run failed."""
    terminal = Terminal()
    root = terminal.span("run g", 0)
    for number in range(100):
        node = terminal.span("node work", number, root)
        part = terminal.span("exec work", number, node)
        if number == 20:  # handled: its node is fine
            fail(part, number + 1, "KeyError")
            node.end((number + 1) * MS)
        else:
            part.end((number + 1) * MS)
            fail(node, number + 1) if number == 90 else node.end((number + 1) * MS)
    fail(root, 100, place=False)
    text = terminal.text()
    assert "node work ✗ Declined orders.py:41" in text
    assert f"… 98 more: node work, 1 {TIMES} KeyError, " in text


def test_a_summary_shows_its_errors_by_type() -> None:
    """Also errors further down, without a line of their own; three types at most."""
    terminal = Terminal()
    root = terminal.span("run g", 0)
    for number in range(100):
        node = terminal.span("node work", number, root)
        if number >= 90:
            fail(terminal.span("exec work", number, node), number + 1, "ABCCDDDDEE"[number - 90])
        node.end((number + 1) * MS)
    root.end(100 * MS)
    assert f"… 98 more: node work, 4 {TIMES} D, 2 {TIMES} E, 2 {TIMES} C, 1 of other types, p95" in terminal.text()


def test_visits_of_a_node_in_a_loop_are_summed_up_with_their_number() -> None:
    """Though other nodes come between them."""
    terminal = Terminal()
    root = terminal.span("run g", 0)
    for visit in range(1, 21):
        for name in ("node look", "node wait"):
            node = terminal.span(name, visit, root)
            node.set_attribute("pocket_plug.node.visit", visit)
            if (name, visit) == ("node wait", 18):
                fail(node, visit + 1)
            else:
                node.end((visit + 1) * MS)
    root.end(40 * MS)
    assert [re.sub(", p95.*", "", name) for name in names(terminal)][1:-1] == [
        "├─ node look",
        "├─ … 19 more: node look",
        "├─ node wait",
        "├─ node wait (visit 18) ✗ Declined orders.py:41",
        "└─ … 18 more: node wait",
    ]


def test_a_nested_graph_and_its_node_are_one_line() -> None:
    """If there is nothing else below the node, and both ended in the same way."""
    terminal = Terminal()
    root = terminal.span("run shop", 0)
    for name, graph in (("pay", "payment"), ("ship", "ship")):
        node = terminal.span(f"node {name}", 0, root)
        node.set_attribute("pocket_plug.node.type", "graph")
        run = terminal.span(f"run {graph}", 0, node)
        run.set_attributes({"pocket_plug.run.id": "r", "pocket_plug.graph.name": graph})
        terminal.span(f"node in_{name}", 0, run).end(1 * MS)
        run.end(2 * MS)
        node.end(2 * MS)
    root.end(3 * MS)
    assert names(terminal)[1:-1] == [
        "├─ node pay (graph payment)",
        "│  └─ node in_pay",
        "└─ node ship (graph)",
        "   └─ node in_ship",
    ]


def test_failures_are_kept_although_the_trace_is_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited number of them, so that the tree of a run that failed late shows where."""
    monkeypatch.setattr("pocket_plug.telemetry.tree.MAX_HELD", 10)
    monkeypatch.setattr("pocket_plug.telemetry.tree.MAX_FAILED", 2)
    terminal = Terminal()
    root = terminal.span("run g", 0)
    for number in range(20):
        terminal.span(f"node {number}", 0, root).end(1 * MS)
    for _ in range(5):
        fail(terminal.span("node last", 1, root), 2)
    assert terminal.processor.held == 12
    fail(root, 3, place=False)
    assert "node last ✗ Declined orders.py:41" in terminal.text()
