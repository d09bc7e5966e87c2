"""Twenty plugins, some of them broken in different ways: the others are unaffected, in an order that is the same everywhere."""

from __future__ import annotations

import importlib
import inspect
import itertools
import logging
import os
import sys
import tomllib
from pathlib import Path

import pytest

from pocket_plug import hookspecs
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.plugins import discovery
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.store.store import Store

ENTERED: list[str] = []
"""The plugins that a run has entered, outermost first."""

GOOD = """
    from pocket_plug.hookspecs import Observer, hookimpl
    from pocket_plug.store.layer import Layer

    class Layer_{name}(Layer): ...
    class Same(Layer): ...

    @hookimpl
    def pocket_layers():
        return [Layer_{name}, Same]

    @hookimpl
    def pocket_observe(run):
        import sys
        sys.modules["{here}"].ENTERED.append("{name}")
"""

BROKEN = {
    "import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "raises": ("raise RuntimeError('not today')", "RuntimeError: not today"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "signature": (
        "from pocket_plug.hookspecs import hookimpl\n@hookimpl\ndef pocket_observe(run, node): ...",
        "pocket_observe has no argument 'node'; it may take run",
    ),
    "made": (
        "from pocket_plug.hookspecs import hookimpl\nclass Plugin:\n    def __init__(self): raise OSError('no disk')\n"
        "    @hookimpl\n    def pocket_layers(self): return []",
        "calling the class Plugin failed: OSError: no disk",
    ),
}
"""Never come into use: source, and the reason that is given."""

WRONG = "from pocket_plug.hookspecs import hookimpl\n@hookimpl\ndef pocket_layers(): return ['slow']"
"""Is in use, until it is seen that what a hook of it gives is of a wrong type."""

GOOD_NAMES = [f"p{number:02}" for number in range(14)]


@pytest.fixture
def twenty(install) -> Path:
    """The folder in which they are installed."""
    for name in reversed(GOOD_NAMES):
        install(f"pocket-plug-{name}", GOOD.format(name=name, here=__name__))
    for name, (source, _) in BROKEN.items():
        points = f"{name} = pocket_plug_{name}{':Plugin' if name == 'made' else ''}"
        install(f"pocket-plug-{name}", source, entry_points=points)
    site: Path = install("pocket-plug-wrong", WRONG)
    return site


@node
def double(number: int) -> int:
    return 2 * number


def third_party(pocket: Pocket) -> list[str]:
    return [record.name for record in pocket.plugins if "pocket-plug-" in str(record.distribution)]


def used(pocket: Pocket) -> tuple[list[str], list[str], str]:
    """The plugins in their order, the observers of a run in theirs, and the plugin whose layer is used for
    a name that many have.
    """
    ENTERED.clear()
    assert Graph(double).run_sync(21, pocket=pocket, store=Store()) == 42
    names = [name for name in third_party(pocket) if name in {*GOOD_NAMES, *BROKEN, "wrong"}]
    return names, [*ENTERED], type(pocket.layer("same")).__module__


def test_the_broken_ones_are_reported_and_the_others_are_unaffected(twenty, caplog):
    """Each of them once, with its cause; all others are in use: their layers by name, their observers of a run."""
    pocket = Pocket()
    for name in GOOD_NAMES:
        assert pocket.plugin(name).status == "active"
        assert type(pocket.layer(f"layer_{name}")).__module__ == f"pocket_plug_{name}"
    for name, (_, reason) in BROKEN.items():
        assert (pocket.plugin(name).status, reason in pocket.plugin(name).reason) == ("failed", True)
    wrong = pocket.plugin("wrong")
    assert (wrong.status, dict(wrong.failures)) == ("active", {"pocket_layers": 1})
    said = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "already" not in record.getMessage()
    ]
    for name in (*BROKEN, "wrong"):
        assert len([text for text in said if text.startswith(f"plugin '{name}' (pocket-plug-{name} 1.0) ")]) == 1
    assert len(said) == len(BROKEN) + 1
    ENTERED.clear()
    assert Graph(double).run_sync(21, pocket=pocket) == 42
    assert sorted(ENTERED) == GOOD_NAMES


