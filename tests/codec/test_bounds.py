"""Limits for made-up records: memory, time and items. The tests count, and don't measure time."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any

import pytest
from msgspec.msgpack import Ext
from msgspec.msgpack import encode as to_msgpack

from pocket_plug.codec import Codec, bounds
from pocket_plug.codec.bounds import steps_of
from pocket_plug.errors import CodecError, CorruptRecordError

MODULUS = 2**61 - 1
"""Ints that differ by a multiple of it have the same hash."""


@dataclass(frozen=True)
class Point:
    x: Any
    y: Any


def record(payload: bytes, depth: int = 4) -> bytes:
    """A record with a valid checksum, as an attacker would make it."""
    return struct.pack(">BBI", 1, depth, zlib.crc32(payload, depth)) + payload


def many(item: bytes, number: int) -> bytes:
    """A list of this many items."""
    return b"\xdd" + struct.pack(">I", number) + item * number


# ---------------------------------------------------------------- the number of items
ITEMS = {
    "lists": (b"\x90", 1), "dicts": (b"\x80", 1), "a pair": (b"\x81\0\0", 2), "decimals": (b"\xd4\x111", 1),
    "bytearrays": (b"\xc7\0\x08", 1), "tuples": (b"\xd4\x02\x90", 1), "sets": (b"\xd4\x03\x90", 2),
    "members": (b"\xd5\x03\x91\0", 3), "frozensets": (b"\xd5\x04\x91\0", 3), "long lists": (b"\xdc\0\0", 1),
    "pairs": (b"\xc7\x03\x05\x92\0\0", 2), "long dicts": (b"\xde\0\0", 1),
    "big ints": (b"\xd8\x06" + b"\x01" * 16, 1), "dates": (b"\xc7\x0a\x0d2024-01-01", 1), "longest": (b"\xdf\0\0\0\0", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ITEMS)
def test_items_of_a_record_are_counted_before_they_are_made(name: str, peak_of: Callable[..., int]) -> None:
    """`max_items` are allowed; one more is refused before any item is made."""
    item, each = ITEMS[name]
    number = 5_000
    codec = Codec(max_items=number * each + 1)
    assert len(codec.decode(record(many(item, number)))) == number
    codec.max_items -= 1
    refused = record(many(item, number))

    def decode() -> None:
        with pytest.raises(CorruptRecordError, match=r"more than [0-9,]+ containers, pairs and objects \(max_items\)"):
            codec.decode(refused)

    assert peak_of(decode) < 40_000  # the least that making them takes is 43 kB, for tuples


def test_a_value_with_more_items_is_refused_where_it_is_written() -> None:
    """A value that couldn't be read isn't written, with the same count; numbers and texts in a list don't count."""
    codec = Codec(max_items=1000)
    for value in ([[]] * 1000, [{"a": 1}] * 500, {i: i for i in range(1000)}, set(range(1000)), [Decimal(1)] * 1000):
        with pytest.raises(CodecError, match=r"more than 1,000 containers, pairs and objects \(max_items\)"):
            codec.encode(value)
    for value in (list(range(5000)), ["ab"] * 5000, [1.5] * 5000, [[]] * 900, "x" * 5000, bytes(5000)):
        assert codec.decode(codec.encode(value)) == value


def test_a_record_that_can_not_be_counted_is_left_to_the_decoder() -> None:
    """Truncated, or not MessagePack: the codec's usual error."""
    codec = Codec(max_items=10)
    whole = many(b"\xd4\x111", 9)
    for payload in (whole[:-1], b"\xdd\0\0", b"\xc1" * 20, b"\xc7" * 20, b"\xdf\0\0\0\x02" + b"\xc4" * 20):
        with pytest.raises(CorruptRecordError):
            codec.decode(record(payload))


# ---------------------------------------------------------------- keys with colliding hashes
def big(number: int) -> Ext:
    return Ext(6, (number * MODULUS).to_bytes(12, "big"))


def decimal(number: int) -> Ext:
    return Ext(17, str(number * MODULUS).encode())


def flat(keys: Iterable[Any]) -> list[Any]:
    return list(chain.from_iterable((key, 0) for key in keys))


def as_map(keys: list[Any]) -> bytes:
    return b"\xdf" + struct.pack(">I", len(keys)) + b"".join(to_msgpack(key) + b"\0" for key in keys)


N = 1500
COLLIDING = {
    "a set": to_msgpack(Ext(3, to_msgpack([big(i) for i in range(N)]))),
    "a frozenset": to_msgpack(Ext(4, to_msgpack([decimal(i) for i in range(N)]))),
    "a dict": to_msgpack(Ext(5, to_msgpack(flat(big(i) for i in range(N))))),
    "a map": as_map([big(i) for i in range(N)]),
    "a map in a list": b"\x92\xc0" + as_map([big(i) for i in range(N)]),
    "a map in a tuple": to_msgpack(Ext(2, b"\x91" + as_map([big(i) for i in range(N)]))),
    "a map among many numbers": many(b"\xcd\xde\xde", 1)[:4] + b"\x02" + b"\xcd\xde\xde" + as_map([big(i) for i in range(N)]),
    "tuples": to_msgpack(Ext(3, to_msgpack([Ext(2, to_msgpack([big(i)])) for i in range(N)]))),
    "objects": to_msgpack(Ext(3, to_msgpack([Ext(1, to_msgpack(["Point", 1, {"x": big(i), "y": 0}])) for i in range(N)]))),
    "many sets": many(to_msgpack(Ext(3, to_msgpack([big(i) for i in range(500)]))), 10),
}  # fmt: skip


