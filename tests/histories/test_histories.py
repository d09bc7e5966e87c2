"""Recorded histories of every kind of stack keep what docs/reference.md promises; `make histories` makes many more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from histories import LIVES, MIXES, PROCESSES, PROMISED, SKEWS, STACKS, History, Recorder, recorded

SCRIPT = Path(__file__).parent / "histories.py"


def test_histories_of_every_stack_keep_what_is_promised() -> None:
    """Threads, tasks, loops, processes, kills, stops and cancellations: nothing is found but the skews of `prep`."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "2000"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    histories = [(stack, mix) for stack in STACKS for mix in MIXES]
    histories += [(f"{stack}, processes", mix) for stack, mixes in PROCESSES.items() for mix in mixes]
    histories += [(f"{stack}, lives", mix) for stack, mixes in LIVES.items() for mix in mixes]
    for stack, mix in histories:
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{stack}, {mix}: "))
        assert int(re.search(r"'ok': (\d+)", line)[1]) > 40, line  # type: ignore[index]
        if mix != "default":
            assert line.endswith("found nothing")
    assert "0 broken promises" in done.stdout


def test_only_reads_of_prep_by_default_may_be_skewed() -> None:
    """Every other use of a store promises that it ran as if alone."""
    assert {use for use, allowed in PROMISED.items() if allowed} == {"default"}
    assert all("G0" not in name and "G1" not in name for name in SKEWS)


@pytest.mark.parametrize("uses", [["transaction"], ["default"]])
def test_a_broken_promise_is_told(tmp_path: Path, uses: list[str]) -> None:
    """Read from the file of a process that was killed: what was lost is found, what is unknown is not taken for lost."""
    recorder = Recorder(1, tmp_path / "log")
    ops = [["r", "k", []], ["a", "k", 1]], [["r", "k", []], ["a", "k", 2]], [["a", "k", 3]]
    for number, each in enumerate(ops):
        running = recorder.begin("transaction")
        running._note(ops=each)
        if number < 2:
            running.ended("ok")
    with (tmp_path / "log").open("a") as log:
        log.write('{"name": "cut o')
    findings, beyond = History(recorded(tmp_path / "log"), {"k": [2]}).judged(uses)
    assert {"lost-update", "lost-append"} <= beyond.keys()
    assert len(findings.found["lost-append"]) == 1
