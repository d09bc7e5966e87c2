"""How long it takes until a near tier shows another process's write: `python tests/bench/near.py [COUNT]`.

Over Valkey and PostgreSQL from wheels, on this machine. One process has a near tier and reads a key over and over; another
process sets it, at random times, and reports when. A row shows how long after the acknowledgement the new value was read, and the
cost of a read from the near tier meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pocket_plug as pp
from pocket_plug.layers.persistence import Persistence
from pocket_plug.testing.servers import Server, postgres, valkey


def write(url: str, count: int, answers: Any, seen: Any) -> None:
    """The other process: sets the key, and reports when that was acknowledged."""
    with pp.SyncStore(url) as store:
        for n in range(1, count + 1):
            time.sleep(random.uniform(0.01, 0.03))
            store.set("n", n)
            answers.put(time.monotonic())  # all processes of a machine have the same clock
            seen.get()


async def measure(system: str, server: Server, count: int) -> dict[str, Any]:
    """One row."""
    context = multiprocessing.get_context("spawn")
    answers, seen = context.Queue(), context.Queue()
    late: list[float] = []
    async with pp.Store(layers=[Persistence(to=server.url)]) as store:
        await store.set("n", 0)
        until = time.monotonic() + 2
        while time.monotonic() < until:  # until the notification has come
            await store.get("n")
        began, reads = time.perf_counter(), 100_000
        for _ in range(reads):
            await store.get("n")
        near = (time.perf_counter() - began) / reads
        process = context.Process(target=write, args=(server.url, count, answers, seen))
        process.start()
        for n in range(1, count + 1):
            while await store.get("n") != n:
                await asyncio.sleep(0.0001)
            now = time.monotonic()
            late.append(now - answers.get())
            seen.put(n)
        process.join()
    late.sort()
    return {
        "system": system,
        "seen_ms_p50": round(statistics.median(late) * 1e3, 2),
        "seen_ms_p99": round(late[int(count * 0.99)] * 1e3, 2),
        "near_read_us": round(near * 1e6, 2),
        "count": count,
    }


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    servers: list[tuple[str, Callable[[], AbstractContextManager[Server]]]] = [
        ("redis", valkey),
        ("postgresql", postgres),
    ]
    for system, start in servers:
        with start() as server:
            print(json.dumps(asyncio.run(measure(system, server, count))), flush=True)
