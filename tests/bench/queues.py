"""The time until a submitted run starts, and the throughput: workers over one SQLite file, compared with DBOS's queue.

    python -m tests.bench.queues [--workers 1 4] [--runs 300] [--only ours|dbos|often]

Each worker is a process. A run is one node (of DBOS a workflow of one step) that notes when it starts. Latency is measured for
runs that are submitted one by one, with random pauses, by another process; throughput for many runs submitted at once. Files have
each system's default durability; DBOS's has a write-ahead log, as ours.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

ONE_BY_ONE = 60
PAUSE = 0.15
CONCURRENCY = 10


def note(folder: str, run_id: str) -> None:
    """Called when a run starts."""
    with (Path(folder) / "started").open("a") as file:
        file.write(f"{run_id} {time.monotonic()}\n")


def started(folder: str) -> dict[str, float]:
    """When each run was started."""
    lines = (line.split() for line in (Path(folder) / "started").read_text().splitlines())
    return {run_id: float(at) for run_id, at in lines}


def wait_for(folder: str, run_ids: list[str]) -> dict[str, float]:
    """Wait until all of these have started."""
    while not set(run_ids) <= (found := started(folder)).keys():
        time.sleep(0.01)
    return found


# ---------------------------------------------------------------- ours
def our_graph(folder: str) -> Any:
    """One node."""
    import pocket_plug as pp

    @pp.node
    async def start(run_id: str) -> str:
        note(folder, run_id)
        return run_id

    return pp.Graph(start, name="queue", store=pp.Store(f"sqlite:///{folder}/state.db"))


def our_worker(folder: str) -> None:
    """A worker process."""
    import pocket_plug as pp

    asyncio.run(pp.Worker([our_graph(folder)], concurrency=CONCURRENCY).run())


def our_submitter(folder: str) -> Callable[[str], object]:
    """A process that submits a run."""
    graph = our_graph(folder)
    return lambda run_id: graph.submit_sync(run_id, run_id=run_id)


# ---------------------------------------------------------------- DBOS
def _dbos(folder: str) -> Any:
    import sqlalchemy
    from dbos import DBOS

    def prepare(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", prepare)
    DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{folder}/dbos.db", "application_version": "1"})
    return DBOS


def dbos_worker(folder: str, polling: float = 1.0) -> None:
    """A worker process. It polls every second, DBOS's default."""
    kit = _dbos(folder)

    @kit.step()
    def start(run_id: str) -> str:
        note(folder, run_id)
        return run_id

    @kit.workflow(name="start")
    def flow(run_id: str) -> str:
        return start(run_id)

    kit.launch()
    kit.register_queue("bench", worker_concurrency=CONCURRENCY, polling_interval_sec=polling)
    while True:
        time.sleep(60)


def dbos_often(folder: str) -> None:
    """The same, polling as often as our workers."""
    dbos_worker(folder, 0.05)


def dbos_submitter(folder: str) -> Callable[[str], object]:
    """A process that submits a run."""
    import sqlalchemy
    from dbos import DBOSClient

    def prepare(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", prepare)
    client = DBOSClient(system_database_url=f"sqlite:///{folder}/dbos.db")
    return lambda run_id: client.enqueue(
        {"queue_name": "bench", "workflow_name": "start", "workflow_id": run_id, "app_version": "1"}, run_id
    )


# ---------------------------------------------------------------- the measurement
SYSTEMS = {
    "ours": (our_worker, our_submitter),
    "dbos": (dbos_worker, dbos_submitter),
    "often": (dbos_often, dbos_submitter),
}


def measure(system: str, workers: int, runs: int, folder: str) -> str:
    """A row."""
    (Path(folder) / "started").touch()
    command = [sys.executable, "-m", "tests.bench.queues", "--work", system, "--folder", folder]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL)]
    try:
        time.sleep(4)  # the first worker creates the tables
        processes += [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(workers - 1)]
        submit = SYSTEMS[system][1](folder)
        warm = [f"warm-{number}" for number in range(4 * workers)]
        for run_id in warm:
            submit(run_id)
            time.sleep(0.5)
        wait_for(folder, warm)
        submitted: dict[str, float] = {}
        for number in range(ONE_BY_ONE):
            time.sleep(random.uniform(0, 2 * PAUSE))
            submitted[f"one-{number}"] = time.monotonic()
            submit(f"one-{number}")
        found = wait_for(folder, list(submitted))
        latencies = [1000 * (found[run_id] - at) for run_id, at in submitted.items()]
        many = [f"many-{number}" for number in range(runs)]
        began = time.monotonic()
        for run_id in many:
            submit(run_id)
        all_submitted = time.monotonic() - began
        found = wait_for(folder, many)
        took = max(found[run_id] for run_id in many) - began
    finally:
        for process in processes:
            process.kill()
            process.wait()
    late = quantiles(latencies, n=20)[-1]
    return (
        f"{system:5} {workers} at work: submit to start {median(latencies):6.1f} ms, p95 {late:6.1f} ms; "
        f"{runs / took:6.1f} runs/s (submitting alone {runs / all_submitted:6.1f} /s)"
    )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--only", choices=SYSTEMS)
    parser.add_argument("--work", choices=SYSTEMS)
    parser.add_argument("--folder")
    given = parser.parse_args()
    if given.work:
        SYSTEMS[given.work][0](given.folder)
    for workers in given.workers:
        for system in [given.only] if given.only else SYSTEMS:
            with TemporaryDirectory() as folder:
                print(measure(system, workers, given.runs, folder), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("DBOS__DISABLE_TELEMETRY", "1")
    main()
