"""The example's dashboard and alerts with other servers than Debian's Prometheus: Prometheus 3, and VictoriaMetrics, which
scrapes the shop or receives its metrics by OTLP.

Their programs come from Debian unstable; `make e2e` unpacks them into a folder.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from servers import free_port, installed, running, until
from shops import EXPRESSIONS, MONITORING, WITH_DOTS, Reader, Shop, Traces, firing, rules_in_a_hurry

ORDERS = 100
EVERY = "0.3"
"""Seconds between a customer's orders: evictions go on while a slow reader comes for the first times, else their rate is zero."""
RUNS = 'pocket_plug_run_duration_seconds_count{pocket_plug_graph_name="orders"%s}'


class Watched(Reader):
    """A server, and two shops whose metrics it has: one has taken all its orders, the other is in trouble and goes on."""

    keeps_exemplars = False

    def __init__(self, folder: Path, well: int, ill: int) -> None:
        self.folder, self.ports = folder, (well, ill)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.alerts_at = self.url
        self.job = "pocket_plug"
        self.shops: dict[str, str] = {}  # additional variables of their environment

    def scraping(self, **replaced: str) -> str:
        """Write the example's file with the shops as targets."""
        settings = (MONITORING / "prometheus.yml").read_text("utf-8").replace("15s", "1s")
        targets = ", ".join(f'"127.0.0.1:{port}"' for port in self.ports)
        (self.folder / "prometheus.yml").write_text(settings.replace('"localhost:9464"', targets))
        return "prometheus.yml"

    @contextmanager
    def serving(self) -> Iterator[None]:
        with self._server(self.servers()), self._server(self.judges()):
            yield

    @contextmanager
    def _server(self, command: Sequence[str | Path]) -> Iterator[None]:
        if not command:
            yield
            return
        address = next(word for word in command if "127.0.0.1:" in str(word) and "isten" in str(word))
        with running(command, self.folder, f"http://{str(address).partition('=')[2]}/-/ready", os.environ):
            yield

    def servers(self) -> Sequence[str | Path]:
        """The command that starts the server."""
        raise NotImplementedError

    def judges(self) -> Sequence[str | Path]:
        """The command of the program that evaluates the alerts, if that is another one."""
        return ()


class Prometheus3(Watched):
    """It scrapes."""

    keeps_exemplars = True

    def servers(self) -> Sequence[str | Path]:
        return [
            installed("debian") / "prometheus",
            f"--config.file={self.scraping()}",
            "--storage.tsdb.path=data",
            "--enable-feature=exemplar-storage",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]


class Victoria(Watched):
    """It scrapes, with Prometheus' own file."""

    def servers(self) -> Sequence[str | Path]:
        return [
            installed("debian") / "victoria-metrics",
            "-storageDataPath=data",
            f"-httpListenAddr=127.0.0.1:{self.port}",
            "-search.latencyOffset=1s",  # otherwise it answers for 30 seconds ago
            *self.options(),
        ]

    def options(self) -> Sequence[str]:
        return [f"-promscrape.config={self.scraping()}", "-promscrape.config.strictParse=false"]

    def judges(self) -> Sequence[str | Path]:
        port = free_port()
        self.alerts_at = f"http://127.0.0.1:{port}"
        return [
            installed("debian") / "vmalert",
            "-rule=alerts.yml",
            f"-datasource.url={self.url}",
            "-notifier.blackhole",
            "-evaluationInterval=1s",
            f"-httpListenAddr=127.0.0.1:{port}",
        ]


