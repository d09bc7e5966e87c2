"""Append-only lists: `append`, `tail`, `trim`, `length` and `each_item`, derived from `read`, `write` and `scan`.

The entry at the list's key is its head, and each item is an entry of its own (`primitives/lists.py`). An append writes both
at once and expects the head's version, so it costs the same at any length. Items never change, so a caller that has read a
head may read the items later. Items are left over if a list is overwritten, expires, or is removed by a process that dies half
way; later appends, to any list, remove them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from pocket_plug.errors import CodecError, ConfigError, ConflictError, StoreBusyError, StoreError, ValueTypeError
from pocket_plug.primitives.batches import batched
from pocket_plug.primitives.lists import ItemPlace, ListHead, item_of, items_of, new_head, place_of
from pocket_plug.primitives.names import ITEMS
from pocket_plug.primitives.redaction import found
from pocket_plug.primitives.values import Value

from .backend import READ_TRIES, Change, Delete, Entry, Put
from .base import Source
from .contention import Step
from .keys import missing_layer
from .listing import PAGE, batch_size
from .reading import read_each
from .stack import Stack
from .transaction import Transaction

_logger = logging.getLogger("pocket_plug")

LOOK_EACH = 64
"""The first append to a list searches for left-over items. After a find, each append of so many continues the search."""
LOOKED_AT, LOOKS = 128, 8
"""How many names a search reads, and how many times while all of them are left over: more than appends in between can leave."""


def check_number(number: object, what: str) -> int:
    """A number of items, 0 or more. Raises ConfigError for anything else."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ConfigError(f"{what} can't be {found(number)}; give a number of items from 0 up")
    return number


def head_of(key: Any, entry: Entry | None) -> ListHead | None:
    """The head at a key; None if there is no entry. Raises ValueTypeError for an entry that is no list."""
    if entry is None:
        return None
    value = entry.value
    if value.__class__ is not ListHead:
        if missing := missing_layer(value):
            raise ValueTypeError(f"{str(key)!r} holds an object of type {value.__class__.__name__}{missing}")
        raise ValueTypeError(
            f"{str(key)!r} holds a value of type {value.__class__.__name__}, which `set` has stored, not an append-only list; "
            "append(key, item) starts a list only where there is no entry: read the value, delete it, and append its items"
        )
    head: ListHead = value
    return head


# ---------------------------------------------------------------- steps
def appending(name: str, key: Any, item: Value, until: float | None) -> Step:
    """The step that adds an item; its answer is the new head. `until` is a new expiry time of the whole list."""

    def step(entry: Entry | None) -> tuple[Sequence[Change], ListHead]:
        head = head_of(key, entry) or new_head()
        grown = head._replace(next=head.next + 1)
        deadline = entry.expires_at if until is None and entry is not None else until
        return (Put(item_of(name, head.generation, head.next), item), Put(name, grown, deadline)), grown

    return step


def trimming(name: str, key: Any, keep: int, most: int) -> Step:
    """The step that keeps only the last items; its answer is how many are removed, and those that the caller must delete."""

    def step(entry: Entry | None) -> tuple[Sequence[Change], tuple[int, Iterable[str]]]:
        head = head_of(key, entry)
        if entry is None or head is None or head.length <= keep:
            return (), (0, ())
        first = head.next - keep
        at_once = min(first, head.first + most)
        gone = [Delete(item_of(name, head.generation, number)) for number in range(head.first, at_once)]
        later = (item_of(name, head.generation, number) for number in range(at_once, first))
        trimmed = Put(name, head._replace(first=first), entry.expires_at, renews=False)
        return (*gone, trimmed), (first - head.first, later)

    return step


