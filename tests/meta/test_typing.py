"""The typed surface at run time: what type checkers are told is there, is there. (The checkers run in `make lint`.)"""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Iterator
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
    "Node", "Graph", "Chain", "Action", "Next", "END", "Retry", "node", "each", "fan_out", "Ask", "Answered",
    "idempotency_key", "RunSuspendedError", "RunFencedError", "RunMismatchError", "RunChangedError", "UnknownRunError",
    "Pocket", "observe", "hookimpl", "register_type",
    "PocketError", "MissingKeyError", "RouteError", "ConflictError", "StoreError", "ConfigError",
    "GraphError", "PhaseError", "InputError", "NodeTimeoutError",
]  # fmt: skip
LAYERS = ["Bounding", "Layer", "Logging", "Metrics", "Persistence", "Tracing"]
HOOKS = ["NodeCall", "Observer", "PhaseCall", "Run", "Specs", "hookimpl"]


def declared(module: str) -> Iterator[str]:
    """The names that a module's imports re-export to type checkers, `from .x import a as a`, at run time or not."""
    source = import_module(module).__file__
    assert source is not None
    for statement in ast.walk(ast.parse(Path(source).read_text(encoding="utf-8"))):
        if isinstance(statement, ast.ImportFrom) and statement.level:
            yield from (alias.name for alias in statement.names if alias.asname == alias.name)


@pytest.mark.parametrize("name", SURFACE)
def test_the_surface_is_exported(name: str) -> None:
    """Every name of the public surface can be imported from pocket_plug, and type checkers know it."""
    assert getattr(pocket_plug, name) is not None
    assert name in set(declared("pocket_plug"))


def test_what_type_checkers_see_is_there() -> None:
    """No name that is declared to type checkers is missing at run time, those imported late included."""
    missing = [name for name in declared("pocket_plug") if not hasattr(pocket_plug, name)]
    assert missing == []


@pytest.mark.parametrize(("module", "names"), [("pocket_plug.layers", LAYERS), ("pocket_plug.hookspecs", HOOKS)])
def test_layers_and_hooks_have_a_place_of_their_own(module: str, names: list[str]) -> None:
    """What stacks are made of is in `layers`, what plugins implement and are handed in `hookspecs`."""
    assert [name for name in names if not hasattr(import_module(module), name)] == []


def test_a_name_that_is_not_there_is_an_error() -> None:
    """Late imports don't swallow typing errors: an unknown name is an AttributeError that says it."""
    with pytest.raises(AttributeError, match="Stroe"):
        _ = pocket_plug.Stroe


def test_type_information_is_shipped() -> None:
    """`py.typed` tells type checkers that the annotations are meant for them."""
    assert resources.files(pocket_plug).joinpath("py.typed").is_file()


def public_methods(view: type) -> dict[str, list[str]]:
    """Public methods of a view, with the names of their parameters."""
    return {
        name: list(inspect.signature(function).parameters)
        for name, function in inspect.getmembers(view, inspect.isroutine)
        if not name.startswith("_")
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
    """Each view and its sync twin have the same methods, parameters and overloads: neither falls behind."""
    assert public_methods(with_await) == public_methods(without)
    for name in public_methods(with_await):
        overloads = [len(typing.get_overloads(getattr(view, name))) for view in (with_await, without)]
        assert overloads[0] == overloads[1], name
