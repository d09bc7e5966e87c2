"""Recorded histories of every kind of stack have the guarantees of docs/reference.md; `make histories` makes many more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from histories import LIVES, MIXES, PROCESSES, PROMISED, SKEWS, STACKS, History, Recorder, recorded

SCRIPT = Path(__file__).parent / "histories.py"


@pytest.mark.crash
def test_histories_of_every_stack_keep_what_is_promised() -> None:
    """Threads, tasks, loops, processes, kills, stops and cancellations: no anomaly is found except skews with reads in `prep`."""
    quietly = ("-W", "ignore:This process:DeprecationWarning")  # of a fork beside threads
    command = [sys.executable, *quietly, str(SCRIPT), "2000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    histories = [(stack, mix) for stack in STACKS for mix in MIXES]
    histories += [(f"{stack}, processes", mix) for stack, mixes in PROCESSES.items() for mix in mixes]
    histories += [(f"{stack}, lives", mix) for stack, mixes in LIVES.items() for mix in mixes]
    for stack, mix in histories:
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{stack}, {mix}: "))
        assert int(re.search(r"'ok': (\d+)", line)[1]) > 20, line  # type: ignore[index]
        if mix != "default":
            assert line.endswith("found nothing")
    assert "0 broken promises" in done.stdout


def test_only_reads_in_prep_may_be_skewed_by_default() -> None:
    """All other ways of using a store are serializable."""
    assert {use for use, allowed in PROMISED.items() if allowed} == {"default"}
    assert all("G0" not in name and "G1" not in name for name in SKEWS)


@pytest.mark.parametrize("uses", [["transaction"], ["default"]])
def test_a_broken_guarantee_is_found(tmp_path: Path, uses: list[str]) -> None:
    """From the file of a killed process: a loss is found, an unknown outcome is not taken for a loss."""
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


def test_the_state_after_a_kill_is_checked(tmp_path: Path) -> None:
    """The end of a history may be lost, even if it was acknowledged; its beginning, and what was flushed, may not."""
    recorder = Recorder(1, tmp_path / "log")
    for element in (1, 2, 3):
        running = recorder.begin("update")
        running._note(ops=[["r", "k", [*range(element)]], ["a", "k", element]])
        running.ended("ok")
        if element == 1:
            recorder.begin("flush").ended("ok")
    runnings = recorded(tmp_path / "log")
    flushed = next(each.start for each in runnings if each.name.startswith("flush"))

    def found(*left: int) -> set[str]:
        return {*History(runnings, {"k": left}, {"k": [0]}, flushed).judged(["update"])[1]}

    assert found(0, 1) == found(0, 1, 2) == found(0, 1, 2, 3) == set()
    assert found(0) == {"lost-flush"}
    assert "hole" in found(0, 1, 3)
    assert "lost-append" in History(runnings, {"k": [0, 1]}, {"k": [0]}).judged(["update"])[1]


def test_an_item_that_was_done_twice_or_never_is_found(tmp_path: Path) -> None:
    """By a killed process and by the one that continued its fan-out."""

    def found(first: list[int], second: list[int], final: list[int]) -> set[str]:
        runnings = []
        for number, elements in enumerate((first, second)):
            log = tmp_path / f"log.{len([*tmp_path.iterdir()])}"
            running = Recorder(number, log).begin("durable fan-out", "item 0")
            for element in elements:
                running._note(ops=[["a", "k", element]])
            if number:
                running.ended("ok")
            runnings += recorded(log)
        return {*History(runnings, {"k": final}).judged(["durable fan-out"])[1]}

    assert found([1], [2], [2]) == found([1], [], [1]) == set()
    assert "twice" in found([1], [2], [1, 2])
    assert "never" in found([1], [2], [])
