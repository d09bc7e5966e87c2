"""Plugins are found by their entry points, each in isolation: a broken one is reported, and affects no other."""

from __future__ import annotations

import logging
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path

import pytest

from pocket_plug.errors import PluginError
from pocket_plug.hookspecs import PluginRecord, hookimpl
from pocket_plug.plugins import discovery
from pocket_plug.plugins.discovery import BUILT_IN, find_plugins
from pocket_plug.plugins.pocket import Pocket

GOOD = """
    from pocket_plug.hookspecs import hookimpl

    @hookimpl
    def pocket_layers():
        return []
"""


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def check_failed(caplog: pytest.LogCaptureFixture, reason: str) -> PluginRecord:
    """Plugin `bad` is listed as failed for this reason, logged once, and the one beside it works."""
    caplog.clear()
    pocket = Pocket()
    bad = pocket.plugin("bad")
    assert (bad.status, bad.distribution, bad.version) == ("failed", "pocket-plug-bad", "1.0")
    assert reason in bad.reason
    about_it = [text for text in warnings_of(caplog) if "'bad' (pocket-plug-bad 1.0)" in text]
    assert len(about_it) == 1
    assert reason in about_it[0]
    assert pocket.plugin("good").status == "active"
    return bad


def test_found_by_entry_point(install, caplog):
    """A distribution with an entry point in the group is active, with its version and hooks, and nothing is logged."""
    install("pocket-plug-good", GOOD, version="2.1")
    record = Pocket().plugin("good")
    assert record == PluginRecord("good", "pocket-plug-good", "2.1", "entry point", ("pocket_layers",))
    assert not [text for text in warnings_of(caplog) if "good" in text]


def test_sorted_by_name_then_distribution(install):
    """The order is the same on every machine: ours first, then by name, then by distribution."""
    install("pocket-plug-zebra", GOOD, entry_points="zebra = pocket_plug_zebra")
    install("pocket-plug-b", GOOD, entry_points="same = pocket_plug_b")
    install("pocket-plug-a", GOOD, entry_points="same = pocket_plug_a")
    candidates, broken = find_plugins()
    names = [(each.record.name, each.record.distribution) for each in candidates]
    assert broken == []
    assert [name for name, _ in names[: len(BUILT_IN)]] == sorted(BUILT_IN)
    ours = [each for each in names if each[0] in ("same", "zebra")]
    assert ours == [("same", "pocket-plug-a"), ("same", "pocket-plug-b"), ("zebra", "pocket-plug-zebra")]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E: (its text can't be read)"),
        ("x = 1", "it implements no hook; mark functions with @hookimpl"),
        ("def pocket_observe(run): ...", "pocket_observe has no @hookimpl; write it above the function"),
    ],
)
def test_broken_module(install, caplog, source, reason):
    """Any failure of its import names plugin, distribution and cause; the others work."""
    install("pocket-plug-good", GOOD)
    install("pocket-plug-bad", source)
    check_failed(caplog, reason)


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ("def pocket_obsrve(run): ...", "there is no hook 'pocket_obsrve'; did you mean 'pocket_observe'?"),
        (
            "def pocket_observe(ran): ...",
            "pocket_observe has no argument 'ran'; it may take run. Did you mean 'run'?",
        ),
        ("def pocket_observe(run=None): ...", "pocket_observe gives 'run' a default, so it would never be passed"),
        ("def pocket_observe(*, run): ...", "pocket_observe has the parameter 'run'"),
        ("def pocket_observe(**all): ...", "pocket_observe has the parameter '**all'"),
        ("def pocket_layers(run): ...", "pocket_layers has no argument 'run'; it takes no argument"),
        ("async def pocket_observe(run): ...", "pocket_observe is `async def`; hooks must be plain functions"),
        ("def pocket_layers():\n    yield 1", "pocket_layers is a generator; hooks must be plain functions"),
        (
            "async def pocket_layers():\n    yield 1",
            "pocket_layers is an async generator; hooks must be plain functions",
        ),
    ],
)
def test_an_invalid_hook_is_refused(install, caplog, definition, reason):
    """A misspelt hook, a wrong argument, a coroutine: refused with the hook's name and the way out."""
    install("pocket-plug-good", GOOD)
    install("pocket-plug-bad", f"from pocket_plug.hookspecs import hookimpl\n@hookimpl\n{definition}\n")
    check_failed(caplog, reason)


