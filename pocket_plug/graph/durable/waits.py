"""What a run waits for: an answer to a question, or a time. Each wait has a record, whose key contains the place that waits.

An answer writes this record and expects its version; a suspension of the run expects the version too. So an answer belongs to
one question, and none can come unnoticed between the run's last read and its suspension. The records of settled waits are kept
as a part of the run's history.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal
from urllib.parse import unquote

from pocket_plug.codec import default_codec, inspect_record, payload_of
from pocket_plug.errors import CodecError, CorruptRecordError, RunMismatchError, RunSuspendedError
from pocket_plug.graph.kinds.nesting import GraphStep
from pocket_plug.graph.nodes.node import AnyNode, options_of
from pocket_plug.graph.planning.plan import Plan
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.redaction import summary
from pocket_plug.store.backend import Backend, Entry, Put

from .records import Frame, Record, escaped, next_place

WAIT = "wait:"
"""The beginning of a wait's key after the run's prefix."""


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait of a run: an open or an answered question, or a sleep."""

    kind: Literal["question", "sleep"]
    since: float
    question: bytes | None = None
    asks_for: str = ""
    """The name of the answer's type."""
    choices: list[Any] | None = None
    """The possible answers, if the type has only a few values."""
    until: float | None = None
    """When the run continues without an answer, in epoch seconds."""
    answer: bytes | None = None
    settled: float | None = None
    """When it was answered, or when the run continued since the time had come."""

    @property
    def is_open(self) -> bool:
        """Is it not settled yet?"""
        return self.settled is None


@dataclass(frozen=True, slots=True)
class PlacedWait:
    """A wait with its place and the version of its record; 0 if it is not written yet."""

    place: str
    """Such as `review#1[3]/ask#1`: the nodes, each with the number of its visit, and the positions of items."""
    wait: Wait
    version: int = 0


_NAMES = [each.name for each in fields(Wait)]


def put_wait(part: str, place: str, wait: Wait) -> Put:
    """The change that records a wait."""
    return Put(wait_key(part, place), {name: getattr(wait, name) for name in _NAMES})


def wait_key(part: str, place: str) -> str:
    """The key of the wait at a place."""
    return f"{part}{WAIT}{escaped(place, ':')}"


def read_wait(part: str, key: str, entry: Entry) -> PlacedWait:
    """Decode a stored wait. Raises CorruptRecordError."""
    found: Any = entry.value
    try:
        return PlacedWait(unquote(key.removeprefix(part + WAIT)), Wait(**found), entry.version)
    except TypeError:
        raise CorruptRecordError(
            f"{key!r} is not a record of what a run waits for: {summary(found)}; the run can only be removed"
        ) from None


async def waits_of(stack: Backend, part: str, at: str = "") -> dict[str, PlacedWait]:
    """The waits of a run, open and settled, by place: those whose places begin with `at`. Raises CorruptRecordError."""
    keys = [key async for key in stack.scan(wait_key(part, at))]
    found = await stack.read_many(keys) if keys else {}
    waits = [read_wait(part, key, found[key]) for key in keys if key in found]
    return {each.place: each for each in waits}


def current_place(frames: Sequence[Frame]) -> str:
    """The place where a run is: all its open waits are there, or below that, in items and nested graphs."""
    return next_place("", frames, is_item=False)[1:]


async def waits_to_answer(
    read: Callable[[str], Awaitable[Mapping[str, PlacedWait]]], frames: Sequence[Frame], question: str | AnyNode | None
) -> Mapping[str, PlacedWait]:
    """The waits from which it can be known which question is meant. `read` reads those whose places begin with a text.

    These are all that the run ever had, thousands in a long one, only if the meant one isn't open now, or if none is named.
    """
    if question is not None:
        found = await read(current_place(frames))
        if question in found or any(each.wait.is_open and _is_of(question, place) for place, each in found.items()):
            return found
    return await read("")


def waits_in(record: Record, frames: Sequence[Frame]) -> dict[str, PlacedWait]:
    """The question in a run's record itself, with its answer, if an older version has written the record."""
    if record["format"] > 1 or record["question"] is None:
        return {}
    is_open = record["status"] == "suspended"
    if not is_open and not record["is_answered"]:
        return {}
    answer, settled = (None, None) if is_open else (record["answer"], record["updated"])
    place = current_place(frames)
    return {
        place: PlacedWait(
            place, Wait("question", record["updated"], record["question"], answer=answer, settled=settled)
        )
    }


