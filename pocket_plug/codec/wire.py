"""Single values in MessagePack: the types that it holds exactly, and the extensions for all others.

The codes of the extensions are part of the format. Values that contain others (tuples, sets, objects) are in `encoding`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from pocket_plug.errors import CodecError, CorruptRecordError
from pocket_plug.primitives.redaction import summary
from pocket_plug.primitives.values import Value

from .bounds import made_dict, made_set

to_msgpack = msgspec.msgpack.Encoder().encode

type_of: Callable[[Value], Value] = type  # for a type checker, `type` of Any is `type[Unknown]`

# ---------------------------------------------------------------- which types there are
LEAVES: frozenset[type] = frozenset({type(None), bool, int, float, str, bytes})
"""Types that MessagePack itself holds exactly, except large ints. All others are in an extension of one of these codes."""

RECORD, TUPLE, SET, FROZENSET, PAIRS, BIG_INT, COMPLEX, BYTEARRAY = range(1, 9)
DATETIME, TIME, AWARE_DATETIME, AWARE_TIME, DATE, TIMEDELTA, TIMEZONE, ZONE_INFO, DECIMAL, UUID_BYTES = range(9, 19)

ARRAYS: dict[type, int] = {tuple: TUPLE, set: SET, frozenset: FROZENSET}
CLOCKS: dict[type, tuple[int, int]] = {datetime: (DATETIME, AWARE_DATETIME), time: (TIME, AWARE_TIME)}
"""For each type the code of values without a time zone (and fold), and the code of all others."""

MSGPACK_INTS = range(-(2**63), 2**64)

_COMPLEX_PARTS = struct.Struct(">dd")
_TIMEDELTA_PARTS = struct.Struct(">iii")
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")  # no dots: neither paths nor module names


# ---------------------------------------------------------------- single values
def write_int(value: int) -> bytes:
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
        raise CodecError("a ZoneInfo is stored by its key, but this ZoneInfo has no key that can be looked up")
    return value.key.encode()


def _read_zone_info(data: memoryview) -> ZoneInfo:
    key = str(data, "ascii")
    if not _ZONE_KEY.fullmatch(key):
        raise CorruptRecordError(f"{summary(key)} is not the key of a time zone")
    try:
        return ZoneInfo(key)
    except ZoneInfoNotFoundError:
        raise CodecError(f"this machine knows no time zone {key!r:.80}; install the distribution tzdata") from None


SCALARS: dict[type, tuple[int, Callable[[Value], bytes]]] = {
    complex: (COMPLEX, lambda value: _COMPLEX_PARTS.pack(value.real, value.imag)),
    bytearray: (BYTEARRAY, bytes),
    date: (DATE, lambda value: value.isoformat().encode()),
    timedelta: (TIMEDELTA, _write_timedelta),
    timezone: (TIMEZONE, _write_timezone),
    ZoneInfo: (ZONE_INFO, _write_zone_info),
    Decimal: (DECIMAL, lambda value: str(value).encode()),
    UUID: (UUID_BYTES, lambda value: value.bytes),
}
SCALAR_READERS: dict[int, Callable[[memoryview], Any]] = {
    BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
    COMPLEX: lambda data: complex(*_COMPLEX_PARTS.unpack(data)),
    BYTEARRAY: bytearray,
    DATETIME: lambda data: datetime.fromisoformat(str(data, "ascii")),
    TIME: lambda data: time.fromisoformat(str(data, "ascii")),
    DATE: lambda data: date.fromisoformat(str(data, "ascii")),
    TIMEDELTA: _read_timedelta,
    TIMEZONE: _read_timezone,
    ZONE_INFO: _read_zone_info,
    DECIMAL: lambda data: Decimal(str(data, "ascii")),
    UUID_BYTES: lambda data: UUID(bytes=bytes(data)),
}


def _clock(kind: type[datetime] | type[time], text: str, fold: int, zone: tzinfo | None) -> datetime | time:
    return kind.fromisoformat(text).replace(fold=fold, tzinfo=zone)


# Values that contain others are read from a list of them.
COMPOSITE_READERS: dict[int, Callable[[list[Value]], Any]] = {
    TUPLE: tuple,
    SET: made_set,
    FROZENSET: lambda members: frozenset(made_set(members)),
    PAIRS: lambda flat: made_dict(flat[::2], flat[1::2]),
    AWARE_DATETIME: lambda parts: _clock(datetime, *parts),
    AWARE_TIME: lambda parts: _clock(time, *parts),
}

BUILT_IN = frozenset({*LEAVES, list, dict, *ARRAYS, *CLOCKS, *SCALARS})
ATOMS = BUILT_IN - {list, dict, bytearray, *ARRAYS}
"""Immutable types that contain nothing mutable."""
