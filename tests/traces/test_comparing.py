"""The differences between two runs, by the names of their spans."""

from __future__ import annotations

from typing import Any

from pocket_plug.traces.by_name import stats_by_name
from pocket_plug.traces.comparing import Side, compared, spans_of
from pocket_plug.traces.recorded import RecordedSpan
from pocket_plug.traces.summary import RunSummary

TRACE = "a" * 32


def span(number: int, parent: int, name: str, start: int, end: int, error: str = "", **attributes: Any) -> RecordedSpan:
    said = {f"pocket_plug.{key.replace('_', '.', 1)}": value for key, value in attributes.items()}
    return RecordedSpan(
        trace_id=TRACE,
        span_id=f"{number:016x}",
        parent_id=f"{parent:016x}" if parent else None,
        name=name,
        kind=1,
        scope="pocket_plug.graph",
        start=start,
        end=end,
        attributes=said | ({"error.type": error} if error else {}),
        status="error" if error else "unset",
    )


def execution(run_id: str, start: int, duration: int = 10, outcome: str = "success") -> RunSummary:
    return RunSummary(run_id, "shop", outcome, None, None, start, duration, 1, 0, 0, TRACE)


def test_concurrent_children_count_once_against_self_time() -> None:
    """And a child that lasts longer than its parent only for the parent's time."""
    spans = [
        span(1, 0, "run", 0, 100),
        span(2, 1, "a", 10, 40),
        span(3, 1, "a", 20, 50),
        span(4, 1, "late", 90, 150),
        span(5, 1, "still", 60, 0),
    ]
    found = {each.name: each for each in stats_by_name(spans)}
    assert (found["run"].total, found["run"].own) == (100, 100 - 40 - 10)
    assert (found["a"].count, found["a"].total, found["a"].own, found["a"].p50, found["a"].max) == (2, 60, 60, 30, 30)
    assert "still" not in found


def test_an_error_counts_where_it_happened_and_a_retry_as_such() -> None:
    """Not again for each span that it went through."""
    spans = [
        span(1, 0, "run", 0, 100, "OSError"),
        span(2, 1, "exec", 10, 40, "OSError", attempt_will_retry=True),
        span(3, 1, "exec", 40, 50, "OSError"),
    ]
    found = {each.name: (each.errors, each.retries) for each in stats_by_name(spans)}
    assert found == {"run": (0, 0), "exec": (1, 1)}


def test_new_missing_and_newly_failing_spans_are_marked() -> None:
    """The largest change comes first; a span that failed before as well isn't marked."""
    sides = [Side.of([execution("r-1", 0, 10)]), Side.of([execution("r-2", 50, 30)])]
    before = [
        span(1, 0, "same", 0, 5),
        span(2, 0, "gone", 0, 7),
        span(3, 0, "bad", 0, 1, "KeyError"),
        span(4, 0, "b", 0, 2),
    ]
    after = [
        span(1, 0, "same", 0, 6),
        span(2, 0, "new", 0, 20),
        span(3, 0, "bad", 0, 1, "OSError"),
        span(4, 0, "b", 0, 2, "OSError"),
        span(5, 0, "worse", 0, 4, "OSError"),
    ]
    found = compared((sides[0], before), (sides[1], after))
    assert found.took == 20
    assert [(each.name, each.took, each.mark) for each in found.spans] == [
        ("new", 20, "new"),
        ("gone", -7, "gone"),
        ("worse", 4, "fails now"),
        ("same", 1, ""),
        ("b", 0, "fails now"),
        ("bad", 0, ""),
    ]


def test_executions_of_one_side_count_together() -> None:
    """The time between them doesn't count; the outcome is the last one's."""
    side = Side.of([execution("r-1", 0, 10, "suspended"), execution("r-1", 500, 20, "success")])
    assert (side.start, side.duration, side.outcome, side.traces) == (0, 30, "success", (TRACE,))


def test_only_what_is_below_the_run_is_compared() -> None:
    """Though its trace has more, such as the request that started it, another run, and the previous execution."""
    spans = [
        span(1, 0, "GET /", 0, 99),
        span(2, 1, "run shop", 1, 20, run_id="r-1"),
        span(3, 2, "node a", 2, 3, run_id="r-1", node_name="a"),
        span(4, 3, "SELECT", 2, 3),
        span(5, 1, "run shop", 30, 40, run_id="r-1"),
        span(6, 5, "node b", 31, 32, run_id="r-1", node_name="b"),
    ]
    assert {each.name for each in spans_of([execution("r-1", 1)], spans)} == {"run shop", "node a", "SELECT"}
    assert {each.name for each in spans_of([execution("r-1", 30)], spans)} == {"run shop", "node b"}


def test_if_a_runs_own_span_is_missing_all_of_its_trace_counts() -> None:
    """As after a SIGKILL; a circle of parents is accepted."""
    spans = [span(1, 2, "node a", 0, 1, run_id="r-1", node_name="a"), span(2, 1, "node b", 0, 1)]
    assert len(spans_of([execution("r-1", 0)], spans)) == 2
