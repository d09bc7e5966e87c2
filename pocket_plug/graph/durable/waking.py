"""Wakes the workers of this process: there may be a run for them, so that none of them need wait for its next look."""

from __future__ import annotations

from collections.abc import Callable

from pocket_plug.primitives.forking import after_fork

sleeping: set[Callable[[], None]] = set()
"""What wakes each worker of this process, from whatever thread."""
after_fork(sleeping.clear)


def wake_workers() -> None:
    """Called when a run may have become ready: it was submitted, answered, or is to be tried again."""
    for wake in tuple(sleeping):
        wake()
