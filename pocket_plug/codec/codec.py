"""Values to bytes and back, exactly: what comes out equals what went in and is of the same type, or an error is raised.

MessagePack by msgspec, with an explicit registry of types. Nothing is pickled, nothing imported by a name that stands
in data, and there is no fallback. This module and `forms` import msgspec; import them where they are first needed.
"""

from __future__ import annotations

import re
import struct
import typing
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from itertools import chain
from operator import is_
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec.msgpack import Ext

from pocket_plug.errors import CodecError, CorruptRecordError, UnknownTypeError, UnregisteredTypeError
from pocket_plug.primitives.forking import new_rlock
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.typechecks import declared_types, defined_again

from .bounds import FEW, UNLOOKED, check_maps, counted, has_at_most, made_dict, made_set, may_have_large_map
from .forms import KNOWN, WITH_FUNCTIONS, Form, advice, deep_copy, form_of, hints_of, is_data, libraries, parts_of

T = TypeVar("T")

# A record: format, depth of nesting, CRC-32 of the payload, payload. The checksum makes a flipped bit an error rather
# than another value; the depth lets a reader with a lower limit refuse before it parses. The checksum of a bound record
# goes on over the place where it stands (`place_of`), so the right record in the wrong place is an error too. No single
# bit makes one of the formats the other.
FORMAT, BOUND = 1, 2
_HEADER = struct.Struct(">BBI")
_HEADER_SIZE = _HEADER.size

# What MessagePack itself holds exactly. Everything else goes into an Ext, whose codes are part of the format.
_LEAVES: frozenset[type] = frozenset({type(None), bool, int, float, str, bytes})
_JSON = _LEAVES | {list, dict}
_ALL_BUT_INT = _LEAVES - {int}
_TEXTS: frozenset[type] = frozenset({str})
_RECORD, _TUPLE, _SET, _FROZENSET, _PAIRS, _BIG_INT, _COMPLEX, _BYTEARRAY = range(1, 9)
_DATETIME, _TIME, _AWARE_DATETIME, _AWARE_TIME, _DATE, _TIMEDELTA, _TIMEZONE, _ZONE_INFO, _DECIMAL, _UUID = range(9, 19)
_MSGPACK_INTS = range(-(2**63), 2**64)
_SHORT = 4096
"""Fewer bytes are copied faster than a memoryview of them is made."""

_ARRAYS: dict[type, int] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_CLOCKS: dict[type, tuple[int, int]] = {datetime: (_DATETIME, _AWARE_DATETIME), time: (_TIME, _AWARE_TIME)}
_COMPLEX_PARTS = struct.Struct(">dd")
_TIMEDELTA_PARTS = struct.Struct(">iii")
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")  # no dots: neither paths nor module names

_type_of: Callable[[Any], Any] = type  # of Any, a type checker makes `type[Unknown]`
_values_of: Callable[[Any], Iterable[Any]] = dict[Any, Any].values
_to_msgpack = msgspec.msgpack.Encoder().encode

# Reads what most large values are: JSON's, a few levels deep. As its keys are texts, none can collide; anything else is an
# error of validation.
_Json: Any = bool | int | float | str | None
for _ in range(4):
    _Json = bool | int | float | str | None | list[_Json] | dict[str, _Json]
_from_texts: Callable[[bytes | memoryview], Any] = msgspec.msgpack.Decoder(_Json).decode


