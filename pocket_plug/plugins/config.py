"""Reads and checks `pocket.toml`, or `[tool.pocket_plug]` in pyproject.toml, and makes recipes of layers from it.

Every message names the file and the path in it. Strings may name environment variables, `"${NAME}"`, which are replaced only
when a value is used. So a configuration is shown as it is written, without the values of the variables.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard, cast

from pocket_plug.errors import ConfigError, is_fault
from pocket_plug.graph.retention import BY_DEFAULT, Retention
from pocket_plug.primitives.default_pocket import searches_config
from pocket_plug.primitives.failures import concealed
from pocket_plug.primitives.redaction import named, public_url, summary
from pocket_plug.primitives.secret_options import VARIABLE, hidden_of, is_secret, shown
from pocket_plug.store.layer import Layer
from pocket_plug.store.layer_options import fitted
from pocket_plug.store.resolving import LayerSpec

from .tables import ABOUT, EXECUTOR, PLUGINS, RUNS, STORE, KeyPath, Problem, Table, alternatives


@dataclass(frozen=True, slots=True)
class StoreTable:
    """The table of a store, as written in the file."""

    where: str = ""
    """The table's name in messages: `pocket.toml [stores.cache]`."""
    url: str = "memory://"
    layers: tuple[LayerSpec, ...] = ()

    def __repr__(self) -> str:
        """The table without passwords and options, which may be secret."""
        names = [layer if isinstance(layer, str) else layer.get("use") for layer in self.layers]
        return f"StoreTable({self.where!r}, {public_url(self.url)!r}, layers={names})"


@dataclass(frozen=True, slots=True)
class Config:
    """The content of a configuration file. Without a file: one store in memory, and no disabled plugins."""

    source: str = ""
    """The path of the file."""
    folder: Path | None = None
    """The folder of the file: relative paths in the file are relative to it."""
    where: str = ""
    """The name of the table of plugins in messages: `pocket.toml [plugins]`."""
    store: StoreTable = StoreTable()
    stores: Mapping[str, StoreTable] = field(default_factory=dict[str, StoreTable])
    disable: tuple[str, ...] = ()
    """Names of plugins that are not used."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]], repr=False)
    """The tables `[plugins.NAME]`."""
    executors: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    """The table `[executors]`: URLs by name."""
    runs: Retention | None = None
    """Which ended runs `pocket-plug worker` and `pocket-plug runs prune` remove; None: none."""


def default_config() -> Path | None:
    """The file of the default Pocket: the one that `POCKET_PLUG_CONFIG` names, or None; on the command line, the nearest one.

    Raises ConfigError if the variable names a missing file.
    """
    return named_config() or (find_config() if searches_config() else None)


def named_config() -> Path | None:
    """The file that `POCKET_PLUG_CONFIG` names; None if it isn't set. Raises ConfigError if the file is missing."""
    named = os.environ.get("POCKET_PLUG_CONFIG", "")
    if not named:
        return None
    if not Path(named).is_file():
        raise ConfigError(f"POCKET_PLUG_CONFIG is {named!r}, but there is no such file")
    return Path(named)


def find_config() -> Path | None:
    """The nearest configuration file: in the current folder, or in the nearest folder above that has one.

    In a folder, it is `pocket.toml`, or else a `pyproject.toml` with our table. Raises ConfigError if the current folder was
    removed, or for a file that somebody else may have planted.
    """
    here = Path()
    try:
        folders = here, *here.absolute().parents
    except FileNotFoundError:
        raise ConfigError("the current folder was removed; change to one that exists") from None
    found = next((found for each in folders if (found := _config_in(each))), None)
    if found is not None:
        _refuse_planted(found)
    return found


def _config_in(folder: Path) -> Path | None:
    own = folder / "pocket.toml"
    if own.is_file():
        return own
    project = folder / "pyproject.toml"
    if project.is_file() and "pocket_plug" in _text(project) and "pocket_plug" in _toml(project).get("tool", {}):
        return project
    return None


