"""Entries as JSON Lines, exactly: what `pocket-plug store` exports and imports, an entry a line.

An append-only list is a line, of the type `pocket:list`, and the lines of its items follow.

A line has a `key`, and its `value` where JSON holds that exactly, else the `type` that it is of and the codec's `record`
of it in base64. `expires_at`, in epoch seconds, stands where the entry has a deadline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite
from types import NoneType
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from pocket_plug.codec import Opaque, default_codec, inspect_record
from pocket_plug.errors import CodecError, CorruptRecordError, KeyNameError
from pocket_plug.primitives.lists import place_of
from pocket_plug.store.backend import Entry, Put
from pocket_plug.store.keys import RESERVED, check_name

_INTS = range(-(2**63), 2**64)  # what other readers of JSON may be trusted with


class Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One entry."""

    key: str
    value: Any = UNSET
    type: str | UnsetType = UNSET
    record: bytes | UnsetType = UNSET
    expires_at: float | None = None


def is_json(value: Any) -> bool:
    """Does JSON hold a value exactly?

    >>> is_json({"a": [1, 2.5, None]}), is_json((1, 2)), is_json({1: 2})
    (True, False, False)
    """
    kind = value.__class__
    if kind is int:
        return value in _INTS
    if kind is float:
        return isfinite(value)
    if kind is list:
        return all(map(is_json, value))
    if kind is dict:
        return all(type(key) is str and is_json(item) for key, item in value.items())
    return kind in (NoneType, bool, str)


def type_in(record: bytes) -> str:
    """What a record holds: the name of a built-in type, or the tag of a registered one.

    >>> type_in(default_codec.encode({1, 2}))
    'set'
    """
    found = inspect_record(record)
    return str(found.tag) if isinstance(found, Opaque) else type(found).__name__


def line_of(key: str, entry: Entry) -> Line:
    """An entry as a line. Raises CodecError where its value can't be stored."""
    if is_json(entry.value):
        return Line(key, entry.value, expires_at=entry.expires_at)
    record = default_codec.encode(entry.value)
    return Line(key, type=type_in(record), record=record, expires_at=entry.expires_at)


def entries_of(lines: Iterable[bytes], name: str, *, reserved: bool) -> Iterator[Put]:
    """What the lines of a file called `name` hold, blank ones left out; `reserved`: pocket_plug's own keys may be there.

    Raises CorruptRecordError, naming file and line, for one that is no entry.
    """
    decode = msgspec.json.Decoder(Line).decode
    for number, text in enumerate(lines, 1):
        if text.strip():
            try:
                yield _put(decode(text), reserved)
            except (msgspec.MsgspecError, RecursionError, CodecError, KeyNameError) as error:
                raise CorruptRecordError(f"{name}, line {number}: {why_no_json(error)}") from error


def why_no_json(error: Exception) -> str:
    """What is wrong with a JSON text. Python's message for one that is nested too deeply differs from version to version."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _put(line: Line, reserved: bool) -> Put:
    item = place_of(line.key)
    if item is not None or not line.key.startswith(RESERVED):
        check_name(line.key if item is None else item.owner)
    elif not reserved:
        raise KeyNameError(
            f"{line.key!r:.80} is an entry of pocket_plug's own, such as those of durable runs; take them with --all"
        )
    if (line.value is UNSET) == (line.record is UNSET):
        raise CodecError("an entry has a value or a record, and not both")
    if line.record is UNSET:
        if line.type is not UNSET:
            raise CodecError("a type is said of a record, not of a value")
        return Put(line.key, line.value, line.expires_at)
    value, held = default_codec.decode(line.record), type_in(line.record)
    if line.type not in (UNSET, held):
        raise CodecError(f"the record is said to hold {line.type!r:.80}, and holds {held!r:.80}")
    return Put(line.key, value, line.expires_at)
