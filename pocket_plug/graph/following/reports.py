"""What the work in a node says of itself while it goes on: `emit` and `progress`, for whoever follows the run.

Where nobody does, they do nothing. So a node may call them always, in tests too, and outside of any run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from contextvars import ContextVar
from typing import Any, Protocol

from .events import NodePlace


class Reporter(Protocol):
    """Takes what is reported at one place of a run."""

    place: NodePlace

    def emit(self, value: object) -> Awaitable[None]:
        """Take a value; what is given can be awaited until there is room for more."""
        ...

    def progress(self, done: float, total: float | None) -> None:
        """Take how far the work is."""
        ...


class _AtOnce:
    """An awaitable that never suspends."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


AT_ONCE = _AtOnce()

reporter: ContextVar[Reporter | None] = ContextVar("pocket_plug.reporter", default=None)
"""Who takes what is reported here: that of the node around this call, in a run that somebody follows."""


def emit(value: object) -> Awaitable[None]:
    """Report a value from within a node, such as a part of its result: whoever follows the run gets `Emitted(…, value)`.

    Call it in `exec`, `async def` or `def`. A reader may be slower than the node: then a `def exec` waits here, in its worker
    thread, and an `async def` one does if it awaits the call, `await emit(value)`. Not awaited it never waits, and the value
    is kept for the reader all the same. The value itself is handed on: don't change it later. It may be reported again by the
    next attempt. What goes on after its attempt has timed out reports nothing any more.

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
    """Report how far the work in a node is: whoever follows the run gets `Progressed(…, done, total)`.

    It never waits. Of what one node, or one item, has reported and nobody has read, only the newest is kept.

    >>> progress(3, 10)
    """
    here = reporter.get()
    if here is not None:
        here.progress(done, total)