def test_a_module_whose_class_has_the_hooks(install, caplog):
    """The entry point names the module instead of the class: the error says what to write."""
    install("pocket-plug-good", GOOD)
    source = "from pocket_plug.hookspecs import hookimpl\nclass Mine:\n    @hookimpl\n    def pocket_layers(self): return []\n"
    install("pocket-plug-bad", source)
    check_failed(caplog, "it implements no hook, but its class Mine does; name the class: pocket_plug_bad:Mine")


@pytest.mark.parametrize("option", ["wrapper", "hookwrapper"])
def test_wrappers_are_refused(install, caplog, option):
    """Hooks are called one by one, so a wrapper would never do what its author expects."""
    install("pocket-plug-good", GOOD)
    source = f"from pocket_plug.hookspecs import hookimpl\n@hookimpl({option}=True)\ndef pocket_layers():\n    yield\n"
    install("pocket-plug-bad", source)
    check_failed(caplog, "pocket_layers is a wrapper")


def test_refused_plugin_leaves_nothing_behind(install):
    """One wrong hook refuses the whole plugin: its other hooks aren't used either."""
    install("pocket-plug-bad", """
        from pocket_plug.hookspecs import hookimpl
        from pocket_plug.store.layer import Layer

        class Half(Layer): ...

        @hookimpl
        def pocket_layers():
            return [Half]

        @hookimpl
        def pocket_wrong(): ...
    """)  # fmt: skip
    pocket = Pocket()
    assert pocket.plugin("bad").hooks == ()
    with pytest.raises(Exception, match="there is no layer 'half'"):
        pocket.layer("half")


def test_optional_hook_of_another_version(install):
    """A hook that only a later pocket_plug has is allowed if its author declares it optional."""
    install("pocket-plug-new", GOOD + """
    @hookimpl(optionalhook=True)
    def pocket_teleport(): ...
    """)  # fmt: skip
    assert Pocket().plugin("new").hooks == ("pocket_layers",)


def test_declined(install, caplog):
    """A module that raises NotConfiguredError is listed as declined: no failure, its message is the reason."""
    install(
        "pocket-plug-shy",
        "from pocket_plug.errors import NotConfiguredError\nraise NotConfiguredError('SHY_URL is not set')",
    )
    record = Pocket(strict=True).plugin("shy")
    assert (record.status, record.reason) == ("declined", "SHY_URL is not set")
    assert not warnings_of(caplog)  # it waits for its settings, and nobody has asked for it


