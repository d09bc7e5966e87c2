"""A disk that loses what was not synced: SQLite writes through it, and what a power failure would leave is made of it."""

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
    """Bytes that a file was given, not yet synced."""

    offset: int
    data: bytes

    def onto(self, content: bytearray) -> None:
        content.extend(bytes(max(0, self.offset - len(content))))
        content[self.offset : self.offset + len(self.data)] = self.data


@dataclass
class Truncate:
    """The same of a file that was cut off."""

    size: int

    def onto(self, content: bytearray) -> None:
        del content[self.size :]


@dataclass
class File:
    """What the disk has for certain, and what it was asked to write since."""

    synced: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list)


class Cursor(apsw.Cursor):
    """One that has what the backend uses of the standard library's besides."""

    @property
    def rowcount(self) -> int:
        return self.connection.changes()


class Connection(apsw.Connection):
    """The same."""

    def setlimit(self, category: int, limit: int) -> int:
        return self.limit(category, limit)


class LosingDisk:
    """Records all that SQLite does to its files, by a VFS, and says what may be left of them at any moment.

    The backend's own code runs over it, with its statements and pragmas, but by apsw: that brings a SQLite of its own,
    into which a VFS in Python can be put.
    """

    def __init__(self) -> None:
        self.log: list[Any] = []
        """In order: (file, what was done to it), and whatever else was noted."""

    @contextmanager
    def recording(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """What is opened in the block lies on this disk."""
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
        standing_in = {**vars(connections.sqlite3), "connect": connect, "Error": apsw.Error}
        with monkeypatch.context() as patched:
            patched.setattr(connections, "sqlite3", SimpleNamespace(**standing_in))
            try:
                yield
            finally:
                vfs.unregister()

    def power_failures(self, folder: Path, moments: set[int], chance: random.Random) -> Iterator[list[Any]]:
        """For each moment, a position in the log: what was noted until then, with `folder` as the failure left it.

        Of what was not synced all is lost, or some of it, in any order, the last write perhaps by half.
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
    """A disk of one test's own."""
    return LosingDisk()
