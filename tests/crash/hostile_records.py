"""Hostile bytes in every field of SQLite's records: `make fuzz`, or `python tests/crash/hostile_records.py [CASES] [SEED]`.

Another connection changes a record's value, version and deadline, its key, and the counter, to data that pocket_plug would never
write; then the store is used. Each operation must return or raise an error of pocket_plug. An audit hook ends the process if a
module is imported, code compiled or a program started; memory and time are limited. The figures are printed at the end.
"""

from __future__ import annotations

import enum
import random
import resource
import signal
import sqlite3
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
import numpy as np
from pydantic import BaseModel, PrivateAttr

import pocket_plug as pp
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.codec import default_codec, register_type
from pocket_plug.codec.bounds import NESTING
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Delete, Put

SECONDS = 5
"""CPU time that one case may take."""

ROOM = 200 * 1024 * 1024
"""Bytes of memory that all cases together may take, beyond what there was before the first one."""

LARGEST = 500_000
"""Bytes of a record that is made up. What it takes goes with its size: up to some hundred times as much."""

FORBIDDEN = {"compile", "exec", "os.exec", "os.posix_spawn", "os.system", "pickle.find_class", "socket.connect",
             "subprocess.Popen", "ctypes.dlopen", "marshal.loads"}  # fmt: skip


@dataclass
class Order:
    id: str
    parts: Any


class Pair(NamedTuple):
    left: Any
    right: Any


class Row(msgspec.Struct):
    cells: Any


class Colour(enum.Enum):
    RED = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any


class Model(BaseModel, extra="allow"):
    a: Any
    b: Any = None
    _c: Any = PrivateAttr(default=1)


for each in (Order, Pair, Row, Colour, Access, Frozen, Model):
    register_type(each, tag=f"hostile.{each.__name__}")


class Nest:
    """An extension that contains MessagePack, decoded."""

    def __init__(self, code: int, inside: Any) -> None:
        self.code, self.inside = code, inside


VALUES: list[Any] = [
    5, "text", [1, 2.5, None, {"a": b"b"}], (1, {2, 3}, frozenset({4})), {(1, 2): [3]}, 2**80, 1 + 2j, Decimal("1.5"),
    datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), time(1, tzinfo=UTC), date(2024, 1, 1), timedelta(1),
    UUID(int=1), bytearray(b"x"), Colour.RED, Order("x", [Pair(1, 2), Row([Colour.RED])]), [[[[(((1,),),)]]]],
    Access.READ | Access.WRITE, Model(a=1, extra=[2]), [Model(a={"b": 1})], {Frozen(1, (2,)): 1},
    timezone(timedelta(hours=1), "x"), np.arange(6, dtype=">i2").reshape(2, 3), np.float32(2.5), np.bytes_(b"a\0"),
    np.str_("a"), np.void(b"ab"), np.datetime64("2024-02-29", "D"), np.zeros(3, "V0"),
    np.zeros(2, [("a", "<i4"), ("b", [("c", "U2", (2, 2))])]), {2**61 * n: 0 for n in range(200)},
    dict.fromkeys(range(300)), {f"key {n}": [n] for n in range(300)}, set(range(300)), [Decimal(n) for n in range(100)],
    {(n, n): {n} for n in range(150)}, [[]] * 2000,
]  # fmt: skip
RECORDS = [default_codec.encode(value) for value in VALUES]
SCALARS: list[Any] = [
    0, 1, -1, 2**63 - 1, -(2**63), 0.5, 1e308, float("inf"), float("-inf"), "", "1", "abc", "2**9", b"", b"\0", b"\xff" * 9,
]  # fmt: skip
TEXTS = [b"", b"\xff\xfe", b"\xed\xa0\x80", b"k\x00k", b"pocket:", "k\u202e".encode(), b"'; DROP TABLE entries; --"]
HUGE: list[Any] = [
    2_000_000_000, -1, 2**63, 1e308, float("nan"), None, b"", b"9" * 3000, "9" * 3000, "|S2000000000", "<U500000000", "|V0",
    {}, Nest(17, b"1E+999999999999999999"), Nest(17, b"9" * 3000), Nest(6, b"\x7f" * 3000), Nest(0, [1, 2] * 2000),
]  # fmt: skip
CLAIMS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xc1",
]


