"""Private copies of values, which transactions and updates give to callers: changing a copy doesn't change the store."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from operator import is_

import msgspec

from pocket_plug.primitives.values import Hint, Value

from .adapters import deep_copy, is_data
from .encoding import plain_depth
from .registry import Registry, object_of, state_of
from .wire import ARRAYS, ATOMS, COMPOSITE_READERS, to_msgpack, type_of

_from_msgpack = msgspec.msgpack.Decoder().decode


def private_copy(value: Value, registry: Registry, max_depth: int) -> Value:
    """A copy that can be changed without changing the original. See `Codec.private`."""
    if type(value) in ATOMS:
        return value
    if type(value) in (list, dict) and (depth := plain_depth(value, max_depth)):
        if depth == 1:
            return value.copy()
        with suppress(OverflowError, UnicodeEncodeError):
            return _from_msgpack(to_msgpack(value))
    try:
        return _Copy(registry).of(value)
    except RecursionError:  # it contains itself, which deepcopy can follow
        return deep_copy(value)


class _Copy:
    """One pass over a value that copies what can be changed."""

    __slots__ = ("registry",)

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def of(self, value: Value) -> Value:
        kind = type_of(value)
        if kind in ATOMS:
            return value
        if kind is list:
            return self.all_of(value)
        if kind is dict:
            return dict(zip(self.all_of(value), self.all_of(value.values()), strict=True))
        if kind in ARRAYS:
            copies = self.all_of(value)
            if kind is not set and all(map(is_, value, copies)):
                return value
            return COMPOSITE_READERS[ARRAYS[kind]](copies)
        if kind is bytearray:
            return bytearray(value)
        return self.of_object(value, kind)

    def all_of(self, values: Collection[Value]) -> list[Value]:
        if ATOMS.issuperset(map(type, values)):
            return list(values)
        return [value if type(value) in ATOMS else self.of(value) for value in values]

    def of_object(self, value: Value, kind: Hint) -> Value:
        entry = self.registry.entry(kind)
        if entry is None:
            return deep_copy(value) if is_data(kind) else value
        if entry.adapter.copy is not None:
            return entry.adapter.copy(value)
        state = state_of(entry, value)
        copied = self.of(state)
        if entry.adapter.frozen and (
            copied is state or (entry.adapter.names and all(map(is_, state.values(), copied.values())))
        ):
            return value
        return object_of(entry, copied)
