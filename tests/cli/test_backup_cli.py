"""`pocket-plug store backup`: copies a store's file while it is in use; the same command restores it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pocket_plug import SyncStore
from pocket_plug.cli import main
from pocket_plug.layers import Persistence
from pocket_plug.plugins.pocket import set_default_pocket

URL = "sqlite:///state.db?durability=process"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    set_default_pocket(None)


def backup(*arguments: str, url: str = URL, code: int = 0) -> None:
    assert main(["store", "--url", url, "backup", *arguments]) == code


def test_an_open_store_is_backed_up_and_restored(capsys: pytest.CaptureFixture[str]) -> None:
    """The new file has what the store had at that moment, and the same command restores it once the old files are removed."""
    with SyncStore(URL) as store:
        store.set("a", 1)
        backup("backup.db")
        store.set("a", 2)
    assert re.search(r"backed up sqlite:///state\.db\S* to backup\.db: [\d,]+ bytes", capsys.readouterr().err)
    backup("state.db", url="sqlite:///backup.db", code=2)
    assert "state.db exists; nothing is overwritten: give another name, or remove it" in capsys.readouterr().err
    Path("state.db").unlink()
    backup("state.db", url="sqlite:///backup.db")
    with SyncStore(URL) as store:
        assert store.get("a") == 1


def test_a_log_left_behind_has_to_be_removed_before_a_restore(capsys: pytest.CaptureFixture[str]) -> None:
    """SQLite would apply it to the restored file, so it has to be removed first; the message says so."""
    with SyncStore(URL) as store:
        store.set("a", 1)
        backup("backup.db")
    Path("state.db").unlink()
    Path("state.db-wal").write_bytes(b"of another life")
    backup("state.db", url="sqlite:///backup.db", code=2)
    said = capsys.readouterr().err
    assert "state.db-wal exists, which SQLite would take for a part of" in said
    assert "remove it" in said


@pytest.mark.parametrize(
    ("url", "tools"),
    [
        ("redis://127.0.0.1:1/0", "BGSAVE"),
        ("postgresql://127.0.0.1:1/nowhere", "pg_dump"),
    ],
)
def test_a_server_has_tools_of_its_own(url: str, tools: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names them, and the way that works with every store; no request is sent to the server."""
    backup("backup.db", url=url, code=2)
    said = capsys.readouterr().err
    assert "is not a file that can be copied" in said
    assert tools in said
    assert "pocket-plug store export --all" in said
    assert not Path("backup.db").exists()


def test_queued_writes_are_reported_as_missing_in_the_backup(capsys: pytest.CaptureFixture[str]) -> None:
    """The last writes of a write-behind store are in its process only; after a flush they are in the backup."""
    with SyncStore(layers=[Persistence(to=URL, mode="behind")]) as store:
        store.set("a", 1)
        store.flush()
        backup("backup.db")
    assert "writes that wait in its process aren't in the backup" in capsys.readouterr().err
    with SyncStore("sqlite:///backup.db") as copy:
        assert copy.get("a") == 1


def test_a_store_in_memory_has_nothing_to_back_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Its entries are in another process's memory."""
    backup("backup.db", url="memory://", code=2)
    assert "is in memory" in capsys.readouterr().err


def test_a_folder_as_target_of_a_backup_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty name means the current folder, which nobody should be told to remove; a missing folder is named."""
    with SyncStore(URL) as store:
        store.set("a", 1)
    backup("", code=2)
    said = capsys.readouterr().err
    assert f"{tmp_path} is a folder; name a new file, such as {tmp_path / 'backup.db'}" in said
    assert "remove" not in said
    backup("nowhere/backup.db", code=2)
    assert f"there is no folder {tmp_path / 'nowhere'}; create it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["state.db"]
