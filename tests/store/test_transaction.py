"""Transactions: what they read is unchanged at their end, and their writes are committed together or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pocket_plug import (
    MISSING,
    Backend,
    ConflictError,
    Entry,
    Graph,
    Key,
    KeyNameError,
    Memory,
    MissingKeyError,
    Store,
    StoreError,
    StoreWriter,
    SyncStore,
    TransactionError,
    ValueTypeError,
    node,
)
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.layer_contract import FaultyMemory
from pocket_plug.testing.scenarios import scanned

Open = Callable[..., Any]
BALANCE = Key("account:{}", int)


# ------------------------------------------------------------ reading
@pytest.mark.parametrize("reverse", [False, True])
def test_a_page_shows_the_stack_with_its_own_writes(reverse: bool) -> None:
    """In order and in either direction; entries that it has deleted or that have expired don't count, and each key comes once."""
    clock = FakeClock()

    async def main() -> None:
        store = Store(FaultyMemory(), clock=clock)
        await store.set_many({f"k:{n:02}": n for n in range(0, 40, 2)})
        async with store.transaction() as view:
            for n in range(0, 40, 3):
                await view.set(f"k:{n:02}", n, ttl=60 if n % 2 else None)
            await view.set("k:98", 1, ttl=1)
            await view.set("l", 1)
            await view.delete_many([f"k:{n:02}" for n in range(10, 30)])
            clock.advance(1)
            names = [f"k:{n:02}" for n in (*range(10), *range(30, 40)) if n % 2 == 0 or n % 3 == 0]
            tx = view._source  # pyright: ignore[reportPrivateUsage] - pages have no method of a view yet
            for size in (1, 2, 3, 100, None):
                found = [key async for key in tx.scan("k:", reverse=reverse, limit=size)]
                assert found == scanned(names, reverse=reverse, limit=size)
                for after in ("", *names, "k:", "k:20", "k:98", "m"):
                    found = [key async for key in tx.scan("k:", after=after, reverse=reverse, limit=size)]
                    assert found == scanned(names, after=after, reverse=reverse, limit=size), (after, size)

    asyncio.run(main())


def test_a_scan_after_the_end_of_its_transaction_is_refused() -> None:
    """After the end it would show the committed state, with others' writes too."""

    async def main() -> None:
        store = Store()
        await store.set_many({"a": 1, "b": 2})
        async with store.transaction() as tx:
            keys = tx.keys()
            assert await anext(keys) == "a"
        with pytest.raises(TransactionError, match="has ended"):
            await anext(keys)

    asyncio.run(main())


def test_reads_are_repeatable(open_store: Open) -> None:
    """What a transaction has read once, a missing entry too, it reads again unchanged, whatever others write meanwhile."""
    store = open_store()
    store.set_many({"a": 1, "b": 1})
    with pytest.raises(ConflictError) as caught, store.transaction() as tx:
        assert (tx.get("a"), tx.get("new", MISSING)) == (1, MISSING)
        store.set_many({"a": 2, "b": 2, "new": 2})
        assert (tx.get("a"), tx.get("new", MISSING)) == (1, MISSING)
        assert tx.get_many(["a", "b", "new"]) == {"a": 1, "b": 2}
        assert tx.get("b") == 2
    assert caught.value.keys == {"a", "new"}


def test_it_reads_its_own_writes(open_store: Open) -> None:
    """Sets, deletes and updates are visible to all its reads at once, and to nobody else before the end."""
    store = open_store()
    store.set_many({"kept": 0, "deleted": 0, "updated": 0})
    with store.transaction() as tx:
        tx.set("new", None)
        assert tx.delete("deleted") is True
        assert tx.delete("deleted") is False
        assert tx.update("updated", lambda n: n + 1) == 1
        assert tx.update("updated", lambda n: n + 1) == 2
        assert tx.update("counted", lambda n: n + 1, default=10) == 11
        tx.set_many({"many:1": 1, "many:2": 2})
        tx.delete_many(["many:2"])
        assert tx.get("new", MISSING) is None
        assert not tx.has("deleted")
        with pytest.raises(MissingKeyError):
            tx.require("deleted")
        with pytest.raises(MissingKeyError):
            tx.update("deleted", lambda n: n)
        names = ["kept", "deleted", "updated", "counted", "new", "many:1", "many:2"]
        inside = {"kept": 0, "updated": 2, "counted": 11, "new": None, "many:1": 1}
        assert tx.get_many(names) == inside
        assert store.get_many(names) == {"kept": 0, "deleted": 0, "updated": 0}
    assert store.get_many(names) == inside


