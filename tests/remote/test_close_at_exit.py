"""Executors that no Pocket closes."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from pocket_plug.remote import Executor, close_at_exit

class Named(Executor):
    def __init__(self, name):
        self.name = name
        close_at_exit(self)

    def close(self):
        print(self.name, "is closed")

kept, again, dropped = Named("kept"), Named("again"), Named("dropped")
close_at_exit(again)
del dropped
print("the program ends")
"""


def test_an_executor_is_closed_at_the_end_of_the_process() -> None:
    """Once, unless nobody has it any more."""
    out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    first, *closed = out.splitlines()
    assert first == "the program ends"
    assert sorted(closed) == ["again is closed", "kept is closed"]
