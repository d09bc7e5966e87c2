"""The result of a row as a table: each case with its targets. With a frame on a terminal, plain otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from .harness import Result


def table(result: Result, *, framed: bool) -> Table:
    """A line for each case, and one more for each further target of it."""
    made = Table(box=SIMPLE if framed else None, pad_edge=False)
    made.add_column("case", min_width=44)
    made.add_column(result.unit, justify="right", min_width=10)
    made.add_column("reached", justify="right", min_width=8)
    made.add_column("to reach")
    made.add_column("")
    for case, value in result.values.items():
        lines = [
            (f"{ratio:.2f}" if target.of else "", str(target), "[green]met[/]" if met else "[bold red]missed[/]")
            for target, ratio, met in result.reached()
            if target.case == case
        ]
        for position, line in enumerate(lines or [("", "", "")]):
            made.add_row(*(("", "") if position else (case, number(value))), *line)
    return made


def number(value: float) -> str:
    """Three digits, more before the point.

    >>> number(0.51234), number(5.1234), number(12.345), number(1234.5), number(0)
    ('0.512', '5.12', '12.3', '1,234', '0')
    """
    return f"{value:,.{sum(value < bound for bound in (1, 10, 100))}f}" if value else "0"


def summary(results: Sequence[Result], failed: Sequence[str]) -> str:
    """How many targets were met, and which were missed."""
    reached = [(result.row, *each) for result in results for each in result.reached()]
    missed = [
        f"{row}: {target.case} {ratio:.2f}, to reach {target.limit:g}" for row, target, ratio, met in reached if not met
    ]
    lines = [f"{len(reached) - len(missed)} of {len(reached)} targets met", *(f"  missed: {each}" for each in missed)]
    return "\n".join(lines + [f"  not measured: {name}" for name in failed])
