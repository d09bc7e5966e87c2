"""What a contributor and a submission rely on: `make` targets, what CI calls, pins without an index, entry points."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PINS = (ROOT / ".ci" / "constraints.txt").read_text("utf-8").splitlines()
PROJECTS = [ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))]


@pytest.mark.parametrize("target", ["demo", "test", "lint", "bench", "e2e", "test-all"])
def test_there_is_a_target_for_each_thing_one_does(target: str) -> None:
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
        ("lint", "ruff check ."),
        ("lint", "mypy"),
        ("lint", "pyright"),
        ("e2e", "pytest tests/e2e"),
        ("pictures", "pytest tests/e2e --pictures"),
    ],
)
def test_a_target_does_what_its_name_says(target: str, command: str) -> None:
    """As make itself reads the file, nothing of it being run."""
    make = shutil.which("make")
    assert make is not None
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run([make, "--dry-run", target], cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"/{re.escape(command)}(\s|$)", done.stdout, re.MULTILINE)


def test_ci_lints_and_tests() -> None:
    """`.ci/run` can be executed, stops at the first failure, and calls what contributors call."""
    script = ROOT / ".ci" / "run"
    lines = script.read_text("utf-8").splitlines()
    assert os.access(script, os.X_OK)
    assert lines[0].startswith("#!")
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make ")] == ["make lint", "make test"]


def test_pins_are_exact_and_name_no_index() -> None:
    """Every line is `name==version`: no address, no option, no name twice."""
    pins = [line for line in PINS if line and not line.startswith("#")]
    assert not [line for line in PINS if "://" in line or line.startswith("-")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    names = [canonicalize_name(line.partition("==")[0]) for line in pins]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_what_is_required_is_pinned_in_a_version_that_fits(project: Path) -> None:
    """What was tested is what the constraints say, for our requirements and those of every extra and plugin."""
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in PINS)}
    declared = tomllib.loads(project.read_text("utf-8"))["project"]
    extras = declared.get("optional-dependencies", {}).values()
    for line in [*declared["dependencies"], *(line for extra in extras for line in extra)]:
        wanted = Requirement(line)
        if canonicalize_name(wanted.name) == "pocket-plug":
            continue
        assert canonicalize_name(wanted.name) in pinned, f"{wanted.name} is not pinned"
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)])


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_entry_points_lead_to_something(project: Path) -> None:
    """Every script and plugin that a pyproject declares can be imported."""
    declared = tomllib.loads(project.read_text("utf-8"))["project"]
    groups = [declared.get("scripts", {}), *declared.get("entry-points", {}).values()]
    points = [point for group in groups for point in group.values()]
    assert points
    for point in points:
        module, _, name = point.partition(":")
        assert not name or callable(getattr(importlib.import_module(module), name))
        importlib.import_module(module)
