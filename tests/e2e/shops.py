"""The example's shop in processes of its own, and the queries of its dashboard."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from servers import ROOT, ask

MONITORING = ROOT / "examples" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))
EXPRESSIONS = [
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    if panel["type"] != "row"
    for target in panel["targets"]
]
WITH_DOTS = [
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
    if target["exemplar"] and target["refId"] == "A"
]
MAY_BE_ZERO = {  # at any moment
    "Active runs",
    "Active runs by instance",
    "What goes on",
    "Items of fan-outs",
    "Write-behind queue",
    "Age of the queue",
}


class Reader:
    """A server with the metrics that answers Prometheus' API."""

    url: str

    def ask(self, path: str, **arguments: str) -> Any:
        """The data of an answer of its API; an error if it refuses."""
        return ask(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}")["data"]

    def values(self, expression: str) -> list[float]:
        """The current values of an expression."""
        answer = self.ask("query", query=expression)
        return [float(sample["value"][1]) for sample in answer["result"]]

    def shown(self, title: str, expression: str) -> list[float] | None:
        """What a panel shows with all variables at "All"; None as long as it is empty, or zero if that isn't allowed."""
        found = [value for value in self.values(_with_all_chosen(expression)) if not math.isnan(value)]
        return (found or None) if title in MAY_BE_ZERO else (found if any(found) else None)

    def offered(self, name: str) -> list[str]:
        """The choices at the top of the dashboard."""
        [query] = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["name"] == name]
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
        found: list[str] = self.ask(f"label/{label}/values", **{"match[]": re.sub(r"\$\w+", ".*", series)})
        return found

    def traces(self, expression: str) -> set[str]:
        """The trace ids of a panel's exemplars."""
        asked = _with_all_chosen(expression)
        found = self.ask("query_exemplars", query=asked, start="1970-01-01T00:00:00Z", end="2100-01-01T00:00:00Z")
        return {dot["labels"]["trace_id"] for series in found for dot in series["exemplars"]}


def _with_all_chosen(expression: str) -> str:
    return re.sub(r"\$(job|instance|graph|namespace)\b", ".*", expression).replace("$__rate_interval", "5m")


class Traces:
    """A collector for traces: it keeps what it receives by OTLP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        kept = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                kept.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nowhere."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.environment = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}/v1/traces",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }

    def has(self, trace: str) -> bool:
        """Has a span of the trace arrived?"""
        return any(bytes.fromhex(trace) in body for body in self.bodies)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def rules_in_a_hurry(file: Path) -> None:
    """Write the alerts unchanged, except that their times are a few seconds."""
    rules = re.sub(r"for: \d+m", "for: 2s", (MONITORING / "alerts.yml").read_text("utf-8"))
    file.write_text(re.sub(r"\[5m\]", "[20s]", rules))


def firing(alerts: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """The names of the firing alerts, each with its graph, store or instance."""
    about = ("pocket_plug_graph_name", "db_namespace", "instance")
    return {
        (alert["labels"]["alertname"], next((alert["labels"][name] for name in about if name in alert["labels"]), ""))
        for alert in alerts
        if alert["state"] == "firing"
    }


class Shop:
    """The example's program, in a process of its own, which serves its metrics or sends them where the environment says."""

    def __init__(self, *options: str, port: int, environment: Mapping[str, str]) -> None:
        command = [sys.executable, str(MONITORING / "serve.py"), "--port", str(port), *options]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POCKET_PLUG_"))}
        clean |= {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1", **environment}
        self.process = subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, text=True)
        self.instance = f"127.0.0.1:{port}"
        if clean["OTEL_METRICS_EXPORTER"] == "prometheus":
            assert self.said() == f"http://localhost:{port}/metrics"

    def said(self) -> str:
        """Its next line of output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