# ---------------------------------------------------------------- what views call
async def append(source: Source, name: str, key: Any, item: Value, until: float | None) -> int:
    """Add an item; returns the new length."""
    head: ListHead = await source.apply(name, appending(name, key, item, until))
    if head.next == 1 or (source.stack.rounds_owed and head.next % LOOK_EACH == 0):
        try:
            await _look_for_leftovers(source, name)
        except Exception as error:  # whatever it is, the item was added
            _logger.warning("items of removed lists could not be deleted; a later append tries again", exc_info=error)
    return head.length


async def trim(source: Source, name: str, key: Any, keep: int) -> int:
    """Remove all but the last items; returns how many. In a transaction, later appends delete what exceeds a page."""
    most = max(0, batch_size(source, PAGE) - 2)  # two for the head and its expected version
    number, later = await source.apply(name, trimming(name, key, check_number(keep, "keep"), most))
    rest = list(later)
    if rest and isinstance(source, Transaction):
        source.stack.rounds_owed = 2
    elif rest:
        await _clear_away(source, rest)
    return int(number)


async def tail(source: Source, name: str, key: Any, number: int) -> list[Value]:
    """The last items, as of one moment."""
    check_number(number, "n")
    return (await _read(source, name, key, lambda head: range(max(head.first, head.next - number), head.next)))[1]


async def length(source: Source, name: str, key: Any) -> int:
    """How many items there are."""
    head = head_of(key, await source.read(name))
    return 0 if head is None else head.length


async def item_pages(source: Source, name: str, key: Any) -> AsyncGenerator[list[Value]]:
    """The items that there are when it begins, some at a time. Those that are trimmed meanwhile are left out."""
    began = head_of(key, await source.read(name))
    if began is None:
        return
    place, size = began.first, batch_size(source, PAGE)

    def page(head: ListHead) -> range:
        start = max(place, head.first)
        return range(start, min(start + size, began.next) if head.generation == began.generation else start)

    while place < began.next:
        numbers, values = await _read(source, name, key, page)
        if not numbers:
            return
        yield values
        place = numbers.stop


async def _read(source: Source, name: str, key: Any, picked: Callable[[ListHead], range]) -> tuple[range, list[Value]]:
    """Some items of a list, as of the moment that its head was read. If they were removed since, it reads again."""
    for _ in range(READ_TRIES):
        entry = await source.read(name)
        head = head_of(key, entry)
        if entry is None or head is None:
            return range(0), []
        numbers = picked(head)
        names = [item_of(name, head.generation, number) for number in numbers]
        found: dict[str, Entry] = {}
        for batch in batched(names, batch_size(source, 5 * PAGE)):
            found |= await (source.look_at_items if isinstance(source, Transaction) else source.read_many)(batch)
        if len(found) == len(names) or source.stack.evicts:
            return numbers, [found[each].value for each in names if each in found]
        seen = entry
        if isinstance(source, Transaction):
            seen = (source.seen or {}).get(name) or entry
        try:
            await source.stack.write((), {name: seen.version})
        except ConflictError as conflict:
            if isinstance(source, Transaction):
                source.stale = conflict
                raise
            continue
        raise StoreError(
            f"{str(key)!r} is a list that lacks {len(names) - len(found):,} of the {len(names):,} items that were asked for: "
            "they were removed, or not restored with it; `pocket-plug store check` finds such lists"
        )
    raise StoreBusyError(f"{str(key)!r}: the list was trimmed or replaced at each of {READ_TRIES} tries; try again")


# ---------------------------------------------------------------- left-over items
async def remove_list(source: Source, name: str, head: ListHead) -> None:
    """Remove the items of a list whose head was removed. In a transaction, later appends delete what exceeds a page."""
    await _remove_found(source, items_of(name, head.generation), lambda owner: owner == name)


async def lists_at(source: Source, names: Collection[str]) -> dict[str, ListHead]:
    """The heads of the lists at these keys, read before they are removed. If a store has no list, this costs one scan."""
    if not names or not [item async for item in source.scan(ITEMS, limit=1)]:
        return {}
    heads = await _heads(source, names)
    return {name: entry.value for name, entry in heads.items() if entry and entry.value.__class__ is ListHead}


