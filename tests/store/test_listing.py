"""Operations that are derived from scans and writes: pages without pocket_plug's own records, removal
within a backend's limits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from pocket_plug import (
    Change,
    ConfigError,
    ConflictError,
    Delete,
    Entry,
    Graph,
    Key,
    KeyNameError,
    Memory,
    MissingKeyError,
    Put,
    Store,
    StoredValue,
    StoreError,
    StoreWriter,
    SyncStore,
    ValueTypeError,
    WriteSizeError,
    node,
)
from pocket_plug.layers import Bounding
from pocket_plug.testing.clock import FakeClock


class Limited(Memory):
    """Limits the changes and expectations of a write, and records its calls."""

    def __init__(self, max_changes: int | None = None) -> None:
        super().__init__()
        self.max_changes = max_changes
        self.writes: list[int] = []
        self.reads: list[int] = []
        self.scanned = 0

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        if self.max_changes is not None and len(changes) + len(expect) > self.max_changes:
            raise WriteSizeError(f"{len(changes) + len(expect)} is too much")
        self.writes.append(len(changes))
        return await super().write(changes, expect)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        names = list(keys)
        self.reads.append(len(names))
        return await super().read_many(names)

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        async for key in super().scan(prefix, after=after, reverse=reverse, limit=limit):
            self.scanned += 1
            yield key


def filled(backend: Limited, number: int) -> Store:
    store = Store(backend)
    for n in range(number):
        store.sync.set(f"k:{n:04}", n)
    backend.writes.clear()
    return store


def test_pages_skip_reserved_records() -> None:
    """However many of them are between two user names: at most one of them is read."""
    backend = Limited()
    store = filled(backend, 3).sync
    store.set("z", 0)
    store.stack.run(store.stack.write([Put(f"pocket:run:{n:04}", n) for n in range(1000)]))
    for reverse in (False, True):
        backend.scanned = 0
        names = list(store.keys(limit=4, reverse=reverse))
        assert sorted(names) == ["k:0000", "k:0001", "k:0002", "z"]
        assert backend.scanned == 5
    assert store.count() == 4
    assert list(store.keys("pocket:run")) == []


def test_a_page_of_items_reads_no_more_than_it_returns() -> None:
    """A limit is the size of the batch that is read; without one it is 100."""
    backend = Limited()
    store = filled(backend, 250).sync
    assert [name for name, _ in store.items(limit=3, after="k:0007")] == ["k:0008", "k:0009", "k:0010"]
    assert list(store.items(limit=0)) == []
    assert backend.reads == [3]
    backend.reads.clear()
    assert len(list(store.items())) == 250
    assert backend.reads == [100, 100, 50]


@pytest.mark.parametrize("reverse", [False, True])
def test_items_deleted_during_a_read_are_replaced_by_others(reverse: bool) -> None:
    """A page has the requested number of items, if there are enough, although some names were deleted meanwhile."""

    class Vanishing(Limited):
        async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
            names = list(keys)
            if not self.reads:
                await self.write([Delete(names[0]), Delete(names[-1])])
            return await super().read_many(names)

    for limit, left in ((5, (1, 2, 3, 5, 6)), (2, (2, 3)), (1, (1,))):
        backend = Vanishing()
        store = filled(backend, 20).sync
        found = [name for name, _ in store.items(limit=limit, reverse=reverse)]
        assert found == [f"k:{19 - n if reverse else n:04}" for n in left]
        assert backend.reads[0] == limit


def test_removal_respects_the_backends_limits() -> None:
    """An entry that is removed and counted is a change and an expectation; `set_many` is done as a whole, or not."""
    backend = Limited(max_changes=9)
    store = filled(backend, 30).sync
    assert store.delete_many([f"k:{n:04}" for n in range(10)] + ["absent"]) == 10
    assert backend.writes == [4, 4, 3, 2]  # the third was refused, as one of its keys doesn't exist
    backend.writes.clear()
    assert store.delete_prefix("k:001") == 10
    assert backend.writes == [4, 4, 2]
    with pytest.raises(WriteSizeError):
        store.set_many({f"n:{n}": n for n in range(10)})
    assert store.count("n:") == 0
    assert len(list(store.items())) == 10
    assert max(backend.reads) <= 9


def test_removal_by_prefix_is_done_in_writes_of_500() -> None:
    """So nobody waits for a write of a million, and no value is read."""
    backend = Limited()
    store = filled(backend, 1200).sync
    assert store.delete_prefix("") == 1200
    assert backend.writes == [500, 500, 200]
    assert backend.reads == []


def test_concurrent_removals_count_each_entry_once() -> None:
    """Threads that remove the same keys at once: the sum of their counts is the number of entries."""
    store = Store().sync
    removed: list[int] = []
    names = [f"k:{n}" for n in range(50)]
    for _ in range(20):
        store.set_many(dict.fromkeys(names, 0))
        ready = threading.Barrier(4)

        def remove(use: Callable[[], int], ready: threading.Barrier = ready) -> None:
            ready.wait()
            removed.append(use())

        uses: list[Callable[[], int]] = [lambda: store.delete_prefix("k:"), lambda: store.delete_many(names)]
        threads = [threading.Thread(target=remove, args=(use,)) for use in uses * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.count() == 0
    assert sum(removed) == 20 * 50


def test_a_conflict_that_names_no_key_ends_a_removal() -> None:
    """A retry would be refused again and again; the error says that the backend is wrong."""

    class Broken(Memory):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
            if any(isinstance(change, Delete) for change in changes):
                raise ConflictError(["something else"])
            return await super().write(changes, expect)

    store = SyncStore(Broken())
    store.set("a", 1)
    with pytest.raises(StoreError, match="the conflict that their backend raised names none of them"):
        store.delete_many(["a"])


@pytest.mark.parametrize("limit", [-1, True, 1.5, "10"])
def test_a_limit_is_a_number_of_entries(limit: Any) -> None:
    """For names and for items, before anything is read."""
    store = SyncStore()
    for use in (store.keys, store.items):
        with pytest.raises(
            ConfigError, match=r"limit can't be .*; give a number of entries from 0 up, or None for all"
        ):
            next(iter(use(limit=limit)))


@pytest.mark.parametrize("expect", [-2, False, "1", 1.0])
def test_a_version_is_a_number(expect: Any) -> None:
    """A version that no entry can have is refused; it would conflict each time."""
    with pytest.raises(ConfigError, match=r"expect can't be .*; give the version of entry\(key\), or 0"):
        SyncStore().set("a", 1, expect=expect)


def test_a_version_from_a_transaction_ends_with_it() -> None:
    """Used after it, it would be the version of whatever entry there is then."""
    store = SyncStore()
    with store.transaction() as tx:
        tx.set("a", 1)
        own = tx.entry("a")
        assert own
        tx.set("a", 2, expect=own.version)
    store.set("a", 3)
    with pytest.raises(ConfigError, match="-1 is the version of a transaction's own write, until its commit"):
        store.set("a", 4, expect=own.version)
    assert store.get("a") == 3


@pytest.mark.parametrize("odd", [7, None, b"a"])
def test_prefixes_and_names_are_text(odd: Any) -> None:
    """So a prefix to remove is never taken for everything by accident."""
    store = SyncStore()
    store.set("a", 1)
    with pytest.raises(
        KeyNameError, match=r"a prefix of names must be a string, not .*; for all names below a Key, take the scope"
    ):
        store.delete_prefix(odd)
    assert list(store.keys(after=Key("a:{}")(1))) == []
    assert list(store.keys(after="")) == ["a"]
    store.set("s:b", 1)
    assert list(store.scope("s").keys(after="", reverse=True)) == ["b"]
    with pytest.raises(KeyNameError, match="the name in after= must be a string, not int"):
        next(store.keys(after=7))  # type: ignore[arg-type]


def test_a_new_deadline_renews_that_of_a_layer() -> None:
    """If a layer limits the life of entries, its limit starts again with `update(…, ttl=)` and `touch`."""
    clock = FakeClock()
    store = SyncStore(layers=[Bounding(ttl=10)], clock=clock)
    uses: list[Callable[[], object]] = [
        lambda: store.update("a", lambda n: n, ttl=60),
        lambda: store.touch("a", ttl=None),
    ]
    for use in uses:
        store.set("a", 1)
        clock.advance(8)
        use()
        clock.advance(8)
        assert store.has("a")


def test_a_value_of_another_type_is_not_popped() -> None:
    """It raises, and the value stays: by a Key, by a typed view, with and without a default."""
    store, age = SyncStore(), Key("age", int)
    store.set("age", "old")
    for use in (lambda: store.pop(age), lambda: store.pop(age, 0), lambda: store.typed(int).pop("age")):
        with pytest.raises(ValueTypeError, match="age"):
            use()
    assert store.get("age") == "old"
    with pytest.raises(ValueTypeError):
        store.add(age, "old")  # type: ignore[misc]


def test_typed_views_have_these_operations_too() -> None:
    """With and without `await`, values are checked when they are read and written."""
    store = Store(clock=lambda: 1000.0)
    ages = store.sync.scope("age").typed(int)
    assert ages.add("a", 1, ttl=10)
    assert not ages.add("a", 2)
    found = ages.entry("a")
    assert found == StoredValue(1, 1, 1010.0)
    ages.set("b", 2, expect=0)
    with pytest.raises(ConflictError):
        ages.set("b", 3, expect=0)
    assert (list(ages.keys()), list(ages.items(reverse=True)), ages.count()) == (["a", "b"], [("b", 2), ("a", 1)], 2)
    assert ages.touch("a", ttl=None)
    assert ages.update("a", lambda age: age + 1, default=0, ttl=7) == 2
    assert store.sync.ttl("age:a") == 7
    assert (ages.pop("a"), ages.pop("a", None), ages.entry("a")) == (2, None, None)
    with pytest.raises(MissingKeyError):
        ages.pop("a")
    store.sync.set("age:c", "text")
    with pytest.raises(ValueTypeError, match="'c'"):
        list(ages.items())
    with pytest.raises(ValueTypeError, match="'c'"):
        ages.entry("c")
    assert (ages.delete_many(["b", "x"]), ages.delete_prefix("")) == (1, 1)

    async def main() -> None:
        ages = store.typed(int)
        assert await ages.add("a", 1)
        assert [pair async for pair in ages.items()] == [("a", 1)]
        assert [name async for name in store.reader().typed(int).keys(limit=1)] == ["a"]
        assert (await ages.touch("a", ttl=5), await ages.count()) == (True, 1)
        assert (await ages.pop("a"), await ages.pop("a", 0), await ages.delete_prefix("")) == (1, 0, 0)

    asyncio.run(main())


def test_a_transaction_checks_what_it_removed() -> None:
    """Its results of removals, pops and adds must still be true at its end, otherwise it is a ConflictError."""
    for use in (
        lambda tx: tx.delete_many(["a"]),
        lambda tx: tx.pop("a"),
        lambda tx: tx.add("b", 2),
        lambda tx: tx.touch("a", ttl=5),
        lambda tx: tx.entry("a"),
        lambda tx: tx.set("a", 2, expect=1),
    ):
        store = SyncStore()
        store.set("a", 1)

        def transact(store: SyncStore = store, use: Callable[[Any], object] = use) -> None:
            with store.transaction() as tx:
                use(tx)
                store.set_many({"a": "another's", "b": "another's"})

        with pytest.raises(ConflictError):
            transact()
        assert dict(store.items()) == {"a": "another's", "b": "another's"}


def test_a_stale_version_is_a_conflict_within_a_transaction() -> None:
    """At once, and the transaction can continue with something else."""
    store = SyncStore()
    store.set("a", 1)
    with store.transaction() as tx:
        with pytest.raises(ConflictError) as caught:
            tx.set("a", 2, expect=7)
        assert caught.value.keys == {"a"}
        tx.set("b", 3)
        with pytest.raises(ConflictError):  # its own write has no version yet
            tx.set("b", 4, expect=1)
    assert dict(store.items()) == {"a": 1, "b": 3}


def test_a_node_that_declares_only_what_it_writes_may_count_it() -> None:
    """Removals, adds and pops are writes, so `writes=` is enough."""
    item = Key("item:{}")

    @node.post(writes=[item])
    async def clear(store: StoreWriter, count: int) -> int:
        added = await store.add(item("new"), 1)
        popped = await store.pop(item(0))
        return await store.delete_many([item(n) for n in range(count)]) + added + popped

    store = Store()
    store.sync.set_many({item(n): 10 for n in range(3)})
    assert asyncio.run(Graph(clear, store=store).run(5)) == 2 + 1 + 10
    assert list(store.sync.keys()) == ["item:new"]
