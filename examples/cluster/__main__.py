"""The census on a cluster on this machine: `make cluster`, or in the parent folder `python -m cluster [FOLDER …]`.

It starts a PostgreSQL server, a Dask scheduler with two workers, and two workers of pocket_plug. It submits a run for each
folder. In the middle it kills all of these processes except one, and starts them again, as a service manager would. At the end it
checks that each folder was recorded once and counted correctly, and shows the trace.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from pocket_plug import Graph, Node, Pocket, SyncRuns, SyncStore, each, observe
from pocket_plug.propagation import inject
from pocket_plug.testing.servers import Server, free_port, postgres
from pocket_plug.traces.recorded import Trace, read_traces

from .app import FOLDER, TIMES, TOTAL, Counted, count, find, graph

HERE = Path(__file__).parent
MOST = 40
"""Folders, where none are given."""
HANGS = 300.0
"""Seconds after which something must be wrong."""


class Submit(Node[Path, str], name="submit"):
    """Leaves a folder to the workers. Its run continues the current trace."""

    def __init__(self, pocket: Pocket) -> None:
        self._pocket = pocket

    async def exec(self, folder: Path) -> str:
        run_id = f"census-{folder.name}"
        pocket, here = self._pocket, inject()
        await graph.submit(str(folder), run_id=run_id, store=pocket.store, pocket=pocket, traceparent=here)
        return run_id


class Process:
    """A process that is killed and started again."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name, self._command, self._folder = name, command, folder
        self.start()

    def start(self) -> None:
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=self._folder, stdout=log, stderr=log)  # noqa: S603 - ours

    def check(self) -> None:
        """Raise RuntimeError if it has ended, with the end of its log."""
        if self._process.poll() is not None:
            log = (self._folder / f"{self.name}.log").read_text("utf-8", "replace")
            raise RuntimeError(f"{self.name} has ended:\n{log[-2000:]}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def cluster(folder: Path, server: Server) -> Generator[list[Process]]:
    """Dask's scheduler, its workers, and the workers of pocket_plug, with the environment by which they find each other."""
    at = f"127.0.0.1:{free_port()}"
    os.environ |= {
        "CENSUS_STORE": server.url,
        "CENSUS_CLUSTER": f"dask://{at}",
        "POCKET_PLUG_CONFIG": str(HERE / "pocket.toml"),
        "PYTHONPATH": str(HERE.parent),  # Dask's workers import the graph by its module's name
    }
    local = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
    dask_worker = (
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        f"tcp://{at}",
        *local,
        "--nthreads",
        "1",
        "--no-nanny",
    )
    dask_scheduler = (sys.executable, "-m", "distributed.cli.dask_scheduler", *local, "--port", at.partition(":")[2])
    worker = (
        str(Path(sys.executable).with_name("pocket-plug")),
        "worker",
        str(HERE),
        "--trace",
        "--lease",
        "5s",
    )
    with ExitStack() as ending:

        def start(name: str, *command: str) -> Process:
            process = Process(name, command, folder)
            ending.callback(process.end)
            return process

        yield [
            start("dask-scheduler", *dask_scheduler),
            *(start(f"dask-worker-{n}", *dask_worker, "--local-directory", str(folder / f"dask-{n}")) for n in (1, 2)),
            *(start(f"worker-{n}", *worker) for n in (1, 2)),
        ]


def folders_of(given: Sequence[str]) -> list[Path]:
    """The folders that were given; by default, installed packages that pocket_plug doesn't require."""
    if given:
        return [Path(each).resolve() for each in given]
    installed = Path(rich.__file__).parents[1]
    return sorted(path for path in installed.iterdir() if (path / "__init__.py").exists())[:MOST]


def watch(
    runs: SyncRuns, number: int, processes: Sequence[Process], disturb: Callable[[], None], console: Console
) -> None:
    """Draw the progress of the runs until all have ended. As soon as the first has ended, call `disturb`."""
    columns = (TextColumn("counting"), BarColumn(), MofNCompleteColumn(), TextColumn("folders"))
    until, is_disturbed = time.monotonic() + HANGS, False
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=number)
        while (done := len(runs.list(state="finished", limit=1000).runs)) < number:
            progress.update(task, completed=done)
            if not is_disturbed and done:
                is_disturbed = True
                disturb()
            for process in processes:
                process.check()
            if time.monotonic() > until:
                raise TimeoutError(f"{done} of {number} runs have ended within {HANGS:.0f} s")
            time.sleep(0.1)
        progress.update(task, completed=done)


def faults(store: SyncStore, folders: Sequence[Path]) -> list[str]:
    """Folders that were not counted, counted wrongly, or recorded more than once, compared with a count in this process."""
    found, sum_of_all = list[str](), Counted()
    for folder in map(str, folders):
        wanted = sum((count(batch).counted for batch in find(folder)), Counted())
        sum_of_all += wanted
        if store.get(FOLDER(folder)) != wanted or store.get(TIMES(folder)) != 1:
            found.append(f"{folder}: {store.get(FOLDER(folder))}, {store.get(TIMES(folder))} times; it has {wanted}")
    if store.get(TOTAL) != sum_of_all:
        found.append(f"all together: {store.get(TOTAL)}; there are {sum_of_all}")
    return found


def show(traces: Sequence[Trace], folders: Sequence[Path], console: Console) -> None:
    """Show the spans of all processes. Store operations by which a worker looks for runs are left out, and
    our own reads as well.
    """
    ours = [trace for trace in traces if trace.runs]
    table = Table(
        "span", "how many", "failed", title=f"Traces: {len(ours)}, of {len(folders)} folders", title_justify="left"
    )
    spans = [span for trace in ours for span in trace.spans]
    for name, number in Counter(span.name for span in spans).most_common():
        table.add_row(name, f"{number:,}", str(sum(span.failed for span in spans if span.name == name)))
    console.print(table)


def main(given: Sequence[str]) -> int:
    """Exit code 1 if the cluster has counted wrongly."""
    console, folders = Console(highlight=False), folders_of(given)
    with tempfile.TemporaryDirectory(prefix="census-") as name, postgres() as server:
        folder = Path(name)
        traces = folder / ".pocket_plug" / "traces.jsonl"
        with cluster(folder, server) as processes:

            def disturb() -> None:
                for process in processes[:-1]:
                    console.print(f"killing {process.name}, starting another")
                    process.kill()
                    process.start()
                console.print("killing the database server, starting it again")
                server.kill()
                server.restart()

            with observe(file=traces, terminal=False), Pocket(HERE / "pocket.toml") as pocket:
                Graph(each(Submit(pocket)), name="census").run_sync(folders, pocket=pocket)
                store = pocket.store.sync
                watch(SyncRuns(store), len(folders), processes, disturb, console)
                wrong = faults(store, folders)
                console.print(
                    f"{len(folders)} folders, each recorded once: {store.get(TOTAL)}" if not wrong else "\n".join(wrong)
                )
        show(read_traces(traces), folders, console)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