# ---------------------------------------------------------------- single values
def _write_int(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _write_timedelta(value: timedelta) -> bytes:
    return _TIMEDELTA_PARTS.pack(value.days, value.seconds, value.microseconds)


def _read_timedelta(data: memoryview) -> timedelta:
    return timedelta(*_TIMEDELTA_PARTS.unpack(data))


def _write_timezone(value: timezone) -> bytes:
    offset, name = value.utcoffset(None), value.tzname(None)
    named = name != timezone(offset).tzname(None)
    return _write_timedelta(offset) + (b"=" + name.encode() if named else b"")


def _read_timezone(data: memoryview) -> timezone:
    offset = _read_timedelta(data[: _TIMEDELTA_PARTS.size])
    name = str(data[_TIMEDELTA_PARTS.size :], "utf-8")
    return timezone(offset, name[1:]) if name else timezone(offset)


def _write_zone_info(value: ZoneInfo) -> bytes:
    if not _ZONE_KEY.fullmatch(value.key or ""):
        raise CodecError("a ZoneInfo is stored by its key, and this one has none that could be found again")
    return value.key.encode()


def _read_zone_info(data: memoryview) -> ZoneInfo:
    key = str(data, "ascii")
    if not _ZONE_KEY.fullmatch(key):
        raise CorruptRecordError(f"{summary(key)} is no key of a time zone")
    try:
        return ZoneInfo(key)
    except ZoneInfoNotFoundError:
        raise CodecError(f"this machine knows no time zone {key!r:.80}; install the distribution tzdata") from None


# ---------------------------------------------------------------- where a record stands
_pack_version, _pack_deadline = struct.Struct(">q").pack, struct.Struct(">qd").pack


def place_of(key: str, version: int, expires_at: float | None) -> bytes:
    """What a backend that keeps records by key, version and deadline binds them to."""
    if expires_at is None:
        return _pack_version(version) + key.encode()
    return _pack_deadline(version, expires_at) + key.encode()


def bound(record: bytes, place: bytes) -> bytes:
    """A record as it is to stand in a place; `Codec.decode(…, place)` reads it there and nowhere else.

    >>> record = bound(default_codec.encode(5), place_of("a", 7, None))
    >>> default_codec.decode(record, place_of("a", 7, None))
    5
    >>> default_codec.decode(record, place_of("b", 7, None))
    Traceback (most recent call last):
      ...
    pocket_plug.errors.CorruptRecordError: the record's checksum does not fit: it was damaged or cut off, or stands elsewhere
    """
    _, depth, checksum = _HEADER.unpack_from(record)
    return _HEADER.pack(BOUND, depth, zlib.crc32(place, checksum)) + record[_HEADER_SIZE:]


def payload_of(record: bytes) -> bytes:
    """The bytes of a record's value alone, without what says how they were written."""
    return record[_HEADER_SIZE:]


def is_whole(record: bytes, place: bytes) -> bool:
    """Is a record undamaged, and in its place? It is not decoded.

    >>> is_whole(bound(default_codec.encode(5), b"here"), b"here"), is_whole(bound(default_codec.encode(5), b"here"), b"there")
    (True, False)
    """
    if len(record) <= _HEADER_SIZE:
        return False
    format, depth, checksum = _HEADER.unpack_from(record)
    found = zlib.crc32(memoryview(record)[_HEADER_SIZE:], depth)
    return format in (FORMAT, BOUND) and checksum == (found if format == FORMAT else zlib.crc32(place, found))


_SCALARS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    complex: (_COMPLEX, lambda value: _COMPLEX_PARTS.pack(value.real, value.imag)),
    bytearray: (_BYTEARRAY, bytes),
    date: (_DATE, lambda value: value.isoformat().encode()),
    timedelta: (_TIMEDELTA, _write_timedelta),
    timezone: (_TIMEZONE, _write_timezone),
    ZoneInfo: (_ZONE_INFO, _write_zone_info),
    Decimal: (_DECIMAL, lambda value: str(value).encode()),
    UUID: (_UUID, lambda value: value.bytes),
}
_SCALAR_READERS: dict[int, Callable[[memoryview], Any]] = {
    _BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
    _COMPLEX: lambda data: complex(*_COMPLEX_PARTS.unpack(data)),
    _BYTEARRAY: bytearray,
    _DATETIME: lambda data: datetime.fromisoformat(str(data, "ascii")),
    _TIME: lambda data: time.fromisoformat(str(data, "ascii")),
    _DATE: lambda data: date.fromisoformat(str(data, "ascii")),
    _TIMEDELTA: _read_timedelta,
    _TIMEZONE: _read_timezone,
    _ZONE_INFO: _read_zone_info,
    _DECIMAL: lambda data: Decimal(str(data, "ascii")),
    _UUID: lambda data: UUID(bytes=bytes(data)),
}


def _clock(kind: type[datetime] | type[time], text: str, fold: int, zone: tzinfo | None) -> datetime | time:
    return kind.fromisoformat(text).replace(fold=fold, tzinfo=zone)


# What is made of other values is read from their list.
_COMPOSITE_READERS: dict[int, Callable[[list[Any]], Any]] = {
    _TUPLE: tuple,
    _SET: made_set,
    _FROZENSET: lambda members: frozenset(made_set(members)),
    _PAIRS: lambda flat: made_dict(flat[::2], flat[1::2]),
    _AWARE_DATETIME: lambda parts: _clock(datetime, *parts),
    _AWARE_TIME: lambda parts: _clock(time, *parts),
}

