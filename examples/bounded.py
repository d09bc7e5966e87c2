"""Bounded stores: a cache that evicts the least recently used entries, sessions that expire, a rate limit.

The clock is passed in, so the example doesn't wait for half an hour.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pocket_plug import Key, Store
from pocket_plug.layers import Bounding


@dataclass
class Clock:
    """Epoch seconds that advance only when the example says so."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Session:
    user: str
    log: list[str] = field(default_factory=list[str])

    def close(self) -> None:
        print(f"   {self.user}'s session ends after {' and '.join(self.log)}")


PAGE = Key("page:{}", str)
SESSION = Key("session:{}", Session)
HITS = Key("hits:{}:{}", int)


async def cache() -> None:
    """If the cache is full, the least recently used page is evicted."""
    store = Store(
        layers=[Bounding(max_entries=3, on_evict=lambda key, _, reason: print("   evicted", key, "for", reason))]
    )
    for path in ["home", "news", "about"]:
        await store.set(PAGE(path), f"<h1>{path}</h1>")
    await store.get(PAGE("home"))
    await store.set(PAGE("jobs"), "<h1>jobs</h1>")
    print("   cached:", [name async for name in store.keys()])


async def sessions(clock: Clock) -> None:
    """Expired sessions are removed, so their memory is free again."""

    def end(key: str, session: Session, reason: str) -> None:
        session.close()

    store = Store(layers=[Bounding(max_entries=5_000, ttl="30m", on_evict=end)], clock=clock)
    await store.set(SESSION("a1"), Session("Alice", ["a search"]))
    clock.now += 20 * 60
    await store.set(SESSION("b2"), Session("Bob", ["a purchase", "a complaint"]))
    clock.now += 11 * 60
    print("   Alice is", "known" if await store.has(SESSION("a1")) else "a stranger again")
    print("   Bob is", "known" if await store.has(SESSION("b2")) else "a stranger again")
    await store.set(SESSION("c3"), Session("Carol"))  # writes remove expired entries


async def rate_limit(clock: Clock) -> None:
    """At most a number of requests per minute for each client. The counters of past minutes expire."""
    store = Store(layers=[Bounding(max_entries=100_000, ttl="2m")], clock=clock)

    async def allowed(client: str) -> bool:
        minute = int(clock() // 60)
        return await store.update(HITS(client, minute), lambda hits: hits + 1, default=0) <= 3

    print("   this minute:", [await allowed("10.0.0.1") for _ in range(5)])
    clock.now += 60
    print("   the next one:", [await allowed("10.0.0.1") for _ in range(2)])


async def main() -> None:
    print("cache")
    await cache()
    print("sessions")
    await sessions(Clock())
    print("rate limit")
    await rate_limit(Clock())


if __name__ == "__main__":
    asyncio.run(main())
