"""The backend itself: its options and its URL, and its operations, which use the modules beside this one.

Reads happen in place. A write is one transaction (`writer`). Values are the codec's bytes. A plugin module, like any other.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote

from pocket_plug.errors import CodecError, ConfigError, ConflictError, StoreBusyError, StoreError
from pocket_plug.primitives.files import located, make_file, make_folder
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.urls import one_of, seconds, url_options
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry, ProbeResult, is_expected

from .backup import Copied, copy_whole
from .connections import Connections, abandon
from .files import check_path
from .opened import OpenedFile
from .records import Records, encoded
from .refusals import REFUSALS, is_read_only
from .schema import is_new
from .statements import FREE, HIGHEST, READ, READ_MANY, READ_PAGE, READ_PAGE_BACK, SCAN, SCAN_BACK, STRAY, VERSION
from .transactions import Compaction, Request, Settlement, Transactions
from .writer import Writer

Durability = Literal["power", "process"]

PAGE = 256
"""How many keys a scan reads from the file at a time, at most."""

_INCREMENTAL = 2  # of a file's `auto_vacuum`


class SQLite(Backend):
    """Entries in the SQLite file at `path`, which is created with its folder if there is none.

    `durability` names the failure that an acknowledged write survives: "power" (also a crash of the machine) or
    "process" (a crash of this process; about five times as fast). `timeout`, in seconds, is how long a write waits for
    another process that is writing, before StoreBusyError.

    As a URL: `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite:///state.db?durability=process&timeout=30`.
    Raises ConfigError for invalid options; `open` raises StoreError for another program's file.

    >>> SQLite.from_url("sqlite:///state.db?durability=process")
    SQLite('state.db', durability='process')
    """

    inline_read = True
    needs_loop = False
    survives = True
    system = "sqlite"

    def __init__(self, path: str | os.PathLike[str], *, durability: Durability = "power", timeout: float = 5.0) -> None:
        one_of("sqlite", "durability", durability, get_args(Durability))
        seconds("sqlite", "timeout", timeout)
        self.path = located(os.fspath(path))
        check_path(self.path)
        self.durability: Durability = durability
        self._file = OpenedFile(self.path, durability == "power")
        self._connections = Connections(self._file, timeout)
        self._rows = self._connections.rows
        self._records = Records(self.path)
        self._transactions = Transactions(self._connections, self._records)
        self._writer = Writer(self._connections, self._transactions)

    @classmethod
    def from_url(cls, url: str) -> SQLite:
        """The backend that a URL names. Raises ConfigError, with the option that was probably meant."""
        address, options = url_options(url, "sqlite", {"durability": str, "timeout": float})
        scheme, _, name = address.partition(":///")
        path = unquote(name)
        if scheme.lower() != "sqlite" or not path or path == ":memory:":
            raise ConfigError(
                f"{public_url(url)!r} names no file; write sqlite:///relative.db or sqlite:////absolute.db "
                "(memory:// for memory)"
            )
        return cls(path, **options)

    def __repr__(self) -> str:
        return f"SQLite({self.path!r}, durability={self.durability!r})"

    @property
    def timeout(self) -> float:
        """How many seconds a write waits for another process that is writing."""
        return self._connections.timeout

    # ------------------------------------------------------------ opening and closing
    async def open(self) -> None:
        """Open the file; create it if there is none. Raises StoreError for another program's file or a newer schema."""
        if self._file.is_open:
            return
        try:
            make_folder(self._file.absolute.parent)
        except OSError as error:
            raise StoreError(f"{self.path}: its folder can't be created: {error}") from error
        with suppress(OSError):  # SQLite says what is wrong
            make_file(self._file.absolute)
        self._connections.open()

    async def probe(self, patience: float) -> ProbeResult:
        """Read the header of the file, without a lock and without its log, so that no file is created beside it."""
        file = self._file.absolute
        if not file.exists():
            folder = next(each for each in file.parents if each.exists())
            if not os.access(folder, os.W_OK | os.X_OK):
                raise StoreError(
                    f"{self.path}: there is no such file, and it can't be created: {folder} is not writable"
                )
            return ProbeResult("SQLite file, not created yet", is_new=True, durability=self.durability)
        for needed in (file, file.resolve().parent):  # SQLite puts its log beside the file
            if not os.access(needed, os.W_OK):
                raise StoreError(f"{self.path}: {needed} can't be written; check its permissions")
        try:
            connection = sqlite3.Connection(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)
            try:
                found_new = is_new(connection, self.path)
            finally:
                connection.close()
        except REFUSALS as error:
            raise self._connections.explained(error) from error
        return ProbeResult(f"SQLite {sqlite3.sqlite_version}", is_new=found_new, durability=self.durability)

    async def close(self) -> None:
        """Write what is queued, then close the file. Can be called again if it was interrupted."""
        await self._writer.close()

    async def own(self) -> None:
        """Lock an empty file beside this one, `state.db-owner`. The lock ends with the process; forked children don't have it."""
        with self._connections.lock:  # no fork can come in between
            self._file.own()

    # ------------------------------------------------------------ reading
    async def read(self, key: str) -> Entry | None:
        """One look-up, in the caller's thread."""
        rows = self._rows(READ, ((str(key),),))
        if not rows:
            return None
        row = rows[0]
        now = 0 if row[2] is None else self.clock()  # most have no deadline, and the clock would be 1 % of a read
        return self._records.entry(key, row, now)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """All entries as of one moment."""
        now, as_entry = self.clock(), self._records.entry
        entries: dict[str, Entry] = {}
        for row in self._rows_of(keys):
            if (entry := as_entry(row[0], row[1:], now)) is not None:
                entries[row[0]] = entry
        return entries

    def _rows_of(self, keys: Iterable[str]) -> list[tuple[Any, ...]]:
        return self._rows(READ_MANY, [(str(key), str(key)) for key in keys])

    async def read_page(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int
    ) -> list[tuple[str, Entry | None]]:
        """One range of the index, as of one moment."""
        now, as_entry = self.clock(), self._records.entry
        statement = READ_PAGE_BACK if reverse else READ_PAGE
        rows = self._rows(statement, ((*_bounds(prefix, after, reverse), limit),))
        return [(row[0], as_entry(row[0], row[1:], now)) for row in rows]

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """Page by page, so that a slow reader keeps no old state of the file alive."""
        given, size = 0, PAGE if limit is None else min(limit, PAGE)
        while given != limit:
            page = self._rows(SCAN_BACK if reverse else SCAN, ((*_bounds(prefix, after, reverse), size),))
            now = self.clock()
            for key, expires_at in page:
                if type(expires_at) is not float or now < expires_at or not await self._has_expired(key):
                    yield key
                    given += 1
                    if given == limit:
                        return
            if len(page) < size:
                return
            after, size = page[-1][0], PAGE

    async def _has_expired(self, key: str) -> bool:
        """Has an entry expired? No if its record is damaged, whatever its expiry time: then a read of it is an error."""
        try:
            return await self.read(key) is None
        except CodecError:
            return False

    async def check(self) -> list[str]:
        """The faults that SQLite finds in its file, keys that are missing from its index, and a counter that is too low."""
        faults = [line for (line,) in self._rows("PRAGMA integrity_check", ((),)) if line != "ok"]
        for statement, what in STRAY.items():
            faults += [f"key {key!r} {what}" for (key,) in self._rows(statement, ((),))]
        ((highest,),) = self._rows(HIGHEST, ((),))
        counter = self._stored()  # after the entries: others may write in between, and the counter never decreases
        if type(highest) is int and highest > counter:
            faults.append(f"the counter of versions is {counter:,}, but an entry has version {highest:,}")
        return faults

    async def version(self) -> int:
        """The last version that a write got. If another instance has reserved versions, this makes it reserve new ones.

        That takes a write, and then each write of that instance changes the version. A process that may only read gets the
        last reserved version, and so does one that waits in vain for the lock.
        """
        version, is_exact = self._version()
        if is_exact:
            return version
        try:
            return await self._writer.done(Settlement(self.clock))
        except StoreError as error:
            if isinstance(error, StoreBusyError) or is_read_only(error.__cause__):
                return version
            raise

    def _version(self) -> tuple[int, bool]:
        """The last version that a write got, and True; or the last one that another instance has reserved, and False."""
        return self._transactions.given(self._stored())

    def _stored(self) -> int:
        return self._records.counter(self._rows(VERSION, ((),)))

    # ------------------------------------------------------------ writing
    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """One transaction, committed before this returns. Raises StoreBusyError if the file stays locked."""
        if not changes:
            return await self._check(expect)
        return await self._writer.done(Request(self.clock, [*map(encoded, changes)], expect))

    async def _check(self, expect: Mapping[str, int]) -> int:
        # Read first, so that it isn't newer than what is checked. It may be, if another instance has reserved versions: to
        # find out which of them it has used would take a write.
        current, _ = self._version()
        now = self.clock()
        seen = {
            key: version
            for key, record, version, expires_at in self._rows_of(expect)
            if self._records.is_alive(key, record, version, expires_at, now)
        }
        if changed := [key for key, version in expect.items() if not is_expected(seen.get(key, 0), version)]:
            raise ConflictError(changed)
        return current

    def turn(self, names: Collection[str]) -> AbstractAsyncContextManager[None]:
        """The writer thread begins a transaction and keeps it open for the next write of this caller, one second at most."""
        return self._writer.turn()

    async def compact(self, size: int) -> int:
        """Move the file's last pages to free ones, and shorten it. Not for a file that an older version has made."""
        ((mode, free, _),) = self._rows(FREE, ((),))
        if not free or mode != _INCREMENTAL:
            return 0
        request = Compaction(self.clock, size)
        await self._writer.done(request)
        return request.freed

    def backup(self, file: str | os.PathLike[str], copied: Copied = lambda done, total: None) -> int:
        """Copy all entries, as of one moment, into a new SQLite file; returns its size in bytes.

        Others can read and write meanwhile, here and in other processes; the log beside the file grows until it is done. After
        an error there is no new file. It blocks: in a program with an event loop call it by `asyncio.to_thread`. `copied` is
        called now and then with the number of pages copied since its last call, and the total. Raises ConfigError if the
        new file exists already, or its folder doesn't, and StoreError if the copy can't be written.
        """
        path = Path(file).absolute()
        connection = self._connections.connected()
        try:
            return copy_whole(connection, path, copied)
        except (*REFUSALS, OSError) as error:
            raise StoreError(
                f"{self.path}: no backup was written to {path} ({type(error).__name__}: {error})"
            ) from error
        finally:
            abandon(connection)


def _bounds(prefix: str, after: str, reverse: bool) -> tuple[str, str, bytes]:
    """The bounds of a scan: its lowest name and, in two parts, what all names are below. The index leads to both."""
    if reverse:
        is_within = after and (after < prefix or after.startswith(prefix))
        return (prefix, after, b"") if is_within else (prefix, prefix, b"\xff")
    return max(prefix, after + "\0" if after else ""), prefix, b"\xff"  # with a NUL it is the name that comes next
