"""A store as py-key-value's AsyncKeyValue: it answers as their own store does, over any backend; none of theirs is a backend."""

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

pytestmark = pytest.mark.filterwarnings(
    "ignore:A configured store is unstable"
)  # their SimpleStore says that of itself
README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(params=["memory", "sqlite", "layers"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Callable[[KeyValue], Awaitable[object]]], None]:
    """Runs a test over each kind of store, which it closes."""
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
    """Also at run time."""
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
    """By its clock, for one and for several; a put without one lasts for ever."""
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
    """As in their own stores."""
    kv = KeyValue(Store(), default_collection=name)
    asyncio.run(kv.put("a", {"n": 1}))
    assert asyncio.run(kv.get("a", collection="default_collection")) == {"n": 1}


@pytest.mark.parametrize("ttl", [0, -1, True, float("nan"), float("inf"), "soon", "5"])
def test_a_ttl_that_can_not_be_is_refused(ttl: Any) -> None:
    """As their stores do, and nothing is stored."""
    kv = KeyValue(Store())
    with pytest.raises(InvalidTTLError):
        asyncio.run(kv.put("a", {}, ttl=ttl))
    assert asyncio.run(kv.get("a")) is None


@pytest.mark.parametrize("value", [{"a": {1}}, {"a": b"x"}, {"a": Path()}, {1: 2}, [1], "text", None])
def test_what_json_does_not_have_is_refused(value: Any) -> None:
    """With the error that FastMCP looks for; the message has the key and no value."""
    kv = KeyValue(Store())
    with pytest.raises(SerializationError, match="'key'"):
        asyncio.run(kv.put_many(["other", "key"], [{}, value]))
    assert asyncio.run(kv.get("other")) is None


def test_nobody_else_has_the_same_object() -> None:
    """Neither who put it nor who got it changes what is stored, over memory either."""
    kv, mine = KeyValue(Store()), {"list": [1]}

    async def test() -> None:
        await kv.put("a", mine)
        mine["list"].append(2)
        (await kv.get("a") or {})["list"].append(3)
        assert await kv.get("a") == {"list": [1]}

    asyncio.run(test())


def test_what_somebody_else_has_written_is_an_error() -> None:
    """It never looks like nothing there."""
    store = Store()
    kv = KeyValue(store)
    for found, error in ((7, ValueTypeError), ("{", DeserializationError), ("[]", DeserializationError)):
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
def test_no_two_entries_meet(wanted: dict[tuple[str, str], int]) -> None:
    """Whatever is in the names of collections and keys, and however long they are: each is an entry of its own."""
    store = Store()
    kv = KeyValue(store.scope("kv"))

    async def test() -> None:
        for (collection, key), n in wanted.items():
            await kv.put(key, {"n": n}, collection=collection)
        for (collection, key), n in wanted.items():
            assert await kv.get(key, collection=collection) == {"n": n}
        assert await store.count("kv:") == len(wanted) == await store.count()

    asyncio.run(test())


def test_a_name_that_no_store_has_is_an_error() -> None:
    """A lone surrogate."""
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
    """Call by call, on any history."""
    ours, theirs = KeyValue(Store()), SimpleStore()

    async def test() -> None:
        for (name, *arguments), collection in calls:
            answers = [await getattr(store, name)(*arguments, collection=collection) for store in (ours, theirs)]
            assert answers[0] == answers[1], name

    asyncio.run(test())


# ---------------------------------------------------------------- what is around it, and below
def test_their_wrappers_go_around_it(run: Any) -> None:
    """Those that FastMCP puts around a store, and one that renames collections."""

    async def test(kv: KeyValue) -> None:
        store = StatisticsWrapper(LimitSizeWrapper(PrefixCollectionsWrapper(kv, prefix="p"), max_size=1000))
        await store.put("a", {"n": 1}, collection="c", ttl=100)
        assert await store.get("a", collection="c") == {"n": 1}
        assert await store.delete_many(["a", "b"], collection="c") == 1

    run(test)


class OneWrite(Memory):
    """Counts the changes of each write."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        self.sizes.append(len(changes))
        return await super().write(changes, expect)


def test_put_many_is_one_write() -> None:
    """So all of it lands or nothing."""
    memory = OneWrite()
    asyncio.run(KeyValue(Store(memory)).put_many(["a", "b", "c"], [{}, {}, {}]))
    assert memory.sizes == [3]


def test_many_tasks(run: Any) -> None:
    """Each sees its own; a store that nobody has opened is opened once."""

    async def test(kv: KeyValue) -> None:
        async def one(number: int) -> None:
            for n in range(3):
                await kv.put(f"k{number}", {"n": n}, collection=f"c{number % 3}")
                assert await kv.get(f"k{number}", collection=f"c{number % 3}") == {"n": n}

        await asyncio.gather(*map(one, range(20)))

    run(test)


# ---------------------------------------------------------------- the other way round
def their_stores() -> set[str]:
    """The classes of stores in the installed version; their modules need drivers, so they are read and not imported."""
    [folder] = key_value.aio.stores.__path__
    found = {
        name
        for file in Path(folder).rglob("*.py")
        for name in re.findall(r"^class (\w+Store)\(", file.read_text(), re.M)
    }
    return {name for name in found if not name.startswith("Base")}


def test_each_of_their_stores_is_refused_with_its_reason() -> None:
    """Also one that we don't know; and the README says the same of each."""
    assert their_stores() <= set(LACKS)
    for name, (lacks, instead) in LACKS.items():
        assert f"| `{name}` | {lacks} | `{instead}` |\n" in README
        with pytest.raises(ConfigError) as caught:
            as_backend(type(name, (), {})())
        assert f"{name} can't be a backend: AsyncKeyValue has no compare-and-set" in str(caught.value)
        assert f"{lacks}. Use Store({json.dumps(instead)})" in str(caught.value)
    with pytest.raises(
        ConfigError, match=r'Mine can\'t be a backend.*durable runs\. Use Store\("sqlite:///state.db"\)'
    ):
        as_backend(type("Mine", (), {})())


def test_readme() -> None:
    """What the README shows works; FastMCP is not needed for the tests."""
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    for snippet in snippets:
        if "fastmcp" not in snippet:
            exec(snippet, names)  # noqa: S102
    assert len(snippets) == 2
