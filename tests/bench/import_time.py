"""What `import pocket_plug` and the command line's help cost, in interpreters of their own."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from .harness import Bench, row

UNWANTED = (
    "opentelemetry.sdk",
    "structlog",
    "http.client",
    "urllib3",
    "requests",
    "httpx",
    "aiohttp",
    "grpc",
    "redis",
    "psycopg",
)


def said(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def seconds(code: str) -> float:
    """The CPU time of a statement, without the interpreter's start."""
    answer = said(f"import time; began = time.process_time(); {code}; print(); print(time.process_time() - began)")
    return float(answer.split()[-1])


def against_floor(bench: Bench, code: str, limit: float | None = None) -> None:
    """Measure a statement in turns with the import of the two libraries that nobody can do without."""
    floor = "import pluggy, opentelemetry.trace"
    effort = bench.effort
    taken: dict[str, list[float]] = {code: [], floor: []}
    for _ in range(effort.rounds):
        for statement, values in taken.items():
            values.append(min(seconds(statement) for _ in range(effort.samples)))
    bench.unit = "ms"
    for statement, values in taken.items():
        bench.value(statement, median(values) * 1e3)
    if limit is not None:
        bench.target(code, limit, floor)


@row
def importing(bench: Bench) -> None:
    """import pocket_plug, in a fresh interpreter"""
    against_floor(bench, "import pocket_plug", 2)


@row
def importing_all(bench: Bench) -> None:
    """import what runs a graph over a store, in a fresh interpreter; asyncio is more than half of it"""
    against_floor(bench, "from pocket_plug import Graph, Node, Store, SyncStore, each")


@row
def helping(bench: Bench) -> None:
    """pocket-plug --help, in a fresh interpreter, where no plugin is installed"""
    against_floor(bench, "from pocket_plug.cli import main; main(['--help'])", 2.5)


@row
def imported(bench: Bench) -> None:
    """what import pocket_plug brings along of an SDK, structlog and network clients"""
    bench.unit = "modules"
    bench.value(
        "pocket_plug", float(said(f"import sys, pocket_plug; print(sum(name in sys.modules for name in {UNWANTED}))"))
    )
    bench.target("pocket_plug", 0)
