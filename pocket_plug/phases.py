"""What a node's code says about itself: which phases it has, their colour (async or not), the types at its joints."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ForwardRef, TypeVar, get_args, get_origin, get_type_hints

from .chain import Action
from .node import FunctionNode, Node
from .store import StoreReader, StoreWriter
from .sync import SyncReader, SyncWriter

PHASES = ("prep", "exec", "fallback", "post")
HOOKS = ("on_success", "on_failure", "on_complete")

_ASYNC_VIEWS = {view.__name__: view for view in (StoreReader, StoreWriter)}
_SYNC_VIEWS = {view.__name__: view for view in (SyncReader, SyncWriter)}


def overridden(node: Node[Any, Any, Any], phase: str) -> Callable[..., Any] | None:
    """The node's own function for a phase, bound; None where it is the default."""
    if isinstance(node, FunctionNode):
        return node.functions.get(phase)
    if getattr(type(node), phase) is getattr(Node, phase):
        return None
    return getattr(node, phase)  # type: ignore[no-any-return]


def is_async(function: Callable[..., Any]) -> bool:
    """Is it `async def`?"""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Its annotations; those that can't be resolved are left out, never an error."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    try:
        return get_type_hints(function)
    except Exception:  # noqa: BLE001 - a hint is the user's code, and may raise anything
        return {
            name: hint for name, hint in getattr(function, "__annotations__", {}).items() if not isinstance(hint, str)
        }


def _hint_of_parameter(function: Callable[..., Any], position: int) -> Any:
    try:
        parameters = list(inspect.signature(function).parameters)
    except ValueError:  # some of Python's own, such as int, have none
        return Any
    return hints(function).get(parameters[position], Any) if position < len(parameters) else Any


def _plain(hint: Any) -> Any:
    """The hint where it says something: not a string nor a type variable, nor one that has such a variable in it."""
    unclear = isinstance(hint, TypeVar | str | ForwardRef) or bool(getattr(hint, "__parameters__", ()))
    return Any if unclear else hint


def _class_arguments(node: Node[Any, Any, Any]) -> tuple[Any, ...]:
    return tuple(_plain(argument) for argument in _of_node(type(node), ()))


def _of_node(cls: type, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """What Node's own parameters are in a subclass of it that was given these."""
    if cls is Node:
        return given
    values = dict(zip(getattr(cls, "__parameters__", ()), given, strict=False))
    for base in cls.__dict__.get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if isinstance(origin, type) and issubclass(origin, Node):
            return _of_node(origin, tuple(_filled(argument, values) for argument in get_args(base)))  # pyright: ignore[reportUnknownArgumentType]
    return ()


def _filled(hint: Any, values: dict[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return values.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    return hint[tuple(values.get(each, each) for each in parameters)] if parameters else hint


def input_type(node: Node[Any, Any, Any]) -> Any:
    """What the node declares to take; Any where it doesn't say."""
    if isinstance(node, FunctionNode):
        for phase, position in (("prep", 1), ("post", 1), ("exec", 0)):
            if (function := node.functions.get(phase)) is not None and (
                phase != "exec" or "prep" not in node.functions
            ):
                return _plain(_hint_of_parameter(function, position))
        return Any
    return (*_class_arguments(node), Any)[0]


def output_type(node: Node[Any, Any, Any]) -> Any:
    """What the node declares to leave by "default" with; Any where it doesn't say."""
    if isinstance(node, FunctionNode):
        function = node.functions.get("post") or node.functions.get("exec")
        hint = hints(function).get("return", Any) if function is not None else Any
        return Any if "Next" in str(hint) else _plain(hint)
    return (*_class_arguments(node), Any, Any)[1]


def declared_actions(node: Node[Any, Any, Any]) -> dict[str, Any]:
    """The actions that the node's class declares, each with the type that it carries."""
    found: dict[str, Any] = {}
    for cls in type(node).__mro__:
        actions: list[Action[Any]] = [value for value in vars(cls).values() if isinstance(value, Action)]
        for action in actions:
            arguments = get_args(getattr(action, "__orig_class__", None))
            found.setdefault(action.name, _plain(arguments[0]) if arguments else Any)
    return found


def faults(node: Node[Any, Any, Any], name: str) -> list[str]:
    """What is wrong with the node's phases, in words."""
    found: list[str] = []
    for phase in (*PHASES, *HOOKS):
        function = overridden(node, phase)
        if function is None:
            continue
        title = f"{phase} of {name!r}" if issubclass(type(node), FunctionNode) else f"{type(node).__name__}.{phase}"
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            found.append(f"{title} is a generator; a phase returns one value")
            continue
        if phase in ("exec", "fallback"):
            continue
        declared = _store_annotation(function)
        if is_async(function) and declared in _SYNC_VIEWS:
            found.append(
                f"{title} is `async def` but takes {declared} (sync); annotate "
                f"{declared.replace('Sync', 'Store')} or write `def {phase}`"
            )
        elif not is_async(function) and declared in _ASYNC_VIEWS:
            found.append(
                f"{title} is `def` but takes {declared} (async); annotate "
                f"{declared.replace('Store', 'Sync')} or write `async def {phase}`"
            )
    return found


def _store_annotation(function: Callable[..., Any]) -> str:
    parameters = list(inspect.signature(function).parameters.values())
    annotation = parameters[0].annotation if parameters else ""
    return annotation.rpartition(".")[2] if isinstance(annotation, str) else getattr(annotation, "__name__", "")
