"""Pruning that is killed at any moment: open runs are unchanged, ended runs are complete or gone."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import Answered, Ask, Graph, RunSuspendedError, Store, StoreWriter, each, node
from pocket_plug.testing.clock import FakeClock

pytestmark = pytest.mark.crash

ENDED, OPEN, KILLS = 80, 8, 8

PRUNING = """
import asyncio, os, sys
from pocket_plug import Store
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.graph.durable import prune as module, removal
from pocket_plug.graph.durable.prune import prune
from pocket_plug.graph.retention import Retention

module.SLICE, module.BATCH, removal.CHUNK, module.PAUSE = 4, 8, 3, 0  # many writes
write = SQLite.write


async def told(self, changes, expect={}):
    os.write(1, b".")
    return await write(self, changes, expect)


SQLite.write = told


async def main():
    async with Store(f"sqlite:///{sys.argv[1]}?durability=process") as store:
        await prune(store.stack, Retention(older=86400.0, states=("finished", "cancelled", "failed")))


asyncio.run(main())
"""


class Boom(Exception):
    """The error of the failing node."""


def paying(store: Store, broken: list[bool]) -> Graph[list[int], int]:
    """Pays for each item, asks, and adds up."""

    @node.post
    async def pay(store: StoreWriter, amount: int) -> int:
        await store.update("paid", lambda total: total + amount, default=0)
        if broken[0] and amount == 8:
            raise Boom
        return amount

    @node
    def total(answered: Answered[list[int], bool]) -> int:
        return sum(answered.input)

    return Graph(each(pay, concurrency=1) >> Ask(bool, question="Right?") >> total, store=store, name="paying")


def saying(store: Store) -> Graph[list[int], list[int]]:
    """Some nodes in a row, so that a run has more records than fit into one write."""
    joined: Any = node(lambda words: words, name="say 0")
    for number in range(1, 5):
        joined = joined >> node(lambda words: words, name=f"say {number}")
    return Graph(joined, store=store, name="saying")


async def fill(path: Path) -> None:
    """Runs that have ended, have failed, or are waiting, all of them old."""
    async with Store(f"sqlite:///{path}?durability=process", clock=FakeClock()) as store:
        graph, broken = paying(store, [False]), paying(store, [True])
        say = saying(store)
        for number in range(ENDED):
            await say.run([number] * 10, run_id=f"ended {number}")
            if number % (ENDED // OPEN) == 0:
                with suppress(RunSuspendedError):
                    await graph.run([1, 2, 4, 8], run_id=f"waits {number}")
                with suppress(Boom):
                    await broken.run([1, 2, 4, 8], run_id=f"failed {number}")


def test_pruning_that_is_killed_touches_no_open_run(tmp_path: Path) -> None:
    """Killed during a write, again and again, until it is complete: the open runs still exist, and can be resumed."""
    path, draw, kills = tmp_path / "state.db", random.Random(7), 0
    asyncio.run(fill(path))
    while True:
        process = subprocess.Popen([sys.executable, "-c", PRUNING, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        if len(process.stdout.read(draw.randrange(1, 20) if kills < KILLS else -1)) and kills < KILLS:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        asyncio.run(judge(path))
        if process.returncode == 0:
            break
    assert kills == KILLS
    asyncio.run(go_on(path))


async def judge(path: Path) -> None:
    async with Store(f"sqlite:///{path}?durability=process") as store:
        assert await store.stack.check() == []
        runs = {key.removeprefix("pocket:run:") async for key in store.stack.scan("pocket:run:")}
        states = [key.rpartition(":")[2] async for key in store.stack.scan("pocket:run-state:")]
        assert sorted(states) == sorted(runs), "a run has one state, and none is left of one that has gone"
        assert {key.split(":")[2] async for key in store.stack.scan("pocket:run-part:")} == runs
        say = saying(store)
        for run_id in sorted(run for run in runs if run.startswith("ended")):
            assert await say.resume(run_id) == [int(run_id.split()[1])] * 10
        assert sum(run.startswith("waits") for run in runs) == OPEN


async def go_on(path: Path) -> None:
    async with Store(f"sqlite:///{path}?durability=process") as store:
        runs = [key.removeprefix("pocket:run:") async for key in store.stack.scan("pocket:run:")]
        assert len(runs) == OPEN
        before = await store.get("paid")
        for run_id in runs:
            assert await paying(store, [False]).resume(run_id, answer=True) == 15
        assert await store.get("paid") == before
