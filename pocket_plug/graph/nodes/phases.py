"""Reads a node's code: which phases it has, whether they are async, and the types of its input, outputs and actions.

`faults` finds what can't work, for `validate()`. A phase is found by its name alone, so a misspelt one would never be called,
and nothing would say so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, ForwardRef, TypeVar, cast, get_args, get_origin, get_type_hints

from pocket_plug.graph.observing.views import Phase
from pocket_plug.primitives.signatures import annotations_of, is_async, misfit, signature_of
from pocket_plug.primitives.typechecks import type_name
from pocket_plug.primitives.values import Hint
from pocket_plug.store.store import StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncWriter

from .awaits import unawaited_calls
from .chain import Action
from .node import AnyNode, Node
from .node_functions import FunctionNode, PostNode
from .retry import Retry

Function = Callable[..., Any]

PHASES: tuple[Phase, ...] = ("prep", "exec", "fallback", "post")

_PARAMETERS = {
    "prep": ("store", "input"),
    "exec": ("prepared",),
    "fallback": ("prepared", "error"),
    "post": ("store", "input", "prepared", "result"),
    "on_success": ("store", "output"),
    "on_failure": ("store", "error"),
    "on_complete": ("store",),
}
"""The positional arguments of each phase and hook."""
_OTHER_WORDS = {
    "on_error": "on_failure",
    "on_exception": "on_failure",
    "on_done": "on_complete",
    "on_finally": "on_complete",
}
"""The names that hooks have in other frameworks."""
_CLOSE = 0.7  # the similarity, at most 1, from which a name counts as misspelt; "execute" and "exec" have 0.73

_ASYNC_VIEWS = (StoreReader.__name__, StoreWriter.__name__)
_SYNC_VIEWS = (SyncReader.__name__, SyncWriter.__name__)


def overridden(node: AnyNode, phase: str) -> Function | None:
    """The node's own function for a phase or a hook, bound; None if the node doesn't override it.

    An object may have one of its own: its `__init__` sets `self.exec`, or a test patches it.
    """
    own: Function | None = vars(node).get(phase)
    if callable(own):
        return own
    if isinstance(node, FunctionNode):
        return node.functions.get(phase)
    if getattr(type(node), phase) is getattr(Node, phase):
        return None
    return getattr(node, phase)  # type: ignore[no-any-return]  # looked up by name


def hints(function: Function) -> dict[str, Hint]:
    """The function's annotations. Those that can't be resolved are left out; this never raises."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    while isinstance(function, partial):
        function = function.func
    if callable(function) and not inspect.isroutine(function) and not isinstance(function, type):
        function = type(function).__call__  # an object that can be called
    with suppress(Exception):  # a hint is the user's code, and may raise anything
        return get_type_hints(function)
    written: Mapping[str, Hint] = {}
    with suppress(Exception):
        written = annotations_of(function)
    return {name: hint for name, hint in written.items() if not isinstance(hint, str | ForwardRef)}


def _hint_of_parameter(function: Function, position: int) -> Hint:
    try:
        parameters = list(signature_of(function).parameters)
    except ValueError:  # some of Python's own functions and classes, such as int, have no signature
        return Any
    return hints(function).get(parameters[position], Any) if position < len(parameters) else Any


def _plain(hint: Hint) -> Hint:
    """The hint, or Any if it is a string, a type variable, or a type that contains type variables."""
    unclear = isinstance(hint, TypeVar | str | ForwardRef) or bool(getattr(hint, "__parameters__", ()))
    return Any if unclear else hint


def _class_arguments(node: AnyNode) -> tuple[Hint, ...]:
    return tuple(_plain(argument) for argument in _of_node(type(node), ()))


def _of_node(cls: type, given: tuple[Hint, ...]) -> tuple[Hint, ...]:
    """The types for Node's own parameters, in a subclass of Node with these type arguments."""
    if cls is Node:
        return given
    values = dict(zip(getattr(cls, "__parameters__", ()), given, strict=False))
    for base in cls.__dict__.get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if isinstance(origin, type) and issubclass(origin, Node):
            arguments: tuple[Hint, ...] = get_args(base)
            return _of_node(cast("type", origin), tuple(_filled(argument, values) for argument in arguments))
    return ()


