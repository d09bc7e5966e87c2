"""What the commands read and print of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pocket_plug.cli.entries import sealing, text_of
from pocket_plug.cli.jsonlines import is_json, type_in
from pocket_plug.cli.output import echo, echo_json, in_units, plural
from pocket_plug.cli.target import Target
from pocket_plug.codec import inspect_record
from pocket_plug.errors import CodecError
from pocket_plug.graph.durable.states import RunFailure
from pocket_plug.graph.runs import RunInfo, RunQuestion, Runs, RunValue
from pocket_plug.graph.runs.info import shown_state
from pocket_plug.primitives.terminal import escaped
from pocket_plug.store.store import StoreScope

T = TypeVar("T")

NARROW = 60
"""How many characters of an error's text a table shows."""

LINES = 20
"""How many lines of a value, and of the path, `show` prints."""


def with_runs(target: Target, work: Callable[[Runs], Awaitable[T]]) -> tuple[T, float]:
    """Call `work` with the runs of the target's store. Returns its result, and the time by the store's clock."""

    async def worked() -> tuple[T, float]:
        async with target.opened() as stack:
            return await work(Runs(StoreScope(stack))), stack.clock()

    with sealing():
        return asyncio.run(worked())


def why(run: RunInfo, now: float) -> str:
    """The reason for a run's state, for operators."""
    if run.error is not None:
        return narrow(run.error)
    if run.failure is not None:
        return narrow(failed(run.failure))
    for each in run.questions:
        more = f", and {len(run.questions) - 1} more" if len(run.questions) > 1 else ""
        return narrow(text_of_value(kept(each.question))) + more
    if run.wake_at is not None:
        # A worker takes a due run within a second. If none does, its log says why.
        left = run.wake_at - now
        return f"for {in_units(left)}" if left > -1 else f"was due {in_units(-left)} ago; no worker has taken it"
    if run.owner is not None:
        silent = now - run.owner.seen
        # By this machine's clock, so it is only a hint; `--watch` finds out.
        late = f", longer than its lease of {in_units(run.owner.lease)}" if silent > run.owner.lease else ""
        return f"pid {run.owner.pid} on {run.owner.host}, last seen {in_units(silent)} ago{late}"
    return ""


def narrow(text: str) -> str:
    line = text.replace("\n", " ")
    return line if len(line) <= NARROW else f"{line[: NARROW - 1]}…"


def failed(failure: RunFailure) -> str:
    return f"{failure.type.rpartition('.')[2]}: {failure.message}"


def facts_of(run: RunInfo) -> dict[str, Any]:
    """A run for JSON, without its result, which may be large. 0.1.0 called its id `run`; 0.3 removes that name."""
    found = {each.name: getattr(run, each.name) for each in fields(run) if each.name != "result"}
    return {**found, "questions": [question_facts(each) for each in run.questions], "run": run.run_id}


def question_facts(question: RunQuestion) -> dict[str, Any]:
    found = {each.name: getattr(question, each.name) for each in fields(question) if each.name != "run_id"}
    return {**found, "question": kept(question.question), "answer": kept(question.answer)}


def text_of_value(kept: Mapping[str, Any] | None) -> str:
    """A value of a run, for people."""
    if kept is None:
        return ""
    text = str(kept["text"]) if "text" in kept else text_of(kept["value"])
    lines = text.split("\n")
    if len(lines) <= LINES:
        return text
    return "\n".join([*lines[:LINES], f"… and {plural(len(lines) - LINES, 'line')} more; --json prints all"])


def kept(value: RunValue | None) -> Mapping[str, object] | None:
    """A value of a run as in an export, with a `text` if JSON can't represent it."""
    if value is None:
        return None
    record = value.record
    try:
        found = inspect_record(record)
    except CodecError as error:
        return {"type": "damaged", "record": record, "text": f"damaged: {error}"}
    return {"value": found} if is_json(found) else {"type": type_in(record), "record": record, "text": text_of(found)}


def print_state(run: RunInfo, as_json: bool) -> None:
    if as_json:
        echo_json(facts_of(run))
    else:
        echo(escaped(f"{run.run_id}  {shown_state(run)}"))


def say_how_to_resume() -> None:
    """Say how to resume pending runs; on stderr, since stdout has a line for each run."""
    echo(
        "`pocket-plug worker TARGET` resumes pending runs, `pocket-plug runs resume TARGET RUN` a single one",
        err=True,
    )
