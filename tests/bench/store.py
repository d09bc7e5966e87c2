"""Operations on a store in memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any

from pocket_plug import Key, Layer, Store
from pocket_plug.layers import Bounding, Metrics, metrics

from .harness import Bench, row

ENTRIES = 4096
TTL = 300.0


class HandWritten:
    """The minimum that stores a limited number of entries, each with an expiry, and is safe for threads."""

    def __init__(self, entries: int, ttl: float) -> None:
        self.entries, self.ttl = entries, ttl
        self.items: OrderedDict[str, tuple[Any, float]] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: str, default: Any = None) -> Any:
        with self.lock:
            item = self.items.get(key)
            if item is None:
                return default
            if item[1] <= time.time():
                del self.items[key]
                return default
            self.items.move_to_end(key)
            return item[0]

    def set(self, key: str, value: Any) -> None:
        with self.lock:
            self.items[key] = (value, time.time() + self.ttl)
            self.items.move_to_end(key)
            if len(self.items) > self.entries:
                self.items.popitem(last=False)


class Idle1(Layer):
    """Overrides all operations and changes nothing, as do the next three."""


class Idle2(Layer):
    """Changes nothing."""


class Idle3(Layer):
    """Changes nothing."""


class Idle4(Layer):
    """Changes nothing."""


def stack(*outer: Layer) -> Store:
    """The stack of these rows: four layers that do nothing, and `bounding`."""
    return Store(layers=[*outer, Idle1(), Idle2(), Idle3(), Idle4(), Bounding(max_entries=ENTRIES, ttl=TTL)])


@row
def get(bench: Bench) -> None:
    """get through a stack: LRU and TTL, four idle layers"""
    import aiocache
    from cachetools import TTLCache
    from cashews import Cache
    from langgraph.store.memory import InMemoryStore

    store, hand_written = stack(), HandWritten(ENTRIES, TTL)
    bench.run(store.set("key", 1))
    hand_written.set("key", 1)
    bench.case("pocket_plug", "await store.get('key')", store=store)
    bench.case("hand-written", "cache.get('key')", cache=hand_written)
    bench.target("pocket_plug", 1.4, "hand-written")

    ttl_cache: Any = TTLCache(ENTRIES, TTL)
    ttl_cache["key"] = 1
    bench.case("cachetools TTLCache + RLock", "with lock: cache.get('key')", cache=ttl_cache, lock=threading.RLock())
    langgraph = InMemoryStore()
    langgraph.put(("scope",), "key", {"value": 1})
    bench.case("LangGraph InMemoryStore", "store.get(scope, 'key')", store=langgraph, scope=("scope",))
    cashews = Cache()
    cashews.setup(f"mem://?size={ENTRIES}")
    bench.run(cashews.set("key", 1, expire=TTL))
    bench.case("cashews", "await cache.get('key')", cache=cashews)
    for timeout in (0, 5):
        aio = aiocache.SimpleMemoryCache(timeout=timeout)
        bench.run(aio.set("key", 1, ttl=TTL))
        bench.case(f"aiocache, timeout={timeout}", "await cache.get('key')", cache=aio)
    wrapped = py_key_value()
    bench.run(wrapped.put("key", {"value": 1}, ttl=TTL))
    bench.case("py-key-value + 5 wrappers", "await store.get('key')", store=wrapped)


def py_key_value() -> Any:
    """Its store in memory, with as many wrappers as our stack has layers."""
    from key_value.aio.stores.memory import MemoryStore
    from key_value.aio.wrappers.limit_size import LimitSizeWrapper
    from key_value.aio.wrappers.prefix_keys import PrefixKeysWrapper
    from key_value.aio.wrappers.retry import RetryWrapper
    from key_value.aio.wrappers.statistics import StatisticsWrapper
    from key_value.aio.wrappers.ttl_clamp import TTLClampWrapper

    store: Any = TTLClampWrapper(MemoryStore(max_entries_per_collection=ENTRIES), min_ttl=1, max_ttl=TTL)
    return StatisticsWrapper(RetryWrapper(PrefixKeysWrapper(LimitSizeWrapper(store, max_size=10_000), prefix="scope")))


@row
def set(bench: Bench) -> None:
    """set into a full bounded store: every one evicts"""
    from langgraph.store.memory import InMemoryStore

    keys = [f"key:{n}" for n in range(4 * ENTRIES)]
    store, hand_written = stack(), HandWritten(ENTRIES, TTL)
    for key in keys:
        store.sync.set(key, 1)
        hand_written.set(key, 1)
    which = f"keys[i % {len(keys)}]"
    bench.case("pocket_plug", f"await store.set({which}, i)", store=store, keys=keys)
    bench.case("hand-written", f"cache.set({which}, i)", cache=hand_written, keys=keys)
    bench.target("pocket_plug", 2.5, "hand-written")

    bench.case(
        "LangGraph InMemoryStore, without a bound",
        f"store.put(scope, {which}, {{'value': i}})",
        store=InMemoryStore(),
        scope=("scope",),
        keys=keys,
    )
    bench.case(
        "py-key-value + 5 wrappers",
        f"await store.put({which}, {{'value': i}}, ttl={TTL})",
        store=py_key_value(),
        keys=keys,
    )


def operations(bench: Bench, store: Store) -> None:
    async def transactions(times: int) -> None:
        for _ in range(times):
            async with store.transaction() as tx:
                first, second = await tx.get("a"), await tx.get("b")
                await tx.set("a", second)
                await tx.set("b", first)

    bench.run(store.set_many({"a": 1, "b": 2, "n": 0}))
    bench.case("get", "await store.get('n')", store=store)
    bench.case("update", "await store.update('n', add_one)", store=store, add_one=lambda n: n + 1)
    bench.case("transaction, 2 reads and 2 writes", transactions)
    bench.case("sync get", "store.get('n')", store=store.sync)
    bench.target("update", 6, "get")
    bench.target("transaction, 2 reads and 2 writes", 13, "get")
    bench.target("sync get", 2.2, "get")


@row
def operations_on_a_stack(bench: Bench) -> None:
    """update, transaction and sync get against get: LRU and TTL, four idle layers"""
    operations(bench, stack())


@row
def operations_on_memory(bench: Bench) -> None:
    """update, transaction and sync get against get: plain memory"""
    operations(bench, Store())


@row
def get_with_metrics(bench: Bench) -> None:
    """get with the metrics layer on, a meter provider set"""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    metrics.configure(meter_provider=MeterProvider([InMemoryMetricReader()]))
    for name, store, without in (
        ("get with metrics", stack(Metrics()), stack()),
        ("get with metrics, plain memory", Store(layers=[Metrics()]), Store()),
    ):
        bench.run(store.set("key", 1))
        bench.run(without.set("key", 1))
        bench.case(name, "await store.get('key')", store=store)
        bench.case(name.replace("with", "without"), "await store.get('key')", store=without)
        bench.target(name, 1.3, name.replace("with", "without"))


@row
def mapping(bench: Bench) -> None:
    """a value out of a mapping of a store, by a key that is escaped"""
    store = Store().sync
    store.set("key", 1)
    bench.case("pocket_plug mapping", "mapping.get('key')", mapping=store.mapping())
    bench.case("store.sync.get of a Key", "store.get(KEY('key'))", store=store, KEY=Key("{}"))
    bench.case("store.sync.get of a text", "store.get('key')", store=store)
    bench.target("pocket_plug mapping", 1.5, "store.sync.get of a Key")


@row
def filled_key(bench: Bench) -> None:
    """get at a Key that is filled for each call, in memory: its check is made once, also one of a generic type"""
    for name, value_type, value in (("an int", int, 1), ("a list", list[int], [1])):
        store, key = Store(), Key("user:{}", value_type)
        bench.run(store.set(key(7), value))
        bench.case(f"KEY(7) of {name}", "await store.get(KEY(7))", store=store, KEY=key)
    bench.case("text", "await store.get('user:7')", store=store)
    bench.target("KEY(7) of a list", 1.6, "KEY(7) of an int")


@row
def cached(bench: Bench) -> None:
    """a call of a cached function whose value is there, in memory; the key is made of an argument"""
    import aiocache
    from cachetools import TTLCache
    from cachetools import cached as cachetools_cached
    from cashews import Cache

    async def square(n: int) -> int:
        return n * n

    def sync_square(n: int) -> int:
        return n * n

    ours = Store().cached(Key("square:{n}", int), ttl=TTL)(square)
    bench.run(ours(3))
    bench.case("pocket_plug", "await square(3)", square=ours)
    cashews = Cache()
    cashews.setup(f"mem://?size={ENTRIES}")
    theirs: Any = cashews(ttl=TTL, key="square:{n}", lock=True)(square)
    bench.run(theirs(3))
    bench.case("cashews, lock=True", "await square(3)", square=theirs)
    bench.target("pocket_plug", 1.0, "cashews, lock=True")
    aio: Any = aiocache.cached(ttl=TTL, key_builder=lambda function, n: f"square:{n}")(square)
    bench.run(aio(3))
    bench.case("aiocache", "await square(3)", square=aio)
    ours_sync = Store().sync.cached(Key("square:{n}", int), ttl=TTL)(sync_square)
    ours_sync(3)
    bench.case("pocket_plug, sync", "square(3)", square=ours_sync)
    tools: Any = cachetools_cached(TTLCache(ENTRIES, TTL), lock=threading.RLock())(sync_square)
    tools(3)
    bench.case("cachetools, sync", "square(3)", square=tools)