def _filled(hint: Hint, values: dict[Hint, Hint]) -> Hint:
    if isinstance(hint, TypeVar):
        return values.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    return hint[tuple(values.get(each, each) for each in parameters)] if parameters else hint


def input_type(node: AnyNode) -> Hint:
    """The declared type of the node's input; Any if it declares none."""
    if isinstance(node, FunctionNode):
        for phase, position in (("prep", 1), ("post", 1), ("exec", 0)):
            if (function := node.functions.get(phase)) is not None and (
                phase != "exec" or "prep" not in node.functions
            ):
                return _plain(_hint_of_parameter(function, position))
        return Any
    return (*_class_arguments(node), Any)[0]


def output_type(node: AnyNode) -> Hint:
    """The declared type of the output by "default"; Any if the node declares none."""
    if isinstance(node, FunctionNode):
        function = node.functions.get("post") or node.functions.get("exec")
        hint = hints(function).get("return", Any) if function is not None else Any
        return Any if "Next" in str(hint) else _plain(hint)
    return (*_class_arguments(node), Any, Any)[1]


def result_types(node: AnyNode) -> list[Hint]:
    """What `exec` returns: as the class declares by its third type, and by the annotation of `exec`. Any for one with `Next`.

    The two may differ: the class may be a base of the node's, and the annotation be that of a function in a decorator.
    """
    declared = (*_class_arguments(node), Any, Any, Any)[2]
    both = declared, hints(node.exec).get("return", declared)
    return [Any if "Next" in str(hint) else _plain(hint) for hint in both]


def declared_actions(node: AnyNode) -> dict[str, Hint]:
    """The actions that the node's class declares, each with the type of its output."""
    found: dict[str, Hint] = {}
    for cls in type(node).__mro__:
        actions: list[Action[Any]] = [value for value in vars(cls).values() if isinstance(value, Action)]
        for action in actions:
            arguments = get_args(getattr(action, "__orig_class__", None))
            found.setdefault(action.name, _plain(arguments[0]) if arguments else Any)
    return found


def faults(node: AnyNode, name: str) -> list[str]:
    """Messages about what is wrong with the node's phases."""
    functions = {phase: function for phase in _PARAMETERS if (function := overridden(node, phase)) is not None}
    found = [fault for phase, function in functions.items() for fault in _faults_of(node, name, phase, function)]
    return [*found, *_misspelt(node, functions), *_unmade_actions(node), *_misplaced_retries(node)]


def _faults_of(node: AnyNode, name: str, phase: str, function: Function) -> Iterator[str]:
    """Messages about one phase or hook."""
    is_function = issubclass(type(node), FunctionNode)
    title = f"{phase} of {name!r}" if is_function else f"{type(node).__name__}.{phase}"
    parameters = _PARAMETERS[phase][:2] if issubclass(type(node), PostNode) else _PARAMETERS[phase]
    if not callable(function):
        yield f"{title} is {type(function).__name__}, not a function"
    elif (taken := misfit(function, len(parameters))) is not None:
        if is_function and function is getattr(node, "__wrapped__", None) and phase == "exec":
            yield _misfit_of_function(name, taken)
            return
        called = f"called with {len(parameters)}: ({', '.join(parameters)})"
        meant = called if is_function else f"{called}; write `def {phase}({', '.join(('self', *parameters))})`"
        yield f"{title} takes {taken}, but is {meant}"
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        yield f"{title} is a generator; a phase returns one value: a list, say. To show values while it works, call emit(value)"
    elif parameters[0] == "store":
        yield from _misuses_of_store(title, phase, function)


def _misuses_of_store(title: str, phase: str, function: Function) -> Iterator[str]:
    declared = _store_annotation(function)
    if is_async(function):
        for call in unawaited_calls(function):
            yield f"{title} {call}"
        if declared in _SYNC_VIEWS:
            view = declared.replace("Sync", "Store")
            yield f"{title} is `async def` but takes {declared} (sync); annotate {view} or write `def {phase}`"
    elif declared in _ASYNC_VIEWS:
        view = declared.replace("Store", "Sync")
        yield f"{title} is `def` but takes {declared} (async); annotate {view} or write `async def {phase}`"


