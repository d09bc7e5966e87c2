"""Spans for runs, nodes, phases and store operations. It uses the OpenTelemetry API only and sets nothing up.

Whether spans are made is decided when a run starts, and at each operation of a store: without a provider this costs one
look. Where instrumentation is suppressed, as in an exporter, none are made. Unless `capture` asks for more, spans have
neither keys nor values nor messages: only declared key templates, and the types of exceptions.

`settings` has the settings and the provider, `spans` what all spans share, `runs` and `stores` make them; `fan_outs` chooses the
items that have one. `capture` makes the attributes with keys, values and messages, `local_messages` keeps messages for this
machine. Plugins add others by the hook `pocket_span_additions`.
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
    """The plugin; each Pocket has an object of its own: its table `[plugins.tracing]` is for its own runs and stores."""

    def __init__(self) -> None:
        self.listening = Listening()

    @hookimpl
    def pocket_configure(self, pocket: Asked, options: Changes) -> None:
        """The table of this Pocket; options that it doesn't name are the process's. Spans get what its plugins add."""
        self.listening.additions = pocket.additions
        self.listening.choose(options)

    @hookimpl
    def pocket_layers(self) -> Sequence[type[Layer]]:
        """The layer `tracing`."""
        return [Tracing]

    @hookimpl
    def pocket_observe(self, run: Run) -> Observer | None:
        """Trace a run if a provider is set."""
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
