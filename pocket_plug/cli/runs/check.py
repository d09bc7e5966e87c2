"""`runs check`: which open runs can resume in the current graph; to be used before a deployment."""

from __future__ import annotations

from dataclasses import asdict

import click

from pocket_plug.cli.output import as_json, echo, echo_json, only_json, print_table
from pocket_plug.cli.run import load_graph
from pocket_plug.cli.target import Target
from pocket_plug.graph.durable.check import OPEN_RECORDED, RunCheck
from pocket_plug.graph.durable.states import graph_of, prefixes_in
from pocket_plug.plugins.pocket import default_pocket
from pocket_plug.primitives.signals import run_loop
from pocket_plug.primitives.terminal import escaped


@click.command
@click.argument("graph", metavar="TARGET")
@as_json
@click.pass_obj
def check(target: Target, graph: str, as_json: bool) -> int:
    """Check whether open runs can resume in the current graph.

    TARGET is the graph, as for `run`. No run is executed, and nothing is written. The exit code is 0 if all can resume,
    and 1 if any can't.
    """
    with only_json(as_json):
        found, others = _checked(target, graph)
    refused = [each for each in found if not each.can_resume]
    if as_json:
        echo_json([asdict(each) for each in found])
    else:
        rows = [(each.run_id, each.state, each.node, each.verdict, _why(each)) for each in found]
        print_table(("run", "state", "node", "verdict", "why"), rows)
        summary = f"all {len(found):,} can resume" if found else "there are no open runs"
        if refused:
            summary = f"{len(refused):,} of {len(found):,} open runs can't resume"
        echo(summary, err=True)
        if others:  # perhaps of a graph that the new version of the program doesn't have
            echo(escaped(f"not checked: the open runs of {', '.join(map(repr, others))}"), err=True)
    return int(bool(refused))


def _why(found: RunCheck) -> str:
    return "; ".join(found.differences) or found.why


def _checked(target: Target, name: str) -> tuple[list[RunCheck], list[str]]:
    """The checks, and the names of the other graphs in the store that have open runs."""
    target.make_default()
    title, graph = load_graph(name)

    async def checked() -> tuple[list[RunCheck], list[str]]:
        async with default_pocket() as pocket:
            stack = graph.place(pocket.store)[0]
            target.refuse_another(title, stack, pocket.store.stack)
            found = await graph.check_runs(pocket=pocket)
            open_ = {graph_of(each) for status in OPEN_RECORDED for each in await prefixes_in(stack, status)}
            return found, sorted(open_ - {graph.name})

    return run_loop(checked())
