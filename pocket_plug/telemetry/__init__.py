"""Telemetry that arrives: the only part of pocket_plug, next to its testing kit, that imports the OpenTelemetry SDK.

`observe()` traces a developer's runs within one line: to the terminal and a file, or where the environment says.
`setup()` is for production: traces, metrics and logs, all as `OTEL_*` variables say.

`wiring` holds both, `ending` what is done at the end of the process, `providers` what is set globally, `exporters` what the
environment names, `following` the error for what the SDK can't make of it, `declared` what a configuration file says instead,
`export` the queues before them, `logs` structlog. `local` writes the trace file, `live` beside it what goes on right now,
`tree` draws a trace as it ends, `notebook` in a notebook, with what `messages` keeps for this machine. What is in the file is
read and shown by `pocket_plug.traces`, without the SDK.

`children` is what a forked child has of its own, `servers` how workers of servers end, `serving` what Prometheus fetches, with
`exemplars`; `probing` sends one span, for `doctor`.
"""

from __future__ import annotations

from pocket_plug.traces.retention import Retention

from .following import followed

with followed():  # the SDK reads its limits as it is imported
    from .logs import export_event
    from .wiring import Telemetry, observe, setup

__all__ = ["Retention", "Telemetry", "export_event", "observe", "setup"]
