"""A machine is lost in the middle of runs, and replaced by a backup: `python tests/crash/machine_lost.py SEED RUNS`.

A worker's process executes runs; each node has an effect outside (a line in a file) and writes to the store. A backup is made
while it works; later the process is killed and the store's files are removed.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pocket_plug import Graph, Node, Store, StoreWriter, SyncStore, Worker
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.cli import main as main_of_command
from pocket_plug.graph.running.context import idempotency_key
from pocket_plug.graph.runs import Runs, SyncRuns
from pocket_plug.store import parts

STEPS = ("reserve", "charge", "ship")
LEASE = 0.6
"""Seconds after which the runs of the lost machine are taken over."""
LEFT = ("state.db", "state.db-wal", "state.db-shm")
"""The files of a store."""


class Effect(Node[int, int], name="effect"):
    """Has an effect outside, and notes in the store that it was done."""

    async def exec(self, prepared: int) -> int:
        os.read(0, 1)  # wait for permission: so the process is killed in the middle, however fast it is
        print(idempotency_key(), flush=True)  # the effect outside: its reader sees it, whatever happens to this process
        return prepared

    async def post(self, store: StoreWriter, input: int, prepared: int, result: int) -> int:
        await store.update(f"effect:{idempotency_key()}", lambda times: times + 1, default=0)
        return result


first, second, third = (Effect().with_options(name=name) for name in STEPS)
GRAPH = Graph(first >> second >> third, name="order")


def work(url: str, runs: int) -> None:
    """A worker's process: it works until all runs have ended."""

    async def main() -> None:
        async with Store(url) as store:
            worker = Worker([GRAPH], store=store, concurrency=4, lease=LEASE)
            working = asyncio.create_task(worker.run())
            for number in range(runs):
                await Runs(store).wait(f"r{number}")
            worker.stop()
            await working

    asyncio.run(main())


@dataclass
class Lost:
    """The result of one loss."""

    finished_before: set[str]
    """The runs that had finished before the backup was begun."""
    outside: Counter[str]
    """How often each effect was done outside, by its idempotency key: until the kill, and after."""
    after: Counter[str]
    """Those of the process that worked on the backup."""
    in_backup: dict[str, int]
    """The effects that the backup has, and how often each was recorded."""
    in_store: dict[str, int] = field(default_factory=dict[str, int])
    """The same in the end."""
    states: Counter[str] = field(default_factory=Counter[str])
    """In how many runs which state is, in the end."""


def lose(folder: Path, seed: int, runs: int) -> Lost:
    """Back up while a worker works, kill it somewhat later, lose its store, and continue with the backup."""
    chance = random.Random(seed)
    effects = runs * len(STEPS)
    backed_up_at = chance.randrange(effects // 4, effects // 2)
    killed_at = chance.randrange(backed_up_at + effects // 8, effects * 3 // 4)
    url, backup = f"sqlite:///{folder}/state.db?durability=process", folder / "backup.db"
    with SyncStore(url) as store:
        for number in range(runs):
            GRAPH.submit_sync(number, run_id=f"r{number}", store=store)
    outside: Counter[str] = Counter()
    finished: set[str] = set()
    with _worker(url, runs, subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdin is not None
        _let(worker.stdin, backed_up_at)
        for line in worker.stdout:
            outside[line.strip()] += 1
            if outside.total() == backed_up_at:
                _let(worker.stdin, killed_at - backed_up_at)  # so it writes while the backup is made
                finished = _back_up(url, backup)
            if outside.total() == killed_at:
                worker.kill()
    for name in LEFT:
        (folder / name).unlink(missing_ok=True)
    with SyncStore(f"sqlite:///{backup}") as store:
        in_backup = _effects(store)
    _restore(backup, folder / "state.db")
    with _worker(url, runs, subprocess.DEVNULL) as worker:
        after = Counter(worker.communicate()[0].split())
    assert worker.returncode == 0
    lost = Lost(finished, outside, after, in_backup)
    with SyncStore(url) as store:
        lost.in_store = _effects(store)
        lost.states = Counter(run.state for run in SyncRuns(store).list(limit=runs).runs)
    return lost


def _worker(url: str, runs: int, stdin: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--work", url, str(runs)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True)


def _let(stdin: IO[str], effects: int) -> None:
    """Let a worker do this many more effects."""
    stdin.write("." * effects)
    stdin.flush()


def _back_up(url: str, file: Path) -> set[str]:
    """Returns the runs that had finished before."""
    with SyncStore(url) as store:
        finished = {run.run_id for run in SyncRuns(store).list(state="finished", limit=10_000).runs}
        backend = parts(store.stack)[-1]
        assert isinstance(backend, SQLite)
        backend.backup(file)
    return finished


def _restore(backup: Path, to: Path) -> None:
    """As the documentation says: by the same command, with source and target exchanged."""
    with redirect_stderr(io.StringIO()):
        assert main_of_command(["store", "--url", f"sqlite:///{backup}", "backup", str(to)]) == 0


def _effects(store: SyncStore) -> dict[str, int]:
    return {key.removeprefix("effect:"): store.get(key) for key in store.keys("effect:")}


def faults(lost: Lost, runs: int) -> list[str]:
    """The guarantees that were broken; there should be none."""
    keys = {f"r{number}/{name}#1" for number in range(runs) for name in STEPS}
    found: list[str] = []
    if lost.states != {"finished": runs}:
        found.append(f"the runs ended as {dict(lost.states)}")
    if lost.in_store != dict.fromkeys(keys, 1):
        found.append("an effect is not recorded exactly once")
    if set(lost.in_backup.values()) - {1}:
        found.append("the backup has an effect twice")
    before = {f"{run}/{name}#1" for run in lost.finished_before for name in STEPS}
    if before - lost.in_backup.keys():
        found.append("a run that had finished before the backup is not in it as a whole")
    if again := lost.after.keys() & lost.in_backup.keys():
        found.append(f"what the backup has was done again: {sorted(again)[:3]}")
    if lost.after.keys() != keys - lost.in_backup.keys():
        found.append("what the backup does not have was not done after it")
    if set(lost.outside) | set(lost.after) != keys:
        found.append("an effect was never done outside")
    return found


def main(seed: int = 0, runs: int = 500) -> int:
    """Print the result; exit code 1 if a guarantee was broken."""
    with tempfile.TemporaryDirectory() as folder:
        lost = lose(Path(folder), seed, runs)
    wrong = faults(lost, runs)
    twice = lost.outside.keys() & lost.after.keys()
    print(
        f"seed {seed}: {runs} runs, {len(lost.finished_before)} finished before the backup, which has {len(lost.in_backup)} of "
        f"{runs * len(STEPS)} effects; {lost.outside.total()} were done before the kill, {len(twice)} of them again after it"
    )
    for fault in wrong:
        print("  " + fault)
    return bool(wrong)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], int(sys.argv[3]))
        sys.exit(0)
    sys.exit(main(*map(int, sys.argv[1:])))
