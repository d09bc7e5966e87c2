"""`Runs.follow`: yields the events of a durable run, in any process, by reading its records again and again.

Between two looks a run may do much. None of its nodes is missed, since its path is recorded: there are events for each node that
it has passed, in order. Other records, such as those of items, are removed after a time, so their events may be missed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, Literal
from urllib.parse import unquote

from pocket_plug.errors import CodecError, CorruptRecordError, UnknownRunError
from pocket_plug.graph.durable.forms import GraphForm
from pocket_plug.graph.durable.judging import form_before
from pocket_plug.graph.durable.moving import Seen
from pocket_plug.graph.durable.records import ITEM, PATH, Checkpoint, field_of, next_place, start_key
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.durable.standing import Standing
from pocket_plug.graph.durable.waits import PlacedWait, value_of
from pocket_plug.graph.following.events import (
    Asked,
    Finished,
    FollowedEvent,
    ItemDone,
    NodeEntered,
    NodeLeft,
    NodePlace,
    StateChanged,
    Suspended,
)
from pocket_plug.primitives.batches import batched
from pocket_plug.store.backend import Entry
from pocket_plug.store.reading import read_each

from .info import info_of, waits_now
from .operations import must_see

PAGE = 1_000
"""How many records are read at once."""
MOST_ITEMS = 10_000
"""How many items of a fan-out are read; there are no events for the others."""
PAUSES = (0.02, 1.0)
"""Seconds between two looks: the first pause after something new, and the longest while nothing is new."""
NodeType = Literal["node", "graph", "fan_out"]
Pause = Callable[[float], Awaitable[object]]


async def follow(watch: StallWatch, run_id: str, pause: Pause) -> AsyncGenerator[FollowedEvent]:
    """Yield the events of a run, from its begin to its end. No lock or connection is held between two events."""
    follower = _Follower(watch, run_id)
    between, most = PAUSES
    while True:
        is_new = False
        async for event in follower.look():
            is_new = True
            yield event
        if follower.is_over:
            return
        between = PAUSES[0] if is_new else min(between * 1.5, most)
        await pause(between)


class _Follower:
    """Follows one run, and remembers which events it has yielded."""

    def __init__(self, watch: StallWatch, run_id: str) -> None:
        self._watch, self._stack, self._id = watch, watch.stack, run_id
        self.is_over = False
        self._form: GraphForm | None = None
        self._started: float | None = None
        self._state: tuple[object, ...] | None = None
        self._passed = ""
        """The key of the last record of the run's path that was read."""
        self._inside: list[NodePlace] = []
        """The nodes that the run has entered and not left, the outermost first."""
        self._yielded = set[str]()
        """The items and questions of the current node that had an event."""

    async def look(self) -> AsyncGenerator[FollowedEvent]:
        """Read the run, and yield the events that are new."""
        seen = await must_see(self._watch, self._id)
        if self._started is None:
            self._started = seen.record["started"]
            self._form = await self._read_form(seen)
        elif self._started != seen.record["started"]:
            raise UnknownRunError(f"run {self._id!r} was removed while it was followed, and another one has begun")
        info = info_of(seen)
        state = (info.state, seen.state.since, info.executions)
        is_changed, self._state = state != self._state, state
        if is_changed and info.state in ("pending", "running", "stalled"):
            yield StateChanged(info.state)
        async for event in self._path(seen):
            yield event
        if info.state == "finished":
            self.is_over = True
            yield Finished(value_of(seen.record["result"]))
            return
        if info.state != "pending" and seen.record["epoch"]:
            async for event in self._standing(seen):
                yield event
        if is_changed and info.state == "suspended":
            open_ones = [each for each in await waits_now(self._stack, seen) if each.wait.is_open]
            yield Suspended(self._id, {each.place: _asked(each) for each in open_ones if _is_asked(each)}, info.wake_at)
        elif info.state in ("failed", "cancelled"):
            self.is_over = True
            yield StateChanged(info.state, info.failure)

    async def _read_form(self, seen: Seen) -> GraphForm | None:
        """The form of the run's graph, which has the types of its nodes; None if it can't be read."""
        key = start_key(seen.part)
        found = (await read_each(self._stack, [key])).get(key)
        try:
            return form_before(found.value) if isinstance(found, Entry) else None
        except (CorruptRecordError, KeyError, TypeError):
            return None

    # ------------------------------------------------------------ the nodes that the run has passed
    async def _path(self, seen: Seen) -> AsyncGenerator[FollowedEvent]:
        """The events of the nodes that the run had passed when its record was read."""
        prefix = seen.part + PATH
        last = f"{prefix}{seen.checkpoint.commits:09}"
        while keys := [key async for key in self._stack.scan(prefix, after=self._passed, limit=PAGE) if key <= last]:
            found = await read_each(self._stack, keys)
            for key in keys:
                self._passed = key
                left = field_of(found.get(key), "node")
                if isinstance(left, str) and (place := _parsed(left)) is not None:
                    for event in self._leave(place):
                        yield event

    def _leave(self, place: NodePlace) -> Iterator[FollowedEvent]:
        yield from self._enter(place)
        del self._inside[-1:]
        self._yielded.clear()
        yield NodeLeft(place)

    def _enter(self, place: NodePlace) -> Iterator[FollowedEvent]:
        """The events of entering a place and the graphs around it, except those that the run is in already."""
        chain: list[NodePlace] = []
        around: NodePlace | None = place
        while around is not None:
            chain.insert(0, around)
            around = around.within
        same = 0
        while same < min(len(chain), len(self._inside)) and chain[same] == self._inside[same]:
            same += 1
        del self._inside[same:]
        for each in chain[same:]:
            self._inside.append(each)
            yield NodeEntered(each, self._type(each))

    def _type(self, place: NodePlace) -> NodeType:
        """The type of a node, from the form of its graph."""
        graph, kind = self._form, ""
        for name in place.path:
            node = None if graph is None else graph.nodes.get(name)
            graph, kind = (None, "") if node is None else (node.inner, node.kind)
        return "graph" if kind == "graph" else "fan_out" if kind == "fan_out" else "node"

    # ------------------------------------------------------------ the node where the run is
    async def _standing(self, seen: Seen) -> AsyncGenerator[FollowedEvent]:
        """The events of the current node: that it was entered, its items that are done, its questions."""
        frames = seen.checkpoint.frames
        if any(frame.node is None for frame in frames) or (at := _parsed(next_place("", frames, False))) is None:
            return
        for event in self._enter(at):
            yield event
        async for event in self._items(seen, at):
            yield event
        for each in await waits_now(self._stack, seen):
            is_new = each.wait.is_open and _is_asked(each) and each.place not in self._yielded
            if is_new and (place := _parsed(each.place)) is not None and _is_part(place, at):
                self._yielded.add(each.place)
                yield Asked(place, self._id, _asked(each))

    async def _items(self, seen: Seen, at: NodePlace) -> AsyncGenerator[FollowedEvent]:
        prefix = seen.part + ITEM
        keys = [key async for key in self._stack.scan(prefix, limit=MOST_ITEMS) if key not in self._yielded]
        for batch in batched(keys, PAGE):
            for key, entry in (await read_each(self._stack, batch)).items():
                place = _parsed(unquote(key.removeprefix(prefix)))
                if place is None or not _is_part(place, at) or (output := _done(key, entry)) is None:
                    continue
                self._yielded.add(key)
                yield ItemDone(place, value_of(output))


def _done(key: str, entry: Any) -> bytes | None:
    """The output of an item; None if it isn't done, or if its record is damaged."""
    if not isinstance(entry, Entry):
        return None
    checkpoint = Checkpoint(key)
    try:
        checkpoint.load(entry)
    except CodecError:
        return None
    standing = Standing(tuple(checkpoint.frames))
    return standing.last.value if standing.is_done else None


def _is_part(place: NodePlace, at: NodePlace) -> bool:
    """Is the place at or inside the node where the run was when it was read? If not, the next look yields its events."""
    return place == at or str(place).startswith((f"{at}[", f"{at}/"))


def _is_asked(each: PlacedWait) -> bool:
    return each.wait.question is not None


def _asked(each: PlacedWait) -> Any:
    return value_of(each.wait.question)


def _parsed(text: str) -> NodePlace | None:
    try:
        return NodePlace.parse(text.removeprefix("/"))
    except ValueError:
        return None  # damaged
