"""The PostgreSQL backend passes the contracts of backends, of backends that can watch, of durable runs and of workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator

import pytest
from pocket_plug_postgres import PostgreSQL

from pocket_plug.store.backend import Backend
from pocket_plug.testing.runs_contract import RunsContract
from pocket_plug.testing.server_contract import SECRET, ServerBackendContract
from pocket_plug.testing.servers import Server, postgres
from pocket_plug.testing.watch_contract import WatchContract
from pocket_plug.testing.workers_contract import WorkersContract

Make = Callable[[], Backend]


class TestBackend(ServerBackendContract):
    @pytest.fixture
    def server(self, shared_server: Server) -> Server:
        return shared_server

    @pytest.fixture
    def url(self, shared_server: Server, data_set: str) -> str:
        return f"{shared_server.url}?store={data_set}&durability=process"

    @pytest.fixture
    def guarded_url(self) -> Generator[str]:
        with postgres(password="another one", binaries=os.environ.get("POCKET_PLUG_POSTGRES")) as server:  # noqa: S106 - no secret
            yield server.url.replace("another one", SECRET)


class TestWatching(WatchContract):
    told_within = 2.0  # WATCH_EVERY and the timeout

    @pytest.fixture
    def make_backend(self, shared_server: Server, data_set: str) -> Make:
        return lambda: PostgreSQL(shared_server.url, store=data_set, durability="process", timeout=1)

    @pytest.fixture
    def server(self, shared_server: Server) -> Server:
        return shared_server


class TestRuns(RunsContract):
    @pytest.fixture
    def make_backend(self, instances: Make) -> Make:
        return instances


@pytest.mark.crash
class TestWorkers(WorkersContract):
    """The server is killed and stopped as well."""

    @pytest.fixture
    def url(self, shared_server: Server, data_set: str) -> str:
        return f"{shared_server.url}?store={data_set}&durability=process&timeout=2"

    @pytest.fixture
    def server(self, shared_server: Server) -> Server:
        return shared_server
