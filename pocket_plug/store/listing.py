"""Scans as users see them: names without pocket_plug's own, pages of names with values, and the removal of many entries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import suppress

from pocket_plug.errors import CodecError, ConfigError, ConflictError, StoreError
from pocket_plug.primitives.batches import batched
from pocket_plug.primitives.names import MAX_KEY_BYTES, RESERVED
from pocket_plug.primitives.redaction import found
from pocket_plug.primitives.values import Value

from .backend import PRESENT, Delete, page_of
from .base import Source
from .stack import Stack
from .updating import shown_value

PAGE = 100
"""The most entries that are read in one step."""

# keys can't be longer, so each with RESERVED is before it
_LAST_RESERVED = RESERVED + "\U0010ffff" * (MAX_KEY_BYTES // 4)


def check_limit(limit: object) -> None:
    """Raise ConfigError for a limit that is no number of entries."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise ConfigError(f"limit can't be {found(limit)}; give a number of entries from 0 up, or None for all")


def names_of(
    source: Source, prefix: str, *, after: str = "", reverse: bool = False, limit: int | None = None
) -> AsyncIterator[str]:
    """The names that a scan lists, without pocket_plug's own."""
    check_limit(limit)
    if _may_be_reserved(prefix):
        return _without_reserved(source, prefix, after, reverse, limit)
    return source.scan(prefix, after=after, reverse=reverse, limit=limit)


def _may_be_reserved(prefix: str) -> bool:
    """May pocket_plug's own names begin with this prefix, or with a part of it?"""
    return RESERVED.startswith(prefix[: len(RESERVED)])


async def _without_reserved(
    source: Source, prefix: str, after: str, reverse: bool, limit: int | None
) -> AsyncGenerator[str]:
    """The names that a scan lists; pocket_plug's own, which may be many, are skipped by a new scan that begins after them."""
    while True:
        keys = source.scan(prefix, after=after, reverse=reverse, limit=limit)
        async for name in keys:
            if name.startswith(RESERVED):
                after = RESERVED if reverse else _LAST_RESERVED
                break
            yield name
            if limit is not None:
                limit -= 1
        else:
            return
        if isinstance(keys, AsyncGenerator):
            await keys.aclose()


async def pages_of(
    source: Source, scope: str, prefix: str, *, after: str, reverse: bool, limit: int | None
) -> AsyncGenerator[list[tuple[str, Value]]]:
    """The names in a scope, without the scope, with the values to show, in pages; each page is as of one moment."""
    check_limit(limit)
    start, most, prefix = len(scope), batch_size(source, PAGE), scope + prefix
    # `read_page` of a stack finds the names and reads the entries at once, but hides nothing, and a transaction has none.
    stack = source if isinstance(source, Stack) and not _may_be_reserved(prefix) else None
    while limit is None or limit > 0:
        size = most if limit is None else min(most, limit)
        if stack is not None:
            page = await stack.read_page(prefix, after=after, reverse=reverse, limit=size)
        else:
            names = names_of(source, prefix, after=after, reverse=reverse, limit=size)
            page = await page_of(names, source.read_many)
        found = [(name[start:], shown_value(entry)) for name, entry in page if entry is not None]
        if found:
            yield found
        if len(page) < size:
            return
        after = page[-1][0]
        if limit is not None:
            limit -= len(found)


async def remove(source: Source, names: Collection[str]) -> int:
    """Remove these entries; returns how many there were. In one write, or in as few as the backend's `max_changes` allows.

    If one of them is damaged, one by one.
    """
    removed = 0
    names = list(dict.fromkeys(names))
    for left in batched(names, batch_size(source, max(1, len(names)), 2)):
        while left:
            try:
                await source.write([Delete(name) for name in left], dict.fromkeys(left, PRESENT))
            except ConflictError as conflict:
                there = [name for name in left if name not in conflict.keys]
                if len(there) == len(left):
                    raise StoreError(
                        f"{len(left)} keys could not be deleted: the conflict that their backend raised names none of them"
                    ) from conflict
                left = there
            except CodecError:  # a damaged entry can't be compared with what is expected
                removed += await _remove_each(source, left)
                break
            else:
                removed += len(left)
                break
    return removed


async def _remove_each(source: Source, names: Sequence[str]) -> int:
    """Remove these entries one by one. A damaged entry is removed unchecked, which repairs the store."""
    removed = 0
    for name in names:
        with suppress(ConflictError):  # nothing is there
            try:
                await source.write([Delete(name)], {name: PRESENT})
            except CodecError:
                await source.write([Delete(name)])
            removed += 1
    return removed


async def remove_all(source: Source, prefix: str) -> int:
    """Remove all entries whose names begin with a prefix, in several writes; returns how many there were."""
    removed, after = 0, ""
    size = batch_size(source, 5 * PAGE, 2)
    while names := [name async for name in names_of(source, prefix, after=after, limit=size)]:
        removed += await remove(source, names)
        if len(names) < size:
            break
        after = names[-1]
    return removed


def batch_size(source: Source, most: int, each: int = 1) -> int:
    """How many entries one step may have, at most `most`. An entry takes `each` changes and expectations."""
    allowed = source.stack.max_changes
    return most if allowed is None else max(1, min(most, allowed // each))
