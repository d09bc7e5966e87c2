"""The reference lists exactly what exists: names, hooks, options, commands, variables, exceptions."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_overloads

import click
import pytest

import pocket_plug
from pocket_plug import RunCheck, RunInfo, RunPosition, Runs, RunState, errors, hookspecs, layers
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.cli import COMMANDS as OURS
from pocket_plug.cli import cli
from pocket_plug.codec import Codec
from pocket_plug.graph.drawing.drawn import Drawn
from pocket_plug.graph.fan_out import fan_out
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.each import each
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.graph.nodes.options import NodeOptions
from pocket_plug.graph.nodes.retry import Retry
from pocket_plug.hookspecs import PluginRecord
from pocket_plug.layers import logging, metrics, tracing
from pocket_plug.plugins import tables
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.remote import Executor
from pocket_plug.store import backend, layer
from pocket_plug.store.caching import CachingView
from pocket_plug.store.keys import Key
from pocket_plug.store.store import Store, StoreReader, StoreScope, StoreWriter
from pocket_plug.store.sync import SyncStore
from pocket_plug.telemetry import Telemetry, observe, setup

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pocket_plug"
TEXT = (ROOT / "docs" / "reference.md").read_text("utf-8")


# ---------------------------------------------------------------- the page
def headings() -> list[str]:
    """The titles of all sections, without backquotes."""
    return [title.replace("`", "") for title in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)]


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    _, *parts = re.split(r"^#+ (.+)\n", TEXT, flags=re.MULTILINE)
    found = [body for name, body in zip(parts[::2], parts[1::2], strict=True) if name.replace("`", "") == title]
    assert len(found) == 1, f"{len(found)} sections are called {title!r}; there are: {headings()}"
    return found[0]


def rows(title: str, table: int = 0) -> dict[str, str]:
    """The rows of a section's table: the names in the first column, each with the whole row."""
    tables = re.findall(r"(?:^\|.*\n)+", section(title), re.MULTILINE)
    found: dict[str, str] = {}
    for row in tables[table].splitlines()[2:]:
        first = row.split(" |")[0]
        for name in re.findall(r"`(-*\w[\w.-]*)[^`]*`", first):
            assert name not in found, f"{name!r} stands twice in {title!r}"
            found[name] = row
    return found


def of_signature(function: Any, *, keywords_only: bool = False) -> set[str]:
    """The names of its parameters."""
    parameters = inspect.signature(function).parameters.values()
    return {
        each.name
        for each in parameters
        if each.name != "self" and (each.kind is each.KEYWORD_ONLY or not keywords_only)
    }


def public(*classes: type) -> set[str]:
    """The names that classes define themselves and that don't start with an underscore."""
    return {name for cls in classes for name in vars(cls) if not name.startswith("_")}


def fields_of(cls: Any) -> set[str]:
    """A dataclass's public fields; for a layer without the label that each has."""
    found = {field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")}
    return found - {"label"} if issubclass(cls, layer.Layer) else found


# ---------------------------------------------------------------- names
def exceptions() -> dict[str, type[BaseException]]:
    """The exceptions that errors.py defines."""
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, BaseException) and kind.__module__ == errors.__name__
    }


def test_every_name_of_the_package() -> None:
    """All names of `from pocket_plug import` are listed, and all listed names can be imported."""
    assert rows("Names").keys() | exceptions().keys() == set(pocket_plug.__all__)
    assert [name for name in pocket_plug.__all__ if not hasattr(pocket_plug, name)] == []


def test_every_exception_with_its_bases() -> None:
    """Each exception is listed with the classes that `except` may name for it."""
    listed = rows("Exceptions")
    assert listed.keys() == exceptions().keys()
    for name, kind in exceptions().items():
        bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        assert listed[name].startswith(f"| `{name}` | {bases} | "), name