def test_a_scan_shows_the_stack_with_its_own_writes(open_store: Open) -> None:
    """In order, by prefix, within scopes: new names are included and deleted ones are not."""
    store = open_store()
    store.set_many({"a": 0, "s:1": 0, "s:3": 0, "z": 0})
    with store.transaction() as tx:
        tx.set("s:2", 1)
        tx.set("s:3", 1)
        tx.delete("s:1")
        tx.scope("s").set("4", 1)
        assert list(tx.keys()) == ["a", "s:2", "s:3", "s:4", "z"]
        assert list(tx.keys("s:")) == ["s:2", "s:3", "s:4"]
        assert list(tx.scope("s").keys()) == ["2", "3", "4"]
        assert list(store.keys()) == ["a", "s:1", "s:3", "z"]


def test_a_new_name_of_another_caller_is_no_conflict(open_store: Open) -> None:
    """Scans are not tracked, as `keys` says: only single reads are."""
    store = open_store()
    with store.transaction() as tx:
        seen = list(tx.keys())
        store.set("added", 1)
        tx.set("count", len(seen))
    assert store.get("count") == 0


def test_its_values_are_private_copies(open_store: Open) -> None:
    """`tx.get(k).append(…)` changes nothing without a set: neither the store, nor other callers' objects."""
    store = open_store()
    store.set_many({"list": [1], "deep": {"rows": [{"n": 1}]}})
    held = store.get("list")
    with store.transaction() as tx:
        tx.get("list").append(2)
        tx.get_many(["deep"])["deep"]["rows"][0]["n"] = 2
    assert held == [1]
    assert store.get_many(["list", "deep"]) == {"list": [1], "deep": {"rows": [{"n": 1}]}}
    with store.transaction() as tx:
        items = tx.get("list")
        items.append(2)
        tx.set("list", items)
    assert held == [1]
    assert store.get("list") == [1, 2]


def test_what_it_has_written_itself_is_copied_too(open_store: Open) -> None:
    """Whoever reads it back and changes it changes nothing; nor does an update that fails half way."""
    store = open_store()
    with store.transaction() as tx:
        tx.set("list", [1])
        tx.get("list").append(2)
        tx.get_many(["list"])["list"].append(3)
        with pytest.raises(ZeroDivisionError):
            tx.update("list", lambda items: items.append(4) or 1 / 0)
        assert tx.get("list") == [1]
        tx.append("log", [1])
        tx.tail("log", 1)[0].append(2)
    assert store.get("list") == [1]
    assert store.tail("log", 1) == [[1]]


def test_a_discarded_update_leaves_the_value_alone(open_store: Open) -> None:
    """A function that changes its argument in place works on a copy here too, which is discarded with the transaction."""
    store = open_store()
    store.set("list", [1])
    with pytest.raises(ZeroDivisionError), store.transaction() as tx:
        tx.update("list", lambda items: items.append(2) or items)
        assert tx.get("list") == [1, 2]
        raise ZeroDivisionError
    assert store.get("list") == [1]


def test_a_copy_that_was_changed_is_not_read_again(open_store: Open) -> None:
    """Each read gives what the first one gave; `update`, `touch` and `pop` begin from that too, not from the changed copy."""
    store = open_store()
    store.set_many({"list": [1], "touched": [1], "gone": [1]})
    with store.transaction() as tx:
        for key in ("list", "touched", "gone"):
            tx.get(key).append(2)
            assert tx.get(key) == tx.get_many([key])[key] == tx.entry(key).value == [1]
        assert tx.update("list", lambda items: [*items, 3]) == [1, 3]
        assert tx.touch("touched", ttl=60)
        assert tx.pop("gone") == [1]
    assert store.get_many(["list", "touched"]) == {"list": [1, 3], "touched": [1]}


