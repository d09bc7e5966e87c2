"""The typed surface at run time: names that type checkers see exist. (The checkers run in `make lint`.)"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from importlib import import_module, resources
from pathlib import Path

import pytest

import pocket_plug
from pocket_plug import StoreReader, StoreWriter, SyncReader, SyncWriter, TypedReader, TypedStore
from pocket_plug.store.typed import SyncTypedReader, SyncTypedStore

SURFACE = [
    "Store", "SyncStore", "StoreReader", "StoreWriter", "SyncReader", "SyncWriter", "TypedReader",
    "TypedStore", "StoreScope", "SyncScope", "Key", "Duration", "MISSING",
    "Backend", "Layer", "secret", "Memory", "Entry", "Put", "Delete", "Change",
    "Node", "Graph", "Chain", "Action", "Next", "END", "Retry", "node", "each", "fan_out", "gather", "Ask", "Answered",
    "RunStream", "RunEvent", "emit", "progress",
    "idempotency_key", "RunSuspendedError", "RunFencedError", "RunBusyError",
    "RunCancelledError", "RunMismatchError", "RunChangedError", "UnknownRunError",
    "Pocket", "observe", "hookimpl", "register_type",
    "PocketError", "MissingKeyError", "RouteError", "ConflictError", "StoreError", "ConfigError",
    "GraphError", "PhaseError", "InputError", "NodeTimeoutError",
]  # fmt: skip
LAYERS = ["Bounding", "Layer", "Logging", "Metrics", "Persistence", "Tracing"]
HOOKS = ["NodeCall", "Observer", "PhaseCall", "Run", "Specs", "hookimpl"]


@pytest.mark.parametrize("name", SURFACE)
def test_the_surface_is_exported(name: str) -> None:
    """Every public name can be imported from pocket_plug, and type checkers know it."""
    assert getattr(pocket_plug, name) is not None
    assert name in pocket_plug.__all__


def test_names_for_type_checkers_exist() -> None:
    """The imports for type checkers, the table of `__getattr__` and `__all__` have the same names."""
    tree = ast.parse(Path(str(pocket_plug.__file__)).read_text(encoding="utf-8"))
    imports = [item for item in ast.walk(tree) if isinstance(item, ast.ImportFrom) and item.level]
    public = {alias.name: item.module for item in imports for alias in item.names if alias.name in pocket_plug.__all__}
    assert public.keys() == set(pocket_plug.__all__)
    late = {name: module for name, module in public.items() if module != "errors"}
    assert late == vars(pocket_plug)["_MODULES"]
    assert [name for name in late if getattr(pocket_plug, name) is not vars(pocket_plug)[name]] == []


@pytest.mark.parametrize(("module", "names"), [("pocket_plug.layers", LAYERS), ("pocket_plug.hookspecs", HOOKS)])
def test_layers_and_hooks_have_a_place_of_their_own(module: str, names: list[str]) -> None:
    """Layers are in `layers`; what plugins implement and get is in `hookspecs`."""
    assert [name for name in names if not hasattr(import_module(module), name)] == []


def test_tools_find_the_types_of_fields() -> None:
    """`typing.get_type_hints` works for each public dataclass, so a program's tools can put them into their own models."""
    public = [getattr(pocket_plug, name) for name in pocket_plug.__all__]
    for kind in (each for each in public if isinstance(each, type) and dataclasses.is_dataclass(each)):
        hints = typing.get_type_hints(kind)
        assert {field.name for field in dataclasses.fields(kind)} <= hints.keys()


LOADED_LATE = {"Graph.stream", "Graph.check_runs", "Graph.check_runs_sync", "Pocket.commands"}
"""Their annotations name a class whose module is only imported once it is needed."""


def test_tools_find_the_types_of_methods() -> None:
    """`typing.get_type_hints` works for public functions and methods, so a framework can take `graph.run`."""
    fails: set[str] = set()
    for name in pocket_plug.__all__:
        public = getattr(pocket_plug, name)
        owner = public if isinstance(public, type) else type(public)
        ours = [each for each in owner.__mro__ if each.__module__.startswith("pocket_plug")]
        members = [
            (f"{owner.__name__}.{key}", value) for each in ours for key, value in vars(each).items() if key[0] != "_"
        ]
        members += [(owner.__name__, owner.__init__), (owner.__name__, owner.__call__), (name, public)]
        for title, member in members:
            function = inspect.unwrap(
                member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            )
            if inspect.isfunction(function):
                try:
                    typing.get_type_hints(function, include_extras=True)
                except NameError:
                    fails.add(title)
    assert fails == LOADED_LATE


PACKAGE = Path(str(pocket_plug.__file__)).parent


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_annotation_names_a_member_of_its_class(file: Path) -> None:
    """In `class Key`, which has a property `type`, `type[K]` means that one, if names are looked up as late as Python does it."""
    found: list[str] = []
    for owner in (each for each in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(each, ast.ClassDef)):
        methods = [each for each in owner.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
        members = {method.name for method in methods}
        for method in methods:
            arguments = [each.annotation for each in ast.walk(method.args) if isinstance(each, ast.arg)]
            named = [each for part in (*arguments, method.returns) if part is not None for each in ast.walk(part)]
            found += [
                f"{owner.name}.{method.name}: {each.id}"
                for each in named
                if isinstance(each, ast.Name) and each.id in members
            ]
    assert found == []


def test_an_unknown_name_is_an_error() -> None:
    """Late imports don't hide typing errors: an unknown name is an AttributeError with that name."""
    with pytest.raises(AttributeError, match="Stroe"):
        _ = pocket_plug.Stroe


def test_type_information_is_shipped() -> None:
    """`py.typed` tells type checkers to use the annotations."""
    assert resources.files(pocket_plug).joinpath("py.typed").is_file()


def public_methods(view: type) -> dict[str, list[str]]:
    """Public methods of a view, with the names of their parameters."""
    return {
        name: list(inspect.signature(function).parameters)
        for name, function in inspect.getmembers(view, inspect.isroutine)
        if not name.startswith("_") and hasattr(view, name)
    }


@pytest.mark.parametrize(
    ("with_await", "without"),
    [
        (StoreReader, SyncReader),
        (StoreWriter, SyncWriter),
        (TypedReader, SyncTypedReader),
        (TypedStore, SyncTypedStore),
    ],
)
def test_sync_views_are_the_same_without_await(with_await: type, without: type) -> None:
    """Each view and its sync version have the same methods, parameters and overloads."""
    assert public_methods(with_await) == public_methods(without)
    for name in public_methods(with_await):
        overloads = [len(typing.get_overloads(getattr(view, name))) for view in (with_await, without)]
        assert overloads[0] == overloads[1], name