# ---------------------------------------------------------------- hooks and observers
def signature(hook: str) -> str:
    """A hook as plugins write it, without self."""
    declared = inspect.signature(getattr(hookspecs.Specs, hook))
    arguments = [parameter for name, parameter in declared.parameters.items() if name != "self"]
    return f"{hook}{declared.replace(parameters=arguments)}".replace("'", "")


def test_every_hook_with_its_signature() -> None:
    """A heading for each hook, with its exact parameters and result."""
    hooks = [name for name in dir(hookspecs.Specs) if name.startswith("pocket_")]
    assert {title for title in headings() if title.startswith("pocket_")} == {signature(hook) for hook in hooks}


@pytest.mark.parametrize(
    "view", [hookspecs.Observer, hookspecs.Run, hookspecs.NodeCall, hookspecs.PhaseCall], ids=lambda v: v.__name__
)
def test_every_field_that_an_observer_sees(view: type) -> None:
    """The observer and its views have a row for each field, and for each computed property."""
    asked_for = {name for name, found in vars(view).items() if isinstance(found, property)}
    assert rows(view.__name__).keys() == fields_of(view) | asked_for


def test_every_event() -> None:
    """The listed events are those of a run."""
    source = "".join(file.read_text("utf-8") for file in (PACKAGE / "graph").rglob("*.py"))
    assert rows("Events").keys() == set(re.findall(r"run\.event\(\s*\"(\w+)\"", source))


def test_every_event_of_a_stream() -> None:
    """Each class with its kind and its fields, and the fields of each place."""
    listed = rows("Events of a stream")
    kinds = {kind.__name__: kind for kind in get_args(pocket_plug.RunEvent) for kind in [get_origin(kind) or kind]}
    assert listed.keys() == kinds.keys()
    for name, kind in kinds.items():
        _, words, fields, _ = listed[name].strip("| ").split(" | ")
        assert words == f'"{kind.kind}"'
        assert [word for word in re.findall(r"`(\w+)`", fields) if word not in ("place", "MISSING")] == [
            field.name for field in dataclasses.fields(kind) if field.name != "place"
        ]
    of_place = set(rows("Events of a stream", 1))
    assert {name for name in of_place if name != "str"} <= set(dir(pocket_plug.NodePlace)) & set(
        dir(pocket_plug.Emitted)
    )


def test_every_field_of_a_plugin_record() -> None:
    """Those of `Pocket.plugins`."""
    assert rows("Plugin records").keys() == fields_of(PluginRecord)


# ---------------------------------------------------------------- options and members
MEMBERS: dict[str, tuple[str, int, set[str]]] = {
    "Store": ("Stores", 0, of_signature(Store)),
    "views": ("Stores", 1, public(StoreReader, StoreWriter, StoreScope, CachingView, Store) | {"scope", "place"}),
    "Key": ("Keys", 0, public(Key) | {"KEY", "str"}),
    "phases": ("Phases", 0, public(Node) - {"with_options", "on"}),
    "Node": ("Node options", 0, of_signature(Node.with_options, keywords_only=True)),
    "Retry": ("Retry options", 0, fields_of(Retry)),
    "Graph options": ("Graph options", 0, of_signature(Graph, keywords_only=True)),
    "Graph methods": ("Graph methods", 0, public(Graph, Drawn)),
    "RunPosition": ("Changed graphs", 2, fields_of(RunPosition) | {"renamed"}),
    "RunCheck": ("Changed graphs", 3, fields_of(RunCheck)),
    "Runs": ("Operating runs", 0, public(Runs) | {"stack"}),
    "RunState": ("Operating runs", 1, set(get_args(RunState))),
    "RunInfo": ("Operating runs", 2, fields_of(RunInfo)),
    "run records": ("Operating runs", 3, {"RunPage", "RunHistory", "RunExecution", "PassedNode", "RunQuestion"}),
    "each": ("Many items", 0, of_signature(each, keywords_only=True) | of_signature(fan_out, keywords_only=True)),
    "Pocket": ("Pocket", 0, of_signature(Pocket)),
    "Pocket's": ("Pocket", 1, public(Pocket) | {"async", "stores", "config"}),
    "Layer": (
        "Writing a layer",
        0,
        public(layer.Layer) | {"inner", "plugin", "read_many", "inline_read", "inline_write"},
    ),
    "Backend": ("Writing a backend", 0, public(backend.Backend)),
    "Executor": ("Executors", 1, public(Executor)),
    "records": ("Writing a backend", 1, {"Entry", "Put", "Delete"}),
    "types": ("Types", 0, of_signature(Codec.register, keywords_only=True)),
    "observe": ("Telemetry", 0, of_signature(observe)),
    "setup": ("Telemetry", 1, of_signature(setup)),
    "Telemetry": ("Telemetry", 2, public(Telemetry) | {"mode", "metrics", "logs", "file", "flush_timeout"}),
    "SQLite": ("sqlite:///", 0, of_signature(SQLite, keywords_only=True)),
    "tracing settings": ("Settings of tracing", 0, fields_of(tracing.Settings)),
    "metrics settings": ("Settings of metrics", 0, fields_of(metrics.Settings)),
    "logging settings": ("Settings of logging", 0, fields_of(logging.Settings)),
}


