"""A real Prometheus scrapes the metrics of `setup()`, and keeps the exemplars' traces.

It needs the Debian package `prometheus`: `apt-get install -y prometheus`. Run by `make e2e`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from servers import ask, free_port, program, running, until

from tests.telemetry.otlp_sink import Sink

TRADE = """
import sys
import pocket_plug as pp
from pocket_plug.telemetry import setup

@pp.node
async def sell(what: str) -> str:
    return what

with setup():
    pp.Graph(sell, name="shop").run_sync("tea")
    sys.stdin.read()
"""


def test_an_exemplar_leads_to_its_trace(tmp_path: Path) -> None:
    """The exemplars of a run's and a node's duration are the ids of spans that a collector has received."""
    port, metrics = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    targets = f"[{{job_name: shop, static_configs: [{{targets: ['127.0.0.1:{metrics}']}}]}}]"
    (tmp_path / "prometheus.yml").write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs: {targets}\n")
    server = [
        *(program("prometheus", "prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"),
    ]

    def kept(name: str) -> dict[str, str] | None:
        now = time.time()
        found = ask(f"{url}/api/v1/query_exemplars?query={name}_bucket&start={now - 3600}&end={now + 60}")["data"]
        return dict(found[0]["exemplars"][0]["labels"]) if found else None

    with Sink() as sink, running(server, tmp_path, f"{url}/-/ready", os.environ):
        environment = os.environ | {
            "OTEL_METRICS_EXPORTER": "prometheus",
            "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(metrics),
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{sink.url}/v1/traces",
        }
        shop = subprocess.Popen([sys.executable, "-c", TRADE], cwd=tmp_path, env=environment, stdin=subprocess.PIPE)
        with shop:
            of_run = until("an exemplar of the run", lambda: kept("pocket_plug_run_duration_seconds"))
            of_node = until("an exemplar of the node", lambda: kept("pocket_plug_node_duration_seconds"))
            shop.communicate(timeout=60)
        run, node = sink.one("run shop"), sink.one("node sell")
    assert of_run == {"trace_id": run.trace_id, "span_id": run.span_id}
    assert of_node == {"trace_id": node.trace_id, "span_id": node.span_id}
