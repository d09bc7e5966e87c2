"""What a run needs of its Pocket, without knowing plugins: its observers, its store, its executors."""

from __future__ import annotations

from typing import Protocol

from pocket_plug.graph.elsewhere import Elsewhere, ExecElsewhere
from pocket_plug.primitives.default_pocket import find_default_pocket
from pocket_plug.store.store import Store

from .views import Observer, Run, RunNotice


class RunHost(Protocol):
    """The host of runs: a Pocket."""

    def observers(self, run: Run, /) -> list[Observer]:
        """The plugins' observers of a run, the outermost first. Called once when each run starts. Never raises."""
        ...

    def notify(self, notice: RunNotice, /) -> None:
        """Send the plugins a notice about a durable run. Never raises."""
        ...

    def default_store(self) -> Store | None:
        """The configuration's store, for graphs without a store of their own."""
        ...

    def executor(self, executor: Elsewhere, /) -> ExecElsewhere:
        """The executor for a node with this option; nodes with the same name share one. Raises ConfigError for an unknown one."""
        ...


def default_host() -> RunHost:
    """The host of a run that was given no Pocket: the default Pocket."""
    found: RunHost = find_default_pocket()
    return found
