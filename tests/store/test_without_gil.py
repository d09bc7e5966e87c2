"""A Python without the GIL: a lock hides the half of a write from readers. Simulated, since it needs another build of Python."""

from __future__ import annotations

import subprocess
import sys

import pytest

READS = """
import sys
sys._is_gil_enabled = lambda: {has_gil}

import pocket_plug as pp
from pocket_plug.layers import Bounding
from pocket_plug.store.memory import Memory

taken = []

class Noted:
    def __init__(self, lock):
        self.lock = lock

    def __enter__(self):
        taken.append("taken")
        self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()

class Own(Memory):
    async def read(self, key):
        return await super().read(key)

memory = {memory}()
store = pp.SyncStore(memory, layers={layers})
store.set("a", 1)
memory.lock = Noted(memory.lock)
print(store.get("a"), store.get("b"), len(taken))
"""


@pytest.mark.parametrize("layers", ["[]", "[Bounding(max_entries=2)]", "[Bounding(max_entries=2, ttl=60), 'metrics']"])
@pytest.mark.parametrize("memory", ["Memory", "Own"])
@pytest.mark.parametrize("has_gil", [True, False])
def test_a_read_in_memory_takes_the_lock_without_the_gil_only(has_gil: bool, memory: str, layers: str) -> None:
    """Also in a class of one's own that reads one key at a time."""
    script = READS.format(has_gil=has_gil, memory=memory, layers=layers)
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"1 None {0 if has_gil else 2}\n"