def _misfit_of_function(name: str, taken: str) -> str:
    if taken == "nothing":
        return (
            f"a node's function takes one argument, its input; {name!r} takes nothing. Write `def {name}(_)`; a workflow without "
            "an input is run with None: graph.run(None)"
        )
    return (
        f"a node's function takes one argument, its input; {name!r} takes {taken}. Several values come as one tuple or object, "
        "as behind gather; to use the store, put @node.post before the function"
    )


def _misspelt(node: AnyNode, functions: Collection[str]) -> list[str]:
    """Messages about methods that are probably misspelt phases: their name is close to a phase that the node doesn't have.

    Not reported, since they may be helpers: methods with other parameters than the phase, names that begin with an underscore,
    and names close to a phase that the node has, such as `execute` beside `exec`.
    """
    title = type(node).__name__
    found: list[str] = []
    others: list[str] = []
    for name, method in _own_methods(node).items():
        others.append(name)
        meant = _phase_meant(name)
        if meant is None or meant in functions:
            continue
        if not functions or misfit(method, len(_PARAMETERS[meant])) is None:
            found.append(
                f"{title}.{name} is neither a phase nor a hook, so it is never called. Did you mean {meant!r}? "
                f"If it is a helper of yours, name it _{name}"
            )
    if others and not found and not functions:
        found.append(
            f"{title} overrides no phase, so its {', '.join(others)} is never called; the phases are: {', '.join(PHASES)}"
        )
    return found


def _own_methods(node: AnyNode) -> dict[str, Function]:
    """The public methods, bound, that the node's classes add to those of Node; those of the subclass first."""
    names = dict.fromkeys(name for cls in type(node).__mro__ if cls not in Node.__mro__ for name in vars(cls))
    return {
        name: method
        for name in names
        if not (name.startswith("_") or hasattr(Node, name)) and inspect.isroutine(method := getattr(node, name, None))
    }


def _phase_meant(name: str) -> str | None:
    """The phase or hook that a name probably means: other frameworks use it, it contains that word, or is spelt similarly."""
    if other := _OTHER_WORDS.get(name):
        return other
    if words := set(name.split("_")).intersection(PHASES):
        return "fallback" if "fallback" in words else words.pop()
    import difflib  # only validate() needs it

    spelt = name.lower()
    for phase in difflib.get_close_matches(spelt, _PARAMETERS, cutoff=_CLOSE):
        if phase[0] == spelt[0] or sorted(phase) == sorted(spelt):  # `cost` is no `post`, nor `callback` a `fallback`
            return phase
    return None


def _unmade_actions(node: AnyNode) -> list[str]:
    """Messages about actions without brackets: `declined = Action`. A call of that makes an Action, not an output."""
    values = {name: value for cls in reversed(type(node).__mro__) for name, value in vars(cls).items()}
    return [
        f"{type(node).__name__}.{name} is the class Action, not an instance; write {name} = {_written(value)}()"
        for name, value in values.items()
        if value is Action or get_origin(value) is Action
    ]


def _misplaced_retries(node: AnyNode) -> list[str]:
    """Messages about a Retry that is an attribute of the class: no exec is tried again. A dataclass's field may be meant."""
    return [
        f"{cls.__name__}.retry is an attribute, so nothing is tried again; options are written beside the base class: "
        f"class {cls.__name__}(Node[…], retry=Retry(…))"
        for cls in type(node).__mro__
        if isinstance(vars(cls).get("retry"), Retry) and "retry" not in getattr(cls, "__dataclass_fields__", ())
    ]


def _written(action: Hint) -> str:
    return f"Action[{', '.join(type_name(argument) for argument in get_args(action))}]".replace("[]", "")


def _store_annotation(function: Function) -> str:
    parameters = list(signature_of(function).parameters.values())
    annotation = parameters[0].annotation if parameters else ""
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    return annotation.rpartition(".")[2] if isinstance(annotation, str) else getattr(annotation, "__name__", "")
