"""What an async iterator gives, for callers without a loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

from pocket_plug.primitives.waiting import Runner

from .base import MISSING

T = TypeVar("T")

FEW = 256
"""So many names are fetched at a time, as backends do: a crossing to the store's event loop costs as much as a hundred."""


def driven(run: Runner, steps: AsyncIterator[T], few: int = 1) -> Iterator[T]:
    """What an async iterator gives, for callers without a loop; a `few` with each crossing to where it runs."""
    while found := run(_next_few(steps, few)):
        yield from found


async def _next_few(steps: AsyncIterator[T], few: int) -> list[T]:
    """The next ones; none after the last."""
    found: list[T] = []
    while len(found) < few and (step := await anext(steps, MISSING)) is not MISSING:
        found.append(step)
    return found