_BUILT_IN = frozenset({*_LEAVES, list, dict, *_ARRAYS, *_CLOCKS, *_SCALARS})
_ATOMS = _BUILT_IN - {list, dict, bytearray, *_ARRAYS}
Upgrade = Callable[[Any], Any]
"""Makes of the state of one version of a type that of the next."""

upgraded: ContextVar[list[str] | None] = ContextVar("upgraded", default=None)
"""Set it to a list, and each object that is upgraded while a record is read in this context leaves its tag there. A record
that is not bound to its place, as older versions have written them, leaves `UNBOUND`."""

UNBOUND = "an unbound record"


# ---------------------------------------------------------------- registered types
@dataclass(frozen=True, slots=True)
class _Entry:
    """One registered type."""

    type: type
    tag: str
    version: int
    form: Form
    upgrade: Mapping[int, Upgrade]
    head: bytes
    """A record is an array of tag, version and state; this is all of it but the state."""


# ---------------------------------------------------------------- the codec
def _json_depth(value: Any, limit: int) -> int:
    """How deep lists and dicts nest in a value of nothing but them and leaves, which msgspec can take as it is.

    `value` is a list or dict. 0 where there is something else in it, a large dict of other keys than texts (see
    `bounds.check_maps`), and beyond `limit`. It goes level by level, so that the loops over items are C's; what is flat, as
    most values are, needs no copy of a level.
    """
    leaves = _LEAVES
    level: Iterable[Any] = value
    if _type_of(value) is dict:
        texts = leaves if len(value) <= FEW else _TEXTS
        for key in value:
            if type(key) not in texts:
                return 0
        level = _values_of(value)
    if leaves.issuperset(map(_type_of, level)):
        return 1
    depth = 1
    while not (kinds := set(map(_type_of, level))) <= leaves:
        if not kinds <= _JSON or depth == limit:
            return 0
        depth += 1
        lists = [item for item in level if _type_of(item) is list] if list in kinds else []
        dicts = [item for item in level if _type_of(item) is dict] if dict in kinds else []
        if dicts and not leaves.issuperset(map(_type_of, chain.from_iterable(dicts))):
            return 0
        for each in dicts:
            if len(each) > FEW and not _TEXTS.issuperset(map(_type_of, each)):
                return 0
        level = [*chain.from_iterable(lists), *chain.from_iterable(map(_values_of, dicts))]
    return depth


class _Walk:
    """One pass over a value, on which all that MessagePack would not keep exactly is put into an Ext."""

    __slots__ = ("deepest", "entry_of", "leaves", "left", "max_depth")

    def __init__(self, entry_of: Callable[[type], _Entry], leaves: frozenset[type], max_depth: int) -> None:
        self.entry_of = entry_of
        self.leaves = leaves
        self.max_depth = max_depth
        self.deepest = 0
        self.left: float | None = None

    def wrap(self, value: Any, depth: int) -> Any:
        """`depth` is the number of containers around the value."""
        kind = _type_of(value)
        if kind in self.leaves:
            return value
        if (scalar := _SCALARS.get(kind)) is not None:
            return Ext(scalar[0], scalar[1](value))
        if kind is int:  # only walked over where some int is too big
            return value if value in _MSGPACK_INTS else Ext(_BIG_INT, _write_int(value))
        if kind in _CLOCKS:
            return self.clock(value, *_CLOCKS[kind], depth)
        if kind is list or kind is dict or kind in _ARRAYS:
            depth += 1
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
            return Ext(_ARRAYS[kind], _to_msgpack(items))
        return self.record(value, depth)

    def items(self, values: Any, depth: int) -> Any:
        leaves = self.leaves
        if leaves.issuperset(map(type, values)):
            return values
        wrap = self.wrap
        return [value if type(value) in leaves else wrap(value, depth) for value in values]

    def mapping(self, values: Any, depth: int) -> Any:
        leaves = self.leaves
        if not (leaves if len(values) <= FEW else _TEXTS).issuperset(map(type, values)):
            if len(values) > FEW:
                self.check_keys(values, lambda keys: made_dict(keys, keys))
            return Ext(_PAIRS, _to_msgpack(self.items(list(chain.from_iterable(values.items())), depth)))
        if leaves.issuperset(map(type, values.values())):
            return values
        wrap = self.wrap
        return {key: value if type(value) in leaves else wrap(value, depth) for key, value in values.items()}

    def check_keys(self, keys: Collection[Any], make: Callable[[list[Any]], object]) -> None:
        """Refuse keys here that `decode` would refuse. Plain ones collide only if they were made to, and aren't checked."""
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
        return Ext(aware, _to_msgpack((text, value.fold, self.wrap(zone, depth))))

    def record(self, value: Any, depth: int) -> Ext:
        entry = self.entry_of(_type_of(value))
        return Ext(_RECORD, entry.head + _to_msgpack(self.wrap(_state(entry, value), depth)))