class VictoriaByOtlp(Victoria):
    """It receives the metrics."""

    def __init__(self, folder: Path, well: int, ill: int) -> None:
        super().__init__(folder, well, ill)
        self.job = "shop"
        self.shops = {
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{self.url}/opentelemetry/v1/metrics",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        }

    def options(self) -> Sequence[str]:
        return ["-opentelemetry.usePrometheusNaming", f"-relabelConfig={MONITORING / 'victoria-metrics.yml'}"]


@pytest.fixture(scope="module")
def traces() -> Iterator[Traces]:
    traces = Traces()
    yield traces
    traces.close()


@pytest.fixture(scope="module", params=[Prometheus3, Victoria, VictoriaByOtlp], ids=lambda kind: kind.__name__)
def reader(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, traces: Traces
) -> Iterator[Watched]:
    kind: Callable[[Path, int, int], Watched] = request.param
    reader = kind(tmp_path_factory.mktemp("reader"), free_port(), free_port())
    rules_in_a_hurry(reader.folder / "alerts.yml")
    with ExitStack() as stack:
        stack.enter_context(reader.serving())
        options = ("--orders", str(ORDERS), "--every", EVERY, "--stay"), ("--trouble", "--every", "0.01")
        well, _ = (
            _shop(stack, *each, port=port, environment=traces.environment | reader.shops)
            for each, port in zip(options, reader.ports, strict=True)
        )
        assert ast.literal_eval(well.said()) == {"success": ORDERS}
        yield reader


def _shop(stack: ExitStack, *options: str, port: int, environment: dict[str, str]) -> Shop:
    shop = Shop(*options, port=port, environment=environment)
    stack.callback(shop.stop)
    return shop


def test_it_has_what_the_shop_did(reader: Watched) -> None:
    """Exactly the number of successful runs of the one shop; the other's failures have another `instance`."""
    success = RUNS % ',pocket_plug_run_outcome="success"'
    until("all orders", lambda: True if ORDERS in reader.values(f"sum by (instance) ({success})") else None)
    failing = RUNS % ',pocket_plug_run_outcome="failure"'
    until("failures", lambda: True if len(reader.values(f"sum by (instance) ({failing}) > 0")) == 1 else None)
    retried = f"sum by (instance) (pocket_plug_node_retries_total) unless on (instance) ({failing})"
    until("retries", lambda: True if reader.values(retried) == [ORDERS / 5] else None)


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS, ids=[title for title, _ in EXPRESSIONS])
def test_a_panel_shows_what_happened_in_it(reader: Watched, title: str, expression: str) -> None:
    """The metrics and labels that the dashboard uses exist; its functions do the same as Prometheus'."""
    until(f"something to show: {expression}", lambda: reader.shown(title, expression))


@pytest.mark.parametrize(("title", "expression"), WITH_DOTS, ids=[title for title, _ in WITH_DOTS])
def test_its_exemplars_lead_to_a_trace(reader: Watched, traces: Traces, title: str, expression: str) -> None:
    """Prometheus has exemplars of durations; VictoriaMetrics drops them silently."""
    del title
    if reader.keeps_exemplars:
        until("a dot whose trace has come", lambda: any(map(traces.has, reader.traces(expression))) or None)
    else:
        assert reader.traces(expression) == set()


def test_the_choices_offer_what_there_is(reader: Watched) -> None:
    """Jobs, instances, graphs and stores, also if nothing is scraped."""
    assert reader.offered("job") == [reader.job]
    assert len(reader.offered("instance")) == 2
    assert reader.offered("graph") == ["orders", "vouchers"]
    assert reader.offered("namespace") == ["archive", "desk", "state"]


def test_the_alerts_are_raised_for_trouble_only(reader: Watched) -> None:
    """Failures raise alerts. If metrics are sent, the missing scrape is no alert."""
    trouble = {
        ("PocketPlugRunsFail", "orders"),
        ("PocketPlugRetryStorm", "orders"),
        ("PocketPlugStoreErrors", "archive"),
    }
    judge = Reader()
    judge.url = reader.alerts_at

    def raised() -> set[tuple[str, str]] | None:
        found = firing(judge.ask("alerts")["alerts"])
        return found if trouble <= found else None

    assert "PocketPlugTelemetryAbsent" not in {name for name, _ in until("the alerts", raised)}
    rules = [rule for group in judge.ask("rules")["groups"] for rule in group["rules"]]
    names = re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text("utf-8"))
    assert [(rule["name"], rule["health"]) for rule in rules] == [(name, "ok") for name in names]


def test_the_alerts_mean_the_same_to_victoria_metrics() -> None:
    """Its own tool finds that each alert fires when it should and not before, as Prometheus' tool does."""
    done = subprocess.run(
        [installed("debian") / "vmalert-tool", "unittest", "-disableAlertgroupLabel", "--files", "alerts_test.yml"],
        cwd=MONITORING,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
