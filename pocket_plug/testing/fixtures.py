"""Fixtures for pytest, for those who ask for them: `pytest_plugins = ["pocket_plug.testing.fixtures"]` in `conftest.py`."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pocket_plug.plugins.pocket import Pocket, default_pocket

from . import isolation


@pytest.fixture
def fresh_pocket() -> Generator[None]:
    """The process has no default Pocket when the test begins, and is as it was when it has ended (`isolation`)."""
    with isolation.fresh_pocket():
        yield


@pytest.fixture
def pocket(fresh_pocket: None) -> Pocket:
    """The default Pocket, of this test alone, configured by the file that `POCKET_PLUG_CONFIG` names as it begins, if any."""
    return default_pocket()
