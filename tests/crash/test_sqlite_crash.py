"""What an acknowledged write survives: a process killed at any moment, and others that write the same file."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from pocket_plug.backends.sqlite import SQLite
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Put

pytestmark = pytest.mark.crash

# Eight tasks count, each on two keys that are written together, and print each acknowledged write.
COUNTING = """
import asyncio, os, sys
from pocket_plug.store.backend import Put
from pocket_plug.backends.sqlite import SQLite

backend = SQLite(sys.argv[1], durability=sys.argv[2])

async def count(name):
    while True:
        entry = await backend.read(f"left:{name}")
        value, version = (entry.value, entry.version) if entry else (0, 0)
        changes = [Put(f"left:{name}", value + 1), Put(f"right:{name}", value + 1)]
        version = await backend.write(changes, {f"left:{name}": version})
        os.write(1, f"{name} {value + 1} {version}\\n".encode())
        await asyncio.sleep(0)

async def main():
    await backend.open()
    await asyncio.gather(*(count(name) for name in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_killed_process_loses_nothing_acknowledged(tmp_path: Path, durability: str) -> None:
    """Killed at random moments: every acknowledged write is there, complete, and later versions are higher."""
    path = tmp_path / "state.db"
    moments = random.Random(17)
    acknowledged: dict[str, int] = {}
    highest = 0
    for _ in range(5):
        command = [sys.executable, "-c", COUNTING, str(path), durability]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            kill_after = moments.randrange(1, 400)
            for number, line in enumerate(child.stdout, 1):
                name, value, version = line.split()
                assert int(value) > acknowledged.get(name, 0)
                acknowledged[name] = int(value)
                highest = max(highest, int(version))
                if number == kill_after:
                    child.kill()
        assert child.returncode == -9

        backend = SQLite(path)
        drive(backend.open())
        for name, value in acknowledged.items():
            left, right = drive(backend.read(f"left:{name}")), drive(backend.read(f"right:{name}"))
            assert left == right
            assert left is not None
            assert value <= left.value <= value + 1, "at most the one write that was under way may be there too"
            acknowledged[name] = left.value
        assert drive(backend.version()) >= highest
        assert drive(backend.write([Put("after the crash", 1)])) > highest
        drive(backend.close())
    assert len(acknowledged) == 8


INCREMENTING = """
import sys
from pocket_plug.store.backend import Put
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.errors import ConflictError
from pocket_plug.primitives.waiting import drive

print("ready", flush=True)
sys.stdin.readline()
backend = SQLite(sys.argv[1], durability=sys.argv[2], timeout=60)
drive(backend.open())
for _ in range(50):
    while True:
        entry = drive(backend.read("count"))
        value, version = (entry.value, entry.version) if entry else (0, 0)
        try:
            drive(backend.write([Put("count", value + 1)], {"count": version}))
            break
        except ConflictError:
            pass
drive(backend.close())
"""


def test_processes_that_share_a_file_lose_no_update(tmp_path: Path) -> None:
    """Four processes create a file at the same moment and increment one key: the sum is exact."""
    path = tmp_path / "state.db"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", INCREMENTING, str(path), durability],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for durability in ("power", "process", "power", "process")
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0] * 4, said
    backend = SQLite(path)
    drive(backend.open())
    entry = drive(backend.read("count"))
    drive(backend.close())
    assert entry is not None
    assert entry.value == 200
    assert entry.version >= 200
