"""Nodes and runs without observers: the cost of pocket_plug itself around the user's code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pocket_plug as pp
from pocket_plug.hookspecs import NodeCall, Observer, Run

from . import peers
from .harness import Bench, row

NODES = 1000
"""In a chain of ours and of PocketFlow's."""
FEW = 50
"""In a chain of those that take a hundred times as long."""


class Phases(pp.Node[int, int]):
    """prep, exec and post, each of which does nothing."""

    async def prep(self, store: pp.StoreReader, n: int) -> int:
        return n

    async def exec(self, n: int) -> int:
        return n

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        return result


class Writes(Phases):
    """The same, and post writes one key."""

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.set("key", result)
        return result


class SyncPhases(pp.Node[int, int]):
    """The same three, as plain functions."""

    def prep(self, store: pp.SyncReader, n: int) -> int:
        return n

    def exec(self, n: int) -> int:
        return n

    def post(self, store: pp.SyncWriter, n: int, prepared: int, result: int) -> int:
        return result


class SyncExec(pp.Node[int, int]):
    """A plain exec, which a run calls in a thread."""

    def exec(self, n: int) -> int:
        return n


def chain(node: pp.Node[int, int], length: int, store: pp.Store | None = None) -> pp.Graph[int, int]:
    """A graph of a node's copies in a row."""
    nodes = [node.with_options(name=f"node_{n}") for n in range(length)]
    joined: Any = nodes[0]
    for each in nodes[1:]:
        joined = joined >> each
    return pp.Graph(joined, store=store or pp.Store())


class Watching:
    """A plugin whose observer observes nodes and does nothing."""

    @staticmethod
    @pp.hookimpl
    def pocket_observe(run: Run) -> Observer:
        return Observer(node=NoOp)


class NoOp:
    """A context manager that does nothing."""

    def __init__(self, call: NodeCall) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@row
def node(bench: Bench) -> None:
    """a node with prep, exec and post, nothing listening"""
    watched = pp.Pocket(plugins=[Watching])
    bench.case("pocket_plug", "await graph.run(1)", graph=chain(Phases(), NODES), per=NODES)
    bench.case("pocket_plug, post writes a key", "await graph.run(1)", graph=chain(Writes(), NODES), per=NODES)
    bench.case(
        "pocket_plug, a no-op observer",
        "await graph.run(1, pocket=pocket)",
        graph=chain(Phases(), NODES),
        pocket=watched,
        per=NODES,
    )
    bench.case("three awaits", three_awaits)
    bench.case("PocketFlow AsyncFlow", "await flow.run_async({})", flow=peers.pocketflow_async(NODES), per=NODES)
    bench.case(
        "PocketFlow AsyncFlow, post writes a key",
        "await flow.run_async({})",
        flow=peers.pocketflow_async(NODES, writes=True),
        per=NODES,
    )
    bench.target("pocket_plug", 0.45, "PocketFlow AsyncFlow")
    bench.target("pocket_plug, post writes a key", 1, "PocketFlow AsyncFlow, post writes a key")
    bench.target("pocket_plug, a no-op observer", 1, "PocketFlow AsyncFlow")


async def three_awaits(times: int) -> None:
    phases, store, value = Phases(), None, 1
    for _ in range(times):
        prepared = await phases.prep(store, value)  # type: ignore[arg-type]
        result = await phases.exec(prepared)
        value = await phases.post(store, value, prepared, result)  # type: ignore[arg-type]


@row
def node_sync(bench: Bench) -> None:
    """a node with prep, exec and post as plain functions, under run_sync"""
    bench.case("pocket_plug", "graph.run_sync(1)", graph=chain(SyncPhases(), NODES), per=NODES)
    bench.case("PocketFlow Flow", "flow.run({})", flow=peers.pocketflow(NODES), per=NODES)
    bench.target("pocket_plug", 0.5, "PocketFlow Flow")


