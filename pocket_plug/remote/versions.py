"""How a worker checks that it has the same code: by a fingerprint of an `exec` and of the functions of its module that it uses.

The fingerprint is made from the loaded code, not from files: a worker that has loaded an older version still uses that, whatever
is on its disk now. File names and line numbers aren't part of it, so the module may be in another folder.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType

from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.phases import hints
from pocket_plug.primitives.typechecks import declared_types
from pocket_plug.primitives.values import Value

PYTHON = ".".join(map(str, sys.version_info[:2]))
"""The version of Python. The bytecode of another one is different."""


def fingerprint(function: Value) -> str:
    """The fingerprint of an exec, `3.11:5be0…`: the version of Python, and a digest of the code."""
    digest = hashlib.sha256()
    for name, code in sorted(_codes(function).items()):
        digest.update(repr((name, *_parts(code))).encode("utf-8", "surrogatepass"))
    return f"{PYTHON}:{digest.hexdigest()[:16]}"


def is_same(expected: str, found: str) -> bool:
    """Is it the same code? Also True if that can't be known, since the other side runs another Python."""
    return expected == found or expected.partition(":")[0] != found.partition(":")[0]


def _codes(function: Value) -> dict[str, CodeType]:
    """The code of a function, of the methods of its node's class, and of what these use from their own modules, by name."""
    owner: Value = getattr(function, "__self__", None)
    pending: list[FunctionType] = [*_functions(function)]
    if issubclass(type(owner), Node):
        for kind in type(owner).__mro__:
            pending += _methods(kind) if kind not in Node.__mro__ else ()
    codes: dict[str, CodeType] = {}
    while pending:
        found = pending.pop()
        name = f"{_module(found.__module__)}.{found.__qualname__}"
        if name not in codes:
            codes[name] = found.__code__
            pending += _named(found)
    return codes


def _module(name: str) -> str:
    return "__main__" if name == "__mp_main__" else name


def _functions(value: Value) -> Iterator[FunctionType]:
    function: Value = getattr(value, "__func__", value)
    function = inspect.unwrap(function) if callable(function) else None
    if isinstance(function, FunctionType):
        yield function


def _methods(kind: type) -> Iterator[FunctionType]:
    for value in vars(kind).values():
        yield from _functions(value.fget if isinstance(value, property) else value)


def _named(function: FunctionType) -> Iterator[FunctionType]:
    """The functions, and the methods of the classes, that a function names and that its own module defines."""
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if getattr(value, "__module__", None) == function.__module__:
            yield from _methods(value) if isinstance(value, type) else _functions(value)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _parts(code: CodeType) -> tuple[object, ...]:
    constants = [_constant(each) for each in code.co_consts]
    return (code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)


def _constant(value: Value) -> object:
    if isinstance(value, CodeType):
        return _parts(value)
    if value.__class__ is frozenset:  # its order differs from process to process
        return sorted(map(repr, value))
    return repr(value)


def declare(function: Value) -> None:
    """Declare the types in an exec's annotations: the codec registers each when it first needs it."""
    declared_types.extend(hints(function).values())
