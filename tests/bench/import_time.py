"""What `import pocket_plug` costs, in interpreters of its own."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from .harness import Bench, row

UNWANTED = ("opentelemetry.sdk", "structlog", "http.client", "urllib3", "requests", "httpx", "aiohttp", "grpc", "redis")


def said(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def seconds(modules: str) -> float:
    """The CPU time of an import statement, without the interpreter's start."""
    return float(
        said(f"import time; began = time.process_time(); import {modules}; print(time.process_time() - began)")
    )


@row
def importing(bench: Bench) -> None:
    """import pocket_plug, in a fresh interpreter"""
    floor = "pluggy, opentelemetry.trace"
    effort = bench.effort
    taken: dict[str, list[float]] = {"pocket_plug": [], floor: []}
    for _ in range(effort.rounds):
        least = {modules: min(seconds(modules) for _ in range(effort.samples)) for modules in taken}
        for modules, value in least.items():
            taken[modules].append(value)
    bench.unit = "ms"
    for modules, values in taken.items():
        bench.value(f"import {modules}", median(values) * 1e3)
    bench.target("import pocket_plug", 2, f"import {floor}")


@row
def imported(bench: Bench) -> None:
    """what import pocket_plug brings along of an SDK, structlog and network clients"""
    bench.unit = "modules"
    bench.value(
        "pocket_plug", float(said(f"import sys, pocket_plug; print(sum(name in sys.modules for name in {UNWANTED}))"))
    )
    bench.target("pocket_plug", 0)
