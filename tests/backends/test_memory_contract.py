"""Memory keeps every promise of the waist."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pocket_plug.store.backend import Backend
from pocket_plug.store.memory import Memory
from pocket_plug.testing.contracts import BackendContract


class TestMemory(BackendContract):
    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        return Memory