def test_interrupt_passes(install):
    """Ctrl-C during the import of plugins belongs to the user, and is no plugin's failure."""
    install("pocket-plug-slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Pocket()


def test_two_distributions_with_one_name(install, caplog):
    """The first distribution keeps the name; the second is listed as failed, and the message names both."""
    install("pocket-plug-a", GOOD, entry_points="same = pocket_plug_a")
    install("pocket-plug-b", GOOD, entry_points="same = pocket_plug_b")
    first, second = [record for record in Pocket().plugins if record.name == "same"]
    assert (first.distribution, first.status) == ("pocket-plug-a", "active")
    assert (second.distribution, second.status) == ("pocket-plug-b", "failed")
    assert "the name 'same' is already used by 'same' (pocket-plug-a 1.0)" in second.reason
    assert len([text for text in warnings_of(caplog) if "'same'" in text]) == 1


def test_no_plugin_replaces_a_built_in_one(install):
    """Another plugin can't replace a built-in part by its name."""
    install("pocket-plug-evil", GOOD, entry_points="bounding = pocket_plug_evil")
    ours, theirs = [record for record in Pocket().plugins if record.name == "bounding"]
    assert (ours.origin, ours.status) == ("built-in", "active")
    assert theirs.status == "failed"


@pytest.mark.parametrize(
    ("requirement", "missing", "found"),
    [
        ("no-such-distribution>=2", "no-such-distribution>=2", "which is not installed"),
        ("pytest>=99999", "pytest>=99999", f"but {pytest.__version__} is installed"),
        ('no-such-extra; extra == "fast"', "no-such-extra", "which is not installed"),
    ],
)
def test_missing_requirement(install, caplog, requirement, missing, found):
    """Its requirements, those of extras too, are named with the command to install them, before it is imported."""
    install("pocket-plug-good", GOOD)
    source = "raise AssertionError('imported')"
    install("pocket-plug-bad", source, entry_points="bad = pocket_plug_bad [fast]", requires=(requirement,))
    check_failed(caplog, f'it requires {missing}, {found}; do: pip install "{missing}"')


@pytest.mark.parametrize("requirement", ["pocket-plug<0.1", "pocket_plug>=99999"])
def test_a_plugin_of_another_version_of_ours_is_to_be_upgraded(install, caplog, requirement):
    """The error doesn't suggest an older pocket-plug, which others may not accept. pip also upgrades what the plugin needs."""
    install("pocket-plug-good", GOOD)
    install("pocket-plug-bad", "raise AssertionError('imported')", requires=(requirement,))
    said = f"it requires {requirement}, but {version('pocket-plug')} is installed; do: pip install --upgrade pocket-plug-bad"
    check_failed(caplog, said)


def test_irrelevant_requirements_are_ignored(install):
    """Requirements of other extras and platforms, installed ones, and pocket-plug itself, are no problem."""
    requires = ("pytest>=1", 'nothing; extra == "other"', 'nothing; sys_platform == "vms"', "pocket-plug>=0.1")
    install("pocket-plug-good", GOOD, entry_points="good = pocket_plug_good [fast]", requires=requires)
    assert Pocket().plugin("good").reason == ""


@pytest.mark.parametrize("there", ["2.0rc1", "2.0.dev3", "2.1b2"])
def test_a_pre_release_satisfies_a_requirement(install, there):
    """A pre-release was installed on purpose: an installer would have accepted it."""
    install("pocket-plug-base", "", entry_points="", version=there)
    install("pocket-plug-good", GOOD, requires=("pocket-plug-base>=1.0",))
    assert Pocket().plugin("good").reason == ""


def test_entry_point_of_an_object(install):
    """`module:object` makes the object the plugin, its methods the hooks."""
    install("pocket-plug-object", """
        from pocket_plug.hookspecs import hookimpl
        class Plugin:
            @hookimpl
            def pocket_observe(self, run): ...
        plugin = Plugin()
    """, entry_points="object = pocket_plug_object:plugin")  # fmt: skip
    assert Pocket().plugin("object").hooks == ("pocket_observe",)


@pytest.mark.parametrize("value", ["a module!", ":x", ""])
def test_an_invalid_entry_point(install, caplog, value):
    """An entry point without a valid module is shown as written, by the name of the plugin or of its distribution.

    If importlib_metadata was imported, a distribution with such an entry point has none that can be read.
    """
    install("pocket-plug-good", GOOD)
    install("pocket-plug-bad", "", entry_points=f"bad = {value}")
    caplog.clear()
    pocket = Pocket()
    [bad] = [record for record in pocket.plugins if record.distribution == "pocket-plug-bad"]
    assert (bad.status, bad.version) == ("failed", "1.0")
    assert bad.name in ("bad", "pocket-plug-bad")
    assert repr(value) in bad.reason
    assert len([text for text in warnings_of(caplog) if bad.reason in text]) == 1
    assert pocket.plugin("good").status == "active"


def test_unreadable_metadata(install, caplog):
    """A distribution with broken metadata hides no other, and is listed."""
    install("pocket-plug-good", GOOD)
    install("pocket-plug-bad", GOOD, entry_points="this is no entry point")
    pocket = Pocket()
    assert pocket.plugin("good").status == "active"
    [broken] = [record for record in pocket.plugins if "metadata can't be read" in record.reason]
    assert broken.status == "failed"
    assert any("metadata can't be read" in text for text in warnings_of(caplog))


def test_the_first_on_the_path_is_used(install, tmp_path, monkeypatch):
    """Of a distribution that is installed twice, the first on the path is the plugin, as for imports."""
    site = install("pocket-plug-good", GOOD, version="2.0")
    old = tmp_path / "old"
    (old / "pocket_plug_good-1.0.dist-info").mkdir(parents=True)
    for name in ("METADATA", "entry_points.txt"):
        text = (site / "pocket_plug_good-2.0.dist-info" / name).read_text()
        (old / "pocket_plug_good-1.0.dist-info" / name).write_text(text.replace("2.0", "1.0"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(old)])
    assert [(record.version, record.status) for record in Pocket().plugins if record.name == "good"] == [
        ("2.0", "active")
    ]


# ---------------------------------------------------------------- enabling and disabling
def test_disabled_is_not_imported(install, monkeypatch, tmp_path, caplog):
    """By code, environment or configuration: a disabled plugin is listed with the place that disables it,
    and not even imported.
    """
    for name in ("one", "two", "three"):
        install(f"pocket-plug-{name}", "raise AssertionError('imported')")
    monkeypatch.setenv("POCKET_PLUG_DISABLE", " two ,")
    config = tmp_path / "pocket.toml"
    config.write_text('[plugins]\ndisable = ["three"]\n')
    pocket = Pocket(config, block=["one"])
    said = {name: (pocket.plugin(name).status, pocket.plugin(name).reason) for name in ("one", "two", "three")}
    assert said == {
        "one": ("disabled", "by Pocket(block=...)"),
        "two": ("disabled", "by POCKET_PLUG_DISABLE"),
        "three": ("disabled", f"by {config} [plugins].disable"),
    }
    assert not [text for text in warnings_of(caplog) if "pocket-plug-" in text]


def test_a_builtin_can_be_disabled():
    """Built-in parts are disabled like any other."""
    pocket = Pocket(block=["bounding"])
    with pytest.raises(Exception, match=r"there is no layer 'bounding': plugin 'bounding' .* is disabled: by Pocket"):
        pocket.layer("bounding")


def test_namesake_of_a_disabled_one(install):
    """If a built-in part is disabled, its name is free for a plugin given in code; both are listed."""

    class Logging:
        @hookimpl
        def pocket_observe(self, run): ...

    install("pocket-plug-log", GOOD, entry_points="logging = pocket_plug_log")
    pocket = Pocket(block=["logging"], plugins=[Logging()])
    assert sorted(
        (each.name, str(each.distribution), each.status) for each in pocket.plugins if "log" in each.name
    ) == [
        ("logging", "None", "active"),
        ("logging", "pocket-plug", "disabled"),
        ("logging", "pocket-plug-log", "disabled"),
    ]


def test_unknown_name_to_disable(caplog):
    """A misspelt name is reported; otherwise the plugin would silently stay enabled."""
    Pocket(block=["boundign"])
    assert "Pocket(block=...): there is no plugin 'boundign'; did you mean 'bounding'?" in warnings_of(caplog)


def test_the_environment_may_name_a_plugin_that_is_not_loaded(caplog, monkeypatch):
    """The variable is for all programs: without autoload there is nothing to disable, and nothing to report."""
    monkeypatch.setenv("POCKET_PLUG_DISABLE", "somebodys")
    Pocket(autoload=False)
    assert warnings_of(caplog) == []
    Pocket()
    [said] = warnings_of(caplog)
    assert said.startswith("POCKET_PLUG_DISABLE: there is no plugin 'somebodys'")


@pytest.mark.parametrize("switch", ["code", "environment"])
def test_autoload_off(install, monkeypatch, switch):
    """Without autoload other distributions' plugins aren't loaded; ours are."""
    install("pocket-plug-good", GOOD)
    if switch == "environment":
        monkeypatch.setenv("POCKET_PLUG_AUTOLOAD", "0")
    pocket = Pocket(autoload=switch != "code")
    assert [record.name for record in pocket.plugins] == sorted(BUILT_IN)


def test_an_invalid_autoload_is_refused(monkeypatch):
    """The variable is 0 or 1; anything else is an error."""
    monkeypatch.setenv("POCKET_PLUG_AUTOLOAD", "maybe")
    with pytest.raises(ValueError, match="POCKET_PLUG_AUTOLOAD must be 0 or 1, not 'maybe'"):
        Pocket()


def test_strict(install):
    """With strict=True a plugin that can't be used is an error that names plugin, distribution and cause."""
    install("pocket-plug-bad", "1 / 0")
    with pytest.raises(PluginError, match=r"plugin 'bad' \(pocket-plug-bad 1\.0\) can't be used: ZeroDivisionError"):
        Pocket(strict=True)


def test_required(install):
    """A required plugin that is missing, broken or disabled is an error that says which of these it is."""
    install("pocket-plug-bad", "1 / 0")
    install("pocket-plug-good", GOOD)
    assert Pocket(required=["good"]).plugin("good").status == "active"
    with pytest.raises(PluginError, match=r"plugin 'bad' \(.*\) is required, but can't be used: ZeroDivisionError"):
        Pocket(required=["bad"])
    with pytest.raises(PluginError, match=r"'good' .* is required, but is disabled: by Pocket\(block=...\)"):
        Pocket(required=["good"], block=["good"])
    with pytest.raises(PluginError, match=r"there is no plugin 'goood'; did you mean 'good'\?"):
        Pocket(required=["goood"])


# ---------------------------------------------------------------- ours
def test_built_in_table_is_the_entry_points():
    """The table of built-in parts has what pyproject.toml declares: they are found as other plugins are."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pocket_plug"] == BUILT_IN


def test_built_in_without_metadata(install, monkeypatch):
    """If pocket_plug was never installed, its own parts work, and plugins that require it work."""
    original = discovery.distribution

    def uninstalled(name: str) -> Distribution:
        if name == "pocket-plug":
            raise PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(discovery, "distribution", uninstalled)
    candidates, _ = find_plugins(third_party=False)
    assert [each.record.name for each in candidates] == sorted(BUILT_IN)
    assert {each.record.version for each in candidates} == {None}
    install("pocket-plug-good", GOOD, requires=("pocket-plug>=0.1",))
    assert Pocket().plugin("good").status == "active"


def test_built_in_with_older_metadata(install):
    """If the metadata is older than the code, the code counts: nothing is missing, nothing that was removed is imported."""
    entry_points = "gone = pocket_plug.gone\nbounding = pocket_plug.was_there"
    install("pocket-plug", "", entry_points=entry_points, version="0.1.0")
    ours = {record.name: record.status for record in Pocket().plugins if record.origin == "built-in"}
    assert ours == dict.fromkeys(sorted(BUILT_IN), "active")


def test_built_in_are_all_active():
    """All built-in parts are in use."""
    assert {record.status for record in Pocket(autoload=False, strict=True).plugins} == {"active"}


def test_discovery_is_lazy():
    """Creating a Pocket loads neither the OpenTelemetry SDK nor a network client, and `import` scans nothing."""
    code = """
import sys
import pocket_plug.plugins
assert not [name for name in sys.modules if name.startswith("pocket_plug.layers.")]
heavy = {"opentelemetry.sdk", "structlog", "msgspec", "click", "rich", "sqlite3", "beartype"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
pocket_plug.plugins.Pocket(autoload=False)
assert not {"opentelemetry.sdk", "structlog", "click", "rich"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
