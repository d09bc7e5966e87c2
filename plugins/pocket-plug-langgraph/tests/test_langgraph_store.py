"""The long-term store behaves as LangGraph's own stores do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, Op, PutOp, SearchOp, TTLConfig
from langgraph.store.memory import InMemoryStore
from pocket_plug_langgraph import PocketStore

from pocket_plug import ConfigError, PocketError, SyncStore, UnregisteredTypeError
from pocket_plug.testing.clock import FakeClock

ANN = ("user", "ann")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[SyncStore]:
    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process", clock=clock) as opened:
        yield opened


@pytest.fixture
def memories(store: SyncStore) -> PocketStore:
    return PocketStore(store)


def keys(found: Any) -> list[str]:
    return [each.key for each in found]


def test_an_item_comes_back_as_it_was_put(memories: PocketStore) -> None:
    """With its namespace, and the times when it was created and updated; a later put keeps the time of creation."""
    memories.put(ANN, "a", {"likes": ["blue", b"\x00"]})
    first = memories.get(ANN, "a")
    memories.put(ANN, "a", {"likes": []})
    second = memories.get(ANN, "a")
    assert first is not None
    assert second is not None
    assert (first.value, first.key, first.namespace) == ({"likes": ["blue", b"\x00"]}, "a", ANN)
    assert second.value == {"likes": []}
    assert first.created_at == second.created_at <= first.updated_at < second.updated_at
    memories.delete(ANN, "a")
    assert memories.get(ANN, "a") is None


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (PutOp(ANN, "a", cast("Any", [1])), "'a': an item's value is a dict, not a list"),
        (PutOp(ANN, "a", {}, ttl=0), "'a': ttl is a number of minutes above 0, not 0"),
        (SearchOp(ANN, limit=-1), "limit is a number from 0 up, not -1"),
        (SearchOp(ANN, offset=-1), "offset is a number from 0 up, not -1"),
        (ListNamespacesOp(limit=-1), "limit is a number from 0 up, not -1"),
    ],
)
def test_invalid_operations_are_refused(memories: PocketStore, operation: Op, said: str) -> None:
    """The error names the mistake, and nothing of the batch is written."""
    with pytest.raises(PocketError, match=said):
        memories.batch([PutOp(ANN, "b", {}), operation])
    assert memories.get(ANN, "b") is None


def test_async_the_same(tmp_path: Path) -> None:
    """With a URL: the store is opened and closed automatically."""

    async def remember() -> Any:
        async with PocketStore(f"sqlite:///{tmp_path}/state.db?durability=process") as memories:
            await memories.aput(ANN, "a", {"n": 1})
            found = await memories.asearch(("user",), filter={"n": 1})
            return found[0].value, await memories.alist_namespaces()

    assert asyncio.run(remember()) == ({"n": 1}, [ANN])


def test_a_batch_reads_before_it_writes(memories: PocketStore) -> None:
    """As in LangGraph's own stores; of two puts of one key the last counts."""
    memories.put(ANN, "a", {"n": 1})
    got, _, searched, _, namespaces = memories.batch(
        [
            GetOp(ANN, "a"),
            PutOp(ANN, "a", {"n": 2}),
            SearchOp(("user",)),
            PutOp(ANN, "a", {"n": 3}),
            ListNamespacesOp(),
        ]
    )
    assert got.value == {"n": 1}  # type: ignore[union-attr]
    assert [each.value for each in searched] == [{"n": 1}]  # type: ignore[union-attr]
    assert namespaces == [ANN]
    assert memories.get(ANN, "a").value == {"n": 3}  # type: ignore[union-attr]


def test_all_puts_of_a_batch_are_stored_or_none(memories: PocketStore) -> None:
    """If one value can't be stored, nothing of the batch is stored, and the error names the type."""
    with pytest.raises(UnregisteredTypeError, match="slice"):
        memories.batch([PutOp(ANN, "a", {"n": 1}), PutOp(ANN, "b", {"n": slice(1)})])
    assert memories.search(ANN) == []


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "abc"),
    ({"n": 2}, "b"),
    ({"n": {"$gt": 1}}, "bc"),
    ({"n": {"$gte": 2, "$lt": 3}}, "b"),
    ({"n": {"$lte": 1}}, "a"),
    ({"n": {"$ne": 2}}, "ac"),
    ({"n": {"$eq": 3}}, "c"),
    ({"of": {"colour": "red"}}, "ab"),
    ({"of": {"colour": "red"}, "n": 1}, "a"),
    ({"none": None}, "abc"),
    ({"of": "red"}, ""),
    ({"tags": ("x", "b")}, "b"),
    ({"tags": ["x"]}, ""),
]


@pytest.mark.parametrize(("filter", "expected"), FILTERS)
def test_a_search_filters_as_langgraphs_own_does(memories: PocketStore, filter: Any, expected: str) -> None:
    """Equal values, fields of values, comparisons."""
    for each in (memories, InMemoryStore()):
        for number, key in enumerate("abc", 1):
            each.put(ANN, key, {"n": number, "of": {"colour": "red" if number < 3 else "blue"}, "tags": ["x", key]})
        assert keys(each.search(("user",), filter=filter)) == list(expected)


@pytest.mark.parametrize("other", ["9", None, [9], {"n": 9}])
def test_one_item_of_another_type_breaks_no_search(memories: PocketStore, other: Any) -> None:
    """It can't be compared with a number, so it isn't found; the others are. As in LangGraph's stores in SQL."""
    memories.put(ANN, "a", {"n": other})
    memories.put(ANN, "b", {"n": 2})
    assert keys(memories.search(ANN, filter={"n": {"$gt": 1}})) == ["b"]
    assert keys(memories.search(ANN, filter={"n": {"$ne": 2}})) == ["a"]


