"""Workers over one SQLite file, killed and stopped: the contract that every shared backend inherits."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocket_plug.testing.workers_contract import WorkersContract

pytestmark = pytest.mark.crash


class TestSQLite(WorkersContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/state.db?durability=process"
