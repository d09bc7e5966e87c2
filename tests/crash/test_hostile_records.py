"""A file with content that pocket_plug hasn't written: the store answers, or raises an error of pocket_plug."""

from __future__ import annotations

import re
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import pocket_plug as pp
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.codec import default_codec
from pocket_plug.layers import Migrate, Persistence
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Delete, Put

SCRIPT = Path(__file__).parent / "hostile_records.py"


def test_hostile_bytes_in_every_field() -> None:
    """Thousands of changed values, versions, deadlines, keys and counters: no other error, no code execution, no hang, no large
    allocation.
    """
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "2000"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0
    for outcome in ("an answer", "CorruptRecordError", "StoreError"):
        assert outcome in done.stdout


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("value", 17),
        ("value", "a text that is long enough"),
        ("version", "one"),
        ("version", b"1"),
        ("version", 1.5),
        ("expires_at", "never"),
        ("expires_at", b"x"),
    ],
)
def test_a_field_of_the_wrong_type_is_named_and_can_be_repaired(tmp_path: Path, column: str, value: Any) -> None:
    """The error names file and key, for every way of reading; overwriting and deleting both repair it."""
    path = tmp_path / "state.db"
    with pp.SyncStore(f"sqlite:///{path}") as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        for mend in (lambda: store.set("k", 2), lambda: store.delete_many(["k"])):
            store.set("k", 1)
            other.execute(f"UPDATE entries SET {column} = ?", (value,))
            for use in (lambda: store.get("k"), lambda: store.get_many(["k"]), lambda: store.update("k", lambda n: n)):
                with pytest.raises(pp.CorruptRecordError, match=r"state\.db, key 'k': .*(wrong types|a record has)"):
                    use()
            mend()
            assert store.get("k") in (2, None)


@pytest.mark.parametrize("version", ["seven", b"7", -1, 2**63 - 1, 0.5, None])
def test_a_damaged_counter_stops_all_writes(tmp_path: Path, version: Any) -> None:
    """With an invalid counter no version is given; once it is repaired, writes work again."""
    path = tmp_path / "state.db"
    with pp.SyncStore(f"sqlite:///{path}") as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.set("k", 1)
        other.execute(
            "DELETE FROM counter" if version is None else "UPDATE counter SET version = ?",
            () if version is None else (version,),
        )
        for _ in range(2):
            with pytest.raises(pp.StoreError, match=r"state\.db: its counter of versions is damaged"):
                store.set("k", 2)
        assert store.get("k") == 1
        other.execute("INSERT OR REPLACE INTO counter VALUES (1, 9)")
        store.set("k", 3)
        assert store.get("k") == 3


def test_an_invalid_version_does_not_keep_an_entry(tmp_path: Path) -> None:
    """Readers report it as damage. A write-behind write with a version replaces it all the same; so does a delete."""
    path = tmp_path / "state.db"
    backend = SQLite(path)
    with pp.SyncStore(backend) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        for change in (Put("k", 2, None, 5), Delete("k", 5)):
            drive(backend.write([Put("k", 1, None, 1)]))
            drive(backend.write([Put("k", 0, None, 1)]))  # older than the present entry, which stays
            assert store.get("k") == 1
            other.execute("UPDATE entries SET version = ?", (2**63 - 1,))
            with pytest.raises(
                pp.CorruptRecordError, match="it was damaged or cut off, or its key, version or expiry time was changed"
            ):
                store.get("k")
            drive(backend.write([change]))
            assert store.get("k") == (2 if isinstance(change, Put) else None)
            store.delete_many(["k"])


@pytest.mark.parametrize(
    ("column", "value"), [("key", "l"), ("version", 3), ("expires_at", 5.0), ("expires_at", 4e9), ("value", b"other")]
)
def test_a_record_in_a_wrong_place_is_an_error(tmp_path: Path, column: str, value: Any) -> None:
    """Another key, another version, another deadline, the value of another key: for every way of reading, and for every write
    with an expectation. Nothing counts as expired, and so as missing.
    """
    path = tmp_path / "state.db"
    with pp.SyncStore(f"sqlite:///{path}") as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.set("other", "of another key")
        store.set("k", 1)
        if column == "value":
            other.execute("UPDATE entries SET value = (SELECT value FROM entries WHERE key = 'other') WHERE key = 'k'")
        else:
            other.execute(f"UPDATE entries SET {column} = ? WHERE key = 'k'", (value,))
        key = "l" if column == "key" else "k"
        uses: list[Any] = [
            lambda: store.get(key),
            lambda: store.get_many([key]),
            lambda: store.ttl(key),
            lambda: store.has(key),
            lambda: store.update(key, lambda old: old, default=2),
        ]
        if value == 5.0:
            uses += [lambda: drive(store._source.write([Put(key, 2)], {key: 0}))]
            assert key in store.keys()
        for use in uses:
            with pytest.raises(
                pp.CorruptRecordError,
                match=rf"state\.db, key '{key}': .*or its key, version or expiry time was changed",
            ):
                use()
        store.set(key, 5)
        assert store.get(key) == 5


