"""Each test has a Pocket of its own, and leaves nothing behind that another test would use."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import Graph, Pocket, Store, StoreClosedError, node
from pocket_plug.layers import logging, metrics, tracing
from pocket_plug.plugins.pocket import current_default, default_pocket, set_default_pocket
from pocket_plug.testing.fixtures import fresh_pocket, pocket
from pocket_plug.testing.isolation import fresh_pocket as block

__all__ = ["fresh_pocket", "pocket"]  # the fixtures, as a conftest.py would have them


@node
async def same(n: int) -> int:
    return n


LEAVES_MUCH = """
[store]
url = "sqlite:///state.db"
layers = ["tracing", "metrics"]
"""


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("layer", ["metrics", "logging"])
def test_two_tests_with_a_configuration_each(
    layer: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_pocket: None
) -> None:
    """Neither gets the other's store, whichever comes first."""
    (tmp_path / "pocket.toml").write_text(f'[store]\nlayers = ["{layer}"]')
    monkeypatch.setenv("POCKET_PLUG_CONFIG", str(tmp_path / "pocket.toml"))
    assert Graph(same).run_sync(1) == 1
    assert repr(default_pocket().store) == f"Store({layer.capitalize()}() > memory)"
    assert default_pocket().store.sync.update("visits", lambda visits: visits + 1, default=0) == 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a configuration that the environment names."""
    (tmp_path / "pocket.toml").write_text('[store]\nlayers = ["metrics"]')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POCKET_PLUG_CONFIG", "pocket.toml")
    return tmp_path


def test_the_pocket_of_a_test(folder: Path, pocket: Pocket) -> None:
    """It is the default one, with the configuration that another fixture has named."""
    assert pocket is default_pocket()
    assert repr(pocket.store) == "Store(Metrics() > memory)"


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_restored(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default Pocket and the process's settings, also after a failing test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POCKET_PLUG_CONFIG", "pocket.toml")
    (tmp_path / "pocket.toml").write_text(LEAVES_MUCH)
    mine = Pocket(autoload=False)
    was = current_default()
    set_default_pocket(mine)
    before = tracing.configure(), metrics.configure(), logging.configure()
    stores: list[Store] = []
    try:
        with block():
            assert current_default() is None
            made = default_pocket().__enter__()
            made.store.sync.set("a", 1)
            stores.append(made.store)
            tracing.configure(detail="debug", capture="full")
            metrics.configure(node_duration=False)
            logging.configure(events=False, exceptions=True)
            assert (tracing.configure(), metrics.configure(), logging.configure()) != before
            assert fails is False
    except AssertionError:
        assert fails
    assert current_default() is mine
    assert (tracing.configure(), metrics.configure(), logging.configure()) == before
    with pytest.raises(StoreClosedError):  # nothing is left open
        stores[0].sync.get("a")
    set_default_pocket(was)


def test_a_store_that_was_opened_on_a_loop_is_closed(folder: Path) -> None:
    """Though that loop has ended with the test that opened the store."""
    (folder / "pocket.toml").write_text('[store]\nurl = "sqlite:///state.db"')

    async def left_open() -> Any:
        store = default_pocket().store
        await store.open()
        await store.set("a", 1)
        return store

    with block():
        store = asyncio.run(left_open())
    with pytest.raises(StoreClosedError):
        store.sync.get("a")


def test_a_pocket_that_a_test_has_set_itself_is_closed_too(folder: Path) -> None:
    """A default of its own, and no default at all."""
    with block():
        set_default_pocket(Pocket("pocket.toml", autoload=False))
        own = default_pocket().store
    with pytest.raises(StoreClosedError):
        own.sync.get("a")
    was = current_default()
    with block():
        pass
    assert current_default() is was


def test_the_kit_needs_no_pytest() -> None:
    """Only contracts and fixtures do; an error says what is missing there."""
    code = """
import sys
sys.modules["pytest"] = None
import pocket_plug.testing.clock, pocket_plug.testing.spans
from pocket_plug.testing.isolation import fresh_pocket
with fresh_pocket():
    pass
try:
    import pocket_plug.testing.fixtures
except ImportError as error:
    print(error.name)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "pytest", "")


def test_a_project_asks_for_the_fixtures(tmp_path: Path) -> None:
    """They aren't loaded by default, and one line in a conftest.py loads them; a contract's asserts show what they found."""
    (tmp_path / "test_it.py").write_text("""
import sys
from pocket_plug.testing.contracts import BackendContract

def test_it(pocket):
    assert pocket.plugin("bounding").status == "active"

def test_rewritten():
    assert "pocket_plug.testing.contracts" in sys.modules
    assert "@pytest_ar" in vars(sys.modules["pocket_plug.testing.contracts"])
""")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    without = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "fixture 'pocket' not found" in without.stdout
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["pocket_plug.testing.fixtures"]\n')
    asked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stdout
    assert "2 passed" in asked.stdout
