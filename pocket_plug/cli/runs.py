"""`runs`: durable runs are listed, looked at, gone on with, answered and removed.

What is shown is read without the program's types; only `resume` and `answer` load its graph.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import unquote

import click

from pocket_plug.codec import inspect_record
from pocket_plug.errors import CodecError, PocketError, RunBusyError, UnknownRunError
from pocket_plug.graph.ask import AskStep
from pocket_plug.graph.durable import RUN, keys_of, look_at, remove_run, step_at
from pocket_plug.graph.graph import Graph
from pocket_plug.plugins.pocket import default_pocket
from pocket_plug.primitives.signals import run_loop
from pocket_plug.primitives.terminal import escaped
from pocket_plug.store.backend import Entry
from pocket_plug.store.stack import Stack
from pocket_plug.store.store import MISSING

from .entries import Target, by_name, by_url, found_entries, in_units, is_one_place, sealing, text_of
from .given import value_of
from .jsonlines import is_json, type_in
from .output import as_json, echo, echo_json, print_table
from .run import is_graph, print_result, trace_option, traced
from .runs_check import check
from .runs_prune import prune
from .target import load

UNREADABLE = "unreadable"
"""The state of a run whose record is damaged."""


@click.group
@by_url
@by_name
@click.pass_context
def runs(context: click.Context, url: str | None, name: str | None) -> None:
    """Look at durable runs, go on with them, answer and remove them.

    Without --url and --name they are those in the store of [store] in the configuration.
    """
    context.obj = Target(url, name)


runs.add_command(check)
runs.add_command(prune)


# ---------------------------------------------------------------- ls
@runs.command
@click.option("--state", type=click.Choice(("running", "suspended", "finished", UNREADABLE)), help="Only those.")
@as_json
@click.pass_obj
def ls(target: Target, state: str | None, as_json: bool) -> None:
    """List the runs, those that were begun first at the top.

    A run that failed, or whose process died, is running until somebody goes on with it.
    """

    async def listed() -> tuple[list[dict[str, Any]], float]:
        async with target.opened() as stack:
            names = [name async for name in stack.scan(RUN)]
            found = [_facts(name, entry) async for name, entry in found_entries(stack, names)]
            return found, stack.clock()

    with sealing():
        found, now = asyncio.run(listed())
    found = sorted((each for each in found if state in (None, each["state"])), key=lambda each: each["started"] or 0.0)
    if as_json:
        echo_json(found)
        return
    rows = [
        (
            each["run"],
            each["state"],
            each["graph"] or "",
            each["node"] or "",
            "" if each["started"] is None else in_units(now - each["started"]),
            "" if each["steps"] is None else str(each["steps"]),
        )
        for each in found
    ]
    print_table(("run", "state", "graph", "node", "age", "steps"), rows)


def _facts(key: str, entry: Entry | CodecError) -> dict[str, Any]:
    """What there is to say of a run, in whatever condition its record is."""
    facts: dict[str, Any] = {"run": unquote(key.removeprefix(RUN))}
    try:
        if isinstance(entry, CodecError):
            raise entry
        record, checkpoint = look_at(key, entry)
    except PocketError:
        nothing = dict.fromkeys(("graph", "node", "steps", "executions", "started", "updated", "expires_at"))
        return {**facts, "state": UNREADABLE, **nothing}
    return {
        **facts,
        "state": record["status"],
        "graph": record["graph"],
        "node": "/".join(frame.node for frame in checkpoint.frames if frame.node) or None,
        "steps": record["steps"],
        "executions": record["epoch"],
        "started": record["started"],
        "updated": record["updated"],
        "expires_at": entry.expires_at,
    }


# ---------------------------------------------------------------- show
@runs.command
@click.argument("run_id", metavar="RUN")
@as_json
@click.pass_obj
def show(target: Target, run_id: str, as_json: bool) -> None:
    """Show a run: where it stands, the values that it has kept, and the path that it has taken."""

    async def looked_up() -> tuple[dict[str, Any], float]:
        key, part = keys_of(run_id)
        async with target.opened() as stack:
            entry = await stack.read(key)
            if entry is None:
                raise UnknownRunError(f"there is no run {run_id!r} in {target}; `pocket-plug runs ls` lists them")
            record, checkpoint = look_at(key, entry)
            start = [found async for _, found in found_entries(stack, [f"{part}start"])]
            frames = checkpoint.frames
            facts = _facts(key, entry) | {"trace_id": _trace_id(record["carrier"])}
            facts["input"] = _kept(_part(start[0], "input") if start else None)
            facts["value"] = _kept(frames[-1].value)
            facts |= {name: _kept(record[name]) for name in ("question", "answer", "result")}
            nodes = [frame.node for frame in frames]
            facts["visits"] = {
                "/".join([*filter(None, nodes[:depth]), name]): visits
                for depth, frame in enumerate(frames)
                for name, visits in frame.visits.items()
            }
            names = [name async for name in stack.scan(f"{part}path:")]
            facts["path"] = [
                {name: _part(passed, name) for name in ("node", "next", "at")}
                async for _, passed in found_entries(stack, names)
            ]
            return facts, stack.clock()

    with sealing():
        facts, now = asyncio.run(looked_up())
    if as_json:
        echo_json(facts)
        return
    for name, fact in facts.items():
        if name != "path" and fact is not None and (text := _as_text(name, fact, now)):
            echo(f"{name:10}  " + text.replace("\n", f"\n{'':12}"))
    if facts["path"]:
        echo()
        rows = [(_text(each["node"]), _text(each["next"]), _ago(each["at"], now)) for each in facts["path"]]
        print_table(("passed", "next", "ago"), rows)


def _as_text(name: str, fact: Any, now: float) -> str:
    if name in ("started", "updated"):
        return f"{in_units(now - fact)} ago"
    if name == "expires_at":
        return f"in {in_units(fact - now)}"
    if name == "visits":
        return escaped(", ".join(f"{node} {visits}" for node, visits in fact.items()))
    if isinstance(fact, dict):
        kept = cast("dict[str, Any]", fact)
        return str(kept["text"]) if "text" in kept else text_of(kept["value"])
    return escaped(str(fact))


def _text(found: object) -> str:
    return found.removeprefix("/") if isinstance(found, str) else ""


def _ago(found: object, now: float) -> str:
    return in_units(now - found) if isinstance(found, float) else UNREADABLE


def _part(entry: Entry | CodecError, name: str) -> Any:
    """A field of one of a run's further records; None where that is none."""
    value: Any = entry.value if isinstance(entry, Entry) else None
    return value.get(name) if value.__class__ is dict else None


