"""Running runs, seen from another process: open spans are written beside the trace file, and a run can be followed."""

from __future__ import annotations

import itertools
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import set_span_in_context

from pocket_plug.cli import main
from pocket_plug.cli.trees import follow
from pocket_plug.telemetry import live
from pocket_plug.telemetry.live import OpenSpans
from pocket_plug.telemetry.local import FileExporter
from pocket_plug.telemetry.tree import TreeProcessor
from pocket_plug.testing.interrupts import Between
from pocket_plug.traces.index import TraceIndex
from pocket_plug.traces.open_spans import SILENT, open_spans
from pocket_plug.traces.recorded import TraceFile
from pocket_plug.traces.watch import Watch


class Traced:
    """A process that traces to a file; it writes open spans when the test says so."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(live, "INTERVAL", 3600.0)  # its own thread writes nothing
        self.path = path
        self.open = OpenSpans(path)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(FileExporter(path)))
        provider.add_span_processor(self.open)
        self._tracer = provider.get_tracer("pocket_plug.graph")

    def run(self, name: str, run_id: str, **attributes: str) -> Any:
        named = {"pocket_plug.run.id": run_id, "pocket_plug.graph.name": name}
        return self._tracer.start_span(f"run {name}", attributes=named | attributes)

    def node(self, name: str, parent: Any) -> Any:
        said = {"pocket_plug.node.name": name, "pocket_plug.run.id": parent.attributes["pocket_plug.run.id"]}
        return self._tracer.start_span(f"node {name}", set_span_in_context(parent), attributes=said)


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process that traces; its thread has ended at the end."""
    traced = Traced(tmp_path / ".pocket_plug" / "traces.jsonl", monkeypatch)
    yield traced
    traced.open.shutdown()


