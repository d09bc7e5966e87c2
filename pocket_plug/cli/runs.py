"""`runs`: lists, shows, resumes, answers, cancels, retries and removes durable runs.

The commands use `Runs`, and need no types of the program; only `resume`, `answer` and `check` load the graph.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

import click

from pocket_plug.codec import inspect_record
from pocket_plug.errors import (
    CodecError,
    CorruptRecordError,
    RunBusyError,
    RunStateError,
    UnknownRunError,
    as_date,
)
from pocket_plug.graph.durable import RunFailure, keys_of
from pocket_plug.graph.durable.waits import step_of_place
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.ask import AskStep
from pocket_plug.graph.runs import ENDED, OPEN, RunHistory, RunInfo, RunQuestion, Runs, RunState, RunValue
from pocket_plug.plugins.pocket import Pocket, default_pocket
from pocket_plug.primitives.signals import run_loop
from pocket_plug.primitives.terminal import escaped
from pocket_plug.store.store import StoreScope

from .entries import sealing, text_of
from .given import TakesNumbers, value_of
from .jsonlines import is_json, type_in
from .output import as_json, echo, echo_json, in_units, only_json, plural, print_table
from .run import load_graph, print_result, trace_options, traced
from .runs_check import check
from .runs_prune import prune
from .target import Target, by_name, by_url

if TYPE_CHECKING:
    from pocket_plug.layers.tracing import Capture

T = TypeVar("T")
LIMIT = 100
"""How many runs `ls` shows by default."""
WATCH_SECONDS = 2.0
"""Seconds between two refreshes of `ls --watch`."""
CLOSED: tuple[RunState, ...] = (*ENDED, "unreadable")
NARROW = 60
"""How many characters of an error's text a table shows."""

LINES = 20
"""How many lines of a value, and of the path, `show` prints."""


@click.group
@by_url
@by_name
@click.pass_context
def runs(context: click.Context, url: str | None, name: str | None) -> None:
    """List, resume, answer, cancel, retry and remove durable runs.

    The store is that of [store] in the configuration, unless --url or --name names another one.
    """
    context.obj = Target(url, name)


runs.add_command(check)
runs.add_command(prune)


def _with_runs(target: Target, work: Callable[[Runs], Awaitable[T]]) -> tuple[T, float]:
    """Call `work` with the runs of the target's store. Returns its result, and the time by the store's clock."""

    async def worked() -> tuple[T, float]:
        async with target.opened() as stack:
            return await work(Runs(StoreScope(stack))), stack.clock()

    with sealing():
        return asyncio.run(worked())


# ---------------------------------------------------------------- ls
@runs.command
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
        echo_json([_facts(each) for each in found])
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
        _why(run, now),
    )


def _why(run: RunInfo, now: float) -> str:
    """The reason for a run's state, for operators."""
    if run.error is not None:
        return _narrow(run.error)
    if run.failure is not None:
        return _narrow(_failed(run.failure))
    for each in run.questions:
        more = f", and {len(run.questions) - 1} more" if len(run.questions) > 1 else ""
        return _narrow(_text(_kept(each.question))) + more
    if run.wake_at is not None:
        return f"for {in_units(run.wake_at - now)}"
    if run.owner is not None:
        silent = now - (run.updated if run.updated is not None else run.owner.since)
        # By this machine's clock, so it is only a hint; `--watch` finds out.
        late = f", longer than its lease of {in_units(run.owner.lease)}" if silent > run.owner.lease else ""
        return f"pid {run.owner.pid} on {run.owner.host}, last written {in_units(silent)} ago{late}"
    return ""


def _narrow(text: str) -> str:
    line = text.replace("\n", " ")
    return line if len(line) <= NARROW else f"{line[: NARROW - 1]}…"


def _failed(failure: RunFailure) -> str:
    return f"{failure.type.rpartition('.')[2]}: {failure.message}"


def _facts(run: RunInfo) -> dict[str, Any]:
    """A run for JSON, without its result, which may be large. 0.1.0 called its id `run`; 0.3 removes that name."""
    found = {each.name: getattr(run, each.name) for each in fields(run) if each.name != "result"}
    return {**found, "questions": [_question(each) for each in run.questions], "run": run.run_id}


def _question(question: RunQuestion) -> dict[str, Any]:
    found = {each.name: getattr(question, each.name) for each in fields(question) if each.name != "run_id"}
    return {**found, "question": _kept(question.question), "answer": _kept(question.answer)}


