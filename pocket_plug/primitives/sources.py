"""The place of a function in its file, as attributes of OpenTelemetry's conventions for code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import CodeType
from typing import Any

from .cells import file_of
from .failures import capped


def source_of(function: Callable[..., Any]) -> Mapping[str, str | int]:
    """The `code.*` attributes of a function, without decorators and partials around it; only known ones, none of a builtin.

    >>> sorted(source_of(inspect.unwrap))
    ['code.file.path', 'code.function.name', 'code.line.number']
    >>> source_of(len)
    {}
    """
    try:
        while isinstance(function := inspect.unwrap(function), partial):
            function = function.func
    except ValueError:  # it wraps itself
        return {}
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:  # an object that can be called
        function = getattr(type(function).__call__, "__func__", type(function).__call__)
        code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return {}
    module = getattr(function, "__module__", None)
    name = f"{module}.{code.co_qualname}" if module else code.co_qualname
    found: dict[str, str | int] = {"code.function.name": capped(name)}
    if not code.co_filename.startswith("<"):  # code that was typed in or generated has no file
        found |= {"code.file.path": capped(file_of(code)), "code.line.number": code.co_firstlineno}
    return found
