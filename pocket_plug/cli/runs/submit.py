"""`runs submit`: records a run, for a worker."""

from __future__ import annotations

from typing import Any

import click

from pocket_plug.cli.given import input_of, value_of
from pocket_plug.cli.output import as_json, only_json
from pocket_plug.cli.target import Target
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.runs import RunInfo, Runs
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.store.store import StoreScope

from .facts import print_state
from .resume import with_graph


@click.command
@click.argument("graph", metavar="TARGET")
@click.argument("run_id", metavar="RUN")
@click.option("--input", "given", metavar="JSON", help="The input of the graph. @FILE: from a file, -: from stdin.")
@as_json
@click.pass_obj
def submit(target: Target, graph: str, run_id: str, given: str | None, as_json: bool) -> None:
    """Record a run for a worker, and print its state.

    TARGET is the run's graph, and the input is read, as for `run`. No node is executed here. The same id with the same
    input is recorded only once, so the command can be repeated.
    """

    async def submitted(graph: Graph[Any, Any], pocket: Pocket) -> RunInfo:
        value = value_of(given, input_of(graph.plan.start), "--input")
        await graph.submit(value, run_id=run_id, pocket=pocket)
        return await Runs(StoreScope(graph.place(pocket.store)[0])).get(run_id)

    with only_json(as_json):
        run = with_graph(target, graph, submitted, trace=False, capture=None, may_be_new=True)
    print_state(run, as_json)
