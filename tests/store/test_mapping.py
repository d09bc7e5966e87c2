"""Entries as a mapping: it behaves like a dict, over any store, in a scope of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocket_plug import Key, KeyNameError, Memory, MissingKeyError, Store, SyncStore, ValueTypeError
from pocket_plug.store.mapping import StoreMapping
from pocket_plug.testing.clock import FakeClock

AGE = Key("user:{}:age", int)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SyncStore]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/state.db"
    with SyncStore(url) as store:
        yield store


def beside(store: SyncStore) -> dict[str, int]:
    """Entries that belong to no mapping below: beside, below, and not escaped as a Key does it."""
    others = {"user": 1, "users": 2, "user:a:age:x": 3, "user:b%:age": 4, "user:c": 5}
    store.set_many(others)
    return others


def test_it_behaves_like_a_dict(store: SyncStore) -> None:
    """For each operation."""
    ages = store.mapping(AGE)
    assert isinstance(ages, MutableMapping)
    assert (len(ages), bool(ages), list(ages), dict(ages), ages == {}) == (0, False, [], {}, True)
    ages["a"] = 1
    ages["b"] = 2
    assert (ages["a"], ages.get("b"), ages.get("c"), ages.get("c", 7)) == (1, 2, None, 7)
    assert ("a" in ages, "c" in ages, 5 in ages, len(ages), bool(ages)) == (True, False, False, 2, True)
    assert [key in ages for key in ("", None, "x" * 2_000, "\ud800")] == [False] * 4  # no name can contain these
    assert (list(ages), list(ages.values()), list(ages.items())) == (["a", "b"], [1, 2], [("a", 1), ("b", 2)])
    assert (2 in ages.values(), 3 in ages.values(), ("a", 1) in ages.items(), ("a", 2) in ages.items()) == (
        *(True, False),
        *(True, False),
    )
    assert (ages | {"b": 3}, {"z": 0, "a": 9} | ages) == ({"a": 1, "b": 3}, {"z": 0, "a": 1, "b": 2})
    assert (ages.setdefault("a", 5), ages.setdefault("c", 5), ages.pop("c"), ages.pop("c", None)) == (1, 5, 5, None)
    ages.update({"c": 3}, d=4)
    ages.update([("e", 5)])
    ages |= {"f": 6}
    assert isinstance(ages, StoreMapping)
    assert ages == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}
    del ages["f"]
    assert ages.popitem() == ("a", 1)
    ages.clear()
    assert ages == {}


@pytest.mark.parametrize(
    "use",
    [
        lambda ages: ages["x"],
        lambda ages: ages.pop("x"),
        lambda ages: ages.popitem(),
        lambda ages: ages.__delitem__("x"),
    ],
)
def test_a_missing_key_is_a_key_error(store: SyncStore, use: Any) -> None:
    """As in a dict, so that callers can catch it."""
    with pytest.raises(KeyError) as caught:
        use(store.mapping(AGE))
    assert isinstance(caught.value, MissingKeyError)


def test_it_contains_the_names_of_its_key_only(store: SyncStore) -> None:
    """Neither iterating nor clearing touches entries beside it or below, nor names that its Key can't make."""
    others = beside(store)
    ages = store.mapping(AGE)
    ages.update({"a": 1, "b:c": 2, "50%": 3})
    assert list(ages) == ["50%", "a", "b:c"]
    assert (len(ages), list(ages.values())) == (3, [3, 1, 2])
    assert store.get("user:b%3Ac:age") == 2
    ages.clear()
    assert dict(store.items()) == others


def test_in_a_scope_and_as_a_typed_view(store: SyncStore) -> None:
    """Without a Key, the keys are the names with one part; a view's type is checked."""
    scope = store.scope("cache")
    plain: MutableMapping[str, Any] = scope.mapping()
    plain["pocket"] = None
    plain["a:b"] = [1]
    assert (dict(plain.items()), plain["pocket"]) == ({"pocket": None, "a:b": [1]}, None)
    assert set(store.keys()) == {"cache:%70ocket", "cache:a%3Ab"}
    numbers = store.scope("numbers").typed(int).mapping()
    numbers["n"] = 1
    with pytest.raises(ValueTypeError, match="is declared as int, the value is str"):
        numbers["n"] = "one"  # type: ignore[assignment]
    store.set("numbers:odd", "three")
    for read in (lambda: numbers["odd"], lambda: list(numbers.values()), lambda: list(numbers.items())):
        with pytest.raises(ValueTypeError, match="'odd' is declared as int, the value is str"):
            read()
    assert list(numbers) == ["n", "odd"]


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), st.integers(), max_size=20))
def test_any_text_comes_back_as_it_was(wanted: dict[str, int]) -> None:
    """Any text is one key of the mapping, and is found again."""
    store = SyncStore()
    for mapping in (store.mapping(), store.mapping(Key("a:{}:b"))):
        mapping.update(wanted)
        assert dict(mapping.items()) == wanted
        assert all(mapping[key] == value for key, value in wanted.items())
        assert len(mapping) == len(wanted)


