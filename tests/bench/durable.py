"""Durable runs: the cost of a node with a checkpoint, and whether a long run is resumed as fast as a short one."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pocket_plug as pp

from . import peers
from .harness import Bench, Body, row
from .scaling import LINEAR
from .sqlite import folder

NODES = 50
"""In a chain, of which each run is a new one."""
PAGE = 4096
"""The least that SQLite writes."""
LESS = 0.5
"""Of what a peer takes."""


class Writes(pp.Node[int, int]):
    """Its post writes one key, with a new value each time."""

    async def exec(self, n: int) -> int:
        return n + 1

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.set("key", peers.text(n))
        return result


class SyncWrites(pp.Node[int, int]):
    """The same, as plain functions."""

    def exec(self, n: int) -> int:
        return n + 1

    def post(self, store: pp.SyncWriter, n: int, prepared: int, result: int) -> int:
        store.set("key", peers.text(n))
        return result


def chain(bench: Bench, node: pp.Node[int, int], path: Path, durability: str) -> pp.Graph[int, int]:
    """A graph of a node's copies in a row, whose store is a new file."""
    joined: Any = node.with_options(name="node_0")
    for n in range(1, NODES):
        joined = joined >> node.with_options(name=f"node_{n}")
    return pp.Graph(joined, store=bench.enter(pp.Store(f"sqlite:///{path}?durability={durability}")), name="chain")


def ours(bench: Bench, path: Path, durability: str, *, durable: bool = True) -> Body:
    """By run()."""
    graph, ids = chain(bench, Writes(), path, durability), map(str, itertools.count())

    async def body(times: int) -> None:
        for _ in range(times):
            assert await graph.run(0, run_id=next(ids) if durable else None) == NODES

    return body


def ours_sync(bench: Bench, path: Path, durability: str) -> Body:
    """By run_sync()."""
    graph, ids = chain(bench, SyncWrites(), path, durability), map(str, itertools.count())

    def body(times: int) -> None:
        for _ in range(times):
            assert graph.run_sync(0, run_id=next(ids)) == NODES

    return body


def node_cases(bench: Bench, durability: str) -> None:
    """All of them write to a log (WAL), and wait for the disk in the same way."""
    at, synchronous = folder(bench), {"process": "NORMAL", "power": "FULL"}[durability]
    langgraph = bench.enter(peers.langgraph_sqlite(NODES, at / "LangGraph, sync", synchronous))
    alanggraph = bench.enter(peers.langgraph_sqlite_async(NODES, at / "LangGraph, async", synchronous))
    dbos, adbos = bench.enter(peers.dbos(NODES, at / "DBOS", synchronous))
    cases: list[tuple[str, str, Body]] = [
        ("pocket_plug, run", "ours", ours(bench, at / "ours", durability)),
        ("pocket_plug, run_sync", "ours, sync", ours_sync(bench, at / "ours, sync", durability)),
        ("pocket_plug, run without an id", "no id", ours(bench, at / "no id", durability, durable=False)),
        ("LangGraph, AsyncSqliteSaver", "LangGraph, async", alanggraph),
        ("LangGraph, SqliteSaver", "LangGraph, sync", langgraph),
        ("DBOS, async", "DBOS", adbos),
        ("DBOS, sync", "DBOS", dbos),
    ]
    for name, file, body in cases:
        log = at / f"{file}-wal"
        before = log.stat().st_size if log.exists() else 0
        first = body(1)
        if inspect.iscoroutine(first):
            bench.run(first)
        written = log.stat().st_size - before
        assert written > NODES * PAGE, f"{name}: {written} bytes are less than a page for each node"
        bench.case(name, body, per=NODES, wall=True)
    for peer in ("LangGraph, AsyncSqliteSaver", "DBOS, async"):
        bench.target("pocket_plug, run", LESS, peer)
    for peer in ("LangGraph, SqliteSaver", "DBOS, sync"):
        bench.target("pocket_plug, run_sync", LESS, peer)


@row
def node_process(bench: Bench) -> None:
    """a node of a durable run that survives the process: WAL, synchronous=NORMAL; wall time"""
    node_cases(bench, "process")


@row
def node_power(bench: Bench) -> None:
    """a node of a durable run that survives a power failure: WAL, synchronous=FULL; wall time"""
    node_cases(bench, "power")


# ---------------------------------------------------------------- resuming
VISITS = (10, 1_000, 10_000)


class Stop(Exception):
    """Stops a run, so that it can be resumed again and again."""


class Round(pp.Node[int, int]):
    """A loop that stops after this many visits."""

    def __init__(self, visits: int) -> None:
        self.visits = visits

    async def exec(self, n: int) -> int:
        if n == self.visits:
            raise Stop
        return n + 1

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.set("key", peers.text(n))
        return result


@row
def resume(bench: Bench) -> None:
    """resume a run that stands at a node after this many visits"""
    at = folder(bench)
    for visits in VISITS:
        bench.case(f"{visits:,} visits", resumed(bench, at / str(visits), visits))
    fewer, more = (f"{visits:,} visits" for visits in VISITS[1:])
    bench.target(more, LINEAR, fewer)


def resumed(bench: Bench, path: Path, visits: int) -> Body:
    """A run that has made this many visits."""
    node = Round(visits)
    store = bench.enter(pp.Store(f"sqlite:///{path}?durability=process"))
    graph = pp.Graph(node >> node, store=store, name="round", max_steps=10 * visits)

    async def stopped(execution: Coroutine[Any, Any, int]) -> None:
        try:
            await execution
        except Stop:
            return
        raise AssertionError("it got further than it should")

    async def body(times: int) -> None:
        for _ in range(times):
            await stopped(graph.resume("run"))

    bench.run(stopped(graph.run(0, run_id="run")))
    return body
