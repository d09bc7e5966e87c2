"""A signal handler raises an exception, at any place: the store still works, and has all of the write or nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "interrupts.py"


def campaign(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 broke something" in done.stdout


@pytest.mark.parametrize(
    "names",
    [
        ["memory", "entries", "bytes", "told"],
        ["observed"],
        [
            "process/update",
            "process/close",
            "process/work",
            "through/many",
            "through/open",
            "behind/many",
            "behind/close",
        ],
    ],
    ids=lambda names: names[0].split("/")[0],
)
def test_an_interrupt_leaves_the_store_whole_and_working(names: list[str]) -> None:
    """Some of the places of each use, and some moments by a timer; the script tries all."""
    campaign("--steps", "6", "--random", "2", *names)


def test_no_run_hangs_where_a_handler_raises_within_asyncio() -> None:
    """`run_sync` makes the loop, so it ends at whatever place of asyncio's code the exception comes; a durable run can be
    resumed.
    """
    campaign("--steps", "50", "--random", "5", "memory/run_in_loop", "power/fan_out_sync", "power/durable_fan_out")