def mutated(chance: random.Random, data: bytes) -> bytes:
    """One to three bytes changed, removed or inserted, or a claimed length that is wrong."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(found) + 1)
        match chance.randrange(4):
            case 0:
                found[place : place + 1] = chance.randbytes(1)
            case 1:
                del found[place : place + chance.randint(1, 4)]
            case 2:
                found[place:place] = chance.randbytes(chance.randint(1, 4))
            case _:
                found[place : place + 1] = chance.choice(CLAIMS)
    return bytes(found)


def opened(value: Any) -> Any:
    """The result of msgspec for a payload, with extensions decoded and maps as lists of pairs, so that
    everything can be changed.
    """
    if isinstance(value, msgspec.msgpack.Ext):
        if value.code in NESTING:
            return Nest(value.code, opened(msgspec.msgpack.decode(value.data)))
        return Nest(value.code, value.data)
    if isinstance(value, list):
        return [opened(item) for item in value]
    if isinstance(value, dict):
        return Nest(0, [opened(part) for pair in value.items() for part in pair])
    return value


def closed(value: Any) -> bytes:
    """The payload again."""
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(closed, value))
    if not isinstance(value, Nest):
        return msgspec.msgpack.encode(value)
    if value.code == 0 and isinstance(value.inside, list):
        return b"\xdf" + struct.pack(">I", len(value.inside) // 2) + b"".join(map(closed, value.inside))
    inside = value.inside if isinstance(value.inside, bytes) else closed(value.inside)
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(value.code, inside))


def altered(chance: random.Random, value: Any) -> Any:
    """One part of it changed: to another type, to a huge one, to many copies of itself, or to another extension code."""
    inside = value.inside if isinstance(value, Nest) else value
    if isinstance(inside, list) and inside and chance.random() < 0.85:
        place = chance.randrange(len(inside))
        inside = [*inside[:place], altered(chance, inside[place]), *inside[place + 1 :]]
        return Nest(value.code, inside) if isinstance(value, Nest) else inside
    if isinstance(value, Nest) and not isinstance(inside, bytes) and chance.random() < 0.5:
        return Nest(value.code, altered(chance, inside))
    match chance.randrange(5):
        case 0:
            return chance.choice(HUGE)
        case 1:
            return [value] * chance.choice([0, 2, 100, 3000])
        case 2:
            return Nest(chance.randrange(20), inside)
        case 3:
            return Nest(
                chance.choice([3, 4, 5]),
                [Nest(6, (n * (2**61 - 1)).to_bytes(12, "big")) for n in range(chance.choice([9, 600]))],
            )
        case _:
            return opened(msgspec.msgpack.decode(chance.choice(RECORDS)[6:]))


def hostile_value(chance: random.Random) -> Any:
    """A damaged record, or a made-up one with a valid checksum; or no blob at all."""
    record = chance.choice(RECORDS)
    match chance.randrange(10):
        case 0:
            return chance.choice(SCALARS)
        case 1:
            return chance.randbytes(chance.randrange(40))
        case 2:
            return mutated(chance, record)
        case 3:
            return record.decode("latin-1")
        case 5 | 6 | 7:
            payload = closed(altered(chance, opened(msgspec.msgpack.decode(record[6:]))))
            payload = payload if len(payload) < LARGEST else record[6:]
        case 4:
            payload = chance.choice([b"\x91", b"\xd4\x02", b"\x81\xa1k"]) * chance.choice([10, 1000, 100_000])
        case _:
            payload = mutated(chance, record[6:])
    depth = chance.choice([record[1], 0, 255])
    return struct.pack(">BBI", 1, depth, zlib.crc32(payload, depth)) + payload


def alter(chance: random.Random, other: sqlite3.Connection) -> str:
    """Write one record, and perhaps the counter, with data that pocket_plug would never write; returns a description."""
    key = chance.choice(TEXTS) if chance.random() < 0.1 else b"k"
    value = hostile_value(chance)
    version = chance.choice(SCALARS) if chance.random() < 0.3 else 1
    expires_at = chance.choice(SCALARS) if chance.random() < 0.3 else None
    other.execute("INSERT INTO entries VALUES (CAST(? AS TEXT), ?, ?, ?)", (key, value, version, expires_at))
    counter: Any = 10
    if chance.random() < 0.1:
        counter = chance.choice([None, *SCALARS])
        if counter is None:
            other.execute("DELETE FROM counter")
        else:
            other.execute("UPDATE counter SET version = ?", (counter,))
    return f"key {key!r}, value {value!r:.200}, version {version!r}, expires_at {expires_at!r}, counter {counter!r}"


async def keys_of(backend: SQLite) -> list[str]:
    return [key async for key in backend.scan("")]


def uses(backend: SQLite, store: pp.SyncStore) -> list[Callable[[], Any]]:
    """The operations of a program on a record."""
    return [
        lambda: store.get("k"),
        lambda: drive(backend.read_many(["k", "there"])),
        lambda: store.ttl("k"),
        lambda: drive(keys_of(backend)),
        lambda: drive(backend.version()),
        lambda: store.update("k", lambda value: value),
        lambda: drive(backend.write([Put("there", 1)], {"k": 1})),
        lambda: drive(backend.write([Put("k", 2, None, 3)])),
        lambda: drive(backend.write([Delete("k", 3)])),
        lambda: drive(backend.write([Put("there", 1)])),
        lambda: store.delete("k"),
    ]


def restore(other: sqlite3.Connection) -> None:
    other.execute("DELETE FROM entries")
    other.execute("INSERT OR REPLACE INTO counter VALUES (1, 10)")


watching = False


def refuse_code(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: while the store is used, nothing may be imported, compiled or started."""
    if watching and (event in FORBIDDEN or (event == "import" and not str(arguments[0]).startswith("tzdata"))):
        raise SystemExit(f"code ran: {event} {arguments!r:.200}")