@pytest.mark.parametrize("what", MEMBERS)
def test_every_option_and_member(what: str) -> None:
    """Each table of options or members has a row for each of them."""
    title, table, there = MEMBERS[what]
    assert rows(title, table).keys() == there


def test_every_option_of_a_function_node() -> None:
    """The parameters of `@node`, `@node.post` and `node.of` besides functions, as type checkers know them."""
    forms = {"node": "__call__", "node.post": "post", "node.of": "of"}
    for form, method in forms.items():
        typed = get_overloads(getattr(type(node), method))
        taken = {name for each in typed for name in of_signature(each, keywords_only=True)} - {"prep", "exec", "post"}
        if any("options" in inspect.signature(each).parameters for each in typed):  # Unpack[NodeOptions]
            taken |= NodeOptions.__annotations__.keys()
        (row,) = [line for line in section("Functions as nodes").splitlines() if re.match(rf"\| `@?{form}[`(]", line)]
        assert set(re.findall(r"`(\w+)`", row.partition("options:")[2])) == taken, form


def test_every_key_of_a_configuration_file() -> None:
    """All tables and keys that a file may have."""
    allowed = {*tables.ABOUT, *tables.STORE, *tables.RUNS, *tables.PLUGINS}
    listed = {part for key in rows("Configuration file") for part in key.split(".")}
    assert listed == allowed | {"NAME"}


def test_the_testing_kit_is_there() -> None:
    """Each part can be imported from the module that the page names."""
    for name in rows("Testing kit"):
        module, _, part = name.rpartition(".")
        assert hasattr(import_module(module), part), name


def test_async_and_sync_stores_have_the_same_methods() -> None:
    """One table for both: a SyncStore has the methods of a Store, except those that the table names."""
    with_await = {name for name in dir(Store) if not name.startswith("_")}
    without = {name for name in dir(SyncStore) if not name.startswith("_")}
    assert with_await - without == {"sync"}
    assert without <= with_await


LAYERS = Pocket(autoload=False).offers.layers


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_with_its_options(name: str) -> None:
    """A built-in layer has a section: a row for each option, or "No options.". And it can be imported from `layers`."""
    options = fields_of(LAYERS[name])
    assert LAYERS[name].__name__ in layers.__all__
    if options:
        assert rows(name).keys() == options
    else:
        assert section(name).lstrip().startswith("No options.")


def test_every_field_of_a_record() -> None:
    """Entries and changes are listed with their fields."""
    for kind in (backend.Entry, backend.Put, backend.Delete):
        row = rows("Writing a backend", 1)[kind.__name__]
        assert re.findall(r"`(\w+)`", row)[1:] == [field.name for field in dataclasses.fields(kind)]


