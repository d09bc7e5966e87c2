"""The cost of `import pocket_plug` and of the command line's help, each in an interpreter of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, mkdtemp

import pocket_plug

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


@cache
def without_plugins() -> dict[str, str]:
    """An environment whose interpreters, without `site`, find the installed packages except plugins, which other rows need."""
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder)
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        entry_points = installed / "entry_points.txt"
        if not entry_points.exists() or "[pocket_plug]" not in entry_points.read_text():
            (folder / installed.name).symlink_to(installed)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(pocket_plug.__file__).parents[1])])}


def said(code: str) -> str:
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, env=without_plugins(), capture_output=True, text=True, check=True).stdout


def seconds(code: str) -> float:
    """The CPU time of a statement, without the interpreter's start."""
    answer = said(f"import time; began = time.process_time(); {code}; print(); print(time.process_time() - began)")
    return float(answer.split()[-1])


def against_floor(bench: Bench, code: str, limit: float | None = None) -> None:
    """Measure a statement in turn with the import of the two libraries that are always needed."""
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
def running(bench: Bench) -> None:
    """the first run of a process, import included, where no plugin is installed"""
    against_floor(bench, "import pocket_plug as pp; pp.Graph(pp.node(abs, name='size')).run_sync(-1)")


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


PLUGIN = """
from pocket_plug.hookspecs import hookimpl
from pocket_plug.store.layer import Layer

class Mine_{n}(Layer): ...

@hookimpl
def pocket_layers():
    return [Mine_{n}]
"""
BROKEN = ("import no_such_module", "raise RuntimeError", PLUGIN.replace("pocket_layers()", "pocket_layers(run)"))


def install_plugins(site: Path, count: int) -> None:
    """Install plugins as an installer would; the first three are broken in different ways."""
    for n in range(count):
        info = site / f"pocket_plug_p{n}-1.0.dist-info"
        info.mkdir()
        requires = "Requires-Dist: pocket-plug>=0.1,<1\n"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pocket-plug-p{n}\nVersion: 1.0\n{requires}")
        (info / "entry_points.txt").write_text(
            f"[pocket_plug]\np{n} = pocket_plug_p{n}\n[pocket_plug.api]\np{n} = level1\n"
        )
        source = BROKEN[n] if n < len(BROKEN) else PLUGIN
        (site / f"pocket_plug_p{n}.py").write_text(source.format(n=n))


@row
def plugging(bench: Bench) -> None:
    """the first Pocket() of a process, without and with 20 plugins installed, three of which are broken"""
    effort, bench.unit = bench.effort, "ms"
    with TemporaryDirectory() as site:
        install_plugins(Path(site), 20)
        code = (
            "import logging, sys, time; logging.disable(); sys.path.append({site!r}); import pocket_plug as pp; pp.Store; "
            "began = time.process_time(); {code}; print(time.process_time() - began)"
        )
        cases = {
            "none installed": code.format(site=os.devnull, code="pp.Pocket()"),
            "20 installed": code.format(site=site, code="pp.Pocket()"),
            "20 installed, none wanted": code.format(site=site, code="pp.Pocket(autoload=False)"),
        }
        taken: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(effort.rounds):
            for name, statement in cases.items():
                taken[name].append(min(float(said(statement)) for _ in range(effort.samples)))
    for name, values in taken.items():
        bench.value(name, median(values) * 1e3)
