"""A store as py-key-value's AsyncKeyValue: it behaves like their own store, over any backend. None of
their stores is a backend.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import key_value.aio.stores
import pytest
from hypothesis import given
from hypothesis import strategies as st
from key_value.aio.errors import DeserializationError, InvalidTTLError, SerializationError
from key_value.aio.protocols import AsyncKeyValue
from key_value.aio.stores.simple import SimpleStore
from key_value.aio.wrappers.limit_size import LimitSizeWrapper
from key_value.aio.wrappers.prefix_collections import PrefixCollectionsWrapper
from key_value.aio.wrappers.statistics import StatisticsWrapper
from pocket_plug_keyvalue import KeyValue, as_backend
from pocket_plug_keyvalue.reasons import LACKS

from pocket_plug import Change, ConfigError, KeyNameError, Memory, Store, SyncStore, ValueTypeError
from pocket_plug.testing.clock import FakeClock

# their SimpleStore says that of itself
pytestmark = pytest.mark.filterwarnings("ignore:A configured store is unstable")
README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(params=["memory", "sqlite", "layers"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Callable[[KeyValue], Awaitable[object]]], None]:
    """Runs a test over each kind of store, and closes the store."""
    file = f"sqlite:///{tmp_path}/state.db"
    given = {"memory": Store(), "sqlite": Store(file), "layers": Store(file, layers=["metrics", "compress"])}

    def run(test: Callable[[KeyValue], Awaitable[object]]) -> None:
        async def main() -> None:
            store = given[request.param]
            try:
                await test(KeyValue(store.scope("kv")))
            finally:
                await store.close()

        asyncio.run(main())

    return run


# ---------------------------------------------------------------- the protocol
def test_it_is_what_the_protocol_says() -> None:
    """Also for isinstance."""
    assert isinstance(KeyValue(Store()), AsyncKeyValue)
    with pytest.raises(ConfigError, match="needs a Store or a scope of a Store, not a SyncStore"):
        KeyValue(SyncStore())  # type: ignore[arg-type]


def test_values_come_and_go(run: Any) -> None:
    """One by one and several, in a collection and in the default one."""

    async def test(kv: KeyValue) -> None:
        assert await kv.get("a") is None
        await kv.put("a", {"n": 1})
        await kv.put("a", {"n": 2}, collection="other")
        assert (await kv.get("a"), await kv.get("a", collection="other")) == ({"n": 1}, {"n": 2})
        assert await kv.get("a", collection=kv.default_collection) == {"n": 1}
        await kv.put_many(["b", "c"], ({"n": 3}, {"n": 4}))
        assert await kv.get_many(["c", "x", "a", "c"]) == [{"n": 4}, None, {"n": 1}, {"n": 4}]
        assert [await kv.delete("a"), await kv.delete("a"), await kv.get("a")] == [True, False, None]
        assert [await kv.delete_many(["b", "c", "x"]), await kv.delete_many(["b"])] == [2, 0]
        assert await kv.get("a", collection="other") == {"n": 2}
        with pytest.raises(ValueError, match="2 keys and 1 values"):
            await kv.put_many(["a", "b"], [{}])

    run(test)


def test_deadlines_are_the_stores() -> None:
    """By the store's clock, for one key and for several; a put without `ttl` never expires."""
    clock = FakeClock()
    kv = KeyValue(Store(clock=clock))

    async def test() -> None:
        await kv.put("a", {"n": 1}, ttl=60)
        await kv.put_many(["b", "c"], [{"n": 2}, {"n": 3}], ttl=30.5)
        clock.advance(10)
        assert await kv.ttl("a") == ({"n": 1}, 50)
        assert await kv.ttl_many(["a", "b", "x"]) == [({"n": 1}, 50), ({"n": 2}, 20.5), (None, None)]
        await kv.put("a", {"n": 1})
        clock.advance(20.5)
        assert [await kv.get("b"), await kv.delete("c"), await kv.ttl("a")] == [None, False, ({"n": 1}, None)]

    asyncio.run(test())


