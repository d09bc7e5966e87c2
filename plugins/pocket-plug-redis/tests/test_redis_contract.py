"""The promises of a backend, of `Runs` and of workers, on a real server."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pocket_plug_redis import Redis

from pocket_plug import Backend
from pocket_plug.testing.contracts import BackendContract


class TestRedis(BackendContract):
    """On one data set of its own for each test."""

    @pytest.fixture
    def make_backend(self, fresh_url: Callable[[str], str]) -> Callable[[], Backend]:
        return lambda: Redis.from_url(fresh_url(""))
