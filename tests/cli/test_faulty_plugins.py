"""Installed plugins with every kind of fault: a program works as if they were not installed, and they are reported by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

POCKET_PLUG = [sys.executable, "-m", "pocket_plug"]

HEAD = """
from pocket_plug.hookspecs import Observer, hookimpl

class Manager:
    def __enter__(self): ...
    def __exit__(self, *error): ...

class FailingExit(Manager):
    def __exit__(self, *error): raise ValueError("boom")
"""

BROKEN = {  # never used: source, and the reason that is shown
    "absent": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "exits": ("raise SystemExit('goodbye')", "SystemExit: goodbye"),
    "misspelt": (
        f"{HEAD}\n@hookimpl\ndef pocket_obsrve(run): ...",
        "there is no hook 'pocket_obsrve'; did you mean 'pocket_observe'?",
    ),
    "arguments": (
        f"{HEAD}\n@hookimpl\ndef pocket_observe(run, node): ...",
        "pocket_observe has no argument 'node'; it may take run",
    ),
}

FAULTY = {  # fail while they observe: source of pocket_observe, where, and what they raise
    "raises": ("raise RuntimeError('boom')", "pocket_observe", "RuntimeError: boom"),
    "answers": ("return 'hello'", "pocket_observe", "TypeError: it returned str, not an Observer or None"),
    "in_run": (
        "def part(run): raise RuntimeError('boom')\n    return Observer(run=part)",
        "pocket_observe (enter)",
        "RuntimeError at pocket_plug_in_run.py:",
    ),
    "in_node": (
        "def part(call): raise SystemExit('boom')\n    return Observer(node=part)",
        "pocket_observe (enter)",
        "SystemExit at pocket_plug_in_node.py:",
    ),
    "in_enter": (
        "class M(Manager):\n        def __enter__(self): raise KeyError('boom')\n    return Observer(phase=lambda call: M())",
        "pocket_observe (enter)",
        "KeyError at pocket_plug_in_enter.py:",
    ),
    "in_exit": (
        "return Observer(node=lambda call: FailingExit())",
        "pocket_observe (exit)",
        "ValueError at pocket_plug_in_exit.py:",
    ),
    "in_event": (
        "def part(*about): raise ValueError('boom')\n    return Observer(event=part)",
        "pocket_observe (event)",
        "ValueError at pocket_plug_in_event.py:",
    ),
    "no_manager": (
        "return Observer(run=lambda run: 3)",
        "pocket_observe (enter)",
        "it returned int, not a context manager or None",
    ),
}

# reports nothing, since nothing of it fails: it only can't do what it intends
SWALLOWS = """
    class M(Manager):
        def __exit__(self, *error): return True
    return Observer(run=lambda run: M(), node=lambda call: M(), phase=lambda call: M())
"""

FLOW = """
import pocket_plug as pp

class Half(pp.Node[int, int], retry=pp.Retry(attempts=2)):
    failed = False

    async def exec(self, n: int) -> int:
        if not self.failed:
            self.failed = True
            raise OSError("once")
        if n < 0:
            raise pp.StoreError("nothing is less than nothing")
        return n // 2

class Keep(pp.Node[int, int]):
    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        return await store.update("kept", lambda kept: kept + n, default=0)

graph = pp.Graph(Half() >> pp.Graph(Keep(), name="inner"), name="outer")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program, with all of these plugins in `site`."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "flow.py").write_text(FLOW)
    sources = {name: source for name, (source, _) in BROKEN.items()}
    for name, body in {**{name: body for name, (body, _, _) in FAULTY.items()}, "swallows": SWALLOWS}.items():
        sources[name] = f"{HEAD}\n@hookimpl\ndef pocket_observe(run):\n    {body.strip()}\n"
    for name, source in sources.items():
        info = folder / "site" / f"pocket_plug_{name}-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pocket-plug-{name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[pocket_plug]\n{name} = pocket_plug_{name}\n")
        (folder / "site" / f"pocket_plug_{name}.py").write_text(dedent(source))
    return folder


def pocket_plug(folder: Path, *arguments: str, plugins: bool = True) -> subprocess.CompletedProcess[str]:
    ours = ("OTEL_", "POCKET_PLUG_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = {"PYTHONPATH": str(folder / "site")} if plugins else {}
    return subprocess.run(
        [*POCKET_PLUG, *arguments], cwd=folder, env=kept | path, capture_output=True, text=True, timeout=60, check=False
    )


def warnings(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("plugin ")]


def test_they_are_listed_with_what_is_wrong(folder: Path) -> None:
    """`pocket-plug plugins --json` works, and reports status and cause of each; the others are in use."""
    done = pocket_plug(folder, "plugins", "--json")
    assert done.returncode == 0
    listed = {each["name"]: each for each in json.loads(done.stdout)}
    for name, (_, reason) in BROKEN.items():
        assert (listed[name]["status"], listed[name]["distribution"]) == ("failed", f"pocket-plug-{name}")
        assert reason in listed[name]["reason"]
    for name in (*FAULTY, "swallows", "tracing", "sqlite"):
        assert (listed[name]["status"], listed[name]["reason"]) == ("active", "")


def test_they_are_reported_with_name_and_cause(folder: Path) -> None:
    """One line each on stderr, with plugin, distribution, version, where it failed and why."""
    said = warnings(pocket_plug(folder, "run", "flow.py", "--input", "9"))
    expected = [
        f"plugin '{name}' (pocket-plug-{name} 1.5) can't be used: {reason}" for name, (_, reason) in BROKEN.items()
    ]
    expected += [
        f"plugin '{name}' (pocket-plug-{name} 1.5) failed at {where}: {why}" for name, (_, where, why) in FAULTY.items()
    ]
    for begin in expected:
        assert len([line for line in said if line.startswith(begin)]) == 1, begin
    assert len(said) == len(expected)


def test_debug_says_where_they_failed(folder: Path) -> None:
    """--debug shows their tracebacks: of an import, and of failures in a run."""
    for options, there in ((["--debug"], True), ([], False)):
        said = pocket_plug(folder, *options, "run", "flow.py", "--input", "9").stderr
        for file in ("pocket_plug_absent.py", "pocket_plug_in_run.py"):
            assert (f'{file}", line ' in said) is there


@pytest.mark.parametrize("value", ["9", "-9"], ids=["well", "failing"])
def test_a_run_ends_as_it_does_without_them(folder: Path, value: str) -> None:
    """The same result, the same error, the same exit code: none of them can end or fail the run, or hide its error."""
    without, beside = [
        pocket_plug(folder, "run", "flow.py", "--input", value, plugins=plugins) for plugins in (False, True)
    ]
    assert (beside.returncode, beside.stdout) == (without.returncode, without.stdout)
    assert (without.returncode, without.stdout) == ((0, "4\n") if value == "9" else (1, ""))
    others = [line for line in beside.stderr.splitlines() if line not in warnings(beside)]
    failed = ["StoreError: nothing is less than nothing", "at node 'half' of graph 'outer' (visit 1)"]
    assert others == without.stderr.splitlines() == ([] if value == "9" else failed)


@pytest.mark.parametrize("arguments", [("stack",), ("graph", "flow.py"), ("--help",)])
def test_the_other_commands_work_beside_them(folder: Path, arguments: tuple[str, ...]) -> None:
    """With the same output as without the plugins."""
    without, beside = [pocket_plug(folder, *arguments, plugins=plugins) for plugins in (False, True)]
    assert beside.returncode == 0
    assert beside.stdout == without.stdout
    assert "Traceback" not in beside.stderr