@pytest.mark.parametrize("name", ["", None])
def test_no_name_for_the_default_collection_is_the_usual_one(name: str | None) -> None:
    """As in py-key-value's own stores."""
    kv = KeyValue(Store(), default_collection=name)
    asyncio.run(kv.put("a", {"n": 1}))
    assert asyncio.run(kv.get("a", collection="default_collection")) == {"n": 1}


@pytest.mark.parametrize("ttl", [0, -1, True, float("nan"), float("inf"), 10**400, "soon", "5", b"5"])
def test_an_invalid_ttl_is_refused(ttl: Any) -> None:
    """As in py-key-value's stores; nothing is stored."""
    kv = KeyValue(Store())
    with pytest.raises(InvalidTTLError):
        asyncio.run(kv.put("a", {}, ttl=ttl))
    assert asyncio.run(kv.get("a")) is None


@pytest.mark.parametrize("value", [{"a": {1}}, {"a": b"x"}, {"a": Path()}, {1: 2}, [1], "text", None])
def test_values_that_json_can_not_represent_are_refused(value: Any) -> None:
    """With the error type that FastMCP expects; the message contains the key but no value."""
    kv = KeyValue(Store())
    with pytest.raises(SerializationError, match="'key'"):
        asyncio.run(kv.put_many(["other", "key"], [{}, value]))
    assert asyncio.run(kv.get("other")) is None


def test_no_caller_shares_an_object_with_the_store() -> None:
    """The value is copied: neither the writer nor a reader can change what is stored, in memory either."""
    kv, mine = KeyValue(Store()), {"list": [1]}

    async def test() -> None:
        await kv.put("a", mine)
        mine["list"].append(2)
        (await kv.get("a") or {})["list"].append(3)
        assert await kv.get("a") == {"list": [1]}

    asyncio.run(test())


def test_a_value_that_another_program_has_written_is_an_error() -> None:
    """It never looks like a missing value."""
    store = Store()
    kv = KeyValue(store)
    found: object
    for found, error in (
        (7, ValueTypeError),
        ("{", DeserializationError),
        ("[]", DeserializationError),
        ("[" * 100_000, DeserializationError),
    ):
        store.sync.set("default_collection:a", found)
        with pytest.raises(error):
            asyncio.run(kv.get("a"))


# ---------------------------------------------------------------- names
NAMES = st.one_of(
    st.sampled_from(
        ["", "a", "a:b", "b", ":", "%3A", "pocket", "a" * 150, "a" * 151, "é" * 151, "test" * 500, "☃:" * 90]
    ),
    st.text(st.characters(codec="utf-8"), max_size=5),
)


@given(st.dictionaries(st.tuples(NAMES.filter(bool), NAMES), st.integers(), max_size=12))
def test_two_names_never_collide(wanted: dict[tuple[str, str], int]) -> None:
    """Whatever characters are in the names of collections and keys, and however long they are: each pair
    has an entry of its own.
    """
    store = Store()
    kv = KeyValue(store.scope("kv"))

    async def test() -> None:
        for (collection, key), n in wanted.items():
            await kv.put(key, {"n": n}, collection=collection)
        for (collection, key), n in wanted.items():
            assert await kv.get(key, collection=collection) == {"n": n}
        assert await store.count("kv:") == len(wanted) == await store.count()

    asyncio.run(test())


def test_a_name_with_a_lone_surrogate_is_an_error() -> None:
    """A lone surrogate can't be encoded."""
    with pytest.raises(KeyNameError):
        asyncio.run(KeyValue(Store()).put("\ud800", {}))


VALUES = st.dictionaries(st.text(max_size=3), st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                         lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
                         max_leaves=5), max_size=3)  # fmt: skip
