"""`runs ls` and `runs count`: which runs there are, and how many."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import get_args

import click

from pocket_plug.cli.entries import sealing
from pocket_plug.cli.output import as_json, echo, echo_json, in_units, print_table
from pocket_plug.cli.target import Target
from pocket_plug.graph.runs import ENDED, OPEN, RunInfo, Runs, RunState
from pocket_plug.graph.runs.info import shown_state
from pocket_plug.store.store import StoreScope

from .facts import facts_of, why, with_runs
from .selection import Selection, error_names, selecting

LIMIT = 100
"""How many runs `ls` shows by default."""
WATCH_SECONDS = 2.0
"""Seconds between two refreshes of `ls --watch`."""
ALL: tuple[RunState, ...] = get_args(RunState)
CLOSED: tuple[RunState, ...] = (*ENDED, "unreadable")


@click.command
@selecting(ALL)
@click.option("--limit", type=click.IntRange(1), default=LIMIT, show_default=True, metavar="N", help="At most N runs.")
@click.option("--watch", is_flag=True, help="Refresh the list until Ctrl-C.")
@as_json
@click.pass_obj
def ls(target: Target, selection: Selection, limit: int, watch: bool, as_json: bool) -> None:
    """List runs: open ones first, then ended ones.

    Open runs are those that can still be executed: pending, running, stalled, suspended and failed ones. In each part, the
    newest run comes first.
    """

    def show(found: list[RunInfo], is_more: bool, now: float) -> None:
        print_list(found, now, as_json)
        if not found:
            say_that_there_are_none(target, selection)
        if is_more:
            echo(f"there are more runs; use --limit {limit * 10} to see them", err=True)

    async def shown() -> None:
        async with target.opened() as stack:
            runs = Runs(StoreScope(stack))  # one for all looks: it remembers since when a run is unchanged
            show(*await _listed(runs, selection, limit), stack.clock())
            while watch:
                await asyncio.sleep(WATCH_SECONDS)
                found = await _listed(runs, selection, limit)
                if sys.stdout.isatty():
                    click.clear()
                show(*found, stack.clock())

    try:
        with sealing():
            asyncio.run(shown())
    except KeyboardInterrupt:
        if not watch:  # there it is the way to stop
            raise


async def _listed(runs: Runs, selection: Selection, limit: int) -> tuple[list[RunInfo], bool]:
    """At most `limit` runs, and whether there are more."""
    found: list[RunInfo] = []
    for states in (selection.states,) if selection.states else (OPEN, CLOSED):
        async with aclosing(selection.each(runs, states, limit + 1)) as each:
            async for run in each:
                if len(found) == limit:
                    return found, True
                found.append(run)
    return found, False


def print_list(found: list[RunInfo], now: float, as_json: bool) -> None:
    if as_json:
        echo_json([facts_of(each) for each in found])
    else:
        print_table(("run", "state", "graph", "node", "age", "steps", "why"), [_row(each, now) for each in found])


def _row(run: RunInfo, now: float) -> Sequence[str]:
    return (
        run.run_id,
        shown_state(run),
        run.graph or "",
        run.node or "",
        _age(run.started, now),
        "" if run.steps is None else str(run.steps),
        why(run, now),
    )


def say_that_there_are_none(target: Target, selection: Selection) -> None:
    echo(f"there are no {'such runs' if selection.is_given else 'runs'} in {target}", err=True)


# ---------------------------------------------------------------- count
@dataclass(slots=True)
class _Group:
    """Runs that have these in common."""

    state: str
    graph: str | None
    node: str | None
    error: str | None
    runs: int = 0
    since: float | None = None
    """When the first of them entered its state, in epoch seconds."""

    def add(self, run: RunInfo) -> None:
        self.runs += 1
        if run.since is not None and (self.since is None or run.since < self.since):
            self.since = run.since


@click.command
@selecting(ALL)
@as_json
@click.pass_obj
def count(target: Target, selection: Selection, as_json: bool) -> None:
    """Count runs by state, graph, node and error.

    `oldest` is how long ago the first of them entered its state.
    """

    async def counted(runs: Runs) -> list[_Group]:
        groups: dict[tuple[str | None, ...], _Group] = {}
        async for run in selection.each(runs, selection.states or ALL):
            *_, error = error_names(run) or (None,)
            about = shown_state(run), run.graph, run.node, error
            groups.setdefault(about, _Group(*about)).add(run)
        return sorted(groups.values(), key=lambda group: -group.runs)

    groups, now = with_runs(target, counted)
    if as_json:
        echo_json([asdict(each) for each in groups])
        return
    rows = [
        (each.state, each.graph or "", each.node or "", each.error or "", f"{each.runs:,}", _age(each.since, now))
        for each in groups
    ]
    print_table(("state", "graph", "node", "error", "runs", "oldest"), rows)
    if not groups:
        say_that_there_are_none(target, selection)


def _age(since: float | None, now: float) -> str:
    return "" if since is None else in_units(now - since)
