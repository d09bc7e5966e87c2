"""The readonly layer: no write is done; reads and checks pass, and runs that would write don't start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

import pocket_plug as pp
from pocket_plug import ConfigError, ConflictError, Graph, Key, Memory, Put, ReadOnlyError, Store, SyncStore, node
from pocket_plug.layers import Bounding, Copying, Migrate, Persistence, Readonly
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change
from pocket_plug.store.layer import Layer
from pocket_plug.testing.layer_contract import LayerContract

_TOTAL = Key("total", int)


class Writable(Layer):
    """Writes directly to what is below the readonly layer; everything else passes that layer."""

    inline_write = True

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        inner = self.inner
        assert isinstance(inner, Layer)
        return await (inner.inner.write(changes, expect) if changes else inner.write(changes, expect))


class TestReadonly(LayerContract):
    """Reads work as without it: the contract's own writes bypass it."""

    def recipe(self) -> Layer:
        return Readonly()

    def build(self, backend: Backend) -> Backend:
        return Writable().build(Readonly().build(backend))

    # it writes to the layer itself, which refuses that
    test_two_stacks_of_one_recipe_share_nothing = None


def full() -> Memory:
    """A backend with something in it."""
    backend = Memory()
    asyncio.run(backend.write([Put("a", 1), Put("total", 5)]))
    return backend


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.set("a", 2),
        lambda store: store.set_many({"b": 2}),
        lambda store: store.delete("a"),
        lambda store: store.update("a", lambda value: value + 1),
        lambda store: store.scope("s").set("a", 1),
    ],
    ids=["set", "set_many", "delete", "update", "scope"],
)
def test_a_write_is_refused(write: Callable[[SyncStore], object]) -> None:
    """In every way of writing; the error names store and key and what to do; nothing has changed."""
    backend = full()
    before = asyncio.run(backend.version())
    with pytest.raises(
        ReadOnlyError, match=r"store 'memory' is read-only.*'(s:)?[ab]' can't be written.*use a store without"
    ):
        write(SyncStore(backend, layers=[Readonly()]))
    assert asyncio.run(backend.version()) == before


def test_a_transaction_that_writes_is_refused_and_one_that_reads_passes() -> None:
    """At its end, when it would commit. A pure check of versions passes, and still finds a conflict."""
    backend = full()
    store = SyncStore(backend, layers=[Readonly()])
    with store.transaction() as tx:
        assert tx.get("a") == 1
    with pytest.raises(ReadOnlyError), store.transaction() as tx:
        tx.set("a", 2)
    stack = store.stack
    assert asyncio.run(stack.write((), {"a": 1})) == 1
    with pytest.raises(ConflictError):
        asyncio.run(stack.write((), {"a": 7}))
    assert store.get("a") == 1


def test_many_keys_are_not_all_named() -> None:
    """The message stays short."""
    with pytest.raises(ReadOnlyError, match="'k0', 'k1', 'k2' and 7 more"):
        SyncStore(layers=[Readonly()]).set_many({f"k{n}": n for n in range(10)})
    with pytest.raises(ReadOnlyError, match="so 'log' can't be written"):  # its items are covered by the list
        SyncStore(layers=[Readonly()]).append("log", 1)


def test_maintenance_is_skipped(tmp_path: Path) -> None:
    """No bytes are freed, and no other caller is locked out by a turn."""
    url = f"sqlite:///{tmp_path}/state.db"
    with SyncStore(url) as store:
        store.set("a", "x" * 100_000)
        store.delete("a")

    async def main() -> None:
        async with Store(url, layers=[Readonly()]) as store:
            assert await store.stack.compact(10**9) == 0
            assert store.stack.turn(["a"]) is None
        async with Store(url) as store:
            assert await store.stack.compact(10**9) > 0

    asyncio.run(main())


# ---------------------------------------------------------------- runs
_called: list[str] = []


@node
async def look(number: int) -> int:
    _called.append("look")
    return number + 1


class Reads(pp.Node[int, int]):
    async def prep(self, store: pp.StoreReader, number: int) -> int:
        return number + await store.get(_TOTAL, 0)

    async def exec(self, prepared: int) -> int:
        return prepared

    async def post(self, store: pp.StoreWriter, number: int, prepared: int, result: int) -> int:
        return result


class Declares(Reads, writes=(_TOTAL,), reads=(_TOTAL,)):
    async def exec(self, prepared: int) -> int:
        _called.append("declares")
        return prepared


class Writes(Reads):
    async def post(self, store: pp.StoreWriter, number: int, prepared: int, result: int) -> int:
        await store.set(_TOTAL, result)
        return result


@pytest.fixture(autouse=True)
def _nothing_called() -> None:
    _called.clear()


def test_a_run_that_only_reads_goes_through() -> None:
    """Its nodes' commits are pure checks."""
    assert Graph(look >> Reads(), store=Store(full(), layers=[Readonly()])).run_sync(1) == 7


@pytest.mark.parametrize("nested", [False, True])
def test_a_run_of_a_node_that_declares_writes_is_refused_before_it_begins(nested: bool) -> None:
    """In a nested graph as well: no node was called."""
    graph = look >> (Graph(Declares(), name="inner") if nested else Declares())
    with pytest.raises(ReadOnlyError, match="node 'declares' declares writes, and its store"):
        Graph(graph, store=Store(full(), layers=[Readonly()])).run_sync(1)
    assert _called == []


def test_a_node_that_writes_without_declaring_it_fails_at_its_end() -> None:
    """Its writes are not stored."""
    backend = full()
    with pytest.raises(ReadOnlyError, match="'total' can't be written"):
        Graph(look >> Writes(), store=Store(backend, layers=[Readonly()])).run_sync(1)
    assert SyncStore(backend).get("total") == 5


def test_a_durable_run_is_refused_before_it_begins(tmp_path: Path) -> None:
    """The error names the run and the store; a finished run can still be read."""
    url = f"sqlite:///{tmp_path}/state.db"

    async def main() -> None:
        async with Store(url) as store:
            assert await Graph(look, store=store, name="orders").run(1, run_id="r1") == 2
        _called.clear()
        async with Store(url, layers=[Readonly()]) as store:
            with pytest.raises(ReadOnlyError, match=r"run_id='r2': the store .*Readonly.* is read-only"):
                await Graph(look, store=store, name="orders").run(1, run_id="r2")
            assert _called == []
            assert (await pp.Runs(store).get("r1")).state == "finished"

    asyncio.run(main())


# ---------------------------------------------------------------- stacks
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Migrate(), Readonly()], "migrate over Readonly.*could not write upgraded values back"),
        ([Bounding(max_entries=9), Readonly()], "bounding over Readonly.*evicts by deleting"),
        ([Persistence(to=Memory()), Readonly()], "persistence over Readonly.*could not be filled"),
        ([Migrate(), Copying(), Readonly()], "migrate over Copying.*read-only"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value[0].name,
)
def test_layers_that_write_by_themselves_are_refused_around_it(layers: list[Layer], message: str) -> None:
    """With the way out."""
    with pytest.raises(ConfigError, match=message):
        Store(layers=layers)


def test_layers_that_write_by_themselves_work_inside_of_it() -> None:
    """A cache is filled and bounded, and upgraded values are written back."""
    durable, near = full(), Memory()
    store = SyncStore(near, layers=[Readonly(), Migrate(), Persistence(to=durable), Bounding(max_entries=9)])
    assert store.get("a") == 1
    assert asyncio.run(near.read("a")) is not None
    with pytest.raises(ReadOnlyError):
        store.set("a", 2)
