"""Adapters for the classes that need no functions of their users: they convert objects to values that the codec knows, and
back. Those for pydantic and numpy are in `adapters_pydantic` and `adapters_numpy`, which are imported only if the program has
imported the library.
"""

from __future__ import annotations

import copy
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping, MutableSequence, MutableSet
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum, Flag
from functools import cached_property
from importlib import import_module
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from types import MemberDescriptorType
from typing import Any, Protocol, TypeVar

import msgspec

from pocket_plug.errors import CodecError
from pocket_plug.primitives.lists import ListHead
from pocket_plug.primitives.names import is_unicode
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.values import Hint, Value

from .wire import type_of

T = TypeVar("T")

WITH_FUNCTIONS = "register_type(…, encode=…, decode=…)"
UPGRADED_BY = "upgrade the records of the former class by register_type(…, version=…, upgrade=…)"

_MADE_IN_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_LIBRARIES = ("numpy", "pydantic")
_DEEPCOPIED = (MutableMapping, MutableSequence, MutableSet, tuple, frozenset, msgspec.Struct)


@dataclass(frozen=True, slots=True)
class TypeAdapter:
    """Converts the objects of a class to values that the codec knows, and back."""

    encode: Callable[[Value], Value]
    decode: Callable[[Value], Value]
    names: tuple[str, ...] = ()
    """The names of the fields, if that value is a dict of them."""
    frozen: bool = False
    """Is an object immutable if everything in its state is?"""
    copy: Callable[[Value], Value] | None = None
    """Makes a private copy, if there is a better way than through the state."""
    tag: str | None = None
    """The class's name in records, unless the user gives one; None for its qualified name."""
    shape: tuple[Value, ...] = ()
    """What its state consists of. Two definitions of a class with the same name and shape count as the same class."""


class Library(Protocol):
    """A module with the adapters for a library's classes. Its functions return None for all other classes."""

    __name__: str
    KNOWN: Collection[type]
    """The classes that need no declaration."""
    COPIED: tuple[type, ...]
    """The classes whose objects are always copied."""
    adapter: Callable[[type], TypeAdapter | None]
    hints: Callable[[type], Iterable[Hint] | None]
    advice: Callable[[type], str | None]


def libraries() -> Iterator[Library]:
    """The modules for those libraries that the program itself has imported."""
    for name in _LIBRARIES:
        if name in sys.modules:
            with suppress(ImportError):  # older than our extra requires: it gets no adapters
                library: Any = import_module(f".adapters_{name}", __package__)
                yield library


def _first_known(answers: Iterable[T | None]) -> T | None:
    """The answer of the first library that has one; None where none has."""
    return next((answer for answer in answers if answer is not None), None)


def of_type(wanted: type, state: Value) -> Value:
    """The state, if it is of that type. A constructor would accept other types too, such as `bytearray(10**9)`."""
    if type(state) is not wanted:
        raise CodecError(f"the record has {summary(state)} where it should have {wanted.__name__}")
    return state


# ---------------------------------------------------------------- classes of the standard library
def _range_of(parts: Value) -> range:
    start, stop, step = of_type(tuple, parts)
    return range(start, stop, step)


def _path_adapter(cls: type[PurePath]) -> TypeAdapter:
    """A path is stored as its text, or as bytes if a name in it is no UTF-8."""

    def encode(path: PurePath) -> str | bytes:
        text = str(path)
        if issubclass(cls, PureWindowsPath) and cls(text).parts != path.parts:  # as with some names of devices
            raise CodecError("its text would be read as another path")
        return text if text.isascii() or is_unicode(text) else text.encode("utf-8", "surrogatepass")

    def decode(state: Value) -> PurePath:
        text = state.decode("utf-8", "surrogatepass") if type(state) is bytes else of_type(str, state)
        if issubclass(cls, Path) and cls is not type(Path()):
            raise CodecError(
                f"this system has no {cls.__name__}; a path stored as Pure{cls.__name__} can be read on any system"
            )
        return cls(text)

    return TypeAdapter(encode, decode, copy=_as_it_is, tag=f"pathlib.{cls.__name__}")


