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
    """Change the process's settings of metrics, from the next run and store operation on; returns the former ones.

    They hold unless a Pocket has other settings: `[plugins.metrics] node_duration = false` is for the runs of that
    Pocket. Raises ConfigError for an unknown option.
    """
    global settings
    former, settings = settings, changed("metrics", settings, changes)
    for callback in on_change:
        callback()
    return former


on_change: list[Callable[[], object]] = []
"""Called when settings were changed."""


def mute() -> None:
    """Use no provider until another global one is set, or one is given: the one that is set now is ignored."""
    configure(meter_provider=Muted(metrics.get_meter_provider()))


class Muted(NoOpMeterProvider):
    """In the settings: use OpenTelemetry's global provider, unless it is this one."""

    def __init__(self, provider: MeterProvider) -> None:
        self.provider = provider


settings = Settings()
"""The settings of the process."""


def checked(own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of one Pocket. Raises ConfigError for an option that a Pocket can't have."""
    changed("metrics", settings, own)  # refuses unknown options
    if "meter_provider" in own:
        raise ConfigError(
            "metrics: meter_provider holds for the whole process, not for one Pocket; give it to "
            "pocket_plug.layers.metrics.configure(meter_provider=…)"
        )
    if not isinstance(timed := own.get("node_duration", True), bool):
        raise ConfigError(f"metrics: node_duration must be true or false, not {summary(timed)}")
    return own
