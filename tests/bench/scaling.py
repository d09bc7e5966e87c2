"""If there is ten times as much work, a unit of it costs the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from pocket_plug import Entry, Graph, Store, StoreWriter, SyncStore, each, node

from .harness import Bench, Body, row
from .nodes import Phases, chain, item

LINEAR = 1.3


Pair = tuple[str, str]


def grow(bench: Bench, name: str, unit: str, many: int, body: Callable[[int], Body], *, per: int | None = None) -> Pair:
    """The same case with a tenth and with all, per unit; or in total, if the cost should not depend on the number."""
    fewer, more = f"{name}, {many // 10:,} {unit}", f"{name}, {many:,} {unit}"
    bench.case(fewer, body(many // 10), per=per or many // 10)
    bench.case(more, body(many), per=per or many)
    return fewer, more


def linear(bench: Bench, pair: Pair, *, beyond: Pair | None = None) -> None:
    """It is linear if the unit costs the same. Data that exceeds the processor's caches takes longer for that reason alone: see
    `beyond`.
    """
    bench.target(pair[1], LINEAR, pair[0], beyond=beyond)


@row
def nodes(bench: Bench) -> None:
    """a node of a chain: joined by >>, made a graph of and validated; and run"""

    def make(length: int) -> Body:
        def body(times: int) -> None:
            for _ in range(times):
                chain(Phases(), length).validate()

        return body

    def run(length: int) -> Body:
        async def body(times: int) -> None:
            for _ in range(times):
                await graph.run(1)

        graph = chain(Phases(), length)
        bench.run(graph.run(1))  # the first run validates the graph
        return body

    linear(bench, grow(bench, "made", "nodes", 10_000, make))
    linear(bench, grow(bench, "run", "nodes", 10_000, run))


def names(number: int) -> list[str]:
    return [f"user:{n // 10}:{n % 10}" for n in range(number)]


def filled(number: int) -> tuple[Store, list[str]]:
    store, keys = Store(), names(number)
    store.sync.set_many(dict.fromkeys(keys, 1))
    return store, keys


@row
def entries(bench: Bench) -> None:
    """an entry of a store in memory: set, got and scanned; beside the same object in a dict"""

    def set(number: int) -> Body:
        async def body(times: int) -> None:
            for _ in range(times):
                store = Store()
                for key in keys:
                    await store.set(key, 1)

        keys = names(number)
        return body

    def get(number: int) -> Body:
        async def body(times: int) -> None:
            for _ in range(times):
                for key in keys:
                    await store.get(key)

        store, keys = filled(number)
        return body

    def scan(number: int) -> Body:
        async def body(times: int) -> None:
            for _ in range(times):
                async for _key in store.keys():
                    pass

        store, _ = filled(number)
        return body

    def set_in_dict(number: int) -> Body:
        def body(times: int) -> None:
            for _ in range(times):
                items: dict[str, Entry] = {}
                for version, key in enumerate(keys):
                    items[key] = Entry(1, version, None)

        keys = names(number)
        return body

    def get_from_dict(number: int, keys: Callable[[list[str]], list[str]] = list) -> Body:
        def body(times: int) -> None:
            for _ in range(times):
                for key in wanted:
                    _entry = items[key]

        items = {key: Entry(1, version, None) for version, key in enumerate(names(number))}
        wanted = keys(list(items))
        return body

    many = bench.effort.many
    dict_set = grow(bench, "a dict's set", "entries", many, set_in_dict)
    dict_get = grow(bench, "a dict's get", "entries", many, get_from_dict)
    dict_scan = grow(bench, "a dict's get in order", "entries", many, lambda number: get_from_dict(number, sorted))
    linear(bench, grow(bench, "set", "entries", many, set), beyond=dict_set)
    linear(bench, grow(bench, "get", "entries", many, get), beyond=dict_get)
    linear(bench, grow(bench, "scan", "entries", many, scan), beyond=dict_scan)


@row
def scopes(bench: Bench) -> None:
    """the scan of a scope of ten in a store in memory"""

    def scan(number: int) -> Body:
        async def body(times: int) -> None:
            for _ in range(times):
                async for _key in scope.keys():
                    pass

        store, _ = filled(number)
        scope = store.scope("user:77")
        return body

    linear(bench, grow(bench, "scan", "entries", bench.effort.many, scan, per=10))


def pages(bench: Bench, make: Callable[[int], SyncStore]) -> None:
    """Ten names or entries out of a thousand, and out of many: wherever they are, and where a new name has come before."""
    few, many = 1000, bench.effort.many
    for number in (few, many):
        store, middle = make(number), names(number)[number // 2]
        of = f" of {number:,}"
        bench.case(f"oldest 10 names{of}", "list(store.keys(limit=10))", store=store)
        bench.case(f"newest 10 names{of}", "list(store.keys(reverse=True, limit=10))", store=store)
        bench.case(
            f"10 names in the middle{of}", "list(store.keys(after=middle, limit=10))", store=store, middle=middle
        )
        bench.case(f"newest 10 items{of}", "list(store.items(reverse=True, limit=10))", store=store)
        bench.case(f"a set{of}", f"store.set(f'user:{number // 20}:{{i}}', 1)", store=store)
        bench.case(
            f"a set and 10 names{of}",
            f"store.set(f'user:{number // 20}:x{{i}}', 1); list(store.keys(after=middle, limit=10))",
            store=store,
            middle=middle,
        )
    for place in ("newest 10 names", "10 names in the middle"):
        bench.target(f"{place} of {many:,}", LINEAR, f"oldest 10 names of {many:,}")
        bench.target(f"{place} of {many:,}", 2, f"{place} of {few:,}")
    bench.target(f"newest 10 items of {many:,}", 2, f"newest 10 items of {few:,}")


@row
def names_in_memory(bench: Bench) -> None:
    """pages of names in memory, of few and of many"""
    pages(bench, lambda number: filled(number)[0].sync)


@row
def names_in_sqlite(bench: Bench) -> None:
    """pages of names in SQLite, of few and of many"""
    folder = Path(bench.enter(TemporaryDirectory()))

    def make(number: int) -> SyncStore:
        store: SyncStore = bench.enter(SyncStore(f"sqlite:///{folder}/{number}.db?durability=process"))
        keys = names(number)
        for start in range(0, number, 10_000):
            store.set_many(dict.fromkeys(keys[start : start + 10_000], 1))
        return store

    pages(bench, make)


@row
def items(bench: Bench) -> None:
    """an item of a fan-out, 100 wide"""

    def run(number: int) -> Body:
        async def body(times: int) -> None:
            for _ in range(times):
                await graph.run(range(number))

        graph = Graph(each(item, concurrency=100), store=Store())
        return body

    linear(bench, grow(bench, "fan-out", "items", bench.effort.many, run))


@node.post
async def count(store: StoreWriter, n: int) -> int:
    await asyncio.sleep(0)
    await store.update(f"count:{n}", lambda count: count + 1, default=0)
    return n


@row
def concurrent(bench: Bench) -> None:
    """concurrent work on one store: runs of three nodes that each suspend and write; and updates of one key"""

    def runs(number: int) -> Body:
        async def body(times: int) -> None:
            for _ in range(times):
                await asyncio.gather(*(graph.run(n) for n in range(number)))

        first, second, third = (count.with_options(name=name) for name in ("first", "second", "third"))
        graph = Graph(first >> second >> third, store=Store())
        return body

    def updates(number: int) -> Body:
        async def body(times: int) -> None:
            for _ in range(times):
                await asyncio.gather(
                    *(store.update("count", lambda count: count + 1, default=0) for _ in range(number))
                )

        store = Store()
        return body

    linear(bench, grow(bench, "runs", "runs", 1000, runs))
    linear(bench, grow(bench, "updates", "updates", 1000, updates))