def _as_it_is(value: Value) -> Value:
    return value


_STANDARD: dict[type, TypeAdapter] = {
    range: TypeAdapter(lambda value: (value.start, value.stop, value.step), _range_of, copy=_as_it_is),
    ListHead: TypeAdapter(tuple, lambda state: _named_of(ListHead, state), copy=_as_it_is, tag="pocket:list"),
    **{cls: _path_adapter(cls) for cls in (PurePosixPath, PureWindowsPath, PosixPath, WindowsPath)},
}
KNOWN = (*_STANDARD,)
"""The classes that need no declaration, beside those of the codec itself."""


# ---------------------------------------------------------------- classes of users
def adapter_of(cls: Hint) -> TypeAdapter | None:
    """The adapter of a class; None for a class that can be registered with functions only."""
    if (known := _STANDARD.get(cls)) is not None:
        return known
    if issubclass(cls, Flag):
        return TypeAdapter(lambda member: member.value, cls, frozen=True, shape=_members(cls))
    if issubclass(cls, Enum):
        return TypeAdapter(
            lambda member: member.name, lambda name: _member(cls, name), frozen=True, shape=_members(cls)
        )
    if issubclass(cls, msgspec.Struct):
        return _struct_adapter(cls)
    if tuple in cls.__mro__ and hasattr(cls, "_make"):
        return TypeAdapter(_items_of_named, lambda items: _named_of(cls, items), frozen=True, shape=cls._fields)
    if hasattr(cls, "__dataclass_params__") and is_plain(cls, {spec.name for spec in fields(cls)}):
        parts = _Fields(cls)
        names = tuple(parts.specs)
        return TypeAdapter(parts.encode, parts.decode, names, cls.__dataclass_params__.frozen, shape=names)
    return _first_known(library.adapter(cls) for library in libraries())


def _members(cls: type[Enum]) -> tuple[Value, ...]:
    return tuple((name, repr(member.value)) for name, member in cls.__members__.items())


def listed(names: Collection[Value]) -> str:
    """Names of fields for a message, shortened: a record may contain any names, and many."""
    return ", ".join([f"{name:.80}" for name in names if isinstance(name, str)][:10]) + ", …" * (len(names) > 10)


def is_plain(cls: type[Any], names: Collection[str]) -> bool:
    """Do its objects hold these attributes only? No for a subclass of `dict`, and for a class with other slots."""
    bases = cls.__mro__[:-1]
    slots = {name for base in bases for name, part in vars(base).items() if isinstance(part, MemberDescriptorType)}
    return all(base.__flags__ & _MADE_IN_PYTHON for base in bases) and slots <= set(names)


def check_attributes(value: Value, names: Iterable[str]) -> None:
    """Refuse an object with state outside its fields, which would be lost. Cached properties are computed again."""
    for name in getattr(value, "__dict__", {}).keys() - set(names):
        if not isinstance(getattr(type_of(value), name, None), cached_property) and not name.startswith("__"):
            raise CodecError(f"its attribute {name!r} is not a field and would be lost; give {WITH_FUNCTIONS}")


def _items_of_named(value: tuple[Value, ...]) -> tuple[Value, ...]:
    check_attributes(value, ())
    return tuple(value)


def _named_of(cls: Hint, items: Value) -> Value:
    if len(of_type(tuple, items)) != len(cls._fields):
        raise CodecError(f"it was stored with {len(items):,} items, but the class has {len(cls._fields)}")
    return cls._make(items)


def _member(cls: type[Enum], name: Any) -> Enum:
    if of_type(str, name) not in cls.__members__:
        raise CodecError(f"the class has no member of the name that was stored; it has: {listed(cls.__members__)}")
    return cls[name]


