"""Marks reads that are repeated until something changes: as spans they would fill the trace around them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

is_poll: ContextVar[bool] = ContextVar("is_poll", default=False)


@contextmanager
def polling() -> Generator[None]:
    """Store operations within the block make no spans."""
    token = is_poll.set(True)
    try:
        yield
    finally:
        is_poll.reset(token)
