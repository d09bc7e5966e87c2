"""Limits what decoding a record may cost, before it is decoded: how many items it has, and how many of its keys collide.

A checksum detects damage, not an attack: these limits hold for a forged record too. A record of at most `UNCHECKED` bytes
can't cost much, and is not checked.
"""

from __future__ import annotations

import math
import re
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import msgspec
from msgspec import Raw

from pocket_plug.errors import CorruptRecordError
from pocket_plug.primitives.values import Value

UNCHECKED = 1024
"""The most bytes of a record that is decoded unchecked."""

FEW = 128
"""The most keys of a map, or members of a set, that are not checked for collisions."""

COLLISIONS = 10_000_000
"""Probes that the hash tables of one record may take, beyond 64 for each key. Two for a key are usual, and 25 where all keys
are multiples of 4096."""

# Types whose hash Python seeds for each process: nobody can choose keys of these types that collide.
_SEEDED = frozenset({str, bytes, type(None), bool})

_EACH = 64
_CHUNK = 512
_SUSPICIOUS = 1e-6  # seconds of CPU time for a key; a tenth is usual
_clock = time.thread_time


# ---------------------------------------------------------------- MessagePack, item by item
NESTING = (1, 2, 3, 4, 5, 11, 12)
"""The codes of our extensions that contain MessagePack, whose items are counted too."""

SETS, PAIRS = (3, 4), 5


def _pattern(*parts: str) -> re.Pattern[bytes]:
    """Matches as many of these as follow each other. The repeat is possessive: no memory is used for backtracking."""
    return re.compile(f"(?:{'|'.join(parts)})++".encode("latin-1"), re.DOTALL)


# Items without a length of their own; numbers come first, texts of up to 31 bytes last.
_PLAIN = [
    r"[\x00-\x7f\xe0-\xff\xc0\xc2\xc3]",
    r"[\xcb\xcf\xd3].{8}",
    r"[\xca\xce\xd2].{4}",
    r"[\xcd\xd1].{2}",
    r"[\xcc\xd0].",
    *(rf"\x{0xA0 + size:02x}.{{{size}}}" for size in range(32)),
]
_NESTS = "[" + "".join(rf"\x{code:02x}" for code in NESTING) + "]"
_SMALL_EXTENSIONS = [
    *(rf"\x{0xD4 + power:02x}(?:{_NESTS}|.{{{1 + 2**power}}})" for power in range(5)),
    rf"\xc7.{_NESTS}",
    *(rf"\xc7\x{size:02x}.{{{1 + size}}}" for size in range(33)),
]
_SMALL_CONTAINERS = [r"[\x80-\x9f]", r"\xdc..", r"\xdd....", rf"\xde\x00[\x00-\x{FEW:02x}]"]

_UNCOUNTED = _pattern(*_PLAIN)
_SMALL = _pattern(*_PLAIN, *_SMALL_CONTAINERS, *_SMALL_EXTENSIONS)

_LENGTHS = [struct.Struct(">B"), struct.Struct(">H"), struct.Struct(">I")]
# bytes and texts, each with the place of its length in _LENGTHS
_SIZED = {0xC4: 0, 0xC5: 1, 0xC6: 2, 0xD9: 0, 0xDA: 1, 0xDB: 2}
_EXTENSIONS = {0xC7: 0, 0xC8: 1, 0xC9: 2}


def _number(data: bytes, place: int, which: int) -> tuple[int, int]:
    """The number at a place, and where it ends. It is 0 if the data ends before that."""
    length = _LENGTHS[which]
    end = place + length.size
    return (length.unpack_from(data, place)[0] if end <= len(data) else 0), end


def _items(data: bytes, place: int, skipped: re.Pattern[bytes]) -> Iterator[tuple[int, int, int]]:
    """Each item from a place on that is not `skipped`: its first byte, where the item begins, and where its content begins.

    The next item begins at the content, except after texts, bytes and extensions that don't nest. It ends at bytes that are
    no MessagePack: a decoder stops there too.
    """
    end = len(data)
    while True:
        if (found := skipped.match(data, place)) is not None:
            place = found.end()
        if place >= end:
            return
        head = data[place]
        if head in _SIZED:
            size, place = _number(data, place + 1, _SIZED[head])
            place += size
        elif 0x80 <= head < 0xA0:
            yield head, place, place + 1
            place += 1
        elif 0xDC <= head <= 0xDF:
            inside = place + (3 if head in (0xDC, 0xDE) else 5)
            yield head, place, inside
            place = inside
        elif head in _EXTENSIONS or 0xD4 <= head <= 0xD8:
            size, inside = (
                _number(data, place + 1, _EXTENSIONS[head]) if head in _EXTENSIONS else (1 << head - 0xD4, place + 1)
            )
            yield head, place, inside + 1
            place = inside + 1
            if data[inside : inside + 1] not in _NESTING_BYTES:
                place += size
        else:
            return