def _state(entry: _Entry, value: Any) -> Any:
    try:
        return entry.form.encode(value)
    except RecursionError:  # nested too deeply, which the caller reports
        raise
    except Exception as error:
        raise CodecError(f"taking a {_name(entry.type)} apart failed{_text(error)}") from error


def _object(entry: _Entry, state: Any) -> Any:
    try:
        return entry.form.decode(state)
    except Exception as error:
        raise CodecError(
            f"making a {_name(entry.type)} of what is stored under {entry.tag!r} failed{_text(error)}"
        ) from error


def _upgraded(entry: _Entry, version: int, state: Any) -> Any:
    """The state of an older version, made one of today's step by step."""
    if version > entry.version:
        raise CodecError(
            f"the record holds version {version} of type {entry.tag!r}; {_name(entry.type)} is registered "
            f"as version {entry.version}, so a newer program wrote it"
        )
    for step in range(version, entry.version):
        if step not in entry.upgrade:
            raise CodecError(
                f"the record holds version {version} of type {entry.tag!r}; {_name(entry.type)} is registered as "
                f"version {entry.version}, and nothing upgrades version {step} to {step + 1}; "
                f"give register_type({entry.type.__name__}, …, upgrade={{{step}: …}})"
            )
        try:
            state = entry.upgrade[step](state)
            if entry.form.names and _type_of(state) is not dict:
                raise CodecError(f"it gave {summary(state)}, not the dict of the fields")
        except Exception as error:
            raise CodecError(
                f"upgrading a {_name(entry.type)} from version {step} to {step + 1} failed{_text(error)}"
            ) from error
    if (seen := upgraded.get()) is not None:
        seen.append(entry.tag)
    return state


def _text(error: Exception) -> str:
    """What failed. An error that isn't ours is named by its type only, as it may quote the value; it is the cause of ours."""
    return f": {error}" if isinstance(error, CodecError) else f" with {type(error).__name__}"


