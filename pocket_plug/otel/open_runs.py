"""The runs that go on, so that a SIGTERM that ends the process leaves none without an end in logs and metrics."""

from __future__ import annotations

from typing import Final, Protocol

from pocket_plug.errors import is_fault
from pocket_plug.primitives.failures import say_once
from pocket_plug.primitives.forking import after_fork

INTERRUPTED: Final = "interrupted"
"""The outcome of what was open as a signal ended the process. No `Run` has it: nobody is left who could ask."""


class Interruptible(Protocol):
    """What says of one run how it ended."""

    def interrupt(self, reason: str) -> None:
        """Say that it ended so, from another thread."""
        ...


_open: dict[Interruptible, bool] = {}  # in the order in which they began
_said: set[Interruptible] = set()
after_fork(_open.clear)  # what is open is its parent's to end


def begun(part: Interruptible) -> None:
    """A run has begun, of which `part` says how it ends."""
    _open[part] = True


def ended(part: Interruptible) -> bool:
    """It has ended. Is that still to be said?"""
    _open.pop(part, None)
    return part not in _said


def interrupt(reason: str) -> None:
    """Say of all that are open, the innermost first, that they end here, since the process is about to die."""
    for part in reversed([*_open]):
        if _open.pop(part, False):
            _said.add(part)
            try:
                part.interrupt(reason)
            except BaseException as error:  # a user's log processor may raise anything
                if not is_fault(error):
                    raise
                say_once("saying that a run was interrupted", error, silent=True)