def suspended(run_id: str, waits: Collection[PlacedWait], wake_at: float | None = None) -> RunSuspendedError:
    """The error that suspends a run which waits for these."""
    questions = {each.place: value_of(each.wait.question) for each in waits if each.wait.question is not None}
    if wake_at is None:
        wake_at = min((each.wait.until for each in waits if each.wait.until is not None), default=None)
    error = RunSuspendedError(run_id, questions, wake_at)
    error.waits = tuple(waits)
    return error


def value_of(record: bytes | None) -> Any:
    """The decoded value; plain values if the program's types are not registered here."""
    if record is None:
        return None
    try:
        return default_codec.decode(record)
    except CodecError:
        return inspect_record(record)


_NO_QUESTION: Mapping[str, str] = {
    "failed": "it has failed; try it again by resume(run_id), Runs.retry or `pocket-plug runs retry`",
    "suspended": "it sleeps",
}
"""Why a run has no open question, and the way out, by its status; for other statuses the message names the status."""


def wanted_question(
    run_id: str, waits: Mapping[str, PlacedWait], question: str | AnyNode | None, status: str
) -> PlacedWait:
    """The question that an answer is for: given by its id or by the node that asks, or the only one that the run has asked.

    Raises RunMismatchError if there is no such question; the message names the open ones.
    """
    asked = {place: each for place, each in waits.items() if each.wait.kind == "question"}
    open_ones = [place for place, each in asked.items() if each.wait.is_open]
    found: list[str]
    if question is None:
        found = list(asked) if len(asked) == 1 else []
        several = f"it has asked {len(asked)} questions, and a late answer could be for another one; give question=…"
        what = several if open_ones else "no question is open"
    elif isinstance(question, str):
        found = [question] if question in asked else []
        what = f"it has no question {question!r}"
    else:
        found = [place for place in open_ones if _is_of(question, place)]
        found = found or [place for place in asked if _is_of(question, place)][-1:]
        asked_what = "several questions" if found else "nothing"
        what = f"node {options_of(question).name!r} has asked {asked_what}; give the question's id"
    if len(found) == 1:
        return asked[found[0]]
    rest = (
        f". Open questions: {', '.join(map(repr, open_ones))}"
        if open_ones
        else f"; {_NO_QUESTION.get(status, f'it is {status}')}"
    )
    raise RunMismatchError(f"run {run_id!r} can't take the answer: {what}{rest}")


def already_settled(run_id: str, asked: PlacedWait, answer: object) -> RunMismatchError:
    """The error for an answer to a settled question that has another answer, or none."""
    what = "was already answered, with another answer, which counts"
    if asked.wait.answer is None:
        what = "was not answered in time, and the run continues without an answer"
    return RunMismatchError(
        f"run {run_id!r} can't take this answer ({summary(answer)}): question {asked.place!r} {what}"
    )


def is_same(encoded: bytes, other: bytes, value: object) -> bool:
    """Is `value` equal to the encoded one? `other` is its own encoding.

    The two may differ all the same: sets have no fixed order, and a class may have got a field with a default, or an upgrade.
    """
    if other == encoded:
        return True
    try:
        stored = default_codec.decode(encoded)
        now = default_codec.encode(stored)
        return now == other or (sorted(payload_of(now)) == sorted(payload_of(other)) and bool(stored == value))
    except Exception:  # noqa: BLE001 - an array, say, that is neither true nor false
        return False


def names_in(place: str) -> list[tuple[str, bool]]:
    """The names of the nodes in a place, each with whether the place continues in an item of that node."""
    found: list[tuple[str, bool]] = []
    for each in place.split("/"):
        node, _, rest = each.rpartition("#")
        found.append((unquote(node), "[" in rest))
    return found


def _is_of(question: str | AnyNode, place: str) -> bool:
    """May this node be the one that asks at a place? If an `each` takes its items through an Ask, both their names mean it."""
    if isinstance(question, str):
        return False
    name, is_item = names_in(place)[-1]
    return options_of(question).name in ((name, name.removeprefix("each_")) if is_item else (name,))


def step_of_place(plan: Plan, place: str) -> Step | None:
    """The step at a place; None if the graph has no such place."""
    step: Step | None = None
    for name, is_item in names_in(place):
        if step is not None:
            if not isinstance(step, GraphStep):
                return None
            plan = step.graph.plan
        step = plan.named(name)
        if step is None:
            return None
        step = step.passed if is_item else step
    return step
