"""Parts of this repository's plugins: if the plugin isn't installed or in use, the message says so."""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from pocket_plug.codec import Codec, default_codec
from pocket_plug.codec.registry import WRITTEN_BY
from pocket_plug.errors import ConfigError, UnknownTypeError
from pocket_plug.hookspecs import PluginRecord
from pocket_plug.plugins.checking import check_config
from pocket_plug.plugins.discovery import find_plugins
from pocket_plug.plugins.missing import OFFERED_BY, why_missing
from pocket_plug.plugins.pocket import Pocket

PLUGINS = Path(__file__).parents[2] / "plugins"


def test_the_table_has_what_our_plugins_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts of the distributions in `plugins/`, and no others; with the names of the distributions."""
    bare = Pocket(autoload=False).offers
    written: dict[str, str] = {}
    found: dict[str, dict[str, str]] = {"backend": {}, "layer": {}, "executor": {}, "settings": {}}
    for file in PLUGINS.glob("*/pyproject.toml"):
        project = tomllib.loads(file.read_text("utf-8"))["project"]
        monkeypatch.setattr(sys, "path", [*sys.path, str(file.parent / "src")])
        for point in project.get("entry-points", {}).get("pocket_plug", {}).values():
            module, _, name = point.partition(":")
            plugin = import_module(module)
            types = [each for each in vars(plugin).values() if isinstance(each, type) and each.__module__ == module]
            written |= {default_codec.tag_of(each): project["name"] for each in types if default_codec.knows(each)}
            offers = Pocket(autoload=False, plugins=[getattr(plugin, name) if name else plugin]).offers
            found["backend"] |= dict.fromkeys({*offers.backends} - {*bare.backends}, project["name"])
            found["layer"] |= dict.fromkeys({*offers.layers} - {*bare.layers}, project["name"])
            found["executor"] |= dict.fromkeys({*offers.executors} - {*bare.executors}, project["name"])
            found["settings"] |= dict.fromkeys({*offers.settings} - {*bare.settings}, project["name"])
    assert found == OFFERED_BY
    assert written == WRITTEN_BY


@dataclass
class Written:
    """What a layer stores in place of a value."""

    data: bytes


@pytest.mark.parametrize(("tag", "distribution"), [*WRITTEN_BY.items(), ("pocket_plug_forged.Written", None)])
def test_an_entry_of_a_layer_whose_plugin_is_not_installed(tag: str, distribution: str | None) -> None:
    """The error says what to install. Nothing is recommended that a tag names: anybody may have forged it."""
    with_it, without = Codec(), Codec()
    with_it.register(Written, tag=tag)
    with pytest.raises(UnknownTypeError, match=re.escape(tag)) as refused:
        without.decode(with_it.encode(Written(b"")))
    way_out = f"a layer wrote it; do: pip install {distribution}, and name the layer in the store's layers"
    assert (way_out in str(refused.value)) == (distribution is not None)
    assert ("pip" in str(refused.value)) == (distribution is not None)


def test_a_part_of_a_plugin_that_is_not_installed() -> None:
    """The message says what to install: for a store's URL, a layer and an executor; it contains no password."""
    pocket = Pocket(autoload=False)
    for url in ("postgresql://x:hunter2@localhost/y", "postgres://h/y", "redis://h", "rediss://h", "unix:///r.sock"):
        scheme = url.partition(":")[0]
        with pytest.raises(
            ConfigError, match=rf"no plugin offers {scheme}://; do: pip install pocket-plug-\w+$"
        ) as refused:
            pocket.backend(url)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"there is no layer 'compress'; do: pip install pocket-plug-compress$"):
        pocket.layer("compress")
    for executor in ("dask", "dask://h:1", "dask+tls://h"):
        with pytest.raises(ConfigError, match=r"there is no executor 'dask.*'; do: pip install pocket-plug-dask$"):
            pocket.executor(executor)


@pytest.mark.parametrize("disable", [False, True])
def test_settings_of_a_plugin_that_is_not_installed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, disable: bool
) -> None:
    """The program's warning and the check of the file say what to install, unless the plugin is disabled there."""
    monkeypatch.setattr("pocket_plug.plugins.pocket.find_plugins", lambda **_: find_plugins(third_party=False))
    monkeypatch.delenv("POCKET_PLUG_DISABLE", raising=False)
    file = tmp_path / "pocket.toml"
    table = '[plugins]\ndisable = ["openinference"]\n' if disable else "[plugins.openinference]\nkinds = {}\n"
    file.write_text(table, "utf-8")
    Pocket(file)
    advice = "there is no plugin 'openinference'; do: pip install pocket-plug-openinference"
    for found in ([record.getMessage() for record in caplog.records], [str(finding) for finding in check_config(file)]):
        assert [text.endswith(advice) for text in found] == [not disable]


def test_a_part_of_a_plugin_that_is_not_in_use() -> None:
    """The message gives the plugin's status, by any of its names; it doesn't suggest to install it."""
    record = PluginRecord(
        "postgres", distribution="pocket-plug-postgres", status="disabled", reason="by POCKET_PLUG_DISABLE"
    )
    assert why_missing("backend", "postgresql", [record]) == f": plugin {record} is disabled: by POCKET_PLUG_DISABLE"
    assert why_missing("layer", "postgresql", []) == ""