# ---------------------------------------------------------------- show
@runs.command
@click.argument("run_id", metavar="RUN")
@as_json
@click.pass_obj
def show(target: Target, run_id: str, as_json: bool) -> None:
    """Show a run: its node, error, values, executions and path."""
    history, now = _with_runs(target, lambda runs: runs.history(run_id))
    with sealing():
        facts = _facts(history.run) | {
            "input": _kept(history.input),
            "value": _kept(history.value),
            "questions": [_question(each) for each in history.questions],
            "result": _kept(history.run.result),
            "visits": dict(history.visits),
        }
    if as_json:
        executions = [asdict(each) for each in history.executions]
        echo_json({**facts, "executions": executions, "path": [asdict(each) for each in history.path]})
        return
    del facts["run"]
    if facts.pop("is_ending"):
        facts["state"] = "ending"  # as in `ls`
    facts["executions"] = len(history.executions) or facts["executions"]
    for name, fact in facts.items():
        if fact is not None and (text := _as_text(name, fact, now)):
            echo(f"{name:10}  " + text.replace("\n", f"\n{'':12}"))
    _print_tables(history, now)


def _print_tables(history: RunHistory, now: float) -> None:
    if any(each.trace_id or each.failure for each in history.executions) or len(history.executions) > 1:
        rows = [
            (
                str(each.number),
                _ago(each.began, now),
                "" if each.pid is None else f"pid {each.pid} on {each.host}",
                each.left or "",
                "" if each.failure is None else _narrow(_failed(each.failure)),
                each.trace_id or "",
            )
            for each in history.executions
        ]
        echo()
        print_table(("execution", "began", "process", "state after it", "error", "trace"), rows)
    if history.trace_ids:
        of_all = shlex.join(["pocket-plug", "trace", "show", history.run.run_id])
        echo(escaped(f"\n{of_all} draws them, if their spans are in a file", keep="\n"))
    if history.path:
        echo()
        last = history.path[-LINES:]  # a loop may have passed thousands
        if more := len(history.path) - len(last):
            echo(f"{plural(more, 'node')} passed before these; --json prints all")
        passed = [(each.node or "", each.next or "", _ago(each.at, now)) for each in last]
        print_table(("passed", "next", "ago"), passed)


def _as_text(name: str, fact: Any, now: float) -> str:
    if name in ("started", "updated", "since"):
        return f"{in_units(now - fact)} ago, {as_date(fact, local=True)}"
    if name in ("expires_at", "wake_at"):
        return f"in {in_units(fact - now)}"
    if name == "visits":
        return escaped(", ".join(f"{node} {visits}" for node, visits in fact.items()))
    if name == "owner":
        return escaped(f"pid {fact.pid} on {fact.host}, since {in_units(now - fact.since)}")
    if isinstance(fact, RunFailure):
        item = "" if fact.item is None else f", item {fact.item}"
        tries = "" if fact.attempts == 1 else f", after {fact.attempts} attempts"
        at = f" at {fact.node}, visit {fact.visit}{item}{tries}" if fact.node else ""
        return escaped(f"{_failed(fact)}\n{in_units(now - fact.at)} ago{at}", keep="\n")
    if isinstance(fact, list):
        return "\n".join(_question_text(each, now) for each in cast("list[dict[str, Any]]", fact))
    if isinstance(fact, dict):
        return _text(cast("dict[str, Any]", fact))
    return "" if fact is False else escaped(str(fact))


def _question_text(question: dict[str, Any], now: float) -> str:
    """A question and its answer, as one or two lines."""
    lines = [f"{question['id']}: {_text(question['question'])}"]
    if question["answer"] is not None:
        lines.append(f"    answered {_text(question['answer'])}, {in_units(now - question['settled'])} ago")
    elif question["settled"] is not None:
        lines.append(f"    not answered in time, {in_units(now - question['settled'])} ago")
    else:
        choices = question["choices"]
        wanted = question["asks_for"] if choices is None else " or ".join(map(text_of, choices))
        until = "" if question["until"] is None else f", within {in_units(question['until'] - now)}"
        lines.append(f"    waits for {wanted}{until}")
    return escaped("\n".join(lines), keep="\n")


def _text(kept: Mapping[str, Any] | None) -> str:
    """A value of a run, for people."""
    if kept is None:
        return ""
    text = str(kept["text"]) if "text" in kept else text_of(kept["value"])
    lines = text.split("\n")
    if len(lines) <= LINES:
        return text
    return "\n".join([*lines[:LINES], f"… and {plural(len(lines) - LINES, 'line')} more; --json prints all"])


def _ago(found: float | None, now: float) -> str:
    return "unreadable" if found is None else in_units(now - found)


def _kept(value: RunValue | None) -> Mapping[str, object] | None:
    """A value of a run as in an export, with a `text` if JSON can't represent it."""
    if value is None:
        return None
    record = value.record
    try:
        found = inspect_record(record)
    except CodecError as error:
        return {"type": "damaged", "record": record, "text": f"damaged: {error}"}
    return {"value": found} if is_json(found) else {"type": type_in(record), "record": record, "text": text_of(found)}