def test_what_is_changed_after_its_set_is_stored_as_it_was(open_store: Open) -> None:
    """As by a `set` to a file outside of a transaction: whoever fills one dict for each row stores the rows, not the last one."""
    store = open_store()
    row: dict[str, int] = {}
    with store.transaction() as tx:
        for n in range(2):
            row["n"] = n
            tx.set(f"row:{n}", row)
            tx.append("rows", row)
        tx.set_many({"many": row})
        held = tx.update("updated", lambda rows: rows, default=[row])
        held.append(row)
        row["n"] = 9
    assert dict(store.items("row:")) == {"row:0": {"n": 0}, "row:1": {"n": 1}}
    assert store.tail("rows", 2) == [{"n": 0}, {"n": 1}]
    assert store.get_many(["many", "updated"]) == {"many": {"n": 1}, "updated": [{"n": 1}]}


# ------------------------------------------------------------ the end
def test_all_writes_are_committed_at_once() -> None:
    """In one write of the backend, whatever was done."""
    backend = FaultyMemory()
    with SyncStore(backend) as store:
        store.set("a", 0)
        backend.used.clear()
        with store.transaction() as tx:
            tx.set("b", 1)
            tx.update("a", lambda n: n + 1)
            tx.set("b", 2)
            tx.set("c", 1)
            tx.delete("c")
        assert [use for use in backend.used if use.startswith("write")] == ["write b a c"]


def test_a_conflict_names_the_keys_and_nothing_is_written(open_store: Open) -> None:
    """The names are the full ones, as the backend knows them, in scopes too."""
    store = open_store()
    store.set_many({"s:a": 1, "s:b": 1, "s:c": 1})
    with pytest.raises(ConflictError, match="s:a, s:gone") as caught, store.scope("s").transaction() as tx:
        assert tx.get_many(["a", "b"]) == {"a": 1, "b": 1}
        assert not tx.has("gone")
        tx.set("a", 10)
        tx.set("d", 10)
        tx.delete("c")
        store.set_many({"s:a": 2, "s:gone": 2})
    assert caught.value.keys == {"s:a", "s:gone"}
    assert isinstance(caught.value, StoreError)
    assert store.get_many([f"s:{k}" for k in "abcd"]) == {"s:a": 2, "s:b": 1, "s:c": 1}


def test_the_first_version_seen_is_the_one_expected(open_store: Open) -> None:
    """A value that was changed, and changed back to an equal one, has another version."""
    store = open_store()
    store.set("a", 1)
    with pytest.raises(ConflictError), store.transaction() as tx:
        tx.set("b", tx.get("a"))
        store.set("a", 2)
        store.set("a", 1)
    with pytest.raises(ConflictError), store.transaction() as tx:
        tx.set("b", tx.get("a"))
        store.delete("a")
        store.set("a", 1)
    assert not store.has("b")


def test_writes_without_reads_never_conflict(open_store: Open) -> None:
    """A key that was not read is simply set; an update has read its key."""
    store = open_store()
    with store.transaction() as tx:
        tx.set("a", "ours")
        store.set("a", "theirs")
    assert store.get("a") == "ours"
    store.set("n", 1)
    with pytest.raises(ConflictError), store.transaction() as tx:
        tx.update("n", lambda n: n + 1)
        store.set("n", 5)
    with pytest.raises(ConflictError), store.transaction() as tx:
        assert tx.delete("n")
        store.set("n", 6)
    assert store.get("n") == 6


