"""`trace`: lists, summarizes, draws, watches, removes and sends the traces in a file."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from pocket_plug.errors import ConfigError, UnknownRunError
from pocket_plug.primitives.files import make_folder, private

from .durations import duration
from .output import as_json, echo, echo_json, echo_value, plural, print_table, progress
from .trace_diff import diff
from .trace_texts import FINE, figures_head, figures_row, outcome_text
from .traces_found import (
    found_traces,
    in_file,
    no_file,
    opened_index,
    readable,
    say_unreadable,
    traces_of_run,
)
from .trees import follow, local_time, print_errors, print_stats, print_tree

if TYPE_CHECKING:
    from pocket_plug.traces.open_spans import OpenSpan
    from pocket_plug.traces.recorded import Trace
    from pocket_plug.traces.summary import RunSummary


@click.group
def trace() -> None:
    """List, show, compare and send recorded traces.

    `run --trace` and observe() record traces in a file. Files of other tools can be read too if they contain OTLP/JSON,
    one request per line.
    """


LIMIT = 100
"""How many runs `ls` lists by default."""


of_graph = click.option("--graph", metavar="NAME", help="Only runs of this graph.")
since_then = click.option(
    "--since", type=duration, metavar="TIME", help="Only runs that began in the last TIME: 2h, 7d."
)


trace.add_command(diff)


# ---------------------------------------------------------------- ls
@trace.command
@in_file
@of_graph
@click.option("--failed", is_flag=True, help="Only runs that failed, were cancelled, or never ended.")
@click.option("--error", metavar="TYPE", help="Only runs with an error of this type anywhere: TimeoutError.")
@since_then
@click.option("--node", metavar="NAME", help="Only runs that have visited this node.")
@click.option(
    "--min",
    "least",
    type=duration,
    metavar="TIME",
    help="Only runs, or visits of --node, that took at least TIME: 500ms.",
)
@click.option("--attr", metavar="KEY=VALUE", help="Only runs in which a span or its resource has this attribute.")
@click.option(
    "--limit", type=click.IntRange(1), default=LIMIT, show_default=True, metavar="N", help="At most the N newest."
)
@as_json
def ls(
    file: Path,
    graph: str | None,
    failed: bool,
    error: str | None,
    since: float | None,
    node: str | None,
    least: float | None,
    attr: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List recorded runs, the newest first.

    A resumed run has a line for each execution. A run is "running" while its process is alive and executes it, and
    "unfinished" if it never ended, for example because its process was killed.
    """
    name, equals, value = (attr or "").partition("=")
    if attr is not None and not (name and equals):
        raise click.UsageError(f"--attr is {attr!r}; give KEY=VALUE, such as --attr customer=17")
    begin, shortest = _moment(since), (least or 0) * 1e9
    with opened_index(file) as index:
        chosen: list[set[str]] = []
        if error is not None:
            chosen.append(index.with_error(error))
        if node is not None:
            chosen.append(index.with_visit(node, shortest))
            shortest = 0
        if attr is not None:
            chosen.append(index.with_attribute(name, value))
        found = [
            *islice(
                (
                    run
                    for run in index.runs()
                    if graph in (None, run.graph)
                    and not (failed and run.outcome in FINE)
                    and run.start >= begin
                    and run.duration >= shortest
                    and all(run.trace_id in each for each in chosen)
                ),
                min(limit, sys.maxsize - 1) + 1,
            )
        ]
    _print_runs(found[:limit], as_json)
    if not found:
        is_chosen = bool(chosen or graph is not None or failed or since is not None or least is not None)
        echo(f"there are no {'such runs' if is_chosen else 'runs'} in {file}", err=True)
    if len(found) > limit:
        echo(f"there are more runs; use --limit {limit * 10} to see them", err=True)


def _print_runs(runs: Sequence[RunSummary], as_json: bool) -> None:
    if as_json:
        echo_json(runs)
        return
    from pocket_plug.traces.figures import seconds

    rows = [
        (
            run.run_id,
            run.graph,
            outcome_text(run.outcome, run.error, run.place),
            local_time(run.start),
            seconds(run.duration),
            f"{run.spans}",
            f"{run.errors}",
            f"{run.retries}",
        )
        for run in runs
    ]
    print_table(("run", "graph", "outcome", "started", "took", "spans", "errors", "retries"), rows)


def _moment(since: float | None) -> float:
    """The moment so many seconds ago, in nanoseconds since the epoch; 0 if it is before the epoch."""
    return 0 if since is None else max(0, (time.time() - since) * 1e9)


