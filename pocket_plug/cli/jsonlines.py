"""Entries as JSON Lines, without loss: the format of `pocket-plug store export` and `import`, one entry per line.

An append-only list is a line with the type `pocket:list`, followed by the lines of its items.

A line has a `key`, and a `value` if JSON can represent it exactly, or else a `type` and the codec's `record` in base64.
An entry that expires has `expires_at`, in epoch seconds.
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

_INTS = range(-(2**63), 2**64)  # the integers that most readers of JSON can read
_WANTED = '; each line is one entry: {"key":"a","value":1}, and "expires_at" in epoch seconds if it expires'


class Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One entry."""

    key: str
    value: Any = UNSET
    type: str | UnsetType = UNSET
    record: bytes | UnsetType = UNSET
    expires_at: float | None = None


def is_json(value: Any) -> bool:
    """Can JSON represent a value exactly?

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
    """The type of a record's value: the name of a built-in type, or the tag of a registered one.

    >>> type_in(default_codec.encode({1, 2}))
    'set'
    """
    found = inspect_record(record)
    return str(found.tag) if isinstance(found, Opaque) else type(found).__name__


def line_of(key: str, entry: Entry) -> Line:
    """An entry as a line. Raises CodecError if its value can't be stored."""
    if is_json(entry.value):
        return Line(key, entry.value, expires_at=entry.expires_at)
    record = default_codec.encode(entry.value)
    return Line(key, type=type_in(record), record=record, expires_at=entry.expires_at)


def entries_of(lines: Iterable[bytes], name: str, *, reserved: bool) -> Iterator[Put]:
    """The entries in the lines of a file; blank lines are skipped. `reserved`: pocket_plug's own keys are allowed.

    Raises CorruptRecordError, with the file's `name` and the line, for an invalid line.
    """
    decode = msgspec.json.Decoder(Line).decode
    for number, text in enumerate(lines, 1):
        if text.strip():
            try:
                yield _put(decode(text), reserved)
            except (msgspec.MsgspecError, RecursionError, CodecError, KeyNameError) as error:
                wanted = _WANTED if isinstance(error, msgspec.ValidationError) else ""
                raise CorruptRecordError(f"{name}, line {number}: {why_no_json(error)}{wanted}") from error


def why_no_json(error: Exception) -> str:
    """Why a JSON text is invalid. For one that is nested too deeply, Python's message differs from version to version."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _put(line: Line, reserved: bool) -> Put:
    item = place_of(line.key)
    if item is not None or not line.key.startswith(RESERVED):
        check_name(line.key if item is None else item.owner)
    elif not reserved:
        raise KeyNameError(
            f"{line.key!r:.80} is one of pocket_plug's own entries, such as those of durable runs; import them with --all"
        )
    if (line.value is UNSET) == (line.record is UNSET):
        raise CodecError("an entry needs either a value or a record")
    if line.record is UNSET:
        if line.type is not UNSET:
            raise CodecError("a type is given with a record, not with a value")
        return Put(line.key, line.value, line.expires_at)
    value, held = default_codec.decode(line.record), type_in(line.record)
    if line.type not in (UNSET, held):
        raise CodecError(f"the type is {line.type!r:.80}, but the record holds {held!r:.80}")
    return Put(line.key, value, line.expires_at)
