"""A store before whose writes something else happens, for the tests of removing and pruning runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from pathlib import Path

import pytest

from pocket_plug import Store
from pocket_plug.store.backend import NO_EXPECTATIONS, Change
from pocket_plug.store.layer import Layer


class Told:
    """What the layer calls before each write."""

    before: Callable[[Sequence[Change]], Awaitable[None]] | None = None


TOLD = Told()


class Meanwhile(Layer):
    """Does something before a write."""

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        if TOLD.before is not None and changes:
            await TOLD.before(changes)
        return await self.inner.write(changes, expect)


@pytest.fixture(autouse=True)
def undisturbed() -> Generator[None]:
    yield
    TOLD.before = None


def stored(folder: Path, clock: Callable[[], float] | None = None) -> Store:
    return Store(f"sqlite:///{folder}/state.db?durability=process", layers=[Meanwhile()], clock=clock)
