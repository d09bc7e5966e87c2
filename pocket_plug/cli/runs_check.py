"""`runs check`: which open runs can resume in the current graph; to be used before a deployment."""

from __future__ import annotations

from dataclasses import asdict

import click

from pocket_plug.graph.durable import RunCheck
from pocket_plug.plugins.pocket import default_pocket
from pocket_plug.primitives.signals import run_loop

from .output import as_json, echo, echo_json, only_json, print_table
from .run import load_graph
from .target import Target


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
        found = _checked(target, graph)
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
    return int(bool(refused))


def _why(found: RunCheck) -> str:
    return "; ".join(found.differences) or found.why


def _checked(target: Target, name: str) -> list[RunCheck]:
    target.make_default()
    title, graph = load_graph(name)

    async def checked() -> list[RunCheck]:
        async with default_pocket() as pocket:
            target.refuse_another(title, graph.place(pocket.store)[0], pocket.store.stack)
            return await graph.check_runs(pocket=pocket)

    return run_loop(checked())
