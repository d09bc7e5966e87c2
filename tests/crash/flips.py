"""Flips single bits of a store's SQLite file: `python tests/crash/flips.py [COUNT] [SEED]`.

After each flip the file is opened, every key is read and all are listed. A read must give the stored value, or raise an error of
pocket_plug. SQLite can't detect some flips, and then a key is not found: such silent misses are counted by the kind of page. It
is also counted how much of the damage `check` finds.
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pocket_plug as pp
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Entry, Put

FAR = 4_000_000_000.0
KINDS = {0x0D: "table", 0x05: "table", 0x0A: "index", 0x02: "index"}
WRONG = ("another value", "another version", "another deadline", "an error that isn't ours")
SILENT = ("a silent miss", "missing from the list", "unknown in the list")


def entries() -> dict[str, tuple[Any, float | None]]:
    """The stored entries: small and large, with and without deadline, over several pages of table and index."""
    chance = random.Random(0)
    return {
        f"key:{chance.randrange(10**6)}:{number}": (
            {"n": number, "text": f"{number} " * chance.choice([1, 5, 30, 200, 4000 if number % 40 == 0 else 8])},
            FAR + number if number % 3 == 0 else None,
        )
        for number in range(120)
    }


def made(path: Path) -> dict[str, Entry]:
    """The file, and the value of each of its keys."""
    backend = SQLite(path, durability="process")
    drive(backend.open())
    for key, (value, deadline) in entries().items():
        drive(backend.write([Put(key, value, deadline)]))
    drive(backend.write([Put(key, 0) for key in ("gone:1", "gone:2")]))
    found = drive(backend.read_many(entries()))
    drive(backend.close())
    return found


def kind_of_page(data: bytes, number: int, size: int) -> str:
    if number == 0:
        return "schema"
    return KINDS.get(data[number * size], "overflow")


def outcomes(path: Path, stored: dict[str, Entry]) -> set[str]:
    """The result of each read."""
    backend = SQLite(path, durability="process")
    seen: set[str] = set()
    try:
        try:
            drive(backend.open())
        except pp.StoreError:
            return {"an error"}
        for key, wanted in stored.items():
            try:
                found = drive(backend.read(key))
            except pp.PocketError:
                seen.add("an error")
            else:
                seen |= compared(found, wanted)
        try:
            names = set(drive(listed(backend))) - {"gone:1", "gone:2"}
        except pp.PocketError:
            seen.add("an error")
        else:
            seen |= {"missing from the list"} if stored.keys() - names else set()
            seen |= {"unknown in the list"} if names - stored.keys() else set()
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        seen.add("an error that isn't ours")
    finally:
        drive(backend.close())
    return seen


async def listed(backend: SQLite) -> list[str]:
    return [name async for name in backend.scan("")]


def compared(found: Entry | None, wanted: Entry) -> set[str]:
    if found is None:
        return {"a silent miss"}
    pairs = zip(
        WRONG,
        (found.value, found.version, found.expires_at),
        (wanted.value, wanted.version, wanted.expires_at),
        strict=False,
    )
    return {what for what, one, other in pairs if one != other}


def main(count: int, seed: int) -> None:
    """Try COUNT flips, and print the results. Exits with 1 if a read gave a value that was never stored."""
    chance = random.Random(seed)
    table: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db"
        stored = made(path)
        data = path.read_bytes()
        size = struct.unpack_from(">H", data, 16)[0]
        for _ in range(count):
            place, bit = chance.randrange(len(data)), chance.randrange(8)
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            for name in ("-wal", "-shm", "-journal"):
                Path(f"{path}{name}").unlink(missing_ok=True)
            path.write_bytes(flipped)
            found = outcomes(path, stored)
            page = kind_of_page(data, place // size, size)
            for outcome in found or {"all as it was"}:
                table[outcome, page] += 1
            if found & {*WRONG, *SILENT} and has_found(path):
                table["of these found by check", page] += 1
            table["flips", page] += 1
    show(table)
    wrong = sum(number for (outcome, _), number in table.items() if outcome in WRONG)
    raise SystemExit(int(wrong > 0))


def has_found(path: Path) -> bool:
    """Does `check` find the damage?"""
    backend = SQLite(path, durability="process")
    try:
        drive(backend.open())
        return bool(drive(backend.check()))
    except pp.StoreError:
        return True
    finally:
        drive(backend.close())


def show(table: Counter[tuple[str, str]]) -> None:
    pages = sorted({page for _, page in table})
    rows = [
        row
        for row in ("flips", "all as it was", "an error", *WRONG, *SILENT, "of these found by check")
        if any(table[row, page] for page in pages)
    ]
    print(f"{'':26}" + "".join(f"{page:>10}" for page in [*pages, "in all"]))
    for row in rows:
        numbers = [table[row, page] for page in pages]
        print(f"{row:26}" + "".join(f"{number:>10,}" for number in [*numbers, sum(numbers)]))


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [2000, 1][len(numbers) :]))
