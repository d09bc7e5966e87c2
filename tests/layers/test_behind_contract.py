"""Write-behind passes the backend contract: the queue itself, and stacks with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pocket_plug.backends.sqlite import SQLite
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.persistence import Persistence
from pocket_plug.layers.persistence.write_behind import WriteBehind
from pocket_plug.store.backend import Backend
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.contracts import BackendContract
from pocket_plug.testing.layer_contract import LayerContract


class TestQueueOverMemory(BackendContract):
    """The queue over a backend in memory; with room for one key, so that every write waits for the previous one."""

    @pytest.fixture
    def make_backend(self, clock: FakeClock) -> Callable[[], Backend]:
        def make() -> Backend:
            memory = Memory()
            memory.clock = clock
            return WriteBehind(memory, 1)

        return make


class TestQueueOverSQLite(BackendContract):
    """The queue over a file: what a close has written is there after a restart."""

    @pytest.fixture
    def make_backend(self, tmp_path: Path, clock: FakeClock) -> Callable[[], Backend]:
        def make() -> Backend:
            file = SQLite(tmp_path / "state.db", durability="process")
            file.clock = clock
            return WriteBehind(file, 100)

        return make


class TestStackOverSQLite(BackendContract):
    """A cache of three entries in front of the queue in front of a file."""

    @pytest.fixture
    def make_backend(self, tmp_path: Path, clock: FakeClock) -> Callable[[], Backend]:
        def make() -> Backend:
            near = Memory()
            near.clock = clock
            file = SQLite(tmp_path / "state.db", durability="process")
            return Persistence(to=file, mode="behind").build(Bounding(max_entries=3, ttl=30).build(near))

        return make


class TestBehindAroundACache(LayerContract):
    """The backend of the contract is the near tier."""

    def recipe(self) -> Layer:
        return Persistence(to=Memory(), mode="behind")

    # an error of the near tier in a write can't undo what is queued: tested in test_persistence
    test_errors_of_the_inner_one_pass_unchanged = None
    # both stacks of one recipe have one durable tier, which only one may lock: tested in test_write_behind
    test_two_stacks_of_one_recipe_share_nothing = None