def test_a_transaction_that_only_reads_is_checked_too(open_store: Open) -> None:
    """What was read is unchanged at the end, also without any write: one value, or two that never existed together."""
    store = open_store()
    store.set_many({"a": 1, "b": 1})
    with pytest.raises(ConflictError) as caught, store.transaction() as tx:
        a = tx.get("a")
        store.set_many({"a": 2, "b": 2})
        assert (a, tx.get("b")) == (1, 2)
    assert caught.value.keys == {"a"}
    uses: list[Callable[[Any], object]] = [
        lambda tx: tx.get("a"),
        lambda tx: tx.get_many(["a"]),
        lambda tx: tx.has("absent"),
        lambda tx: tx.ttl("a"),
        lambda tx: tx.scope("s").get("1"),
        lambda tx: tx.typed(int).get("a"),
        lambda tx: tx.delete("absent"),
    ]
    for use in uses:
        with store.transaction() as tx:
            use(tx)
        with pytest.raises(ConflictError), store.transaction() as tx:
            use(tx)
            store.set_many({"a": 3, "absent": 3, "s:1": 3})
        store.delete_many(["absent", "s:1"])
    with store.transaction():
        pass


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_exception_discards_it(open_store: Open, error: BaseException) -> None:
    """The exception is passed on unchanged, and nothing of the block is written; no conflict hides it."""
    store = open_store()
    store.set("a", 1)
    with pytest.raises(type(error)) as caught, store.transaction() as tx:
        tx.set("b", tx.get("a"))
        store.set("a", 2)
        raise error
    assert caught.value is error
    assert store.get_many(["a", "b"]) == {"a": 2}


AFTERWARDS: dict[str, Callable[[Any], object]] = {
    "get": lambda tx: tx.get("a"),
    "get of its own": lambda tx: tx.get("own"),
    "require": lambda tx: tx.require("a"),
    "has": lambda tx: tx.has("a"),
    "get_many": lambda tx: tx.get_many(["a"]),
    "keys": lambda tx: list(tx.keys()),
    "ttl": lambda tx: tx.ttl("a"),
    "set": lambda tx: tx.set("a", 1),
    "set_many": lambda tx: tx.set_many({"a": 1}),
    "update": lambda tx: tx.update("a", lambda n: n, default=0),
    "delete": lambda tx: tx.delete("a"),
    "delete_many": lambda tx: tx.delete_many(["a"]),
    "typed": lambda tx: tx.typed(int).set("a", 1),
    "scope, made now": lambda tx: tx.scope("s").set("a", 1),
}


@pytest.mark.parametrize("use", AFTERWARDS.values(), ids=AFTERWARDS.keys())
def test_after_its_end_it_is_refused(use: Callable[[Any], object]) -> None:
    """However it ended, and through a scope or a typed view that was made before: no write is silently lost."""
    store = SyncStore()
    store.set("a", 1)
    with store.transaction() as committed:
        committed.set("own", 1)
        scope = committed.scope("s")
    with pytest.raises(ZeroDivisionError), store.transaction() as discarded:
        raise ZeroDivisionError
    with pytest.raises(ConflictError), store.transaction() as lost:
        lost.set("b", lost.get("a"))
        store.set("a", 2)
    for tx in (committed, discarded, lost, scope):
        with pytest.raises(TransactionError, match="this transaction has ended"):
            use(tx)
    with pytest.raises(TransactionError, match=r"^this transaction has ended"):
        next(committed.keys())
    assert store.get_many(["a", "own", "b", "s:a"]) == {"a": 2, "own": 1}


def test_it_is_used_by_one_block_at_a_time() -> None:
    """A second block, or another task's, over an open one is refused: its writes could be forgotten. Later
    it may be used again.
    """
    store = Store()

    async def main() -> None:
        block = store.transaction()
        async with block as outer:
            await outer.set("a", 1)
            with pytest.raises(TransactionError, match="make one for each block"):
                async with block as inner:
                    await inner.set("b", 2)
        async with block as again:
            await again.set("c", 3)
        assert [pair async for pair in store.items()] == [("a", 1), ("c", 3)]

    asyncio.run(main())
    opened = store.sync.transaction()
    with opened as tx, pytest.raises(TransactionError, match="make one for each block"):
        tx.set("d", 4)
        opened.__enter__()
    assert store.sync.get("d") == 4