_NESTING_BYTES = frozenset(bytes([code]) for code in NESTING)
_PAIRS_BYTE = bytes([PAIRS])
_SET_BYTES = frozenset(bytes([code]) for code in SETS)


def _length(data: bytes, place: int) -> int:
    """How many items or pairs the container there has; 0 where there is none."""
    head = data[place] if place < len(data) else 0
    if 0x80 <= head < 0xA0:
        return head & 15
    return _number(data, place + 1, 1 + (head & 1))[0] if 0xDC <= head <= 0xDF else 0


# ---------------------------------------------------------------- how much there is
_MAPS = bytes(range(0x80, 0x90))
_LIST_HEADS = bytes([*range(0x90, 0xA0), 0xDC, 0xDD])
_OTHERS = re.compile(rb"[\xc7-\xc9\xd4-\xd8\xde\xdf]")


def has_at_most(allowed: int, data: bytes, start: int) -> bool:
    """Are there at most so many items in the MessagePack from `start` on?

    An item is a list, dict, tuple, set or object, each pair of a dict, and each member of a set: each may take from 60 to
    300 bytes of memory for only one byte of a record. Numbers and texts in a list take at most 20 times their bytes, and
    are not counted.
    """
    if _OTHERS.search(data, start) is None:  # nothing but short maps and lists: count the bytes that may begin one
        maps, lists = len(data.translate(None, _MAPS)), len(data.translate(None, _LIST_HEADS))
        if 16 * (len(data) - maps) + len(data) - lists <= allowed:
            return True
    total = 0
    for head, place, inside in _items(data, start, _UNCOUNTED):
        if 0x90 <= head < 0xA0:
            total += 1
        elif 0x80 <= head < 0x90 or head >= 0xDE:
            total += 1 + _length(data, place)
        elif head >= 0xDC or (code := data[inside - 1 : inside]) not in _NESTING_BYTES:
            total += 1
        elif code in _SET_BYTES:  # the list in it is counted as an item itself
            total += 1 + _length(data, inside)
        elif code == _PAIRS_BYTE:
            total += _length(data, inside) // 2
        if total > allowed:
            return False
    return True


# ---------------------------------------------------------------- maps, whose dict is made in C
_LARGE_MAP = re.compile(rf"\xde(?:\x00[\x{FEW + 1:02x}-\xff]|[\x01-\xff].)|\xdf".encode("latin-1"), re.DOTALL)
_of_texts = msgspec.msgpack.Decoder(dict[str, Raw]).decode


class _Name:
    """Replaces a key while keys are gathered: no two are equal."""

    __slots__ = ()


def may_have_large_map(data: bytes, start: int) -> bool:
    """Could there be a map of more than `FEW` pairs? If False, there is none."""
    if data.find(b"\xde", start) < 0 and data.find(b"\xdf", start) < 0:  # as in any text
        return False
    return any(
        2 * _length(data, found.start()) < len(data) - found.start() for found in _LARGE_MAP.finditer(data, start)
    )


def check_maps(data: bytes, start: int, ext_hook: Callable[[int, memoryview], Any]) -> None:
    """Refuse a record with a map of many keys that were made to collide.

    Today's records have lists of pairs for dicts of many keys, unless all keys are texts; older records have maps.
    """
    view = memoryview(data)
    for head, place, _ in _items(data, start, _SMALL):
        if head >= 0xDE:
            try:
                _of_texts(view[place:])
            except msgspec.ValidationError:
                keys = _gathered(view[place:], ext_hook)
                made_dict(keys, keys)
            except msgspec.DecodeError:  # about what follows the map
                pass


def _gathered(data: memoryview, ext_hook: Callable[[int, memoryview], Any]) -> list[Value]:
    """The keys of a map, in order, up to the first that can't be read."""
    keys: list[Value] = []

    def gather(_: type, key: Any) -> _Name:
        hash(key)
        keys.append(key)
        return _Name()

    with suppress(Exception):  # about what follows the map; any other error the decoder will raise too
        msgspec.msgpack.Decoder(dict[_Name, Raw], dec_hook=gather, ext_hook=ext_hook).decode(data)
    return keys


# ---------------------------------------------------------------- keys that collide
class _Left(threading.local):
    steps = math.inf


