"""Parts of scans, for backends and layers: a range of sorted names, and the keys of an inner scan merged with other names."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

from .backend import Backend


def stretch(
    names: Sequence[str], prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
) -> Sequence[str]:
    """The names that a scan lists, out of sorted names, in its order. It costs some bisections and a copy of the result.

    >>> stretch(["a", "b:1", "b:2", "b:3", "c"], "b:", after="b:3", reverse=True, limit=1)
    ['b:2']
    """
    start = bisect_left(names, prefix)
    # names that start with "ab" are before "ac"; the highest code point has no successor, so the prefix ends before it here
    stem = prefix.rstrip("\U0010ffff")
    end = bisect_left(names, stem[:-1] + chr(ord(stem[-1]) + 1), start) if stem else len(names)
    if reverse:
        if after:
            end = bisect_left(names, after, start, end)
        found = names[start if limit is None else max(start, end - limit) : end]
        return found[::-1]
    if after:
        start = bisect_right(names, after, start, end)
    return names[start : end if limit is None else min(end, start + limit)]


async def paged(
    source: Backend, prefix: str, *, after: str = "", reverse: bool = False, size: int | None = None
) -> AsyncGenerator[str]:
    """All keys of a scan, read `size` at a time: for a caller that doesn't know beforehand how many it needs."""
    if size is None:
        async for key in source.scan(prefix, after=after, reverse=reverse):
            yield key
        return
    while page := [key async for key in source.scan(prefix, after=after, reverse=reverse, limit=size)]:
        for key in page:
            yield key
        if len(page) < size:
            return
        after = page[-1]


async def merged(
    source: Backend,
    names: Iterable[str],
    prefix: str,
    *,
    after: str = "",
    reverse: bool = False,
    size: int | None = None,
) -> AsyncGenerator[str]:
    """As `paged`, merged with `names`, each once: for a layer that has keys of its own, or hides keys of the source."""
    within = sorted(name for name in names if name.startswith(prefix))
    own = deque(stretch(within, prefix, after=after, reverse=reverse))
    async with aclosing(paged(source, prefix, after=after, reverse=reverse, size=size)) as keys:
        async for key in keys:
            while own and own[0] != key and (own[0] > key) is reverse:
                yield own.popleft()
            if own and own[0] == key:
                own.popleft()
            yield key
    for name in own:
        yield name
