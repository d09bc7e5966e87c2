"""The interface of executors, which run a node's `exec` elsewhere: what a run calls, and what it sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pocket_plug.primitives.values import Value


@dataclass(frozen=True, slots=True)
class Address:
    """How another process finds a node: `module:name` of a graph or of the node, and from there the names of nodes."""

    reference: str
    path: tuple[str, ...] = ()
    version: int = 1
    """The version of that graph."""

    @property
    def module(self) -> str:
        """The module to import."""
        return self.reference.partition(":")[0]

    def __str__(self) -> str:
        return "/".join((self.reference, *self.path))


@dataclass(frozen=True, slots=True)
class Work:
    """One attempt at an `exec`: what an executor needs to run it."""

    node: str
    """The node's name, for messages."""
    function: Any
    """The node's `exec`."""
    awaits: bool
    """Is `exec` `async def`?"""
    prepared: Value
    """The argument of `exec`."""
    address: Address | None = None
    """How another process finds the node; None if no other process has to."""
    timeout: float | None = None
    """Seconds for the attempt, counted from the moment when it is sent."""


class ExecElsewhere(Protocol):
    """What a run needs of an executor; `pocket_plug.remote.Executor` provides it."""

    @property
    def in_process(self) -> bool:
        """Does it run `exec` in this process? Then nodes need no address, and values are not encoded."""
        ...

    @property
    def maps_main(self) -> bool:
        """Can its workers import the script that this process was started with, which is `__main__` here?"""
        ...

    @property
    def room(self) -> int:
        """How many items of a fan-out it runs at a time."""
        ...

    async def perform(self, work: Work, /) -> Value:
        """Run `exec`: return what it returns, raise what it raises. Raises WorkerTimeout if it takes longer than the timeout."""
        ...


Elsewhere = str | ExecElsewhere
"""The option `executor=`: a name, a URL, or an executor itself."""
