"""The dashboard and the alerts of `examples/monitoring` use all metrics that are exported, and no others.

`make e2e` tests them with Prometheus and VictoriaMetrics.
"""

from __future__ import annotations

import asyncio
import json
import re
import runpy
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY

from pocket_plug import Store
from pocket_plug.layers import Bounding, Metrics, Persistence, metrics
from pocket_plug.testing.spans import SpanCapture

MONITORING = Path(__file__).parents[2] / "examples" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES: dict[str, dict[str, Any]] = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

PROMETHEUS_OWN = {"le", "job", "instance", "__name__"}
"""Labels that a scrape or a histogram adds."""


def alerts() -> dict[str, str]:
    """Each alert with its expression, found without a YAML parser, since the file has a regular form."""
    rules = re.split(r"^ +- alert: ", (MONITORING / "alerts.yml").read_text("utf-8"), flags=re.MULTILINE)[1:]
    found: dict[str, str] = {}
    for rule in rules:
        name, _, body = rule.partition("\n")
        [(block, line)] = re.findall(r"^ {8}expr: (?:\|\n((?: {10}.*\n)+)|(.+)\n)", body, re.MULTILINE)
        found[name] = block or line
    return found


def asked(expression: str) -> tuple[set[str], set[str]]:
    """The metrics in an expression, and the labels by which it filters and groups."""
    labels = {
        label
        for matchers in re.findall(r"\{([^}]*)\}", expression)
        for label in re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", matchers)
    }
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expression)
    grouping = r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)"
    labels.update(label for group in re.findall(grouping, rest) for label in re.findall(r"\w+", group))
    names = set(re.findall(r"\b(?:pocket_plug|db_client|target)_\w+\b", re.sub(grouping, " ", rest)))
    for prefix, endings in re.findall(r"__name__=~\"(\w+)\(([\w|]+)\)\"", expression):
        names.update(prefix + ending for ending in endings.split("|"))
    return names, labels


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """A scrape of the example's shop: the labels of each metric, after good days and bad ones."""
    provider = MeterProvider([PrometheusMetricReader()], shutdown_on_exit=False)
    former = metrics.configure(meter_provider=provider)
    example = runpy.run_path(str(MONITORING / "serve.py"))

    async def trade(folder: Path, trouble: bool) -> None:
        behind = Persistence(to=f"sqlite:///{folder / 'state.db'}", mode="behind")
        async with (
            Store(layers=[Metrics(namespace="state"), behind, Bounding(max_entries=5)]) as state,
            Store(f"sqlite:///{folder / 'archive.db'}", layers=[Metrics(namespace="archive")]) as archive,
            Store(f"sqlite:///{folder / 'desk.db'}", layers=[Metrics(namespace="desk")]) as desk,
        ):
            await example["take_orders"](example["shop"](state, archive, desk, trouble=trouble), 40, 0)
            for family in REGISTRY.collect():  # the lowest version of the exporter has no other way
                for sample in family.samples:
                    labels[sample.name].update(sample.labels)

    labels: defaultdict[str, set[str]] = defaultdict(set)
    for trouble in (False, True):
        asyncio.run(trade(tmp_path_factory.mktemp("shop"), trouble))
    yield labels
    metrics.configure(meter_provider=former.meter_provider)
    provider.shutdown()


def expressions() -> Iterator[tuple[str, str]]:
    """All of them, each with its place."""
    yield from alerts().items()
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for name, variable in VARIABLES.items():
        if variable["type"] == "query":
            [(series, label)] = re.findall(r"^label_values\((.*), (\w+)\)$", variable["query"]["query"])
            yield f"${name}", f"sum by ({label}) ({series})"


EXPRESSIONS = list(expressions())


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_only_exported_metrics_are_used(where: str, expression: str, exported: dict[str, set[str]]) -> None:
    """Each metric exists, and each label is one of a metric in that expression."""
    names, labels = asked(expression)
    assert names or "up{" in expression
    assert names <= exported.keys()
    assert labels <= PROMETHEUS_OWN.union(*(exported[name] for name in names))


def test_every_metric_of_ours_is_on_the_dashboard(exported: dict[str, set[str]]) -> None:
    """Every exported metric is shown; and the reference lists exactly the exported metrics."""
    ours = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in exported if name.startswith(("pocket_plug", "db_client"))
    }
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for panel in PANELS
        for target in panel["targets"]
        for name in asked(target["expr"])[0]
    }
    assert ours == shown
    reference = (Path(__file__).parents[2] / "docs" / "reference.md").read_text("utf-8")
    section = reference.partition("### Metrics published\n")[2].partition("\n### ")[0]
    listed = re.findall(r"^\| `([\w.]+)` \| (counter|histogram|up-down counter|gauge), (\S+)", section, re.MULTILINE)
    endings = {"counter": "_total", "histogram": "_seconds"}
    assert ours == {
        name.replace(".", "_") + endings.get(kind, "_seconds" if unit == "s" else "") for name, kind, unit in listed
    }


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_is_readable(panel: dict[str, Any]) -> None:
    """It has a description and a unit, uses the chosen data source and the variables, and names its lines by labels."""
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        names, labels = asked(target["expr"])
        stores = any(name.startswith(("pocket_plug_store", "db_client")) for name in names)
        for matchers in re.findall(r"\{([^}]*)\}", target["expr"]):
            assert 'job=~"$job", instance=~"$instance"' in matchers
            assert ('db_namespace=~"$namespace"' if stores else 'pocket_plug_graph_name=~"$graph"') in matchers
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels
        assert set(re.findall(r"\$(\w+)", target["expr"])) <= {*VARIABLES, "__rate_interval"}


