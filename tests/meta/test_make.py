"""What contributors rely on: `make` targets, CI, exact pins without an index, entry points."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pocket_plug.hookspecs import API_GROUP

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PINS = (ROOT / ".ci" / "constraints.txt").read_text("utf-8").splitlines()
PYTHONS = [f"3.{minor}" for minor in range(11, 16)]
PROJECTS = [ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))]


@pytest.mark.parametrize(
    "target", ["demo", "test", "test-lowest", "test-newest", "lint", "bench", "mutants", "e2e", "fastmcp", "test-all"]
)
def test_there_is_a_target_for_each_task(target: str) -> None:
    """Each is declared, is no file's name, and has a recipe."""
    [phony] = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert target in phony.split()
    assert re.search(rf"^{target}:.*\n\t\S", MAKEFILE, re.MULTILINE)
    assert not (ROOT / target).is_file()


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", "pocket-plug run examples/census --trace"),
        ("test", "pytest"),
        ("test-lowest", "pytest"),
        ("test-newest", "pytest"),
        ("mutants", "python -m tests.mutants"),
        ("simulate", "python -m tests.simulation 2000"),
        ("lint", "ruff check ."),
        ("lint", "mypy"),
        ("lint", "pyright"),
        ("e2e", "pytest tests/e2e"),
        ("pictures", "pytest tests/e2e --pictures"),
        ("fastmcp", "pytest plugins/pocket-plug-keyvalue/tests/e2e"),
    ],
)
def test_a_target_does_what_its_name_says(target: str, command: str) -> None:
    """As make itself reads the file, without running it."""
    make = shutil.which("make")
    assert make is not None
    made = (  # of the make that runs the tests
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "MAKEOVERRIDES",
        "ARGS",
        "PYTHON",
        "VENV",
    )
    kept = {name: value for name, value in os.environ.items() if name not in made}
    done = subprocess.run([make, "--dry-run", target], cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"/{re.escape(command)}(\s|$)", done.stdout, re.MULTILINE)


def test_ci_lints_and_tests() -> None:
    """`.ci/run` is executable, stops at the first failure, and calls what contributors call."""
    script = ROOT / ".ci" / "run"
    lines = script.read_text("utf-8").splitlines()
    assert os.access(script, os.X_OK)
    assert lines[0].startswith("#!")
    assert "set -euo pipefail" in lines
    made = [line.partition("  #")[0] for line in lines if line.startswith("make ")]
    assert made[:2] == ["make --jobs=2 lint .venv-lowest/ready-dev", "make test"]
    assert [each.partition(" pocket_plug plugins ")[0] for each in made[2:]] == [
        """make test-lowest ARGS="-m 'not crash'"""
    ]


@pytest.mark.parametrize("python", [(3, 11), (3, 13), (3, 14)])
def test_the_lowest_versions_are_the_bounds_of_each_pyproject(python: tuple[int, int]) -> None:
    """Every requirement has a lower bound, and `make test-lowest` installs the highest one for that Python."""
    module = runpy.run_path(str(ROOT / ".ci" / "lowest.py"))
    bounds: dict[str, Version] = {}
    for project in PROJECTS:
        declared = tomllib.loads(project.read_text("utf-8"))["project"]
        extras = declared.get("optional-dependencies", {}).values()
        for line in [*declared["dependencies"], *(line for extra in extras for line in extra)]:
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate({"python_version": f"3.{python[1]}"}):
                continue
            [lowest] = [Version(each.version) for each in wanted.specifier if each.operator == ">="]
            if wanted.name != "pocket-plug":
                bounds[wanted.name] = max(lowest, bounds.get(wanted.name, lowest))
    assert {name: Version(version) for name, version in module["lowest"](python).items()} == bounds


def test_all_pythons_are_tried_and_missing_ones_are_named(tmp_path: Path) -> None:
    """A Python is installed if it runs: a shim without its version doesn't count. A failing one stops the tests."""
    home, shims = tmp_path / "home", tmp_path / "shims"
    for path, code in (
        (home / ".pyenv/versions/3.12.9/bin/python", 0),
        (home / ".pyenv/versions/3.14.1/bin/python", 1),
        *((shims / f"python3.{minor}", 127 if minor != 13 else 0) for minor in range(11, 16)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\nexit {code}\n")
        path.chmod(0o755)
    make = shutil.which("make")
    assert make is not None
    env = {"PATH": f"{shims}:{os.environ['PATH']}", "HOME": str(home)}
    done = subprocess.run(
        [make, "test-all", "MAKE=echo made"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("made")] == [
        f"made test PYTHON={home}/.pyenv/versions/3.12.9/bin/python VENV=.venv-python3.12",
        "made test PYTHON=python3.13 VENV=.venv-python3.13",
    ]
    assert done.stdout.splitlines()[-1] == "not tested, since it was not found: Python 3.11 3.14 3.15"
    failing = subprocess.run(
        [make, "test-all", "MAKE=false"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert failing.returncode != 0


def pinned_for(python: str) -> list[tuple[str, str]]:
    """Name and version of each pin for that Python."""
    pins = [Requirement(line) for line in PINS if line and not line.startswith("#")]
    found = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    return [(canonicalize_name(pin.name), str(pin.specifier).removeprefix("==")) for pin in found]


def test_pins_are_exact_and_name_no_index() -> None:
    """Every line is `name==version`, for some Pythons or for all: no address, no option, no name twice for any Python."""
    pins = [line for line in PINS if line and not line.startswith("#")]
    pattern = r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+(; python_version [<>]=? \"[0-9.]+\")?"
    assert not [line for line in PINS if "://" in line or line.startswith("-")]
    assert [line for line in pins if not re.fullmatch(pattern, line)] == []
    for python in PYTHONS:
        names = [name for name, _ in pinned_for(python)]
        assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_requirements_are_pinned_in_a_version_that_fits(project: Path, python: str) -> None:
    """The constraints have the tested version of our requirements, and of every extra and plugin."""
    pinned = dict(pinned_for(python))
    declared = tomllib.loads(project.read_text("utf-8"))["project"]
    extras = declared.get("optional-dependencies", {}).values()
    for line in [*declared["dependencies"], *(line for extra in extras for line in extra)]:
        wanted = Requirement(line)
        applies = wanted.marker is None or wanted.marker.evaluate({"python_version": python})
        if canonicalize_name(wanted.name) == "pocket-plug" or not applies:
            continue
        assert canonicalize_name(wanted.name) in pinned, f"{wanted.name} is not pinned"
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)])


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_entry_points_can_be_imported(project: Path) -> None:
    """Every script and plugin that a pyproject declares can be imported."""
    declared = tomllib.loads(project.read_text("utf-8"))["project"]
    of_plugins = {name: group for name, group in declared.get("entry-points", {}).items() if name != API_GROUP}
    groups = [declared.get("scripts", {}), *of_plugins.values()]  # a level is a word, and names no object
    points = [point for group in groups for point in group.values()]
    assert points or project.parent.name.rpartition("-")[2] in ("dbos", "keyvalue", "langgraph")  # which have no hook
    for point in points:
        module, _, name = point.partition(":")
        assert not name or callable(getattr(importlib.import_module(module), name))
        importlib.import_module(module)
