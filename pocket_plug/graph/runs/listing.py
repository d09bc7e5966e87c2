"""Pages of runs, the newest first: merged from ranges of the keys of their states.

There is a range for each state and graph; its keys are in the order in which the runs began. A page reads at most as many keys
of each range as it has runs, from the end of the page before. So each page costs the same.

A run may change its state meanwhile. So a page reads the states one after the other, in an order in which it finds the run in its
former state, or else in its new one.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from urllib.parse import unquote

from pocket_plug.errors import ConfigError, ConflictError
from pocket_plug.graph.durable.moving import Seen, mark_stalled, see
from pocket_plug.graph.durable.records import RUN
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.durable.states import State, prefixes_in, put_state, sortable_time, state_of, states_of
from pocket_plug.store.backend import Backend, Change, Delete
from pocket_plug.store.reading import Found, read_each

from .info import RunInfo, RunPage, RunState, info_with_questions, seen_in, unreadable

RECORDED: Sequence[RunState] = ("pending", "running", "suspended", "failed", "cancelled", "finished", "unreadable")
"""The states in keys, in the order in which most runs pass them."""
RETURNS: Sequence[RunState] = ("pending", "running", "suspended")
"""The states to which a run returns: by a retry, a worker that stops, an answer. So they are read again at the end."""
_PLACE = re.compile(r"\d{16}\.\d{6}:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which runs to list."""

    states: Collection[RunState]
    graph: str | None = None
    since: float | None = None
    until: float | None = None

    @property
    def recorded(self) -> Sequence[RunState]:
        """The recorded states to read, in this order. A damaged record, `unreadable` here, may be in any state."""
        stalled, unreadable = "stalled" in self.states, "unreadable" in self.states
        found: list[RunState] = [
            each for each in RECORDED if each in self.states or unreadable or (stalled and each == "running")
        ]
        again: list[RunState] = [each for each in RETURNS if each in found]
        return found if len(found) == 1 else found + again


@dataclass(slots=True)
class _Range:
    """The keys of one state and graph, read backwards from the newest run."""

    prefix: str
    after: str
    size: int
    heads: deque[str] = field(default_factory=deque[str])
    """The keys that were read and not used yet, without the prefix: `TIME:ID`."""
    is_read: bool = False

    async def fill(self, stack: Backend) -> None:
        """Read more keys, if all that were read are used."""
        if self.heads or self.is_read:
            return
        start = len(self.prefix)
        page = stack.scan(self.prefix, after=self.after, reverse=True, limit=self.size)
        self.heads.extend([key[start:] async for key in page])
        self.is_read = len(self.heads) < self.size
        if self.heads:
            self.after = self.prefix + self.heads[-1]


async def page_of(watch: StallWatch, wanted: Wanted, limit: int, after: str | None) -> RunPage:
    """A page of runs, with the `after` for the next page."""
    found: list[RunInfo] = []
    async with aclosing(_keys(watch.stack, wanted, limit, after)) as keys:
        while batch := await _take(keys, limit):
            for at, info in enumerate(await _infos(watch, batch)):
                if info is None or info.state not in wanted.states:
                    continue
                found.append(info)
                if len(found) == limit:
                    is_last = at == len(batch) - 1 and await anext(keys, None) is None
                    return RunPage(tuple(found), None if is_last else _place(batch[at]))
    return RunPage(tuple(found), None)


async def _take(keys: AsyncGenerator[str], number: int) -> list[str]:
    found: list[str] = []
    async for key in keys:
        found.append(key)
        if len(found) == number:
            break
    return found


def _place(key: str) -> str:
    """The position of a run in a list, which is the same in each state: `TIME:ID`."""
    return ":".join(key.split(":")[-2:])


async def _keys(stack: Backend, wanted: Wanted, limit: int, after: str | None) -> AsyncGenerator[str]:
    """The keys of states of the wanted runs, the newest run first, each run once. Raises ConfigError for an invalid `after`."""
    if after is not None and not _PLACE.match(after):
        raise ConfigError(f"after={after!r:.80} is not a position in a list; give the `after` of the page before")
    start = after if wanted.until is None else min(filter(None, (after, sortable_time(wanted.until))))
    ranges: list[_Range] = []
    for status in wanted.recorded:
        for prefix in (
            [states_of(status, wanted.graph)] if wanted.graph is not None else await prefixes_in(stack, status)
        ):
            ranges.append(_Range(prefix, prefix + start if start else "", limit + 1))
            await ranges[-1].fill(stack)
    since = "" if wanted.since is None else sortable_time(wanted.since)
    before = ""
    while True:
        for each in ranges:
            await each.fill(stack)
        ranges = [each for each in ranges if each.heads and each.heads[0] >= since]
        if not ranges:
            return
        first = max(ranges, key=lambda each: each.heads[0])
        head = first.heads.popleft()
        if head != before:
            before = head
            yield first.prefix + head


async def _infos(watch: StallWatch, keys: Sequence[str]) -> list[RunInfo | None]:
    """The RunInfo of the run of each of these keys; None if it was removed."""
    names = [key.rpartition(":")[2] for key in keys]
    read = await read_each(watch.stack, [*keys, *(RUN + name for name in names)])
    found = [await _seen(watch.stack, key, name, read) for key, name in zip(keys, names, strict=True)]
    running = [each for each in found if isinstance(each, Seen) and each.is_at_work]
    now = {each.key: each for each in await mark_stalled(watch, running)} if running else {}
    return [
        await info_with_questions(watch.stack, now.get(each.key, each))
        if isinstance(each, Seen)
        else (unreadable(name, each) if each is not None else None)
        for each, name in zip(found, names, strict=True)
    ]


async def _seen(stack: Backend, key: str, name: str, read: Mapping[str, Found]) -> Seen | Exception | None:
    seen = seen_in(name, key, read) if RUN + name in read else None
    if isinstance(seen, Exception) or (seen is not None and state_of(seen.record, name) == key and seen.state_version):
        return seen
    if key in read:
        await _correct_key(stack, key, seen)
    return await see(stack, unquote(name))  # its state has changed since the key was read


async def _correct_key(stack: Backend, key: str, seen: Seen | None) -> None:
    """Correct the key of a state that doesn't fit its run, since an older version, without states, has changed or removed it."""
    name = key.rpartition(":")[2]
    state_entry = await stack.read(key)
    if state_entry is None:
        return
    expect, changes = {key: state_entry.version, RUN + name: 0}, list[Change]([Delete(key)])
    if seen is not None:
        state_at = state_of(seen.record, name)
        changes.append(put_state(state_at, State(seen.record["updated"]), seen.entry.expires_at))
        expect |= {RUN + name: seen.entry.version, state_at: 0}
    with suppress(ConflictError):  # it was corrected or changed by another process
        await stack.write(changes, expect)
