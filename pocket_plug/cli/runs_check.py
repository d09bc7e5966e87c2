"""`runs check`: which of a graph's open runs can go on in it as it is now, for a look before a deploy."""

from __future__ import annotations

from dataclasses import asdict

import click

from pocket_plug.graph.durable import RunCheck
from pocket_plug.plugins.pocket import default_pocket
from pocket_plug.primitives.signals import run_loop

from .entries import Target, is_one_place
from .output import as_json, echo, echo_json, print_table
from .run import is_graph
from .target import load


@click.command
@click.argument("graph", metavar="TARGET")
@as_json
@click.pass_obj
def check(target: Target, graph: str, as_json: bool) -> int:
    """Judge all open runs of a graph: can they go on in it as it is now?

    TARGET is the graph, as `run` takes it. No run is executed, and nothing is written. The exit code is 0 where all can go on,
    and 1 where some can't.
    """
    found = _checked(target, graph)
    refused = [each for each in found if not each.can_go_on]
    if as_json:
        echo_json([asdict(each) for each in found])
    else:
        rows = [(each.run_id, each.state, each.at, each.verdict, _why(each)) for each in found]
        print_table(("run", "state", "node", "verdict", "why"), rows)
        told = (
            f"{len(refused):,} of {len(found):,} open runs can't go on" if refused else f"all {len(found):,} can go on"
        )
        echo(told, err=True)
    return int(bool(refused))


def _why(found: RunCheck) -> str:
    return "; ".join(found.differences) or found.why


def _checked(target: Target, name: str) -> list[RunCheck]:
    target.make_default()
    title, graph = load(name, ("graph",))
    if not is_graph(graph):
        raise click.UsageError(f"{title} is {type(graph).__name__}, not a Graph; name the graph to check: FILE:name")

    async def checked() -> list[RunCheck]:
        async with default_pocket() as pocket:
            stack, _ = graph.place(pocket.store)
            if (target.url or target.name) is not None and not is_one_place(stack, pocket.store.stack):
                raise click.UsageError(
                    f"{title} has a store of its own, so its runs aren't in {target}; leave out --url and --name"
                )
            return await graph.check_runs(pocket=pocket)

    return run_loop(checked())
