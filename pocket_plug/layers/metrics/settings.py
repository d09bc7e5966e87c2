"""What the process's metrics do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from opentelemetry.metrics import MeterProvider
from typing_extensions import Unpack

from pocket_plug.reporting import changed


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
    """Change the process's metrics, from the next run and the next stack on; gives the former settings.

    `[plugins.metrics] node_duration = false` does the same. Raises ConfigError for what isn't an option.
    """
    global settings
    former, settings = settings, changed("metrics", settings, changes)
    return former


settings = Settings()
"""Those in use."""
