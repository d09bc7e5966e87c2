"""What users install: our wheel and those of all plugins, built, and installed into an environment without our checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from pocket_plug.traces.page import SCRIPTS

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


def run(*command: object, folder: Path) -> str:
    """Run a command outside of the checkout, without this environment's variables for Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "POCKET_PLUG"))}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> list[Path]:
    """Our wheel, and those of the plugins."""
    folder = tmp_path_factory.mktemp("wheels")
    projects = (ROOT, *PLUGINS)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder,
        *projects, folder=folder)  # fmt: skip
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> Path:
    """The folder of commands of a new environment with all wheels.

    This environment provides their requirements, by a path after the new one's own: nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    lent = Path(pytest.__file__).parents[1]
    [site] = folder.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(f"{lent}\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
        "--disable-pip-version-check", *wheels, folder=folder)  # fmt: skip
    return python.parent


def test_a_wheel_has_the_right_files(wheels):
    """The package with its type marker, the files of the page of traces and the licence; no tests, no examples, no plugin."""
    [ours] = [wheel for wheel in wheels if wheel.name.startswith("pocket_plug-")]
    names = zipfile.ZipFile(ours).namelist()
    assert "pocket_plug/py.typed" in names
    viewer = {f"pocket_plug/traces/viewer/{path.name}" for path in (ROOT / "pocket_plug/traces/viewer").iterdir()}
    assert {f"pocket_plug/traces/viewer/{name}" for name in ("page.html", "page.css", *SCRIPTS)} == viewer
    assert viewer <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"pocket_plug", ours.name.split("-py3")[0] + ".dist-info"}


def test_a_source_distribution_has_the_right_files(tmp_path):
    """Nothing of the plugins, which have their own. All that `make demo` needs, as its README says."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, folder=ROOT)
    [made] = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"pyproject.toml", "LICENSE", "pocket_plug/py.typed", "tests/conftest.py"} <= names
    assert {name.split("/")[0] for name in names if "/" in name} == {".ci", "pocket_plug", "tests", "examples", "docs"}
    run("tar", "-xzf", made, folder=tmp_path)
    run("make", "--dry-run", "demo", folder=tmp_path / made.name.removesuffix(".tar.gz"))


def test_a_plugins_wheel_stands_alone(wheels):
    """Its one package, with its type marker and the licence, which has to be in every copy; and nothing of pocket_plug."""
    for plugin in PLUGINS:
        package = plugin.name.replace("-", "_")
        [wheel] = [wheel for wheel in wheels if wheel.name.startswith(f"{package}-")]
        names = set(zipfile.ZipFile(wheel).namelist())
        assert {name.split("/")[0] for name in names} == {package, wheel.name.split("-py3")[0] + ".dist-info"}
        assert f"{package}/py.typed" in names, f"without it, type checkers ignore the annotations of {package}"
        [licence] = [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        assert zipfile.ZipFile(wheel).read(licence) == (ROOT / "LICENSE").read_bytes()


def test_plugins_of_a_plain_install(installed, tmp_path):
    """After an ordinary install the command lists our parts and the plugins, all in use, each with its distribution."""
    plugins = {
        each["name"]: each
        for each in json.loads(run(installed / "pocket-plug", "plugins", "--json", folder=tmp_path))
        if each["status"] != "library"  # is listed, and has no parts with names
    }
    theirs = {
        name: project["name"]
        for project in (tomllib.loads((path / "pyproject.toml").read_text())["project"] for path in PLUGINS)
        for name in project.get("entry-points", {}).get("pocket_plug", ())  # one without a hook is a library
    }
    ours = {"bounding", "copying", "fault", "logging", "metrics", "migrate", "persistence", "readonly", "sqlite", "timeout",
            "tracing"}  # fmt: skip
    assert set(plugins) - theirs.keys() >= ours
    assert {each["status"] for each in plugins.values()} == {"active"}
    assert {name: plugins[name]["distribution"] for name in theirs} == theirs
    assert {each["distribution"] for name, each in plugins.items() if name not in theirs} == {"pocket-plug"}


def test_plugin_is_used_by_name(installed, tmp_path):
    """The installed code is executed, and the plugin's layer can be used by its name in `pocket.toml`."""
    (tmp_path / "pocket.toml").write_text('[store]\nurl = "sqlite:///state.db"\nlayers = ["compress"]\n')
    code = """
import pathlib, pocket_plug
with pocket_plug.Pocket("pocket.toml") as pocket:
    pocket.store.sync.set("page", "state " * 10_000)
    assert pocket.store.sync.get("page") == "state " * 10_000
print(pathlib.Path(pocket_plug.__file__).parents[4])
"""
    assert run(installed / "python", "-c", code, folder=tmp_path).strip() == str(installed.parent)
    assert (tmp_path / "state.db").stat().st_size < 60_000
