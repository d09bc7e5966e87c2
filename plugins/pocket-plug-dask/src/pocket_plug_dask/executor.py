"""The executor on the workers of a Dask cluster.

The client of distributed uses an event loop in a thread of its own, so that any loop, thread or process can use the executor. If
its scheduler doesn't answer any more, a new client is made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from itertools import count
from typing import Any
from uuid import uuid4

from pocket_plug import ConfigError, ExecutorLostError, WorkerCodeError
from pocket_plug.graph.nodes.options import check_count
from pocket_plug.primitives.forking import after_fork, new_lock
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.urls import LEAST_WAIT, seconds, url_options
from pocket_plug.primitives.waiting import LoopThread
from pocket_plug.remote import Executor, close_at_exit

TIMEOUT = 10
"""Seconds that the scheduler has to answer, unless the URL says otherwise."""
LOOK = 1.0
"""Seconds between two checks of the scheduler: does it answer, and how many threads do its workers have?"""
LOOKS_WITHOUT_WORKERS = 5
"""After so many of these checks in a row that find no worker while work waits for one, a warning is logged."""
CLOSING = 5.0
"""Seconds that closing may take."""

_logger = logging.getLogger("pocket_plug")


class DaskExecutor(Executor):
    """The workers of a Dask cluster.

    `address` is the scheduler's, in Dask's notation: `tcp://host:8786`, `tls://host:8786`. Without one, it is read from the
    file `scheduler_file`. Without either, a cluster of `workers` processes is started on this machine, and ended with the
    executor. The scheduler has `timeout` seconds to answer.

    Dask's own options, such as TLS's files, are read from its configuration: environment variables `DASK_…`, for example.
    """

    def __init__(
        self, address: str = "", *, scheduler_file: str = "", workers: int | None = None, timeout: float = TIMEOUT
    ) -> None:
        self.address, self.scheduler_file, self.timeout = address, scheduler_file, timeout
        self.workers = None if workers is None else check_count(workers, "workers")
        seconds("dask", "timeout", timeout, LEAST_WAIT)
        self._lock = new_lock()
        self._begin()
        after_fork(self._begin)
        close_at_exit(self)

    def _begin(self) -> None:
        """Begin without a client: at first, and in a forked child, which leaves its parent's client alone."""
        self._home: _Home | None = None

    @classmethod
    def from_url(cls, url: str) -> DaskExecutor:
        """`dask://host:8786`, `dask+tls://host:8786`, `dask://?scheduler_file=…` or `dask+local://?workers=2`.

        Raises ConfigError.
        """
        scheme = url.partition("://")[0].lower()
        is_local = scheme == "dask+local"
        allowed = {"workers": int} if is_local else {"scheduler_file": str, "timeout": float}
        address, options = url_options(url, "dask", allowed)
        address = address.partition("://")[2]
        if is_local and address:
            raise ConfigError(f"{public_url(url)!r}: only options may follow dask+local://, such as ?workers=2")
        if not is_local and bool(address) == bool(options.get("scheduler_file")):
            raise ConfigError(
                f"{public_url(url)!r}: give either a scheduler, dask://host:8786, or a file, dask://?scheduler_file=…"
            )
        if "@" in address or "/" in address:
            raise ConfigError(
                f"{public_url(url)!r}: only host:port may follow dask://; set the files for TLS in Dask's configuration"
            )
        address = address and f"{'tls' if scheme == 'dask+tls' else 'tcp'}://{address}"
        return cls(address, **{**({"workers": 2} if is_local else {}), **options})

    def __repr__(self) -> str:
        return f"DaskExecutor({self.title!r})"

    @property
    def title(self) -> str:
        return self.address or self.scheduler_file or f"dask+local://?workers={self.workers}"

    @property
    def window(self) -> int:
        """How many threads the workers have, as last checked; the cluster may grow. Known once a request has connected."""
        home = self._home
        return 1 if home is None else home.threads

    def submit(self, function: Callable[[bytes], bytes], request: bytes) -> Future[bytes]:
        home = self._home
        if home is None or home.thread.is_closed:
            with self._lock:
                home = self._home = self._home or _Home(self)
        return asyncio.run_coroutine_threadsafe(home.do(function, request), home.thread.loop)

    def close(self) -> None:
        with self._lock:
            home, self._home = self._home, None
        if home is not None:
            home.close()