@pytest.mark.parametrize("name", COLLIDING)
def test_keys_made_to_collide_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any container: each key takes a step per colliding key, and the steps of a record are limited."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(bounds, "_clock", lambda: next(ticks))  # as if all steps were slow
    monkeypatch.setattr(bounds, "COLLISIONS", 300_000)
    codec = Codec(declared=[Point])
    with pytest.raises(CorruptRecordError, match="has keys that collide: a hash table of them takes more than 300,000"):
        codec.decode(record(COLLIDING[name]))


HONEST: dict[str, Any] = {
    "ids": set(range(10_000)), "random": {random.Random(1).getrandbits(62) for _ in range(10_000)},
    "pages": {number << 12: number for number in range(10_000)}, "far": {number << 45 for number in range(10_000)},
    "halves": {number / 2: 0 for number in range(10_000)}, "names": {f"k{i}": i for i in range(10_000)},
    "grid": {(x, y): 0 for x in range(100) for y in range(100)}, "money": frozenset(Decimal(i) / 100 for i in range(5000)),
    "points": {Point(x, -x) for x in range(3000)}, "big": {2**70 + number for number in range(5000)},
    "poor": {i % 50 * MODULUS + i // 50 for i in range(5000)}, "bytes": {bytes([i]): i for i in range(200)},
    "mixed": {**{i: i for i in range(300)}, **{str(i): i for i in range(300)}, None: 1}, "negative": {-i for i in range(5000)},
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_ordinary_keys_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the machine is so slow that each part is checked: time alone refuses nothing."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(bounds, "_clock", lambda: next(ticks))
    codec = Codec(declared=[Point])
    value = [HONEST[name], 1.5]
    assert codec.decode(codec.encode(value)) == value
    if isinstance(HONEST[name], dict):
        assert list(codec.decode(codec.encode(value))[0]) == list(HONEST[name])


def test_a_map_of_many_numbers_of_an_older_record_is_read() -> None:
    """Older versions wrote such a dict as a map, whose keys are checked before it is made."""
    value = {number * 7: str(number) for number in range(2000)}
    older = record(to_msgpack(value))
    codec = Codec()
    assert codec.decode(older) == value
    assert codec.decode(record(to_msgpack({"in": value, 1: [value]}))) == {"in": value, 1: [value]}
    assert codec.encode(value) != older


def test_steps_are_those_that_cpython_takes() -> None:
    """The count compared with CPython: keys with one hash are compared as often as the count says."""
    compared = 0

    class Same:
        def __hash__(self) -> int:
            return 7

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return self is other

    keys = [Same() for _ in range(400)]
    for make, is_set in ((dict.fromkeys, False), (set, True)):
        compared = 0
        make(keys)
        counted = steps_of([7] * 400, 10**6, is_set=is_set) + 64 * 400
        assert compared <= counted <= 3 * compared  # moving a key to a larger table is counted, but needs no comparison


def test_the_next_record_has_steps_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of one record don't count for another."""
    monkeypatch.setattr(bounds, "_SUSPICIOUS", -1.0)
    monkeypatch.setattr(bounds, "COLLISIONS", 200_000)
    codec = Codec()
    bad = record(to_msgpack(Ext(3, to_msgpack([big(i) for i in range(500)]))))
    for _ in range(5):
        assert len(codec.decode(bad)) == 500


def test_what_is_no_record_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A private copy is never refused, nor a short record because of earlier ones; after a refused record
    the next one is read.
    """
    monkeypatch.setattr(bounds, "_SUSPICIOUS", -1.0)
    monkeypatch.setattr(bounds, "COLLISIONS", 10_000)
    poor = {Decimal(number * MODULUS) for number in range(300)}
    codec = Codec()
    short = record(to_msgpack(Ext(3, to_msgpack(list(range(200))))))
    refused = record(to_msgpack(Ext(3, to_msgpack([big(i) for i in range(400)]))))
    assert len(short) < bounds.UNCHECKED
    for _ in range(3):
        with pytest.raises(CorruptRecordError):
            codec.decode(refused)
        with pytest.raises(CodecError):
            codec.encode(poor)
        assert codec.private([poor]) == [poor]
        assert codec.decode(short) == set(range(200))


def test_keys_that_collide_are_refused_where_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class with a bad hash: a value that couldn't be read isn't written, and the message says where it is."""
    monkeypatch.setattr(bounds, "_SUSPICIOUS", -1.0)
    monkeypatch.setattr(bounds, "COLLISIONS", 10_000)
    poor = {Decimal(number * MODULUS) for number in range(400)}
    for value in (poor, frozenset(poor), dict.fromkeys(poor)):
        with pytest.raises(CodecError, match=r"value\['in'\]: a (set|dict) of 400 has keys that collide") as caught:
            Codec().encode({"in": value})
        assert type(caught.value) is CodecError