def _refuse_planted(path: Path) -> None:
    """Raise ConfigError for another user's file in a folder where all may write, such as `/tmp`.

    Nobody has named it, and it would choose where state, traces and the variables that it names are sent. Git does likewise.
    """
    if (
        os.name == "posix"
        and path.parent.stat().st_mode & stat.S_IWOTH
        and path.lstat().st_uid not in (0, os.geteuid())
    ):
        raise ConfigError(
            f"{path.absolute()} belongs to another user, and is in a folder where all users may write; if you trust it, name it: "
            f"POCKET_PLUG_CONFIG={path}, else put a pocket.toml of your own into the current folder"
        )


def load_config(path: str | Path) -> Config:
    """Read and check a file. Raises ConfigError for the first problem, with the file and the path in it."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a configuration can't be {named(path)}; give the path of its file, such as 'pocket.toml'")
    config, problems = read_config(Path(path))
    if problems:
        more = f" (and {len(problems) - 1} more: pocket-plug config check {path})" if problems[1:] else ""
        raise ConfigError(f"{problems[0].message}{more}")
    return config


def read_config(path: Path) -> tuple[Config, list[Problem]]:
    """The valid parts of a file, and all its problems. Raises ConfigError if it isn't TOML."""
    content: Any = _toml(path)
    place: KeyPath = ()
    if path.name == "pyproject.toml":
        content, place = content.get("tool", {}).get("pocket_plug"), ("tool", "pocket_plug")
        if content is None:
            raise ConfigError(f"{path} has no table [tool.pocket_plug]")
    top = Table(str(path), place, content, [])
    top.allow(ABOUT)
    plugins, named = top.table("plugins"), top.table("stores")
    config = Config(
        source=str(path),
        folder=path.absolute().parent,
        where=plugins.where,
        store=_store(top.table("store")),
        stores={name: _store(named.table(name)) for name in named.content},
        disable=plugins.names("disable", PLUGINS["disable"]),
        options={name: plugins.table(name).content for name in plugins.content if name not in PLUGINS},
        executors=_urls(top.table("executors")),
        runs=_retention(top.table("runs")) if "runs" in top.content else None,
    )
    return config, top.problems


def _store(table: Table) -> StoreTable:
    table.allow(STORE)
    url = table.value("url", STORE["url"], "memory://")
    layers: list[Any] = table.value("layers", STORE["layers"], [])
    for position, layer in enumerate(layers):
        table.attempt(partial(layer_name, layer, f"{table.where}.layers[{position}]"), "layers", position)
    return StoreTable(table.where, url, tuple(layers))


def _urls(table: Table) -> dict[str, str]:
    urls = {name: table.value(name, EXECUTOR, None) for name in table.content}
    return {name: url for name, url in urls.items() if url is not None}


def _retention(table: Table) -> Retention | None:
    table.allow(RUNS)
    before = len(table.problems)
    states = table.names("states", RUNS["states"]) if "states" in table.content else BY_DEFAULT
    older = table.attempt(lambda: expand(table.content.get("older"), f"{table.where}.older"), "older")
    keep: Any = table.content.get("keep")
    parts = {"older": {"older": older}, "keep": {"keep": keep}, "states": {"keep": 1, "states": states}}
    for key, part in parts.items():
        if key in table.content:
            table.attempt(partial(_checked_retention, table.where, **part), key)
    if len(table.problems) > before:
        return None
    whole: Retention | None = table.attempt(
        partial(_checked_retention, table.where, older=older, keep=keep, states=states)
    )
    return whole


def _checked_retention(where: str, **options: Any) -> Retention:
    try:
        return Retention(**options)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except ValueError as error:  # also of an int with thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} can't be read: it is nested too deeply") from error


