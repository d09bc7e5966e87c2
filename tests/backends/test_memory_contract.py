"""Memory passes the backend contract."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from pocket_plug.layers.bounding import Bounding
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Backend, Delete, Put
from pocket_plug.store.entry_table import EntryTable
from pocket_plug.store.memory import Memory
from pocket_plug.testing.contracts import BackendContract
from pocket_plug.testing.scenarios import keys_of


class TestMemory(BackendContract):
    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return Memory


def sorts_during(use: Callable[[], object]) -> int:
    """How often it sorts."""
    sorts = 0

    def note(_frame: FrameType, event: str, called: object) -> None:
        nonlocal sorts
        sorts += event == "c_call" and getattr(called, "__name__", "") in ("sorted", "sort")

    sys.setprofile(note)
    try:
        use()
    finally:
        sys.setprofile(None)
    return sorts


@pytest.mark.parametrize("bounds", [(), (Bounding(max_entries=5_000),)], ids=["memory", "bounded"])
def test_names_that_come_and_go_cost_no_sort_of_all(bounds: tuple[Bounding, ...]) -> None:
    """The first scan sorts. Afterwards a page is found without a sort, whatever was put, deleted or evicted before; in a queue
    too.
    """
    memory: Backend = Memory()
    for bounding in bounds:
        memory = bounding.build(memory)
    drive(memory.write([Put(f"k:{n:05}", n) for n in range(5_000)]))
    assert sorts_during(lambda: drive(keys_of(memory, limit=1))) == 1

    def use_as_a_queue() -> None:
        for n in range(5_000, 5_500):
            (first,) = drive(keys_of(memory, "k:", limit=1))
            assert first == f"k:{n - 5_000:05}"
            drive(memory.write([Delete(first), Put(f"k:{n:05}", n)]))
            assert drive(keys_of(memory, "k:", reverse=True, limit=1)) == [f"k:{n:05}"]

    assert sorts_during(use_as_a_queue) == 0


@pytest.mark.parametrize("many", [10, 1_000])
def test_the_order_of_names_has_no_dead_ones(many: int) -> None:
    """A few new names are inserted, many are sorted in; a scan never has to skip removed names."""
    table = EntryTable()
    table.apply([Put(f"{n:04}", 0) for n in range(4_000)], 1, 0.0)
    assert table.names() == sorted(table.entries)
    table.apply([Delete(f"{2 * n:04}") for n in range(many // 2)], 2, 0.0)
    table.apply([Put(f"{2 * n:04}+", 0) for n in range(many // 2)], 3, 0.0)
    assert table.moved
    assert table.names() == sorted(table.entries)
    assert not table.moved


def test_names_that_nobody_scans_take_no_memory() -> None:
    """Names that are added and removed after the last scan are forgotten once there are many; the next scan sorts all names."""
    table = EntryTable()
    table.apply([Put("staying", 0)], 1, 0.0)
    assert table.names() == ["staying"]
    most = 0
    for n in range(2_000):
        table.apply([Put(f"passing {n}", 0)], n, 0.0)
        table.apply([Delete(f"passing {n}")], n, 0.0)
        most = max(most, len(table.moved) + len(table.sorted or ()))
    assert most < 1_000
    table.apply([Put("new", 0)], 3_000, 0.0)
    assert table.names() == ["new", "staying"]
