"""`pocket-plug runs prune`: what it removes and prints, and how it uses [runs] of the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import Graph, SyncRuns, SyncStore, node
from pocket_plug.cli import main
from pocket_plug.plugins.pocket import set_default_pocket
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Put
from pocket_plug.testing.clock import FakeClock

URL = "sqlite:///state.db?durability=process"
PROGRAM = """
import pocket_plug as pp

graph = pp.Graph(pp.node(lambda word: word, name="say"), name="say")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a store that has 30 old finished runs, and 3 of today."""
    monkeypatch.chdir(tmp_path)
    configure("")
    finish("old", 30, FakeClock())
    finish("new", 3, None)
    set_default_pocket(None)


def configure(runs: str) -> None:
    Path("pocket.toml").write_text(f'[store]\nurl = "{URL}"\n{runs}')


def finish(name: str, times: int, clock: Any) -> None:
    with SyncStore(URL, clock=clock) as store:
        say = Graph(node(lambda word: word, name="say"), store=store, name="say")
        for number in range(times):
            say.run_sync("x", run_id=f"{name} {number}")


@pytest.fixture
def prune(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str, code: int = 0) -> str:
        set_default_pocket(None)
        capsys.readouterr()
        assert main(["runs", "prune", *arguments]) == code
        out, err = capsys.readouterr()
        return out if code == 0 else err

    return run


def test_it_says_what_it_has_removed(prune: Any) -> None:
    """A dry run first, which removes nothing; then the same runs are removed; then there are none left."""
    assert prune("--older", "30d", "--keep", "5", "--dry-run") == "28 runs (112 records) would be removed\n"
    assert json.loads(prune("--older", "30d", "--json", "--dry-run"))["runs"] == 30
    assert prune("--older", "30d", "--keep", "5").startswith("removed 28 runs (112 records)")
    assert prune("--older", "30d", "--graph", "other") == "removed 0 runs (0 records)\n"
    assert prune("--older", "30d").startswith("removed 2 runs (8 records)")
    assert json.loads(prune("--older", "30d", "--json")) == {"runs": 0, "records": 0, "freed": 0, "unreadable": 0}
    assert prune("--keep", "2").startswith("removed 1 run (4 records)")


def test_without_options_the_policy_of_the_configuration_is_used(prune: Any) -> None:
    """Its policy is used; an option for the state restricts it, one for the age replaces it; without a policy, options are
    required.
    """
    assert "give --older, --keep or both, or configure [runs]" in prune(code=2)
    configure('[runs]\nolder = "30d"\nkeep = 10\nstates = ["finished"]\n')
    assert prune("--dry-run").startswith("23 runs")
    assert prune("--dry-run", "--state", "failed", "--state", "cancelled").startswith("0 runs")
    assert prune("--dry-run", "--older", "30d").startswith("30 runs")
    assert prune().startswith("removed 23 runs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--older", "soon"], "TIME can't be 'soon'"),
        (["--keep", "-1"], "Invalid value for '--keep'"),
        (["--keep", "1", "--state", "suspended"], "Invalid value for '--state'"),
    ],
)
def test_invalid_options_are_refused(prune: Any, arguments: list[str], message: str) -> None:
    """With exit code 2."""
    assert message in prune(*arguments, code=2)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("[runs]\n", "pocket.toml [runs]: neither older nor keep is given; give one of them, or both"),
        ("[runs]\nolder = true\n", "pocket.toml [runs]: older can't be True"),
        ('[runs]\nkeep = "1"\n', "pocket.toml [runs]: keep must be a number of runs, 0 or more, not"),
        ('[runs]\nkeep = 1\nstates = ["running"]\n', "pocket.toml [runs]: runs of the state 'running' can't be pruned"),
        ('[runs]\nkeep = 1\nstates = "failed"\n', "pocket.toml [runs].states must be a list of names"),
        ("[runs]\nyounger = 1\n", "pocket.toml [runs]: there is no 'younger' here"),
    ],
)
def test_an_invalid_policy_is_refused(prune: Any, runs: str, message: str) -> None:
    """The error names the file and the table."""
    configure(runs)
    assert message in prune(code=2)


def test_damaged_runs_are_reported(prune: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """They stay, and all others are pruned."""
    with SyncStore(URL) as store:
        drive(store.stack.write([Put("pocket:run:old 7", None)]))
    assert json.loads(prune("--older", "30d", "--json"))["unreadable"] == 1
    assert main(["runs", "prune", "--older", "30d"]) == 0
    assert capsys.readouterr().err == "kept, since damaged: 1 run; `pocket-plug runs rm` removes it all the same\n"


def test_a_worker_applies_the_policy(capsys: pytest.CaptureFixture[str]) -> None:
    """With --once in one pass, when no run is ready."""
    configure('[runs]\nolder = "30d"\n')
    Path("app.py").write_text(PROGRAM)
    set_default_pocket(None)
    assert main(["worker", "app.py", "--once"]) == 0
    capsys.readouterr()
    with SyncStore(URL) as store:
        assert {info.run_id for info in SyncRuns(store).list().runs} == {"new 0", "new 1", "new 2"}
