"""Memory passes the backend contract."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

import pytest

from pocket_plug.errors import ConflictError, StoreError
from pocket_plug.layers.bounding import Bounding
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Backend, Change, Delete, Put
from pocket_plug.store.entry_table import EntryTable
from pocket_plug.store.memory import Memory
from pocket_plug.testing.contracts import BackendContract
from pocket_plug.testing.interrupts import Between
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


BOUNDS = {
    "memory": (),
    "bounded": (Bounding(max_entries=2),),
    "bounded in bytes": (Bounding(max_bytes=10_000, on_evict=lambda *_: None),),
}


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_a_use_in_the_middle_of_another_is_done_or_refused(bounds: tuple[Bounding, ...]) -> None:
    """A signal's handler, a `__del__` or the end of a dropped coroutine may use the store in a thread that is just writing: it
    must not wait for itself, and must not change what the write has checked.
    """
    memory: Backend = Memory()
    for bounding in bounds:
        memory = bounding.build(memory)
    refused: list[str] = []

    def use() -> None:
        for operation in (memory.write([Put("a", "inner")]), memory.read_many(["a", "b"]), keys_of(memory)):
            try:
                drive(operation)
            except StoreError as error:
                refused.append(str(error))

    for changes in ([Put("a", "outer")], [Put("a", "outer"), Delete("b"), Put("b", 1)]):
        drive(memory.write([Put("a", 0), Put("b", 0)]))
        assert drive(keys_of(memory)) == ["a", "b"]
        for place in count(1):
            version, before = drive(memory.write([Put("a", 0)])), len(refused)
            with Between(place, use) as between:
                try:
                    drive(memory.write(changes, {"a": version}))
                    came_of = "outer"
                except ConflictError:
                    came_of = "inner"
            if not between.where:
                break
            entry = drive(memory.read("a"))
            assert entry is not None
            assert entry.value in ({"outer", "inner"} if came_of == "outer" else {"inner"}), between.where
            assert drive(keys_of(memory)) == ["a", "b"]
            assert len(refused) in (before, before + 2), between.where
    assert refused  # a read is done
    assert all("in the middle" in each for each in refused)


class Noting:
    """A value that notes in its store that it is gone."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def __del__(self) -> None:
        drive(self.backend.write([Put("last", "gone")]))


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("change", [Put("a", 1), Delete("a")], ids=["put", "delete"])
def test_a_value_that_writes_when_it_is_freed_is_told_so(
    bounds: tuple[Bounding, ...], change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python reports the error of a `__del__`. The write that has freed the value is done."""
    memory: Backend = Memory()
    for bounding in bounds:
        memory = bounding.build(memory)
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: reported.append(about.exc_value))
    drive(memory.write([Put("a", Noting(memory))]))
    drive(memory.write([change]))
    entry = drive(memory.read("a"))
    assert (entry and entry.value) == (1 if isinstance(change, Put) else None)
    assert drive(memory.read("last")) is None
    assert ["a value's `__del__`" in str(error) for error in reported] == [True]
