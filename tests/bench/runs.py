"""The time to list runs among a hundred and among a hundred thousand finished ones: the median of some tries.

    python -m tests.bench.runs [RUNS …]

The finished runs are copies of one, written in batches; twenty more have failed, and twenty wait for an answer.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pocket_plug as pp
from pocket_plug.graph.durable.records import RUN
from pocket_plug.graph.durable.states import STATE, state_key
from pocket_plug.graph.runs import OPEN
from pocket_plug.store.backend import Put

TRIES = 30
PAGE = 100
ask = pp.Ask[int, bool](bool, question="Really?", name="ask")


@pp.node
async def fails(n: int) -> int:
    raise RuntimeError("closed")


async def fill(store: pp.Store, runs: int) -> None:
    """Finished runs, begun one second after the other, and open ones among them."""
    await pp.Graph(pp.node(lambda n: n, name="one"), store=store, name="done").run(1, run_id="sample")
    run = await store.stack.read(f"{RUN}sample")
    (key,) = [key async for key in store.stack.scan(STATE)]
    state = await store.stack.read(key)
    assert run is not None
    assert state is not None
    began = time.time() - runs
    for start in range(0, runs, 1000):
        changes: list[Put] = []
        for n in range(start, min(start + 1000, runs)):
            changes.append(Put(f"{RUN}{n:07}", {**run.value, "started": began + n}))
            changes.append(Put(state_key("finished", "done", began + n, f"{n:07}"), state.value))
        await store.stack.write(changes)
    joined: Any = ask >> pp.node(lambda answered: answered.input, name="told")
    asking, failing = pp.Graph(joined, store=store, name="asking"), pp.Graph(fails, store=store, name="failing")
    for n in range(20):
        for graph, run_id in ((asking, f"asks-{n}"), (failing, f"failed-{n}")):
            with suppress(pp.RunSuspendedError, RuntimeError):
                await graph.run(n, run_id=run_id)


async def taken(work: Callable[[], Awaitable[object]]) -> float:
    """The median, in milliseconds."""
    times: list[float] = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        await work()
        times.append(time.perf_counter() - begun)
    return median(times) * 1e3


async def measure(runs: int) -> None:
    with TemporaryDirectory() as folder:
        async with pp.Store(f"sqlite:///{folder}/state.db?durability=process") as store:
            await fill(store, runs)
            begun = time.perf_counter()
            found = pp.Runs(store)
            await found.list(limit=1)
            first = (time.perf_counter() - begun) * 1e3
            page = await found.list(state="finished", limit=PAGE)
            for _ in range(runs // PAGE // 2 - 1):  # to the middle
                page = await found.list(state="finished", limit=PAGE, after=page.after)
            after = page.after if runs > PAGE else None
            rows = {
                f"page 1 of all, {PAGE} runs": lambda: found.list(limit=PAGE),
                f"page 1 of finished, {PAGE} runs": lambda: found.list(state="finished", limit=PAGE),
                f"a page in the middle, {PAGE} runs": lambda: found.list(state="finished", limit=PAGE, after=after),
                "the open ones, 40 runs": lambda: found.list(state=OPEN, limit=PAGE),
                "the failed ones, 20 runs": lambda: found.list(state="failed"),
                "one run": lambda: found.get("asks-3"),
            }
            print(f"\n{runs:,} finished runs (the first list of the store: {first:,.0f} ms)")
            for name, work in rows.items():
                print(f"  {name:34} {await taken(work):8.2f} ms")


if __name__ == "__main__":
    for number in map(int, sys.argv[1:] or ("100", "100000")):
        asyncio.run(measure(number))
