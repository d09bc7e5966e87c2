"""The kit's fixtures, in a separate pytest: available on request, and by default absent."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

TESTS = """
import pytest
import pocket_plug as pp
from pocket_plug.plugins import default_pocket


class Pay(pp.Node[int, int]):
    async def exec(self, amount: int) -> int:
        return amount


graph = pp.Graph(Pay(), name="paying")


def test_a_store_goes_by_the_clock(store, clock):
    store.sync.set("token", "abc", ttl="10m")
    clock.advance(600)
    assert not store.sync.has("token")


@pytest.mark.parametrize("time", [1, 2])
def test_a_store_is_empty(store, time):
    assert store.sync.update("visits", lambda visits: visits + 1, default=0) == 1


def test_spans_are_those_of_the_test(spans):
    assert graph.run_sync(7) == 7
    assert spans.tree() == [("run paying", [("node pay", ["exec pay"])])]


def test_a_pocket_is_the_default_one(pocket):
    assert default_pocket() is pocket


def test_a_late_patch_is_said(monkeypatch):
    monkeypatch.setattr(Pay, "exec", lambda self, amount: 0)
    with pytest.raises(pp.GraphError, match="changed after the graph was made"):
        graph.run_sync(7)


def test_a_graph_is_what_it_was():
    assert graph.run_sync(7) == 7
"""


def test_they_do_what_they_say(tmp_path: Path) -> None:
    """Loaded by `-p`, as by `pytest_plugins`."""
    (tmp_path / "test_them.py").write_text(TESTS)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "pocket_plug.testing.fixtures", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    assert "7 passed" in ran.stdout


def test_they_are_not_loaded_by_default() -> None:
    """As an entry point of pytest, they would load pocket_plug in every project that is tested."""
    assert not [point for point in entry_points(group="pytest11") if point.value.startswith("pocket_plug")]
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "pytest11" not in project["entry-points"]
    assert any(line.startswith("pytest>=") for line in project["optional-dependencies"]["testing"])
