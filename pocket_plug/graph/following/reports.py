"""`emit` and `progress`: a node reports values and progress while it works, for those who follow the run.

If nobody follows the run, they do nothing. So a node may always call them, also in tests and outside of any run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from contextvars import ContextVar
from typing import Any, Protocol

from .events import NodePlace


class Reporter(Protocol):
    """Receives the reports from one place of a run."""

    place: NodePlace

    def emit(self, value: object) -> Awaitable[None]:
        """Add a value. Awaiting the result waits until there is room for more."""
        ...

    def progress(self, done: float, total: float | None) -> None:
        """Add the progress of the work."""
        ...


class _AtOnce:
    """An awaitable that never suspends."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


AT_ONCE = _AtOnce()

reporter: ContextVar[Reporter | None] = ContextVar("pocket_plug.reporter", default=None)
"""The reporter of the node around this call; None if nobody follows the run."""


def emit(value: object) -> Awaitable[None]:
    """Report a value from a node, such as a part of its result: a reader of the run's events gets `Emitted(…, value)`.

    Call it in `exec`, `async def` or `def`. If the reader is slower than the node, a `def exec` waits here, in its worker
    thread; an `async def exec` waits if it awaits the call, `await emit(value)`. Without `await` it never waits, and the value is
    kept for the reader nevertheless. The value is not copied: don't change it later. The next attempt may report it again. Code
    that still runs after its attempt has timed out reports nothing.

    >>> from pocket_plug import node
    >>> @node
    ... async def write(topic: str) -> str:
    ...     for word in ("all", "about", topic):
    ...         await emit(word)
    ...     return f"all about {topic}"
    """
    here = reporter.get()
    return AT_ONCE if here is None else here.emit(value)


def progress(done: float, total: float | None = None) -> None:
    """Report the progress of the work in a node: a reader of the run's events gets `Progressed(…, done, total)`.

    It never waits. Of the unread reports of one node, or one item, only the newest is kept.

    >>> progress(3, 10)
    """
    here = reporter.get()
    if here is not None:
        here.progress(done, total)
