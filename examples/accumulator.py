"""Collect values during a run and sum them up at the end: several nodes, or many items at a time, append to one list.

`update` is atomic, and all writes of `post` are committed together or not at all. So no value is lost, however many nodes append
concurrently.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pocket_plug import Graph, Key, Node, Store, StoreReader, StoreWriter, each, node


@dataclass(frozen=True)
class Reading:
    station: str
    celsius: float


READINGS = Key("accumulated:readings", list[Reading])


@node.post
async def collect(store: StoreWriter, reading: Reading) -> Reading:
    await store.update(READINGS, lambda readings: [*readings, reading], default=[])
    return reading


class Summarise(Node[object, str]):
    """Accepts any input: everything that it needs is in the store."""

    async def prep(self, store: StoreReader, _: object) -> list[Reading]:
        return await store.get(READINGS, default=[])

    async def exec(self, readings: list[Reading]) -> str:
        warmest = max(readings, key=lambda reading: reading.celsius)
        mean = sum(reading.celsius for reading in readings) / len(readings)
        return f"{len(readings)} readings, {mean:.1f} °C on average, warmest at {warmest.station}"


async def main() -> None:
    store = Store()
    summarise = Summarise()

    one_by_one = Graph(collect >> summarise, store=store.scope("one"), name="one_by_one")
    for station, celsius in [("harbour", 11.5), ("airport", 9.0), ("forest", 8.0)]:
        print(await one_by_one.run(Reading(station, celsius)))

    at_once = Graph(each(collect, concurrency=25) >> summarise, store=store.scope("many"), name="at_once")
    print(await at_once.run(Reading(f"station {n}", n / 10) for n in range(201)))


if __name__ == "__main__":
    asyncio.run(main())
