"""LangGraph's checkpoints in our store, and in its own SQLite savers: WAL and the same `synchronous` for both."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from . import peers
from .harness import Bench, Body, row
from .sqlite import folder

NODES = 20
"""In a chain, of which each run is a new thread."""
TASKS = 10
"""At once, in a fan-out."""
SYNCHRONOUS = {"process": "NORMAL", "power": "FULL"}


def savers(bench: Bench, durability: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those without and those with `await`, ours first, each with a file of its own."""
    import sqlite3

    from langgraph.checkpoint.sqlite import SqliteSaver
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from pocket_plug_langgraph import PocketSaver

    at, synchronous = folder(bench), f"PRAGMA synchronous = {SYNCHRONOUS[durability]}"
    connection = bench.enter(closing(sqlite3.connect(at / "theirs", check_same_thread=False)))
    connection.execute(synchronous)
    theirs = SqliteSaver(connection)
    theirs.setup()
    async_theirs: Any = bench.enter(AsyncSqliteSaver.from_conn_string(str(at / "theirs, async")))

    async def prepare() -> None:
        await async_theirs.conn.execute(synchronous)
        await async_theirs.setup()

    bench.run(prepare())
    ours = bench.enter(PocketSaver(f"sqlite:///{at}/ours?durability={durability}"))
    async_ours = bench.enter(PocketSaver(f"sqlite:///{at}/ours, async?durability={durability}"))
    return {"PocketSaver": ours, "SqliteSaver": theirs}, {"PocketSaver": async_ours, "AsyncSqliteSaver": async_theirs}
