"""The example's dashboard and alerts in a real Prometheus, which scrapes the example's shop while it runs.

It needs the Debian package `prometheus`: `apt-get install -y prometheus`. Run by `make e2e`.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from servers import ROOT, free_port, installed, program, running, until
from shops import EXPRESSIONS, MONITORING, WITH_DOTS, Reader, Shop, Traces, firing, rules_in_a_hurry

if TYPE_CHECKING:
    from playwright.sync_api import Page

ORDERS = 300
PACKAGE = "prometheus"  # of Debian


class Prometheus(Reader):
    """A server for the tests: its folder, its targets, and its answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.well, self.ill = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        settings = (MONITORING / "prometheus.yml").read_text("utf-8").replace("15s", "1s")
        (folder / "prometheus.yml").write_text(settings.replace('"localhost:9464"', f'"127.0.0.1:{self.well}"'))
        rules_in_a_hurry(folder / "alerts.yml")

    def running(self) -> AbstractContextManager[None]:
        command = [
            program("prometheus", PACKAGE),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            "--web.enable-lifecycle",
            "--enable-feature=exemplar-storage",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        return running(command, self.folder, f"{self.url}/-/ready", os.environ)

    def watch_too(self, port: int) -> None:
        """Add a target."""
        file = self.folder / "prometheus.yml"
        file.write_text(file.read_text().replace('"]', f'", "127.0.0.1:{port}"]'))
        urllib.request.urlopen(f"{self.url}/-/reload", data=b"", timeout=30).close()  # noqa: S310 - our own server

    def firing(self) -> set[tuple[str, str]]:
        """The alerts that fire."""
        return firing(self.ask("alerts")["alerts"])


def commands() -> list[str]:
    """The commands of the how-to that the tests of the docs don't run."""
    page = (ROOT / "docs" / "howto" / "monitor-with-prometheus.md").read_text("utf-8")
    return [line.partition("  #")[0].strip() for line in re.findall(r"^\$ (?!OTEL_)(.+)$", page, re.MULTILINE)]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path_factory.mktemp("prometheus"))
    with server.running():
        yield server


@pytest.fixture(scope="module")
def traces() -> Iterator[Traces]:
    traces = Traces()
    yield traces
    traces.close()


@pytest.fixture(scope="module")
def shop(prometheus: Prometheus, traces: Traces) -> Iterator[Shop]:
    """A shop without trouble: all orders are taken, and Prometheus has scraped the last."""
    shop = Shop(
        "--orders", str(ORDERS), "--every", "0.1", "--stay", port=prometheus.well, environment=traces.environment
    )
    try:
        assert ast.literal_eval(shop.said()) == {"success": ORDERS}
        last = f'pocket_plug_run_duration_seconds_count{{instance="{shop.instance}",pocket_plug_graph_name="orders"}}'
        until("the last run", lambda: True if prometheus.values(last) == [ORDERS] else None)
        yield shop
    finally:
        shop.stop()


@pytest.fixture(scope="module")
def troubled(prometheus: Prometheus, shop: Shop, traces: Traces) -> Iterator[Shop]:
    """A second shop, which is in trouble and goes on."""
    troubled = Shop("--trouble", "--every", "0.05", port=prometheus.ill, environment=traces.environment)
    prometheus.watch_too(prometheus.ill)
    try:
        yield troubled
    finally:
        troubled.stop()


