"""The source location of a function is found behind any wrapper, and left out if it can't be known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest

from pocket_plug.primitives.sources import source_of


def plain() -> None: ...


@functools.wraps(plain)
def around() -> None: ...


class Called:
    def __call__(self) -> None: ...

    def method(self) -> None: ...


def made_in(file: str) -> Callable[..., Any]:
    """A function whose file has this name."""
    return FunctionType(plain.__code__.replace(co_filename=file), globals())


def own(function: Callable[..., Any]) -> dict[str, str | int]:
    code = function.__code__
    return {
        "code.function.name": f"{__name__}.{function.__qualname__}",
        "code.file.path": __file__,
        "code.line.number": code.co_firstlineno,
    }


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (plain, plain),
        (around, plain),
        (functools.partial(around), plain),
        (functools.partial(functools.partial(plain)), plain),
        (Called(), Called.__call__),
        (Called().method, Called.method),
    ],
)
def test_it_is_found_behind_wrappers(function: Callable[..., Any], expected: Callable[..., Any]) -> None:
    """A decorator, a partial, a callable object, a bound method."""
    assert source_of(function) == own(expected)


def test_an_unknown_location_is_left_out() -> None:
    """A builtin, a class, a function without a file, one that claims to wrap itself."""
    made: Any = made_in("<string>")
    assert source_of(made) == {"code.function.name": f"{__name__}.plain"}
    made.__module__ = None
    assert source_of(made) == {"code.function.name": "plain"}
    made.__wrapped__ = made
    assert [source_of(function) for function in (len, int, [].append, made)] == [{}] * 4


def test_a_path_that_is_no_text_can_be_exported() -> None:
    """A file's name may contain bytes that aren't UTF-8."""
    assert source_of(made_in("/caf\udce9.py"))["code.file.path"] == "/caf?.py"
