"""The index of a trace file agrees with the file, whatever happens to either; and it may be deleted."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocket_plug.traces.index import LATEST, Stats, TraceIndex
from pocket_plug.traces.recorded import TraceFile, traces_of
from pocket_plug.traces.summary import RunSummary, SpanSummary, summaries


def line(*spans: dict[str, object]) -> str:
    """A request."""
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [*spans]}]}]}) + "\n"


def span(trace: int, number: int, parent: int = 0, took: int = 10, /, **attributes: object) -> dict[str, object]:
    """A span; `node_name` is the attribute `pocket_plug.node.name`, `error` that of its type."""
    named = {f"pocket_plug.{key.replace('_', '.', 1)}": value for key, value in attributes.items() if key != "error"}
    found: dict[str, object] = {
        "traceId": f"{trace:032x}",
        "spanId": f"{number:016x}",
        "parentSpanId": f"{parent:016x}" if parent else "",
        "name": f"s{number}",
        "startTimeUnixNano": str(1000 * trace + number),
        "endTimeUnixNano": str(1000 * trace + number + took),
    }
    if "error" in attributes:
        named["error.type"] = attributes["error"]
        found["status"] = {"code": 2}
    found["attributes"] = [
        {"key": key, "value": {"intValue" if isinstance(value, int) else "stringValue": str(value)}}
        for key, value in named.items()
    ]
    return found


def run(
    trace: int, number: int = 1, took: int = 20, /, *, outcome: str = "success", **more: object
) -> dict[str, object]:
    """That of a run of the graph "shop"."""
    named = {"run_id": f"r-{trace}-{number}", "graph_name": "shop", "run_outcome": outcome, **more}
    return span(trace, number, 0, took, **named)


def node(trace: int, number: int, took: int, name: str, /, **more: object) -> dict[str, object]:
    """That of a node in the run 1."""
    return span(trace, number, 1, took, node_name=name, node_visit=1, graph_name="shop", run_id=f"r-{trace}-1", **more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with three runs: one failed, one was retried."""
    path = tmp_path / "t.jsonl"
    path.write_text(
        line(node(1, 2, 5, "charge", error="builtins.OSError"), run(1, outcome="failure", error="builtins.OSError"))
        + line(node(2, 2, 7, "charge", node_attempts=3), node(2, 3, 9, "ship"))
        + line(run(2))
        + line(node(3, 2, 100, "charge"), run(3, 1, 120))
    )
    return path


def listed(path: Path) -> list[RunSummary]:
    """All runs."""
    with TraceIndex(path) as index:
        return [*index.runs()]


def anew(path: Path) -> list[RunSummary]:
    """The same from the file alone."""
    found = [
        each
        for trace in traces_of(TraceFile(path).spans())
        for each in summaries(trace.id, [SpanSummary.of(span) for span in trace.spans])
    ]
    return sorted(found, key=lambda each: each.start, reverse=True)


def test_runs_are_listed_with_their_spans(path: Path) -> None:
    """A second call reads the index and not the file."""
    for _ in range(2):
        assert [(each.run_id, each.outcome, each.spans, each.errors, each.retries) for each in listed(path)] == [
            ("r-3-1", "success", 2, 0, 0),
            ("r-2-1", "success", 3, 0, 2),
            ("r-1-1", "failure", 2, 1, 0),
        ]
    assert listed(path) == anew(path)
    read: list[int] = []
    with TraceIndex(path, advance=read.append):
        assert read == []


def test_only_new_lines_are_read(path: Path) -> None:
    """A trace that continues is summed up again."""
    listed(path)
    with path.open("a") as file:
        file.write(added := line(node(3, 3, 4, "ship", error="builtins.ValueError")))
    read: list[int] = []
    with TraceIndex(path, advance=read.append) as index:
        assert next(index.runs()).errors == 1
    assert sum(read) == len(added)
    assert listed(path) == anew(path)


