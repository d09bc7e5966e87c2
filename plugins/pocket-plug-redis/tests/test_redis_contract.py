"""The Redis backend passes the contracts of backends, of durable runs and of workers, on a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pocket_plug_redis import Redis

from pocket_plug import Backend
from pocket_plug.testing.runs_contract import RunsContract
from pocket_plug.testing.server_contract import SECRET, ServerBackendContract
from pocket_plug.testing.servers import Server, valkey
from pocket_plug.testing.workers_contract import WorkersContract


class TestRedis(ServerBackendContract):
    """On one data set of its own for each test."""

    @pytest.fixture
    def server(self, valkey_server: Server) -> Server:
        return valkey_server

    @pytest.fixture
    def url(self, fresh_url: Callable[[str], str]) -> str:
        return fresh_url("")

    @pytest.fixture
    def guarded_url(self) -> Iterator[str]:
        with valkey(password="the-right-one") as server:  # noqa: S106 - of a test's server
            yield server.url.replace("the-right-one", SECRET)


class TestRuns(RunsContract):
    """Durable runs, as over SQLite."""

    @pytest.fixture
    def make_backend(self, fresh_url: Callable[[str], str]) -> Callable[[], Backend]:
        return lambda: Redis.from_url(fresh_url(""))


@pytest.mark.crash
class TestWorkers(WorkersContract):
    """Workers are killed and stopped, and the server too."""

    RUNS, MOMENTS = 8, 4

    @pytest.fixture
    def server(self) -> Iterator[Server]:
        with valkey(options={"appendfsync": "no"}) as server:
            yield server

    @pytest.fixture
    def url(self, server: Server) -> str:
        return f"{server.url}?durability=process"
