"""No acknowledged write is lost when the server is killed; a longer campaign is `killed_server.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.crash


@pytest.mark.parametrize("durability", ["power", "process"])
def test_nothing_acknowledged_is_lost_with_the_server(durability: str) -> None:
    """The server is killed three times while four processes write: all acknowledged writes are stored, each once."""
    script = Path(__file__).with_name("killed_server.py")
    done = subprocess.run([sys.executable, script, durability, "3", "1"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 faults" in done.stdout