@pytest.mark.parametrize("damage", ["lost", "noise", "other version", "half", "empty"])
def test_a_missing_or_damaged_index_is_made_again(path: Path, damage: str) -> None:
    """Without a message, since nothing is lost."""
    expected = listed(path)
    index = path.with_name("t.jsonl.index")
    whole = index.read_bytes()
    if damage == "lost":
        index.unlink()
    elif damage == "other version":
        tables = sqlite3.connect(index)
        tables.execute("drop table run")
        tables.execute("pragma user_version = 99")
        tables.close()
    else:
        index.write_bytes({"noise": b"noise" * 1000, "half": whole[: len(whole) // 2], "empty": b""}[damage])
    assert listed(path) == expected
    assert listed(path) == expected
    assert index.exists()


@pytest.mark.parametrize("change", ["shorter", "replaced", "rewritten"])
def test_the_index_of_another_file_is_made_again(path: Path, change: str) -> None:
    """A file that was started again, or that replaced the one that was read."""
    listed(path)
    text = path.read_text()
    if change == "shorter":
        path.write_text(text.splitlines(keepends=True)[0])
    elif change == "replaced":
        other = path.with_name("other")
        other.write_text(text.replace("r-1-1", "q-1-1"))
        other.replace(path)
    else:
        path.write_text(text.replace("r-1-1", "q-1-1"))
    assert listed(path) == anew(path)


def test_if_it_cannot_be_written_it_is_in_memory(path: Path) -> None:
    """For example if a folder has its name. The results are the same."""
    expected = anew(path)
    index = path.with_name("t.jsonl.index")
    index.mkdir()
    assert listed(path) == expected
    assert list(index.iterdir()) == []


def test_an_incomplete_line_is_read_once_it_is_complete(path: Path) -> None:
    """Until then it counts as unreadable; a complete one needs no line feed."""
    text = line(run(4))
    with path.open("a") as file:
        file.write(text[:40])
    for _ in range(2):
        with TraceIndex(path) as index:
            assert (index.unreadable, len([*index.runs()])) == (1, 3)
    with path.open("a") as file:
        file.write(text[40:].rstrip())
    for _ in range(2):
        with TraceIndex(path) as index:
            assert (index.unreadable, len([*index.runs()])) == (0, 4)
    with path.open("a") as file:
        file.write("\nnoise\n" + line(run(5)))
    for _ in range(2):
        with TraceIndex(path) as index:
            assert (index.unreadable, len([*index.runs()])) == (1, 5)


def test_the_spans_of_a_trace_are_read_by_their_positions(path: Path) -> None:
    """From several lines, in the file's order."""
    with TraceIndex(path) as index:
        assert [each.span_id[-1] for each in index.spans({f"{2:032x}"})] == ["2", "3", "1"]
        assert [*index.spans({"f" * 32})] == []
        assert index.newest() == f"{3:032x}"


def test_traces_are_found_by_errors_and_attributes(path: Path) -> None:
    """An error's type with or without its module; an attribute's value as text."""
    first, second, third = (f"{number:032x}" for number in (1, 2, 3))
    with TraceIndex(path) as index:
        assert index.with_error("OSError") == index.with_error("builtins.OSError") == {first}
        assert index.with_error("Error") == index.with_error("ins.OSError") == index.with_error("\udcff") == set()
        assert index.with_attribute("pocket_plug.node.attempts", "3") == {second}
        assert index.with_attribute("pocket_plug.run.id", "r-3-1") == {third}
        assert index.with_attribute("pocket_plug.node.attempts", "33") == set()
        assert index.ended_before(1500) == {first}


@pytest.mark.parametrize("is_ascii", [True, False], ids=["escaped", "raw"])
@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("größe", {"stringValue": "XL"}, "XL"),
        ("n/m", {"stringValue": "größer"}, "größer"),
        ("rate", {"doubleValue": "Infinity"}, "inf"),
        ("rate", {"doubleValue": 1.5}, "1.5"),
        ("rate", {"doubleValue": 1e3}, "1000.0"),
    ],
)
def test_attributes_are_found_however_they_are_written(
    tmp_path: Path, name: str, value: dict[str, Any], text: str, is_ascii: bool
) -> None:
    """Collectors write text and numbers in other ways."""
    trace = "a" * 32
    span = {"traceId": trace, "spanId": "1" * 16, "name": "n", "attributes": [{"key": name, "value": value}]}
    request = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    path = tmp_path / "t.jsonl"
    path.write_text(
        json.dumps(request, ensure_ascii=is_ascii).replace("/", r"\/").replace("1000.0", "1e3") + "\n", "utf-8"
    )
    with TraceIndex(path) as index:
        assert index.with_attribute(name, text) == {trace}


def test_graphs_and_nodes_are_summed_up(path: Path) -> None:
    """The longest total comes first, with its nodes below each graph."""
    with TraceIndex(path) as index:
        assert index.stats() == [
            Stats(graph="shop", node=None, count=3, failed=1, retries=2, p50=20, p95=120, max=120, total=160),
            Stats(graph="shop", node="charge", count=3, failed=1, retries=2, p50=7, p95=100, max=100, total=112),
            Stats(graph="shop", node="ship", count=1, failed=0, retries=0, p50=9, p95=9, max=9, total=9),
        ]
        assert [each.count for each in index.stats(since=2000)] == [2, 2, 1]
        assert index.stats(graph="mail") == index.stats(graph="\udcff") == []  # a byte that isn't UTF-8


def test_nodes_whose_graph_is_unknown_are_summed_up_too(tmp_path: Path) -> None:
    """A span of another program may have a node's name and no graph's."""
    path = tmp_path / "t.jsonl"
    path.write_text(line(node(1, 2, 5, "charge"), span(1, 3, 0, 5, node_name="ship", node_visit=1, run_id="r-1-1")))
    with TraceIndex(path) as index:
        assert [(each.graph, each.node) for each in index.stats()] == [("", "ship"), ("shop", "charge")]


@pytest.mark.parametrize("number", [10**30, 2**63 - 1])
def test_a_number_that_cannot_be_makes_no_other_trace_unreadable(path: Path, number: int) -> None:
    """A damaged span may say that there were more retries than the index can store, or than it can sum up."""
    with path.open("a") as file:
        file.write(line(*(node(4, at, 5, "charge", node_retries=number) for at in (2, 3)), run(4)))
    assert [run.run_id for run in listed(path)] == ["r-4-1", "r-3-1", "r-2-1", "r-1-1"]


def attribute(name: str, value: str) -> dict[str, object]:
    return {"key": name, "value": {"stringValue": value}}


@pytest.mark.parametrize(
    ("file", "defined", "place"),
    [
        ("/app/stock.py", True, "stock.py:9"),
        ("/x/site-packages/b.py", True, "orders.py"),
        ("/x/site-packages/b.py", False, "b.py:9"),
    ],
)
def test_a_failed_run_has_its_place(tmp_path: Path, file: str, defined: bool, place: str) -> None:
    """In the user's code, or else at the node's definition, which another line may have; not where a handled error arose."""
    handled, failed = span(1, 3, 2, 1, error="Early"), span(1, 4, 2, 4, error="Boom")
    for each, name in ((handled, "/app/early.py"), (failed, file)):
        stack = f'Traceback\n  File "{name}", line 9, in g\nBoom'
        each["events"] = [
            {
                "name": "exception",
                "timeUnixNano": "1",
                "attributes": [
                    attribute("exception.type", "Early" if each is handled else "Boom"),
                    attribute("exception.stacktrace", stack),
                ],
            }
        ]
    above = node(1, 2, 5, "charge", error="Boom")
    if defined:
        above["attributes"] = [
            *cast("list[object]", above["attributes"]),
            attribute("code.file.path", "/app/orders.py"),
        ]
    path = tmp_path / "t.jsonl"
    path.write_text(line(handled, failed))
    assert [each.place for each in listed(path)] == []
    with path.open("a") as more:
        more.write(line(above, run(1, 1, outcome="failure", error="Boom")))
    assert [each.place for each in listed(path)] == [place]


def test_a_missing_file_is_an_error_and_is_not_created(tmp_path: Path) -> None:
    """As without an index."""
    with pytest.raises(FileNotFoundError):
        TraceIndex(tmp_path / "t.jsonl")
    assert os.listdir(tmp_path) == []


numbers = st.integers(1, 4)
spans = st.one_of(
    st.builds(run, numbers, numbers),
    st.builds(lambda trace, number, parent: span(trace, number, parent, error="E"), numbers, numbers, numbers),
    st.builds(node, numbers, st.integers(5, 8), st.just(LATEST * 2), st.just("charge")),
)


@given(st.lists(st.lists(spans, max_size=4), max_size=8), st.sets(st.integers(0, 7)))
def test_read_in_parts_it_agrees_with_the_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[list[dict[str, object]]], pauses: set[int]
) -> None:
    """Spans that come twice, circles, runs without their own span, invalid times."""
    path = tmp_path_factory.mktemp("index") / "t.jsonl"

    def unordered(found: Iterator[RunSummary] | list[RunSummary]) -> set[tuple[object, ...]]:
        return {(each.run_id, each.trace_id, each.start, each.spans, each.errors) for each in found}

    with path.open("w") as file:
        for number, each in enumerate(lines):
            file.write(line(*each))
            if number in pauses:
                file.flush()
                listed(path)
    assert unordered(listed(path)) == unordered(anew(path))
