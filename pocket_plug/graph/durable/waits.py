"""What a run waits for: an answer to a question, or a time. Each is a record of its own, named by the place that waits.

Whoever answers writes that record, expecting its version; a run that is about to be suspended expects it too. So an answer
is for one question, and none comes between a look and a suspension. Once settled, records are left as a part of the
run's history.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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

from .records import Frame, Record, escaped, place_of

WAIT = "wait:"
"""How the name of such a record begins, behind that of its run."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What waits at one place."""

    kind: Literal["question", "sleep"]
    since: float
    question: bytes | None = None
    asks_for: str = ""
    """The type of an answer, in words."""
    choices: list[Any] | None = None
    """What may be answered, where that is a few values."""
    until: float | None = None
    """When it goes on without an answer, in epoch seconds."""
    answer: bytes | None = None
    settled: float | None = None
    """When it was answered, or its time had come."""

    @property
    def is_open(self) -> bool:
        """Does anything wait there still?"""
        return self.settled is None


@dataclass(frozen=True, slots=True)
class Found:
    """Such a record as it was read, or is about to be written for the first time."""

    place: str
    """As in `review#1[3]/ask#1`: the nodes with the number of the visit, and the positions of items."""
    wait: Wait
    version: int = 0


_NAMES = [each.name for each in fields(Wait)]


def put_wait(part: str, place: str, wait: Wait) -> Put:
    """The change that records it."""
    return Put(wait_key(part, place), {name: getattr(wait, name) for name in _NAMES})


def wait_key(part: str, place: str) -> str:
    """Where what waits at a place stands."""
    return f"{part}{WAIT}{escaped(place, ':')}"


def read_wait(part: str, key: str, entry: Entry) -> Found:
    """Read one. Raises CorruptRecordError."""
    found: Any = entry.value
    try:
        return Found(unquote(key.removeprefix(part + WAIT)), Wait(**found), entry.version)
    except TypeError:
        raise CorruptRecordError(
            f"{key!r} is not what a run waits for: {summary(found)}; the run can only be removed"
        ) from None


async def waits_of(stack: Backend, part: str) -> dict[str, Found]:
    """All that a run waits for or has waited for, by place. Raises CorruptRecordError."""
    keys = [key async for key in stack.scan(part + WAIT)]
    found = await stack.read_many(keys) if keys else {}
    waits = [read_wait(part, key, found[key]) for key in keys if key in found]
    return {each.place: each for each in waits}


def waits_in(record: Record, part: str, frames: Sequence[Frame]) -> dict[str, Found]:
    """The question that stands in a run's record itself, as older versions have it, and its answer."""
    if record["format"] > 1 or record["question"] is None:
        return {}
    is_open = record["status"] == "suspended"
    if not is_open and not record["is_answered"]:
        return {}
    answer, settled = (None, None) if is_open else (record["answer"], record["updated"])
    place = place_of("", frames, False)[1:]
    return {
        place: Found(place, Wait("question", record["updated"], record["question"], answer=answer, settled=settled))
    }


def suspended(run_id: str, waits: Collection[Found], wake_at: float | None = None) -> RunSuspendedError:
    """What a run is left with that waits for these."""
    questions = {each.place: value_of(each.wait.question) for each in waits if each.wait.question is not None}
    if wake_at is None:
        wake_at = min((each.wait.until for each in waits if each.wait.until is not None), default=None)
    error = RunSuspendedError(run_id, questions, wake_at)
    error.waits = tuple(waits)
    return error


def value_of(record: bytes | None) -> Any:
    """A value as the types of whoever wrote it have it; without those, as plain values."""
    if record is None:
        return None
    try:
        return default_codec.decode(record)
    except CodecError:
        return inspect_record(record)


_NO_QUESTION: Mapping[str, str] = {
    "failed": "it has failed, and is tried again by resume(run_id), Runs.retry or `pocket-plug runs retry`",
    "waiting": "it sleeps",
}
"""Why a run asks nothing, by its status, where that is more than the status itself; and the way out."""


def wanted_question(run_id: str, waits: Mapping[str, Found], question: str | AnyNode | None, status: str) -> Found:
    """The question that an answer is for: named by its id or by the node that asks, or the only one that the run has asked.

    Raises RunMismatchError, which names the open ones.
    """
    asked = {place: each for place, each in waits.items() if each.wait.kind == "question"}
    open_ones = [place for place, each in asked.items() if each.wait.is_open]
    found: list[str]
    if question is None:
        found = list(asked) if len(asked) == 1 else []
        what = "which question is it for? Say question=…" if open_ones else "no question is open"
    elif isinstance(question, str):
        found = [question] if question in asked else []
        what = f"it has asked nothing at {question!r}"
    else:
        name = options_of(question).name
        found = [place for place in open_ones if name in _askers(place)]
        found = found or [place for place in asked if name in _askers(place)][-1:]
        what = f"node {name!r} asks {'several times' if found else 'nothing'}; give the question's id"
    if len(found) == 1:
        return asked[found[0]]
    rest = (
        f". Open: {', '.join(map(repr, open_ones))}"
        if open_ones
        else f"; {_NO_QUESTION.get(status, f'it is {status}')}"
    )
    raise RunMismatchError(f"run {run_id!r} can't take the answer: {what}{rest}")


def is_same(encoded: bytes, other: bytes, value: object) -> bool:
    """Is it the value that was encoded? `other` is what it is now: a set's members have another order in each process."""
    if other == encoded or sorted(payload_of(other)) != sorted(payload_of(encoded)):
        return other == encoded
    try:
        return bool(default_codec.decode(encoded) == value)
    except Exception:  # noqa: BLE001 - an array, say, that is neither true nor false
        return False


def names_in(place: str) -> list[tuple[str, bool]]:
    """The nodes on the way to a place, and whether it goes on through an item of theirs."""
    found: list[tuple[str, bool]] = []
    for each in place.split("/"):
        node, _, rest = each.rpartition("#")
        found.append((unquote(node), "[" in rest))
    return found


def _askers(place: str) -> tuple[str, ...]:
    """What the node may be called that asks at a place: in an item without a graph it is the one that the `each` is made of."""
    name, is_item = names_in(place)[-1]
    return (name, name.removeprefix("each_")) if is_item else (name,)


def step_of_place(plan: Plan, place: str) -> Step | None:
    """The step at a place; None where the graph has none such."""
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
