"""`runs prune`: removes old runs that have ended."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace

import click

from pocket_plug.cli.durations import duration
from pocket_plug.cli.entries import sealing
from pocket_plug.cli.output import as_json, echo, echo_json, plural
from pocket_plug.cli.target import Target
from pocket_plug.graph.durable.prune import Pruned
from pocket_plug.graph.durable.prune import prune as pruned_of
from pocket_plug.graph.retention import PRUNABLE, Retention
from pocket_plug.plugins.pocket import default_pocket


@click.command
@click.option("--older", type=duration, metavar="TIME", help="Only runs that ended longer ago, such as 30d or 12h.")
@click.option("--keep", type=click.IntRange(0), metavar="N", help="Keep the newest N of each graph and state.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(PRUNABLE), help="Only runs in this state; may be repeated."
)
@click.option("--graph", metavar="NAME", help="Only runs of this graph.")
@click.option("--dry-run", is_flag=True, help="Remove nothing; print what would be removed.")
@as_json
@click.pass_obj
def prune(
    target: Target,
    older: float | None,
    keep: int | None,
    states: tuple[str, ...],
    graph: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove old finished and cancelled runs.

    Give --older, --keep or both; without them, [runs] of the configuration is used. Other runs are not disturbed. A failed
    run can still be retried, so it is removed only with --state failed. The id of a removed run is free: a new run with
    this id begins from the start.
    """
    retention = _configured() if older is None and keep is None else Retention(older, keep)
    retention = replace(retention, states=states or retention.states, graph=graph)

    async def done() -> Pruned:
        async with target.opened() as stack:
            return await pruned_of(stack, retention, dry_run=dry_run)

    with sealing():
        pruned = asyncio.run(done())
    if as_json:
        echo_json(asdict(pruned))
    elif dry_run:
        echo(f"{_counted(pruned)} would be removed")
    else:
        echo(f"removed {_counted(pruned)}" + (f"; the file shrinks by {pruned.freed:,} bytes" if pruned.freed else ""))
    if kept := pruned.unreadable:
        them = "it" if kept == 1 else "them"
        echo(f"kept, since damaged: {plural(kept, 'run')}; `pocket-plug runs rm` removes {them} all the same", err=True)


def _configured() -> Retention:
    retention = default_pocket().config.runs
    if retention is None:
        raise click.UsageError(
            "neither --older nor --keep is given, and the configuration has no [runs]; "
            "give --older, --keep or both, or configure [runs]"
        )
    return retention


def _counted(pruned: Pruned) -> str:
    return f"{plural(pruned.runs, 'run')} ({plural(pruned.records, 'record')})"
