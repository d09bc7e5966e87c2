"""The exit codes of all commands follow the rule in the reference: 2 is a wrong command line, 1 a failure of its work."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pocket_plug.cli import COMMANDS, main

APP = """
import pocket_plug as pp

@pp.node
def fails(n: int) -> int:
    raise ValueError(n)

@pp.node
def spells(n: str) -> str:
    return n

graph = pp.Graph(fails, name="failing", store=pp.Store("sqlite:///state.db"))
misfit = pp.Graph(fails.with_options(name="first") >> spells, name="misfit")
"""
STORE = "--url=sqlite:///state.db"
NO_STORE = "--url=sqlite:///no.db"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A program, its store with a run that has failed, and a configuration file with a mistake."""
    monkeypatch.chdir(tmp_path)
    Path("app.py").write_text(APP)
    Path("wrong.toml").write_text("[store]\nlayers = ['nowhere']\n")
    Path("there.db").write_text("")
    assert main(["run", "app.py", "--input", "1", "--run-id", "r"]) == 1
    assert "ValueError: 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "run no.py",
        "run app.py --input @no.json",
        "graph no.py",
        "worker no.py",
        f"worker app.py {NO_STORE} --once",
        "config check no.toml",
        "new layer there.db",
        *(f"runs {NO_STORE} {rest}" for rest in ("ls", "show r", "cancel r", "retry r", "rm r", "prune --older 1d")),
        *(f"runs {NO_STORE} {rest}" for rest in ("check app.py", "resume app.py r", "answer app.py r 1")),
        f"runs {STORE} resume no.py r",
        f"runs {STORE} answer no.py r 1",
        f"runs {STORE} check no.py",
        *(f"store {NO_STORE} {rest}" for rest in ("ls", "get k", "rm k", "export", "check", "stats", "backup new.db")),
        f"store {STORE} import no.jsonl",
        f"store {STORE} backup there.db",
        f"store {STORE} backup no/new.db",
        *(f"trace {rest} --file no.jsonl" for rest in ("ls", "stats", "show", "diff", "rm --all", "rm r")),
        "trace ls",  # and nothing has been traced in this folder
        "trace send no.jsonl --to http://localhost:4318",
    ],
)  # fmt: skip
def test_a_file_that_can_not_be_used_is_wrong_usage(line: str) -> None:
    """It doesn't exist, or it exists although it was to be created: the program, the store, the traces or another file."""
    assert main(line.split()) == 2


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_an_invalid_option_is_wrong_usage(command: str) -> None:
    """For every command."""
    assert main([command, "--sideways"]) == 2


@pytest.mark.parametrize(
    "line",
    [
        "run app.py --input 1",
        "run app.py:misfit --input 1",
        "run app.py --input 2 --run-id r",
        "graph app.py:misfit",
        "config check wrong.toml",
        f"runs {STORE} resume app.py r",
        f"runs {STORE} answer app.py r 1",
        *(f"runs {STORE} {rest}" for rest in ("show no", "cancel no", "retry no", "rm no", "resume app.py no")),
        *(f"store {STORE} {rest}" for rest in ("get no", "rm no")),
        "store --url=sqlite:///app.py ls",
        "store --url=sqlite:///app.py check",
    ],
)
def test_what_fails_or_is_found_wrong_is_a_failure(line: str) -> None:
    """A run or a check, or a run or a key that doesn't exist, or is in a state that doesn't allow what was asked for."""
    assert main(line.split()) == 1


def test_a_run_or_its_trace_that_does_not_exist_or_has_not_the_state_is_a_failure() -> None:
    """The same command may succeed later, or with another run."""
    Path("t.jsonl").write_text("")
    for rest in (["show", "no"], ["show"], ["rm", "no"], ["diff"]):
        assert main(["trace", *rest, "--file", "t.jsonl"]) == 1
    assert main(["runs", STORE, "cancel", "r"]) == 0
    assert main(["runs", STORE, "retry", "r"]) == 1


@pytest.mark.parametrize("options", [[], ["--trace"]])
def test_process_1_of_a_container_ends_at_a_sigterm(options: list[str]) -> None:
    """The kernel drops a signal that has no handler there. Telemetry is flushed before, as in any other process."""
    Path("stopped.py").write_text("""
import os, signal
import pocket_plug as pp

@pp.node
def stops(n: int) -> int:
    os.kill(int(os.environ["PID"]), signal.SIGTERM)
    return n

graph = pp.Graph(stops, name="stopped")
""")
    code = "\n".join(
        (
            "import os, signal",
            "os.environ['PID'] = str(os.getpid())",
            "os.getpid, signal.raise_signal = lambda: 1, lambda number: None",
            "from pocket_plug.cli import main",
            f"main(['run', 'stopped.py', '--input', '1', *{options}])",
        )
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, ""), ended.stderr
    traces = Path(".pocket_plug/traces.jsonl").read_text("utf-8") if options else "interrupted"
    assert "interrupted" in traces
