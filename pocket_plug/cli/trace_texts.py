"""What the tables of traces have in common: figures, and how a run ended, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocket_plug.traces.figures import Figures

FINE = ("success", "suspended", "running")
"""Outcomes of runs that haven't failed."""

FIGURES = ("count", "errors", "retries", "p50", "p95", "max", "in all")
"""The headers above `figures_row`."""


def figures_row(figures: Figures) -> tuple[str, ...]:
    """Figures as the cells of a row."""
    from pocket_plug.traces.figures import seconds

    return (
        f"{figures.count:,}",
        f"{figures.errors:,}",
        f"{figures.retries:,}",
        *map(seconds, (figures.p50, figures.p95, figures.max, figures.total)),
    )


def outcome_text(outcome: str, error: str | None) -> str:
    """How a run ended; where it failed, with the type of its error, if that is known.

    >>> outcome_text("failure", "shop.Declined"), outcome_text("suspended", "RunSuspendedError"), outcome_text("unfinished", None)
    ('✗ failure: Declined', 'suspended', 'unfinished')
    """
    if error is None or outcome in FINE:
        return outcome
    return f"✗ {outcome}: {error.rpartition('.')[2]}"
