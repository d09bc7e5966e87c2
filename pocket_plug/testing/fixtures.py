"""Fixtures for pytest, for those who ask for them: `pytest_plugins = ["pocket_plug.testing.fixtures"]` in `conftest.py`."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pocket_plug.plugins.pocket import Pocket, default_pocket

from . import isolation
from .servers import Server, postgres, valkey


@pytest.fixture
def fresh_pocket() -> Generator[None]:
    """The process has no default Pocket when the test begins, and is as it was when it has ended (`isolation`)."""
    with isolation.fresh_pocket():
        yield


@pytest.fixture
def pocket(fresh_pocket: None) -> Pocket:
    """The default Pocket, of this test alone, configured by the file that `POCKET_PLUG_CONFIG` names as it begins, if any."""
    return default_pocket()


@pytest.fixture(scope="session")
def valkey_server() -> Generator[Server]:
    """A Valkey that runs for all of the session, for stores that have names of their own in it (`servers`)."""
    with valkey() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Generator[Server]:
    """The same of PostgreSQL."""
    with postgres() as server:
        yield server
