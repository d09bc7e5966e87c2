"""Where `exec` runs if not here: what a run asks of an executor, and what of a node goes there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pocket_plug.primitives.values import Value


@dataclass(frozen=True, slots=True)
class Address:
    """Where another process finds a node: `module:name` of a graph or of the node, and the names of nodes from there on."""

    reference: str
    path: tuple[str, ...] = ()
    version: int = 1
    """The graph's."""

    @property
    def module(self) -> str:
        """What has to be imported."""
        return self.reference.partition(":")[0]

    def __str__(self) -> str:
        return "/".join((self.reference, *self.path))


@dataclass(frozen=True, slots=True)
class Work:
    """One attempt at an `exec`: what an executor needs to have it done."""

    node: str
    """The node's name, for messages."""
    function: Any
    """Its exec."""
    awaits: bool
    """Is that `async def`?"""
    prepared: Value
    """What it is called with."""
    address: Address | None = None
    """Where another process finds the node; None where no other has to."""
    timeout: float | None = None
    """Seconds that it has, from the moment on that it is sent."""


class ExecElsewhere(Protocol):
    """What a run asks of an executor: a `pocket_plug.remote.Executor`."""

    @property
    def in_process(self) -> bool:
        """Does it run `exec` in this process? Then nothing needs an address, or has to be encoded."""
        ...

    @property
    def maps_main(self) -> bool:
        """Do its workers know the script that this process was started with, as their `__main__`?"""
        ...

    @property
    def room(self) -> int:
        """How many items of a fan-out it takes at a time."""
        ...

    async def perform(self, work: Work, /) -> Value:
        """Have `exec` done; give what it gives, raise what it raises. Raises WorkerTimeout where that takes too long."""
        ...


Elsewhere = str | ExecElsewhere
"""The option `executor=`: a name, a URL, or an executor itself."""