# In the order of a bad day: all is well, then trouble, then a program that is gone.
@pytest.mark.parametrize(
    "arguments", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"]
)
def test_promtool_finds_nothing_wrong(arguments: str) -> None:
    """The files are valid for Prometheus, and each alert fires when it should and not before."""
    done = subprocess.run(
        [program("promtool", PACKAGE), *arguments.split()], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_the_commands_of_the_how_to_are_those_that_run_here() -> None:
    """The files and options in the commands exist: Prometheus accepts its file, promtool its tests, the shop its options."""
    newer = installed("debian")
    tried: dict[str, Callable[[list[str]], list[str | Path]]] = {
        "python": lambda arguments: [sys.executable, *arguments, "--help"],
        "promtool": lambda arguments: [program("promtool", PACKAGE), *arguments],
        "prometheus": lambda arguments: [program("promtool", PACKAGE), "check", "config", arguments[0].split("=")[1]],
        "victoria-metrics": lambda arguments: [newer / "victoria-metrics", "-dryRun", *arguments],
        "vmalert": lambda arguments: [newer / "vmalert", "-dryRun", *arguments],
        "vmalert-tool": lambda arguments: [newer / "vmalert-tool", *arguments],
    }
    assert {command.split()[0] for command in commands()} == {*tried, "pip", "export"}
    for command in commands():
        name, *arguments = command.split()
        if name not in tried:
            continue
        done = subprocess.run(tried[name](arguments), cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout!r}{done.stderr!r}"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('sum(pocket_plug_run_duration_seconds_count{%s,pocket_plug_graph_name="orders"})', ORDERS),
        ('pocket_plug_run_recorded{%s,pocket_plug_run_state="suspended"}', 5),
        ("sum(pocket_plug_run_active{%s})", 0),
        ("sum(pocket_plug_fan_out_active{%s})", 0),
        (
            'sum(pocket_plug_node_duration_seconds_count{%s,pocket_plug_node_name="pack"})',
            sum(1 + number % 3 for number in range(ORDERS) if number % 14 != 13),
        ),
        ('pocket_plug_node_duration_seconds_count{%s,pocket_plug_node_action="declined"}', ORDERS // 14),
        ("sum(pocket_plug_node_retries_total{%s})", ORDERS // 5),
        ('pocket_plug_store_writes_total{%s,db_namespace="archive",db_operation_name="set"}', ORDERS - ORDERS // 14),
        ('sum(pocket_plug_store_lookups_total{%s,db_namespace="archive"})', ORDERS - ORDERS // 14),
        (
            'sum(db_client_operation_duration_seconds_count{%s,db_namespace="archive",db_operation_name="set"})',
            ORDERS - ORDERS // 14,
        ),
        ('pocket_plug_store_entries{%s,db_namespace="state"}', 50),
        ('pocket_plug_store_queue{%s,db_namespace="state"}', 0),
    ],
)
def test_prometheus_has_what_the_shop_did(prometheus: Prometheus, shop: Shop, expression: str, expected: int) -> None:
    """The exact numbers of runs, visits, items, retries, writes, lookups and entries."""
    assert prometheus.values(expression % f'instance="{shop.instance}"') == [expected]


def test_no_alert_fires_while_all_is_well(prometheus: Prometheus, shop: Shop) -> None:
    """Every rule is evaluated without an error, and none fires."""

    def evaluated() -> list[dict[str, Any]] | None:
        rules: list[dict[str, Any]] = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = until("all rules to be evaluated", evaluated)
    names = re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text("utf-8"))
    assert [(rule["name"], rule["health"]) for rule in rules] == [(name, "ok") for name in names]
    assert prometheus.firing() == set()


@pytest.mark.parametrize(
    "alert",
    [("PocketPlugRunsFail", "orders"), ("PocketPlugRetryStorm", "orders"), ("PocketPlugStoreErrors", "archive")],
    ids=lambda alert: alert[0],
)
def test_trouble_raises_an_alert(prometheus: Prometheus, troubled: Shop, alert: tuple[str, str]) -> None:
    """A bank that does not answer and a store that refuses values raise alerts, with the graph's or the store's name."""
    until(f"{alert} to fire", lambda: True if alert in prometheus.firing() else None)


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS, ids=[title for title, _ in EXPRESSIONS])
def test_a_panel_shows_what_happened(prometheus: Prometheus, troubled: Shop, title: str, expression: str) -> None:
    """With all variables at "All", each query of the dashboard has a result; after the trouble, each error query isn't zero."""
    until(f"something to show: {expression}", lambda: prometheus.shown(title, expression))


@pytest.mark.parametrize(("title", "expression"), WITH_DOTS, ids=[title for title, _ in WITH_DOTS])
def test_an_exemplar_of_a_panel_leads_to_a_trace(
    prometheus: Prometheus, troubled: Shop, traces: Traces, title: str, expression: str
) -> None:
    """A panel of durations has exemplars, scraped by Prometheus, and the collector has received their traces."""
    del title
    until("a dot whose trace has come", lambda: any(map(traces.has, prometheus.traces(expression))) or None)


@pytest.mark.parametrize("name", ["job", "instance", "graph", "namespace"])
def test_a_choice_offers_what_there_is(prometheus: Prometheus, troubled: Shop, name: str) -> None:
    """The dashboard's variables list the jobs, instances, graphs and stores."""
    offered = {
        "job": ["pocket_plug"],
        "instance": sorted(f"127.0.0.1:{port}" for port in (prometheus.well, prometheus.ill)),
        "graph": ["orders", "vouchers"],
        "namespace": ["archive", "desk", "state"],
    }
    assert prometheus.offered(name) == offered[name]


def test_a_picture_of_the_alerts(
    prometheus: Prometheus, troubled: Shop, look: Callable[[str], Page], picture: Callable[[Page, str], None]
) -> None:
    """As Prometheus shows them; Debian's package has the classic pages only."""
    until("the shop's alert", lambda: True if ("PocketPlugRunsFail", "orders") in prometheus.firing() else None)
    page = look(f"{prometheus.url}/classic/alerts")
    page.get_by_text("Show annotations").click()
    page.get_by_text("PocketPlugRunsFail").first.click()
    page.get_by_text("of the runs of orders fail").wait_for()
    picture(page, "prometheus-alerts")


def test_a_program_that_is_gone_raises_an_alert(prometheus: Prometheus, shop: Shop, troubled: Shop) -> None:
    """A program that is gone raises an alert with its address; the one that is still there doesn't."""
    shop.stop()
    gone = ("PocketPlugTelemetryAbsent", shop.instance)
    until(f"{gone} to fire", lambda: True if gone in prometheus.firing() else None)
    assert ("PocketPlugTelemetryAbsent", troubled.instance) not in prometheus.firing()
