"""Serves metrics at a port, for Prometheus. Only one process can; the others log that their metrics are not served."""

from __future__ import annotations

import logging
import mmap
import os
import threading
from typing import Any

from pocket_plug.primitives.forking import after_fork

_WAY_OUT = (
    "Where a server has several processes, send metrics by OTLP, to a collector or to Prometheus itself: "
    "OTEL_METRICS_EXPORTER=otlp OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://localhost:9090/api/v1/otlp/v1/metrics, and "
    "prometheus --web.enable-otlp-receiver"
)

_LATER = 1.0
"""Seconds after a fork until the child logs that its metrics are not served, if it is still there and runs this program. Log
handlers reset themselves in the fork, and drop what was logged before; on a machine under load a fork may take long.
"""

_logger = logging.getLogger("pocket_plug")


class MetricsServer:
    """Serves this process's metrics from now on. If the port is in use, this is logged, and the program continues."""

    def __init__(self, host: str, port: int, registry: Any) -> None:
        from prometheus_client import start_http_server

        self._place, self._process = f"{host}:{port}", os.getpid()
        self._server: Any = None
        self._said = mmap.mmap(-1, 1)  # shared with forked children, so that only one of them logs the warning
        try:
            self._server, _ = start_http_server(port, host, registry)
        except OSError as error:
            _logger.warning(
                "telemetry: process %d can't serve its metrics to Prometheus on %s: %s. The program continues without "
                "serving them. %s; or give each process its own port by OTEL_EXPORTER_PROMETHEUS_PORT",
                self._process,
                self._place,
                error.strerror or error,
                _WAY_OUT,
            )
        else:
            after_fork(self._in_forked_child)

    def _in_forked_child(self) -> None:
        """Close the inherited socket: the parent serves, and while a child keeps the port open, nobody can open it again."""
        if self._server is None:
            return
        self._server.socket.close()
        self._server = None
        if not self._said[0]:
            later = threading.Timer(_LATER, self._say_unseen)
            later.name, later.daemon = "pocket_plug serving", True
            later.start()

    def _say_unseen(self) -> None:
        if not self._said[0]:
            self._said[0] = 1
            _logger.warning(
                "telemetry: process %d serves only its own metrics to Prometheus on %s, and not those of the processes that it "
                "forks, such as %d. %s",
                self._process,
                self._place,
                os.getpid(),
                _WAY_OUT,
            )

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
