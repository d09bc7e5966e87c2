"""A disk that loses unsynced data: SQLite writes through it, and it can produce the files that a power failure would leave."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest

from pocket_plug.backends.sqlite import connections

WRITING = apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE


@dataclass
class Write:
    """Bytes written to a file, not yet synced."""

    offset: int
    data: bytes

    def onto(self, content: bytearray) -> None:
        content.extend(bytes(max(0, self.offset - len(content))))
        content[self.offset : self.offset + len(self.data)] = self.data


@dataclass
class Truncate:
    """A truncation, not yet synced."""

    size: int

    def onto(self, content: bytearray) -> None:
        del content[self.size :]


@dataclass
class File:
    """The content that the disk has for certain, and the later writes."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)


class Cursor(apsw.Cursor):
    """With the methods of the standard library's cursor that the backend uses."""

    @property
    def rowcount(self) -> int:
        return self.connection.changes()


class Connection(apsw.Connection):
    """The same."""

    def setlimit(self, category: int, limit: int) -> int:
        return self.limit(category, limit)

    @property
    def is_open(self) -> bool:
        try:
            _ = self.in_transaction
        except apsw.ConnectionClosedError:
            return False
        return True

    @property
    def is_closing(self) -> bool:
        return not self.is_open


class LosingDisk:
    """Records everything that SQLite does to its files, by a VFS, and produces what may be left of them at any moment.

    The backend's own code runs over it, with its statements and pragmas, but by apsw: it has a SQLite of its own, which accepts a
    VFS in Python.
    """

    def __init__(self) -> None:
        self.log: list[Any] = []
        """In order: (file, what was done to it), and whatever else was noted."""

    @contextmanager
    def recording(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Files that are opened in the block are on this disk."""
        log = self.log

        class Recorded(apsw.VFSFile):
            def __init__(self, name: Any, flags: list[int]) -> None:
                path = name.filename() if isinstance(name, apsw.URIFilename) else name
                self.name = Path(path).name
                super().__init__("", name, flags)

            def xWrite(self, data: bytes, offset: int) -> None:
                log.append((self.name, Write(offset, bytes(data))))
                super().xWrite(data, offset)

            def xTruncate(self, newsize: int) -> None:
                log.append((self.name, Truncate(newsize)))
                super().xTruncate(newsize)

            def xSync(self, flags: int) -> None:
                super().xSync(flags)
                log.append((self.name, "sync"))

        class Recording(apsw.VFS):
            def xOpen(self, name: Any, flags: list[int]) -> Recorded:
                return Recorded(name, flags)

            def xDelete(self, filename: str, syncdir: bool) -> None:
                super().xDelete(filename, syncdir)
                log.append((Path(filename).name, "delete"))

        def connect(url: str, **_: Any) -> apsw.Connection:
            connection = Connection(url, flags=WRITING, vfs=name)
            connection.cursor_factory = Cursor
            return connection

        name = f"losing-{id(self)}"
        vfs = Recording(name, "")
        standing_in = {**vars(connections.sqlite3), "Error": apsw.Error}
        with monkeypatch.context() as patched:
            patched.setattr(connections, "sqlite3", SimpleNamespace(**standing_in))
            patched.setattr(connections, "_Connection", connect)
            try:
                yield
            finally:
                vfs.unregister()

    def power_failures(self, folder: Path, moments: set[int], chance: random.Random) -> Iterator[list[Any]]:
        """For each moment, a position in the log: what was noted until then, with `folder` as the failure leaves it.

        Of the unsynced writes all are lost, or some, in any order, and the last one perhaps by half.
        """
        files: dict[str, File] = {}
        noted: list[Any] = []
        for moment, happened in enumerate(self.log):
            if not isinstance(happened, tuple):
                noted.append(happened)
            else:
                self._replay(files, *happened)
            if moment in moments:
                for file in folder.iterdir():
                    file.unlink()
                for name, file in files.items():
                    (folder / name).write_bytes(_left_of(file, chance))
                yield noted

    def _replay(self, files: dict[str, File], name: str, what: Any) -> None:
        if what == "delete":
            files.pop(name, None)
            return
        file = files.setdefault(name, File())
        if what != "sync":
            file.pending.append(what)
            return
        for each in file.pending:
            each.onto(file.synced)
        file.pending.clear()


def _left_of(file: File, chance: random.Random) -> bytes:
    content = bytearray(file.synced)
    kept = chance.choice([0.0, 0.5, 0.9, 1.0])
    for each in file.pending:
        if chance.random() < kept:
            if isinstance(each, Write) and chance.random() < 0.2:
                each = Write(each.offset, each.data[: chance.randrange(len(each.data) + 1)])
            each.onto(content)
    return bytes(content)


@pytest.fixture
def losing_disk() -> LosingDisk:
    """A disk for one test."""
    return LosingDisk()
