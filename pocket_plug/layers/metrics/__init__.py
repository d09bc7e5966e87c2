"""Metrics of runs, nodes and stores. It uses the OpenTelemetry API only and sets nothing up.

A store operation in memory is counted in integers of our own, which are published when metrics are collected: the SDK's
own counters cost thirty times a read. Attributes never have a key, a value, a run's id or a message, and of the names in
a program (graphs, nodes, actions, exceptions, namespaces) only a limited number of different ones, then `_OTHER`.

`settings` has the settings, `counting` the integers and their names, `instruments` publishes them to a provider; `runs` and
`stores` measure, `recorded` counts the durable runs of a store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pocket_plug.hookspecs import NodeCall, Observer, Run, hookimpl
from pocket_plug.otel.reporting import suppressed
from pocket_plug.store.layer import Layer

from . import settings
from .instruments import look
from .runs import NodeTimer, RunTimer
from .settings import Changes, Settings, configure, mute
from .stores import Metrics

__all__ = ["Changes", "Metrics", "MetricsPlugin", "Settings", "configure", "mute"]


class MetricsPlugin:
    """The plugin; each Pocket has an object of its own: its table `[plugins.metrics]` is for its own runs."""

    def __init__(self) -> None:
        self._own: Mapping[str, Any] = {}

    @hookimpl
    def pocket_configure(self, options: Changes) -> None:
        """The table of this Pocket; options that it doesn't name are the process's."""
        self._own = settings.checked(options)

    @hookimpl
    def pocket_layers(self) -> Sequence[type[Layer]]:
        """The layer `metrics`."""
        return [Metrics]

    @hookimpl(tryfirst=True)
    def pocket_observe(self, run: Run) -> Observer | None:
        """Measure a run if a meter provider is set."""
        instruments = look()
        if instruments is None or suppressed():
            return None
        timed = self._own.get("node_duration", settings.settings.node_duration)

        def node(call: NodeCall) -> NodeTimer | None:
            return NodeTimer(instruments, call, timed) if timed or call.is_item else None

        return Observer(run=lambda run: RunTimer(instruments, run), node=node, event=instruments.event)
