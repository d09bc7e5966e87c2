"""`worker`: executes pending, stalled and due runs of some graphs, until it is stopped."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import click

from pocket_plug.graph.durable.states import LEASE
from pocket_plug.graph.durable.worker import CONCURRENCY, Worker, WorkerReport
from pocket_plug.graph.graph import Graph
from pocket_plug.plugins.pocket import default_pocket
from pocket_plug.primitives.failures import error_type
from pocket_plug.primitives.signals import run_loop
from pocket_plug.primitives.terminal import escaped

from .durations import duration
from .output import as_json, echo, echo_json, only_json
from .run import load_graph, trace_options, traced
from .target import Target, by_name, by_url

if TYPE_CHECKING:
    from pocket_plug.layers.tracing import Capture

STOPPED = (signal.SIGTERM, signal.SIGINT)


@click.command
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@by_url
@by_name
@click.option(
    "--concurrency", type=click.IntRange(1), default=CONCURRENCY, show_default=True, help="How many runs at a time."
)
@click.option(
    "--lease",
    type=duration,
    metavar="TIME",
    default=f"{LEASE:g}s",
    show_default=True,
    help="How long a run may stay unchanged before other workers take it over.",
)
@click.option("--once", is_flag=True, help="End when no run is ready; exit code 1 if a run has failed.")
@trace_options
@as_json
def worker(
    targets: tuple[str, ...],
    url: str | None,
    name: str | None,
    concurrency: int,
    lease: float,
    once: bool,
    trace: bool,
    capture: Capture | None,
    as_json: bool,
) -> int:
    """Execute submitted durable runs, and resume those whose process has died.

    TARGET is a graph, as for `run`. Any number of workers may share a store. At SIGTERM or Ctrl-C, the worker takes no
    new runs, finishes the nodes that are being executed, leaves their runs to other workers, and exits with 0. At the
    second signal it ends at once.
    """
    target = Target(url, name)
    target.make_default()
    with only_json(as_json) as out:
        graphs = [load_graph(each)[1] for each in targets]
        printer = _Printer(out if as_json else None)
        with traced(trace, capture):
            run_loop(_serve(graphs, target, printer, concurrency, lease, once))
    return int(once and printer.counts["failed"] > 0)


async def _serve(
    graphs: list[Graph[Any, Any]], target: Target, printer: _Printer, concurrency: int, lease: float, once: bool
) -> None:
    served: dict[str, list[str]] = {}  # the graphs' names, by their store
    async with default_pocket() as pocket:
        for graph in graphs:
            stack = graph.place(pocket.store)[0]
            target.refuse_another(f"graph {graph.name!r}", stack, pocket.store.stack)
            served.setdefault(repr(stack), []).append(repr(graph.name))
        worker = Worker(
            graphs, concurrency=concurrency, lease=lease, pocket=pocket, report=printer, retention=pocket.config.runs
        )
        if not once:
            for place, names in served.items():
                echo(f"waiting for runs of {', '.join(names)} in {place}; Ctrl-C stops", err=True)
        with _stopping(worker):
            await worker.run(once=once)


@contextmanager
def _stopping(worker: Worker) -> Generator[None]:
    """Let the first SIGTERM or Ctrl-C stop the worker gently, and the second one have its usual effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in STOPPED}
    former = {number: handler for number, handler in former.items() if handler is not signal.SIG_IGN}  # nohup sets this
    loop = asyncio.get_running_loop()

    def stop(number: int, frame: FrameType | None) -> None:
        for each, handler in former.items():
            signal.signal(each, handler)
        worker.stop()
        loop.call_soon_threadsafe(_say_stopping)  # not here: the signal may have interrupted another print

    for number in former:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in former.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)


def _say_stopping() -> None:
    echo("stopping after the nodes that are being executed. Send the signal again to stop at once", err=True)


class _Printer:
    """Prints a line for each report of the worker: what a run has become. As JSON to `json_to`, if that is given."""

    def __init__(self, json_to: IO[str] | None) -> None:
        self._json_to = json_to
        self.counts: Counter[str] = Counter()

    def __call__(self, report: WorkerReport) -> None:
        self.counts[report.became] += 1
        kind = None if report.error is None else error_type(report.error)
        if self._json_to is not None:
            about = {"became": report.became, "run_id": report.run_id, "graph": report.graph, "error": kind}
            echo_json(about, is_compact=True, file=self._json_to)
        else:
            echo(escaped(f"{report.became:9}  {report.run_id}  {report.graph}") + (f"  {kind}" if kind else ""))
