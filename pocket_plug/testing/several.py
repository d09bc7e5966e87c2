"""Several users of the same data at once, for the contracts: loops of other threads, threads without a loop, and processes that
are started for it and do a job at a word.
"""

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
    """Use it while it is open."""
    await backend.open()
    try:
        return await use(backend)
    finally:
        await backend.close()


# ---------------------------------------------------------------- threads
async def on_loops_of_threads(uses: Sequence[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Do each in a thread, on an event loop of its own, all at once."""

    def run(use: Callable[[], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            return await use()

        return asyncio.run(main())

    return [*await asyncio.gather(*(asyncio.to_thread(run, use) for use in uses))]


def in_threads(uses: Sequence[Callable[[], object]]) -> list[BaseException]:
    """Do each in a thread without a loop, all at once; gives what they raised, and TimeoutError for one that hangs."""
    failed: list[BaseException] = []

    def run(use: Callable[[], object]) -> None:
        try:
            use()
        except BaseException as error:  # noqa: BLE001 - whoever asked looks at it
            failed.append(error)

    threads = [threading.Thread(target=run, args=(use,), daemon=True) for use in uses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    return [*failed, *(TimeoutError(f"{thread.name} hangs") for thread in threads if thread.is_alive())]


# ---------------------------------------------------------------- processes
async def count_on(backend: Backend, times: int) -> list[int]:
    """Add 1 to each of two counters so many times. Gives nothing."""
    for _ in range(times):
        await increment(backend, "c0", 1)
        await increment(backend, "c1", 1)
    return []


async def write_together(backend: Backend, times: int) -> list[int]:
    """Write the same value to three keys, so many times, removing them now and then."""
    for n in range(times):
        await backend.write([Put(key, n) if n % 4 else Delete(key) for key in "abc"])
    return []


async def write_in_turns(backend: Backend, times: int) -> list[int]:
    """Write many of the same keys, from the first to the last and the other way round. Gives the versions."""
    names = [f"k{number:02}" for number in range(40)]
    return [await backend.write([Put(name, n) for name in names[:: 1 if n % 2 else -1]]) for n in range(times)]


async def append_on(backend: Backend, times: int) -> list[int]:
    """Append so many items to a list, each with who it is of; now and then trim another one. Gives nothing."""
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
    """What such a process runs: opens the URL, says so, waits for a word, does the job, and tells what it gave."""
    url, job, times = sys.argv[1:]

    async def use(backend: Backend) -> list[int]:
        print("ready", flush=True)
        sys.stdin.readline()
        return await JOBS[job](backend, int(times))

    print(json.dumps(asyncio.run(opened(resolve_backend(url), use))), flush=True)


class Elsewhere:
    """Processes that have the data open, and do a job at a word."""

    def __init__(
        self, url: str, job: Callable[[Backend, int], Awaitable[list[int]]], times: int, processes: int
    ) -> None:
        code = f"from {__name__} import work_elsewhere; work_elsewhere()"
        command = [sys.executable, "-c", code, url, job.__name__, str(times)]
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)  # noqa: S603 - ourselves
            for _ in range(processes)
        ]

    def go(self) -> None:
        """Wait until all are ready, and let them begin."""
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def done(self) -> list[int]:
        """Wait for their ends; what the jobs gave, in one list."""
        given: list[int] = []
        for process in self.processes:
            told, _ = process.communicate(timeout=HANGS)
            assert process.returncode == 0
            given += json.loads(told)
        return given

    def end(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()
            process.communicate()


@contextmanager
def elsewhere(
    url: str, job: Callable[[Backend, int], Awaitable[list[int]]], times: int, *, processes: int = 2
) -> Generator[Elsewhere]:
    """So many processes, to do a job on the data of a URL; all have ended afterwards."""
    others = Elsewhere(url, job, times, processes)
    try:
        yield others
    finally:
        others.end()
