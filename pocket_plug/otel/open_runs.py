"""The running runs, so that at a SIGTERM logs and metrics get an end of each."""

from __future__ import annotations

from typing import Final, Protocol
from weakref import WeakKeyDictionary

from pocket_plug.primitives.forking import after_fork

from .reporting import surviving

INTERRUPTED: Final = "interrupted"
"""The outcome, in telemetry, of runs that were open when a signal ended the process. No `Run` object ever has it."""


class Interruptible(Protocol):
    """Reports the end of a run."""

    def interrupt(self, reason: str) -> None:
        """Report that the run was interrupted; called in another thread. `reason` is the signal's name."""
        ...


# In the order in which they began. Weak, since Ctrl-C may come between any two steps, also before the end of a run is noted.
_open: WeakKeyDictionary[Interruptible, bool] = WeakKeyDictionary()
_interrupted: set[Interruptible] = set()
after_fork(_open.clear)  # the parent ends its runs


def begun(part: Interruptible) -> None:
    """Remember a run that has begun, as long as it exists; `part` reports its end."""
    _open[part] = True


def ended(part: Interruptible) -> bool:
    """Forget a run that has ended. Returns False if its end was already reported as an interruption."""
    _open.pop(part, None)
    return part not in _interrupted


def interrupt(reason: str) -> None:
    """Report all running runs as interrupted, the innermost first, since the process is about to die."""
    for reference in reversed(_open.keyrefs()):
        if (part := reference()) is not None and _open.pop(part, False):
            _interrupted.add(part)
            with surviving("reporting that a run was interrupted", silent=True):  # as a user's log processor may
                part.interrupt(reason)
