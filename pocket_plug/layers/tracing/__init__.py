"""Spans for runs, nodes, phases and store operations. It speaks the OpenTelemetry API only and sets nothing up.

Whether anybody listens is decided as a run starts, and at each operation of a store: without a provider it costs one look
at it. Where instrumentation is suppressed, as in an exporter, nobody does. Unless `capture` asks for more, spans carry
neither keys nor values nor messages: only declared key templates, and the types of exceptions.

`settings` says what is wanted and who listens, `spans` is what all spans share, `runs` and `stores` make them, `capture` is
what stands on them on request. What plugins add besides comes by the hook `pocket_span_additions`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pocket_plug.hookspecs import Observer, Run, hookimpl
from pocket_plug.otel.reporting import suppressed
from pocket_plug.store.layer import Layer

from .runs import RunSpan
from .settings import (
    Asked,
    Besides,
    Capture,
    Changes,
    Detail,
    Listening,
    Redact,
    Scope,
    Settings,
    additions_of_default,
    checked,
    configure,
    look,
    mute,
    use,
    warn_of_flavours,
)
from .stores import Tracing

__all__ = [
    "Besides",
    "Capture",
    "Changes",
    "Detail",
    "Redact",
    "Scope",
    "Settings",
    "Tracing",
    "TracingPlugin",
    "additions_of_default",
    "checked",
    "configure",
    "look",
    "mute",
    "use",
    "warn_of_flavours",
]


class TracingPlugin:
    """The plugin, of which each Pocket has its own: its table `[plugins.tracing]` is for its own runs and stores."""

    def __init__(self) -> None:
        self.listening = Listening()

    @hookimpl
    def pocket_configure(self, pocket: Asked, options: Changes) -> None:
        """The table; what it doesn't name is as the process has it. Spans get what the plugins of this Pocket add."""
        self.listening.additions = pocket.additions
        self.listening.choose(options)

    @hookimpl
    def pocket_layers(self) -> Sequence[type[Layer]]:
        """The layer `tracing`."""
        return [Tracing]

    @hookimpl
    def pocket_observe(self, run: Run) -> Observer | None:
        """Watch a run while a provider is set."""
        live = self.listening.look()
        if live is None or suppressed():
            return None
        spans = RunSpan(live, run)
        if live.detail == "run":
            return Observer(run=spans.of_run, event=spans.event, outermost=True)
        return Observer(
            run=spans.of_run,
            node=spans.of_node,
            phase=spans.of_phase,
            event=spans.event,
            outermost=True,
            guarded_only=not live.phases,
        )
