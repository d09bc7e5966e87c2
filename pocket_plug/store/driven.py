"""Async iterators for callers without an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

from pocket_plug.primitives.waiting import Runner

from .base import MISSING

T = TypeVar("T")

FEW = 256
"""How many names are fetched at a time: a switch to the store's event loop costs as much as a hundred names."""


def driven(run: Runner, steps: AsyncIterator[T], few: int = 1) -> Iterator[T]:
    """The items of an async iterator, for callers without a loop; each switch to the loop fetches `few` of them."""
    while found := run(_next_few(steps, few)):
        yield from found


async def _next_few(steps: AsyncIterator[T], few: int) -> list[T]:
    """The next items; none after the last."""
    found: list[T] = []
    while len(found) < few and (step := await anext(steps, MISSING)) is not MISSING:
        found.append(step)
    return found