def test_the_order_is_the_same_everywhere(twenty, tmp_path, monkeypatch):
    """In whatever order a file system lists a folder, and whatever folder is first on the path."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    for number, found in enumerate(sorted(twenty.glob("*.dist-info"))):
        if number % 3:
            found.rename(folders[number % 2] / found.name)
    path = [entry for entry in sys.path if Path(entry) != twenty]
    listed, seen = os.listdir, []
    for order in itertools.permutations([str(twenty), *map(str, folders)]):
        for turned in (False, True):
            monkeypatch.setattr(os, "listdir", lambda *of, turned=turned: sorted(listed(*of), reverse=turned))
            monkeypatch.setattr(sys, "path", [*order, *path])
            importlib.invalidate_caches()
            seen.append(used(Pocket()))
    names, entered, same = seen[0]
    assert names == sorted([*GOOD_NAMES, *BROKEN, "wrong"])
    assert entered == GOOD_NAMES[::-1]  # as in pytest: the plugin that was registered last is called first
    assert same == "pocket_plug_p00"  # and a name belongs to the plugin that was registered first
    assert all(each == seen[0] for each in seen)
    assert len(seen) == 12


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_versions_in_one_folder_the_newer_one_is_used(install, monkeypatch, turned):
    """An interrupted upgrade leaves both; a file system may list either of them first."""
    good = "from pocket_plug.hookspecs import hookimpl\n@hookimpl\ndef pocket_layers(): return []"
    for version in ("1.9", "1.10", "odd"):
        install("pocket-plug-twice", good, version=version)
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda *of: sorted(listed(*of), reverse=turned))
    importlib.invalidate_caches()
    assert [record.version for record in Pocket().plugins if record.name == "twice"] == ["1.10"]


def test_a_half_removed_distribution_harms_no_other(install):
    """Distributions without metadata except the entry points are listed as failed; everything else works."""
    site = install(
        "pocket-plug-good", "from pocket_plug.hookspecs import hookimpl\n@hookimpl\ndef pocket_layers(): return []"
    )
    for name in ("one", "two"):
        install(f"pocket-plug-{name}", "")
        (site / f"pocket_plug_{name}-1.0.dist-info" / "METADATA").unlink()
    install("pocket-plug-three", "")
    (site / "pocket_plug_three-1.0.dist-info" / "METADATA").write_text("Name: pocket-plug-three\n")
    pocket = Pocket()
    broken = [record for record in pocket.plugins if "metadata can't be read" in record.reason]
    assert [record.name for record in broken] == ["?", "?", "pocket-plug-three"]
    assert {record.status for record in broken} == {"failed"}
    assert pocket.plugin("good").status == "active"


# ---------------------------------------------------------------- the level of the API
def level_of(install, level: str | None) -> hookspecs.PluginRecord:
    """The status of a plugin that declares this level, and would fail to be imported without it."""
    source = (
        f"from pocket_plug.hookspecs import API_LEVEL, hookimpl\nif API_LEVEL < 7 and {level!r} == 'level7':\n"
        "    raise ImportError('imported')\n@hookimpl\ndef pocket_layers(): return []"
    )
    said = "" if level is None else f"\n[{hookspecs.API_GROUP}]\nnew = {level}"
    install("pocket-plug-new", source, entry_points=f"new = pocket_plug_new{said}")
    return Pocket().plugin("new")


def test_a_plugin_for_a_newer_level_is_refused_with_what_to_upgrade(install, caplog):
    """Before it is imported: the import's error would name a missing name, and not say what to upgrade."""
    record = level_of(install, "level7")
    assert (record.status, record.reason) == (
        "failed",
        f"it needs level 7 of the plugin API, but this pocket-plug has level {hookspecs.API_LEVEL}; "
        "do: pip install --upgrade pocket-plug",
    )
    assert [text for text in caplog.messages if "level 7" in text] == [
        f"plugin {record} can't be used: {record.reason}"
    ]


def test_a_plugin_for_a_newer_level_is_used_after_the_upgrade(install, monkeypatch):
    """After the upgrade it is in use, unchanged."""
    monkeypatch.setattr(hookspecs, "API_LEVEL", 7)
    monkeypatch.setattr(discovery, "API_LEVEL", 7)
    assert level_of(install, "level7").status == "active"


@pytest.mark.parametrize("level", [None, "level1", f"level{hookspecs.API_LEVEL}"])
def test_a_plugin_for_this_level_or_an_older_one_is_used(install, level):
    """So is one that declares no level."""
    assert level_of(install, level).status == "active"


@pytest.mark.parametrize("level", ["2", "level0", "level", "Level2", "level2.1"])
def test_an_invalid_level_is_refused(install, level):
    """The error quotes the level, and says how to write it."""
    record = level_of(install, level)
    assert (record.status, record.reason) == (
        "failed",
        f"in its entry points, [pocket_plug.api] has {level!r}; write level{hookspecs.API_LEVEL}, or the level that it needs",
    )


LEVELS = {
    1: {
        "pocket_backends": [],
        "pocket_commands": [],
        "pocket_configure": ["pocket", "options"],
        "pocket_executors": [],
        "pocket_layers": [],
        "pocket_observe": ["run"],
        "pocket_plugin_failed": ["plugin", "what", "error"],
        "pocket_run_notice": ["notice"],
        "pocket_shutdown": ["pocket"],
        "pocket_span_additions": [],
        "pocket_types": ["codec"],
    },
}
"""The hooks of each level, with their arguments. A released level stays as it is: what is added begins the next one."""


def test_an_addition_raises_the_level():
    """A hook, or an argument of one, that is in no level yet fails here: add a level, and increase `API_LEVEL`."""
    there = {
        name: [
            argument for argument in inspect.signature(getattr(hookspecs.Specs, name)).parameters if argument != "self"
        ]
        for name in dir(hookspecs.Specs)
        if name.startswith("pocket_")
    }
    assert max(LEVELS) == hookspecs.API_LEVEL
    assert there == LEVELS[hookspecs.API_LEVEL]


def test_our_own_distributions_say_their_level():
    """Each plugin in `plugins/` declares the level that it needs, as the projects of `pocket-plug new` do."""
    for file in (Path(__file__).parents[2] / "plugins").glob("*/pyproject.toml"):
        points = tomllib.loads(file.read_text())["project"].get("entry-points", {})
        said = points.get(hookspecs.API_GROUP, {})
        assert said.keys() == points.get(hookspecs.GROUP, {}).keys(), file
        assert {*said.values()} <= {f"level{level}" for level in LEVELS}
