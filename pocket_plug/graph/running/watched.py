"""A visit of a node in a run that has observers: makes its NodeCall, and calls the observers around the visit."""

from __future__ import annotations

from pocket_plug.graph.observing.views import NodeCall, new_call
from pocket_plug.graph.observing.watching import Entered, await_pace, enter, fail, leave
from pocket_plug.graph.planning.step import Step, Visited

from .protocols import Running


async def watched_visit(run: Running, step: Step, value: object, position: int | None = None) -> Visited:
    """Take a value through a node, inside the observers' context managers.

    If the observers only want failures, and the node isn't guarded, they are called only after a failure.
    """
    watchers, visits, visit = run.watchers, run.visits, 1
    if watchers.paced and run.loop:
        await await_pace(watchers.paced)
    if visits is not None:
        visits[step.name] = visit = visits.get(step.name, 0) + 1
    if step.is_hidden:
        return await step.ways[run.where].take(run, value, None)
    run.run.steps += 1
    facts = step.facts or step.find_facts()
    call: NodeCall | None = None
    if not watchers.spare or step.guarded or run.ledger is not None:
        call = new_call(run.run, facts, visit, value, position)
    entered: Entered = []
    try:
        if call is not None and watchers.of_nodes:
            enter(entered, watchers.of_nodes, call)
        if call is not None and run.ledger is not None:
            run.ledger.report_resumed(run, call)
        visited = await step.ways[run.where].take(run, value, call)
    except BaseException as error:
        if call is None:
            call = new_call(run.run, facts, visit, value, position)
            enter(entered, watchers.of_nodes, call)
        fail(call, entered, error)
        raise
    if call is not None:
        call.output, call.outcome = visited[1], call.outcome or "ok"
        leave(entered, None)
    return visited
