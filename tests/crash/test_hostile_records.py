"""A file that somebody else has written into: whatever stands there, the store answers or raises an error of ours."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import pocket_plug as pp
from pocket_plug.codec import default_codec

SCRIPT = Path(__file__).parent / "hostile_records.py"


def test_hostile_bytes_in_every_field() -> None:
    """Thousands of altered values, versions, deadlines, keys and counters: no other error, no code, no hang, no memory."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "4000"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0
    for outcome in ("an answer", "CorruptRecordError", "StoreError"):
        assert outcome in done.stdout


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("value", 17), ("value", "a text that is long enough"), ("version", "one"), ("version", b"1"), ("version", 1.5),
        ("expires_at", "never"), ("expires_at", b"x"),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_type_is_named_and_can_be_mended(tmp_path: Path, column: str, value: Any) -> None:
    """File and key stand in the error, by every way of reading; overwriting and removing both help."""
    path = tmp_path / "state.db"
    with pp.SyncStore(f"sqlite:///{path}") as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        for mend in (lambda: store.set("k", 2), lambda: store.delete_many(["k"])):
            store.set("k", 1)
            other.execute(f"UPDATE entries SET {column} = ?", (value,))  # noqa: S608 - a name from above
            for use in (lambda: store.get("k"), lambda: store.get_many(["k"]), lambda: store.update("k", lambda n: n)):
                with pytest.raises(pp.CorruptRecordError, match=r"state\.db, key 'k': .*(wrong types|a record has)"):
                    use()
            mend()
            assert store.get("k") in (2, None)


@pytest.mark.parametrize("version", ["seven", b"7", -1, 2**63 - 1, 0.5, None])
def test_a_damaged_counter_stops_all_writes(tmp_path: Path, version: Any) -> None:
    """No version is given from a counter that is none; once it is mended, writes go on."""
    path = tmp_path / "state.db"
    with pp.SyncStore(f"sqlite:///{path}") as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.set("k", 1)
        other.execute("DELETE FROM counter" if version is None else "UPDATE counter SET version = ?",
                      () if version is None else (version,))  # fmt: skip
        for _ in range(2):
            with pytest.raises(pp.StoreError, match=r"state\.db: its counter is damaged"):
                store.set("k", 2)
        assert store.get("k") == 1
        other.execute("INSERT OR REPLACE INTO counter VALUES (1, 9)")
        store.set("k", 3)
        assert store.get("k") == 3


def test_a_version_from_nowhere_does_not_keep_an_entry(tmp_path: Path) -> None:
    """A delete removes what is there, even if it claims to be newer than anything."""
    path = tmp_path / "state.db"
    with pp.SyncStore(f"sqlite:///{path}") as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.set("k", 1)
        other.execute("UPDATE entries SET version = ?", (2**63 - 1,))
        assert store.delete("k")
        assert not store.has("k")


def test_no_room_is_made_for_an_entry_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the codec would refuse for its size is refused before it is in memory; it can be removed."""
    monkeypatch.setattr(default_codec, "max_bytes", 100_000)
    path = tmp_path / "state.db"
    with pp.SyncStore(f"sqlite:///{path}") as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        store.set("k", 1)
        other.execute("UPDATE entries SET value = zeroblob(20000000)")
        tracemalloc.start()
        try:
            with pytest.raises(pp.StoreError, match=r"state\.db: an entry is larger than any of ours may be"):
                store.get("k")
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
        store.delete_many(["k"])
        assert not store.has("k")
