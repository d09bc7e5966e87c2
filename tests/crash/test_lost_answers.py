"""Writes of a durable run that go wrong in every way there is: some of what `lost_answers.py` does at length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "lost_answers.py"


def test_whatever_becomes_of_a_write_each_effect_is_there_once() -> None:
    """A fault at each write of a run, then many of any kind in one run; it is begun again until it has ended."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "60", "1", "7"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0
    for outcome in ("single faults", "OutcomeUnknownError", "RunFencedError", "Killed", "CancelledError", "StoreError"):
        assert outcome in done.stdout