async def remove_lists_below(source: Source, prefix: str) -> None:
    """Remove the items of all removed lists whose keys begin with a prefix."""
    await _remove_found(source, ITEMS + prefix, lambda owner: owner.startswith(prefix))


async def _remove_found(source: Source, prefix: str, is_meant: Callable[[str], bool]) -> None:
    after, size = "", batch_size(source, 5 * PAGE)
    while names := [item async for item in source.scan(prefix, after=after, limit=size)]:
        await _clear_away(source, await _dead(source, places_of(names, is_meant)))
        if len(names) < size:
            return
        if isinstance(source, Transaction):
            source.stack.rounds_owed = 2
            return
        after = names[-1]


async def _clear_away(source: Source, items: Sequence[str]) -> None:
    if isinstance(source, Transaction):
        source.clear_away(items)
        return
    for batch in batched(items, batch_size(source, 5 * PAGE)):
        await source.write([Delete(item) for item in batch])


async def _look_for_leftovers(source: Source, name: str) -> None:
    """Search some items, after those of the last search, for items that belong to no list, and remove them.

    It continues while all that it reads are left over. After a find later appends continue, until a round finds nothing.
    """
    stack = source.stack
    start = stack.swept = stack.swept or ITEMS + name  # each process starts at another place
    for _ in range(LOOKS):
        names = [item async for item in stack.scan(ITEMS, after=stack.swept, limit=LOOKED_AT)]
        dead = await _dead(stack, places_of(names))
        await _clear_away(source, dead)
        if dead:
            stack.rounds_owed = 2
        last = place_of(names[-1]) if len(names) == LOOKED_AT else None
        if last is not None:
            behind_all = items_of(last.owner, last.generation) + ":"
            stack.swept = names[-1] if names[-1] in dead else behind_all
            if len(dead) < LOOKED_AT:
                return
        else:
            stack.swept, stack.rounds_owed = ITEMS, max(0, stack.rounds_owed - 1)
            if start == ITEMS:  # else it continues at the beginning
                return
            start = ITEMS


def places_of(names: Iterable[str], is_meant: Callable[[str], bool] = bool) -> dict[str, ItemPlace]:
    """The places of those names that are items, of the lists whose keys `is_meant` accepts."""
    places = {name: place for name in names if (place := place_of(name)) is not None}
    return {name: place for name, place in places.items() if is_meant(place.owner)}


async def _dead(source: Source, places: Mapping[str, ItemPlace]) -> list[str]:
    """The items that belong to no list any more, and never will again: no list gets the generation of another one.

    The heads may have been read from a cache, and be outdated. So a write without changes, which the authority answers,
    checks them; in a transaction, the commit checks them.
    """
    heads = await _heads(source, {place.owner for place in places.values()})
    dead = {item: place.owner for item, place in places.items() if place.owner in heads and _is_dead(place, heads)}
    if dead and isinstance(source, Stack):
        found = {owner: heads[owner] for owner in dead.values()}
        try:
            await source.write((), {owner: 0 if entry is None else entry.version for owner, entry in found.items()})
        except ConflictError as conflict:
            return [item for item, owner in dead.items() if owner not in (conflict.keys or found)]
    return list(dead)


def _is_dead(place: ItemPlace, heads: Mapping[str, Entry | None]) -> bool:
    entry = heads[place.owner]
    if entry is None or entry.value.__class__ is not ListHead:
        return True
    head: ListHead = entry.value
    return head.generation != place.generation or place.number < head.first


async def _heads(source: Source, owners: Collection[str]) -> dict[str, Entry | None]:
    """The entries at these keys; damaged ones are left out, since nobody can know which items they have."""
    found = await read_each(source, owners)
    entries = {owner: found.get(owner) for owner in owners}
    return {owner: entry for owner, entry in entries.items() if not isinstance(entry, CodecError)}
