"""Values to bytes and back, exactly: what comes out equals what went in and is of the same type, or an error is raised.

MessagePack by msgspec, with an explicit registry of types. Nothing is pickled, nothing imported by a name in data,
and there is no fallback. This package imports msgspec; import it where it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from inspect import isclass
from typing import Any, TypeVar, overload

import msgspec

from pocket_plug.errors import CodecError, CorruptRecordError
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.shown_names import shown_name
from pocket_plug.primitives.typechecks import declared_types
from pocket_plug.primitives.values import Value

from .adapters import WITH_FUNCTIONS, TypeAdapter, adapter_of, advice
from .bounds import UNCHECKED, check_maps, counted, has_at_most, may_have_large_map
from .copying import private_copy
from .encoding import culprit, packed, plain_depth
from .records import FORMAT, HEADER_SIZE, Sealed, opened, sealed
from .registry import UNBOUND, Registry, Upgrade, name_of, object_of, upgraded, upgraded_state
from .wire import BUILT_IN, COMPOSITE_READERS, LEAVES, RECORD, SCALAR_READERS, to_msgpack, type_of

T = TypeVar("T")
_NO_CLASS = object()

# Reads the most usual large values: those of JSON, a few levels deep. Their keys are texts, so they can't collide; any other
# value raises ValidationError.
_Json: Any = bool | int | float | str | None
for _ in range(4):
    _Json = bool | int | float | str | None | list[_Json] | dict[str, _Json]
_from_texts: Callable[[bytes | memoryview], Any] = msgspec.msgpack.Decoder(_Json).decode


class Codec:
    """Turns values into records of bytes and back, exactly.

    It knows None, bool, int of any size, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict with
    any keys, range, datetime, date, time, timedelta, timezone, ZoneInfo, Decimal, UUID, pathlib's paths, numpy's arrays and
    scalars, nested in any way, and the types that are registered. An object of a subclass is never stored as one of its base
    class. An object that is in a value twice becomes two equal objects.

    `max_bytes` limits a record, `max_depth` how deep containers may nest in it (at most 255), and `max_items` the number of
    lists, dicts, tuples, sets and objects, pairs of dicts and members of sets, which take much more memory than bytes. All
    hold for encoding and decoding. A record with keys that were chosen to have the same hash is refused, too.

    `declared` is a list of types that are registered when they are first needed. `seals` is for tools that move records
    without knowing their types: while it is True, a record that can't be decoded here is read as `Sealed`.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Point:
    ...     x: int
    ...     y: int
    >>> codec = Codec()
    >>> codec.register(Point, tag="point")
    <class '...Point'>
    >>> codec.decode(codec.encode({(1, 2): {3}, "at": [Point(5, 6)]}))
    {(1, 2): {3}, 'at': [Point(x=5, y=6)]}
    """

    def __init__(
        self,
        *,
        max_bytes: int = 64 * 1024 * 1024,
        max_depth: int = 100,
        max_items: int = 4_000_000,
        declared: Sequence[Value] = (),
    ) -> None:
        if not 1 <= max_depth <= 255:
            raise ValueError(f"max_depth must be from 1 to 255, not {max_depth}")
        self.max_bytes = max_bytes
        self.max_depth = max_depth
        self.max_items = max_items
        self.seals = False
        self._registry = Registry(declared)
        self._from_msgpack = msgspec.msgpack.Decoder(ext_hook=self._from_ext).decode

    # ---------------------------------------------------------------- the registry
    @overload
    def register(
        self,
        type: type[T],
        *,
        tag: str | None = None,
        version: int = 1,
        upgrade: Mapping[int, Upgrade] | None = None,
        encode: Callable[[T], Any] | None = None,
        decode: Callable[[Any], T] | None = None,
    ) -> type[T]: ...
    @overload
    def register(
        self, *, tag: str | None = None, version: int = 1, upgrade: Mapping[int, Upgrade] | None = None
    ) -> Callable[[type[T]], type[T]]: ...
    def register(
        self,
        type: Any = _NO_CLASS,
        *,
        tag: str | None = None,
        version: int = 1,
        upgrade: Mapping[int, Upgrade] | None = None,
        encode: Callable[[Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Register a class; returns it, so that this can be used as a decorator, also with options: `@register_type(tag="a")`.

        Dataclasses, Enums, msgspec Structs, named tuples and pydantic models need no functions. For any other class give
        `encode`, which converts an object to a value that the codec knows, and `decode`, which converts such a value to an
        object.

        A dataclass or model is stored as its fields, and restored by setting them: no `__init__` and no validator is called.
        A stored field that the class no longer has is an error; a field that was not stored gets its default. `tag` is
        the class's name in records, by default its qualified name without the module.

        `version` is that of the state: of the dict of the fields, or of what `encode` returns. `upgrade` has for each
        older version a function that converts its state to that of the next: `upgrade={1: add_currency}`. A record of an
        older version is upgraded when it is read. Without a function for it, it is an error; so is a newer version.

        The same class, or one of the same module and name, may be registered again: a module reloaded, a notebook's cell run
        twice. The later registration holds, and older tags stay readable. Objects of the former class are stored as those of
        the later one if both have the same fields or members. Raises CodecError if another class has the tag.

        >>> from fractions import Fraction
        >>> codec = Codec()
        >>> codec.register(Fraction, encode=lambda f: (f.numerator, f.denominator), decode=lambda parts: Fraction(*parts))
        <class 'fractions.Fraction'>
        >>> codec.decode(codec.encode(Fraction(1, 3)))
        Fraction(1, 3)
        """
        if type is _NO_CLASS:
            return partial(self.register, tag=tag, version=version, upgrade=upgrade, encode=encode, decode=decode)
        if not isclass(type):
            raise CodecError(f"only a class can be registered, not {summary(type)}")
        if (encode is None) != (decode is None):
            raise CodecError(f"{name_of(type)}: encode and decode go together; give both or neither")
        if type in BUILT_IN:
            raise CodecError(f"{type.__qualname__} is built into the codec and can't be registered")
        adapter = adapter_of(type) if encode is None or decode is None else TypeAdapter(encode, decode)
        if adapter is None:
            raise CodecError(
                advice(type)
                or f"{name_of(type)} is not a plain dataclass, Enum, Struct, named tuple or model: give {WITH_FUNCTIONS}"
            )
        self._registry.register(type, adapter, tag, version, dict(upgrade or {}))
        return type

    def knows(self, type: type) -> bool:
        """Can objects of exactly this class be encoded?

        >>> Codec().knows(dict), Codec().knows(slice)
        (True, False)
        """
        return type in BUILT_IN or self._registry.entry(type) is not None

    def tag_of(self, type: type) -> str:
        """The name of a class in records, also of a class whose objects can't be encoded.

        >>> Codec().tag_of(dict)
        'dict'
        """
        entry = None if type in BUILT_IN else self._registry.entry(type)
        return type.__qualname__ if entry is None else entry.tag

    # ---------------------------------------------------------------- values to bytes
    def encode(self, value: Value) -> bytes:
        """The record of a value.

        Raises UnregisteredTypeError, naming the path to the object and its type, and CodecError for what can't be
        stored for another reason: a lone surrogate, a container within itself, a value that exceeds a limit.
        """
        kind = type_of(value)
        try:
            try:
                depth = plain_depth(value, self.max_depth) if kind is dict or kind is list else 0
                if depth or kind in LEAVES:
                    payload = to_msgpack(value)
                else:
                    payload, depth = self._packed(value)
            except OverflowError:  # an int that MessagePack does not hold
                payload, depth = self._packed(value)
        except (CodecError, UnicodeEncodeError) as error:
            if isinstance(value, Sealed):
                return value.record
            path, found = culprit(value, error, self._packed, self._registry)
            raise type(found)(f"value{path}: {found}") from error.__cause__
        except RecursionError:
            raise CodecError(
                f"the value has containers nested more than {self.max_depth} deep (max_depth), "
                "or a container that contains itself"
            ) from None
        size = len(payload)
        if size + HEADER_SIZE > self.max_bytes:
            raise CodecError(
                f"the record takes {size + HEADER_SIZE:,} bytes; {self.max_bytes:,} are allowed (max_bytes). Store it in parts, "
                "each at a key of its own, or write it to a file, and store the file's path"
            )
        if size > self.max_items and not has_at_most(self.max_items, payload, 0):
            raise CodecError(f"the value has more than {self.max_items:,} containers, pairs and objects (max_items)")
        return sealed(payload, depth)

    def _packed(self, value: Value) -> tuple[bytes, int]:
        return packed(value, self._registry, self.max_depth)

    # ---------------------------------------------------------------- bytes to values
    def decode(self, data: bytes, place: bytes | None = None) -> Value:
        """The value of a record; give its `place` if it may be bound to one.

        Raises CorruptRecordError for bytes that are not a record, are damaged, are bound to another place, or exceed a limit,
        UnknownTypeError if a type is not registered here, and CodecError if an object can't be made of what was stored.
        """
        payload = opened(data, place, self.max_bytes, self.max_depth)
        if place is not None and data[0] == FORMAT and (seen := upgraded.get()) is not None:
            seen.append(UNBOUND)
        try:
            if len(data) <= UNCHECKED:
                return self._from_msgpack(payload)
            return self._bounded(data, payload)
        except (CorruptRecordError, MemoryError):
            raise
        except CodecError as error:
            if not self.seals:
                raise
            return Sealed(sealed(payload, data[1]), error)
        except msgspec.DecodeError as error:
            raise CorruptRecordError(f"not a record of this codec: {error}") from error
        except Exception as error:  # noqa: BLE001 - the checksum was right, so the record is forged
            raise CorruptRecordError(
                f"not a record of this codec: decoding its content raised {type(error).__name__}"
            ) from None

    def _bounded(self, data: bytes, payload: bytes | memoryview) -> Value:
        """The value of a longer record, if that doesn't exceed the limits."""
        if len(payload) > self.max_items and not has_at_most(self.max_items, data, HEADER_SIZE):
            raise CorruptRecordError(
                f"the record has more than {self.max_items:,} containers, pairs and objects (max_items)"
            )
        with counted():
            if may_have_large_map(data, HEADER_SIZE):
                return self._with_large_map(data, payload)
            return self._from_msgpack(payload)

    def _with_large_map(self, data: bytes, payload: bytes | memoryview) -> Value:
        with suppress(msgspec.ValidationError):
            return _from_texts(payload)
        check_maps(data, HEADER_SIZE, self._from_ext)
        return self._from_msgpack(payload)

    def _from_ext(self, code: int, data: memoryview) -> Value:
        if code == RECORD:
            tag, version, state = self._from_msgpack(data)
            entry = self._registry.tagged(tag)
            if version != entry.version:
                state = upgraded_state(entry, version, state)
            return object_of(entry, state)
        if (scalar := SCALAR_READERS.get(code)) is not None:
            return scalar(data)
        parts = self._from_msgpack(data)
        if (composite := COMPOSITE_READERS.get(code)) is not None:
            return composite(parts)
        raise CorruptRecordError(f"not a record of this codec: it holds an extension of code {code}")

    # ---------------------------------------------------------------- copies
    def renewed(self, value: Value) -> Value:
        """The value with its objects converted to the newest definitions of their classes; the value itself if that fails."""
        try:
            return self.decode(self.encode(value))
        except CodecError:
            return value

    def private(self, value: Value) -> Value:
        """A copy that can be changed without changing the original.

        Immutable values are returned as they are: numbers, text, dates, and tuples, frozensets and frozen registered
        objects that hold only such. Built-in containers and registered objects are copied part by part, as the
        codec would store them: an object that is in the value twice becomes two. Other containers, dataclasses,
        Structs, models and arrays are copied by `copy.deepcopy`. Any other object (a socket, a session) is shared, and so is
        one that deepcopy fails on. Raises CodecError if a function that a type was registered with fails.

        >>> rows = [{"n": 1}]
        >>> mine = Codec().private(rows)
        >>> mine[0]["n"] = 2
        >>> rows
        [{'n': 1}]
        """
        return private_copy(value, self._registry, self.max_depth)


