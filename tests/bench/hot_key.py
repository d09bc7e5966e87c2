"""Several processes on one key of one store: `python tests/bench/hot_key.py [SECONDS] [FOLDER]`, or `… [SECONDS] --url URL …`.

Some update the key as fast as they can, some only set it. A row shows how many updates were done and how they were shared, how
many conflicts were raised, and how long an update took. Without a URL the store is a SQLite file in `FOLDER`; in memory
(/dev/shm) the disk doesn't count. A URL is that of a server; each row has a data set of its own there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pocket_plug as pp

WORLDS = [(2, 0), (4, 0), (8, 0), (1, 2), (4, 2)]
"""How many processes update, and how many set."""


def work(url: str, kind: str, ready: Any, seconds: float, answers: Any) -> None:
    """One process, for some seconds."""
    done, conflicts, took = 0, 0, list[float]()
    with pp.SyncStore(url) as store:
        store.get("n")
        ready.wait()
        used, end = time.process_time(), time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            if kind == "set":
                store.set("n", done)
                done += 1
                continue
            try:
                store.update("n", lambda n: n + 1, default=0)
                done += 1
            except pp.ConflictError:
                conflicts += 1
            took.append(time.monotonic() - now)
    answers.put((kind, done, conflicts, took, time.process_time() - used))


def measure(durability: str, updating: int, setting: int, seconds: float, folder: str | None = None) -> dict[str, Any]:
    """One row over SQLite."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        url = f"sqlite:///{Path(place) / 'state.db'}?durability={durability}&timeout=60"
        return measure_url(url, updating, setting, seconds)


def measure_url(url: str, updating: int, setting: int, seconds: float) -> dict[str, Any]:
    """One row. Raises an error if an acknowledged update is missing."""
    context = multiprocessing.get_context("spawn")
    answers, ready = context.Queue(), context.Barrier(updating + setting)
    kinds = ["update"] * updating + ["set"] * setting
    processes = [context.Process(target=work, args=(url, kind, ready, seconds, answers)) for kind in kinds]
    for process in processes:
        process.start()
    got = [answers.get(timeout=seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    with pp.SyncStore(url) as store:
        found = store.get("n")
    updates = [done for kind, done, *_ in got if kind == "update"]
    if not setting and found != sum(updates):
        raise RuntimeError(f"{sum(updates)} updates were acknowledged, {found} are there")
    took = sorted(each for *_, times, _ in got for each in times)
    return {
        "updates/s": round(sum(updates) / seconds),
        "least": min(updates),
        "most": max(updates),
        "least/most": round(min(updates) / max(updates), 2),
        "sets/s": round(sum(done for kind, done, *_ in got if kind == "set") / seconds),
        "conflicts": sum(conflicts for _, _, conflicts, *_ in got),
        "p50 ms": round(took[len(took) // 2] * 1000, 2),
        "p99 ms": round(took[len(took) * 99 // 100] * 1000, 1),
        "max ms": round(took[-1] * 1000, 1),
        "writes per CPU s": round(sum(done for _, done, *_ in got) / sum(used for *_, used in got)),
    }


def rows(urls: list[str], seconds: float, folder: str | None) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """The rows: the store, and the number of processes of both kinds."""
    for number, (updating, setting) in enumerate(WORLDS):
        for url in urls:
            own = f"{url}{'&' if '?' in url else '?'}store=hot-{os.getpid()}-{number}"
            yield url.partition(":")[0], updating, setting, measure_url(own, updating, setting, seconds)
        for durability in () if urls else ("process", "power"):
            yield durability, updating, setting, measure(durability, updating, setting, seconds, folder)


if __name__ == "__main__":
    given = argparse.ArgumentParser()
    given.add_argument("seconds", type=float, nargs="?", default=3.0)
    given.add_argument("folder", nargs="?")
    given.add_argument("--url", action="append", default=[])
    wanted = given.parse_args()
    for over, updating, setting, row in rows(wanted.url, wanted.seconds, wanted.folder):
        print(f"{over}, {updating} updating, {setting} setting: {json.dumps(row)}", flush=True)
