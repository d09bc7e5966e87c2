"""Writes `dashboard.json`, which Grafana imports. Change this file, not the JSON: `python examples/monitoring/dashboard.py`.

It needs Grafana's library for dashboards: `pip install 'grafana-foundation-sdk==1769699379!11.6.0'`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from urllib.parse import quote

from grafana_foundation_sdk.builders import bargauge, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import common as parts
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

FILE = Path(__file__).with_suffix(".json")
SCHEMA = 42
"""Of Grafana 12 and 13. Newer ones bring a dashboard up to date by themselves; the library is one number behind."""

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
GRAPH, NODE, ACTION = "pocket_plug_graph_name", "pocket_plug_node_name", "pocket_plug_node_action"
OUTCOME, ERROR, STATE = "pocket_plug_run_outcome", "error_type", "pocket_plug_run_state"
STORE, OPERATION, HIT, REASON = (
    "db_namespace",
    "db_operation_name",
    "pocket_plug_store_hit",
    "pocket_plug_store_eviction_reason",
)
LABELS = {
    "graph": GRAPH,
    "node": NODE,
    "action": ACTION,
    "outcome": OUTCOME,
    "error": ERROR,
    "state": STATE,
    "store": STORE,
    "operation": OPERATION,
    "hit": HIT,
    "reason": REASON,
    "instance": "instance",
    "le": "le",
}
"""How the names of lines, such as "{graph}: {error}", call the labels."""
FAILED, RAISED = f'{OUTCOME}=~"failure|timeout"', f'{ERROR}!=""'
ANY = '{__name__=~"pocket_plug_(run_active|store_lookups_total)"'
"""One figure that each program with runs has, and one that each with stores has."""

Panel = timeseries.Panel | stat.Panel | heatmap.Panel | bargauge.Panel


# ---------------------------------------------------------------- Prometheus queries
def runs(metric: str, *matchers: str) -> str:
    """A metric of runs or nodes, filtered by the variables at the top."""
    return _chosen(metric, 'pocket_plug_graph_name=~"$graph"', *matchers)


def stores(metric: str, *matchers: str) -> str:
    """A metric of stores, filtered by the variables at the top."""
    return _chosen(metric, 'db_namespace=~"$namespace"', *matchers)


def _chosen(metric: str, *matchers: str) -> str:
    return metric + "{" + ", ".join(('job=~"$job"', 'instance=~"$instance"', *matchers)) + "}"


def rate(series: str) -> str:
    return f"rate({series}[$__rate_interval])"


def total(series: str, *labels: str) -> str:
    return f"sum by ({', '.join(labels)}) ({series})" if labels else f"sum({series})"


def oldest(series: str, *labels: str) -> str:
    return f"max by ({', '.join(labels)}) ({series})"


def quantile(share: float, buckets: str, *labels: str) -> str:
    return f"histogram_quantile({share:g}, {total(rate(buckets), 'le', *labels)})"


def quantiles(buckets: str, *labels: str) -> dict[str, str]:
    """The median, and the 95th and 99th percentile of a histogram, each with a name for its line."""
    suffix = "".join(f" {{{name}}}" for name, label in LABELS.items() if label in labels)
    return {f"p{share * 100:g}{suffix}": quantile(share, buckets, *labels) for share in (0.5, 0.95, 0.99)}


def recorded(*labels: str, state: str = "") -> str:
    """Stored durable runs. Every process that watches a store reports all of its runs, so the processes aren't added up."""
    matchers = [f'{STATE}=~"{state}"'] if state else []
    return total(oldest(runs("pocket_plug_run_recorded", *matchers), "job", STORE, GRAPH, STATE), *labels)


# ---------------------------------------------------------------- links to traces
def traces(by: str, *, failed: bool = False) -> list[build.DashboardLink]:
    """Links from a line to its traces in Tempo and in Jaeger: traces of the line's graph or node."""
    name, value = by.replace("pocket_plug_", "pocket_plug.").replace("_name", ".name"), f"${{__field.labels.{by}}}"
    traceql = f'{{ span.{name} = "{value}"{" && status = error" if failed else ""} }}'
    tags = f'{name}="{value}"{" error=true" if failed else ""}'
    queries = {
        "tempo": {"queryType": "traceql", "query": traceql},
        "jaeger": {"queryType": "search", "service": "${job}", "tags": tags},
    }
    return [
        build.DashboardLink(f"{'Failed traces' if failed else 'Traces'} in {place.title()}").url(explore(place, query))
        for place, query in queries.items()
    ]


