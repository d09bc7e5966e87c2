"""Writes of a durable run that fail in every possible way: a part of what `lost_answers.py` tries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "lost_answers.py"


def test_each_effect_takes_place_once_whatever_happens_to_a_write() -> None:
    """A fault at each write of a run, then many of any kind in one run; the run is started again until it has ended."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "30", "1", "7"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0
    for outcome in ("single faults", "OutcomeUnknownError", "RunFencedError", "Killed", "CancelledError", "StoreError"):
        assert outcome in done.stdout
