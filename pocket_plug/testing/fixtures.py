"""Fixtures for pytest. To use them, write `pytest_plugins = ["pocket_plug.testing.fixtures"]` in `conftest.py`."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pocket_plug.graph.planning.plan import validation
from pocket_plug.plugins.pocket import Pocket, default_pocket
from pocket_plug.store.store import Store

from . import isolation
from .clock import FakeClock
from .servers import Server, postgres, valkey
from .spans import SpanCapture


@pytest.fixture(autouse=True)
def _each_run_is_validated() -> Generator[None]:
    """Make each run raise if a phase was patched after its graph was made: such a patch would be ignored."""
    former, validation.is_kept = validation.is_kept, False
    yield
    validation.is_kept = former


@pytest.fixture
def fresh_pocket() -> Generator[None]:
    """The process has no default Pocket when the test begins, and its former one after the test; see `isolation`."""
    with isolation.fresh_pocket():
        yield


@pytest.fixture
def pocket(fresh_pocket: None) -> Pocket:
    """A default Pocket for this test alone, with the configuration file that `POCKET_PLUG_CONFIG` names, if any."""
    return default_pocket()


@pytest.fixture
def clock() -> FakeClock:
    """A clock that only the test advances; the fixture `store` uses it."""
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> Store:
    """An empty store in memory, with the fixture `clock`. `store.sync` has the same methods without await."""
    return Store(clock=clock)


@pytest.fixture
def spans() -> Generator[SpanCapture]:
    """The spans of this test: `spans.tree()`."""
    with SpanCapture() as capture:
        yield capture


@pytest.fixture(scope="session")
def valkey_server() -> Generator[Server]:
    """A Valkey server that runs for the whole session. Give each test's store its own name in it (see `servers`)."""
    with valkey() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Generator[Server]:
    """A PostgreSQL server that runs for the whole session. Give each test's store its own name in it (see `servers`)."""
    with postgres() as server:
        yield server
