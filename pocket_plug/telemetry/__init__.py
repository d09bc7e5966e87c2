"""Sends telemetry. Only this package and `pocket_plug.testing` import the OpenTelemetry SDK.

`observe()` traces runs during development: to the terminal and a file, or to where `OTEL_*` variables say.
`setup()` is for production: it sends traces, metrics and logs to where `OTEL_*` variables say.

- `wiring`: `observe` and `setup`. `ending`: flushes and closes at the end of the process. `providers`: the global providers.
- `environment`, `exporters`: the settings of `OTEL_*` variables. `declared`: those of a configuration file. `rejections`: reports
  invalid ones as ConfigError. `export`: a queue before each exporter.
- `logs`: structlog and standard logging. `local`: the trace file. `live`: a file of the open spans beside it.
- `tree`: draws a trace in the terminal when it ends. `notebook`: in a notebook. `messages`: exception messages for this machine.
- `children`: resets metrics in forked children. `servers`: how workers of servers end. `serving`, `exemplars`: metrics for
  Prometheus. `probing`: sends one span, for `pocket-plug doctor`.

`pocket_plug.traces` reads and shows the trace file, without the SDK.
"""

from __future__ import annotations

from pocket_plug.traces.retention import TraceLimits

from .rejections import naming_rejections

with naming_rejections():  # the SDK reads the variables of its limits during import
    from .logs import export_event
    from .wiring import Telemetry, observe, setup

__all__ = ["Telemetry", "TraceLimits", "export_event", "observe", "setup"]
