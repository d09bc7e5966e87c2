"""A backup of an open SQLite store: it shows one moment, is complete or doesn't exist, and nobody waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocket_plug import SyncStore
from pocket_plug.backends.sqlite import SQLite, backup
from pocket_plug.errors import ConfigError, StoreError
from pocket_plug.store import parts
from pocket_plug.store.backend import Copyable

MANY = 300


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "PAGES", 10)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SyncStore]:
    """A store of some hundred pages, whose last writes are in the log."""
    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
        store.set_many({f"page:{number}": "x" * 2000 for number in range(MANY)})
        yield store


def sqlite_of(store: SyncStore) -> SQLite:
    backend = parts(store.stack)[-1]
    assert isinstance(backend, SQLite)
    assert isinstance(backend, Copyable)
    return backend


def test_a_backup_is_of_one_moment_while_others_write(store: SyncStore, tmp_path: Path) -> None:
    """Two entries that are always written together are equal in it, however much is written meanwhile, also by another
    connection. It doesn't restart with each write, and writers never wait.
    """
    store.set_many({"left": 0, "right": 0})
    steps: list[int] = []
    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as other:

        def write(pages: int, total: int) -> None:
            steps.append(pages)
            assert len(steps) < 1000, "it begins anew with each write"
            for each in (store, other):
                each.set_many({"left": len(steps), "right": len(steps), f"page:{MANY + len(steps)}": "y" * 2000})

        size = sqlite_of(store).backup(tmp_path / "backup.db", write)
    assert len(steps) > 10
    assert sum(steps) * 4096 == size == (tmp_path / "backup.db").stat().st_size
    with SyncStore(f"sqlite:///{tmp_path}/backup.db") as copy:
        assert (copy.get("left"), copy.get("right")) == (0, 0)
        assert copy.count() == MANY + 2
    assert store.get("left") == len(steps)


def test_a_backup_is_one_file_for_its_owner_alone(store: SyncStore, tmp_path: Path) -> None:
    """No other file belongs to it, and nobody else can read it."""
    (tmp_path / "kept").mkdir()
    sqlite_of(store).backup(tmp_path / "kept" / "backup.db")
    (file,) = (tmp_path / "kept").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["backup.db", "backup.db-wal", "backup.db-journal"])
def test_nothing_is_overwritten(store: SyncStore, tmp_path: Path, name: str) -> None:
    """Neither a file of that name, nor a file that SQLite would take for its log: it would be applied to the backup."""
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(ConfigError, match=f"{name} exists.*nothing is overwritten"):
        sqlite_of(store).backup(tmp_path / "backup.db")
    assert (tmp_path / name).read_text() == "somebody's"
    assert sorted(path.name for path in tmp_path.glob("backup*")) == [name]


@pytest.mark.parametrize("can_link", [True, False])
def test_a_file_that_appears_meanwhile_is_left_alone(
    store: SyncStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_link: bool
) -> None:
    """For example by two backups at once; also on a file system without hard links."""
    if not can_link:
        monkeypatch.delattr(os, "link")
    with pytest.raises(ConfigError, match="exists"):
        sqlite_of(store).backup(tmp_path / "backup.db", lambda *_: (tmp_path / "backup.db").write_text("theirs"))
    assert (tmp_path / "backup.db").read_text() == "theirs"
    assert sqlite_of(store).backup(tmp_path / "another.db") > 0
    assert [path.name for path in tmp_path.iterdir() if "~" in path.name] == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_backup_leaves_nothing(store: SyncStore, tmp_path: Path, interrupt: type[BaseException]) -> None:
    """The file doesn't exist, no other file is left, and the store can be written."""
    steps = 0

    def stop(_pages: int, _total: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise interrupt

    (tmp_path / "kept").mkdir()
    with pytest.raises(interrupt):
        sqlite_of(store).backup(tmp_path / "kept" / "backup.db", stop)
    assert list((tmp_path / "kept").iterdir()) == []
    store.set("after", 1)
    assert sqlite_of(store).backup(tmp_path / "kept" / "backup.db") > 0


def test_a_killed_backup_leaves_no_file_of_that_name(store: SyncStore, tmp_path: Path) -> None:
    """If it is killed in the middle, no file has that name; the partial file has a ~ in its name."""
    program = (
        "import os, signal, sys; from pocket_plug.backends.sqlite import SQLite; "
        "SQLite(sys.argv[1]).backup(sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))"
    )
    (tmp_path / "kept").mkdir()
    command = [sys.executable, "-c", program, str(tmp_path / "state.db"), str(tmp_path / "kept" / "backup.db")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "kept").iterdir()]
    assert left
    assert all("~" in name for name in left)


def test_a_backup_to_a_missing_folder_names_it(store: SyncStore, tmp_path: Path) -> None:
    """The error names the folder that doesn't exist."""
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere; create it"):
        sqlite_of(store).backup(tmp_path / "nowhere" / "backup.db")


def test_a_backup_of_a_removed_file_is_refused(store: SyncStore, tmp_path: Path) -> None:
    """The file in the place of an open store's file is another store, or missing."""
    (tmp_path / "state.db").rename(tmp_path / "gone.db")
    with pytest.raises(StoreError, match=r"state\.db"):
        sqlite_of(store).backup(tmp_path / "backup.db")
    assert not (tmp_path / "backup.db").exists()
    (tmp_path / "gone.db").rename(tmp_path / "state.db")
