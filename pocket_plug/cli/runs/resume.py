"""`runs resume` and `runs answer`: execute a run here, in its graph."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pocket_plug.cli.given import TakesNumbers, value_of
from pocket_plug.cli.output import as_json, only_json
from pocket_plug.cli.run import load_graph, print_result, trace_options, traced
from pocket_plug.cli.target import Target
from pocket_plug.graph.durable.waits import step_of_place
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.ask import AskStep
from pocket_plug.graph.runs import RunInfo, Runs
from pocket_plug.plugins.pocket import Pocket, default_pocket
from pocket_plug.primitives.signals import run_loop
from pocket_plug.store.store import StoreScope

from .facts import print_state, say_how_to_resume

if TYPE_CHECKING:
    from pocket_plug.layers.tracing import Capture

T = TypeVar("T")


def _resuming(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `resume` and `answer` share."""
    changed = click.option("--allow-changed", is_flag=True, help="Resume although nodes ahead have changed.")
    return changed(trace_options(as_json(click.pass_obj(command))))


@click.command
@click.argument("graph", metavar="TARGET")
@click.argument("run_id", metavar="RUN")
@click.option("--takeover", is_flag=True, help="Take it over from the process that executes it.")
@_resuming
def resume(
    target: Target,
    graph: str,
    run_id: str,
    takeover: bool,
    allow_changed: bool,
    trace: bool,
    capture: Capture | None,
    as_json: bool,
) -> None:
    """Resume a run, and print its result.

    TARGET is the run's graph, as for `run`. If the run has to wait, for an answer or until a time, it prints which, and
    the exit code is 3.
    """

    async def resumed(graph: Graph[Any, Any], pocket: Pocket) -> object:
        return await graph.resume(run_id, pocket=pocket, allow_changed=allow_changed, takeover=takeover)

    with only_json(as_json):
        result = with_graph(target, graph, resumed, trace, capture)
    print_result(result, as_json)


@click.command(cls=TakesNumbers)  # -1 is an answer
@click.argument("graph", metavar="TARGET")
@click.argument("run_id", metavar="RUN")
@click.argument("answer_json", metavar="ANSWER")
@click.option("--question", metavar="ID", help="The question, if the run has asked several.")
@click.option("--leave", is_flag=True, help="Only record the answer: a worker resumes the run.")
@_resuming
def answer(
    target: Target,
    graph: str,
    run_id: str,
    answer_json: str,
    question: str | None,
    leave: bool,
    allow_changed: bool,
    trace: bool,
    capture: Capture | None,
    as_json: bool,
) -> None:
    """Answer a question of a run, and resume it.

    The result of the run is printed. ANSWER is JSON, read as the type of the answer, such as true for a bool. For a str,
    plain text is enough. @FILE reads it from a file, - from stdin.
    """

    async def answered(graph: Graph[Any, Any], pocket: Pocket) -> object:
        runs = Runs(StoreScope(graph.place(pocket.store)[0]))
        given = value_of(answer_json, await _answer_type(graph, runs, run_id, question), "ANSWER")
        if leave:
            return await runs.answer(run_id, given, question=question, graph=graph)
        return await graph.resume(run_id, answer=given, question=question, pocket=pocket, allow_changed=allow_changed)

    with only_json(as_json):
        result = with_graph(target, graph, answered, trace, capture)
    if isinstance(result, RunInfo) and leave:
        print_state(result, as_json)
        if not as_json and result.state == "pending":
            say_how_to_resume()
    else:
        print_result(result, as_json)


def with_graph(
    target: Target,
    name: str,
    work: Callable[[Graph[Any, Any], Pocket], Awaitable[T]],
    trace: bool,
    capture: Capture | None,
    *,
    may_be_new: bool = False,
) -> T:
    """Load a run's graph, and call `work` with it and a Pocket for the target's store."""
    target.make_default(may_be_new=may_be_new)
    title, graph = load_graph(name)

    async def worked() -> T:
        async with default_pocket() as pocket:
            target.refuse_another(title, graph.place(pocket.store)[0], pocket.store.stack)
            return await work(graph, pocket)

    with traced(trace, capture):
        return run_loop(worked())


async def _answer_type(graph: Graph[Any, Any], runs: Runs, run_id: str, question: str | None) -> Any:
    """The type of an answer to a run's question."""
    asked = [each for each in (await runs.history(run_id)).questions if question in (None, each.id)]
    if not asked:
        return str  # any text: the answer will be refused, with the questions that there are
    step = step_of_place(graph.plan, asked[-1].id)
    return step.answer_type if isinstance(step, AskStep) else Any