def test_a_search_goes_page_by_page_in_the_order_of_names(memories: PocketStore) -> None:
    """In a namespace and below it; a namespace whose name only starts with the same text isn't included."""
    for namespace in (("a",), ("a", "b"), ("ab",), ("b",)):
        for key in "21":
            memories.put(namespace, key, {"key": key})
    assert [(each.namespace, each.key) for each in memories.search(("a",))] == [
        *[(("a",), "1"), (("a",), "2"), (("a", "b"), "1"), (("a", "b"), "2")]
    ]
    assert keys(memories.search(("a",), offset=1, limit=2)) == ["2", "1"]
    assert keys(memories.search(("a",), filter={"key": "2"}, offset=1)) == ["2"]
    assert len(memories.search((), limit=100)) == 8


@pytest.mark.parametrize("key", ["a:b", "", ":", "pocket:", "50%", "::x", "\U0010ffff"])
def test_a_key_may_be_anything(memories: PocketStore, key: str) -> None:
    """And so may a label, as far as LangGraph allows it."""
    namespace = ("pocket", f"x{key}" if key else "x:", "a:")
    memories.put(namespace, key, {"n": 1})
    memories.put((*namespace, "below"), key, {"n": 2})
    found = memories.get(namespace, key)
    assert found is not None
    assert found.value == {"n": 1}
    assert [(each.namespace, each.key) for each in memories.search(namespace)] == [
        *[(namespace, key), ((*namespace, "below"), key)]
    ]
    assert memories.list_namespaces() == [namespace, (*namespace, "below")]


def test_namespaces_are_listed_as_langgraphs_own_does(memories: PocketStore) -> None:
    """By prefix and suffix, with * for any label, cut at a depth, page by page."""
    both = (memories, InMemoryStore())
    for each in both:
        for namespace in (("a", "b", "c"), ("a", "d", "c"), ("a", "d"), ("e", "b"), ("e",), ("1",), ("a", "1")):
            for key in ("x", "y"):
                each.put(namespace, key, {})
    ours, theirs = (
        [
            each.list_namespaces(),
            each.list_namespaces(prefix=("a",)),
            each.list_namespaces(prefix=("*", "b")),
            each.list_namespaces(suffix=("c",)),
            each.list_namespaces(suffix=("d", "*")),
            each.list_namespaces(prefix=("a",), suffix=("c",)),
            each.list_namespaces(max_depth=1),
            each.list_namespaces(limit=2, offset=1),
            each.batch([ListNamespacesOp((MatchCondition("prefix", ()), MatchCondition("suffix", ())))])[0],
        ]
        for each in both
    )
    assert ours == theirs
    assert len(ours[0]) == 7


def test_items_expire_after_their_ttl(memories: PocketStore, clock: FakeClock) -> None:
    """Reading an item restarts its TTL, unless the caller says otherwise."""
    memories.put(ANN, "a", {}, ttl=1)
    memories.put(ANN, "b", {})
    clock.advance(50)
    assert keys(memories.search(ANN)) == ["a", "b"]
    clock.advance(50)
    assert memories.get(ANN, "a", refresh_ttl=False) is not None
    clock.advance(20)
    assert memories.get(ANN, "a") is None
    assert keys(memories.search(ANN)) == ["b"]


def test_a_store_has_a_default_ttl(store: SyncStore, clock: FakeClock) -> None:
    """Set by LangGraph's own TTLConfig."""
    memories = PocketStore(store, ttl=TTLConfig(default_ttl=1, refresh_on_read=False))
    memories.put(ANN, "a", {})
    memories.put(ANN, "b", {}, ttl=None)
    clock.advance(50)
    assert keys(memories.search(ANN)) == ["a", "b"]
    clock.advance(20)
    assert keys(memories.search(ANN)) == ["b"]


def test_unsupported_searches_are_refused(memories: PocketStore) -> None:
    """Semantic search and unknown comparisons raise an error, rather than give a wrong result."""
    with pytest.raises(NotImplementedError, match="no semantic search"):
        memories.search(ANN, query="what does she like?")
    with pytest.raises(NotImplementedError, match="no semantic search"):
        memories.put(ANN, "a", {"text": ""}, index=["text"])
    memories.put(ANN, "a", {"n": 1}, index=False)
    with pytest.raises(ConfigError, match=r"'\$like'.*\$eq"):
        memories.search(ANN, filter={"n": {"$like": 1}})


def test_a_graph_remembers_across_threads(store: SyncStore) -> None:
    """Nodes get the store from their runtime, as with any other store of LangGraph."""

    def count(state: Any, runtime: Any) -> Any:
        before = runtime.store.get(ANN, "visits")
        runtime.store.put(ANN, "visits", {"n": before.value["n"] + 1 if before else 1})
        return state

    from langgraph.runtime import Runtime

    count.__annotations__["runtime"] = Runtime
    builder: Any = StateGraph(dict)
    builder.add_node("count", count)
    builder.add_edge(START, "count")
    builder.add_edge("count", END)
    graph = builder.compile(store=PocketStore(store))
    for _ in range(3):
        graph.invoke({})
    assert PocketStore(store).get(ANN, "visits").value == {"n": 3}  # type: ignore[union-attr]
