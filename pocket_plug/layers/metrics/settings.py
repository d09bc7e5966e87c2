"""What the process's metrics do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from opentelemetry import metrics
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from typing_extensions import Unpack

from pocket_plug.otel.reporting import changed


@dataclass(frozen=True, slots=True)
class Settings:
    """What the process's metrics do. `meter_provider` None: OpenTelemetry's global one.

    `node_duration` False leaves out the histogram of nodes, which costs about 10 µs for each visit.
    """

    meter_provider: MeterProvider | None = None
    node_duration: bool = True


class Changes(TypedDict, total=False):
    """What `configure` takes."""

    meter_provider: MeterProvider | None
    node_duration: bool


def configure(**changes: Unpack[Changes]) -> Settings:
    """Change the process's metrics, from the next run and the next operation of a store on; gives the former settings.

    `[plugins.metrics] node_duration = false` does the same. Raises ConfigError for what isn't an option.
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
"""Those in use."""
