"""What each test of the command line has to itself, since the commands run in the process of the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocket_plug.plugins.pocket import set_default_pocket


@pytest.fixture(autouse=True)
def of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A default Pocket, and the programs that it imports: the next test's may have the same names."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    set_default_pocket(None)
    yield
    set_default_pocket(None)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