class _Home:
    """The client of distributed, and the event loop that it uses, in a thread of its own."""

    def __init__(self, executor: DaskExecutor) -> None:
        self._executor = executor
        self.threads = 0
        """How many threads all workers have."""
        self._requests = 0
        """How many requests wait for their answers."""
        self._looks_without_workers = 0
        """How many checks in a row have found no worker while requests waited."""
        self._client: Any = None  # distributed has no types
        self._cluster: Any = None
        self._lost: asyncio.Future[str] | None = None
        """Its result is the reason, once the client is lost."""
        self._connecting: asyncio.Task[tuple[Any, asyncio.Future[str]]] | None = None
        self._beside: set[asyncio.Task[None]] = set()
        self._prefix, self._numbers = f"pocket_plug-{uuid4().hex}", count()
        self.thread = LoopThread("pocket_plug dask")
        self.thread.start()

    def close(self) -> None:
        """Close the client, and end the loop."""
        with suppress(Exception):  # the scheduler may be gone, or the interpreter ends
            asyncio.run_coroutine_threadsafe(self._close(), self.thread.loop).result(CLOSING)
        self.thread.close()

    async def _close(self) -> None:
        self._drop("the executor was closed")
        if self._beside:
            await asyncio.wait(self._beside, timeout=CLOSING / 2)
        if self._cluster is not None:
            await self._cluster.close()

    # ------------------------------------------------------------ one request
    async def do(self, function: Callable[[bytes], bytes], request: bytes) -> bytes:
        """Call the function on a worker. If the request is cancelled, so is the call, unless it has begun."""
        client, lost = await self._connected()
        future = client.submit(function, request, key=f"{self._prefix}-{next(self._numbers)}", pure=False)
        result = asyncio.ensure_future(_result_of(future))
        self._requests += 1
        try:
            await asyncio.wait((result, lost), return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise ExecutorLostError(lost.result())
            return result.result()
        finally:
            self._requests -= 1
            if not result.done():
                result.cancel()
                if not lost.done():
                    self._do_beside(client.cancel, [future])
            future.release()

    # ------------------------------------------------------------ the client
    async def _connected(self) -> tuple[Any, asyncio.Future[str]]:
        """The client, and the future of its loss; a new client if none is connected. Raises ExecutorLostError."""
        if self._lost is not None and not self._lost.done() and self._client.status == "running":
            return self._client, self._lost
        if self._connecting is None or self._connecting.done():  # all requests wait for one attempt, and fail together
            self._drop("the connection to the scheduler was lost")
            self._connecting = asyncio.ensure_future(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> tuple[Any, asyncio.Future[str]]:
        self._client = await self._new_client()
        self._lost = asyncio.get_running_loop().create_future()
        self._do_beside(self._watch, self._client, self._lost)
        return self._client, self._lost

    async def _new_client(self) -> Any:
        import distributed

        client: Any = distributed.Client  # distributed has no types
        executor, made = self._executor, None
        try:
            if executor.workers is not None and self._cluster is None:
                self._cluster = await _local_cluster(executor.workers)
            options = {"timeout": executor.timeout, "asynchronous": True, "set_as_default": False}
            if executor.scheduler_file:
                made = client(scheduler_file=executor.scheduler_file, **options)
            else:
                made = client(self._cluster or executor.address, **options)
            # The client's own timeout doesn't cover a scheduler that accepts the connection and doesn't answer.
            async with asyncio.timeout(executor.timeout):
                return await made
        except (OSError, ValueError) as error:  # ValueError: a scheduler file that is still being written
            if made is not None:
                self._do_beside(made.close, CLOSING)
            raise ExecutorLostError(f"the scheduler can't be reached: {str(error) or 'no answer in time'}") from error

    async def _watch(self, client: Any, lost: asyncio.Future[str]) -> None:
        """Check the scheduler every `LOOK` seconds: without that, a scheduler that is stopped or cut off is not noticed."""
        while not lost.done():
            try:
                async with asyncio.timeout(self._executor.timeout):
                    threads = sum((await client.scheduler.ncores()).values())
            except (OSError, TimeoutError) as error:
                if not lost.done():
                    self._drop(f"the scheduler doesn't answer any more: {str(error) or type(error).__name__}")
                return
            self._found(threads)
            await asyncio.wait({lost}, timeout=LOOK)

    def _found(self, threads: int) -> None:
        """Note what a check has found. Dask waits for workers in silence, so a cluster without any is logged."""
        has_grown, self.threads = threads > self.threads, threads
        if has_grown:
            self._executor.grown()
        self._looks_without_workers = 0 if threads or not self._requests else self._looks_without_workers + 1
        if self._looks_without_workers == LOOKS_WITHOUT_WORKERS:
            _logger.warning("executor %s: %s", self._executor.title, _without_workers(self._executor))

    def _drop(self, why: str) -> None:
        """Stop using this client; requests that wait for it fail."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(why)
            self._do_beside(self._client.close, CLOSING)

    def _do_beside(self, do: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run it as a task; only `_close` waits for it, and its errors are ignored."""
        task = asyncio.ensure_future(_quietly(do, arguments))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)


def _without_workers(executor: DaskExecutor) -> str:
    """What is logged while work waits in a cluster without workers."""
    said = "the cluster has no workers, so the nodes that it is to execute wait"
    if executor.workers is not None:
        return f"{said}: its processes have ended; what they print says why"
    return f"{said}; start one: dask worker {executor.address or f'--scheduler-file {executor.scheduler_file}'}"


async def _quietly(do: Callable[..., Awaitable[object]], arguments: tuple[object, ...]) -> None:
    """Run it, and ignore its errors: no request waits for it."""
    with suppress(Exception):
        await do(*arguments)


async def _local_cluster(workers: int) -> Any:
    import distributed

    cluster: Any = distributed.LocalCluster
    return await cluster(
        n_workers=workers,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # not 0.0.0.0:8787
        worker_dashboard_address="127.0.0.1:0",
        asynchronous=True,
    )


async def _result_of(future: Any) -> bytes:
    """The worker's answer. Raises ExecutorLostError if workers died at it or it was cancelled, WorkerCodeError if the scheduler
    or a worker can't deserialize the request.
    """
    from distributed import KilledWorker

    try:
        answer: bytes = await future
        return answer
    except (KilledWorker, CancelledError) as error:
        raise ExecutorLostError(str(error), workers_died=isinstance(error, KilledWorker)) from error
    except RuntimeError as error:
        if "deserialization" not in str(error):
            raise
        raise WorkerCodeError(
            f"the scheduler or a worker lacks pocket_plug, or has another version of it: {error}", "", "pocket_plug"
        ) from error
