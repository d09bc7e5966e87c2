"""The memory of an entry in addition to its key and value; and a fan-out takes no more for more items."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from pocket_plug import Graph, Store, each, node
from pocket_plug.layers import Bounding

from .harness import Bench, row
from .store import TTL, HandWritten

ENTRIES = 100_000


def bytes_per_entry(make: Callable[[], Callable[[list[str]], object]]) -> float:
    """The memory that it takes when it is filled; keys and value exist before."""
    keys = [f"key:{n}" for n in range(ENTRIES)]
    gc.collect()
    tracemalloc.start()
    try:
        fill = make()
        before = tracemalloc.get_traced_memory()[0]
        fill(keys)
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / ENTRIES
    finally:
        tracemalloc.stop()


@row
def entry(bench: Bench) -> None:
    """an entry in memory, besides its key and value"""
    from cachetools import TTLCache
    from key_value.aio.stores.memory import MemoryStore
    from langgraph.store.memory import InMemoryStore

    def one_by_one(put: Callable[[str, Any], object]) -> Callable[[list[str]], object]:
        def fill(keys: list[str]) -> None:
            for key in keys:
                put(key, value)

        return fill

    def one_by_one_async(put: Callable[[str, Any], Awaitable[object]]) -> Callable[[list[str]], object]:
        async def fill(keys: list[str]) -> None:
            for key in keys:
                await put(key, value)

        return lambda keys: bench.run(fill(keys))

    def langgraph() -> Callable[[list[str]], object]:
        store = InMemoryStore()
        return one_by_one(lambda key, value: store.put(("scope",), key, value))

    value = {"value": 1}
    bench.unit = "B"
    bounding = Bounding(max_entries=ENTRIES, ttl=TTL)
    bench.value("pocket_plug, plain", bytes_per_entry(lambda: one_by_one(Store().sync.set)))
    bench.value("pocket_plug, LRU and TTL", bytes_per_entry(lambda: one_by_one(Store(layers=[bounding]).sync.set)))
    bench.target("pocket_plug, plain", 130)
    bench.target("pocket_plug, LRU and TTL", 210)
    bench.value("dict", bytes_per_entry(lambda: one_by_one(dict[str, Any]().__setitem__)))
    bench.value("hand-written, LRU and TTL", bytes_per_entry(lambda: one_by_one(HandWritten(ENTRIES, TTL).set)))
    bench.value(
        "cachetools TTLCache", bytes_per_entry(lambda: one_by_one(TTLCache[str, Any](ENTRIES, TTL).__setitem__))
    )
    bench.value("LangGraph InMemoryStore", bytes_per_entry(langgraph))
    bench.value("py-key-value MemoryStore", bytes_per_entry(lambda: one_by_one_async(MemoryStore().put)))


@node
async def nothing(n: int) -> None:
    pass


@row
def fan_out(bench: Bench) -> None:
    """a fan-out, 100 wide: what its peak grows by with each item, besides the list of results"""

    def peak(items: int) -> float:
        graph = Graph(each(nothing, concurrency=100))
        gc.collect()
        tracemalloc.start()
        try:
            results = bench.run(graph.run(range(items)))
            return tracemalloc.get_traced_memory()[1] - sys.getsizeof(results)
        finally:
            tracemalloc.stop()

    many = bench.effort.many
    peak(1000)  # what a first run loads stays
    fewer, more = peak(many // 10), peak(many)
    bench.unit = "B"
    bench.value(f"each item beyond {many // 10:,}, to {many:,}", (more - fewer) / (many - many // 10))
    bench.target(f"each item beyond {many // 10:,}, to {many:,}", 1)