def _struct_adapter(cls: type[msgspec.Struct]) -> TypeAdapter:
    names = cls.__struct_fields__

    def encode(value: msgspec.Struct) -> dict[str, Value]:
        check_attributes(value, names)
        return {name: getattr(value, name) for name in names}

    def decode(state: dict[str, Value]) -> msgspec.Struct:
        value = cls(**of_type(dict, state))
        if hasattr(cls, "__post_init__"):  # it ran again just now, and may have changed fields
            for name, item in state.items():
                msgspec.structs.force_setattr(value, name, item)
        return value

    return TypeAdapter(encode, decode, names, cls.__struct_config__.frozen, shape=names)


class _Fields:
    """Converts a dataclass to a dict of its fields, `init=False` ones too, and back; no `__init__` is called."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.specs = {spec.name: spec for spec in fields(cls)}
        descriptors: list[Value] = [getattr(cls, name, None) for name in self.specs]
        self.in_dict = not any(hasattr(descriptor, "__set__") for descriptor in descriptors)  # slots have it

    def encode(self, value: Value) -> dict[str, Value]:
        specs = self.specs
        if self.in_dict:
            state: dict[str, Value] = value.__dict__
            if state.keys() == specs.keys():
                return state
        check_attributes(value, specs)
        state = {name: getattr(value, name, MISSING) for name in specs}
        for name in [name for name, item in state.items() if item is MISSING]:
            if specs[name].init or self._default(name) is not MISSING:
                raise CodecError(f"its field {name!r} is not set")
            del state[name]
        return state

    def decode(self, state: dict[str, Value]) -> Value:
        if state.keys() != self.specs.keys():
            state = self._complete(state)
        value: Value = object.__new__(self.cls)
        if self.in_dict:
            value.__dict__.update(state)
        else:
            for name, item in state.items():
                object.__setattr__(value, name, item)
        return value

    def _complete(self, state: dict[str, Value]) -> dict[str, Value]:
        """The state of an object that was stored when its class had other fields."""
        specs = self.specs
        if gone := [name for name in state if name not in specs]:
            raise CodecError(f"it was stored with fields that the class doesn't have: {listed(gone)}; {UPGRADED_BY}")
        missing = {name: self._default(name) for name in specs if name not in state}
        for name, default in missing.items():
            if default is MISSING and specs[name].init:
                raise CodecError(
                    f"it was stored without field {name!r}, which has no default; give it one, or {UPGRADED_BY}"
                )
        return state | {name: default for name, default in missing.items() if default is not MISSING}

    def _default(self, name: str) -> Value:
        spec = self.specs[name]
        return spec.default if spec.default_factory is MISSING else spec.default_factory()


def parts_of(declared: Hint) -> Iterator[Hint]:
    """The parts of a declared type: of `dict[str, User | None]` they are dict, str and `User | None`."""
    yield typing.get_origin(declared)
    yield from typing.get_args(declared)
    with suppress(Exception):  # `type Users = list[User]`; a name in its value may not exist
        yield declared.__value__


def hints_of(cls: type) -> Iterable[Hint]:
    """The types of a class's fields; none where they can't be resolved."""
    if (hints := _first_known(library.hints(cls) for library in libraries())) is not None:
        return hints
    try:
        return typing.get_type_hints(cls).values()
    except Exception:  # noqa: BLE001 - a hint may raise anything when it is evaluated; a declaration must not fail
        return ()


def advice(cls: type) -> str | None:
    """What to do about a library's class that can't be stored as it is; None where there is nothing particular to say."""
    return _first_known(library.advice(cls) for library in libraries())


def is_data(cls: type[Any]) -> bool:
    """Are its objects containers or data objects, which must be copied before a caller may change them?"""
    return (
        issubclass(cls, _DEEPCOPIED)
        or is_dataclass(cls)
        or any(issubclass(cls, library.COPIED) for library in libraries())
    )


def deep_copy(value: Value) -> Value:
    """A copy by `copy.deepcopy`; the value itself where that fails."""
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - whatever the user's class raises, it can't be copied
        return value
