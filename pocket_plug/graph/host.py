"""What a run asks of the Pocket around it, without knowing plugins: who watches it, and where it keeps its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pocket_plug.store.store import Store

from .observing import Observer, Run


class RunHost(Protocol):
    """What graphs run in: a Pocket."""

    def observers(self, run: Run, /) -> list[Observer]:
        """What the plugins watch a run with, outermost first. Asked once as each run starts; never fails."""
        ...

    def default_store(self) -> Store | None:
        """The configuration's store, for graphs that have none of their own."""
        ...


_host: Callable[[], RunHost]


def use_host(find: Callable[[], RunHost]) -> None:
    """Run what names no Pocket in what `find` gives, from now on."""
    global _host
    _host = find


def default_host() -> RunHost:
    """What a run uses that names no Pocket: the default one."""
    return _host()
