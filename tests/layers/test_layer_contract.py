"""The contract for layers: the built-in ones pass it, an idle one does, and broken ones are detected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import pytest

from pocket_plug.errors import ConflictError, StoreError
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.persistence import Persistence
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry, Put
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.layer_contract import FaultyMemory, LayerContract


class Idle(Layer):
    """Overrides nothing."""


class Passing(Layer):
    """Overrides everything, and passes everything on."""

    async def read(self, key: str):
        return await self.inner.read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        return await self.inner.write(changes, expect)

    async def scan(self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None):
        async for key in self.inner.scan(prefix, after=after, reverse=reverse, limit=limit):
            yield key


class TestIdle(LayerContract):
    def recipe(self) -> Layer:
        return Idle()


class TestPassing(LayerContract):
    def recipe(self) -> Layer:
        return Passing()


class TestBoundingEntries(LayerContract):
    def recipe(self) -> Layer:
        return Bounding(max_entries=100_000)


class TestBoundingAll(LayerContract):
    def recipe(self) -> Layer:
        return Bounding(max_entries=100_000, max_bytes=10**9, ttl="30d", on_evict=lambda key, value, reason: None)


class TestPersistenceAroundACache(LayerContract):
    """The backend of the contract is the near tier."""

    def recipe(self) -> Layer:
        return Persistence(to=Memory())

    # an error of the near tier in a write can't undo the durable one's write: tested in test_persistence
    test_errors_of_the_inner_one_pass_unchanged = None
    # both stacks of one recipe have one durable tier, on purpose
    test_two_stacks_of_one_recipe_share_nothing = None


class TestPersistenceTo(LayerContract):
    """The backend of the contract is the durable tier."""

    def recipe(self) -> Layer:
        return Persistence(to=self.make_inner())

    def build(self, backend: Backend) -> Backend:
        near = Memory()
        near.clock = backend.clock
        return Persistence(to=backend).build(near)

    test_two_stacks_of_one_recipe_share_nothing = None


class TestPersistenceOverBounding(LayerContract):
    """A cache of three entries in front: other entries come from the durable tier."""

    def recipe(self) -> Layer:
        return Persistence(to=self.make_inner())

    def build(self, backend: Backend) -> Backend:
        near = Memory()
        near.clock = backend.clock
        return Persistence(to=backend).build(Bounding(max_entries=3, ttl=30).build(near))

    test_two_stacks_of_one_recipe_share_nothing = None


# ---------------------------------------------------------------- faults that the contract detects
class Swallows(Layer):
    """Treats a failing backend as an empty one."""

    async def read(self, key: str):
        try:
            return await self.inner.read(key)
        except StoreError:
            return None


class Retries(Layer):
    """Turns a conflict into another error."""

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        try:
            return await self.inner.write(changes, expect)
        except ConflictError as error:
            raise RuntimeError("try again") from error


class Shares(Layer):
    """Stores what it saw on the recipe."""

    def on_build(self) -> None:
        self.seen = SEEN


class Halves(Layer):
    """Changes the result of `read`, but not of `read_many`."""

    async def read(self, key: str):
        entry = await self.inner.read(key)
        return entry and Entry(entry.value * 2, entry.version)

    async def read_many(self, keys):
        return await self.inner.read_many(keys)


class Forgets(Layer):
    """Flushes nothing."""

    async def flush(self) -> None:
        pass


class ClosesQuietly(Layer):
    """Hides that acknowledged writes are lost."""

    async def close(self) -> None:
        with suppress(StoreError):
            await super().close()


class MakesAnew(Layer):
    """Makes a Put of the fields that it knows."""

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        anew = [
            Put(change.key, change.value, change.expires_at, change.version)
            for change in changes
            if isinstance(change, Put)
        ]
        return await self.inner.write(anew, expect)


class Ages(Layer):
    """Hides old entries from `read`, but not from `scan`."""

    def on_build(self) -> None:
        self.began = self.clock()

    async def read(self, key: str):
        return await self.inner.read(key) if self.clock() < self.began + 3600 else None


SEEN: list[str] = []
FAULTS: list[tuple[type[Layer], Callable[..., None], tuple[object, ...]]] = [
    (Swallows, LayerContract.test_errors_of_the_inner_one_pass_unchanged, (StoreError("full"),)),
    (Retries, LayerContract.test_a_conflict_passes_with_its_keys, ()),
    (Shares, LayerContract.test_two_stacks_of_one_recipe_share_nothing, ()),
    (Halves, LayerContract.test_read_many_does_not_pass_the_read_by, ()),
    (Forgets, LayerContract.test_open_flush_and_close_are_those_of_the_inner_one_too, ("flush",)),
    (ClosesQuietly, LayerContract.test_open_flush_and_close_are_those_of_the_inner_one_too, ("close",)),
    (MakesAnew, LayerContract.test_what_a_change_says_besides_its_value_passes, ()),
    (Ages, LayerContract.test_a_scan_and_a_read_show_the_same_keys, (FakeClock(),)),
]


@pytest.mark.parametrize(("layer", "test", "arguments"), FAULTS, ids=[layer.__name__ for layer, *_ in FAULTS])
def test_a_faulty_layer_is_detected(
    layer: type[Layer], test: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    """Each guarantee of the contract fails for a layer that breaks it."""
    contract = LayerContract()
    contract.make_inner = FaultyMemory
    contract.recipe = layer
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):
        test(contract, *arguments)
