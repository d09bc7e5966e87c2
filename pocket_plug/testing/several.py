"""Concurrent users of the same data, for the contracts: event loops of other threads, threads without a loop, and processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from pocket_plug.store.backend import Backend, Delete, Put
from pocket_plug.store.resolving import resolve_backend
from pocket_plug.store.store import Store
from pocket_plug.testing.scenarios import HANGS, increment

Use = Callable[[Backend], Awaitable[Any]]


async def opened(backend: Backend, use: Use) -> Any:
    """Open a backend, use it, and close it."""
    await backend.open()
    try:
        return await use(backend)
    finally:
        await backend.close()


# ---------------------------------------------------------------- threads
async def on_loops_of_threads(uses: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Run each in its own thread on a new event loop, all at once."""

    def run(use: Callable[[], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            return await use()

        return asyncio.run(main())

    return [*await asyncio.gather(*(asyncio.to_thread(run, use) for use in uses))]


def in_threads(uses: Sequence[Callable[[], object]]) -> list[BaseException]:
    """Call each in its own thread without a loop, all at once; returns their errors, with TimeoutError for one that hangs."""
    failed: list[BaseException] = []

    def run(use: Callable[[], object]) -> None:
        try:
            use()
        except BaseException as error:  # noqa: BLE001 - returned to the caller
            failed.append(error)

    threads = [threading.Thread(target=run, args=(use,), daemon=True) for use in uses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    return [*failed, *(TimeoutError(f"{thread.name} hangs") for thread in threads if thread.is_alive())]


# ---------------------------------------------------------------- processes
async def count_on(backend: Backend, times: int) -> list[int]:
    """Add 1 to each of two counters, `times` times. Returns an empty list."""
    for _ in range(times):
        await increment(backend, "c0", 1)
        await increment(backend, "c1", 1)
    return []


async def write_together(backend: Backend, times: int) -> list[int]:
    """Write the same value to three keys, `times` times, and delete them every fourth time. Returns an empty list."""
    for n in range(times):
        await backend.write([Put(key, n) if n % 4 else Delete(key) for key in "abc"])
    return []


async def write_in_turns(backend: Backend, times: int) -> list[int]:
    """Write the same keys in ascending and descending order by turns. Returns the versions of the writes."""
    names = [f"k{number:02}" for number in range(40)]
    return [await backend.write([Put(name, n) for name in names[:: 1 if n % 2 else -1]]) for n in range(times)]


async def append_on(backend: Backend, times: int) -> list[int]:
    """Append `times` items to a list, each with the appender's name; sometimes trim another list. Returns an empty list."""
    store, who = Store(backend), os.urandom(4).hex()
    for n in range(times):
        await store.append("l", (who, n))
        await store.append("short", n)
        if n % 5 == 4:
            await store.trim("short", keep=3)
    return []


JOBS: dict[str, Callable[[Backend, int], Awaitable[list[int]]]] = {
    job.__name__: job for job in (count_on, write_together, write_in_turns, append_on)
}


def work_elsewhere() -> None:
    """The main function of such a process: open the URL, print "ready", wait for a line, do the job, and print its result."""
    url, job, times = sys.argv[1:]

    async def use(backend: Backend) -> list[int]:
        print("ready", flush=True)
        sys.stdin.readline()
        return await JOBS[job](backend, int(times))

    print(json.dumps(asyncio.run(opened(resolve_backend(url), use))), flush=True)


class Elsewhere:
    """Processes that have the data open, and begin a job when `go` is called."""

    def __init__(
        self, url: str, job: Callable[[Backend, int], Awaitable[list[int]]], times: int, processes: int
    ) -> None:
        code = f"from {__name__} import work_elsewhere; work_elsewhere()"
        command = [sys.executable, "-c", code, url, job.__name__, str(times)]
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)  # noqa: S603 - our own code
            for _ in range(processes)
        ]

    def go(self) -> None:
        """Wait until all processes are ready, and let them begin."""
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def done(self) -> list[int]:
        """Wait until all processes have ended; returns the results of the jobs in one list."""
        results: list[int] = []
        for process in self.processes:
            printed, _ = process.communicate(timeout=HANGS)
            assert process.returncode == 0
            results += json.loads(printed)
        return results

    def end(self) -> None:
        """Kill the processes that still run."""
        for process in self.processes:
            process.kill()
            process.communicate()


@contextmanager
def elsewhere(
    url: str, job: Callable[[Backend, int], Awaitable[list[int]]], times: int, *, processes: int = 2
) -> Generator[Elsewhere]:
    """Processes for a job on the data of a URL; all have ended after the block."""
    others = Elsewhere(url, job, times, processes)
    try:
        yield others
    finally:
        others.end()
