"""The time of a durable node while a million finished runs are pruned: its p99 without and with pruning, in turn.

    python -m tests.bench.prune [RUNS] [power|process] [FOLDER]

The runs are copies of one, written in batches. Then durable runs are executed in this process; in every second round, runs are
pruned at the same time: by a worker in the same loop, and by another process. The first pass over a store scans all keys, for
runs that older versions have left: that is measured separately. Given a folder, the file is left there.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time
from itertools import count, pairwise
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import pocket_plug as pp
from pocket_plug.graph.durable.indexing import INDEXED
from pocket_plug.graph.durable.prune import Pruning
from pocket_plug.graph.durable.records import PART, RUN
from pocket_plug.graph.durable.states import StateKey, state_key
from pocket_plug.graph.retention import Retention
from pocket_plug.store.backend import Delete, Put

NODES = 50
ROUNDS = 4
SECONDS = 6.0
"""Of a round."""
OLD = 60 * 86_400.0

ELSEWHERE = """
import asyncio, sys
from pocket_plug import Store
from pocket_plug.graph.durable.prune import prune
from pocket_plug.graph.retention import Retention

async def main():
    async with Store(sys.argv[1]) as store:
        print("ready", flush=True)
        await prune(store.stack, Retention(older=86400.0))

asyncio.run(main())
"""

times: list[float] = []


class Writes(pp.Node[int, int]):
    """Writes a key, and notes when it was entered."""

    async def exec(self, n: int) -> int:
        times.append(time.perf_counter())
        return n + 1

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.set("key", result)
        return result


def chain(store: pp.Store) -> pp.Graph[int, int]:
    joined: Any = Writes().with_options(name="node_0")
    for n in range(1, NODES):
        joined = joined >> Writes().with_options(name=f"node_{n}")
    return pp.Graph(joined, store=store, name="chain")


async def fill(store: pp.Store, runs: int) -> None:
    """Finished runs of a short chain, which ended sixty days ago."""
    graph = pp.Graph(pp.node(lambda n: n, name="one") >> pp.node(lambda n: n, name="two"), store=store, name="old")
    await graph.run(1, run_id="sample")
    keys = [key async for key in store.stack.scan("pocket:run")]
    sample = await store.stack.read_many(keys)
    begun = time.time() - OLD
    for start in range(0, runs, 500):
        changes: list[Put] = []
        for n in range(start, min(start + 500, runs)):
            name = hashlib.md5(str(n).encode(), usedforsecurity=False).hexdigest()
            for key, entry in sample.items():
                if key.startswith((RUN, PART)):
                    value = entry.value if not key.startswith(RUN) else {**entry.value, "started": begun + n / 1000}
                    changes.append(Put(key.replace("sample", name), value))
                else:
                    parsed = StateKey.parse(key)
                    there = state_key(parsed.status, parsed.graph, begun + n / 1000, name)
                    changes.append(Put(there, {**entry.value, "since": begun + n / 1000}))
        await store.stack.write(changes)


async def load(graph: pp.Graph[int, int], ids: count[int], beside: Pruning | None) -> list[float]:
    """What nodes took in a round, in seconds."""
    del times[:]
    until = time.perf_counter() + SECONDS

    async def prune_beside() -> None:
        assert beside is not None
        while (rest := await beside.slice()) is not None:
            await asyncio.sleep(rest)

    pruner = asyncio.create_task(prune_beside()) if beside is not None else None
    took: list[float] = []
    while time.perf_counter() < until:
        del times[:]
        await graph.run(0, run_id=f"load {next(ids)}")
        took += [after - before for before, after in pairwise(times)]
    if pruner is not None:
        pruner.cancel()
        await asyncio.wait({pruner})
    return took


def shown(name: str, rounds: list[list[float]]) -> float:
    cuts = [quantiles(took, n=1000) for took in rounds]
    p50, p99 = (median(cut[at] for cut in cuts) * 1000 for at in (499, 989))
    print(f"{name:32} {sum(map(len, rounds)):8,} nodes   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms", flush=True)
    return p99


async def main(runs: int, durability: str, folder: Path) -> None:
    path = folder / "state.db"
    url = f"sqlite:///{path}?durability={durability}"
    if not path.exists():
        began = time.perf_counter()
        async with pp.Store(f"sqlite:///{path}?durability=process") as store:
            await fill(store, runs)
        print(
            f"{runs:,} runs, {path.stat().st_size / 1e6:,.0f} MB, written in {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    async with pp.Store(url) as store:
        graph, ids = chain(store), count(time.time_ns())
        await load(graph, ids, None)
        beside = Pruning(store.stack, Retention(older=86_400.0))
        alone, first, within, elsewhere = [], [], [], []
        for _ in range(ROUNDS):
            alone.append(await load(graph, ids, None))
            await store.stack.write([Delete(INDEXED)])
            first.append(await load(graph, ids, Pruning(store.stack, Retention(older=86_400.0))))
            before = beside.runs
            within.append(await load(graph, ids, beside))
            rate = (beside.runs - before) / SECONDS
            process = subprocess.Popen([sys.executable, "-c", ELSEWHERE, url], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
            assert process.stdout is not None
            process.stdout.readline()
            elsewhere.append(await load(graph, ids, None))
            process.kill()
            process.wait()
            print(f"  pruned per second: {rate:,.0f} in the same loop", flush=True)
        base = shown("alone", alone)
        for name, rounds in (
            ("a store's first look for old runs", first),
            ("pruned in the same loop", within),
            ("pruned by another process", elsewhere),
        ):
            print(f"{'':32} {shown(name, rounds) / base:.2f} x")


if __name__ == "__main__":
    given = sys.argv[1:]
    number = int(given[0]) if given else 1_000_000
    kind = given[1] if len(given) > 1 else "power"
    if len(given) > 2:
        asyncio.run(main(number, kind, Path(given[2])))
    else:
        with TemporaryDirectory() as made:
            asyncio.run(main(number, kind, Path(made)))