def used_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def attempt(case: int, store: pp.SyncStore, backend: SQLite, other: sqlite3.Connection, ended: Counter[str]) -> float:
    """One case: a record is changed, and used in every way. Returns the seconds of CPU that the uses took.

    Raises SystemExit for any other result than the allowed ones.
    """
    global watching
    chance = random.Random(case)
    restore(other)
    altered = alter(chance, other)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # without a handler it ends the process
    began = process_time()
    for number, use in enumerate(uses(backend, store)):
        watching = True
        try:
            use()
            ended["an answer"] += 1
        except pp.PocketError as error:
            ended[type(error).__name__] += 1
        except Exception as error:
            raise SystemExit(f"case {case}, use {number}: {type(error).__name__}: {error}, of {altered}") from error
        finally:
            watching = False
    signal.setitimer(signal.ITIMER_PROF, 0)  # making the next record may take longer
    return process_time() - began


def main(cases: int, seed: int) -> None:
    """Try this many cases."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db"
        backend = SQLite(path, durability="process")
        ended: Counter[str] = Counter()
        slowest = (0.0, 0)
        with pp.SyncStore(backend) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA synchronous = OFF")
            with suppress(ZoneInfoNotFoundError):
                ZoneInfo("Mars/Base")
            # from here on, modules that are imported on first use have been imported
            for case in range(seed, seed + 300):
                attempt(case, store, backend, other, ended)
            sys.addaudithook(refuse_code)
            before = used_memory()
            for case in range(seed, seed + cases):
                slowest = max(slowest, (attempt(case, store, backend, other, ended), case))
                if used_memory() > before + ROOM:
                    raise SystemExit(f"case {case}: {used_memory() - before:,} bytes of memory were taken")
            taken = used_memory() - before
    print(f"{cases:,} cases:", ", ".join(f"{number:,} {what}" for what, number in ended.most_common()))
    print(
        f"at most {slowest[0] * 1000:.0f} ms of CPU (case {slowest[1]}) for the {len(uses(backend, store))} uses of a record"
    )
    print(f"{taken / 2**20:.0f} MiB of memory in all")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [3000, 1][len(numbers) :]))
