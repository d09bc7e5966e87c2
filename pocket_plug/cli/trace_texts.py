"""Texts that the tables of traces share: statistics, and the outcome of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocket_plug.traces.figures import Figures

FINE = ("success", "suspended", "running")
"""Outcomes of runs that haven't failed."""


def figures_head(what: str) -> tuple[str, ...]:
    """The headers for `figures_row`. `what` is "errors" (raised there) or "failed" (how many failed)."""
    return ("count", what, "retries", "p50", "p95", "max", "in all")


def figures_row(figures: Figures, number: int) -> tuple[str, ...]:
    """Statistics as the cells of a row; `number` is that of errors, or of failures."""
    from pocket_plug.traces.figures import seconds

    return (
        f"{figures.count:,}",
        f"{number:,}",
        f"{figures.retries:,}",
        *map(seconds, (figures.p50, figures.p95, figures.max, figures.total)),
    )


def outcome_text(outcome: str, error: str | None, place: str | None = None) -> str:
    """The outcome of a run; for a failure with the type of the error, and its place if known.

    >>> outcome_text("failure", "shop.Declined"), outcome_text("suspended", "RunSuspendedError"), outcome_text("unfinished", None)
    ('✗ failure: Declined', 'suspended', 'unfinished')
    """
    if error is None or outcome in FINE:
        return outcome
    return f"✗ {outcome}: {error.rpartition('.')[2]} {place or ''}".rstrip()
