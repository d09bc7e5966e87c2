"""Is a value of a declared type? `isinstance` for plain classes, beartype for everything else.

A hint that can't be resolved is unchecked, never an error: the checks serve the user, not the other way round.
"""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Callable, Iterable
from itertools import count
from types import FunctionType, UnionType
from typing import Annotated, Any, TypeGuard, Union, get_args, get_origin

from typing_extensions import TypeAliasType, is_typeddict

from pocket_plug.errors import ConfigError

from .cells import file_of

NUMERIC_TOWER: dict[type, tuple[type, ...]] = {float: (float, int), complex: (complex, float, int)}

UNIONS = (Union, UnionType)
# Python has one of its own since 3.12.
_ALIASES: tuple[Any, ...] = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))


class DeclaredTypes(list[Any]):
    """Types in the order in which they were declared, each once: of equal ones the first."""

    def __init__(self) -> None:
        super().__init__()
        self._known: set[Any] = set()

    def append(self, hint: Any, /) -> None:
        """Add a type, unless it is there."""
        try:
            if hint in self._known:
                return
            self._known.add(hint)
        except TypeError:  # it can't be hashed: `Annotated[int, []]`
            if hint in self:
                return
        super().append(hint)

    def extend(self, hints: Iterable[Any], /) -> None:
        """Add several types."""
        for hint in hints:
            self.append(hint)


declared_types = DeclaredTypes()
"""The types that keys and typed stores were declared with. The codec takes them from here when it is first needed."""


def meant_by(hint: Any) -> Any:
    """The type for which an alias stands, as in `type Users = list[User]`; any other hint itself."""
    while isinstance(hint, _ALIASES):
        try:
            hint = hint.__value__
        except Exception:  # noqa: BLE001 - it is evaluated only now, and may raise anything
            return Any
    return hint


def union_members(hint: object) -> tuple[Any, ...]:
    """The members of a union; of any other hint itself."""
    meant = meant_by(hint)
    return tuple(map(meant_by, get_args(meant))) if get_origin(meant) in UNIONS else (meant,)


def checker(hint: object) -> Callable[[object], bool]:
    """A function that returns whether a value fits `hint`. As for type checkers, an int is a float.

    >>> checker(float)(1), checker(list[int])(["a"])
    (True, False)
    """
    if hint is Any or hint is object:
        return lambda value: True
    if hint is None:
        return lambda value: value is None
    if isinstance(hint, type) and get_origin(hint) is None and not _is_structural(hint):
        classes = NUMERIC_TOWER.get(hint, hint)
        return lambda value: isinstance(value, classes)
    origin = get_origin(hint)
    if origin in UNIONS:
        parts = [checker(part) for part in get_args(hint)]
        return lambda value: any(part(value) for part in parts)
    if origin is Callable:
        return callable
    from beartype import BeartypeConf
    from beartype.door import is_bearable
    from beartype.roar import BeartypeException

    conf = BeartypeConf(is_pep484_tower=True)
    distinct = _distinct(hint)

    def check(value: object) -> bool:
        try:
            return is_bearable(value, distinct, conf=conf)
        except BeartypeException:
            return True

    return check


_hints: dict[str, tuple[object, object]] = {}
_numbers = count()


def _distinct(hint: object) -> Any:
    """The hint, made different from others of the same repr, which beartype takes for one: a class and its next definition."""
    seen, form = _hints.setdefault(repr(hint), (hint, hint))
    if seen != hint:
        form = Annotated[hint, next(_numbers)]
        _hints[repr(hint)] = hint, form
    return form


def type_found(declared: object, value: object) -> str:
    """The type of a value that isn't of the declared one, in a message."""
    found = type(value)
    if is_namesake(declared, found):
        if _is_current(found):  # a key or a node still has the former class
            why = f"{_where_defined(found)} was defined again after this type was declared; run the code that declares it again"
        else:
            why = f"{defined_again(found, declared)}; create the object again"
        return f"{found.__name__}: {why}"
    return with_contents(value)


