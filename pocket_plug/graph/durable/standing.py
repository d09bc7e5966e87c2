"""Where a durable run stands, read from its records: its frames, and those of the items of a fan-out under way."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import cast

from pocket_plug.codec import default_codec, inspect_record, payload_of
from pocket_plug.errors import CodecError
from pocket_plug.graph.kinds.nesting import GraphStep
from pocket_plug.graph.planning.plan import Plan
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.values import Value
from pocket_plug.store.backend import Backend

from .forms import GraphForm, NodeForm
from .records import PART, RUN, Checkpoint, Frame, escaped, place_of
from .waits import Found, waits_of

ITEM = "item:"
"""How the name of an item's record begins, behind that of its run."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands, or one item of a fan-out."""

    frames: tuple[Frame, ...]
    under: tuple[str, ...] = ()
    """From the node at which the innermost frame stands, a graph that it has come to, the way to what has been begun there."""
    items: Mapping[int, Standing] = field(default_factory=dict[int, "Standing"])
    """The items that have been begun, by position; some may have been done."""
    size: int | None = None
    """How many items there are, where that can be known."""
    wait: Found | None = None
    """What it waits for, or has waited for and not taken yet."""

    @property
    def is_done(self) -> bool:
        """Has the run, or the item, only to end?"""
        return len(self.frames) == 1 and self.frames[0].node is None

    @property
    def last(self) -> Frame:
        """The innermost frame."""
        return self.frames[-1]

    def outline(self) -> object:
        """Where it stands, without values and numbers: the same of all runs that stand alike, to look things up by."""
        frames = tuple((frame.node, frame.hooks, frame.action) for frame in self.frames)
        if not self.items:
            return frames, self.under
        is_all = self.size is not None and len(self.items) >= self.size
        return frames, self.under, frozenset(item.outline() for item in self.items.values()), is_all


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


def item_key(part: str, place: str, position: int) -> str:
    """The key of the record of an item of the fan-out at a place."""
    return key_of_item(part, f"{place}[{position}]")


def key_of_item(part: str, place: str) -> str:
    """The key of the record of the item at a place."""
    return f"{part}{ITEM}{escaped(place, ':')}"


def part_of(key: str) -> str:
    """How the keys of a run's parts begin, of the key of its checkpoint."""
    return f"{PART}{key.removeprefix(RUN)}:"


class Items:
    """The records of the items of the fan-out at which a run stands, and where each of them stands."""

    def __init__(self, part: str, waits: Mapping[str, Found]) -> None:
        self.part, self.waits = part, waits
        self.versions: dict[str, int] = {}
        """Of what was read, and 0 for what may come to it: what a write expects that relies on it."""
        self._below: dict[str, dict[int, tuple[Frame, ...]]] = {}

    async def read(self, stack: Backend, form: GraphForm, frames: Sequence[Frame]) -> Standing:
        """Where a run stands that was begun by a graph of this form; its items are read a batch at a time, if it has any.

        Raises CorruptRecordError.
        """
        at = leaf_of(form, frames, place_of("", frames, is_item=False))
        if at.node is not None and at.node.kind == "fan_out":
            keys = [key async for key in stack.scan(self.part + ITEM)]
            for start in range(0, len(keys), BATCH):
                for key, entry in (await stack.read_many(keys[start : start + BATCH])).items():
                    checkpoint = Checkpoint(key)
                    checkpoint.load(entry)
                    self.versions[key] = entry.version
                    self._add(key.removeprefix(self.part + ITEM), tuple(checkpoint.frames))
            self.waits = {**self.waits, **await waits_of(stack, self.part)}
            for place in self.waits:
                self._add(escaped(f"/{place}", ":"), None)
        return self._standing(form, frames)

    def _add(self, place: str, frames: tuple[Frame, ...] | None) -> None:
        """Note an item, or that something waits at a place; the items that it is within have been begun too."""
        for item in re.finditer(r"\[(\d+)\]", place):
            found = self._below.setdefault(place[: item.start()], {})
            position = int(item[1])
            if frames is not None and item.end() == len(place):
                found[position] = frames
            else:
                found.setdefault(position, ())  # it may have no record of its own yet

    def _standing(self, form: GraphForm, frames: Sequence[Frame], within: str = "", is_item: bool = False) -> Standing:
        at = leaf_of(form, frames, place_of(within, frames, is_item))
        wait, node = self.waits.get(at.place[1:]), at.node
        if node is None or node.kind != "fan_out" or node.inner is None:
            return Standing(tuple(frames), at.under if wait is not None else (), wait=wait)
        size, inner = _size(frames[-1].value), node.inner
        for position in range(size or 0):
            self.versions.setdefault(item_key(self.part, at.place, position), 0)
        start = Frame(inner.start, b"")
        items = {
            position: self._standing(inner, each or (start,), f"{at.place}[{position}]", is_item=True)
            for position, each in sorted(self._below.get(escaped(at.place, ":"), {}).items())
        }
        return Standing(tuple(frames), at.under if items else (), items, size)


@dataclass(frozen=True, slots=True)
class Leaf:
    """The node that a run, or an item, is at, or would be at next if it is at a graph."""

    place: str
    under: tuple[str, ...]
    """The nodes from that of the innermost frame on; none where that is no graph."""
    node: NodeForm | None
    """None where there is no such node, or where its graph has been left."""


def leaf_of(form: GraphForm, frames: Sequence[Frame], place: str) -> Leaf:
    """What stands at the innermost frame, which is at that place, or where it begins."""
    graph: GraphForm | None = form
    node: NodeForm | None = None
    for frame in frames:
        node = None if graph is None or frame.node is None else graph.nodes.get(frame.node)
        graph = None if node is None else node.inner
    under: list[str] = []
    while node is not None and node.kind == "graph" and node.inner is not None:
        under.append(node.inner.start)
        place += f"/{escaped(node.inner.start, '/#[')}#1"
        node = node.inner.nodes.get(node.inner.start)
    return Leaf(place, tuple(under), node)


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a run stands in a graph of some form, or one of its items."""

    standing: Standing
    within: str
    """The place of the item."""
    leaf: Leaf


def spots(form: GraphForm, standing: Standing) -> dict[tuple[int, ...], Spot]:
    """Where a run and all its items stand: for the run (), for an item its position, after those of the items around it."""
    return dict(_spots(form, standing, "", ()))


def _spots(
    form: GraphForm, standing: Standing, within: str, positions: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], Spot]]:
    leaf = leaf_of(form, standing.frames, place_of(within, standing.frames, bool(positions)))
    yield positions, Spot(standing, within, leaf)
    if leaf.node is not None and leaf.node.inner is not None:
        for number, item in standing.items.items():
            yield from _spots(leaf.node.inner, item, f"{leaf.place}[{number}]", (*positions, number))


BATCH = 1000
"""Records that are read at once."""


def in_order(items: Iterable[Value]) -> Iterable[Value]:
    """The items of a fan-out, a set's by their bytes: another process must find the same one at each position."""
    if not isinstance(items, Set):
        return items
    return sorted(items, key=lambda item: payload_of(default_codec.encode(item)))


def _size(value: bytes) -> int | None:
    if not value:
        return None
    try:
        found = inspect_record(value)
    except CodecError:
        return None
    items = cast("Collection[Value]", found)
    return len(items) if isinstance(found, Collection) else None