def test_pages_and_removal_of_thousands(store: SyncStore) -> None:
    """More than one page of each kind."""
    mapping = store.mapping(Key("n:{}", int))
    wanted = {f"{n:05}": n for n in range(1_234)}
    mapping.update(wanted)
    store.set("n:x:y", 0)
    assert dict(mapping.items()) == wanted
    assert list(mapping) == list(wanted)
    mapping.clear()
    assert list(store.keys()) == ["n:x:y"]


def test_a_key_that_may_be_empty(store: SyncStore) -> None:
    """If the Key says so, it may be empty; otherwise that is no valid key."""
    mapping = store.mapping(Key("n:{?}", int))
    mapping[""] = 1
    assert dict(mapping.items()) == {"": 1}
    with pytest.raises(KeyNameError, match="empty"):
        store.mapping()[""] = 1


@pytest.mark.parametrize("key", [Key("a"), Key("a:{}:{}"), Key("a:{}")(1)])
def test_a_key_without_exactly_one_hole_is_refused(key: Key[Any]) -> None:
    """The error says what to do instead."""
    with pytest.raises(KeyNameError, match=r"one placeholder.*store\.scope"):
        SyncStore().mapping(key)


def test_a_name_is_no_key_for_a_mapping() -> None:
    """It has no placeholder to fill, whatever is in it; the error says what to give."""
    name: Any = "user:{}"
    with pytest.raises(KeyNameError, match=r"takes a Key with one placeholder, such as Key\('user:\{\}'\), not a str"):
        SyncStore().mapping(name)


def test_a_key_that_is_no_text_is_refused() -> None:
    """It would be returned as text."""
    with pytest.raises(KeyNameError, match="its keys must be str, not int"):
        SyncStore().mapping()[5] = 1  # type: ignore[index]


def test_concurrent_threads_get_each_entry_once(store: SyncStore) -> None:
    """`popitem` and `setdefault` are atomic: nothing is returned twice, and `popitem` raises only at the end."""
    mapping = store.mapping(Key("job:{}", int))
    mapping.update({f"{n:03}": n for n in range(60)})
    taken: list[int] = []
    firsts: list[int] = []

    def work(number: int) -> None:
        firsts.append(store.mapping(Key("first:{}", int)).setdefault("x", number))
        while True:
            try:
                taken.append(mapping.popitem()[1])
            except KeyError:
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(60))
    assert len(set(firsts)) == 1


def test_popitem_continues_if_another_caller_was_faster() -> None:
    """An entry that was removed since the scan belongs to the other caller."""

    class Stale(Memory):
        async def scan(self, prefix: str = "", **options: Any) -> AsyncIterator[str]:
            yield "a"
            async for name in super().scan(prefix, **options):
                yield name

    mapping = SyncStore(Stale()).mapping()
    mapping["b"] = 1
    assert mapping.popitem() == ("b", 1)
    with pytest.raises(KeyError):
        mapping.popitem()


def test_concurrent_changes_during_an_iteration(store: SyncStore) -> None:
    """It is no error, as it would be with a dict: entries removed meanwhile are skipped."""
    mapping = store.mapping(Key("n:{}", int))
    mapping.update({f"{n:03}": n for n in range(110)})
    seen = []
    for key, value in mapping.items():
        seen.append(f"{value:03}")
        mapping.pop("109", None)
        mapping.pop(key)
    assert seen == [f"{n:03}" for n in range(109)]
    assert not mapping


def test_in_a_transaction_and_with_a_deadline() -> None:
    """Writes of a mapping over a transaction are committed with it; an expired entry is missing."""
    clock = FakeClock()
    store = SyncStore(clock=clock)
    with store.transaction() as tx:
        tx.mapping()["a"] = 1
        assert store.mapping() == {}
    store.set("b", 2, ttl=10)
    assert store.mapping() == {"a": 1, "b": 2}
    clock.advance(10)
    assert store.mapping() == {"a": 1}
    assert repr(store.mapping(AGE)) == "StoreMapping(Key('user:{}:age', int), StoreWriter(memory))"


def test_it_works_over_an_async_store() -> None:
    """Without `await`, as the store's `sync`: in a task over memory, in a thread over a backend that suspends."""
    store = Store()

    async def main() -> None:
        ages = store.mapping(AGE)
        ages["a"] = 1
        store.typed(int).mapping()["b"] = 2
        assert await store.get(AGE("a")) == 1

    asyncio.run(main())
    assert store.sync.mapping() == {"b": 2}
