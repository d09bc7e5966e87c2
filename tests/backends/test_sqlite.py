"""The SQLite backend keeps every promise of the waist, and its own: durability, sharing, errors that name the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pocket_plug.backend import Backend
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.testing.contracts import BackendContract


class TestPower(BackendContract):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return lambda: SQLite(tmp_path / "state.db", durability="power")


class TestProcess(BackendContract):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return lambda: SQLite(tmp_path / "state.db", durability="process")
