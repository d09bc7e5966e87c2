"""A server that is killed with SIGKILL while several processes write: is every acknowledged write stored, and stored once?

    python plugins/pocket-plug-redis/tests/killed_server.py DURABILITY KILLS SEED

Each process increments a key of its own, and appends to a list that all share, by updates. After each write it notes the
acknowledgement in memory shared with the parent. A test runs a few of these kills.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import sys
import time
from typing import Any

from pocket_plug import Store, StoreError, SyncStore
from pocket_plug.testing.servers import valkey

WRITERS = 4
FSYNC = {"power": "always", "process": "no"}


def write(url: str, number: int, acknowledged: Any, unknown: Any, over: Any) -> None:
    """One process: note each write once it is acknowledged."""

    async def main() -> None:
        async with Store(url) as store:
            item = 0
            while not over.is_set():
                item += 1
                mine = (number, item)
                try:
                    await store.set(f"own:{number}", item)
                    await store.update("shared", lambda items, mine=mine: [*items, mine], default=[])
                    acknowledged[number] = item
                except StoreError:
                    unknown[number] += 1

    asyncio.run(main())


def campaign(durability: str, kills: int, seed: int) -> list[str]:
    """A sentence for each guarantee that was broken."""
    chance, context = random.Random(seed), multiprocessing.get_context("spawn")
    acknowledged, unknown = context.Array("l", WRITERS), context.Array("l", WRITERS)
    over, faults = context.Event(), list[str]()
    with valkey(options={"appendfsync": FSYNC[durability]}) as server:
        url = f"{server.url}?durability={durability}"
        writers = [
            context.Process(target=write, args=(url, number, acknowledged, unknown, over)) for number in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        while min(acknowledged) == 0:
            time.sleep(0.01)
        with SyncStore(url) as store:
            for _ in range(kills):
                before = [*acknowledged]
                while all(now < then + 3 for now, then in zip(acknowledged, before, strict=True)):
                    time.sleep(0.001)
                time.sleep(chance.uniform(0, 0.05))
                server.kill()
                known = [*acknowledged]
                server.restart()
                found = store.get("shared", [])
                faults += _faults(found, known, [store.get(f"own:{n}", 0) for n in range(WRITERS)])
        over.set()
        for writer in writers:
            writer.join()
        with SyncStore(url) as store:
            faults += _faults(
                store.get("shared", []), [*acknowledged], [store.get(f"own:{n}", 0) for n in range(WRITERS)]
            )
            if store.get("shared") and any(unknown):
                faults.append(f"{sum(unknown)} writes were given up, although the server came back")
    print(f"{durability}, seed {seed}: {kills} kills, {sum(acknowledged)} acknowledged, {len(faults)} faults")
    return faults


def _faults(shared: list[tuple[int, int]], known: list[int], own: list[int]) -> list[str]:
    found = []
    if len(set(shared)) != len(shared):
        found.append(f"{len(shared) - len(set(shared))} appends are there twice")
    for number in range(WRITERS):
        items = [item for writer, item in shared if writer == number]
        if missing := {*range(1, known[number] + 1)} - {*items}:
            found.append(f"writer {number}: {len(missing)} acknowledged appends are gone, such as {min(missing)}")
        if own[number] < known[number]:
            found.append(f"writer {number}: {known[number]} was acknowledged, {own[number]} is there")
    return found


if __name__ == "__main__":
    said = campaign(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(*said, sep="\n")
    sys.exit(bool(said))