def _kept(record: object) -> dict[str, object] | None:
    """A value that a run has kept, as an export would have it, with a text where that is no JSON."""
    if not isinstance(record, bytes) or not record:
        return None
    try:
        value = inspect_record(record)
    except CodecError as error:
        return {"type": "damaged", "record": record, "text": f"damaged: {error}"}
    return {"value": value} if is_json(value) else {"type": type_in(record), "record": record, "text": text_of(value)}


def _trace_id(carrier: Mapping[str, object]) -> str | None:
    """That of the first execution, as the W3C's traceparent has it."""
    pieces = str(carrier.get("traceparent", "")).split("-")
    return pieces[1] if len(pieces) > 1 else None


# ---------------------------------------------------------------- resume and answer
def _going_on(command: Callable[..., None]) -> Callable[..., None]:
    """What `resume` and `answer` have in common."""
    changed = click.option("--allow-changed", is_flag=True, help="Go on though the graph has changed since.")
    return changed(trace_option(as_json(click.pass_obj(command))))


@runs.command
@click.argument("graph", metavar="TARGET")
@click.argument("run_id", metavar="RUN")
@_going_on
def resume(target: Target, graph: str, run_id: str, allow_changed: bool, trace: bool, as_json: bool) -> None:
    """Go on with a run, and print its result.

    TARGET is the run's graph, as `run` takes it. Where the run has to wait for an answer, the question is said and the
    exit code is 3.
    """
    print_result(_resumed(target, graph, run_id, None, allow_changed, trace), as_json)


@runs.command(context_settings={"ignore_unknown_options": True})  # -1 is an answer
@click.argument("graph", metavar="TARGET")
@click.argument("run_id", metavar="RUN")
@click.argument("answer_json", metavar="ANSWER")
@_going_on
def answer(
    target: Target, graph: str, run_id: str, answer_json: str, allow_changed: bool, trace: bool, as_json: bool
) -> None:
    """Answer the question at which a run is suspended, go on with it, and print its result.

    ANSWER is JSON, read as the type that the graph asks for; @FILE reads it from a file, - from stdin.
    """
    print_result(_resumed(target, graph, run_id, answer_json, allow_changed, trace), as_json)


def _resumed(
    target: Target, name: str, run_id: str, answer_json: str | None, allow_changed: bool, trace: bool
) -> object:
    target.make_default()
    title, graph = load(name, ("graph",))
    if not is_graph(graph):
        raise click.UsageError(
            f"{title} is {type(graph).__name__}, not a Graph; name the graph that the run is of: FILE:name"
        )

    async def resumed() -> object:
        async with default_pocket() as pocket:
            stack, _ = graph.place(pocket.store)
            if (target.url or target.name) is not None and not is_one_place(stack, pocket.store.stack):
                raise click.UsageError(
                    f"{title} has a store of its own, so its runs aren't in {target}; leave out --url and --name"
                )
            given = MISSING if answer_json is None else await _answer(graph, stack, run_id, answer_json)
            return await graph.resume(run_id, answer=given, pocket=pocket, allow_changed=allow_changed)

    with traced(trace):
        return run_loop(resumed())


async def _answer(graph: Graph[Any, Any], stack: Stack, run_id: str, text: str) -> object:
    """The answer as the type that is asked for where the run stands."""
    if stack.is_new:
        await stack.ensure_open()
    key, _ = keys_of(run_id)
    entry = await stack.read(key)
    step = None if entry is None else step_at(graph.plan, look_at(key, entry)[1].frames)
    return value_of(text, step.answer_type if isinstance(step, AskStep) else Any, "ANSWER")


# ---------------------------------------------------------------- rm
@runs.command
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN...")
@click.option("--force", is_flag=True, help="Those that are running too; an execution that is at one is fenced off.")
@click.pass_obj
def rm(target: Target, run_ids: tuple[str, ...], force: bool) -> int:
    """Remove runs; their ids are free again. A RUN that isn't there is said, and the exit code is 1."""
    wanted = list(dict.fromkeys(run_ids))

    async def removed() -> list[str]:
        async with target.opened() as stack:
            return [run_id for run_id in wanted if not await remove_run(stack, run_id, force=force)]

    try:
        with sealing():
            missing = asyncio.run(removed())
    except RunBusyError as error:
        raise click.UsageError(str(error).replace("use force=True", "add --force")) from error
    for run_id in missing:
        echo(f"there is no run {run_id!r}", err=True)
    return int(bool(missing))
