"""What metrics do: the process's settings, and those of one Pocket in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from opentelemetry import metrics
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from typing_extensions import Unpack

from pocket_plug.errors import ConfigError
from pocket_plug.otel.reporting import changed
from pocket_plug.primitives.redaction import summary


@dataclass(frozen=True, slots=True)
class Settings:
    """What metrics do. `meter_provider` None: OpenTelemetry's global one.

    `node_duration` False leaves out the histogram of nodes, which costs about 10 µs for each visit.
    """

    meter_provider: MeterProvider | None = None
    node_duration: bool = True


class Changes(TypedDict, total=False):
    """What `configure` takes."""

    meter_provider: MeterProvider | None
    node_duration: bool


def configure(**changes: Unpack[Changes]) -> Settings:
    """Change the process's settings of metrics, from the next run and the next operation of a store on; gives the former.

    They count for all that no Pocket says otherwise: `[plugins.metrics] node_duration = false` is for the runs of that
    Pocket. Raises ConfigError for what isn't an option.
    """
    global settings
    former, settings = settings, changed("metrics", settings, changes)
    for told in told_of_changes:
        told()
    return former


told_of_changes: list[Callable[[], object]] = []
"""Called when settings were changed."""


def mute() -> None:
    """Publish to the global provider, but not to the one that is set right now: until another is set, or given."""
    configure(meter_provider=Muted(metrics.get_meter_provider()))


class Muted(NoOpMeterProvider):
    """In the settings: OpenTelemetry's global provider, but for this one."""

    def __init__(self, provider: MeterProvider) -> None:
        self.provider = provider


settings = Settings()
"""The process's."""


def checked(own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of one Pocket. Raises ConfigError for what is none of a Pocket's."""
    changed("metrics", settings, own)  # refuses what isn't one
    if "meter_provider" in own:
        raise ConfigError(
            "metrics' meter_provider is the process's, as OpenTelemetry has it: give it to "
            "pocket_plug.layers.metrics.configure(meter_provider=…)"
        )
    if not isinstance(timed := own.get("node_duration", True), bool):
        raise ConfigError(f"metrics' node_duration is true or false, not {summary(timed)}")
    return own
