"""Can a function be called with a number of arguments? Callbacks are checked for that where they are declared."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations

    def signature_of(function: Callable[..., object]) -> inspect.Signature:
        """A function's signature. A name in an annotation that isn't defined is a ForwardRef there.

        Python 3.14 evaluates annotations when they are asked for, and `inspect.signature` raises NameError for a name that is
        imported under TYPE_CHECKING only. Before 3.14 such a name was in quotes.
        """
        return inspect.signature(function, annotation_format=Format.FORWARDREF)

    def annotations_of(function: Callable[..., object]) -> Mapping[str, Any]:
        """A function's annotations as they are written, in quotes too. A name that isn't defined is a ForwardRef."""
        return get_annotations(function, format=Format.FORWARDREF)

else:
    signature_of = inspect.signature

    def annotations_of(function: Callable[..., object]) -> Mapping[str, Any]:
        """A function's annotations as they are written, in quotes too."""
        return getattr(function, "__annotations__", None) or {}  # an AsyncMock has None


def misfit(function: Callable[..., object], arguments: int) -> str | None:
    """What a function takes, in words, where it can't be called with so many arguments by position; else None.

    >>> misfit(lambda key, value: None, 1), misfit(print, 1)
    ('key, value', None)
    """
    try:
        signature = signature_of(function)
    except ValueError:  # some of Python's own have none; nor has a method without even `self`
        return "no self" if inspect.ismethod(function) else None
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        plain = [each.replace(annotation=each.empty, default=each.empty) for each in signature.parameters.values()]
        words = [f"{each} by keyword" if each.kind is each.KEYWORD_ONLY else str(each) for each in plain]
        return ", ".join(words) or "nothing"
    return None


def is_async(function: Callable[..., object]) -> bool:
    """Is it `async def`, or an object whose `__call__` is?

    >>> class Job:
    ...     async def __call__(self) -> None: ...
    >>> is_async(Job()), is_async(Job)
    (True, False)
    """
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def fault_of_question(function: Callable[..., object]) -> str | None:
    """What is wrong with a plain function of one argument that is called for its answer, in words; None where nothing is."""
    if is_async(function):
        return "is `async def`; write `def`"
    taken = misfit(function, 1)
    return None if taken is None else f"takes {taken}, but is called with 1 argument"
