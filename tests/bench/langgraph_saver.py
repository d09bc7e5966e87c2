"""LangGraph's checkpoints in our store, and in its own SQLite savers: a log (WAL), and the same `synchronous`, for both."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from . import peers
from .harness import Bench, row
from .sqlite import folder

NODES = 20
"""In a chain, of which each run is a new thread."""
TASKS = 10
"""At once, in a step."""
LOG = 5_000_000
"""Bytes to which a log grows before it is used again from its beginning."""
SYNCHRONOUS = {"process": "NORMAL", "power": "FULL"}
METADATA = {"source": "loop", "step": 1, "parents": {}}


def savers(bench: Bench, durability: str) -> tuple[Any, Any, Any, Any]:
    """Our savers and LangGraph's, sync and async, each with a file of its own.

    Their logs have reached their size before: while a file grows, each wait for the disk takes several times as long, and the
    saver that writes more would finish this phase earlier.
    """
    from pocket_plug_langgraph import PocketSaver

    at, synchronous = folder(bench), SYNCHRONOUS[durability]
    ours = bench.enter(PocketSaver(f"sqlite:///{at}/ours.db?durability={durability}"))
    theirs = bench.enter(peers.sqlite_saver(at / "theirs.db", synchronous))
    async_ours = bench.enter(PocketSaver(f"sqlite:///{at}/ours-async.db?durability={durability}"))
    async_theirs = bench.enter(peers.sqlite_saver_async(at / "theirs-async.db", synchronous))
    for saver in (ours, theirs):
        saver.put(*Thread(saver, bytes(LOG)).next())
    for saver in (async_ours, async_theirs):
        bench.run(saver.aput(*Thread(saver, bytes(LOG)).next()))
    return ours, theirs, async_ours, async_theirs


class Thread:
    """A thread with one checkpoint after the other, each with the writes of its task."""

    def __init__(self, saver: Any, value: object = 1) -> None:
        from langgraph.checkpoint.base import empty_checkpoint

        self.saver, self.numbers = saver, itertools.count()
        self.config: Any = {"configurable": {"thread_id": f"{value!r:.9}", "checkpoint_ns": ""}}
        values = {"messages": [peers.text(n) for n in range(5)], "n": value}
        versions = dict.fromkeys(values, 1)
        self.checkpoint = empty_checkpoint() | {"channel_values": values, "channel_versions": versions}

    def next(self) -> tuple[Any, ...]:
        """The next checkpoint to put."""
        number = next(self.numbers)
        return self.config, {**self.checkpoint, "id": f"1f0a{number:032}"}, METADATA, {}

    def body(self, times: int) -> None:
        for _ in range(times):
            self.config = self.saver.put(*self.next())
            self.saver.put_writes(self.config, [("messages", [peers.text(1)]), ("n", 1)], "task", "path")

    async def body_async(self, times: int) -> None:
        for _ in range(times):
            self.config = await self.saver.aput(*self.next())
            await self.saver.aput_writes(self.config, [("messages", [peers.text(1)]), ("n", 1)], "task", "path")

    def step(self, times: int, threads: ThreadPoolExecutor) -> None:
        for _ in range(times):
            self.config = self.saver.put(*self.next())
            calls = [threads.submit(self.saver.put_writes, self.config, [("n", n)], f"task {n}") for n in range(TASKS)]
            for call in calls:
                call.result()

    async def step_async(self, times: int) -> None:
        for _ in range(times):
            self.config = await self.saver.aput(*self.next())
            calls = [self.saver.aput_writes(self.config, [("n", n)], f"task {n}") for n in range(TASKS)]
            await asyncio.gather(*calls)

    def look(self, times: int) -> None:
        for _ in range(times):
            assert self.saver.get_tuple(self.config).pending_writes

    async def look_async(self, times: int) -> None:
        for _ in range(times):
            assert (await self.saver.aget_tuple(self.config)).pending_writes


def calls(bench: Bench, durability: str) -> None:
    """A checkpoint with its writes is two commits. The last one is read back, with its writes."""
    ours, theirs, async_ours, async_theirs = (Thread(saver) for saver in savers(bench, durability))
    for name, body in (("PocketSaver", ours.body), ("SqliteSaver", theirs.body)):
        bench.case(name, body, wall=True)
    for name, async_body in (
        ("PocketSaver, async", async_ours.body_async),
        ("AsyncSqliteSaver", async_theirs.body_async),
    ):
        bench.case(name, async_body, wall=True)
    bench.target("PocketSaver", 1, "SqliteSaver")
    bench.target("PocketSaver, async", 1, "AsyncSqliteSaver")


@row
def put_process(bench: Bench) -> None:
    """a checkpoint and its writes that survive the process: WAL, synchronous=NORMAL; wall time"""
    calls(bench, "process")


@row
def put_power(bench: Bench) -> None:
    """a checkpoint and its writes that survive a power failure: WAL, synchronous=FULL; wall time"""
    calls(bench, "power")


@row
def tasks_power(bench: Bench) -> None:
    """a checkpoint and the writes of ten tasks at once that survive a power failure: WAL, synchronous=FULL; wall time"""
    ours, theirs, async_ours, async_theirs = (Thread(saver) for saver in savers(bench, "power"))
    threads = bench.enter(ThreadPoolExecutor(TASKS))
    bench.case("PocketSaver", partial(ours.step, threads=threads), wall=True)
    bench.case("SqliteSaver", partial(theirs.step, threads=threads), wall=True)
    bench.case("PocketSaver, async", async_ours.step_async, wall=True)
    bench.case("AsyncSqliteSaver", async_theirs.step_async, wall=True)
    bench.target("PocketSaver", 0.5, "SqliteSaver")
    bench.target("PocketSaver, async", 0.5, "AsyncSqliteSaver")


@row
def get(bench: Bench) -> None:
    """a checkpoint and its writes are read; wall time"""
    ours, theirs, async_ours, async_theirs = (Thread(saver) for saver in savers(bench, "process"))
    for thread in (ours, theirs):
        thread.body(100)
    for thread in (async_ours, async_theirs):
        bench.run(thread.body_async(100))
    bench.case("PocketSaver", ours.look, wall=True)
    bench.case("SqliteSaver", theirs.look, wall=True)
    bench.case("PocketSaver, async", async_ours.look_async, wall=True)
    bench.case("AsyncSqliteSaver", async_theirs.look_async, wall=True)
    bench.target("PocketSaver", 1, "SqliteSaver")
    bench.target("PocketSaver, async", 1, "AsyncSqliteSaver")


def nodes(bench: Bench, durability: str) -> None:
    """With all that LangGraph itself does for a node."""
    ours, theirs, async_ours, async_theirs = savers(bench, durability)
    bench.case("PocketSaver", peers.langgraph_over(NODES, ours), per=NODES, wall=True)
    bench.case("SqliteSaver", peers.langgraph_over(NODES, theirs), per=NODES, wall=True)
    bench.case("PocketSaver, async", peers.langgraph_over_async(NODES, async_ours), per=NODES, wall=True)
    bench.case("AsyncSqliteSaver", peers.langgraph_over_async(NODES, async_theirs), per=NODES, wall=True)
    bench.target("PocketSaver", 1, "SqliteSaver")
    bench.target("PocketSaver, async", 1, "AsyncSqliteSaver")


@row
def node_process(bench: Bench) -> None:
    """a node of a LangGraph chain that survives the process: WAL, synchronous=NORMAL; wall time"""
    nodes(bench, "process")


@row
def node_power(bench: Bench) -> None:
    """a node of a LangGraph chain that survives a power failure: WAL, synchronous=FULL; wall time"""
    nodes(bench, "power")
