"""What contributors rely on: `make` targets, CI, exact pins without an index, entry points."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
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


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the Makefile with an environment that is ready, in a path with a space; its pip prints what it got."""
    folder = tmp_path / "a checkout"
    for name in ("Makefile", "pyproject.toml", ".ci/constraints.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands / "python").symlink_to(sys.executable)
    (commands / "pip").write_text(f'#!/bin/sh\n# {commands}/python\necho "pip: PIP_USER=$PIP_USER"\n')
    (commands / "pocket-plug").write_text("#!/bin/sh\necho demonstrated\n")
    for name in ("pip", "pocket-plug"):
        (commands / name).chmod(0o755)
    (folder / ".venv" / "pyvenv.cfg").touch()
    (folder / ".venv" / "ready").touch()
    return folder


def make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make there, without what the make that runs the tests has set."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=kept | variables, capture_output=True, text=True, check=False)


def an_old_python(at: Path) -> Path:
    """A Python that says that it is 3.10."""
    code = 'import sys; sys.version_info = (3, 10, 13); sys.version = "3.10.13 (main)"; exec(sys.argv[2])'
    at.unlink(missing_ok=True)
    at.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    at.chmod(0o755)
    return at


def test_an_environment_is_made_once(checkout: Path) -> None:
    """If it is ready, it is used. If a requirement has changed, pip is called, and nothing is emptied."""
    assert make(checkout, "demo").stdout.splitlines()[1:] == ["demonstrated"]
    (checkout / ".venv" / "ready").unlink()
    made = make(checkout, "demo", "PYTHON=true").stdout.splitlines()
    assert (made[0], made[-1]) == ("true -m venv  .venv", "demonstrated")


def test_an_environment_without_pip_gets_it(checkout: Path) -> None:
    """An interrupted `make` has left it, or it is the user's own, made by uv: then nothing in it is removed."""
    for name in ("pip", "../ready"):
        (checkout / ".venv" / "bin" / name).unlink()
    assert "python3 -m venv  .venv" in make(checkout, "--dry-run", "demo").stdout.splitlines()


@pytest.mark.parametrize("damage", ["copied", "moved", "no Python", "an old Python"])
def test_an_environment_that_cannot_be_used_is_made_again(damage: str, checkout: Path) -> None:
    """Of another folder, or of a Python that is gone or too old, also if it was ready."""
    commands = checkout / ".venv" / "bin"
    match damage:
        case "copied":
            checkout = Path(shutil.copytree(checkout, checkout.with_name("other"), symlinks=True))
        case "moved":
            checkout = checkout.rename(checkout.with_name("other"))
        case "no Python":
            (commands / "python").unlink()
            (commands / "python").symlink_to("/nowhere/python3")
        case _:
            an_old_python(commands / "python")
    assert "python3 -m venv --clear .venv" in make(checkout, "--dry-run", "demo").stdout.splitlines()


def test_a_folder_that_is_no_environment_is_not_emptied(checkout: Path) -> None:
    """Nor is one that holds environments: `VENV` may be set for another purpose."""
    mine = checkout / "mine" / "other" / "pyvenv.cfg"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert "python3 -m venv  mine" in make(checkout, "--dry-run", "demo", "VENV=mine").stdout.splitlines()


def test_a_python_that_is_too_old_is_named(checkout: Path) -> None:
    """With what to write instead, before anything is made."""
    shutil.rmtree(checkout / ".venv")
    old = an_old_python(checkout / "python3")
    done = make(checkout, "test", f"PYTHON={old.name}", PATH=f"{checkout}:{os.environ['PATH']}")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "pocket_plug needs Python 3.11 or newer, and python3 is 3.10.13. Name another one: make test PYTHON=python3.12"
    )
    assert not (checkout / ".venv").exists()


def test_settings_of_the_user_for_pip_do_not_hinder(checkout: Path) -> None:
    """`user = true` in the user's configuration would be refused in an environment."""
    (checkout / ".venv" / "ready").unlink()
    assert "pip: PIP_USER=0" in make(checkout, "demo", "PYTHON=true", PIP_USER="1").stdout.splitlines()


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
