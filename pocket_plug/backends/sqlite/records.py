"""Rows as entries. Each row is verified before it is used: damage is an error, and never looks like a missing entry.

So an expired row is verified too, before it counts as absent: its expiry time may be damaged.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable
from typing import Any

from pocket_plug.codec import default_codec, is_whole, place_of, record_of
from pocket_plug.errors import CodecError, CorruptRecordError, StoreError
from pocket_plug.store.backend import Change, Entry, Put

from .statements import READ, SEEN

Execute = Callable[..., sqlite3.Cursor]

_LAST_VERSION = 2**62  # is never reached, and is half of what SQLite can count


def encoded(change: Change) -> Change:
    """The change with its value as a record. Raises CodecError, which names the key, for a value that can't be encoded."""
    if not isinstance(change, Put):
        return change
    return Put(change.key, record_of(change.key, change.value), change.expires_at, change.version)


class Records:
    """Reads the rows of the file at `path`, which errors name. `execute` is the method of a cursor in a transaction."""

    def __init__(self, path: str) -> None:
        self._path = path

    def entry(self, key: str, row: tuple[Any, ...], now: float) -> Entry | None:
        """The entry of a row of READ; None if it has expired. Raises CodecError, which names the key, for a damaged row."""
        record, version, expires_at = row
        try:
            place = place_of(key, version, expires_at)
            if expires_at is not None and expires_at <= now:
                _check_whole(record, place)
                return None
            return Entry(default_codec.decode(record, place), version, expires_at)
        except (CodecError, TypeError, struct.error) as error:
            raise self._refused(key, error) from error

    def is_alive(self, key: str, record: Any, version: Any, expires_at: Any, now: float) -> bool:
        """Is a row not expired? Raises CorruptRecordError if its expiry time may be damaged."""
        try:
            if expires_at is None or now < expires_at:
                return True
            _check_whole(record, place_of(key, version, expires_at))
        except (CodecError, TypeError, struct.error) as error:
            raise self._refused(key, error) from error
        return False

    def version(self, execute: Execute, key: str, now: float) -> int:
        """The stored version of a key; 0 if there is no entry or it has expired."""
        row = execute(SEEN, (key,)).fetchone()
        if row is None:
            return 0
        found: Any = row[0]
        if type(found) is not int:
            raise self._refused(key, TypeError())
        if row[1] is None:
            return found
        record, version, expires_at = execute(READ, (key,)).fetchone()
        return version if self.is_alive(key, record, version, expires_at, now) else 0

    def is_damaged(self, execute: Execute, key: str) -> bool:
        """Is there a damaged row? It is replaced whatever version it has, since that can't be trusted."""
        row = execute(READ, (key,)).fetchone()
        try:
            return row is not None and not is_whole(row[0], place_of(key, *row[1:]))
        except (TypeError, struct.error):
            return True

    def counter(self, rows: list[tuple[Any, ...]]) -> int:
        """The stored counter of versions, from the rows of its table."""
        if len(rows) == 1 and type(rows[0][0]) is int and 0 <= rows[0][0] < _LAST_VERSION:
            return rows[0][0]
        raise StoreError(f"{self._path}: its counter of versions is damaged ({rows!r:.80}); restore a backup")

    def _refused(self, key: str, error: Exception) -> CodecError:
        if not isinstance(error, CodecError):  # such as a text in place of a number, which we never write
            error = CorruptRecordError("its fields are of the wrong types, so another program has written it")
        return type(error)(f"{self._path}, key {key!r}: {error}")


def _check_whole(record: bytes, place: bytes) -> None:
    if not is_whole(record, place):
        raise CorruptRecordError(
            "the record's checksum does not match: it was damaged or cut off, or its key, version or expiry time was changed"
        )
