"""The position of a durable run, read from its records: its frames, and those of the items of a fan-out in progress."""

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
from pocket_plug.primitives.batches import batched
from pocket_plug.primitives.values import Value
from pocket_plug.store.backend import Backend

from .forms import GraphForm, NodeForm
from .records import BATCH, ITEM, Checkpoint, Frame, escaped, item_key, next_place, visit_place
from .waits import PlacedWait, waits_of


@dataclass(frozen=True, slots=True)
class Standing:
    """The position of a run, or of one item of a fan-out."""

    frames: tuple[Frame, ...]
    under: tuple[str, ...] = ()
    """If the innermost frame's node is a graph in which a wait or a fan-out has begun, without a frame yet: the path to that."""
    items: Mapping[int, Standing] = field(default_factory=dict[int, "Standing"])
    """The items that have begun, by position; some may be done."""
    size: int | None = None
    """How many items there are, if that is known."""
    wait: PlacedWait | None = None
    """What it waits for, or a settled wait from which it has not continued yet."""

    @property
    def is_done(self) -> bool:
        """Has the last node of the run, or of the item, committed?"""
        return len(self.frames) == 1 and self.frames[0].node is None

    @property
    def last(self) -> Frame:
        """The innermost frame."""
        return self.frames[-1]

    def outline(self) -> object:
        """The position without values and numbers, as a dict's key: runs with the same outline depend on the same facts."""
        frames = tuple((frame.node, frame.hooks, frame.action) for frame in self.frames)
        if not self.items:
            return frames, self.under
        is_all = self.size is not None and len(self.items) >= self.size
        return frames, self.under, frozenset(item.outline() for item in self.items.values()), is_all


def step_at(plan: Plan, frames: Iterable[Frame]) -> Step | None:
    """The step of the innermost frame; None if the graph has no such node, or if the run has left that graph."""
    step: Step | None = None
    for frame in frames:
        if isinstance(step, GraphStep):
            plan = step.graph.plan
        if frame.node is None:
            return None
        if (step := plan.named(frame.node)) is None:
            return None
    return step


class Items:
    """The records of the items of the fan-out where a run is, and the position of each item."""

    def __init__(self, part: str, waits: Mapping[str, PlacedWait]) -> None:
        self.part, self.waits = part, waits
        self.versions: dict[str, int] = {}
        """The versions of the records that were read, and 0 for items without one: a write that relies on them expects these."""
        self._below: dict[str, dict[int, tuple[Frame, ...]]] = {}

    async def read(self, stack: Backend, form: GraphForm, frames: Sequence[Frame]) -> Standing:
        """The position of a run that was begun by a graph of this form. Reads the records of its items, if it is at a fan-out.

        Raises CorruptRecordError.
        """
        at = leaf_of(form, frames, next_place("", frames, is_item=False))
        if at.node is not None and at.node.kind == "fan_out":
            keys = [key async for key in stack.scan(self.part + ITEM)]
            for batch in batched(keys, BATCH):
                for key, entry in (await stack.read_many(batch)).items():
                    checkpoint = Checkpoint(key)
                    checkpoint.load(entry)
                    self.versions[key] = entry.version
                    self._add(key.removeprefix(self.part + ITEM), tuple(checkpoint.frames))
            self.waits = {**self.waits, **await waits_of(stack, self.part, at.place[1:])}
            for place in self.waits:
                self._add(escaped(f"/{place}", ":"), None)
        return self._standing(form, frames)

    def _add(self, place: str, frames: tuple[Frame, ...] | None) -> None:
        """Add an item, or a place with a wait. The items that contain it have begun as well."""
        for item in re.finditer(r"\[(\d+)\]", place):
            found = self._below.setdefault(place[: item.start()], {})
            position = int(item[1])
            if frames is not None and item.end() == len(place):
                found[position] = frames
            else:
                found.setdefault(position, ())  # it may have no record of its own yet

    def _standing(self, form: GraphForm, frames: Sequence[Frame], within: str = "", is_item: bool = False) -> Standing:
        at = leaf_of(form, frames, next_place(within, frames, is_item))
        # An item of a fan-out over an `Ask` has the place of its question, also once it is done.
        wait, node = self.waits.get(at.place[1:]) if frames[-1].node is not None else None, at.node
        if node is None or node.kind != "fan_out" or node.inner is None:
            return Standing(tuple(frames), at.under if wait is not None else (), wait=wait)
        size, inner = _size(frames[-1].value), node.inner
        for position in range(size or 0):
            self.versions.setdefault(item_key(self.part, f"{at.place}[{position}]"), 0)
        start = Frame(inner.start, b"")
        items = {
            position: self._standing(inner, each or (start,), f"{at.place}[{position}]", is_item=True)
            for position, each in sorted(self._below.get(escaped(at.place, ":"), {}).items())
        }
        return Standing(tuple(frames), at.under if items else (), items, size)


@dataclass(frozen=True, slots=True)
class Leaf:
    """The innermost node where a run, or an item, is. If the node of the last frame is a graph, the first node in that."""

    place: str
    under: tuple[str, ...]
    """The nodes from the last frame's node down to this one; empty if that is no graph."""
    node: NodeForm | None
    """None if there is no such node, or if the run has left its graph."""


def leaf_of(form: GraphForm, frames: Sequence[Frame], place: str) -> Leaf:
    """The leaf of a position. `place` is the place of its innermost frame."""
    graph: GraphForm | None = form
    node: NodeForm | None = None
    for frame in frames:
        node = None if graph is None or frame.node is None else graph.nodes.get(frame.node)
        graph = None if node is None else node.inner
    under: list[str] = []
    while node is not None and node.kind == "graph" and node.inner is not None:
        under.append(node.inner.start)
        place = visit_place(place, node.inner.start, 1)
        node = node.inner.nodes.get(node.inner.start)
    return Leaf(place, tuple(under), node)


@dataclass(frozen=True, slots=True)
class Spot:
    """The position of a run, or of one of its items, in a graph of some form."""

    standing: Standing
    within: str
    """The place of the item; "" for the run."""
    leaf: Leaf


def spots(form: GraphForm, standing: Standing) -> dict[tuple[int, ...], Spot]:
    """The positions of a run and its items. The key is () for the run; for an item, its number after those of the outer items."""
    return dict(_spots(form, standing, "", ()))


def _spots(
    form: GraphForm, standing: Standing, within: str, positions: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], Spot]]:
    leaf = leaf_of(form, standing.frames, next_place(within, standing.frames, bool(positions)))
    yield positions, Spot(standing, within, leaf)
    if leaf.node is not None and leaf.node.inner is not None:
        for number, item in standing.items.items():
            yield from _spots(leaf.node.inner, item, f"{leaf.place}[{number}]", (*positions, number))


def in_order(items: Iterable[Value]) -> Iterable[Value]:
    """The items of a fan-out, in an order that is the same in each process: a set is sorted by the encoded items."""
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