# ------------------------------------------------------------ its views
def test_its_views_are_as_a_stores(open_store: Open) -> None:
    """Names, keys and types are checked, scopes and typed views belong to it."""
    store = open_store()
    with store.transaction() as tx:
        tx.scope("account").typed(int).set("x", 1)
        assert tx.get(BALANCE("x")) == 1
        with pytest.raises(ValueTypeError):
            tx.set(BALANCE("x"), "one")
        with pytest.raises(ValueTypeError):
            tx.typed(int).set("account:x", "one")
        with pytest.raises(KeyNameError):
            tx.set("pocket:x", 1)
        with pytest.raises(AttributeError):
            tx.transaction  # noqa: B018
        assert not store.has("account:x")
    assert store.get("account:x") == 1


def test_a_deadline_in_it_counts_from_its_set(open_store: Open) -> None:
    """An own value expires within it as in the store; an update keeps the deadline that it has read."""
    clock = FakeClock()
    store = open_store(clock=clock)
    store.set("hits", 0, ttl=10)
    with store.transaction() as tx:
        tx.set("short", 1, ttl=5)
        tx.update("hits", lambda n: n + 1)
        assert tx.ttl("short") == 5
        clock.advance(5)
        assert not tx.has("short")
        assert list(tx.keys()) == ["hits"]
        tx.set("later", 1, ttl=5)
    assert not store.has("short")
    assert (store.ttl("hits"), store.ttl("later")) == (5, 5)


def test_an_entry_that_has_expired_meanwhile_is_a_conflict(open_store: Open) -> None:
    """A decision that depends on an expired value is not committed."""
    clock = FakeClock()
    store = open_store(clock=clock)
    store.set("offer", 1, ttl=10)
    with pytest.raises(ConflictError) as caught, store.transaction() as tx:
        tx.set("accepted", tx.get("offer"))
        clock.advance(10)
        assert tx.get("offer") == 1
    assert caught.value.keys == {"offer"}
    assert not store.has("accepted")


# ------------------------------------------------------------ concurrent transactions
@pytest.mark.parametrize("kind", ["memory", "threaded", "sqlite"])
def test_transfers_keep_the_sum(kind: str, threaded: type[Backend], tmp_path: Any) -> None:
    """Eight threads move money between accounts, one reads: no money is lost, and no inconsistent sum is ever accepted."""
    backend = {"memory": Memory, "threaded": threaded, "sqlite": lambda: SQLite(tmp_path / "db", durability="process")}[
        kind
    ]()
    sums: set[int] = set()
    errors: list[BaseException] = []
    done = threading.Event()

    def transfer(start: int) -> None:
        for n in range(12):
            source, target = BALANCE(start % 3), BALANCE((start + n) % 3)
            while True:
                try:
                    with store.transaction() as tx:
                        amount = tx.require(source) // 4
                        tx.update(source, lambda balance: balance - amount, default=0)  # noqa: B023
                        tx.update(target, lambda balance: balance + amount, default=0)  # noqa: B023
                    break
                except ConflictError:
                    continue

    def watch() -> None:
        while not done.is_set():
            try:
                with store.transaction() as tx:
                    total = sum(tx.get_many([BALANCE(n) for n in range(3)]).values())
                sums.add(total)
            except ConflictError:
                continue

    def guarded(work: Callable[..., None], *arguments: int) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(error)
            raise

    with SyncStore(backend) as store:
        store.set_many({BALANCE(n): 1000 for n in range(3)})
        watcher = threading.Thread(target=guarded, args=(watch,), daemon=True)
        threads = [threading.Thread(target=guarded, args=(transfer, n), daemon=True) for n in range(8)]
        for thread in (watcher, *threads):
            thread.start()
        for thread in threads:
            thread.join(30)
        done.set()
        watcher.join(30)
        assert not [thread for thread in (watcher, *threads) if thread.is_alive()]
        assert errors == []
        assert sum(store.get_many([BALANCE(n) for n in range(3)]).values()) == 3000
        assert sums <= {3000}


