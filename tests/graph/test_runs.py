"""`Runs`: what a store's durable runs are, and what may be done to them; the promises over SQLite, and those of details."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pocket_plug.backends.sqlite import SQLite
from pocket_plug.store.backend import Backend
from pocket_plug.testing.runs_contract import RunsContract


class TestSQLite(RunsContract):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return lambda: SQLite(tmp_path / "state.db", durability="process")