def expand(value: Any, where: str) -> Any:
    """A value with environment variables replaced, at any depth. Raises ConfigError for a variable that isn't set.

    >>> os.environ["CACHE_DIR"] = "/var/cache"
    >>> expand(["sqlite:///${CACHE_DIR}/x.db"], "pocket.toml [store]")
    ['sqlite:////var/cache/x.db']
    """

    def variable(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ConfigError(f"{where}: the environment variable {name!r} is not set")
        return os.environ[name]

    if isinstance(value, str):
        return VARIABLE.sub(variable, value)
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        return {key: expand(item, f"{where}.{key}") for key, item in table.items()}
    if _is_list(value):
        return [expand(item, f"{where}[{position}]") for position, item in enumerate(value)]
    return value


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def layer_name(spec: LayerSpec, where: str = "") -> str:
    """The name in a layer's spec. Raises ConfigError if there is none."""
    name = spec.get("use") if isinstance(spec, Mapping) else spec
    if not isinstance(name, str):
        found = summary(spec)
        if isinstance(spec, Mapping):
            has = f", of: {', '.join(spec)}" if spec else ""
            found = f"a table whose `use` is {summary(name)}" if "use" in spec else f"a table without `use`{has}"
        raise ConfigError(
            f'{where and f"{where}: "}a layer is a name or a table such as {{ use = "bounding", '
            f"max_entries = 1000 }}, not {found}"
        )
    return name


def options_of(kind: type[Layer]) -> dict[str, dataclasses.Field[Any]]:
    """The options of a layer, by name."""
    a_dataclass: Any = kind  # Layer makes every subclass a dataclass, which type checkers can't see
    return {each.name: each for each in dataclasses.fields(a_dataclass) if each.init}


def is_needed(option: dataclasses.Field[Any]) -> bool:
    """Is an option required?"""
    return option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING


def option_values(
    kind: type[Layer], options: Mapping[str, Any], where: str, problems: list[tuple[str, str]]
) -> dict[str, Any]:
    """The values of a layer's options. Problems are added to `problems`: the option and a message."""
    prefix, fields, values = f"{where}: " if where else "", options_of(kind), dict[str, Any]()
    for name, written in options.items():
        try:
            if name not in fields:
                raise ConfigError(f"{prefix}{kind.name} has no option {name!r}{alternatives(name, fields)}")
            value = expand(written, f"{where}.{name}")
            values[name], wanted = fitted(kind, name, value)
            if wanted is not None:
                found = summary(value) if is_secret(fields[name]) else f"{shown(fields[name], written)!r:.80}"
                raise ConfigError(f"{prefix}{kind.name}'s option {name!r} must be {wanted}, not {found}")
        except ConfigError as error:
            problems.append((name, str(error)))
    missing = (name for name, each in fields.items() if name not in options and is_needed(each))
    problems.extend(("use", f"{prefix}{kind.name} needs the option {name!r}") for name in missing)
    return values


def make_recipe(kind: type[Layer], options: Mapping[str, Any], where: str = "", *, plugin: object = None) -> Layer:
    """A layer's recipe from its options as written in the file, each checked against the type of its field.

    Environment variables are replaced. Messages begin with `where`, and show no secrets. `plugin` is the object that offers
    the layer. Raises ConfigError for invalid options.
    """
    prefix = f"{where}: " if where else ""
    problems: list[tuple[str, str]] = []
    values = option_values(kind, options, where, problems)
    if problems:
        raise ConfigError(problems[0][1])
    from_environment = {name: written for name, written in options.items() if expand(written, where) != written}
    fields = options_of(kind)
    try:
        recipe = kind(**values)
    except BaseException as error:
        if not is_fault(error):
            raise
        said, cause = concealed(error, hidden_of(fields.values(), values, from_environment))
        if isinstance(error, ValueError | TypeError):  # the errors by which layers refuse options
            said = said.removeprefix(f"{type(error).__name__}: ")
        said = said.removeprefix(f"{kind.name}: ")
        raise ConfigError(f"{prefix}{kind.name}: {said}") from cause
    recipe.made_by(plugin, from_environment)
    return recipe
