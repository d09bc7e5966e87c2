"""`runs ls`: lists runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import get_args

import click

from pocket_plug.cli.entries import sealing
from pocket_plug.cli.output import as_json, echo, echo_json, in_units, print_table
from pocket_plug.cli.target import Target
from pocket_plug.graph.runs import ENDED, OPEN, RunInfo, Runs, RunState
from pocket_plug.store.store import StoreScope

from .facts import facts_of, why

LIMIT = 100
"""How many runs `ls` shows by default."""
WATCH_SECONDS = 2.0
"""Seconds between two refreshes of `ls --watch`."""
CLOSED: tuple[RunState, ...] = (*ENDED, "unreadable")


@click.command
@click.option(
    "--state",
    "states",
    type=click.Choice(get_args(RunState)),
    multiple=True,
    help="Only runs in this state; may be repeated.",
)
@click.option("--graph", metavar="NAME", help="Only runs of this graph.")
@click.option("--limit", type=click.IntRange(1), default=LIMIT, show_default=True, metavar="N", help="At most N runs.")
@click.option("--watch", is_flag=True, help="Refresh the list until Ctrl-C.")
@as_json
@click.pass_obj
def ls(target: Target, states: tuple[RunState, ...], graph: str | None, limit: int, watch: bool, as_json: bool) -> None:
    """List runs: open ones first, then ended ones.

    Open runs are those that can still be executed: pending, running, stalled, suspended and failed ones. In each part, the
    newest run comes first.
    """

    async def listed(runs: Runs) -> tuple[list[RunInfo], bool]:
        found: list[RunInfo] = []
        for wanted in (states,) if states else (OPEN, CLOSED):
            page = await runs.list(state=wanted, graph=graph, limit=limit + 1 - len(found))
            found += page.runs
            if len(found) > limit:
                return found[:limit], True
        return found, False

    def show(found: list[RunInfo], is_more: bool, now: float) -> None:
        _print_list(found, now, as_json)
        if not found:
            echo(f"there are no {'such runs' if states or graph else 'runs'} in {target}", err=True)
        if is_more:
            echo(f"there are more runs; use --limit {limit * 10} to see them", err=True)

    async def shown() -> None:
        async with target.opened() as stack:
            runs = Runs(StoreScope(stack))  # one for all looks: it remembers since when a run is unchanged
            show(*await listed(runs), stack.clock())
            while watch:
                await asyncio.sleep(WATCH_SECONDS)
                found = await listed(runs)
                if sys.stdout.isatty():
                    click.clear()
                show(*found, stack.clock())

    try:
        with sealing():
            asyncio.run(shown())
    except KeyboardInterrupt:
        if not watch:  # there it is the way to stop
            raise


def _print_list(found: list[RunInfo], now: float, as_json: bool) -> None:
    if as_json:
        echo_json([facts_of(each) for each in found])
    else:
        print_table(("run", "state", "graph", "node", "age", "steps", "why"), [_row(each, now) for each in found])


def _row(run: RunInfo, now: float) -> Sequence[str]:
    return (
        run.run_id,
        "ending" if run.is_ending else run.state,
        run.graph or "",
        run.node or "",
        "" if run.started is None else in_units(now - run.started),
        "" if run.steps is None else str(run.steps),
        why(run, now),
    )
