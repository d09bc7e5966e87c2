"""Values as MessagePack: directly what MessagePack holds exactly, and everything else in extensions."""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from datetime import datetime, time
from itertools import chain
from typing import Any

from msgspec.msgpack import Ext

from pocket_plug.errors import CodecError, CorruptRecordError
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.values import Value

from .bounds import FEW, counted, made_dict, made_set
from .registry import Registry, state_of
from .wire import ARRAYS, BIG_INT, CLOCKS, LEAVES, MSGPACK_INTS, PAIRS, RECORD, SCALARS, to_msgpack, type_of, write_int

_ALL_BUT_INT = LEAVES - {int}


def plain_depth(value: Value, max_depth: int) -> int:
    """How deep a list or dict nests that has only lists, dicts and leaves in it, so that msgspec can encode it directly.

    0 if it has anything else in it, such as an object of a subclass, or a large dict of other keys than texts (see
    `bounds.check_maps`), and if it nests too deep. For values of a few items a loop is faster than `set` and `map`.
    """
    if not max_depth:
        return 0
    if type_of(value) is dict:
        for key in value:
            if type(key) is not str and (len(value) > FEW or type(key) not in LEAVES):
                return 0
        value = value.values()
    depth = 1
    for item in value:
        if type(item) not in LEAVES:
            if type(item) is not list and type(item) is not dict:
                return 0
            below = plain_depth(item, max_depth - 1)
            if not below:
                return 0
            if below >= depth:
                depth = below + 1
    return depth


class _Walk:
    """One pass over a value that puts everything that MessagePack would not keep exactly into an Ext."""

    __slots__ = ("deepest", "leaves", "left", "max_depth", "registry")

    def __init__(self, registry: Registry, leaves: frozenset[type], max_depth: int) -> None:
        self.registry = registry
        self.leaves = leaves
        self.max_depth = max_depth
        self.deepest = 0
        self.left: float | None = None

    def wrap(self, value: Value, depth: int) -> Value:
        """`depth` is the number of containers around the value."""
        kind = type_of(value)
        if kind in self.leaves:
            return value
        if (scalar := SCALARS.get(kind)) is not None:
            return Ext(scalar[0], scalar[1](value))
        if kind is int:  # int is a leaf unless some int is too big
            return value if value in MSGPACK_INTS else Ext(BIG_INT, write_int(value))
        if kind in CLOCKS:
            return self.clock(value, *CLOCKS[kind], depth)
        if kind is list or kind is dict or kind in ARRAYS:
            return self.container(value, kind, depth + 1)
        entry = self.registry.require(kind)
        return Ext(RECORD, entry.head + to_msgpack(self.wrap(state_of(entry, value), depth)))

    def container(self, value: Value, kind: type, depth: int) -> Value:
        if depth > self.deepest:
            if depth > self.max_depth:
                raise RecursionError
            self.deepest = depth
        if kind is list:
            return self.items(value, depth)
        if kind is dict:
            return self.mapping(value, depth)
        items = self.items(value, depth)
        if kind is not tuple and items is not value and len(items) > FEW:
            self.check_keys(value, made_set)
        return Ext(ARRAYS[kind], to_msgpack(items))

    def items(self, values: Value, depth: int) -> Value:
        leaves, wrap = self.leaves, self.wrap
        for value in values:
            if type(value) not in leaves:
                break
        else:
            return values
        return [value if type(value) in leaves else wrap(value, depth) for value in values]

    def mapping(self, values: Value, depth: int) -> Value:
        leaves, wrap = self.leaves, self.wrap
        for key in values:
            if type(key) is not str and (len(values) > FEW or type(key) not in leaves):
                if len(values) > FEW:
                    self.check_keys(values, lambda keys: made_dict(keys, keys))
                return Ext(PAIRS, to_msgpack(self.items(list(chain.from_iterable(values.items())), depth)))
        for value in values.values():
            if type(value) not in leaves:
                break
        else:
            return values
        return {key: value if type(value) in leaves else wrap(value, depth) for key, value in values.items()}

    def check_keys(self, keys: Collection[Value], make: Callable[[list[Value]], object]) -> None:
        """Refuse keys that `decode` would refuse. Plain keys collide only if they were made to, and aren't checked."""
        if self.leaves.issuperset(map(type, keys)):
            return
        try:
            with counted(self.left) as left:
                make(list(keys))
                self.left = left.steps
        except CorruptRecordError as error:
            raise CodecError(str(error)) from None

    def clock(self, value: datetime | time, naive: int, aware: int, depth: int) -> Ext:
        zone = value.tzinfo
        if zone is None and not value.fold:
            return Ext(naive, value.isoformat().encode())
        text = value.replace(tzinfo=None).isoformat()
        return Ext(aware, to_msgpack((text, value.fold, self.wrap(zone, depth))))


def packed(value: Value, registry: Registry, max_depth: int) -> tuple[bytes, int]:
    """A value that isn't plain as MessagePack, and how deep containers nest in it.

    Raises CodecError for what can't be stored, UnicodeEncodeError for a lone surrogate, and RecursionError where it is
    nested too deeply.
    """
    try:
        walk = _Walk(registry, LEAVES, max_depth)
        return to_msgpack(walk.wrap(value, 0)), walk.deepest
    except OverflowError:  # an int that MessagePack does not hold: look at each
        walk = _Walk(registry, _ALL_BUT_INT, max_depth)
        return to_msgpack(walk.wrap(value, 0)), walk.deepest


# ---------------------------------------------------------------- what is wrong with a value
Pack = Callable[[Value], object]


def culprit(value: Value, error: Exception, pack: Pack, registry: Registry) -> tuple[str, CodecError]:
    """The path to the innermost part of a value that `pack` fails on, and why it does."""
    for step, part in _parts(value, registry):
        try:
            pack(part)
        except (CodecError, UnicodeEncodeError) as inner:
            path, found = culprit(part, inner, pack, registry)
            return step + path, found
    if isinstance(error, UnicodeEncodeError):
        return "", CodecError(
            f"{summary(value)} has a lone surrogate, so it isn't valid text; encode it to bytes with errors='surrogatepass'"
        )
    return "", typing.cast("CodecError", error)


def _parts(value: Value, registry: Registry) -> Iterator[tuple[str, Any]]:
    kind = type_of(value)
    if kind is dict:
        for key, item in value.items():
            name = _key_name(key)
            yield f"[key {name}]", key
            yield f"[{name}]", item
    elif kind is list or kind is tuple:
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif kind in ARRAYS:
        for item in value:
            yield "{…}", item
    elif kind in CLOCKS:
        yield ".tzinfo", value.tzinfo
    elif entry := registry.types.get(kind):
        with suppress(CodecError):  # then the object itself is the culprit
            state = state_of(entry, value)
            yield from ((f".{name}", state[name]) for name in state) if entry.adapter.names else [("", state)]


def _key_name(key: Any) -> str:
    """A dict's key within a path: one that looks like the name of a field as it is, any other by its type and length."""
    if type(key) is str:
        return repr(key) if key.isidentifier() and len(key) <= 80 else f"<{summary(key)}>"
    return f"<{type(key).__name__}>"
