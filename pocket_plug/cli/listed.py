"""Append-only lists for `store`: a list is one entry, followed by its items."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TypeGuard

from pocket_plug.errors import CodecError
from pocket_plug.primitives.lists import ListHead, item_of, items_of, place_of
from pocket_plug.primitives.names import ITEMS
from pocket_plug.store import lists
from pocket_plug.store.backend import Backend, Entry
from pocket_plug.store.stack import Stack

from .entries import BATCH, NamedEntry, found_entries


def is_list(entry: Entry | CodecError) -> TypeGuard[Entry]:
    """Is it the head of an append-only list?"""
    return isinstance(entry, Entry) and entry.value.__class__ is ListHead


async def with_items(stack: Backend, found: AsyncIterator[NamedEntry]) -> AsyncIterator[NamedEntry]:
    """These entries, and after each list its items. In this order, an import never stores an item without its list."""
    async for name, entry in found:
        yield name, entry
        if is_list(entry):
            head: ListHead = entry.value
            for start in range(head.first, head.next, BATCH):
                numbers = range(start, min(start + BATCH, head.next))
                items = [item_of(name, head.generation, number) for number in numbers]
                async for each in found_entries(stack, items):
                    yield each


def without_items(names: Sequence[str]) -> list[str]:
    """The names without those of items, which come with their lists."""
    return [name for name in names if not name.startswith(ITEMS)]


async def remove_items(stack: Stack, heads: dict[str, ListHead]) -> None:
    """Remove the items of lists that were removed."""
    for name, head in heads.items():
        await lists.remove_list(stack, name, head)


async def faults_of(backend: Backend, heads: dict[str, ListHead], names: Sequence[str]) -> tuple[list[str], int]:
    """A sentence for each list with missing items, and the number of items that belong to no list."""
    numbers = dict.fromkeys(heads, 0)
    left = 0
    for name in names:
        if (place := place_of(name)) is not None:
            head = heads.get(place.owner)
            if head is None or head.generation != place.generation or place.number < head.first:
                left += 1
            else:
                numbers[place.owner] += 1
    faults: list[str] = []
    for owner, head in heads.items():
        if numbers[owner] < head.length and (lacking := await _lacking(backend, owner, head)):
            faults.append(f"the list {owner!r} lacks {lacking:,} of its {head.length:,} items")
    return faults, left


async def _lacking(backend: Backend, owner: str, head: ListHead) -> int:
    """The number of missing items. It scans again, since the list may have changed after the names were read."""
    found = {name async for name in backend.scan(items_of(owner, head.generation))}
    now = await backend.read(owner)
    if now is None or not is_list(now) or now.value.generation != head.generation:
        return 0
    return sum(item_of(owner, head.generation, n) not in found for n in range(now.value.first, head.next))