def test_grafanas_own_library_knows_every_field_of_the_dashboard() -> None:
    """Parsed by its models and written again, nothing is lost and nothing is added: a misspelt field would be."""
    register_default_plugins()
    read = Dashboard.from_json(DASHBOARD)
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == DASHBOARD


def test_the_dashboard_is_what_its_program_writes() -> None:
    """If one of them changes, the other must: `python examples/monitoring/dashboard.py`."""
    program = runpy.run_path(str(MONITORING / "dashboard.py"))
    assert program["made"]() == (MONITORING / "dashboard.json").read_text("utf-8")


def test_a_panel_has_all_the_queries_that_it_is_given() -> None:
    """Each with a letter of its own."""
    program = runpy.run_path(str(MONITORING / "dashboard.py"))
    panel = program["bars"]("Many", "All of them.", "short", {f"line {n}": f"up + {n}" for n in range(5)}).build()
    assert [(each.ref_id, each.expr) for each in panel.targets] == [
        (each, f"up + {n}") for n, each in enumerate("ABCDE")
    ]


def test_a_line_links_to_existing_traces() -> None:
    """Its links filter by attributes that spans have, with the line's own label; the rest of the address is JSON for Grafana."""
    with SpanCapture() as capture:
        example = runpy.run_path(str(MONITORING / "serve.py"))
        asyncio.run(_sell(example))
    there = {name for span in capture.spans for name in span.attributes or {}}
    places: Counter[str] = Counter()
    for panel in PANELS:
        labels = {label for target in panel["targets"] for label in asked(target["expr"])[1]}
        for link in panel["fieldConfig"]["defaults"].get("links", ()):
            address, _, panes = link["url"].partition("&panes=")
            assert address == "/explore?schemaVersion=1&orgId=${__org.id}"
            pane = json.loads(unquote(panes))["traces"]
            [query] = pane["queries"]
            kind = query["datasource"]["type"]
            assert query["datasource"]["uid"] == pane["datasource"] == f"${{{kind}}}"
            assert (VARIABLES[kind]["type"], VARIABLES[kind]["query"]) == ("datasource", kind)
            text = query["query"] if kind == "tempo" else query["tags"]
            [(attribute, label)] = re.findall(r'(pocket_plug[\w.]+) ?= ?"\$\{__field\.labels\.(\w+)\}"', text)
            assert attribute in there
            assert label == attribute.replace(".", "_")
            assert label in labels
            places[kind] += 1
    assert places["tempo"] == places["jaeger"] > 5


async def _sell(example: dict[str, Any]) -> None:
    async with Store() as state, Store() as archive, Store() as desk:
        await example["take_orders"](example["shop"](state, archive, desk, trouble=False), 4, 0)


def test_durations_show_exemplars() -> None:
    """A slow quantile leads to a trace: each panel of a histogram's buckets asks for exemplars, and no other."""
    for panel in PANELS:
        for target in panel["targets"]:
            assert target["exemplar"] == ("_bucket" in target["expr"]), panel["title"]


def test_the_structure_of_the_dashboard_is_valid() -> None:
    """As far as its structure shows: ids are unique, panels lie side by side within 24 columns, rows come in order."""
    assert DASHBOARD["schemaVersion"] == 42
    assert "id" not in DASHBOARD  # otherwise an import would overwrite another dashboard
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Runs", "Durable runs", "Nodes", "Stores", "Instances"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in taken) < 24
        cells |= taken


def test_an_alert_has_a_severity_and_a_runbook() -> None:
    """Each has a waiting time, a severity, a summary, a description and a runbook, and a test of its own."""
    text = (MONITORING / "alerts.yml").read_text("utf-8")
    tested = re.findall(r"alertname: (\w+)", (MONITORING / "alerts_test.yml").read_text("utf-8"))
    names = alerts()
    assert len(names) >= 9
    for rule in re.split(r"^ +- alert: ", text, flags=re.MULTILINE)[1:]:
        assert re.search(r"^ {8}for: \d+m$", rule, re.MULTILINE)
        assert re.search(r"^ {10}severity: (page|ticket)$", rule, re.MULTILINE)
        for annotation in ("summary", "description", "runbook"):
            assert re.search(rf'^ {{10}}{annotation}: ".+"$', rule, re.MULTILINE)
        for panel in re.findall(r"'([A-Z][^']+)'", rule):
            assert panel in {shown["title"] for shown in PANELS}, f"the runbook names a panel {panel!r}"
    page = (MONITORING.parents[1] / "docs" / "howto" / "monitor-with-prometheus.md").read_text("utf-8")
    assert set(tested) == set(names) == set(re.findall(r"^\| `(PocketPlug\w+)` \|", page, re.MULTILINE))
