"""`pocket-plug new`: its projects can be installed, and pass their own tests, type checks and lints at once, for each kind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from pocket_plug.cli import COMMANDS, main
from pocket_plug.cli.new import KINDS, LONGEST
from pocket_plug.hookspecs import API_GROUP, API_LEVEL

ROOT = Path(__file__).parents[2]
NAMES = {kind: f"my-{kind}" for kind in KINDS}
CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "POCKET_PLUG", "PYTEST_XDIST"))
}


def begin(*command: object, folder: Path) -> subprocess.Popen[str]:
    """Run a command outside of the checkout, without this environment's variables for Python."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        env=CLEAN,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(running: subprocess.Popen[str]) -> str:
    """Its output; it must have succeeded."""
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a plugin of each kind was created."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert [main(["new", kind, name]) for kind, name in NAMES.items()] == [0] * len(KINDS)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def wheels(made: Path) -> list[Path]:
    """Our wheel, and theirs."""
    built = [
        begin(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
              "--wheel-dir", made / "wheels", *projects, folder=made)
        for projects in ([ROOT], [made / f"pocket-plug-{name}" for name in NAMES.values()])
    ]  # fmt: skip
    for each in built:
        finish(each)
    return sorted((made / "wheels").glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheels. This environment provides their requirements."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    [site] = folder.glob("lib/python*/site-packages")
    lent = site / "lent"
    lent.mkdir()
    for found in Path(pytest.__file__).parents[1].iterdir():
        if not found.name.startswith(("pocket_plug", "__editable__", "_editable")):  # this environment's own plugins
            (lent / found.name).symlink_to(found)
    (site / "lent.pth").write_text(f"{lent}\n")
    finish(
        begin(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
              "--disable-pip-version-check", *wheels, folder=folder)
    )  # fmt: skip
    return python


def test_a_test_that_hangs_ends(made: Path) -> None:
    """It prints where it hangs; otherwise CI would wait for it for hours."""
    folder = made / "pocket-plug-my-layer"
    hanging = folder / "hanging.py"
    hanging.write_text("import threading\n\n\ndef test_it_hangs():\n    threading.Event().wait()\n")
    command = [sys.executable, "-m", "pytest", "-o", "faulthandler_timeout=1", hanging.name]
    ended = subprocess.run(command, cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=60, check=False)
    hanging.unlink()
    assert ended.returncode != 0
    assert "in test_it_hangs" in ended.stderr


def test_a_wheel_has_the_package_and_its_marker(made: Path, wheels: list[Path]) -> None:
    """Each has one package, typed, with the licence; its sources have a README, changes, tests and a CI file."""
    for kind, name in NAMES.items():
        package = f"pocket_plug_my_{kind}"
        [wheel] = [wheel for wheel in wheels if wheel.name.startswith(package)]
        names = zipfile.ZipFile(wheel).namelist()
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= set(names)
        assert any(file.endswith("licenses/LICENSE") for file in names)
        files = {str(file.relative_to(made / f"pocket-plug-{name}")) for file in made.rglob("*") if file.is_file()
                 if file.is_relative_to(made / f"pocket-plug-{name}")}  # fmt: skip
        there = {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", ".gitignore", ".github/workflows/ci.yml"}
        assert there <= files
        assert f"tests/test_my_{kind}.py" in files


def test_it_is_found_after_the_installation(python: Path, tmp_path: Path) -> None:
    """By its name, in use, and nothing is logged about it."""
    said = finish(begin(python.with_name("pocket-plug"), "plugins", "--json", folder=tmp_path))
    found = {each["name"]: each for each in json.loads(said)}
    for kind, name in NAMES.items():
        record = found[f"my_{kind}"]
        assert (record["status"], record["distribution"]) == ("active", f"pocket-plug-{name}")


def test_editors_know_its_options(python: Path, tmp_path: Path) -> None:
    """The schema has the options of a layer and of a plugin."""
    schema = json.loads(finish(begin(python.with_name("pocket-plug"), "config", "schema", folder=tmp_path)))
    assert schema["properties"]["plugins"]["properties"]["my_observer"]["properties"] == {"least": {"type": "number"}}
    [layer] = [each for each in schema["$defs"]["layer"]["anyOf"]
               if each.get("properties", {}).get("use") == {"const": "my_layer"}]  # fmt: skip
    assert layer["properties"]["seconds"] == {"type": "number", "default": 0.0}


def test_it_passes_its_own_tests(made: Path, python: Path) -> None:
    """With all warnings as errors, and with the complete contract if there is one."""
    running = [begin(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder=made / f"pocket-plug-{name}")
               for name in NAMES.values()]  # fmt: skip
    passed = {
        kind: int(re.findall(r"(\d+) passed", finish(each))[0]) for kind, each in zip(KINDS, running, strict=True)
    }
    assert passed["layer"] > 100
    assert passed["backend"] > 50
    assert passed["executor"] > 30


def test_it_passes_the_type_checkers(made: Path, python: Path) -> None:
    """mypy with its own configuration, pyright in strict mode, over code and tests."""
    checked = begin(python, "-m", "pyright", "--pythonpath", python, "--project", _one_project(made), folder=made)
    for name in NAMES.values():
        finish(begin(python, "-m", "mypy", "--cache-dir", made / "mypy", folder=made / f"pocket-plug-{name}"))
    assert "0 errors" in finish(checked)


def _one_project(made: Path) -> Path:
    """One configuration of pyright for all of them, since it is slow to start."""
    settings = [tomllib.loads((made / f"pocket-plug-{name}/pyproject.toml").read_text())["tool"]["pyright"]
                for name in NAMES.values()]  # fmt: skip
    assert all(each == {"include": ["src", "tests"], "typeCheckingMode": "strict"} for each in settings)
    file = made / "pyrightconfig.json"
    file.write_text(json.dumps({"include": ["pocket-plug-*/src", "pocket-plug-*/tests"], "typeCheckingMode": "strict"}))
    return file


@pytest.mark.parametrize("name", ["ab", "a" * LONGEST, "-".join(["ab"] * (LONGEST // 3))])
def test_it_passes_ruff_with_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is too long, or short enough to be formatted in another way, and imports are sorted."""
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        assert main(["new", kind, name]) == 0
        Path(f"pocket-plug-{name}").rename(kind)
    for check in (["check"], ["format", "--check"]):
        finish(begin(sys.executable, "-m", "ruff", *check, "--no-cache", *KINDS, folder=tmp_path))


def test_its_bounds_are_those_of_this_version(made: Path) -> None:
    """It requires this version or later, and declares the present level of the API."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for kind, name in NAMES.items():
        project = tomllib.loads((made / f"pocket-plug-{name}/pyproject.toml").read_text())["project"]
        assert project["dependencies"] == [f"pocket-plug>={version.rpartition('.')[0]},<1"]
        assert project["entry-points"][API_GROUP] == {f"my_{kind}": f"level{API_LEVEL}"}


def test_its_ci_uses_every_python_and_no_action_of_an_old_node(made: Path) -> None:
    """The Pythons are those of our classifiers. GitHub no longer runs actions for Node 20: checkout@v4, setup-python@v5."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    pythons = [found[1] for each in classifiers if (found := re.fullmatch(r".* :: (3\.\d+)", each))]
    file = (made / "pocket-plug-my-layer/.github/workflows/ci.yml").read_text()
    assert f"        python: {json.dumps(pythons)}\n" in file
    assert re.findall(r"uses: (.+)", file) == ["actions/checkout@v6", "actions/setup-python@v6"]


@pytest.mark.parametrize(
    ("direct_url", "step"),
    [
        (None, None),
        ({"url": "file:///a%20b/plug", "dir_info": {"editable": True}}, "pip install '/a b/plug'"),
        ({"url": "file:///src", "dir_info": {}, "subdirectory": "plug"}, "pip install /src/plug"),
        ({"url": "https://x.org/p.whl", "archive_info": {}}, "pip install https://x.org/p.whl"),
        (
            {"url": "https://x.org/p", "vcs_info": {"vcs": "git", "commit_id": "c0"}, "subdirectory": "a"},
            "pip install 'git+https://x.org/p@c0#subdirectory=a'",
        ),
    ],
)
def test_its_first_step_installs_pocket_plug_if_no_index_has_it(
    direct_url: object,
    step: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From where it was installed itself, as recorded by the installer; before the plugin, which requires it."""
    recorded = None if direct_url is None else json.dumps(direct_url)

    class Installed:
        def read_text(self, name: str) -> str | None:
            return recorded if name == "direct_url.json" else ""

    monkeypatch.setattr("pocket_plug.cli.new.distribution", lambda _: Installed())
    monkeypatch.chdir(tmp_path)
    assert main(["new", "layer", "good"]) == 0
    steps = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    wanted = ["cd pocket-plug-good", "python -m venv .venv", ". .venv/bin/activate", step,
              'pip install --editable ".[dev]"', "pytest"]  # fmt: skip
    assert steps == [each for each in wanted if each]


def test_its_help_says_which_kinds_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, at the argument."""
    assert main(["new", "--help"]) == 0
    assert "|".join(KINDS) in capsys.readouterr().out


# ---------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("layer", "pocket-plug-My_thing", "is not a valid plugin name"),
        ("layer", "pocket-plug-good", "pocket-plug- is put before it. Did you mean 'good'?"),
        ("layer", "a", "is not a valid plugin name"),
        ("layer", "a" * (LONGEST + 1), f"{LONGEST} characters at most"),
        ("layer", "../up", "is not a valid plugin name"),
        ("layer", "2fast", "is not a valid plugin name"),
        ("layer", "none", "would name the class None, and this name is already used"),
        ("layer", "entry", "would name the class Entry, and this name is already used"),
        ("observer", "test-bed", "would name the class TestBed, which pytest collects as tests"),
        ("layer", "bounding", "the name 'bounding' is already used by plugin 'bounding' (pocket-plug"),
        ("observer", "sqlite", "the name 'sqlite' is already used by plugin 'sqlite' (pocket-plug"),
        ("backend", "memory", "pocket-plug has a built-in backend 'memory'"),
        ("executor", "threads", "pocket-plug has a built-in executor 'threads'"),
        *(("command", name, f"pocket-plug has a built-in command '{name}'") for name in COMMANDS),
        ("laier", "good", "is not one of 'layer', 'backend'"),
    ],
)
def test_a_bad_or_taken_name_is_refused(
    kind: str, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason, the exit code of usage errors, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", kind, name]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Did you mean 'my-thing'?" in error or "My" not in name
    assert [*tmp_path.iterdir()] == []


def test_an_installed_plugins_name_is_taken(install, tmp_path, monkeypatch, capsys) -> None:
    """Two plugins with one name can't be used together, so the error names its owner before there is a second one."""
    install("pocket-plug-rate-limit", "", entry_points="rate_limit = pocket_plug_rate_limit")
    monkeypatch.chdir(tmp_path)
    assert main(["new", "layer", "rate-limit"]) == 2
    assert "already used by plugin 'rate_limit' (pocket-plug-rate-limit 1.0)" in capsys.readouterr().err


def test_an_existing_folder_is_left_alone(tmp_path, monkeypatch, capsys) -> None:
    """Also an empty folder, or a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket-plug-one").mkdir()
    (tmp_path / "pocket-plug-two").write_text("mine")
    for name in ("one", "two"):
        assert main(["new", "layer", name]) == 2
        assert f"pocket-plug-{name} is there already; remove it, or choose another name" in capsys.readouterr().err
    assert [*(tmp_path / "pocket-plug-one").iterdir()] == []


def test_a_failure_to_write_is_reported(tmp_path, monkeypatch, capsys) -> None:
    """With the path and the system's reason."""
    monkeypatch.chdir(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "pocket-plug-good/LICENSE")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["new", "layer", "good"]) == 2
    assert "pocket-plug-good/LICENSE can't be written: No space left on device" in capsys.readouterr().err
