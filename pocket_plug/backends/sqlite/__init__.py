"""The backend in one SQLite file, which any number of threads, loops and processes may share.

Reads happen in place. A write is one transaction: in place where that stops nobody, else in one writer thread, which
commits all that wait as one. In a turn that thread begins the transaction before the caller reads. Values are the codec's
bytes. A plugin module, as any third party's.

SQLite's locks belong to a process, and in a forked child its library believes that it holds its parent's. So no connection
may be open at a fork: all are closed before, and opened again when they are needed.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from operator import methodcaller
from pathlib import Path
from random import uniform
from time import monotonic
from typing import Any, Literal, get_args
from urllib.parse import unquote

from pocket_plug.backends.urls import one_of, seconds, url_options
from pocket_plug.codec import bound, default_codec, place_of
from pocket_plug.errors import (
    CodecError,
    ConfigError,
    ConflictError,
    StoreBusyError,
    StoreClosedError,
    StoreError,
)
from pocket_plug.hookspecs import hookimpl
from pocket_plug.primitives.files import located, make_file, make_folder
from pocket_plug.primitives.forking import Taken, is_under_way, new_rlock, release, take, take_part, wait_for_fork
from pocket_plug.primitives.locks import Lock
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.waiting import Waiter, may_block, wake
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry, ProbeResult, Put, is_expected

from .backup import Copied, copy_whole
from .files import Folder, Identity, Ownership, check_path, identity_of, is_at
from .records import Execute, Records, encoded
from .refusals import REFUSALS, explained, is_busy, is_read_only
from .schema import is_new, prepare
from .statements import (
    COUNT,
    DELETE,
    DELETE_IF_NOT_NEWER,
    FREE,
    PUT,
    PUT_IF_NEWER,
    READ,
    READ_MANY,
    REAP,
    SCAN,
    SCAN_BACK,
    SHRINK,
    STRAY,
    VERSION,
)

Durability = Literal["power", "process"]

_INCREMENTAL = 2  # of a file's `auto_vacuum`

PAGE = 256
"""How many keys a scan reads from the file at a time, at most."""

REAP_EVERY = 16
"""After so many changes, up to twice as many expired entries are removed."""

LOOK_EVERY = 0.05
"""Reads check at most once in so many seconds whether the file is still in its place. A write checks each time."""

RESERVED = 1024
"""So many versions are reserved at a time, at least. Where the stored counter is a multiple of it, some may be left."""

RESERVE_AFTER = 16
"""Versions are reserved by who has made so many commits in a row, while no other instance has made one."""

LONGEST_TURN = 1.0
"""Seconds for which a turn keeps the file locked, at most."""

LONGEST_PAUSE = 0.01
"""Seconds between two tries to lock a file that another process has locked, at most: random, so that all who wait are equals.
The pauses of SQLite's own busy handler grow to 100 ms, and who writes without a break has locked the file again meanwhile."""

_WAIT = 0.1  # seconds after which a turn looks whether its time is over or a fork is about to be

_left_alone: list[_Connection] = []
"""In a forked child: connections that the parent used at the fork. Closing them here could release the parent's locks."""

_forbidden: set[Identity | None] = set()
"""Their files. They can't be opened here: SQLite in this process takes the parent's locks on them for its own."""


class _Connection(sqlite3.Connection):
    """A connection that can be referred to weakly and knows whether it is open."""

    is_open = True

    def close(self) -> None:
        super().close()
        self.is_open = False


class _Request:
    """One write: what is asked, and what became of it."""

    __slots__ = ("changes", "error", "expect", "is_queued", "version", "waiter")
    waiter: Waiter[None]

    def __init__(self, changes: Sequence[Change], expect: Mapping[str, int]) -> None:
        self.changes = changes
        self.expect = expect
        self.version = 0
        self.is_queued = False
        self.error: Exception | None = None

    def outcome(self) -> int:
        if self.error is not None:
            raise self.error
        return self.version

    def serve(self, execute: Execute, version: int) -> int:
        """Do what one without changes asks for, in the open transaction; gives the last version after it."""
        raise NotImplementedError