# ---------------------------------------------------------------- stats
@trace.command
@in_file
@of_graph
@since_then
@as_json
def stats(file: Path, graph: str | None, since: float | None, as_json: bool) -> None:
    """Show durations and failures of graphs and nodes.

    They are summed up over all recorded runs. Below each graph are its nodes, sorted by total time. Runs that haven't
    ended aren't counted. "failed" counts runs that neither succeeded nor were suspended, and visits that failed after all
    attempts; `trace show --stats` counts errors where they were raised. "retries" are those of the node, or of all nodes
    of the run.
    """
    with opened_index(file) as index:
        found = index.stats(graph=graph, since=int(_moment(since)))
    if as_json:
        echo_json(found)
        return
    rows = [(each.graph if each.node is None else f"  {each.node}", *figures_row(each, each.failed)) for each in found]
    print_table(("graph, node", *figures_head("failed")), rows)


# ---------------------------------------------------------------- rm
@trace.command
@click.argument("names", nargs=-1, metavar="[RUN]...")
@in_file
@click.option("--older", type=duration, metavar="TIME", help="Traces that ended longer ago: 30d.")
@click.option("--all", "everything", is_flag=True, help="All traces, except those in progress.")
def rm(names: tuple[str, ...], file: Path, older: float | None, everything: bool) -> int:
    """Remove traces of each RUN, or old ones.

    RUN is named as for `show`. Whole traces are removed, but never a trace that is in progress. If a RUN doesn't exist,
    that is reported, and the exit code is 1.
    """
    if sum((bool(names), older is not None, everything)) != 1:
        raise click.UsageError("say what to remove: RUNs, or --older TIME, or --all")
    missing: list[str] = []
    with opened_index(file) as index:
        traces = index.ended_before(_moment(older) if older is not None else math.inf if everything else 0)
        runs = [*index.runs()]
        for name in names:
            try:
                traces |= traces_of_run(index, name, file)
            except UnknownRunError as error:
                missing.append(str(error))
        alive = {each.span.trace_id for each in index.open_spans(traces) if each.alive}
        if alive and names:
            raise click.ClickException(
                f"{', '.join(names)}: it is in progress; a trace can be removed once it has ended"
            )
        traces -= alive
    from pocket_plug.traces.open_spans import remove_left
    from pocket_plug.traces.retention import without

    try:
        removed = without(file, traces) if traces else 0
    except FileNotFoundError:
        raise no_file(file) from None
    except BlockingIOError as error:
        raise click.ClickException(f"nothing was removed: {error}; try again") from error
    except OSError as error:
        raise ConfigError(
            f"nothing was removed from {file}, since the new file beside it can't be written: {error.strerror}"
        ) from error
    remove_left(file, traces)
    gone = len({run.run_id for run in runs if run.trace_id in traces})
    echo(f"removed {plural(gone, 'run')}, {plural(removed, 'span')}", err=True)
    for each in missing:
        echo(each, err=True)
    return int(bool(missing))


# ---------------------------------------------------------------- show
@trace.command
@click.argument("run", required=False)
@click.argument("other", required=False)
@in_file
@click.option("--html", metavar="FILE", help="Write an HTML page to FILE; - is stdout.")
@click.option("--open", "opens", is_flag=True, help="Open the HTML page in the browser.")
@click.option("--watch", is_flag=True, help="Follow it live until it has ended.")
@click.option("--errors", is_flag=True, help="Only failed spans and their parents, with place and message.")
@click.option("--all", "whole", is_flag=True, help="Show every span, without summing up similar ones.")
@click.option(
    "--stats", is_flag=True, help="A table with a line for each span name; errors are counted where they were raised."
)
@as_json
def show(
    run: str | None,
    other: str | None,
    file: Path,
    html: str | None,
    opens: bool,
    watch: bool,
    errors: bool,
    whole: bool,
    stats: bool,
    as_json: bool,
) -> int:
    """Show a run as a tree, or as an HTML page.

    RUN is the id of a run or the first characters of it, the name of a graph (its newest run), or the id of a trace.
    Without RUN, it is the newest run, or the newest trace if there are no runs. For a resumed run, all executions are
    shown; RUN#2 shows only the second one. With --watch and without RUN, it is the newest run in progress, or else the
    next one that begins.

    The tree sums up many siblings with the same name, except those that lead to the first failure. With --html or --open,
    OTHER is a second run on the same page, to compare the two.
    """
    if other is not None and html is None and not opens:
        raise click.UsageError(
            "OTHER is for the page: add --html or --open; `pocket-plug trace diff` compares runs in the terminal"
        )
    views = [name for name, given in (("--errors", errors), ("--all", whole), ("--stats", stats)) if given]
    if len(views) > 1:
        raise click.UsageError(f"{' and '.join(views)} can't be combined; give only one of them")
    if views and (watch or html is not None or opens or as_json):
        raise click.UsageError(f"{views[0]} is for the terminal; leave it out with --watch, --html, --open and --json")
    if watch and (html is not None or opens or as_json):
        raise click.UsageError(
            "--watch draws in the terminal; leave out --html, --open and --json, or show it afterwards"
        )
    if as_json and (html is not None or opens):
        raise click.UsageError("--json can't be combined with --html or --open; give only one of them")
    if watch:
        with readable(file):
            return follow(file, run)
    traces, open_spans = found_traces(file, run)
    if as_json:
        echo_json([{"trace_id": each.id, "spans": each.spans} for each in traces])
    elif html is not None or opens:
        return _paint(traces if other is None else _beside(traces, file, other), html, opens)
    else:
        for each in traces:
            _print(each, [found for found in open_spans if found.span.trace_id == each.id], views)
    return 0