@pytest.mark.parametrize("occurrence", [0, 1])
def test_a_damaged_deadline_removes_nothing(tmp_path: Path, occurrence: int) -> None:
    """It is in the table and in an index, which must agree before an expired entry is removed."""
    path = tmp_path / "state.db"
    deadline = struct.pack(">d", 4e9 + 0.5)
    with pp.SyncStore(f"sqlite:///{path}") as store:
        drive(store._source.write([Put("k", 1, 4e9 + 0.5)]))
    data = path.read_bytes()
    places = [found.start() for found in re.finditer(re.escape(deadline), data)]
    assert len(places) == 2
    path.write_bytes(data[: places[occurrence]] + struct.pack(">d", 5.5) + data[places[occurrence] + 8 :])
    with pp.SyncStore(f"sqlite:///{path}") as store, closing(sqlite3.connect(path)) as other:
        for number in range(100):
            store.set(f"other:{number}", number)
        assert other.execute("SELECT count(*) FROM entries WHERE key = 'k'").fetchone() == (1,)


def test_a_stack_passes_on_the_check_of_its_backend(tmp_path: Path) -> None:
    """Through every layer, tier and queue: a check of the stack reports faults of the file."""
    path = tmp_path / "state.db"
    for layers in (
        ["metrics"],
        [Persistence(to=f"sqlite:///{path}")],
        [Persistence(to=f"sqlite:///{path}", mode="behind")],
    ):
        with pp.SyncStore(f"sqlite:///{path}" if layers == ["metrics"] else "memory://", layers=layers) as store:
            store.set("k", 1)
            drive(store._source.flush())
            assert drive(store._source.check()) == []
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("UPDATE counter SET version = 0")
                assert len(drive(store._source.check())) == 1
                other.execute("UPDATE counter SET version = 9")


def test_a_flipped_bit_never_gives_what_was_not_stored() -> None:
    """Some hundred bits anywhere in a file: each read is right or an error; `check` finds what a damaged index hides."""
    flips = SCRIPT.with_name("flips.py")
    done = subprocess.run(
        [sys.executable, str(flips), "300", "7"], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    numbers = {line[:26].strip(): line[26:].split() for line in done.stdout.splitlines()[1:]}
    assert int(numbers["flips"][-1]) == 300
    assert int(numbers["an error"][-1]) > 50


def test_older_records_are_read_and_bound_as_they_are_written(tmp_path: Path) -> None:
    """A file of an older version still works: each write binds its record, and the layer `migrate` does so when it reads."""
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:

        def formats() -> dict[str, int]:
            return {key: value[0] for key, value in other.execute("SELECT key, value FROM entries")}

        with pp.SyncStore(f"sqlite:///{path}") as store:
            store.set_many({"a": 1, "b": [2], "c": {"d": 3}})
            assert set(formats().values()) == {2}
            for key in "abc":
                other.execute("UPDATE entries SET value = ? WHERE key = ?", (default_codec.encode(store.get(key)), key))
            assert [store.get(key) for key in "abc"] == [1, [2], {"d": 3}]
            assert set(formats().values()) == {1}
            store.set("a", 5)
            assert formats() == {"a": 2, "b": 1, "c": 1}
        with pp.SyncStore(f"sqlite:///{path}", layers=[Migrate()]) as store:
            assert store.get_many(["a", "b"]) == {"a": 5, "b": [2]}
            assert store.get("c") == {"d": 3}
        assert set(formats().values()) == {2}


def test_no_memory_is_allocated_for_an_entry_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak_of: Callable[..., int]
) -> None:
    """A record above the codec's size limit is refused before it is read into memory; it can be deleted."""
    monkeypatch.setattr(default_codec, "max_bytes", 100_000)
    path = tmp_path / "state.db"
    with pp.SyncStore(f"sqlite:///{path}") as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.set("k", 1)
        other.execute("UPDATE entries SET value = zeroblob(20000000)")

        def get() -> None:
            with pytest.raises(pp.StoreError, match=r"state\.db: an entry is larger than pocket_plug allows"):
                store.get("k")

        assert peak_of(get) < 1_000_000
        store.delete_many(["k"])
        assert not store.has("k")
