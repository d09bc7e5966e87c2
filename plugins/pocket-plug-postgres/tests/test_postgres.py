from __future__ import annotations

from collections.abc import Callable

import pytest
from pocket_plug_postgres import PostgreSQL

from pocket_plug.store.backend import Backend
from pocket_plug.testing.contracts import BackendContract


class TestPower(BackendContract):
    @pytest.fixture
    def make_backend(self, server: str, name: str) -> Callable[[], Backend]:
        return lambda: PostgreSQL(server, store=name)
