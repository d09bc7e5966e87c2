"""A record: a header and a payload of MessagePack. The header seals the payload, and may bind it to a place.

The header has the format, the depth of nesting, and a CRC-32. The checksum makes a flipped bit an error rather than another
value; the depth lets a reader with a lower limit refuse before it parses. The checksum of a bound record includes the place
where it is stored (`place_of`), so the right record in the wrong place is an error too.
"""

from __future__ import annotations

import struct
from zlib import crc32

from pocket_plug.errors import CodecError, CorruptRecordError

FORMAT, BOUND = 1, 2  # no single bit makes one of them the other
_HEADER = struct.Struct(">BBI")
_pack_header, _unpack_header = _HEADER.pack, _HEADER.unpack_from
HEADER_SIZE = _HEADER.size

_SHORT = 4096
"""Fewer bytes are copied faster than a memoryview of them is made."""

_pack_version, _pack_deadline = struct.Struct(">q").pack, struct.Struct(">qd").pack


def place_of(key: str, version: int, expires_at: float | None) -> bytes:
    """The place to which a backend binds a record: its key, version and expiry time."""
    if expires_at is None:
        return _pack_version(version) + key.encode()
    return _pack_deadline(version, expires_at) + key.encode()


def bound(record: bytes, place: bytes) -> bytes:
    """The record, bound to a place; `Codec.decode(…, place)` reads it there and nowhere else.

    >>> from pocket_plug.codec import default_codec
    >>> record = bound(default_codec.encode(5), place_of("a", 7, None))
    >>> default_codec.decode(record, place_of("a", 7, None))
    5
    >>> default_codec.decode(record, place_of("b", 7, None))
    Traceback (most recent call last):
      ...
    pocket_plug.errors.CorruptRecordError: the record's checksum does not match: ..., or its key, version ... was changed
    """
    _, depth, checksum = _unpack_header(record)
    return _pack_header(BOUND, depth, crc32(place, checksum)) + record[HEADER_SIZE:]


def payload_of(record: bytes) -> bytes:
    """The bytes of a record's value, without the header."""
    return record[HEADER_SIZE:]


def is_whole(record: bytes, place: bytes) -> bool:
    """Is a record undamaged, and in its place? It is not decoded.

    >>> from pocket_plug.codec import default_codec
    >>> is_whole(bound(default_codec.encode(5), b"here"), b"here"), is_whole(bound(default_codec.encode(5), b"here"), b"there")
    (True, False)
    """
    if len(record) <= HEADER_SIZE:
        return False
    format, depth, checksum = _unpack_header(record)
    found = crc32(memoryview(record)[HEADER_SIZE:], depth)
    return format in (FORMAT, BOUND) and checksum == (found if format == FORMAT else crc32(place, found))


def sealed(payload: bytes | memoryview, depth: int) -> bytes:
    """The record of a payload."""
    return _pack_header(FORMAT, depth, crc32(payload, depth)) + payload


def opened(record: bytes, place: bytes | None, max_bytes: int, max_depth: int) -> bytes | memoryview:
    """The payload of a record. Raises CorruptRecordError if it is damaged, or bound to another place."""
    if not HEADER_SIZE < len(record) <= max_bytes:
        raise CorruptRecordError(
            f"a record has {HEADER_SIZE + 1} to {max_bytes:,} bytes (max_bytes); this one has {len(record):,}"
        )
    format, depth, checksum = _unpack_header(record)
    payload = (record if len(record) < _SHORT else memoryview(record))[HEADER_SIZE:]
    found = crc32(payload, depth)
    if format == BOUND:
        if place is None:
            raise CorruptRecordError("the record is bound to a key, version and expiry time, but is read without them")
        found = crc32(place, found)
    elif format != FORMAT:
        raise CorruptRecordError(
            f"not a record of this codec: its first byte is {format:#04x}, not {FORMAT:#04x} or {BOUND:#04x}"
        )
    if found != checksum:
        raise CorruptRecordError(
            "the record's checksum does not match: it was damaged or cut off"
            + (", or its key, version or expiry time was changed" if format == BOUND else "")
        )
    if depth > max_depth:
        raise CorruptRecordError(f"the record has containers nested {depth} deep; {max_depth} are allowed (max_depth)")
    return payload


class Sealed:
    """An undamaged record that can't be decoded here: it has an unknown type, for example, or a newer version of one.

    Storing it stores the same `record` again, byte for byte. `error` says what is missing.
    """

    def __init__(self, record: bytes, error: CodecError) -> None:
        self.record = record
        self.error = error