def _print(found: Trace, open_spans: Sequence[OpenSpan], views: Sequence[str]) -> None:
    """Print a trace, with these open spans, in a view for the terminal; by default as a tree."""
    alive = any(each.alive for each in open_spans)
    now = time.time_ns() if alive else max((each.seen for each in open_spans), default=0)
    if "--stats" in views:
        print_stats(found, alive)
        if left_out := sum(not span.end for span in found.spans):
            echo(f"not counted, since they haven't ended: {plural(left_out, 'span')}", err=True)
    elif "--errors" in views:
        print_errors(found, now, alive)
    else:
        print_tree(found, now, alive, whole="--all" in views)


def _beside(traces: Sequence[Trace], path: Path, other: str) -> list[Trace]:
    """These traces and those of another run, each once, ordered by start."""
    found = {each.id: each for each in (*traces, *found_traces(path, other, "OTHER")[0])}
    return sorted(found.values(), key=lambda each: each.start)


def _paint(traces: Sequence[Trace], html: str | None, opens: bool) -> int:
    from pocket_plug.traces.page import page

    text = page(traces)
    if html == "-":
        if opens:
            raise click.UsageError("--open needs a file; leave out --html, or name a file")
        echo_value(text, nl=False)
        return 0
    path = Path(html) if html is not None else _cached(traces[-1])
    try:
        make_folder(path.parent)
        with open(path, "w", encoding="utf-8", opener=private) as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"the page can't be written to {path}: {error.strerror}; --html names another file"
        ) from error
    echo(f"page: {path}", err=True)
    return _open(path) if opens else 0


def _open(path: Path) -> int:
    import webbrowser

    if webbrowser.open(path.resolve().as_uri()):
        return 0
    echo("no browser could be opened; open the page yourself", err=True)
    return 1


def _cached(newest: Trace) -> Path:
    """The file for the page of a run, if none is given."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocket_plug"
    return folder / f"trace-{quote(newest.run_id or newest.id, safe='')[:100]}.html"


# ---------------------------------------------------------------- send
@trace.command
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--to", "url", metavar="URL", required=True, help="The backend, such as http://localhost:4318.")
@click.option(
    "--header", "headers", metavar="KEY=VALUE", multiple=True, help="A header to send along; may be repeated."
)
def send(file: Path, url: str, headers: tuple[str, ...]) -> int:
    """Send all traces of FILE to a backend that accepts OTLP over HTTP.

    /v1/traces is appended to a URL without a path. Headers in OTEL_EXPORTER_OTLP_HEADERS are sent as well, and the
    server's certificate is checked against those in OTEL_EXPORTER_OTLP_CERTIFICATE. If the backend rejects any span, the
    exit code is 1.
    """
    from opentelemetry.util.re import parse_env_headers

    from pocket_plug.traces.recorded import TraceFile

    try:
        from pocket_plug.traces import send as sending
    except ModuleNotFoundError as error:
        raise ConfigError(f"sending needs {error.name}: pip install 'pocket-plug[otlp]'") from None
    given = dict(parse_env_headers(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""), liberal=True))
    for header in headers:
        name, equals, value = header.partition("=")
        if not equals or not name.strip() or not (header.isascii() and header.isprintable()):
            # the value isn't shown: it may be a secret
            raise click.UsageError("--header is KEY=VALUE, in ASCII on one line")
        given[name.strip()] = value.strip()
    target = sending.endpoint(url)
    source = TraceFile(file)
    with readable(file), progress("sending", file.stat().st_size) as advance:
        sent = sending.send(source, url, given, advance)
    if source.unreadable:
        say_unreadable(source.path, source.unreadable)
    echo(f"sent {plural(sent.taken, 'span')} to {sending.shown(target)}", err=True)
    for reason, spans in sent.reasons.items():
        echo(f"not accepted: {plural(spans, 'span')}, {reason}", err=True)
    return int(bool(sent.refused or source.unreadable))