def explore(place: str, query: Mapping[str, str]) -> str:
    """The address of Grafana's page Explore, with a query to a data source of this type, for the dashboard's time range."""
    source = {"type": place, "uid": f"${{{place}}}"}
    pane = {
        "datasource": source["uid"],
        "queries": [{"refId": "A", "datasource": source, **query}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    text = json.dumps({"traces": pane}, separators=(",", ":"))
    return f"/explore?schemaVersion=1&orgId=${{__org.id}}&panes={quote(text, safe='${}:,._')}"


# ---------------------------------------------------------------- panels
def lines(
    title: str,
    about: str,
    unit: str,
    queries: Mapping[str, str],
    *,
    width: int = 8,
    exemplars: bool = False,
    to: Sequence[build.DashboardLink] = (),
) -> Panel:
    """A time series panel: each query with the names of its lines, each line with links."""
    panel = (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(10)
        .show_points(common.VisibilityMode.NEVER)
        .span_nulls(False)
        .tooltip(parts.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
        .legend(
            parts.VizLegendOptions()
            .show_legend(True)
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull", "max"])
        )
        .data_links([*to])
    )
    return _shown(panel, title, about, unit, queries, width, exemplars=exemplars)


def number(title: str, about: str, unit: str, expression: str, *, steps: tuple[float, float] | None = None) -> Panel:
    """A panel with one number, which is orange and red above these thresholds."""
    panel = (
        stat.Panel()
        .min(0)
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .reduce_options(parts.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
    )
    if steps:
        found = [
            dashboard.Threshold(value, color)
            for value, color in zip((None, *steps), ("green", "orange", "red"), strict=True)
        ]
        panel.thresholds(build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(found))
        panel.color_scheme(build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    return _shown(panel, title, about, unit, {title: expression}, 4)


def bars(title: str, about: str, unit: str, queries: Mapping[str, str]) -> Panel:
    """A panel with a bar for each value, as of now."""
    panel = (
        bargauge.Panel()
        .min(0)
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.GRADIENT)
        .reduce_options(parts.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
    )
    return _shown(panel, title, about, unit, queries, 8)


def heat(title: str, about: str, unit: str, expression: str) -> Panel:
    """A heat map of a histogram's buckets."""
    linear = parts.ScaleDistributionConfig().type(common.ScaleDistribution.LINEAR)
    panel = heatmap.Panel().calculate(False).y_axis(heatmap.YAxisConfig().unit(unit)).scale_distribution(linear)
    return _shown(panel, title, about, unit, {"{le}": expression}, 8, exemplars=True, form=PromQueryFormat.HEATMAP)


def _shown(
    panel: Panel,
    title: str,
    about: str,
    unit: str,
    queries: Mapping[str, str],
    width: int,
    *,
    exemplars: bool = False,
    form: PromQueryFormat = PromQueryFormat.TIME_SERIES,
) -> Panel:
    panel.title(title).description(about).unit(unit).datasource(SOURCE).span(width).height(8)
    names = {name: f"{{{{{label}}}}}" for name, label in LABELS.items()}
    for letter, (line, expression) in zip(ascii_uppercase[: len(queries)], queries.items(), strict=True):
        query = prometheus.Dataquery().ref_id(letter).datasource(SOURCE).expr(expression)
        query.legend_format(line.format_map(names))
        panel.with_target(query.editor_mode(QueryEditorMode.CODE).range().exemplar(exemplars).format(form))
    return panel


# ---------------------------------------------------------------- the dashboard
RUNS, NODES = "pocket_plug_run_duration_seconds", "pocket_plug_node_duration_seconds"
OPERATIONS = "db_client_operation_duration_seconds"

ROWS: dict[str, list[Panel]] = {
    "Runs": [
        lines(
            "Runs",
            "Runs that ended, by graph.",
            "ops",
            {"{graph}": total(rate(runs(f"{RUNS}_count")), GRAPH)},
            to=traces(GRAPH),
        ),
        lines(
            "Outcomes",
            "How runs ended: success, failure, timeout, cancelled, suspended.",
            "ops",
            {"{outcome}": total(rate(runs(f"{RUNS}_count")), OUTCOME)},
        ),
        number(
            "Failure ratio",
            "Runs that failed or timed out, of all that ended.",
            "percentunit",
            f"({total(rate(runs(f'{RUNS}_count', FAILED)))} or vector(0)) / {total(rate(runs(f'{RUNS}_count')))}",
            steps=(0.01, 0.05),
        ),
        number("Active runs", "Runs that are being executed.", "short", total(runs("pocket_plug_run_active"))),
        lines(
            "Duration of runs",
            "Half, 95 % and 99 % of the runs took no longer. A dot is one run, with a link to its trace.",
            "s",
            quantiles(runs(f"{RUNS}_bucket")),
            exemplars=True,
        ),
        heat(
            "Durations, all of them",
            "How many runs took how long.",
            "s",
            total(f"increase({runs(f'{RUNS}_bucket')}[$__rate_interval])", "le"),
        ),
        lines(
            "What goes on",
            "Runs, and items of fan-outs, that are being worked on.",
            "short",
            {
                "runs of {graph}": total(runs("pocket_plug_run_active"), GRAPH),
                "items at {node}": total(runs("pocket_plug_fan_out_active"), GRAPH, NODE),
            },
        ),
        lines(
            "Failures by error",
            "What runs failed with.",
            "ops",
            {"{graph}: {error}": total(rate(runs(f"{RUNS}_count", RAISED)), GRAPH, ERROR)},
            width=24,
            to=traces(GRAPH, failed=True),
        ),
    ],
    "Durable runs": [
        number("Questions that wait", "Durable runs that wait for an answer.", "short", recorded(state="suspended")),
        number("Stalled runs", "Their process has ended or hangs.", "short", recorded(state="stalled"), steps=(1, 10)),
        lines(
            "Durable runs",
            "Durable runs that are kept, by graph and state. Those that are pending wait for a worker.",
            "short",
            {"{graph}: {state}": recorded(GRAPH, STATE)},
            width=16,
        ),
        lines(
            "Age of the oldest question",
            "How long the oldest open question of durable runs has been waiting for an answer.",
            "s",
            {"{graph}": oldest(runs("pocket_plug_run_question_age_seconds"), GRAPH)},
            width=12,
        ),
        lines(
            "Age of the oldest stalled run",
            "How long ago the stalled run moved that has not for longest.",
            "s",
            {"{graph}": oldest(runs("pocket_plug_run_stalled_age_seconds"), GRAPH)},
            width=12,
        ),
    ],
    "Nodes": [
        bars(
            "Where the time goes",
            "Seconds spent in each node per second, with concurrent visits added up. The ten highest.",
            "s",
            {"{graph}.{node}": f"topk(10, {total(rate(runs(f'{NODES}_sum')), GRAPH, NODE)})"},
        ),
        lines(
            "Slowest nodes",
            "95 % of the visits took no longer. The ten slowest. A dot is one visit, with a link to its trace.",
            "s",
            {"{graph}.{node}": f"topk(10, {quantile(0.95, runs(f'{NODES}_bucket'), GRAPH, NODE)})"},
            exemplars=True,
            to=traces(NODE),
        ),
        lines(
            "Visits and ways taken",
            "Visits that ended, by the action they left with.",
            "ops",
            {"{node}: {action}": total(rate(runs(f"{NODES}_count", 'pocket_plug_node_action!=""')), NODE, ACTION)},
            to=traces(NODE),
        ),
        lines(
            "Retries",
            "Attempts at exec after the first, by what was raised.",
            "ops",
            {"{graph}.{node}: {error}": total(rate(runs("pocket_plug_node_retries_total")), GRAPH, NODE, ERROR)},
            to=traces(NODE),
        ),
        lines(
            "Failures of nodes by error",
            "What visits ended with that failed.",
            "ops",
            {
                "{graph}.{node}: {error}": total(
                    rate(runs(f"{NODES}_count", 'pocket_plug_node_outcome="failed"')), GRAPH, NODE, ERROR
                )
            },
            to=traces(NODE, failed=True),
        ),
        lines(
            "Failure ratio of nodes",
            "Visits that failed, of all.",
            "percentunit",
            {
                "{graph}.{node}": total(rate(runs(f"{NODES}_count", 'pocket_plug_node_outcome="failed"')), GRAPH, NODE)
                + f" / {total(rate(runs(f'{NODES}_count')), GRAPH, NODE)}"
            },
            to=traces(NODE, failed=True),
        ),
        lines(
            "Commit conflicts",
            "Commits that met somebody else's, and were tried again.",
            "ops",
            {"{graph}.{node}": total(rate(runs("pocket_plug_commit_conflicts_total")), GRAPH, NODE)},
            width=12,
        ),
        lines(
            "Items of fan-outs",
            "Items that are being worked on, by the node that works on them.",
            "short",
            {"{graph}.{node}": total(runs("pocket_plug_fan_out_active"), GRAPH, NODE)},
            width=12,
        ),
    ],
    "Stores": [
        lines(
            "Hit ratio",
            "Lookups that found something, of all.",
            "percentunit",
            {
                "{store}": total(rate(stores("pocket_plug_store_lookups_total", f'{HIT}="true"')), STORE)
                + f" / {total(rate(stores('pocket_plug_store_lookups_total')), STORE)}"
            },
        ),
        lines(
            "Lookups",
            "Keys looked up.",
            "ops",
            {"{store}, hit: {hit}": total(rate(stores("pocket_plug_store_lookups_total")), STORE, HIT)},
        ),
        lines(
            "Writes",
            "Entries set or deleted.",
            "ops",
            {"{store}: {operation}": total(rate(stores("pocket_plug_store_writes_total")), STORE, OPERATION)},
        ),
        lines(
            "Errors",
            "Operations that failed, by what was raised.",
            "ops",
            {
                "{store}.{operation}: {error}": total(
                    rate(stores("pocket_plug_store_errors_total")), STORE, OPERATION, ERROR
                )
            },
        ),
        lines(
            "Conflicts",
            "Writes that expected another version.",
            "ops",
            {"{store}": total(rate(stores("pocket_plug_store_conflicts_total")), STORE)},
        ),
        lines(
            "Latency on disk and network",
            "Half, 95 % and 99 % of the operations took no longer.",
            "s",
            quantiles(stores(f"{OPERATIONS}_bucket"), STORE, OPERATION),
            exemplars=True,
        ),
        lines(
            "Evictions",
            "Evicted entries, by reason: too many entries, too many bytes, expired.",
            "ops",
            {"{store}: {reason}": total(rate(stores("pocket_plug_store_evictions_total")), STORE, REASON)},
            width=6,
        ),
        lines(
            "Entries",
            "Entries kept in memory, or bounded.",
            "short",
            {"{store}": total(stores("pocket_plug_store_entries"), STORE)},
            width=6,
        ),
        lines(
            "Write-behind queue",
            "Keys that are yet to be written to the file.",
            "short",
            {"{store}": total(stores("pocket_plug_store_queue"), STORE)},
            width=6,
        ),
        lines(
            "Age of the queue",
            "How long the oldest of them has been waiting: what a crash now would lose.",
            "s",
            {"{store}": oldest(stores("pocket_plug_store_queue_age_seconds"), STORE)},
            width=6,
        ),
    ],
    "Instances": [
        lines(
            "Runs by instance",
            "Runs that ended, by the process they ran in. One without a line takes no work.",
            "ops",
            {"{instance}": total(rate(runs(f"{RUNS}_count")), "instance")},
            width=6,
        ),
        lines(
            "Failures by instance",
            "Runs that failed or timed out.",
            "ops",
            {"{instance}": total(rate(runs(f"{RUNS}_count", FAILED)), "instance")},
            width=6,
        ),
        lines(
            "p95 by instance",
            "95 % of the runs took no longer.",
            "s",
            {"{instance}": quantile(0.95, runs(f"{RUNS}_bucket"), "instance")},
            width=6,
            exemplars=True,
        ),
        lines(
            "Active runs by instance",
            "Runs that are being executed.",
            "short",
            {"{instance}": total(runs("pocket_plug_run_active"), "instance")},
            width=6,
        ),
    ],
}


def variables() -> Iterator[build.DatasourceVariable | build.QueryVariable]:
    """The variables at the top."""
    yield build.DatasourceVariable("datasource").label("Data source").type("prometheus")
    yield build.DatasourceVariable("tempo").label("Traces (Tempo)").type("tempo")
    yield build.DatasourceVariable("jaeger").label("Traces (Jaeger)").type("jaeger")
    for name, label, series, values in (
        ("job", "Job", ANY + "}", "job"),
        ("instance", "Instance", ANY + ', job=~"$job"}', "instance"),
        ("graph", "Graph", 'pocket_plug_run_active{job=~"$job", instance=~"$instance"}', GRAPH),
        ("namespace", "Store", 'pocket_plug_store_lookups_total{job=~"$job", instance=~"$instance"}', STORE),
    ):
        query = f"label_values({series}, {values})"
        yield (
            build.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query({"query": query, "refId": "StandardVariableQuery", "qryType": 1})
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(dashboard.VariableOption(text=["All"], value=["$__all"]))
        )


def made() -> str:
    """The text of `dashboard.json`."""
    whole = (
        build.Dashboard("pocket_plug")
        .uid("pocket-plug")
        .description("Runs, durable runs, nodes, stores and instances of pocket_plug.")
        .tags(["pocket_plug"])
        .editable()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
    )
    for variable in variables():
        whole.with_variable(variable)
    for title, panels in ROWS.items():
        whole.with_row(build.Row(title))
        for panel in panels:
            whole.with_panel(panel)
    found = whole.build()
    found.schema_version = SCHEMA
    for number_, panel_ in enumerate(found.panels or (), 1):
        panel_.id_val = number_
    return json.dumps(found, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(made(), "utf-8")