@pytest.mark.parametrize("kind", ["open spans", "tree"])
def test_a_span_in_the_middle_of_another_ones_start_or_end_waits_for_nothing(
    traced: Traced, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's handler may use a traced store, and the end of a dropped run's coroutine ends spans, in a thread that is just
    starting or ending a span.
    """
    drawn: list[str] = []
    part = traced.open if kind == "open spans" else TreeProcessor(None, lambda root: "")
    monkeypatch.setattr(TreeProcessor, "_draw", lambda self, root, *_: drawn.append(root.name))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(part)
    tracer = provider.get_tracer("tests")

    def sweep() -> None:
        for place in itertools.count(1):
            with Between(place, lambda: tracer.start_span("inner").end()) as between:
                tracer.start_span("outer").end()
            if not between.where:
                break

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a deadlock"
    if isinstance(part, TreeProcessor):
        assert part.held == 0
        assert drawn.count("outer") == drawn.count("inner") + 1
    else:
        part.write()
        assert not list(open_spans(traced.path))


def test_a_span_that_begins_in_the_middle_of_the_start_of_the_thread_starts_no_second_one(tmp_path: Path) -> None:
    """Two would take the flags from each other, and the one that `shutdown` waits for might never see that it has to end."""
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("tests")
    ours = "pocket_plug open spans"

    def sweep() -> None:
        others = [each for each in threading.enumerate() if each.name == ours]
        for place in itertools.count(1):
            part = OpenSpans(tmp_path / "traces.jsonl")
            inner, outer = tracer.start_span("inner"), tracer.start_span("outer")
            with Between(place, lambda part=part, inner=inner: part.on_start(inner)) as between:
                part.on_start(outer)
            started = [each for each in threading.enumerate() if each.name == ours and each not in others]
            assert len(started) == 1, between.where
            part.shutdown()
            if not between.where:
                break
        swept.append(place)

    swept: list[int] = []
    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    thread.join(60)
    assert swept


def test_a_process_that_can_start_no_thread_ends_without_an_error(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Python 3.12 at the end of a process, and on a system that has no more threads."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        traced.run("shop", "r-1").end()
    traced.open.shutdown()


def test_open_spans_are_written_and_ended_ones_are_not(traced: Traced) -> None:
    """With all their present data; if no span is open there is no file, and none after the end."""
    run = traced.run("shop", "r-1")
    node = traced.node("charge", run)
    traced.open.write()
    assert [(each.span.name, each.span.end, each.alive) for each in open_spans(traced.path)] == [
        ("run shop", 0, True),
        ("node charge", 0, True),
    ]
    assert open_spans(traced.path)[1].span.parent_id == f"{run.get_span_context().span_id:016x}"
    node.end()
    traced.open.write()
    assert [each.span.name for each in open_spans(traced.path)] == ["run shop"]
    run.end()
    traced.open.write()
    assert [path.name for path in traced.path.parent.iterdir()] == ["traces.jsonl"]
    traced.run("shop", "r-2")
    traced.open.write()
    traced.open.shutdown()
    assert [path.name for path in traced.path.parent.iterdir()] == ["traces.jsonl"]
    assert traced.open.last_run == "r-2"


def test_the_thread_writes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon after a span started, without a call."""
    told = threading.Event()
    monkeypatch.setattr(live, "INTERVAL", 0.0)
    replace = Path.replace

    def replaced(path: Path, target: Path) -> Path:
        done = replace(path, target)
        told.set()
        return done

    monkeypatch.setattr(Path, "replace", replaced)
    spans = OpenSpans(tmp_path / "traces.jsonl")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(spans)
    provider.get_tracer("pocket_plug.graph").start_span("run shop")
    assert told.wait(60)
    assert [each.span.name for each in open_spans(tmp_path / "traces.jsonl")] == ["run shop"]
    spans.shutdown()


def test_a_process_shows_that_it_lives_and_a_killed_one_does_not(traced: Traced) -> None:
    """Its open spans are still in the file, but no longer shown as running; after a day the next process deletes the file."""
    traced.run("shop", "r-1")
    traced.open.write()
    (path,) = traced.path.parent.iterdir()
    begun = path.stat().st_mtime
    for later, outcome in ((SILENT - 1, "running"), (SILENT + 1, "unfinished")):
        with TraceIndex(traced.path, lambda later=later: begun + later) as index:  # type: ignore[misc]
            (run,) = index.runs()
            assert run.outcome == outcome
            took = begun if outcome == "unfinished" else begun + later  # until the last sign of life, or until now
            assert abs(run.start + run.duration - took * 1e9) < 1e6
    os.utime(path, (1, 1))
    traced.open.write(lambda: begun + 1000)  # nothing has changed, so only the time stamp is updated
    assert path.stat().st_mtime > 1
    left = path.with_name("traces.jsonl.open-dead")
    path.rename(left)
    traced.open.write(lambda: begun + 2000)
    assert {each.name for each in traced.path.parent.iterdir()} == {left.name, path.name}
    os.utime(left, (1, 1))
    path.unlink()
    traced.open._path = None  # as another process
    traced.run("shop", "r-2")
    traced.open.write()
    assert not left.exists()


def test_a_trace_ends_with_the_last_update_of_open_spans(traced: Traced) -> None:
    """Not with the last span that its killed process wrote, which may be hours older."""
    traced.run("shop", "r-1")
    traced.open.write()
    (path,) = traced.path.parent.iterdir()
    (left,) = open_spans(traced.path)
    traced.path.write_text(path.read_text().replace('"endTimeUnixNano": "0"', '"endTimeUnixNano": "1000"') + "\n")
    with TraceIndex(traced.path) as index:
        assert index.ended_before(left.seen) == set()
        assert index.ended_before(left.seen + 1) == {left.span.trace_id}


@pytest.mark.parametrize("ends", [False, True], ids=["killed", "ends"])
def test_a_child_process_does_not_write_its_parents_spans(traced: Traced, ends: bool) -> None:
    """After a fork no span is open, and the parent's file stays the parent's, also when the child ends."""
    traced.run("parent", "r-1")
    traced.open.write()
    (parent,) = traced.path.parent.iterdir()
    number = os.fork()
    if number == 0:
        if ends:
            traced.open.shutdown()
        else:
            traced.run("child", "r-2")
            traced.open.write()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0
    if ends:
        assert list(traced.path.parent.iterdir()) == [parent]
        return
    (child,) = set(traced.path.parent.iterdir()) - {parent}
    assert [span.name for span in TraceFile(parent).spans()] == ["run parent"]
    assert [span.name for span in TraceFile(child).spans()] == ["run child"]


def test_a_run_is_followed_from_its_beginning_to_its_end(traced: Traced) -> None:
    """The newest running one; an ended span keeps its place while others are open."""
    traced.run("old", "r-0").end()
    watch = Watch(traced.path)
    watch.look()
    assert watch.trace is None
    run = traced.run("shop", "r-1")
    first = traced.node("charge", run)
    first.end()
    traced.node("ship", run)
    traced.open.write()
    watch.look()
    assert watch.trace is not None
    assert [(span.name, span.end > 0) for span in watch.trace.spans] == [
        ("run shop", False),
        ("node charge", True),
        ("node ship", False),
    ]
    assert not watch.ended
    run.end()
    watch.look()
    assert watch.ended
    assert not watch.lost


def test_a_run_that_ended_already_is_over_at_once(traced: Traced) -> None:
    """By its id; so is one that took less than the time between two polls."""
    traced.run("shop", "r-1").end()
    watch = Watch(traced.path, "r-1")
    watch.look()
    assert watch.ended
    newest = Watch(traced.path)
    traced.run("shop", "r-2").end()
    newest.look()
    assert newest.ended
    assert newest.trace is not None
    assert newest.trace.run_id == "r-2"
    named = Watch(traced.path, "mail")  # the next run of this graph
    traced.run("shop", "r-3").end()
    named.look()
    assert named.trace is None
    traced.run("mail", "r-4").end()
    named.look()
    assert named.trace is not None
    assert named.trace.run_id == "r-4"


def test_a_run_whose_process_died_is_lost(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    """The wait ends."""
    traced.run("shop", "r-1")
    traced.open.write()
    (path,) = traced.path.parent.iterdir()
    now = path.stat().st_mtime
    watch = Watch(traced.path, clock=lambda: now)
    watch.look()
    assert not watch.lost
    now += SILENT + 1
    watch.look()
    assert watch.lost
    os.utime(path, (now - 1000, now - 1000))
    assert main(["trace", "show", "--file", str(traced.path)]) == 0
    drawn = capsys.readouterr().out
    assert drawn.startswith("run shop … unfinished")
    assert main(["trace", "show", "--watch", "r-1", "--file", str(traced.path)]) == 1
    assert "its process has stopped writing; it may have been killed" in capsys.readouterr().err


def test_a_trace_in_progress_is_not_removed(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    """It can be removed once it has ended, by the same command: so the exit code is not that of wrong usage."""
    run = traced.run("shop", "r-1")
    traced.node("charge", run).end()
    traced.open.write()
    remove = ["trace", "rm", "r-1", "--file", str(traced.path)]
    assert main(remove) == 1
    assert "r-1: it is in progress; a trace can be removed once it has ended" in capsys.readouterr().err
    run.end()
    traced.open.write()
    assert main(remove) == 0
    assert "removed 1 run, 2 spans" in capsys.readouterr().err


def test_a_run_that_is_not_listed_any_more_is_lost_in_the_end(traced: Traced) -> None:
    """Its process no longer lists it, and its end never came into the file."""
    traced.run("shop", "r-1")
    traced.open.write()
    (path,) = traced.path.parent.iterdir()
    now = path.stat().st_mtime
    watch = Watch(traced.path, clock=lambda: now)
    watch.look()
    path.unlink()
    watch.look()
    assert not watch.lost
    now += SILENT + 1
    watch.look()
    assert watch.lost


def test_watching_prints_a_line_for_each_start_and_end(traced: Traced, capsys: pytest.CaptureFixture[str]) -> None:
    """If stdout is no terminal; it ends with the run, or with Ctrl-C."""
    run, steps = traced.run("shop", "r-1"), iter(range(9))
    node = traced.node("charge", run)
    traced.open.write()

    def sleep(_: float) -> None:
        if (step := next(steps)) == 0:
            node.end()
        elif step == 1:
            run.end()
        else:
            raise KeyboardInterrupt

    assert follow(traced.path, None, sleep) == 0
    shown = [line.split("  ", 1)[1].partition(" after")[0] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["run shop began", "node charge began", "node charge ended", "run shop ended"]
    assert follow(traced.path, "r-9", sleep) == 0


def test_watching_on_a_terminal_redraws_the_tree(
    traced: Traced, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Open spans are marked as running."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    run = traced.run("shop", "r-1")
    traced.node("charge", run)
    traced.open.write()
    assert follow(traced.path, "r-1", lambda _: run.end()) == 0
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", capsys.readouterr().out)
    assert "node charge … running" in shown
    assert "run shop … running" in shown
    assert re.search(r"run shop +[\d.]+ .s", shown)  # the last time


def test_an_odd_attribute_or_a_full_disk_breaks_nothing(
    traced: Traced, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and retried later."""

    def full(*_: object) -> None:
        traced.open._has_ended = True
        raise OSError("the disk is full")

    monkeypatch.setattr(traced.open, "write", full)
    monkeypatch.setattr(live, "INTERVAL", 0.0)
    traced.open._awake.set()
    traced.open._work()
    assert "writing the open spans failed: OSError" in caplog.text