KEYS = st.sampled_from(["a", "b:c", "d"])
COLLECTIONS = st.sampled_from([None, "", "x", "x:y"])
CALLS = st.one_of(
    st.tuples(st.sampled_from(["get", "delete", "ttl"]), KEYS),
    st.tuples(st.sampled_from(["get_many", "delete_many", "ttl_many"]), st.lists(KEYS, max_size=4)),
    st.tuples(st.just("put"), KEYS, VALUES),
    st.lists(st.tuples(KEYS, VALUES), max_size=3).map(
        lambda pairs: ("put_many", [k for k, _ in pairs], [v for _, v in pairs])
    ),
)


@given(st.lists(st.tuples(CALLS, COLLECTIONS), max_size=15))
def test_it_answers_as_their_own_store_does(calls: list[tuple[tuple[Any, ...], str | None]]) -> None:
    """Call by call, for any history."""
    ours, theirs = KeyValue(Store()), SimpleStore()

    async def test() -> None:
        for (name, *arguments), collection in calls:
            answers = [await getattr(store, name)(*arguments, collection=collection) for store in (ours, theirs)]
            assert answers[0] == answers[1], name

    asyncio.run(test())


# ---------------------------------------------------------------- what is around it, and below
def test_their_wrappers_go_around_it(run: Any) -> None:
    """The wrappers that FastMCP puts around a store, and one that renames collections."""

    async def test(kv: KeyValue) -> None:
        store = StatisticsWrapper(LimitSizeWrapper(PrefixCollectionsWrapper(kv, prefix="p"), max_size=1000))
        await store.put("a", {"n": 1}, collection="c", ttl=100)
        assert await store.get("a", collection="c") == {"n": 1}
        assert await store.delete_many(["a", "b"], collection="c") == 1

    run(test)


class OneWrite(Memory):
    """A layer that counts the changes of each write."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        self.sizes.append(len(changes))
        return await super().write(changes, expect)


def test_put_many_is_one_write() -> None:
    """So all of it is written, or nothing."""
    memory = OneWrite()
    asyncio.run(KeyValue(Store(memory)).put_many(["a", "b", "c"], [{}, {}, {}]))
    assert memory.sizes == [3]


def test_many_tasks(run: Any) -> None:
    """Each task sees its own value; a store that isn't open is opened once."""

    async def test(kv: KeyValue) -> None:
        async def one(number: int) -> None:
            for n in range(3):
                await kv.put(f"k{number}", {"n": n}, collection=f"c{number % 3}")
                assert await kv.get(f"k{number}", collection=f"c{number % 3}") == {"n": n}

        await asyncio.gather(*map(one, range(20)))

    run(test)


# ---------------------------------------------------------------- the other direction
def their_stores() -> set[str]:
    """The classes of stores in the installed version. Their modules need drivers, so they are parsed and not imported."""
    [folder] = key_value.aio.stores.__path__
    found = {
        name
        for file in Path(folder).rglob("*.py")
        for name in re.findall(r"^class (\w+Store)\(", file.read_text(), re.M)
    }
    return {name for name in found if not name.startswith("Base")}


def test_each_of_their_stores_is_refused_with_its_reason() -> None:
    """An unknown store too; and the README's table gives the same reasons."""
    assert their_stores() <= set(LACKS)
    for name, (lacks, instead) in LACKS.items():
        assert f"| `{name}` | {lacks} | `{instead}` |\n" in README
        with pytest.raises(ConfigError) as caught:
            as_backend(type(name, (), {})())
        assert f"{name} can't be a backend: AsyncKeyValue has no compare-and-set" in str(caught.value)
        assert f"{lacks}. Use Store({json.dumps(instead)})" in str(caught.value)
    with pytest.raises(
        ConfigError, match=r'Mine can\'t be a backend.*durable runs can.t work\. Use Store\("sqlite:///state.db"\)'
    ):
        as_backend(type("Mine", (), {})())


def test_readme() -> None:
    """The README's code works; the tests don't need FastMCP."""
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    for snippet in snippets:
        if "fastmcp" not in snippet:
            exec(snippet, names)  # noqa: S102
    assert len(snippets) == 2
