"""What write-behind keeps in a crash: if it is killed at any moment, the file has the state after one of the writes, or of a
flush.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from pocket_plug import SyncStore
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.layers import Bounding, Persistence
from pocket_plug.primitives.waiting import drive

pytestmark = pytest.mark.crash

# Each write has three keys. One of them is its number, so that the file shows which write was the last.
COUNTING = """
import asyncio, os, sys
from pocket_plug import Store
from pocket_plug.layers import Bounding, Persistence

async def main():
    persistence = Persistence(to=sys.argv[1], mode="behind", max_pending=int(sys.argv[2]))
    async with Store(layers=[persistence, Bounding(max_entries=5)]) as store:
        n = await store.get("number", 0)
        while True:
            n += 1
            async with store.transaction() as tx:
                await tx.set("number", n)
                await tx.set(f"k{n % 7}", n)
                if n % 5:
                    await tx.set(f"d{n % 3}", n)
                else:
                    await tx.delete(f"d{n % 3}")
            os.write(1, f"{n}\\n".encode())
            if not n % 100:
                await store.flush()
                os.write(1, b"flushed\\n")

asyncio.run(main())
"""


def state_after(number: int) -> dict[str, int]:
    """The result of this many writes to an empty store."""
    state: dict[str, int] = {}
    for n in range(1, number + 1):
        state |= {"number": n, f"k{n % 7}": n, f"d{n % 3}": n}
        if not n % 5:
            del state[f"d{n % 3}"]
    return state


@pytest.mark.parametrize("durability", ["power", "process"])
@pytest.mark.parametrize("max_pending", [6, 10_000])
def test_a_killed_process_loses_at_most_the_queue(tmp_path: Path, durability: str, max_pending: int) -> None:
    """Never a part of a write, never one without all earlier ones, never a flushed one; the store continues from there."""
    url = f"sqlite:///{tmp_path}/state.db?durability={durability}"
    moments = random.Random(23)
    highest = 0
    for _ in range(6):
        command = [sys.executable, "-c", COUNTING, url, str(max_pending)]
        acknowledged = flushed = 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            kill_after = moments.randrange(1, 500)
            for number, line in enumerate(child.stdout, 1):
                if line == "flushed\n":
                    flushed = acknowledged
                else:
                    acknowledged = int(line)
                if number == kill_after:
                    child.kill()
        assert child.returncode == -9

        with SyncStore(url) as store:
            found = store.get_many(list(store.keys()))
        number = found.get("number", 0)
        assert flushed <= number <= acknowledged + 1
        assert found == state_after(number)

        backend = SQLite(tmp_path / "state.db")
        drive(backend.open())
        version = drive(backend.version())
        drive(backend.close())
        assert version >= highest
        highest = version
    with SyncStore(layers=[Persistence(to=url, mode="behind"), Bounding(max_entries=5)]) as store:
        assert {key: store.get(key) for key in store.keys()} == state_after(number)
