"""What users install: our wheel and a plugin's, built and put into an environment that has nothing else of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: object, folder: Path) -> str:
    """Run a command outside of the checkout, without what this environment sets for Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "POCKET_PLUG"))}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> list[Path]:
    """Our wheel and that of the plugin."""
    folder = tmp_path_factory.mktemp("wheels")
    projects = (ROOT, ROOT / "plugins" / "pocket-plug-compress")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder,
        *projects, folder=folder)  # fmt: skip
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> Path:
    """The folder of commands of a new environment in which both wheels are installed.

    What they require is lent by this environment, by a path that comes after the new one's own: nothing is fetched.
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


def test_wheel_has_what_belongs_in_it(wheels):
    """The package with its type marker, the files of the page of traces and the licence; no tests, no examples, no plugin."""
    _, ours = sorted(wheels, key=lambda wheel: "compress" not in wheel.name)
    names = zipfile.ZipFile(ours).namelist()
    assert "pocket_plug/py.typed" in names
    viewer = {f"pocket_plug/telemetry/viewer/{path.name}" for path in (ROOT / "pocket_plug/telemetry/viewer").iterdir()}
    assert len(viewer) == 7
    assert viewer <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"pocket_plug", ours.name.split("-py3")[0] + ".dist-info"}


def test_plugins_of_a_plain_install(installed, tmp_path):
    """After a plain install the command lists our parts and the plugin, all in use, each with its distribution."""
    plugins = {
        each["name"]: each for each in json.loads(run(installed / "pocket-plug", "plugins", "--json", folder=tmp_path))
    }
    assert set(plugins) == {"bounding", "compress", "logging", "metrics", "migrate", "persistence", "sqlite", "tracing"}
    assert {each["status"] for each in plugins.values()} == {"active"}
    assert plugins["compress"]["distribution"] == "pocket-plug-compress"
    assert plugins["bounding"]["distribution"] == "pocket-plug"


def test_plugin_is_used_by_name(installed, tmp_path):
    """What was installed is what runs, and the plugin's layer is usable by its name in `pocket.toml`."""
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
