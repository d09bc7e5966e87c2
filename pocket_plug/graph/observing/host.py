"""What a run asks of the Pocket around it, without knowing plugins: who watches it, and where it keeps its state."""

from __future__ import annotations

from typing import Protocol

from pocket_plug.graph.elsewhere import Elsewhere, ExecElsewhere
from pocket_plug.primitives.default_pocket import find_default_pocket
from pocket_plug.store.store import Store

from .views import Observer, Run, RunNotice


class RunHost(Protocol):
    """What graphs run in: a Pocket."""

    def observers(self, run: Run, /) -> list[Observer]:
        """What the plugins watch a run with, outermost first. Asked once as each run starts; never fails."""
        ...

    def notify(self, notice: RunNotice, /) -> None:
        """Tell the plugins what has become of a durable run outside of an execution; never fails."""
        ...

    def default_store(self) -> Store | None:
        """The configuration's store, for graphs that have none of their own."""
        ...

    def executor(self, executor: Elsewhere, /) -> ExecElsewhere:
        """What runs `exec` for a node with this option; one for all that name the same. Raises ConfigError for an unknown one."""
        ...


def default_host() -> RunHost:
    """What a run uses that names no Pocket: the default one."""
    found: RunHost = find_default_pocket()
    return found
