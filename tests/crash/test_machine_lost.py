"""A machine lost in the middle of runs, and replaced by a backup: a part of what `machine_lost.py` tries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.crash

SCRIPT = Path(__file__).parent / "machine_lost.py"


def test_runs_continue_from_a_backup() -> None:
    """A worker is killed in the middle of 50 runs and its store removed. From a backup that was made while it worked, each run
    ends, and each effect is in the store once. What the backup has is not done again; what it lacks is.
    """
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "1", "50"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    assert "seed 1: 50 runs" in done.stdout
