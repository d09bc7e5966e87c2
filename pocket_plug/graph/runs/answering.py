"""Records an answer to a question of a run, which a worker then resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pocket_plug.codec import default_codec
from pocket_plug.errors import ConflictError, InputError, RunMismatchError, RunStateError
from pocket_plug.graph.durable.moving import Seen, move, read_after_failure
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.durable.waits import (
    PlacedWait,
    already_settled,
    is_same,
    put_wait,
    read_wait,
    step_of_place,
    waits_to_answer,
    wanted_question,
)
from pocket_plug.graph.kinds.ask import AskStep
from pocket_plug.graph.nodes.node import AnyNode
from pocket_plug.graph.planning.plan import PlannedGraph
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.typechecks import checker, type_name
from pocket_plug.primitives.values import Hint
from pocket_plug.store.backend import Backend, Put

from .info import RunInfo, info_of, waits_for
from .operations import must_see

_PLAIN: Sequence[Hint] = (int, float, str, bytes, list, tuple, dict, set, frozenset)
"""Types that can be checked without the graph that asks. For types with only a few values, `Wait.choices` is checked instead."""


async def answer(
    watch: StallWatch, run_id: str, value: object, question: str | AnyNode | None, graph: PlannedGraph | None
) -> RunInfo:
    """Record an answer. A suspended run becomes pending; if an execution owns the run, it finds the answer by itself."""
    encoded, stack = default_codec.encode(value), watch.stack
    while True:
        seen = await must_see(watch, run_id)
        waits = await waits_to_answer(partial(_waits, stack, seen), seen.checkpoint.frames, question)
        asked = wanted_question(run_id, waits, question, seen.status)
        if not asked.wait.is_open:
            if asked.wait.answer is None or not is_same(asked.wait.answer, encoded, value):
                raise already_settled(run_id, asked, value)
            return info_of(seen)
        if seen.status in ("finished", "cancelled"):
            raise RunStateError(run_id, seen.status, f"run {run_id!r} can't take an answer: it is {seen.status}")
        _check(run_id, asked, value, graph)
        settled = put_wait(seen.part, asked.place, replace(asked.wait, answer=encoded, settled=stack.clock()))
        if seen.status == "suspended":
            answered = await move(stack, seen, "pending", [settled], {settled.key: asked.version})
        else:
            answered = await _leave(stack, seen, settled, asked)
        if answered is not None:
            return info_of(answered)


async def _waits(stack: Backend, seen: Seen, at: str) -> Mapping[str, PlacedWait]:
    return {each.place: each for each in await waits_for(stack, seen, at)}


def _check(run_id: str, asked: PlacedWait, value: object, graph: PlannedGraph | None) -> None:
    """Raise InputError if the answer doesn't have the type, or isn't one of the values, that the question asks for.

    Raises RunMismatchError if the given graph doesn't ask this question.
    """
    wait = asked.wait
    wanted = wait.asks_for
    if graph is not None:
        step = step_of_place(graph.plan, asked.place)
        if not isinstance(step, AskStep):
            raise RunMismatchError(
                f"graph {graph.name!r} has no question {asked.place!r}; give the graph of run {run_id!r}"
            )
        fits, wanted = step.accepts(value), type_name(step.answer_type)
    elif wait.choices is not None:
        plain = getattr(value, "value", value) if type(value).__name__ == wanted else value  # of an Enum
        fits = any(type(each) is type(plain) and each == plain for each in wait.choices)
        wanted = " or ".join(map(repr, wait.choices))
    else:
        plain_types = [each for each in _PLAIN if type_name(each) == wanted]
        fits = any(checker(each)(value) for each in plain_types) or type_name(type(value)) == wanted
        wanted += "" if plain_types else "; give graph=…, which has that type"
    if not fits:
        raise InputError(
            f"question {asked.place!r} of run {run_id!r} asks for {wanted}, not {summary(value)}; it is still open"
        )


async def _leave(stack: Backend, seen: Seen, settled: Put, asked: PlacedWait) -> Seen | None:
    """Record the answer while an execution owns the run. Returns None if the run or the question has changed meanwhile."""
    expect: Mapping[str, int] = {settled.key: asked.version, seen.state_key: seen.state_version}
    try:
        await stack.write([settled], expect)
    except ConflictError:
        return None
    except Exception:
        now = await read_after_failure(seen.run_id, stack.read(settled.key))
        given: Any = None if now is None else read_wait(seen.part, settled.key, now).wait.answer
        if given != settled.value["answer"]:
            raise
    return seen
