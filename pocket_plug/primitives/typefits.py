"""May a value that is declared as one type be passed where another is declared? As type checkers see it; in doubt: yes.

If the answer is no, a graph is refused. So it must not be no for a program that works: it is no only for a type that is known
to differ, and for generic types if a parameter of the one can't fit that of the other.
"""

from __future__ import annotations

from enum import Enum
from types import GenericAlias, NoneType
from typing import (
    Annotated,
    Any,
    ForwardRef,
    Literal,
    LiteralString,
    Never,
    NewType,
    NoReturn,
    TypeVar,
    Unpack,
    get_args,
    get_origin,
)

from typing_extensions import is_typeddict

from .typechecks import NUMERIC_TOWER, UNIONS, meant_by

_STANDARD = ("builtins", "collections", "collections.abc")
"""The modules whose generic types have their parameters in the same order, and are compared as covariant."""
_ITEMS: dict[Any, tuple[Any, ...]] = {str: (str,), bytes: (int,)}
"""The types of the items of sequences that have no parameters."""


def fits(given: Any, wanted: Any) -> bool:
    """May a value that is declared as `given` be passed where `wanted` is declared? In doubt: yes.

    >>> fits(int, float | None), fits(str, int), fits(list[int], list[str]), fits(list, list[str])
    (True, False, False, True)
    """
    try:
        return _fits(given, wanted)
    except RecursionError:  # two aliases that contain themselves
        return True


def _fits(given: Any, wanted: Any) -> bool:
    given, wanted = _plain(given), _plain(wanted)
    if given == wanted or given in (Never, NoReturn):
        return True
    if any(hint is Any or isinstance(hint, TypeVar | str | ForwardRef) for hint in (given, wanted)):
        return True
    if get_origin(given) in UNIONS:
        return all(_fits(part, wanted) for part in get_args(given))
    if get_origin(wanted) in UNIONS:
        return any(_fits(given, part) for part in get_args(wanted))
    if isinstance(given, NewType):
        return _fits(given.__supertype__, wanted)
    if isinstance(wanted, NewType):
        return False
    if get_origin(wanted) is Literal:
        return _values(given) <= _values(wanted)
    if get_origin(given) is Literal:
        return all(_fits(cls, wanted) for cls, _ in _values(given))
    inner, outer = get_origin(given) or given, get_origin(wanted) or wanted
    if not (isinstance(inner, type) and isinstance(outer, type)):
        return True
    if inner is Exception and issubclass(outer, Exception):
        return True  # which errors an `each` collects, only the program knows
    if inner is type and outer is not type and isinstance(cls := (*get_args(given), None)[0], type):
        inner = type(cls)  # an Enum is iterable
    return _is_subclass(inner, outer) and _parameters_fit(given, wanted, inner, outer)


def _plain(hint: Any) -> Any:
    """The hint without `Annotated` and aliases; for a TypedDict dict, since its values are dicts."""
    hint = meant_by(hint)
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if is_typeddict(get_origin(hint) or hint):
        return dict
    return NoneType if hint is None else str if hint is LiteralString else hint


def _values(hint: Any) -> set[tuple[type, Any]]:
    """All values of a type that has a few, each with its class, as True == 1; for any other type the type itself."""
    values: tuple[Any, ...] = (hint,)
    if get_origin(hint) is Literal:
        values = get_args(hint)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        values = tuple(hint)
    elif hint in (bool, NoneType):
        values = (True, False) if hint is bool else (None,)
    return {(type(value), value) for value in values}


def _is_subclass(inner: type, outer: type) -> bool:
    try:
        return issubclass(inner, NUMERIC_TOWER.get(outer, outer))
    except TypeError:  # a Protocol that isn't `runtime_checkable`, or has more than methods
        return True


def _parameters_fit(given: Any, wanted: Any, inner: type, outer: type) -> bool:
    theirs, ours = get_args(given) or _ITEMS.get(given, ()), get_args(wanted)
    if inner is enumerate and outer is not enumerate:
        theirs = tuple(GenericAlias(tuple, (int, item)) for item in theirs)
    if not theirs or not ours:
        return True
    if inner is tuple:
        return _items_fit(theirs, ours, outer)
    if len(theirs) != len(ours) or not (inner is outer or inner.__module__ in _STANDARD):
        return True  # such as ItemsView[int, str] for Iterable[tuple[int, str]]
    pairs = list(zip(theirs, ours, strict=True))
    if inner.__module__ in _STANDARD:
        return all(_fits(part, whole) for part, whole in pairs)
    return all(_fits(part, whole) or _fits(whole, part) for part, whole in pairs)  # it may be contravariant


def _items_fit(theirs: tuple[Any, ...], ours: tuple[Any, ...], outer: type) -> bool:
    """Do a tuple's items fit those of another tuple, or of another kind of collection?"""
    if any(getattr(part, "__unpacked__", False) or get_origin(part) is Unpack for part in (*theirs, *ours)):
        return True
    if outer is tuple and ... not in (*theirs, *ours):
        return len(theirs) == len(ours) and all(map(_fits, theirs, ours))
    if outer is not tuple and len(ours) > 1:
        return True
    return all(_fits(part, whole) for part in theirs for whole in ours if ... not in (part, whole))