@contextmanager
def on_one_processor() -> Iterator[None]:
    """Keep all threads on one processor: with two, the kernel's wake-ups of the other one would be measured, 20 or 90 µs."""
    if not sys.platform.startswith("linux"):
        yield
        return
    threads = Path("/proc/self/task")
    everywhere = os.sched_getaffinity(0)
    try:
        for thread in threads.iterdir():
            os.sched_setaffinity(int(thread.name), {min(everywhere)})
        yield
    finally:
        for thread in threads.iterdir():
            os.sched_setaffinity(int(thread.name), everywhere)


@row
def sync_exec(bench: Bench) -> None:
    """a plain exec under run(): in a thread; all threads on one processor"""
    bench.enter(on_one_processor())
    bench.case("pocket_plug", "await graph.run(1)", graph=chain(SyncExec(), NODES), per=NODES)
    bench.case(
        "asyncio.to_thread", "await to_thread(function, 1)", to_thread=asyncio.to_thread, function=SyncExec().exec
    )
    bench.target("pocket_plug", 0.7, "asyncio.to_thread")


@row
def run_of_one_node(bench: Bench) -> None:
    """a run of one node"""
    bench.case("pocket_plug", "await graph.run(1)", graph=chain(Phases(), 1))
    bench.case("PocketFlow AsyncFlow", "await flow.run_async({})", flow=peers.pocketflow_async(1))
    bench.target("pocket_plug", 1.2, "PocketFlow AsyncFlow")


@row
def node_of_peers(bench: Bench) -> None:
    """node of the peers, and a run of one; in a row of its own, since some of them import an SDK"""
    for name, body in peers.workflows(FEW).items():
        bench.case(f"{name}, a node", body, per=FEW)
    for name, body in peers.workflows(1).items():
        bench.case(f"{name}, a run", body)


# ---------------------------------------------------------------- fan-out
ITEMS = 1000
WIDE = 100


@pp.node
async def item(n: int) -> int:
    return n


@pp.node
async def suspending_item(n: int) -> int:
    await asyncio.sleep(0)
    return n


async def workers(function: Any, items: range, wide: int) -> list[Any]:
    """Tasks that take items from one iterator: the minimum to limit the width."""
    results: list[Any] = [None] * len(items)
    positions: Iterator[tuple[int, int]] = iter(enumerate(items))

    async def work() -> None:
        for position, each in positions:
            results[position] = await function(each)

    async with asyncio.TaskGroup() as group:
        for _ in range(wide):
            group.create_task(work())
    return results


async def with_semaphore(function: Any, items: range, wide: int) -> list[Any]:
    """The usual way: a task for each item."""
    semaphore = asyncio.Semaphore(wide)

    async def work(each: int) -> Any:
        async with semaphore:
            return await function(each)

    return await asyncio.gather(*map(work, items))


def fan_out_cases(bench: Bench, node: Any, floor: str) -> None:
    graph = pp.Graph(pp.each(node, concurrency=WIDE), store=pp.Store())
    items = range(ITEMS)
    bench.case("pocket_plug", "await graph.run(items)", graph=graph, items=items, per=ITEMS)
    bench.case(floor, f"await workers(function, items, {WIDE})", workers=workers, function=node, items=items, per=ITEMS)
    bench.target("pocket_plug", 2, floor)
    bench.case(
        "gather + semaphore",
        f"await gather(function, items, {WIDE})",
        gather=with_semaphore,
        function=node,
        items=items,
        per=ITEMS,
    )


@row
def fan_out(bench: Bench) -> None:
    """an item of a fan-out of 1,000, 100 wide"""
    fan_out_cases(bench, item, "100 workers over one iterator")
    for name, body in peers.fan_outs(ITEMS, WIDE).items():
        bench.case(name, body, per=ITEMS)


@row
def fan_out_suspending(bench: Bench) -> None:
    """an item of a fan-out of 1,000, 100 wide, that suspends once"""
    fan_out_cases(bench, suspending_item, "100 workers over one iterator")
