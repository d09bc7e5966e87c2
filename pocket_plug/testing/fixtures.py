"""Fixtures for pytest, for those who ask for them: `pytest_plugins = ["pocket_plug.testing.fixtures"]` in `conftest.py`."""

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
    """So that a phase which was patched after its graph was made, and would be ignored, is an error of the run."""
    former, validation.is_kept = validation.is_kept, False
    yield
    validation.is_kept = former


@pytest.fixture
def fresh_pocket() -> Generator[None]:
    """The process has no default Pocket when the test begins, and is as it was when it has ended (`isolation`)."""
    with isolation.fresh_pocket():
        yield


@pytest.fixture
def pocket(fresh_pocket: None) -> Pocket:
    """The default Pocket, of this test alone, configured by the file that `POCKET_PLUG_CONFIG` names as it begins, if any."""
    return default_pocket()


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until the test moves it; the fixture `store` goes by it."""
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> Store:
    """A store in memory, empty, that goes by `clock`. `store.sync` has the same names without await."""
    return Store(clock=clock)


@pytest.fixture
def spans() -> Generator[SpanCapture]:
    """The spans of this test: `spans.tree()`."""
    with SpanCapture() as capture:
        yield capture


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
