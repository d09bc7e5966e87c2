"""A busy process that forks at random moments: its children end, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.crash


def test_forks_at_random_moments() -> None:
    """A few forks of each stack; `python tests/crash/forks.py` tries some hundred."""
    script = Path(__file__).parent / "forks.py"
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(script), "--forks", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.count("3 forks beside") == 10
    assert done.stdout.count("3 worked") == 9
    assert done.stdout.count("3 said why not") == 1  # written behind