# ---------------------------------------------------------------- records without their types
class Opaque:
    """What a record says about an object: the `tag` and `version` of its type, and its `state`."""

    def __init__(self, tag: Any, version: Any, state: Value) -> None:
        self.tag, self.version, self.state = tag, version, state

    def __repr__(self) -> str:
        return f"<{self.tag} {self.state!r}>"


class _Inspector(Codec):
    def _from_ext(self, code: int, data: memoryview) -> Value:
        return Opaque(*self._from_msgpack(data)) if code == RECORD else super()._from_ext(code, data)


inspect_record = _Inspector().decode
"""The value of a record, whatever types are registered: objects become `Opaque`, and no code of theirs runs.

>>> from enum import Enum
>>> from decimal import Decimal
>>> Weekday = Enum("Weekday", ["MON", "TUE"])
>>> inspect_record(Codec(declared=[Weekday]).encode([Weekday.TUE, Decimal("1.5")]))
[<Weekday 'TUE'>, Decimal('1.5')]
"""

# ---------------------------------------------------------------- this process's
default_codec = Codec(declared=declared_types)
"""The codec of this process, used where no other one is given. It registers the types of every `Key` by itself."""

register_type = default_codec.register


def record_of(key: str, value: object) -> bytes:
    """The record of an entry's value, by the default codec. Raises CodecError, which names the key, if it can't be encoded.

    >>> record_of("a", object())
    Traceback (most recent call last):
      ...
    pocket_plug.errors.UnregisteredTypeError: key 'a': value: builtins.object is not registered; call register_type(object, ...)
    """
    try:
        return default_codec.encode(value)
    except CodecError as error:
        raise type(error)(f"key {shown_name(key)!r}: {error}") from error
