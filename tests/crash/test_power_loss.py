"""What an acknowledged write survives if the machine loses power: exactly what each `durability` guarantees."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pocket_plug.backends.sqlite import Durability, SQLite
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Put

if TYPE_CHECKING:
    from conftest import LosingDisk

pytestmark = pytest.mark.crash

Told = tuple[str, int, int]
"""Who was told of a write, the number written, and its version."""


async def work(path: Path, durability: Durability, disk: LosingDisk, told: list[Told]) -> None:
    """Three tasks write, each two keys at once, so much that the log is moved into the file several times."""
    backend = SQLite(path, durability=durability)
    await backend.open()
    chance = random.Random(3)

    async def count(name: str, writes: int) -> None:
        for number in range(1, writes + 1):
            ballast = Put(f"ballast:{name}:{number % 4}", chance.randbytes(150_000))
            version = await backend.write([Put(f"left:{name}", number), ballast, Put(f"right:{name}", number)])
            told.append((name, number, version))
            disk.log.append(len(told))  # this many have been acknowledged by now

    await asyncio.gather(*(count(name, 25) for name in "abc"))
    await backend.close()


def state_of(path: Path) -> tuple[dict[str, Any], int]:
    """The state after the failure, read by an ordinary SQLite, and the version of its last write; the file is intact and
    writable.
    """
    backend = SQLite(path)
    drive(backend.open())
    names = [f"{side}:{name}" for side in ("left", "right") for name in "abc"]
    entries = drive(backend.read_many(names))
    version = max((entry.version for entry in entries.values()), default=0)
    before = drive(backend.version())
    assert drive(backend.write([Put("after", 1)])) > before >= version
    drive(backend.close())
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return {key: entry.value for key, entry in entries.items()}, version


def fail_often(
    folder: Path, durability: Durability, disk: LosingDisk, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """The number of failures, and after how many of them something acknowledged was missing."""
    live, left = folder / "live", folder / "left"
    left.mkdir()
    told: list[Told] = []
    with disk.recording(monkeypatch):
        asyncio.run(work(live / "state.db", durability, disk, told))
    chance = random.Random(5)
    steps = len(disk.log)
    moments = {*chance.sample(range(steps), 200), *chance.sample(range(40), 20)}  # also while the file is created
    moved = [what for file, what in (each for each in disk.log if isinstance(each, tuple)) if file == "state.db"]
    assert moved.count("sync") > 3, "the log must have been moved into the file"
    missing = 0
    for noted in disk.power_failures(left, moments, chance):
        found, version = state_of(left / "state.db")
        # No write is there in part, or without an earlier one: it is the state of some moment.
        expected = {
            f"{side}:{name}": max(numbers)
            for name in "abc"
            if (numbers := [number for who, number, written in told if who == name and written <= version])
            for side in ("left", "right")
        }
        assert found == expected
        acknowledged = told[: noted[-1]] if noted else []
        missing += any(written > version for _, _, written in acknowledged)
    return len(moments), missing


def test_power_loses_nothing_acknowledged(
    tmp_path: Path, losing_disk: LosingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`power`: at any moment all unsynced data may be lost, and no acknowledged write is missing."""
    failures, missing = fail_often(tmp_path, "power", losing_disk, monkeypatch)
    assert failures > 200
    assert missing == 0


def test_process_may_lose_the_tail_and_stays_whole(
    tmp_path: Path, losing_disk: LosingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`process`: the last writes may be missing (here they are), but the file shows the state of one moment."""
    failures, missing = fail_often(tmp_path, "process", losing_disk, monkeypatch)
    assert missing > failures / 4