_left = _Left()


@contextmanager
def counted(left: float | None = None) -> Generator[_Left]:
    """A block that reads or writes one record: the probes of all its keys are counted together. Elsewhere none are counted."""
    former, _left.steps = _left.steps, COLLISIONS if left is None else left
    try:
        yield _left
    finally:
        _left.steps = former


def made_set(members: Sequence[Value]) -> set[Value]:
    """The set of a list's members. Raises CorruptRecordError where they were made to collide."""
    if len(members) <= FEW:
        return set(members)
    made: set[Value] = set()
    _grow(members, lambda part: made.update(members[part]), is_set=True)
    return made


def made_dict(keys: Sequence[Value], values: Sequence[Value]) -> dict[Value, Value]:
    """The dict of as many keys as values. Raises CorruptRecordError for keys made to collide."""
    if len(keys) <= FEW:
        return dict(zip(keys, values, strict=True))
    made: dict[Value, Value] = {}
    _grow(keys, lambda part: made.update(zip(keys[part], values[part], strict=True)), is_set=False)
    return made


def _grow(keys: Sequence[Value], add: Callable[[slice], None], *, is_set: bool) -> None:
    """Add all keys, a part at a time. If a part is slow the probes are counted: only their number, not time, refuses a record."""
    is_known = _SEEDED.issuperset(map(type, keys)) or _left.steps == math.inf
    for start in range(0, len(keys), _CHUNK):
        began = _clock()
        add(slice(start, start + _CHUNK))
        if not is_known and _clock() - began > _CHUNK * _SUSPICIOUS:
            is_known = True
            _left.steps -= steps_of(list(map(hash, keys)), int(_left.steps), is_set=is_set)
            if _left.steps < 0:
                raise CorruptRecordError(
                    f"a {'set' if is_set else 'dict'} of {len(keys):,} has keys that collide: a hash table of them takes "
                    f"more than {COLLISIONS:,} comparisons"
                )


def steps_of(hashes: Sequence[int], allowed: int, *, is_set: bool) -> int:
    """How many steps CPython's set or dict takes for keys of these hashes, beyond 64 for each; stops counting at `allowed`.

    It grows and looks for places as `Objects/dictobject.c` and `setobject.c` do.

    >>> steps_of(range(0, 2**40, 2**28), 1000, is_set=False)
    0
    >>> steps_of([5] * 200, 10**6, is_set=False) > 200 * 200 / 2
    True
    """
    table = _Table(8)
    taken = 0
    step = table.step_of_set if is_set else table.step_of_dict
    for number, each in enumerate(hashes, 1):
        taken += step(each)
        if table.is_full(number, is_set=is_set):
            table = _Table(_size(number, is_set=is_set))
            step = table.step_of_set if is_set else table.step_of_dict
            for former in islice(hashes, number):
                taken += step(former)
                if taken - _EACH * number > allowed:
                    break
        if taken - _EACH * number > allowed:
            return taken - _EACH * number
    return max(0, taken - _EACH * len(hashes))


class _Table:
    """The hashes in a hash table, each where CPython puts it."""

    def __init__(self, size: int) -> None:
        self.mask = size - 1
        self.slots: list[int | None] = [None] * size

    def step_of_dict(self, value: int) -> int:
        """Insert a hash; returns how many places that it tried were taken already."""
        slots, mask = self.slots, self.mask
        rest = value & _WORD
        place, steps = rest & mask, 0
        while slots[place] is not None:
            steps += 1
            rest >>= 5
            place = (place * 5 + rest + 1) & mask
        slots[place] = value
        return steps

    def step_of_set(self, value: int) -> int:
        """The same for a set, which looks at ten places in a row: one step for the row, and one for each equal hash in it."""
        slots, mask = self.slots, self.mask
        rest = value & _WORD
        place, steps = rest & mask, 0
        while True:
            row = slots[place : place + 10] if place + 9 <= mask else slots[place : place + 1]
            if None in row:
                free = row.index(None)
                slots[place + free] = value
                return steps + row[:free].count(value)
            steps += 1 + row.count(value)
            rest >>= 5
            place = (place * 5 + rest + 1) & mask

    def is_full(self, used: int, *, is_set: bool) -> bool:
        return used * 5 >= self.mask * 3 if is_set else used >= (self.mask + 1) * 2 // 3


def _size(used: int, *, is_set: bool) -> int:
    """The size of the next table."""
    wanted = (used * (2 if used > 50_000 else 4) + 1) if is_set else used * 3
    return 1 << max(3, (wanted - 1).bit_length())


_WORD = 2**64 - 1
