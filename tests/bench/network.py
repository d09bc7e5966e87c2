"""A store on a server, compared with the server's bare driver: one caller, and fifty at once. Wall time, since most of it is
waiting.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from pocket_plug import Graph, Store

from . import peers
from .durable import Writes
from .harness import Bench, row

KEYS = [f"key:{n}" for n in range(1000)]
VALUES = [{"n": n, "text": f"{n} " * 10} for n in range(1009)]
CALLERS = 50
"""How many call at once."""

Call = Callable[[int], Awaitable[object]]


def at_once(call: Call) -> Callable[[int], Awaitable[None]]:
    """Calls by fifty callers, each of which waits for its own."""

    async def caller(first: int, times: int) -> None:
        for number in range(first, first + times):
            await call(number)

    async def body(times: int) -> None:
        await asyncio.gather(*(caller(97 * number, times) for number in range(CALLERS)))

    return body


def compared(bench: Bench, limit: float, cases: dict[str, Call]) -> None:
    """Measure calls, by one caller and by fifty. The first case is ours; the second is the reference."""
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
    """A store and redis-py's own client, on a Valkey that writes nothing to disk, with the same keys."""
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


# ---------------------------------------------------------------- PostgreSQL
NODES = 20
"""In a chain, of which each run is a new one."""


def postgresql(bench: Bench, durability: str, **options: str) -> tuple[Store, Any]:
    """A store and psycopg's own pool, on one server, with the same number of connections and the same keys."""
    from psycopg_pool import AsyncConnectionPool

    from pocket_plug.testing.servers import postgres

    server = bench.enter(postgres(options=options))
    store: Store = bench.enter(Store(f"{server.url}?durability={durability}&connections={CONNECTIONS}"))

    async def prepare(connection: Any) -> None:
        await connection.execute(f"SET synchronous_commit = {'off' if durability == 'none' else 'on'}")

    async def make_pool() -> Any:
        size = {"min_size": CONNECTIONS, "max_size": CONNECTIONS}
        return AsyncConnectionPool(server.url, kwargs={"autocommit": True}, configure=prepare, open=False, **size)

    pool: Any = bench.enter(bench.run(make_pool()))
    bench.run(store.set_many(dict(zip(KEYS, VALUES, strict=False))))

    async def fill() -> None:
        async with pool.connection() as connection:
            await connection.execute(BARE_TABLE)
            for key, value in zip(KEYS, VALUES, strict=False):
                await connection.execute(UPSERT, (key.encode(), msgspec.msgpack.encode(value)))

    bench.run(fill())
    return store, pool


CONNECTIONS = 8
BARE_TABLE = (
    "CREATE TABLE bare (key bytea PRIMARY KEY, value bytea NOT NULL, version bigint NOT NULL, expires_at float8)"
)
UPSERT = """INSERT INTO bare VALUES (%s, %s, 1, NULL) ON CONFLICT (key) DO UPDATE
            SET value = excluded.value, version = bare.version + 1"""


@row
def postgres_get(bench: Bench) -> None:
    """get from PostgreSQL"""
    store, pool = postgresql(bench, "none")

    async def bare(number: int) -> object:
        async with pool.connection() as connection:
            key = KEYS[number % len(KEYS)].encode()
            found = await connection.execute("SELECT value, version FROM bare WHERE key = %s", (key,), binary=True)
            return msgspec.msgpack.decode((await found.fetchone())[0])

    compared(bench, 1.2, {"pocket_plug": lambda n: store.get(KEYS[n % len(KEYS)]), "psycopg_pool + decode": bare})


def postgres_sets(bench: Bench, durability: str) -> None:
    """The reference is an upsert, without increasing versions, tokens and expectations."""
    store, pool = postgresql(bench, durability)

    async def bare(number: int) -> object:
        async with pool.connection() as connection:
            value = msgspec.msgpack.encode(VALUES[number % len(VALUES)])
            return await connection.execute(UPSERT, (KEYS[number % len(KEYS)].encode(), value))

    async def ours(number: int) -> object:
        return await store.set(KEYS[number % len(KEYS)], VALUES[number % len(VALUES)])

    compared(bench, 1.5, {"pocket_plug": ours, "an upsert by psycopg_pool": bare})


@row
def postgres_set(bench: Bench) -> None:
    """set in PostgreSQL that survives this process: synchronous_commit=off"""
    postgres_sets(bench, "none")


@row
def postgres_set_power(bench: Bench) -> None:
    """set in PostgreSQL that survives a power failure: synchronous_commit=on"""
    postgres_sets(bench, "power")


@row
def postgres_node(bench: Bench) -> None:
    """a node of a durable run over PostgreSQL, synchronous_commit=off; wall time"""
    from pocket_plug.testing.servers import postgres

    server = bench.enter(postgres(options={"synchronous_commit": "off"}))
    peer = bench.enter(peers.langgraph_postgres_async(NODES, server.url))
    joined: Any = Writes().with_options(name="node_0")
    for number in range(1, NODES):
        joined = joined >> Writes().with_options(name=f"node_{number}")
    graph = Graph(joined, store=bench.enter(Store(f"{server.url}?durability=none")), name="chain")
    ids = map(str, itertools.count())

    async def ours(times: int) -> None:
        for _ in range(times):
            assert await graph.run(0, run_id=next(ids)) == NODES

    bench.case("pocket_plug, run", ours, per=NODES, wall=True)
    bench.case("LangGraph, AsyncPostgresSaver", peer, per=NODES, wall=True)
    bench.target("pocket_plug, run", 0.5, "LangGraph, AsyncPostgresSaver")