def test_tasks_in_transactions_lose_no_update() -> None:
    """A hundred tasks that read, pause and write: each one without a conflict counts."""

    async def main() -> None:
        store = Store()
        landed = 0

        async def count() -> None:
            nonlocal landed
            try:
                async with store.transaction() as tx:
                    n = await tx.get("n", 0)
                    await asyncio.sleep(0)
                    await tx.set("n", n + 1)
                landed += 1
            except ConflictError:
                pass

        for _ in range(10):
            await asyncio.gather(*(count() for _ in range(10)))
        assert landed == await store.get("n") == 10  # of those that read the same value, just one

    asyncio.run(main())


def test_a_cancelled_commit_is_done_or_never_will_be() -> None:
    """When the caller gets the cancellation, the state is final, and it is all or nothing."""

    async def main() -> None:
        async with Store(FaultyMemory()) as store:
            outcomes: set[bool] = set()
            for patience in range(8):
                names = [f"{patience}:a", f"{patience}:b"]

                async def work(names: list[str] = names) -> None:
                    async with store.transaction() as tx:
                        await tx.get("seen")
                        await tx.set_many(dict.fromkeys(names, 1))

                task = asyncio.ensure_future(work())
                for _ in range(patience):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                told = await store.get_many(names)
                assert len(told) in (0, 2)
                assert told or task.cancelled()
                outcomes.add(bool(told))
                for _ in range(8):
                    await asyncio.sleep(0)
                assert await store.get_many(names) == told
            assert outcomes == {False, True}

    asyncio.run(main())


def test_two_tasks_may_read_in_one_transaction() -> None:
    """Both get the version that was known first, though the backend answered them with different ones."""

    class Delayed(FaultyMemory):
        """Each read waits until the test lets it continue."""

        def __init__(self) -> None:
            super().__init__()
            self.held: list[asyncio.Event] = []

        async def read(self, key: str) -> Entry | None:
            self.held.append(asyncio.Event())
            await self.held[-1].wait()
            return await super().read(key)

    async def main() -> None:
        backend = Delayed()
        async with Store(backend) as store:
            await store.set("a", 1)
            with pytest.raises(ConflictError):
                async with store.transaction() as tx:
                    slow, quick = (asyncio.ensure_future(tx.get("a")) for _ in range(2))
                    while len(backend.held) < 2:
                        await asyncio.sleep(0)
                    backend.held[1].set()
                    assert await quick == 1
                    await store.set("a", 2)
                    backend.held[0].set()
                    assert await slow == 1
                    await tx.set("b", 1)

    asyncio.run(main())


# ------------------------------------------------------------ tasks in one transaction
@pytest.mark.parametrize("has_written", [False, True])
@pytest.mark.parametrize("within", ["a transaction", "post"])
def test_tasks_of_one_transaction_lose_nothing_to_each_other(within: str, has_written: bool) -> None:
    """Over a store that suspends, each sees the others' writes so far, as tasks in a store do."""

    async def together(store: StoreWriter) -> None:
        if has_written:
            await store.set("other", 1)
        updates = [store.update("n", lambda n: n + 1, default=0) for _ in range(5)]
        assert sorted(await asyncio.gather(*updates)) == [1, 2, 3, 4, 5]
        assert sorted(await asyncio.gather(*(store.append("l", n) for n in range(5)))) == [1, 2, 3, 4, 5]
        assert sorted(await asyncio.gather(*(store.add("k", n) for n in range(3)))) == [False, False, True]
        assert sorted(await asyncio.gather(*(store.pop("once", 0) for _ in range(3)))) == [0, 0, 1]
        assert await asyncio.gather(store.set("seen", 2), store.get("seen")) == [None, 2]

    @node.post
    async def post(store: StoreWriter, n: int) -> int:
        await together(store)
        return n

    async def main() -> None:
        async with Store(FaultyMemory()) as store:
            await store.set_many({"once": 1, "seen": 1})
            if within == "post":
                await Graph(post).run(1, store=store)
            else:
                async with store.transaction() as view:
                    await together(view)
            assert (await store.get("n"), await store.tail("l", 9)) == (5, [0, 1, 2, 3, 4])

    asyncio.run(main())
