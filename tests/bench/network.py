"""A store on a server, beside that server's bare driver: one caller, and fifty at once. Wall time: most of it is waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from pocket_plug import Store

from .harness import Bench, row

KEYS = [f"key:{n}" for n in range(1000)]
VALUES = [{"n": n, "text": f"{n} " * 10} for n in range(1009)]
CALLERS = 50
"""How many call at once."""

Call = Callable[[int], Awaitable[object]]


def at_once(call: Call) -> Callable[[int], Awaitable[None]]:
    """So many calls by fifty callers, each of which waits for its own."""

    async def caller(first: int, times: int) -> None:
        for number in range(first, first + times):
            await call(number)

    async def body(times: int) -> None:
        await asyncio.gather(*(caller(97 * number, times) for number in range(CALLERS)))

    return body


def compared(bench: Bench, limit: float, cases: dict[str, Call]) -> None:
    """Measure calls, by one caller and by fifty. The first case is ours, the second one's time is the measure."""
    ours, bare, *_ = cases
    for name, call in cases.items():
        bench.case(name, "await call(i)", call=call, wall=True)
    for name, call in cases.items():
        bench.case(f"{name}, {CALLERS} at once", at_once(call), per=CALLERS, wall=True)
    bench.target(ours, limit, bare)
    bench.target(f"{ours}, {CALLERS} at once", limit, f"{bare}, {CALLERS} at once")


# ---------------------------------------------------------------- Redis
SET_AND_COUNT = "local version = redis.call('INCR', KEYS[2]) redis.call('SET', KEYS[1], ARGV[1]) return version"
"""The least script that gives each write a version."""


def redis(bench: Bench) -> tuple[Store, Any]:
    """A store and redis-py's own client, on a Valkey that writes nothing to a disk, each with all keys in it."""
    from redis.asyncio import BlockingConnectionPool, Redis

    from pocket_plug.testing.servers import valkey

    server = bench.enter(valkey(options={"appendonly": "no"}))
    store: Store = bench.enter(Store(f"{server.url}?durability=none"))
    pool = BlockingConnectionPool.from_url(server.url, max_connections=CALLERS, timeout=None)
    client: Any = bench.enter(Redis.from_pool(pool))
    bench.run(store.set_many(dict(zip(KEYS, VALUES, strict=False))))
    for key, value in zip(KEYS, VALUES, strict=False):
        bench.run(client.set(key, msgspec.msgpack.encode(value)))
    return store, client


@row
def redis_get(bench: Bench) -> None:
    """get from Redis"""
    store, client = redis(bench)

    async def bare(number: int) -> object:
        return msgspec.msgpack.decode(await client.get(KEYS[number % len(KEYS)]))

    compared(bench, 1.15, {"pocket_plug": lambda n: store.get(KEYS[n % len(KEYS)]), "redis-py + decode": bare})


@row
def redis_set(bench: Bench) -> None:
    """set in Redis: nothing reaches a disk"""
    store, client = redis(bench)
    script = client.register_script(SET_AND_COUNT)

    async def counted(number: int) -> object:
        value = msgspec.msgpack.encode(VALUES[number % len(VALUES)])
        return await script(keys=[KEYS[number % len(KEYS)], "version"], args=[value])

    async def bare(number: int) -> object:
        return await client.set(KEYS[number % len(KEYS)], msgspec.msgpack.encode(VALUES[number % len(VALUES)]))

    async def ours(number: int) -> object:
        return await store.set(KEYS[number % len(KEYS)], VALUES[number % len(VALUES)])

    compared(bench, 1.5, {"pocket_plug": ours, "a script of SET and INCR": counted, "redis-py": bare})
