"""A program with a DBOS queue, as an executor that tests start and kill: `python dbos_shop.py FOLDER EXECUTOR COUNT`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from dbos import DBOS, DBOSConfig
from pocket_plug_dbos import DBOSQueue, PocketSerializer

import pocket_plug as pp


@pp.node
async def charge(cents: int) -> int:
    await asyncio.sleep(0.02)
    return cents


@pp.node.post
async def book(store: pp.StoreWriter, cents: int) -> int:
    await store.update("revenue", lambda total: total + cents, default=0)
    return cents


@pp.node
async def pack(cents: int) -> int:
    await asyncio.sleep(0.02)
    return cents


@pp.node.post
async def ship(store: pp.StoreWriter, cents: int) -> int:
    await store.update("shipped", lambda n: n + 1, default=0)
    return cents


def orders() -> pp.Graph[int, int]:
    return pp.Graph(charge >> book >> pack >> ship, name="orders")


def config(folder: Path, executor: str, url: str | None = None) -> DBOSConfig:
    return {
        "name": "shop",
        "system_database_url": url or f"sqlite:///{folder}/dbos.db",
        "executor_id": executor,
        "application_version": "1",
        "serializer": PocketSerializer(),
        "console_log_level": "CRITICAL",
        "log_level": "CRITICAL",
        "notification_listener_polling_interval_sec": 0.05,
        "scheduler_polling_interval_sec": 0.1,
    }


async def main(folder: Path, executor: str, count: int) -> None:
    """Submit COUNT runs, if they aren't yet; resume what executor "a" has left (unless this is "a"); work until killed."""
    async with pp.Store(f"sqlite:///{folder}/state.db") as store:
        DBOS(config=config(folder, executor, os.environ.get("DBOS_URL")))
        graph = orders()
        queue = DBOSQueue("orders", [graph], store=store, worker_concurrency=6, poll=0.02)
        DBOS.launch()
        await queue.register()
        for n in range(count):
            await queue.submit(graph, n, run_id=f"o-{n}")
        if executor != "a":
            left = await DBOS.list_workflows_async(executor_id="a", status="PENDING")
            await DBOS.resume_workflows_async([each.workflow_id for each in left], queue_name="orders")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