# ---------------------------------------------------------------- resume and answer
def _resuming(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `resume` and `answer` share."""
    changed = click.option("--allow-changed", is_flag=True, help="Resume although nodes ahead have changed.")
    return changed(trace_options(as_json(click.pass_obj(command))))


@runs.command
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
        result = _with_graph(target, graph, resumed, trace, capture)
    print_result(result, as_json)


@runs.command(cls=TakesNumbers)  # -1 is an answer
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
        result = _with_graph(target, graph, answered, trace, capture)
    if isinstance(result, RunInfo) and leave:
        _print_state(result, as_json)
        if not as_json and result.state == "pending":
            _say_how_to_resume()
    else:
        print_result(result, as_json)


def _with_graph(
    target: Target,
    name: str,
    work: Callable[[Graph[Any, Any], Pocket], Awaitable[object]],
    trace: bool,
    capture: Capture | None,
) -> object:
    """Load a run's graph, and call `work` with it and a Pocket for the target's store."""
    target.make_default()
    title, graph = load_graph(name)

    async def worked() -> object:
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


# ---------------------------------------------------------------- cancel, retry and rm
@runs.command
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN...")
@as_json
@click.pass_obj
def cancel(target: Target, run_ids: tuple[str, ...], as_json: bool) -> int:
    """End runs; they can't be resumed after that. Their nodes' writes are kept.

    A process that executes such a run notices this at its next commit, or within a third of its lease. If a RUN can't be
    cancelled, that is reported, and the exit code is 1.
    """
    changed, refused = _change(target, run_ids, Runs.cancel, as_json)
    if not as_json and any(run.is_ending for run in changed):
        echo(
            "ending: a process executes it, and notices this at its next commit, or within a third of its lease; if the process "
            "is gone, a worker ends the run",
            err=True,
        )
    return int(refused)


@runs.command
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN...")
@as_json
@click.pass_obj
def retry(target: Target, run_ids: tuple[str, ...], as_json: bool) -> int:
    """Retry runs that have failed or stalled: they become pending.

    `pocket-plug worker TARGET` then resumes them. Without a worker, use `resume`. If a RUN can't be retried, that is
    reported, and the exit code is 1.
    """
    changed, refused = _change(target, run_ids, Runs.retry, as_json)
    if changed and not as_json:
        _say_how_to_resume()
    return int(refused)


def _change(
    target: Target, run_ids: Sequence[str], operation: Callable[[Runs, str], Awaitable[RunInfo]], as_json: bool
) -> tuple[list[RunInfo], bool]:
    """Apply an operation to each run, and print the run's new state. Returns the changed runs, and whether any refused it."""

    async def changed(runs: Runs) -> None:
        for run_id in run_ids:
            try:
                run = await operation(runs, run_id)
            except (RunStateError, UnknownRunError, CorruptRecordError) as error:  # of this run only: others go on
                refused.append(error)
                echo(escaped(f"{type(error).__name__}: {error}"), err=True)
                continue
            if not as_json:
                _print_state(run, as_json=False)
            found.append(run)

    found: list[RunInfo] = []
    refused: list[Exception] = []
    try:
        _with_runs(target, changed)
    finally:
        if as_json:
            echo_json([_facts(each) for each in found])
    return found, bool(refused)


def _say_how_to_resume() -> None:
    """Say how to resume pending runs; on stderr, since stdout has a line for each run."""
    echo(
        "`pocket-plug worker TARGET` resumes pending runs, `pocket-plug runs resume TARGET RUN` a single one",
        err=True,
    )


def _print_state(run: RunInfo, as_json: bool) -> None:
    if as_json:
        echo_json(_facts(run))
    else:
        echo(escaped(f"{run.run_id}  {'ending' if run.is_ending else run.state}"))


@runs.command
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN...")
@click.option("--force", is_flag=True, help="Remove running ones too; their processes can write nothing more.")
@click.pass_obj
def rm(target: Target, run_ids: tuple[str, ...], force: bool) -> int:
    """Remove runs; their ids are free again. If a RUN doesn't exist, that is reported, and the exit code is 1."""
    for run_id in run_ids:
        keys_of(run_id)

    async def removed(runs: Runs) -> list[str]:
        return [each for each in dict.fromkeys(run_ids) if not await runs.remove(each, force=force)]

    try:
        missing, _ = _with_runs(target, removed)
    except RunBusyError as error:
        raise click.ClickException(str(error).replace("use force=True", "add --force")) from error
    for run_id in missing:
        echo(f"there is no run {run_id!r} in {target}; `pocket-plug runs{target.options} ls` lists the runs", err=True)
    return int(bool(missing))