def _key_name(key: Any) -> str:
    """A dict's key within a path: what looks like the name of a field as it is, of others the type and the length."""
    if type(key) is str:
        return repr(key) if key.isidentifier() and len(key) <= 80 else f"<{summary(key)}>"
    return f"<{type(key).__name__}>"


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class Codec:
    """Turns values into records of bytes and back, exactly.

    It knows None, bool, int of any size, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict with
    any keys, range, datetime, date, time, timedelta, timezone, ZoneInfo, Decimal, UUID, pathlib's paths, numpy's arrays and
    scalars, nested in any way, and the types that are registered. A subclass never passes for its base. Objects that stand
    in a value twice become two.

    `max_bytes` limits a record, `max_depth` how deep containers may nest in it (at most 255), and `max_items` what takes
    much more memory than bytes: lists, dicts, tuples, sets and objects, the pairs of dicts and the members of sets. All
    hold on the way in and out. A record whose keys were made to collide is refused, too.

    `declared` is a list of types that are registered when they are first needed. `seals` is for tools that move what they
    don't understand: while it is True, a record that can't be made a value here is read as `Sealed`.

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
        declared: Sequence[Any] = (),
    ) -> None:
        if not 1 <= max_depth <= 255:
            raise ValueError(f"max_depth is from 1 to 255, not {max_depth}")
        self.max_bytes = max_bytes
        self.max_depth = max_depth
        self.max_items = max_items
        self.seals = False
        self._declared = declared
        self._adopted = 0
        self._libraries: set[str] = set()
        self._types: dict[type, _Entry] = {}
        self._tags: dict[str, _Entry] = {}
        self._lock = new_rlock()
        self._from_msgpack = msgspec.msgpack.Decoder(ext_hook=self._from_ext).decode

    # ---------------------------------------------------------------- the registry
    def register(
        self,
        type: type[T],
        *,
        tag: str | None = None,
        version: int = 1,
        upgrade: Mapping[int, Upgrade] | None = None,
        encode: Callable[[T], Any] | None = None,
        decode: Callable[[Any], T] | None = None,
    ) -> type[T]:
        """Take a class into the registry; gives the class back, so that it can decorate one.

        Dataclasses, Enums, msgspec Structs, named tuples and pydantic models need no functions. Any other class gives
        `encode`, which makes of an object a value that the codec knows, and `decode`, which makes an object of such a
        value.

        A dataclass or model is its fields, which are set as they were: no `__init__` and no validator is called. A
        stored field that the class no longer has is an error; a field that was not stored gets its default. `tag` is
        the name that stands in records, the class's qualified name without its module unless given.

        `version` is that of the state, which is a dict of the fields, or what `encode` makes. `upgrade` has for each
        older version a function that makes of its state that of the next: `upgrade={1: add_currency}`. A record of an
        older version is upgraded when it is read; without a function for it, and of a later version, it is an error.

        The same class, or one of the same module and name, may be registered again: a module reloaded, a notebook's cell run
        twice. The later registration holds, and older tags stay readable. Objects of the former class are stored as those of
        the later one where both have the same fields or members. Raises CodecError if the tag is another class's.

        >>> from fractions import Fraction
        >>> codec = Codec()
        >>> codec.register(Fraction, encode=lambda f: (f.numerator, f.denominator), decode=lambda parts: Fraction(*parts))
        <class 'fractions.Fraction'>
        >>> codec.decode(codec.encode(Fraction(1, 3)))
        Fraction(1, 3)
        """
        if type in _BUILT_IN:
            raise CodecError(f"{type.__qualname__} is built into the codec and can't be registered")
        if version < 1:
            raise CodecError(f"{_name(type)}: version is 1 or more, not {version}")
        if (encode is None) != (decode is None):
            raise CodecError(f"{_name(type)}: encode and decode go together; give both or neither")
        steps = dict(upgrade or {})
        if wrong := [step for step in steps if not 1 <= step < version]:
            raise CodecError(
                f"{_name(type)}: upgrade has {', '.join(map(repr, wrong))}; it is from versions below {version}, "
                "which is the one registered (version=…)"
            )
        form = form_of(type) if encode is None or decode is None else Form(encode, decode)
        if form is None:
            raise CodecError(
                advice(type)
                or f"{_name(type)} is no plain dataclass, Enum, Struct, named tuple or model: give {WITH_FUNCTIONS}"
            )
        tag = tag or form.tag or type.__qualname__
        head = b"\x93" + _to_msgpack(tag) + _to_msgpack(version)
        with self._lock:
            held = self._tags.get(tag)
            if held is not None and _name(held.type) != _name(type):
                raise CodecError(
                    f"tag {tag!r} is taken by {_name(held.type)}, so {_name(type)} needs one of its own: "
                    f"register_type({type.__name__}, tag=…)"
                )
            for former in tuple(
                entry for entry in self._types.values() if entry.tag == tag and entry.form.shape != form.shape
            ):
                del self._types[former.type]
            self._types[type] = self._tags[tag] = _Entry(type, tag, version, form, steps, head)
        return type

    def knows(self, type: type) -> bool:
        """Can objects of exactly this class be encoded?

        >>> Codec().knows(dict), Codec().knows(slice)
        (True, False)
        """
        return type in _BUILT_IN or self._entry(type) is not None

    def _entry(self, type: type) -> _Entry | None:
        entry = self._types.get(type)
        if entry is None:
            self._adopt()
            entry = self._types.get(type)
        return entry

    def _adopt(self) -> None:
        """Register what was declared since last time, the classes of its fields, and those of libraries imported since.

        A class whose tag is taken is left out: it's an error once that class is used, not whichever is used next. Look
        again afterwards even if there was nothing new: another thread may have dealt with it at this very moment.
        """
        with self._lock:
            queue = deque(self._declared[self._adopted :])
            self._adopted += len(queue)
            if not self._libraries:
                self._libraries.add(__name__)
                queue.extend(KNOWN)
            for library in tuple(each for each in libraries() if each.__name__ not in self._libraries):
                self._libraries.add(library.__name__)
                queue.extend(library.KNOWN)
            seen: dict[int, Any] = {}  # by id: a hint need not be hashable, and may contain itself
            while queue:
                part = queue.popleft()
                if id(part) in seen:
                    continue
                seen[id(part)] = part
                queue.extend(parts_of(part))
                if not isinstance(part, type) or part in _BUILT_IN:
                    continue
                if part not in self._types and (form := form_of(part)) is not None:
                    held = self._tags.get(form.tag or part.__qualname__)
                    if held is None or _name(held.type) == _name(part):
                        self.register(part)
                if part in self._types or typing.is_typeddict(part):
                    queue.extend(hints_of(part))

    def _require(self, cls: type) -> _Entry:
        entry = self._entry(cls)
        if entry is None:
            raise UnregisteredTypeError(self._way_out(cls))
        return entry

    def _way_out(self, cls: type) -> str:
        """Why objects of a class can't be encoded, and what to do."""
        held = self._tags.get(cls.__qualname__)
        if held is None:
            if form_of(cls) is None:
                return advice(cls) or (
                    f"{_name(cls)} is not registered; call {WITH_FUNCTIONS.replace('…', cls.__name__, 1)}"
                )
            return (
                f"{_name(cls)} is not registered; call register_type({cls.__name__}), "
                f'or declare it: Key("…", {cls.__name__})'
            )
        if _name(held.type) == _name(cls):
            return f"{defined_again(cls, held.type)}; make the object anew"
        return (
            f"{_name(cls)} is not registered, and its tag {held.tag!r} is taken by {_name(held.type)}; "
            f"give it one of its own: register_type({cls.__name__}, tag=…)"
        )

    # ---------------------------------------------------------------- values to bytes
    def encode(self, value: Any) -> bytes:
        """The record of a value.

        Raises UnregisteredTypeError, naming the path to the object and its type, and CodecError for what can't be
        stored otherwise: a lone surrogate, a container within itself, what is over a limit.
        """
        try:
            payload, depth = self._pack(value)
        except (CodecError, UnicodeEncodeError) as error:
            if isinstance(value, Sealed):
                return value.record
            path, culprit = self._culprit(value, error)
            raise type(culprit)(f"value{path}: {culprit}") from error.__cause__
        except RecursionError:
            raise CodecError(
                f"the value has more than {self.max_depth} containers in each other (max_depth), "
                "or one that contains itself"
            ) from None
        if len(payload) + _HEADER_SIZE > self.max_bytes:
            raise CodecError(
                f"the record takes {len(payload) + _HEADER_SIZE:,} bytes; {self.max_bytes:,} are allowed (max_bytes)"
            )
        if len(payload) > self.max_items and not has_at_most(self.max_items, payload, 0):
            raise CodecError(f"the value has more than {self.max_items:,} containers, pairs and objects (max_items)")
        return _HEADER.pack(FORMAT, depth, zlib.crc32(payload, depth)) + payload

    def _pack(self, value: Any) -> tuple[bytes, int]:
        kind = _type_of(value)
        try:
            if kind in _LEAVES:
                return _to_msgpack(value), 0
            if (kind is dict or kind is list) and (depth := _json_depth(value, self.max_depth)):
                return _to_msgpack(value), depth
            walk = _Walk(self._require, _LEAVES, self.max_depth)
            return _to_msgpack(walk.wrap(value, 0)), walk.deepest
        except OverflowError:  # an int that MessagePack does not hold: look at each
            walk = _Walk(self._require, _ALL_BUT_INT, self.max_depth)
            return _to_msgpack(walk.wrap(value, 0)), walk.deepest

    def _culprit(self, value: Any, error: Exception) -> tuple[str, CodecError]:
        """The path to the innermost part that can't be encoded, and why it can't."""
        for step, part in self._parts(value):
            try:
                self._pack(part)
            except (CodecError, UnicodeEncodeError) as inner:
                path, culprit = self._culprit(part, inner)
                return step + path, culprit
        if isinstance(error, UnicodeEncodeError):
            return "", CodecError(
                f"{summary(value)} has a lone surrogate, which is no text; encode it to bytes with "
                "errors='surrogatepass'"
            )
        return "", typing.cast("CodecError", error)

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        kind = _type_of(value)
        if kind is dict:
            for key, item in value.items():
                name = _key_name(key)
                yield f"[key {name}]", key
                yield f"[{name}]", item
        elif kind is list or kind is tuple:
            for index, item in enumerate(value):
                yield f"[{index}]", item
        elif kind in _ARRAYS:
            for item in value:
                yield "{…}", item
        elif kind in _CLOCKS:
            yield ".tzinfo", value.tzinfo
        elif entry := self._types.get(kind):
            with suppress(CodecError):  # then the object itself is the culprit
                state = _state(entry, value)
                yield from ((f".{name}", state[name]) for name in state) if entry.form.names else [("", state)]

    # ---------------------------------------------------------------- bytes to values
    def decode(self, data: bytes, place: bytes | None = None) -> Any:
        """The value of a record, which stands in a `place` if that is given.

        Raises CorruptRecordError for bytes that are no whole record, of another place, or break a limit, UnknownTypeError
        where a type is not registered here, and CodecError where an object can't be made of what was stored.
        """
        if not _HEADER_SIZE < len(data) <= self.max_bytes:
            raise CorruptRecordError(
                f"a record has {_HEADER_SIZE + 1} to {self.max_bytes:,} bytes (max_bytes); this has {len(data):,}"
            )
        format, depth, checksum = _HEADER.unpack_from(data)
        payload = (data if len(data) < _SHORT else memoryview(data))[_HEADER_SIZE:]
        found = zlib.crc32(payload, depth)
        if format == BOUND:
            if place is None:
                raise CorruptRecordError("the record is bound to a key, version and deadline, and is read without them")
            found = zlib.crc32(place, found)
        elif format != FORMAT:
            raise CorruptRecordError(
                f"no record of this codec: its first byte is {format:#04x}, not {FORMAT:#04x} or {BOUND:#04x}"
            )
        elif place is not None and (seen := upgraded.get()) is not None:
            seen.append(UNBOUND)
        if found != checksum:
            raise CorruptRecordError(
                "the record's checksum does not fit: it was damaged or cut off"
                + (", or stands elsewhere" if format == BOUND else "")
            )
        if depth > self.max_depth:
            raise CorruptRecordError(
                f"the record has {depth} containers in each other; {self.max_depth} are allowed (max_depth)"
            )
        try:
            if len(data) <= UNLOOKED:
                return self._from_msgpack(payload)
            return self._bounded(data, payload)
        except (CorruptRecordError, MemoryError):
            raise
        except CodecError as error:
            if not self.seals:
                raise
            return Sealed(_HEADER.pack(FORMAT, depth, zlib.crc32(payload, depth)) + payload, error)
        except msgspec.DecodeError as error:
            raise CorruptRecordError(f"no record of this codec: {error}") from error
        except Exception as error:  # noqa: BLE001 - the checksum was right, so somebody made it up
            raise CorruptRecordError(f"no record of this codec: {type(error).__name__} of what it holds") from None

    def _bounded(self, data: bytes, payload: bytes | memoryview) -> Any:
        """What is in a longer record, unless that would take more than it may."""
        if len(payload) > self.max_items and not has_at_most(self.max_items, data, _HEADER_SIZE):
            raise CorruptRecordError(
                f"the record has more than {self.max_items:,} containers, pairs and objects (max_items)"
            )
        with counted():
            if may_have_large_map(data, _HEADER_SIZE):
                return self._with_large_map(data, payload)
            return self._from_msgpack(payload)

    def _with_large_map(self, data: bytes, payload: bytes | memoryview) -> Any:
        with suppress(msgspec.ValidationError):
            return _from_texts(payload)
        check_maps(data, _HEADER_SIZE, self._from_ext)
        return self._from_msgpack(payload)

    def _from_ext(self, code: int, data: memoryview) -> Any:
        if (scalar := _SCALAR_READERS.get(code)) is not None:
            return scalar(data)
        parts = self._from_msgpack(data)
        if (composite := _COMPOSITE_READERS.get(code)) is not None:
            return composite(parts)
        if code != _RECORD:
            raise CorruptRecordError(f"no record of this codec: it holds an extension of code {code}")
        tag, version, state = parts
        if self._adopted != len(self._declared):  # a class of that tag may have been defined anew
            self._adopt()
        entry = self._tags.get(tag)
        if entry is None:
            self._adopt()
            entry = self._tags.get(tag)
        if entry is None:
            raise UnknownTypeError(
                f"the record holds an object of type {tag!r:.80}, which is not registered here; "
                f"import the module that declares it, or call register_type(…, tag={tag!r:.80})"
            )
        if version != entry.version:
            state = _upgraded(entry, version, state)
        return _object(entry, state)

    def renewed(self, value: Any) -> Any:
        """The value with objects of former definitions of a class made those of the newest; itself where that can't be done."""
        try:
            return self.decode(self.encode(value))
        except CodecError:
            return value

    # ---------------------------------------------------------------- private copies
    def private(self, value: Any) -> Any:
        """A copy that can be changed without changing the original.

        What can't change comes back as it is: numbers, text, dates, and tuples, frozensets and frozen registered
        objects that hold nothing else. Built-in containers and registered objects are copied part by part, as the
        codec would store them: an object that stands in the value twice becomes two. Other containers, dataclasses,
        Structs, models and arrays are copied by `copy.deepcopy`. Any other object (a socket, a session) is shared, and so is what
        deepcopy fails on. Raises CodecError where a function that a type was registered with fails.

        >>> rows = [{"n": 1}]
        >>> mine = Codec().private(rows)
        >>> mine[0]["n"] = 2
        >>> rows
        [{'n': 1}]
        """
        if type(value) in _ATOMS:
            return value
        if type(value) in (list, dict) and (depth := _json_depth(value, self.max_depth)):
            if depth == 1:
                return value.copy()
            with suppress(OverflowError, UnicodeEncodeError):
                return self._from_msgpack(_to_msgpack(value))
        try:
            return self._copy(value)
        except RecursionError:  # it contains itself, which deepcopy can follow
            return deep_copy(value)

    def _copy(self, value: Any) -> Any:
        kind = _type_of(value)
        if kind in _ATOMS:
            return value
        if kind is list:
            return self._copies(value)
        if kind is dict:
            return dict(zip(self._copies(value), self._copies(value.values()), strict=True))
        if kind in _ARRAYS:
            copies = self._copies(value)
            if kind is not set and all(map(is_, value, copies)):
                return value
            return _COMPOSITE_READERS[_ARRAYS[kind]](copies)
        if kind is bytearray:
            return bytearray(value)
        if (entry := self._entry(kind)) is not None:
            if entry.form.copy is not None:
                return entry.form.copy(value)
            state = _state(entry, value)
            copied = self._copy(state)
            if entry.form.frozen and (
                copied is state or (entry.form.names and all(map(is_, state.values(), copied.values())))
            ):
                return value
            return _object(entry, copied)
        return deep_copy(value) if is_data(kind) else value

    def _copies(self, values: Collection[Any]) -> list[Any]:
        if _ATOMS.issuperset(map(type, values)):
            return list(values)
        return [value if type(value) in _ATOMS else self._copy(value) for value in values]


