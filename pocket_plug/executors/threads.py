"""The executor `threads`: a `def exec` runs in a worker thread of this process, also under `run_sync`."""

from __future__ import annotations

import asyncio

from pocket_plug.errors import ConfigError
from pocket_plug.graph.elsewhere import Work
from pocket_plug.graph.running.workers import WorkerTimeout, pool
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.urls import url_options
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import may_block
from pocket_plug.remote import Executor


class Threads(Executor):
    """The process's own worker threads. An `async def` exec stays in its event loop.

    >>> from pocket_plug import Graph, node
    >>> @node(executor=Threads())
    ... def double(n: int) -> int:
    ...     return 2 * n
    >>> Graph(double).run_sync(21)
    42
    """

    in_process = True

    @classmethod
    def from_url(cls, url: str) -> Threads:
        """`threads://`, without options; POCKET_PLUG_THREADS sets the number of threads. Raises ConfigError."""
        address, _ = url_options(url, "threads", {})
        if address.partition("://")[2]:
            raise ConfigError(f"{public_url(url)!r}: nothing may follow threads://")
        return cls()

    @property
    def window(self) -> int:
        """1: items aren't sent in batches."""
        return 1

    @property
    def room(self) -> int:
        """How many items run at a time: as many as without an executor."""
        return 10

    async def perform(self, work: Work) -> Value:
        """Call it in a thread. After a timeout the thread is abandoned, and continues by itself."""
        if work.timeout is not None and may_block() and not work.awaits:
            return pool().call_blocking(work.timeout, work.function, work.prepared)
        called = work.function(work.prepared) if work.awaits else pool().call(work.function, work.prepared)
        if work.timeout is None:
            return await called
        limit = asyncio.timeout(work.timeout)
        try:
            async with limit:
                return await called
        except TimeoutError as error:
            if limit.expired():
                raise WorkerTimeout from error
            raise