def is_namesake(one: object, other: object) -> TypeGuard[type]:
    """Are these two classes of one name, as when a notebook's cell that defines a class has run twice?"""
    if not isinstance(one, type) or not isinstance(other, type) or one is other:
        return False
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def _is_current(cls: type) -> bool:
    """Is this the class that its module has under its name now?"""
    return _current(cls) is cls


def _current(cls: type) -> object:
    found: object = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found


def declared_before(cls: type) -> str:
    """For the message about a registered class: what to do if its module has a later one of its name. Else ""."""
    if not is_namesake(cls, _current(cls)):
        return ""
    return f". {_where_defined(cls)} was defined again since then; run the code again that declares or registers it"


def with_contents(value: object, depth: int = 2) -> str:
    """The type of a value; for a container with the types of its contents, up to three of them.

    >>> with_contents({"a": [1, "b"]}), with_contents((1, None)), with_contents([]), with_contents("a")
    ('dict[str, list[int | str]]', 'tuple[int, NoneType]', 'list', 'str')
    """
    kind = type(value)
    if (kind.__module__, kind.__name__) == ("numpy", "ndarray"):
        return f"ndarray of {getattr(value, 'dtype', '?')}"  # a declared type is mostly about the dtype
    if depth == 0 or kind not in (list, tuple, set, frozenset, dict) or not value:
        return kind.__name__
    contents: Any = value
    parts = [contents, contents.values()] if kind is dict else [contents]
    if kind is tuple and len(contents) <= 3:
        parts = [(item,) for item in contents]
    return f"{kind.__name__}[{', '.join(_kinds([*part], depth - 1) for part in parts)}]"


def _kinds(items: list[object], depth: int) -> str:
    kinds = list(dict.fromkeys(with_contents(item, depth) for item in items))
    return " | ".join(kinds if len(kinds) <= 3 else [*kinds[:3], "…"])


def defined_again(former: type, later: type) -> str:
    """The message for an object whose class was defined again under the same name."""
    return f"{_where_defined(former)} was defined again, with other fields, since this object was made: {_where_defined(later)}"


def _where_defined(cls: type) -> str:
    """A class and where it was defined, as far as that can be known."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    line = getattr(cls, "__firstlineno__", None)  # since Python 3.13; before that, the line of a method
    for code in [part.__code__ for part in vars(cls).values() if isinstance(part, FunctionType)]:
        if code.co_qualname.startswith(f"{cls.__qualname__}."):
            return f"{name} ({file_of(code)}, line {line or code.co_firstlineno})"
    return name if line is None else f"{name} (line {line})"


def check_type(declared: object, what: str) -> None:
    """Raise ConfigError, naming `what` it is for, unless that is a type: a class, or what `typing` makes of classes.

    >>> check_type(int | None, "Key 'age'")
    >>> check_type(0, "Key 'age'")
    Traceback (most recent call last):
    pocket_plug.errors.ConfigError: Key 'age': int is given where a type is expected, such as int, User or list[str]
    """
    if not isinstance(declared, type) and type(declared).__module__ not in ("types", "typing", "typing_extensions"):
        hint = "; a name in quotes can't be looked up later" if isinstance(declared, str) else ""
        raise ConfigError(
            f"{what}: {type(declared).__name__} is given where a type is expected, such as int, User or list[str]{hint}"
        )


def _is_structural(hint: type) -> bool:
    """A TypedDict or a Protocol: `isinstance` can't check it."""
    return is_typeddict(hint) or getattr(hint, "_is_protocol", False)


def type_name(declared: object) -> str:
    """A type as one would write it.

    >>> type_name(int), type_name(Iterable[int]), type_name(list[Any])
    ('int', 'Iterable[int]', 'list[Any]')
    """
    if isinstance(declared, type) and not hasattr(declared, "__args__"):
        return declared.__name__
    return re.sub(r"(?<![\w.])(?:typing|collections\.abc)\.", "", str(declared))