# ---------------------------------------------------------------- records without their types
class Sealed:
    """A whole record that can't be made a value here: of an unknown type, say, or of a newer version of one.

    Stored as a value, it is that `record` again, byte for byte. `error` says what is missing.
    """

    def __init__(self, record: bytes, error: CodecError) -> None:
        self.record = record
        self.error = error


class Opaque:
    """What a record says about an object: the `tag` and `version` of its type, and its `state`."""

    def __init__(self, tag: Any, version: Any, state: Any) -> None:
        self.tag, self.version, self.state = tag, version, state

    def __repr__(self) -> str:
        return f"<{self.tag} {self.state!r}>"


class _Inspector(Codec):
    def _from_ext(self, code: int, data: memoryview) -> Any:
        return Opaque(*self._from_msgpack(data)) if code == _RECORD else super()._from_ext(code, data)


inspect_record = _Inspector().decode
"""What a record holds, whatever types are registered: objects are seen as `Opaque`, and no code of theirs runs.

>>> from enum import Enum
>>> Weekday = Enum("Weekday", ["MON", "TUE"])
>>> inspect_record(Codec(declared=[Weekday]).encode([Weekday.TUE, Decimal("1.5")]))
[<Weekday 'TUE'>, Decimal('1.5')]
"""

# ---------------------------------------------------------------- this process's
default_codec = Codec(declared=declared_types)
"""The codec of this process: what is not given another one uses it. It takes the types of every `Key` by itself."""

register_type = default_codec.register
