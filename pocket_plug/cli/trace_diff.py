"""`trace diff`: compares two runs of a graph, or two executions of one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocket_plug.errors import UnknownRunError

from .output import as_json, echo, echo_json, print_table
from .trace_texts import outcome_text
from .traces_found import executions, in_file, is_trace_id, opened_index
from .trees import local_time

if TYPE_CHECKING:
    from pocket_plug.traces.by_name import NameStats
    from pocket_plug.traces.comparing import Comparison, Side
    from pocket_plug.traces.summary import RunSummary


@click.command
@click.argument("run", required=False)
@click.argument("other", required=False)
@in_file
@as_json
def diff(run: str | None, other: str | None, file: Path, as_json: bool) -> None:
    """Compare a run with OTHER, or with its predecessor.

    The predecessor is the run of the same graph before it. The outcomes, the durations, and the times for each span name
    are compared. RUN is "after", and the other run is "before". Both are named as for `show`; without RUN it is the
    newest run. RUN#2 is the second execution of a resumed run, and is compared with the first one unless OTHER is given.
    Without a number, all executions of a run are summed up. A run that hasn't ended can be compared too; it is marked as
    in `ls`: running or unfinished.
    """
    with opened_index(file) as index:
        runs = [*index.runs()]
        after = _meant(runs, run, file)
        before = _before(runs, after, file) if other is None else _meant(runs, other, file, "OTHER")
        ids = {each.trace_id for each in (*before, *after)}
        spans = [*index.spans(ids)]
        until = {each.span.span_id: time.time_ns() if each.alive else each.seen for each in index.open_spans(ids)}
    from pocket_plug.traces.comparing import Side, compared, spans_of

    found = compared(
        (Side.of(before), spans_of(before, spans)),
        (Side.of(after), spans_of(after, spans)),
        until,
    )
    if as_json:
        echo_json(found)
    else:
        _print(found)


def _meant(runs: Sequence[RunSummary], wanted: str | None, path: Path, title: str = "RUN") -> list[RunSummary]:
    if wanted is not None and is_trace_id(wanted) and wanted not in {run.run_id for run in runs}:
        if found := [run for run in reversed(runs) if run.trace_id == wanted]:
            return [run for run in found if run.run_id == found[0].run_id]
        raise UnknownRunError(f"there is no run in a trace {wanted} in {path}. `pocket-plug trace ls` lists the runs")
    return executions(runs, wanted, path, title)


def _before(runs: Sequence[RunSummary], after: Sequence[RunSummary], path: Path) -> list[RunSummary]:
    """The previous execution of the same run, or if there is none, the previous run of the same graph."""
    first = after[0]
    same = [run for run in reversed(runs) if run.run_id == first.run_id]
    if (number := same.index(first)) > 0:
        return [same[number - 1]]
    former = next(
        (run for run in runs if run.graph == first.graph and run not in same and run.start <= first.start), None
    )
    if former is None:
        raise UnknownRunError(
            f"there is no run of graph {first.graph!r} before {first.run_id!r} in {path}; name the run to compare it with"
        )
    return [run for run in reversed(runs) if run.run_id == former.run_id]


def _print(found: Comparison) -> None:
    from pocket_plug.traces.figures import seconds

    before, after = found.before, found.after
    print_table(
        ("", "run", "graph", "outcome", "started", "took", "difference"),
        [(*_side("before", before), ""), (*_side("after", after), _change(found.took, before.duration))],
    )
    echo("")

    def both(left: NameStats | None, right: NameStats | None, text: Callable[[NameStats], str]) -> str:
        texts = ["-" if each is None else text(each) for each in (left, right)]
        return " → ".join(dict.fromkeys(texts))

    rows = [
        (
            each.name,
            both(each.before, each.after, lambda stats: f"{stats.count:,}"),
            both(each.before, each.after, lambda stats: f"{stats.errors:,}"),
            both(each.before, each.after, lambda stats: seconds(stats.p50)),
            both(each.before, each.after, lambda stats: seconds(stats.total)),
            _change(each.took, 0 if each.before is None else each.before.total),
            each.mark,
        )
        for each in found.spans
    ]
    print_table(("span", "count", "errors", "p50", "in all", "difference", ""), rows)


def _side(title: str, side: Side) -> tuple[str, ...]:
    from pocket_plug.traces.figures import seconds

    outcome = outcome_text(side.outcome, side.error)
    return title, side.run_id, side.graph, outcome, local_time(side.start), seconds(side.duration)


def _change(took: int, of: int) -> str:
    """The difference of a duration, also in percent of `of`.

    >>> _change(1_500_000_000, 3_000_000_000), _change(-40_000, 80_000), _change(5_000_000, 0), _change(0, 7)
    ('+1.50 s (+50 %)', '-40 µs (-50 %)', '+5.0 ms', '0 µs')
    """
    from pocket_plug.traces.figures import seconds

    sign = "" if not took else "-" if took < 0 else "+"
    share = f" ({took / of:+.0%})".replace("%", " %") if took and of else ""
    return f"{sign}{seconds(abs(took))}{share}"