# ---------------------------------------------------------------- commands and the environment
def options(command: click.Command) -> set[str]:
    """A command's own options, as users type them."""
    return {name for each in command.params if isinstance(each, click.Option) for name in each.opts}


def commands(group: click.Group, path: str = "pocket-plug") -> dict[str, click.Command]:
    """All commands of a group and its subgroups, by how they are called, without their options."""
    found: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in OURS if group is cli else group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        pieces = [piece for piece in command.collect_usage_pieces(click.Context(command)) if piece != "[OPTIONS]"]
        found[" ".join([path, name, *pieces])] = command
        if isinstance(command, click.Group):
            found |= commands(command, f"{path} {name}")
    return found


COMMANDS = commands(cli)


@pytest.mark.parametrize("usage", COMMANDS)
def test_every_command_with_its_options(usage: str) -> None:
    """A heading that shows how it is called, and a row for each option."""
    if not options(COMMANDS[usage]):
        assert "| option |" not in section(usage)
        return
    assert rows(usage).keys() == options(COMMANDS[usage])


def test_no_unknown_command() -> None:
    """Nor a common option."""
    assert {title for title in headings() if title.startswith("pocket-plug ")} == COMMANDS.keys()
    assert rows("pocket-plug").keys() == options(cli) | {"--help", "-h"}


def test_every_environment_variable() -> None:
    """All that the package names, and no other."""
    sources = [file.read_text("utf-8") for file in PACKAGE.rglob("*.py")]
    there = {name for source in sources for name in re.findall(r"\b(?:POCKET_PLUG|OTEL)_[A-Z_]+[A-Z]\b", source)}
    assert rows("Environment").keys() == there


# ---------------------------------------------------------------- what telemetry is called
def literals(module: Any, pattern: str) -> set[str]:
    """The strings in a module's or package's code that match, with computed parts as `*`."""
    found: set[str] = set()
    file = Path(module.__file__)
    sources = sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]
    tree = ast.parse("\n".join(re.sub(r"(?m)^from __future__ .*", "", source.read_text("utf-8")) for source in sources))
    inner = {id(part) for item in ast.walk(tree) if isinstance(item, ast.JoinedStr) for part in item.values}
    for item in ast.walk(tree):
        if isinstance(item, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "*" for part in item.values]
            found.add("".join(map(str, parts)))
        elif isinstance(item, ast.Constant) and isinstance(item.value, str) and id(item) not in inner:
            found.add(item.value)
    return {text for text in found if re.fullmatch(pattern, text)}


def unlisted(names: Iterable[str], text: str) -> list[str]:
    """The names that are in no code span of the text."""
    spans = re.findall(r"`([^`]+)`", text)
    return [
        name
        for name in names
        if not any(re.fullmatch(re.escape(name).replace(r"\*", r"[\w.]+"), span) for span in spans)
    ]


@pytest.mark.parametrize(
    ("module", "title"),
    [(tracing, "Spans"), (metrics, "Metrics published"), (logging, "Log events")],
    ids=["tracing", "metrics", "logging"],
)
def test_every_name_that_telemetry_uses(module: Any, title: str) -> None:
    """Spans' attributes and events, metrics and log events are listed with the names in the code."""
    names = literals(module, r"(pocket_plug|db|exception|error)(\.[\w*]+)+") - {
        "pocket_plug.noted",
        "pocket_plug.fan_out",
    }
    assert names
    assert unlisted(names, section(title)) == []


# ---------------------------------------------------------------- links into the page
def anchor(title: str) -> str:
    """As GitHub makes it from a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_links_into_the_reference_lead_to_a_heading() -> None:
    """On all pages, its own included."""
    anchors = {anchor(title) for title in headings()}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    links = [
        link for page in pages for link in re.findall(r"\]\([^)\s]*reference\.md#([^)]+)\)", page.read_text("utf-8"))
    ]
    links += re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert [link for link in links if link not in anchors] == []