class _Compaction(_Request):
    """The request to give free pages back."""

    __slots__ = ("freed", "size")

    def __init__(self, size: int) -> None:
        super().__init__((), NO_EXPECTATIONS)
        self.size, self.freed = size, 0

    def serve(self, execute: Execute, version: int) -> int:
        self.freed = _shrink(execute, self.size)
        return version


class _Settlement(_Request):
    """The request for the last version given, where another instance may have some reserved: that one must reserve anew."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__((), NO_EXPECTATIONS)

    def serve(self, execute: Execute, version: int) -> int:
        self.version = version + _is_reserved(version)
        return self.version


class _Turn:
    """A time in which the writer thread keeps the file locked for one caller, until that has written or is over."""

    __slots__ = ("is_over", "request", "waiter")

    def __init__(self) -> None:
        self.waiter: Waiter[None] = Waiter()
        self.request: _Request | None = None
        self.is_over = False


_UNKNOWN = (0, -1)

_had: ContextVar[_Turn | None] = ContextVar("pocket_plug.turn", default=None)
"""The turn that the current call is in."""


class SQLite(Backend):
    """Entries in the SQLite file at `path`, made with its folder where there is none.

    `durability` names the failure that an acknowledged write survives: "power" (also a crash of the machine) or
    "process" (a crash of this process; about five times as fast). `timeout`, in seconds, is how long a write waits for
    another process that is writing, before StoreBusyError.

    As a URL: `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite:///state.db?durability=process&timeout=30`.
    Raises ConfigError for invalid options; `open` raises StoreError for a file that is not ours.

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
        self.timeout = timeout
        self._absolute = Path(self.path).absolute()  # a later chdir must not lead to another file
        self._records = Records(self.path)
        self._open = False
        self._name, self._log = str(self._absolute), ""
        self._file: Identity | None = None
        self._log_file: Identity | None = None  # since the first commit by its writer
        self._folder: Folder | None = None  # with `power` only
        self._look_next = 0.0
        self._ownership: Ownership | None = None
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._readers: list[sqlite3.Cursor] = []  # those not in use, each of a connection of its own
        self._writer: sqlite3.Cursor | None = None  # None after a fork too, until it is needed
        self._begin_locks()
        self._versions = _UNKNOWN  # the last that it has given, and where its last commit has left the stored counter
        self._alone = 0  # its commits in a row
        self._unreaped = 0
        self._queue: list[_Request] = []
        self._turns: list[_Turn] = []
        self._turn: _Turn | None = None  # the one that is being had
        self._thread: threading.Thread | None = None
        self._closers: list[Waiter[None]] = []
        take_part(self)

    def _begin_locks(self) -> None:
        self._writing = Lock()  # held by whoever uses the writer
        # guards the queue, the connections and `_open`; reentrant: garbage collection withdraws
        self._lock = new_rlock()
        self._queued = threading.Condition(self._lock)

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

    # ------------------------------------------------------------ opening and closing
    async def open(self) -> None:
        """Open the file; make it where there is none. Raises StoreError for a foreign file or a newer schema."""
        if self._open:
            return
        try:
            make_folder(self._absolute.parent)
        except OSError as error:
            raise StoreError(f"{self.path}: its folder can't be made: {error}") from error
        with suppress(OSError):  # SQLite says what is wrong
            make_file(self._absolute)
        deadline = monotonic() + self.timeout
        while True:
            connection = self._connected()
            try:
                prepare(connection, self.path, self.durability == "power")
                break
            except REFUSALS as error:
                _abandon(connection)
                # Of two processes that turn on WAL at once, SQLite refuses one without waiting.
                if not is_busy(error) or monotonic() >= deadline:
                    raise self._explained(error) from error
                time.sleep(0.005)  # noqa: ASYNC251 - some milliseconds, once in a file's life
            except BaseException:
                _abandon(connection)
                raise
        try:
            resolved = self._absolute.resolve()
            self._file, self._log = identity_of(self._name), f"{resolved}-wal"
            is_linked = resolved != self._absolute  # a link may lead elsewhere while this folder stays as it is
            self._folder = Folder(str(resolved.parent)) if self.durability == "power" and not is_linked else None
            self._writer = connection.cursor()
            self._open = True
        except BaseException:
            _abandon(connection)
            raise

    async def probe(self, patience: float) -> ProbeResult:
        """Look at the head of the file, without a lock and without its log: so no file is made beside it."""
        if not self._absolute.exists():
            folder = next(each for each in self._absolute.parents if each.exists())
            if not os.access(folder, os.W_OK | os.X_OK):
                raise StoreError(f"{self.path}: there is no such file, and none can be made: {folder} can't be written")
            return ProbeResult("SQLite file, not made yet", is_new=True, durability=self.durability)
        for needed in (self._absolute, self._absolute.resolve().parent):  # SQLite puts its log beside the file
            if not os.access(needed, os.W_OK):
                raise StoreError(f"{self.path}: {needed} can't be written; check its permissions")
        try:
            connection = sqlite3.connect(f"{self._absolute.as_uri()}?mode=ro&immutable=1", uri=True)
            try:
                found_new = is_new(connection, self.path)
            finally:
                connection.close()
        except REFUSALS as error:
            raise self._explained(error) from error
        return ProbeResult(f"SQLite {sqlite3.sqlite_version}", is_new=found_new, durability=self.durability)

    async def own(self) -> None:
        """Lock an empty file beside this one, `state.db-owner`. The lock ends with the process; forked children don't have it."""
        try:
            with self._lock:  # no fork can come in between
                self._ownership = Ownership(f"{self._absolute.resolve()}-owner")
        except BlockingIOError:
            raise StoreBusyError(
                f"{self.path} is owned by another store that writes behind, here or in another process; close that one, "
                "or share it"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.path}: it can't be owned: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        """A new connection, after a fork that is under way. The caller must hold no lock."""
        while True:
            with self._lock:
                if not is_under_way():
                    return self._connect()
            wait_for_fork()

    def _connect(self) -> sqlite3.Connection:
        """The same for a caller that holds the lock and has checked that no fork is under way."""
        if _forbidden and identity_of(self._name) in _forbidden:
            raise self._forked_in_use()
        if self._open:
            self._look()
        try:
            connection = sqlite3.connect(
                f"{self._absolute.as_uri()}?mode=rw",
                uri=True,
                timeout=self.timeout,
                isolation_level=None,
                check_same_thread=False,  # used by one thread at a time, but not always by the same
                factory=_Connection,
            )
        except REFUSALS as error:
            raise self._explained(error) from error
        self._connections.add(connection)
        # No room is made for what the codec would refuse, and some is for the key beside it.
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, default_codec.max_bytes + 1024 * 1024)
        return connection

    async def close(self) -> None:
        """Write what is queued, then close the file. Can be called again if it was interrupted."""
        finished: Waiter[None] = Waiter()
        with self._lock:
            self._open = False
            thread = self._thread
            if thread is not None:
                self._closers.append(finished)
                self._queued.notify_all()
        try:
            if thread is not None:
                await finished.shielded()
                thread.join()
        finally:
            self._close_readers()
            with self._writing:
                self._close_writer()
                if self._ownership is not None:
                    self._ownership.release()
                    self._ownership = None

    def _close_readers(self) -> None:
        while self._readers:
            with suppress(IndexError):  # another thread has just taken the last one, and will close it
                _close(self._readers.pop())

    def _close_writer(self) -> None:
        if self._writer is None:
            return
        _close(self._writer)
        self._writer = None
        log, self._log_file = self._log_file, None
        # If the file was moved away SQLite leaves its log, and would later take it for the log of another file in that place.
        if log is not None and not is_at(self._name, self._file) and is_at(self._log, log):
            for name in (self._log, f"{self._log.removesuffix('-wal')}-shm"):
                Path(name).unlink(missing_ok=True)

    # ------------------------------------------------------------ where the file is, and forks of this process
    def _look(self) -> None:
        """Raise StoreError where the file isn't in its place any more, or not the one that was opened."""
        if not is_at(self._name, self._file):
            raise self._moved(self.path) if self._open else self._not_open()
        self._look_next = monotonic() + LOOK_EVERY

    def _moved(self, what: str) -> StoreError:
        return StoreError(
            f"{what} was deleted, moved or replaced while it was open, so nothing can be stored there, and what was may "
            "be lost; put the right file in its place, close this store, and open it again"
        )

    def rest(self) -> bool:
        """Before a fork: close every connection that is not in use. Gives True if none was."""
        held: Taken = []
        try:
            take((self._lock,), held)
            if not held:
                return False
            self._close_readers()
            take((self._writing,), held)
            if len(held) == 2:
                self._close_writer()
            return not self._in_use()
        finally:
            release(held)

    def _in_use(self) -> list[_Connection]:
        return [connection for connection in self._connections if connection.is_open]

    def begin_anew(self) -> None:
        """After a fork, in the child: what is queued and owned is the parent's."""
        if in_use := self._in_use():
            _left_alone.extend(in_use)
            _forbidden.add((self._file if self._open else None) or identity_of(self._name))
            self._open = False
        self._begin_locks()
        self._queue, self._turns, self._turn, self._thread, self._closers = [], [], None, None, []
        self._readers, self._writer, self._versions = [], None, _UNKNOWN
        if self._ownership is not None:
            self._ownership.leave()
            self._ownership = None

    # ------------------------------------------------------------ reading
    async def read(self, key: str) -> Entry | None:
        """One look-up in place."""
        rows = self._rows(READ, ((str(key),),))
        if not rows:
            return None
        record, version, expires_at = rows[0]
        return self._records.entry(key, record, version, expires_at, 0 if expires_at is None else self.clock())

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """All as they were at one moment."""
        now, as_entry = self.clock(), self._records.entry
        entries: dict[str, Entry] = {}
        for key, record, version, expires_at in self._rows_of(keys):
            entry = as_entry(key, record, version, expires_at, now)
            if entry is not None:
                entries[key] = entry
        return entries

    def _rows_of(self, keys: Iterable[str]) -> list[tuple[Any, ...]]:
        return self._rows(READ_MANY, [(str(key), str(key)) for key in keys])

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """Page by page, so that a slow reader keeps no old state of the file alive."""
        given, size = 0, PAGE if limit is None else min(limit, PAGE)
        while given != limit:
            page = self._rows(SCAN_BACK if reverse else SCAN, ((*_bounds(prefix, after, reverse), size),))
            now = self.clock()
            for key, expires_at in page:
                if type(expires_at) is not float or now < expires_at or not await self._has_ended(key):
                    yield key
                    given += 1
                    if given == limit:
                        return
            if len(page) < size:
                return
            after, size = page[-1][0], PAGE

    async def _has_ended(self, key: str) -> bool:
        """Has an entry expired? Where its deadline says so, but its record is damaged: no, and reading it is an error."""
        try:
            return await self.read(key) is None
        except CodecError:
            return False

    async def check(self) -> list[str]:
        """What SQLite finds wrong with its file, keys that its index has lost, and a counter that has gone back."""
        faults = [line for (line,) in self._rows("PRAGMA integrity_check", ((),)) if line != "ok"]
        for statement, what in STRAY.items():
            faults += [f"key {key!r} {what}" for (key,) in self._rows(statement, ((),))]
        counter = self._stored()
        ((highest,),) = self._rows("SELECT max(version) FROM entries", ((),))
        if type(highest) is int and highest > counter:
            faults.append(f"the counter is at {counter:,}, and an entry has version {highest:,}")
        return faults

    async def version(self) -> int:
        """The last one given. Where another instance has reserved some, it must reserve anew: each of its writes changes this.

        That takes a write. Who may only read gets the last one that is reserved, and so does who waits in vain for the lock.
        """
        version, is_exact = self._version()
        if is_exact:
            return version
        try:
            return await self._done(_Settlement())
        except StoreError as error:
            if isinstance(error, StoreBusyError) or is_read_only(error.__cause__):
                return version
            raise

    def _version(self) -> tuple[int, bool]:
        """The last one given, and True; else up to which one another instance has reserved some."""
        stored = self._stored()
        given, counter = self._versions
        return (given, True) if counter == stored else (stored, not _is_reserved(stored))

    def _stored(self) -> int:
        return self._records.counter(self._rows(VERSION, ((),)))

    def _rows(self, statement: str, parameters: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """What a statement gives for each of its parameters in turn, all at one moment."""
        if monotonic() >= self._look_next:
            self._look()
        try:
            cursor = self._readers.pop()
        except IndexError:
            cursor = self._reader()
        try:
            if len(parameters) == 1:
                rows = cursor.execute(statement, parameters[0]).fetchall()
            else:
                cursor.execute("BEGIN")
                rows = [row for each in parameters for row in cursor.execute(statement, each).fetchall()]
                _roll_back(cursor)
        except BaseException as error:
            _close(cursor)  # interrupted, it might go on showing the file as it was then
            if isinstance(error, REFUSALS):
                raise self._explained(error) from error
            raise
        self._readers.append(cursor)
        if not self._open:
            self._close_readers()
        return rows

    def _reader(self) -> sqlite3.Cursor:
        if not self._open:
            raise self._not_open()
        connection = self._connected()
        try:
            connection.execute("PRAGMA query_only = 1")
        except BaseException:
            connection.close()
            raise
        return connection.cursor()

    # ------------------------------------------------------------ writing
    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """One transaction, committed before this returns; StoreBusyError where the file stays locked."""
        if not changes:
            return await self._check(expect)
        return await self._done(_Request([*map(encoded, changes)], expect))

    async def compact(self, size: int) -> int:
        """Free pages at the end of the file, once others were moved from there. A file that an older version made has none."""
        ((mode, free, _),) = self._rows(FREE, ((),))
        if not free or mode != _INCREMENTAL:
            return 0
        request = _Compaction(size)
        await self._done(request)
        return request.freed

    def backup(self, file: str | os.PathLike[str], copied: Copied = lambda done, total: None) -> int:
        """Copy all entries, as they are at one moment, into a new SQLite file; gives its bytes.

        Others read and write meanwhile, here and in other processes; the log beside the file grows until it is done. The new
        file is whole, or not there. It takes its time: in a program with an event loop call it by `asyncio.to_thread`. `copied`
        is called now and then with the pages copied since, and with how many there are. Raises StoreError for a file
        that exists, and where it can't be written.
        """
        path = Path(file).absolute()
        connection = self._connected()
        try:
            return copy_whole(connection, path, copied)
        except (*REFUSALS, OSError) as error:
            raise StoreError(f"{self.path}: no backup was made in {path} ({type(error).__name__}: {error})") from error
        finally:
            _abandon(connection)

    async def _done(self, request: _Request) -> int:
        if (self.durability == "process" or may_block()) and self._done_in_place(request):
            return request.outcome()
        waiter: Waiter[None] = Waiter()  # `Waiter[None]()` goes through `typing` and takes twice as long
        request.waiter = waiter
        try:
            self._enqueue(request)
            await waiter
        except GeneratorExit:  # the coroutine was closed: nobody waits for the outcome
            self._withdraw(request)
            raise
        except BaseException:  # cancelled or interrupted
            if not self._withdraw(request):
                await waiter.shielded()
            raise
        return request.outcome()

    async def _check(self, expect: Mapping[str, int]) -> int:
        # Before the rest, so that it is no newer than what was checked, but where another instance has reserved some: to find
        # out which of them it has given takes a write.
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

    def _done_in_place(self, request: _Request) -> bool:
        """Commit in the caller's thread, unless somebody is writing: then nothing was done."""
        if self._queue:
            return False
        held: list[threading.Lock] = []
        try:
            held.extend(filter(_acquire_at_once, (self._writing,)))  # one call into C, so no interrupt comes in between
            if not held and self.durability == "process" and self._turn is None and may_block():
                held.extend(filter(_acquire_soon, (self._writing,)))
            if not held:
                return False
            if not self._open:
                raise self._not_open()
            writer = self._writer
            if writer is None:  # since a fork
                return False
            try:
                _begin(writer)
                self._commit(writer, [request])
            except BaseException as error:
                _roll_back(writer)  # a keyboard interrupt may have come between
                if isinstance(error, REFUSALS):
                    if is_busy(error):
                        return False
                    raise self._explained(error) from error
                raise
        finally:
            if held:
                held[0].release()
        return True

    @asynccontextmanager
    async def turn(self, names: Collection[str]) -> AsyncGenerator[None]:
        """The writer thread begins a transaction and keeps it open for the next write of this caller, one second at most."""
        turn = _Turn()
        before = _had.get()
        try:
            with self._lock:
                self._wake_writer(not self._turns)
                self._turns.append(turn)
            await turn.waiter
            _had.set(turn)
            yield
        finally:
            try:
                self._end_turn(turn, before)
            except BaseException:  # interrupted
                self._end_turn(turn, before)
                raise

    def _end_turn(self, turn: _Turn, before: _Turn | None) -> None:
        with self._lock:
            _had.set(before)
            turn.is_over = True
            if turn in self._turns:
                self._turns.remove(turn)
            self._queued.notify_all()

    def _wake_writer(self, is_waiting: bool) -> None:
        """Start the writer thread, or tell it that there is something to do. Called with the lock held."""
        if not self._open:
            raise self._not_open()
        if self._thread is None:
            thread = threading.Thread(target=self._write_queued, name=f"writer of {self.path}", daemon=True)
            thread.start()
            self._thread = thread
        elif is_waiting:  # else it was notified already, or is at work and will look
            self._queued.notify_all()  # an interrupted `notify` keeps a waiter that has gone, and would wake that

    def _enqueue(self, request: _Request) -> None:
        """Hand a request to the writer thread, which is started for the first one."""
        with self._lock:
            turn = self._turn
            has_turn = turn is not None and turn is _had.get() and turn.request is None
            self._wake_writer(has_turn or not self._queue)
            request.is_queued = True
            if turn is not None and has_turn:
                turn.request = request
            else:
                self._queue.append(request)

    def _withdraw(self, request: _Request) -> bool:
        """Take a request back, unless it has been begun."""
        with self._lock:
            try:
                self._queue.remove(request)
            except ValueError:
                return not request.is_queued
        return True

    def _write_queued(self) -> None:
        """The writer thread: everything that has queued up while it was at the last commit goes into the next one."""
        with self._lock:
            me = threading.current_thread()
            if self._thread not in (None, me):  # there is another one, since the start of this one was interrupted
                return
            self._thread = me
        while True:
            with self._lock:
                while not self._queue and not self._turns and self._open:
                    self._queued.wait()
                if not self._queue and not self._turns:
                    self._thread = None
                    closers, self._closers = self._closers, []
                    wake([waiter.give(None) for waiter in closers])
                    return
                waiting = self._queue[:]
            with self._writing:
                batch = [] if is_under_way() else self._write_batch(waiting)
            wake([request.waiter.give(None) for request in batch])
            if is_under_way():
                wait_for_fork()

    def _write_batch(self, waiting: list[_Request]) -> list[_Request]:
        """Begin, and only then take the queue, so that what waits for another process can still be withdrawn.

        None is taken where this process is about to be forked.
        """
        try:
            writer = self._begun()
        except (*REFUSALS, StoreError) as error:
            with self._lock:
                turns, self._turns = self._turns, []
            wake([turn.waiter.fail(self._explained(error)) for turn in turns])
            batch = [request for request in waiting if self._withdraw(request)]
            for request in batch:
                request.error = self._explained(error)
            return batch
        if writer is None:
            return []
        first = self._written_in_turn()
        with self._lock:
            batch, self._queue = [*first, *self._queue], []
        if batch:
            self._commit(writer, batch)
        else:
            _roll_back(writer)
        return batch

    def _written_in_turn(self) -> list[_Request]:
        """Let the caller that waits longest for a turn have it, in the transaction that has begun; gives what it has written."""
        with self._lock:
            if not self._turns:
                return []
            turn = self._turn = self._turns.pop(0)
        wake([turn.waiter.give(None)])
        until = monotonic() + LONGEST_TURN
        with self._lock:
            while turn.request is None and not turn.is_over and not is_under_way() and monotonic() < until:
                self._queued.wait(_WAIT)
            self._turn = None
            return [] if turn.request is None else [turn.request]

    def _begun(self) -> sqlite3.Cursor | None:
        """The writer, in a transaction; None if this process is about to be forked: a fork doesn't wait for other processes."""
        writer = self._writer
        if writer is None:  # since a fork
            with self._lock:
                if is_under_way():
                    return None
                connection = self._connect()
            try:
                prepare(connection, self.path, self.durability == "power")
            except BaseException:
                connection.close()
                raise
            writer = self._writer = connection.cursor()
        deadline = monotonic() + self.timeout
        while True:
            is_last = monotonic() >= deadline
            try:
                _begin(writer)
            except REFUSALS as error:
                if not is_busy(error) or is_last:
                    raise
            else:
                return writer
            if is_under_way():
                return None
            time.sleep(uniform(0, LONGEST_PAUSE))  # noqa: S311 - no secret

    def _commit(self, writer: sqlite3.Cursor, batch: list[_Request]) -> None:
        """Do the requests in the transaction that has begun, commit, and note in each what became of it."""
        known, self._versions = self._versions, _UNKNOWN  # for who is interrupted in between
        try:
            self._look_at_files()
            versions = self._do(writer.execute, batch, *known)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this write's outcome
            _roll_back(writer)
            self._versions = known
            if len(batch) == 1:
                batch[0].error = self._explained(error)
            else:
                self._commit_singly(writer, batch)
            return
        if versions is None:
            _roll_back(writer)
            self._versions = known
            return
        try:
            writer.execute("COMMIT")
        except REFUSALS as error:
            _roll_back(writer)
            for request in batch:
                request.error = self._explained(error)
            if versions[1] != known[1]:
                return  # whether the counter has changed is to be looked up
        self._versions = versions  # of a commit that failed too: it may have landed, so none of them is given again

    def _do(self, execute: Execute, batch: list[_Request], given: int, counter: int) -> tuple[int, int] | None:
        """Do them in the open transaction. Gives `_versions` as they are after it; None where all were in conflict."""
        now = self.clock()
        stored = self._records.counter(execute(VERSION).fetchall())
        if not (is_own := stored == counter):
            given, self._alone = stored, 0
        version = given
        for request in batch:
            version = self._apply(execute, request, version, now)
        if version == given and all(request.changes for request in batch):
            return None
        counter = stored if version <= stored else self._counter_for(version)
        if counter != stored:
            execute(COUNT, (counter,))
        if self._unreaped >= REAP_EVERY:
            execute(REAP, (now, 2 * self._unreaped, now))
            self._unreaped = 0
        return (version, counter) if is_own or counter != stored else _UNKNOWN

    def _look_at_files(self) -> None:
        """Raise StoreError where the file isn't in its place any more, nor with `power` its log: the write would be lost."""
        if self._folder is not None and self._folder.is_as_known() and self._log_file is not None:
            return
        self._look()
        if self._log_file is None:
            self._log_file = identity_of(self._log)
        elif self.durability == "power" and not is_at(self._log, self._log_file):
            raise self._moved(f"{self.path}-wal")
        if self._folder is not None:
            self._folder.know()

    def _counter_for(self, version: int) -> int:
        """What to store once that version is given: it, or some more that are reserved for writes to come.

        A reserved one is given without a change of the counter, whose page would be the second to be written with most commits.
        Whoever finds another counter than it has left goes on from there, so no version is given twice, and each key's rise.
        What is reserved at a crash is never given.
        """
        if self._ownership is not None:  # whose versions are consecutive, so nobody else may find that any are reserved
            return version + _is_reserved(version)
        self._alone += 1
        if self._alone <= RESERVE_AFTER:
            return version
        return version - version % RESERVED + 2 * RESERVED

    def _commit_singly(self, writer: sqlite3.Cursor, batch: list[_Request]) -> None:
        """Something in the batch can't be done: each in a transaction of its own, so that no other pays for it."""
        for request in batch:
            try:
                writer.execute("BEGIN IMMEDIATE")
            except REFUSALS as error:
                request.error = self._explained(error)
            else:
                self._commit(writer, [request])

    def _apply(self, execute: Execute, request: _Request, version: int, now: float) -> int:
        """Do one request in the open transaction, unless it conflicts; gives the counter after it."""
        request.error = None
        if not request.changes:
            return request.serve(execute, version)
        if request.expect:
            changed: list[str] = []
            for key, expected in request.expect.items():
                if not is_expected(self._records.version(execute, str(key), now), expected):
                    changed.append(key)
            if changed:
                request.error = ConflictError(changed)
                return version
        version += 1
        highest = request.version = version
        for change in request.changes:
            own = version if change.version is None else change.version
            if own > highest:
                highest = own
            key = str(change.key)  # SQLite takes a subclass too, in three times the time
            if isinstance(change, Put):
                row = (key, bound(change.value, place_of(key, own, change.expires_at)), own, change.expires_at)
                if change.version is None or (
                    not execute(PUT_IF_NEWER, row).rowcount and self._records.is_damaged(execute, key)
                ):
                    execute(PUT, row)
            elif change.version is None or (
                not execute(DELETE_IF_NOT_NEWER, (key, own)).rowcount and self._records.is_damaged(execute, key)
            ):
                execute(DELETE, (key,))
        self._unreaped += len(request.changes)
        return highest

    def _forked_in_use(self) -> StoreClosedError:
        return StoreClosedError(
            f"{self.path}: this process was forked in the middle of a use of this file, and SQLite would take its "
            "parent's locks for its own here; fork while nobody uses the store, or start another process"
        )

    def _not_open(self) -> StoreClosedError:
        if _forbidden and self._file in _forbidden:
            return self._forked_in_use()
        way_out = "with SyncStore(…), async with Store(…)"
        return StoreClosedError(f"{self.path} is not open: it was closed, or not opened yet ({way_out})")

    def _explained(self, error: Exception) -> Exception:
        return explained(error, self.path, self.timeout)


def _close(cursor: sqlite3.Cursor) -> None:
    """Close its connection. A statement that has failed would keep the file open until the cursor is gone."""
    connection = cursor.connection
    try:
        with suppress(sqlite3.ProgrammingError):  # closed already, by a close that was interrupted
            cursor.close()
    finally:
        connection.close()


_acquire_at_once: Callable[[threading.Lock], bool] = methodcaller("acquire", False)
# A commit that waits for no disk is over before the writer thread would be awake: that one waits for the interpreter's lock.
_acquire_soon: Callable[[threading.Lock], bool] = methodcaller("acquire", True, LONGEST_PAUSE)


def _is_reserved(version: int) -> bool:
    return version > 0 and version % RESERVED == 0


def _begin(cursor: sqlite3.Cursor) -> None:
    _roll_back(cursor)  # an interrupt may have come between an error and its rollback
    cursor.execute("BEGIN IMMEDIATE")


def _bounds(prefix: str, after: str, reverse: bool) -> tuple[str, str, bytes]:
    """The first name of a scan and, in two parts, what all of its names come before. So that the index leads to its beginning."""
    if reverse:
        is_within = after and (after < prefix or after.startswith(prefix))
        return (prefix, after, b"") if is_within else (prefix, prefix, b"\xff")
    return max(prefix, after + "\0" if after else ""), prefix, b"\xff"  # with a NUL it is the name that comes next


def _shrink(execute: Execute, size: int) -> int:
    """Give about so many bytes of free pages back in the open transaction; gives how many it were."""
    ((_, before, page),) = execute(FREE).fetchall()
    execute(SHRINK.format(max(1, size // page))).fetchall()  # a page for each row that it is asked for
    ((_, after, _),) = execute(FREE).fetchall()
    return int(before - after) * int(page)


def _abandon(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        connection.rollback()  # closed, it would hold its locks as long as an error's traceback holds a statement
    connection.close()


def _roll_back(cursor: sqlite3.Cursor) -> None:
    if cursor.connection.in_transaction:  # after some errors, such as a full disk, SQLite has done it already
        with suppress(sqlite3.Error):
            cursor.execute("ROLLBACK")


@hookimpl
def pocket_backends() -> Mapping[str, Callable[[str], Backend]]:
    """The scheme `sqlite`."""
    return {"sqlite": SQLite.from_url}
