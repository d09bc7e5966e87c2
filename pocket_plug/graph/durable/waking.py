"""Wakes the workers of this process when a run may be ready, so that they don't wait for their next poll."""

from __future__ import annotations

from collections.abc import Callable

from pocket_plug.primitives.forking import after_fork

sleeping: set[Callable[[], None]] = set()
"""A function for each worker of this process that wakes it. Can be called in any thread."""
after_fork(sleeping.clear)


def wake_workers() -> None:
    """Called when a run may have become ready: it was submitted, answered or retried."""
    for wake in tuple(sleeping):
        wake()
