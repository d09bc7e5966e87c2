"""Commands that show the installation: `plugins` and `stack`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from pocket_plug.errors import PocketError
from pocket_plug.hookspecs import PluginRecord
from pocket_plug.plugins.config import StoreTable, layer_name
from pocket_plug.plugins.discovery import Library, find_libraries
from pocket_plug.plugins.pocket import Pocket, default_pocket
from pocket_plug.plugins.shown import COLUMNS, plugin_rows
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.secret_options import shown

from .output import as_json, echo, echo_json, print_table


@click.command
@as_json
def plugins(as_json: bool) -> None:
    """List the installed plugins: which are used, which are not, and why.

    Installed distributions that use pocket_plug but aren't plugins are listed as libraries.
    """
    records, libraries = _some_pocket().plugins, find_libraries()
    if as_json:
        echo_json([*map(_plugin, records), *map(_library, libraries)])
        return
    rows = plugin_rows(records)
    rows += [(each.distribution, "library", f"{each.distribution} {each.version}", "", NO_PLUGIN) for each in libraries]
    print_table(COLUMNS, rows)


NO_PLUGIN = "not a plugin, since it has no entry point: programs import it"


def _library(library: Library) -> dict[str, object]:
    name, version = library
    about: dict[str, object] = {"name": name, "distribution": name, "version": version, "origin": "library"}
    return {**about, "hooks": [], "status": "library", "reason": NO_PLUGIN}


def _some_pocket() -> Pocket:
    """The default Pocket, or one without configuration if that is invalid: this command helps to find out why."""
    for make in (default_pocket, Pocket):
        try:
            return make()
        except PocketError as error:
            echo(f"{type(error).__name__}: {error}\nplugins without this configuration:", err=True)
    return Pocket(autoload=False)


def _plugin(record: PluginRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "origin": record.origin,
        "hooks": list(record.hooks),
        "status": record.status,
        "reason": record.reason,
    }


@click.command
@click.argument("name", required=False)
@as_json
def stack(name: str | None, as_json: bool) -> None:
    """Draw the configured store stacks.

    It draws the stack of [stores.NAME], or without NAME all stacks, with the outermost layer first. Options are shown as
    in the file, with the names of environment variables instead of their values. Secret options are hidden.

    The configuration is the file that POCKET_PLUG_CONFIG names, or else the nearest one: pocket.toml, or pyproject.toml
    with the table [tool.pocket_plug], in the current folder or above.
    """
    pocket = default_pocket()
    tables: dict[str, StoreTable] = dict(pocket.config.stores)
    if name is not None:
        pocket.stores[name]  # raises with a suggestion if there is no such store
        tables = {name: tables[name]}
    else:
        pocket.store  # noqa: B018 - builds it, so that an invalid stack raises
        for each in tables:
            pocket.stores[each]
        tables = {"": pocket.config.store, **tables}
    if as_json:
        about = {"configuration": pocket.config.source or None}
        echo_json([{"store": each or None, **about, **_stack(pocket, table)} for each, table in tables.items()])
        return
    echo(f"configuration: {pocket.config.source or 'none, neither in this folder nor above it'}", err=True)
    for each, table in tables.items():
        echo(f"{f'stores.{each}' if each else 'store'}{f'  ({table.where})' if table.where else ''}")
        drawn = _stack(pocket, table)
        width = max((len(layer["name"]) for layer in drawn["layers"]), default=0)
        for layer in drawn["layers"]:
            options = ", ".join(f"{option}={value!r}" for option, value in layer["options"].items())
            echo(f"  {layer['name']:{width}}  {options}".rstrip())
        echo(f"  {drawn['url']}")


def _stack(pocket: Pocket, table: StoreTable) -> dict[str, Any]:
    layers: list[dict[str, Any]] = []
    for spec in table.layers:
        written = {} if isinstance(spec, str) else {name: value for name, value in spec.items() if name != "use"}
        recipe: Any = pocket.layer(spec, where=table.where)  # a dataclass, which type checkers can't see
        known = {each.name: each for each in fields(recipe)}
        options = {name: shown(known[name], value) for name, value in written.items()}
        layers.append({"name": layer_name(spec), "options": options})
    return {"url": public_url(table.url), "layers": layers}
