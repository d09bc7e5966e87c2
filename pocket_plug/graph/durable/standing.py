"""Where a durable run stands, read from its records: its frames, and those of the items of a fan-out under way."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import cast

from pocket_plug.codec import default_codec, inspect_record, payload_of
from pocket_plug.errors import CodecError
from pocket_plug.graph.nesting import GraphStep
from pocket_plug.graph.plan import Plan
from pocket_plug.graph.step import Step
from pocket_plug.primitives.values import Value
from pocket_plug.store.backend import Backend

from .forms import GraphForm, NodeForm
from .records import PART, RUN, Checkpoint, Frame, escaped

ITEM = "item:"
"""How the name of an item's record begins, behind that of its run."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands, or one item of a fan-out."""

    frames: tuple[Frame, ...]
    under: tuple[str, ...] = ()
    """From the node at which the innermost frame stands, a graph that it has come to, the way to the fan-out under way."""
    items: Mapping[int, Standing] = field(default_factory=dict[int, "Standing"])
    """The items that have been begun, by position; some may have been done."""
    size: int | None = None
    """How many items there are, where that can be known."""

    @property
    def is_done(self) -> bool:
        """Has the run, or the item, only to end?"""
        return len(self.frames) == 1 and self.frames[0].node is None

    @property
    def last(self) -> Frame:
        """The innermost frame."""
        return self.frames[-1]

    def everywhere(self) -> Iterator[Standing]:
        """It and all that is within."""
        yield self
        for item in self.items.values():
            yield from item.everywhere()


def step_at(plan: Plan, frames: Iterable[Frame]) -> Step | str | None:
    """The step at which the innermost frame stands; its name where the graph has none such, None where that has been left."""
    step: Step | None = None
    for frame in frames:
        if isinstance(step, GraphStep):
            plan = step.graph.plan
        if frame.node is None:
            return None
        step = plan.named(frame.node)
        if step is None:
            return frame.node
    return step


def place_of(within: str, frames: Sequence[Frame], is_item: bool) -> str:
    """The name of the visit at which the innermost frame stands; an item's first node is at the place of the item."""
    for frame in frames[1:] if is_item else frames:
        name = frame.node or ""
        within += f"/{escaped(name, '/#[')}#{frame.visits.get(name, 0) + 1}"
    return within


def item_key(part: str, place: str, position: int) -> str:
    """The key of the record of an item of the fan-out at a place."""
    return f"{part}{ITEM}{escaped(f'{place}[{position}]', ':')}"


def part_of(key: str) -> str:
    """How the keys of a run's parts begin, of the key of its checkpoint."""
    return f"{PART}{key.removeprefix(RUN)}:"


class Items:
    """The records of the items of the fan-out at which a run stands, and where each of them stands."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.versions: dict[str, int] = {}
        """Of what was read, and 0 for what may come to it: what a write expects that relies on it."""
        self._below: dict[str, dict[int, tuple[Frame, ...]]] = {}

    async def read(self, stack: Backend, form: GraphForm, frames: Sequence[Frame]) -> Standing:
        """Where a run stands that was begun by a graph of this form; its items are read a batch at a time, if it has any.

        Raises CorruptRecordError.
        """
        if _fan_out_at(form, frames) is None:
            return Standing(tuple(frames))
        keys = [key async for key in stack.scan(self.part + ITEM)]
        for at in range(0, len(keys), BATCH):
            for key, entry in (await stack.read_many(keys[at : at + BATCH])).items():
                checkpoint = Checkpoint(key)
                checkpoint.load(entry)
                self.versions[key] = entry.version
                self._add(key.removeprefix(self.part + ITEM), tuple(checkpoint.frames))
        return self._standing(form, frames)

    def _add(self, place: str, frames: tuple[Frame, ...]) -> None:
        """Note an item; one that it is within has been begun too, though it may have no record of its own yet."""
        for item in re.finditer(r"\[(\d+)\]", place):
            found = self._below.setdefault(place[: item.start()], {})
            position = int(item[1])
            if item.end() == len(place):
                found[position] = frames
            else:
                found.setdefault(position, ())

    def _standing(self, form: GraphForm, frames: Sequence[Frame], within: str = "", is_item: bool = False) -> Standing:
        at = _fan_out_at(form, frames)
        if at is None:
            return Standing(tuple(frames))
        under, inner = at
        place = place_of(within, frames, is_item) + "".join(f"/{escaped(name, '/#[')}#1" for name in under)
        size = _size(frames[-1].value)
        for position in range(size or 0):
            self.versions.setdefault(item_key(self.part, place, position), 0)
        start = Frame(inner.start, b"")
        items = {
            position: self._standing(inner, each or (start,), f"{place}[{position}]", is_item=True)
            for position, each in sorted(self._below.get(escaped(place, ":"), {}).items())
        }
        return Standing(tuple(frames), under if items else (), items, size)


BATCH = 1000
"""Records that are read at once."""


def in_order(items: Iterable[Value]) -> Iterable[Value]:
    """The items of a fan-out, a set's by their bytes: another process must find the same one at each position."""
    if not isinstance(items, Set):
        return items
    return sorted(items, key=lambda item: payload_of(default_codec.encode(item)))


def _fan_out_at(form: GraphForm, frames: Sequence[Frame]) -> tuple[tuple[str, ...], GraphForm] | None:
    """What the items go through of the fan-out at which the innermost frame stands, and the way to that, if it begins a graph."""
    graph: GraphForm | None = form
    node: NodeForm | None = None
    for frame in frames:
        node = None if graph is None or frame.node is None else graph.nodes.get(frame.node)
        graph = None if node is None else node.inner
    under: list[str] = []
    while node is not None and node.kind == "graph" and node.inner is not None:
        under.append(node.inner.start)
        node = node.inner.nodes.get(node.inner.start)
    if node is None or node.kind != "fan_out" or node.inner is None:
        return None
    return tuple(under), node.inner


def _size(value: bytes) -> int | None:
    if not value:
        return None
    try:
        found = inspect_record(value)
    except CodecError:
        return None
    items = cast("Collection[Value]", found)
    return len(items) if isinstance(found, Collection) else None
