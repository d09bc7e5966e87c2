"""The backend in PostgreSQL, which any number of programs on any number of machines may share.

A read is one statement. A write is one call of a function in the database: one round trip and one transaction, which
locks the keys that it changes or has expectations for, in an order that is the same for all, checks, and writes. What
the function reads under the locks stays unchanged until the commit, so a write that expects the versions that its caller
has read is serialisable. Reads and mere checks need no lock: each is one statement, which sees everything that was
committed before it and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from pocket_plug.backends.network import Attempt, PerLoop, Retrying, Slots, Token, check_store, name_in
from pocket_plug.backends.pool import Pool
from pocket_plug.codec import bound, default_codec, is_whole, place_of, record_of
from pocket_plug.errors import (
    AnswerLostError,
    CodecError,
    ConfigError,
    ConflictError,
    CorruptRecordError,
    StoreClosedError,
    StoreError,
    WriteSizeError,
    suggest,
)
from pocket_plug.primitives.redaction import MASK, URL_SCHEME, public_url
from pocket_plug.primitives.urls import LEAST_WAIT, PERCENT, one_of, seconds, url_options
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry, ProbeResult, Put, Watcher

from . import statements
from .binary import (
    BYTEA,
    DOUBLE,
    FALSE,
    TRUE,
    array,
    array_of_integers,
    integer,
    integers,
    number,
    pack_float,
    pack_integer,
    pack_small,
)
from .failures import explained
from .link import ConnectionLostError, Link, Row, Statement, connected
from .schema import DataSet, check_server, find_faults, find_or_make, look_at
from .turns import Turn, had
from .watching import Subscription

T = TypeVar("T")
Durability = Literal["power", "process", "none"]

PAGE = 256
"""The most keys that a scan reads at a time."""

REAP_EVERY, MOST_REAPED = 16, 1000
"""After `REAP_EVERY` changes, up to twice as many expired entries are removed, and never more than `MOST_REAPED` at once."""

MOST_LOCKS = 60
"""A write of more keys locks the whole data set instead. By default the server has room for 64 locks per connection, if
all take so many."""

TURN_CONNECTIONS = 2
"""The most connections for turns of each event loop. They are separate: waiting for a turn must not block other operations."""

MAX_CHANGES = 50_000
"""A write of so many changes takes the server about a second, in which nobody else can write to the data set."""

MOST_BYTES = 768 * 1024 * 1024
"""The most bytes of values in one write, with room for its keys: the server closes a connection that sends 1 GiB at once."""
ALWAYS_FIT = MOST_BYTES // default_codec.max_bytes - 1

CHECK_TIMEOUT = 3600.0
"""The most seconds that `check` may take."""

_OWN_VERSION = 0
"""Records are bound to this number in place of their version, which the server gives them only when they are written."""


class PostgreSQL(Backend):
    """Entries in the PostgreSQL database at `conninfo`, a URL or libpq's `key=value …`; its tables are made if
    there are none.

    `store` names a data set within the database: a schema of its own. `durability` names the failure that an
    acknowledged write survives: "power" (a power failure of the server's machine), "process" (a crash of any process, the
    server's too), or "none" (only a crash of this program: a crashed server loses up to a second of writes). `timeout` is
    the most seconds for one attempt, `patience` for all attempts together, and `connections` the most connections of
    each event loop.

    As a URL: `postgresql://user@host/database?store=main&durability=power&timeout=5&patience=30&connections=8`, with
    libpq's own parameters beside them. Raises ConfigError for invalid options; `open` raises StoreError if the server
    refuses.

    >>> PostgreSQL.from_url("postgresql://app:secret@db.example/orders?durability=process")
    PostgreSQL('postgresql://app:***@db.example/orders', store='main', durability='process')
    """

    survives = True
    system = "postgresql"
    backed_up_by = "pg_dump of PostgreSQL, or pg_basebackup with its log archived"
    can_watch = True
    max_changes = MAX_CHANGES

    def __init__(
        self,
        conninfo: str,
        *,
        store: str = "main",
        durability: Durability = "power",
        timeout: float = 5.0,
        patience: float = 30.0,
        connections: int = 8,
    ) -> None:
        check_store("postgresql", store)
        one_of("postgresql", "durability", durability, get_args(Durability))
        seconds("postgresql", "timeout", timeout, LEAST_WAIT)
        seconds("postgresql", "patience", patience, LEAST_WAIT)
        if connections.__class__ is not int or not 1 <= connections <= 1000:
            raise ConfigError(f"postgresql: connections is {connections!r}; give a whole number, from 1 to 1000")
        self.durability, self.connections = durability, connections
        self._shown = _shown(conninfo)
        self._conninfo, hosts, database = _parsed(conninfo, self._shown, timeout)
        host, port = hosts[0]
        self.address = (host, None if host.startswith("/") else port)
        at = ",".join(f"{host}:{port}" for host, port in hosts)
        self._data = DataSet(f"postgresql at {at}/{database}, store {store!r}", store)
        self._retrying = Retrying(self._data.server, (ConnectionLostError,), timeout, patience)
        self._slots = Slots()
        self._pools: PerLoop[Pool[Link]] | None = None
        self._turn_pools: PerLoop[Pool[Link]] | None = None
        self._is_prepared = False
        self._subscription: Subscription | None = None
        self._unreaped = 0
        self._hash = blake2b(key=self._data.schema.encode(), digest_size=8)
        self._whole = self._lock_of(b"")
        of = {name: Statement.of(name, self._data.sql(getattr(statements, name.upper()))) for name in _STATEMENTS}
        self._read, self._read_many, self._checks, self._version, self._scan, self._scan_back, self._write = of.values()

    @classmethod
    def from_url(cls, url: str) -> PostgreSQL:
        """The backend that a URL names. Raises ConfigError for an invalid one, with a suggestion for a misspelt option."""
        conninfo, options = _split(url)
        return cls(conninfo, **options)

    def __repr__(self) -> str:
        return f"PostgreSQL({self._shown!r}, store={self._data.name!r}, durability={self.durability!r})"

    # ------------------------------------------------------------ opening and closing
    async def open(self) -> None:
        """Find the data set, or make it. Raises StoreError if the server can't be reached, refuses, or can't keep what
        `durability` promises."""
        if self._pools is not None:
            return
        timeout = self._retrying.timeout
        self._pools = PerLoop(self._new_pool, lambda pool: pool.close(timeout))
        self._turn_pools = PerLoop(lambda: self._pool(TURN_CONNECTIONS), lambda pool: pool.close(timeout))
        try:
            await self._retrying(lambda attempt: self._with_link(attempt, self._prepare))
        except BaseException:
            await self.close()
            raise
        self._is_prepared = True
        if self._subscription is not None:
            self._subscription.start()

    def _new_pool(self) -> Pool[Link]:
        """Make the pool of a loop that uses the backend for the first time. In a forked child, also start the subscription."""
        if self._subscription is not None and self._is_prepared:
            self._subscription.start()
        return self._pool(self.connections)

    def _pool(self, size: int) -> Pool[Link]:
        return Pool(size, self._connect, lambda link: link.is_idle, Link.close)

    async def _connect(self) -> Link:
        link = await connected(self._conninfo)
        try:
            await link.script(statements.SESSION.format(milliseconds=max(1, int(1000 * self._retrying.timeout))))
        except BaseException:
            link.close()
            raise
        return link

    async def _prepare(self, link: Link) -> None:
        await find_or_make(link, self._data)
        await check_server(link, self._data, self.durability, self.clock)

    async def probe(self, patience: float) -> ProbeResult:
        """Check what `open` checks, but make no schema, tables or function. Whether the role may make them isn't checked."""
        few = replace(self._retrying, timeout=min(patience, self._retrying.timeout), patience=patience, attempts=2)

        async def look(attempt: Attempt) -> ProbeResult:
            with self._explaining():
                link = await self._connect()
                try:
                    attempt.cut = link.close
                    return await look_at(link, self._data, self.durability, self.clock)
                finally:
                    link.close()

        return await few(look)

    async def close(self) -> None:
        """Wait for running operations, at most `timeout` seconds for each pool, and close all connections."""
        pools, self._pools, self._turn_pools = (self._pools, self._turn_pools), None, None
        subscription, self._subscription, self._is_prepared = self._subscription, None, False
        for each in pools:
            if each is not None:
                await each.close()
        if subscription is not None:
            await asyncio.to_thread(subscription.close)

    async def watch(self, watcher: Watcher) -> None:
        """Notify the watcher of each write within WATCH_EVERY plus `timeout` seconds (or 1, if that is more), or call `lost`."""
        self._subscription = Subscription(
            watcher, self._data, self._conninfo, self._whole, max(1.0, self._retrying.timeout)
        )
        if self._is_prepared:
            self._subscription.start()

    # ------------------------------------------------------------ reading
    async def read(self, key: str) -> Entry | None:
        """Read an entry, in one statement."""
        rows = await self._rows(self._read, [key.encode()])
        return self._entry(key, rows[0], self.clock()) if rows else None

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """Read entries in one statement, so all are as they were at one moment."""
        names = {key.encode(): str(key) for key in keys}
        if not names:
            self._here(self._pools)
            return {}
        rows = await self._rows(self._read_many, [array(BYTEA, list(names))])
        now, entries = self.clock(), dict[str, Entry]()
        for row in rows:
            name = names[row[3] or b""]
            if (entry := self._entry(name, row, now)) is not None:
                entries[name] = entry
        return entries

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """Read keys page by page, so that a slow reader keeps no transaction open at the server."""
        given, size = 0, PAGE if limit is None else min(limit, PAGE)
        low, high = _bounds(prefix.encode(), after.encode(), reverse)
        while given != limit:
            page = await self._rows(self._scan_back if reverse else self._scan, [low, high, pack_small(size)])
            now = self.clock()
            for key, ends in page:
                ends_at = number(ends)
                if ends_at is None or now < ends_at:
                    yield name_in(self._data.server, key or b"")
                    given += 1
                    if given == limit:
                        return
            if len(page) < size:
                return
            last, size = page[-1][0] or b"", PAGE
            low, high = (low, last) if reverse else (last + b"\0", high)

    async def version(self) -> int:
        """The last version given to a write, of any program."""
        [[version]] = await self._rows(self._version, [])
        return integer(version or b"")

    async def check(self) -> list[str]:
        """Find a version counter below the version of an entry, and an index that differs from its table. It takes as long
        as reading all keys twice."""
        patient = replace(self._retrying, timeout=CHECK_TIMEOUT, patience=CHECK_TIMEOUT)
        return await patient(lambda attempt: self._with_link(attempt, lambda link: find_faults(link, self._data)))

    async def compact(self, size: int) -> int:
        """Return 0: PostgreSQL's autovacuum makes the space of removed entries usable again, and gives free space at the
        files' ends back."""
        return 0

    # ------------------------------------------------------------ writing
    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Call the data set's function. The call is one transaction: if the connection is lost, all of it is committed, or
        nothing."""
        if not changes:
            return await self._checked(expect)
        self._check_size(len(changes) + len(expect))
        request = self._request(changes, expect)
        with self._slots.token() as token:
            return await self._retrying.write(lambda attempt: self._written(attempt, token, request))

    async def _checked(self, expect: Mapping[str, int]) -> int:
        """Check expectations in one statement, which sees what was committed before it."""
        self._check_size(len(expect))
        names = array(BYTEA, [key.encode() for key in expect])
        rows = await self._rows(self._checks, [names, array_of_integers(expect.values()), pack_float(self.clock())])
        version, unmet = rows[0]
        if unmet:
            raise _conflict(expect, integers(unmet))
        return integer(version or b"")

    def _request(self, changes: Sequence[Change], expect: Mapping[str, int]) -> _Request:
        keys, values = list[bytes](), list[bytes | None]()
        ends, owns = list[bytes | None](), list[int | None]()
        for change in changes:
            keys.append(change.key.encode())
            owns.append(change.version)
            if isinstance(change, Put):
                end = None if change.expires_at is None else float(change.expires_at)
                values.append(self._encoded(change, end))
                ends.append(None if end is None else pack_float(end))
            else:
                values.append(None)
                ends.append(None)
        if len(values) > ALWAYS_FIT:
            self._check_bytes(sum(map(len, filter(None, values))))
        expected = [key.encode() for key in expect]
        self._unreaped += len(changes)
        reap, self._unreaped = (
            (min(2 * self._unreaped, MOST_REAPED), 0) if self._unreaped >= REAP_EVERY else (0, self._unreaped)
        )
        before = [
            FALSE if self.durability == "none" else TRUE,
            array_of_integers(self._locks(keys, expected, any(own is not None for own in owns))),
        ]
        asked = [pack_small(reap), array(BYTEA, expected), array_of_integers(expect.values()), array(BYTEA, keys)]
        return _Request(expect, before, [*asked, array(BYTEA, values), array(DOUBLE, ends), array_of_integers(owns)])

    def _locks(self, keys: Sequence[bytes], expected: Sequence[bytes], has_versions: bool) -> list[int]:
        """The data set's lock, then those of the keys in ascending order; an odd number is an exclusive lock. Two keys with
        the same lock take it once.

        A write with versions of its own locks the data set: it may raise the sequence, which nobody may use meanwhile.
        """
        if has_versions or len(keys) + len(expected) > MOST_LOCKS:
            return [self._whole + 1]
        changed = {self._lock_of(key) for key in keys}
        locks = {lock + 1 for lock in changed}.union(
            lock for key in expected if (lock := self._lock_of(key)) not in changed
        )
        return [self._whole, *sorted(locks)]

    def _lock_of(self, key: bytes) -> int:
        """The advisory lock of a key: an even number of 64 bits. All programs must compute the same one."""
        hash = self._hash.copy()
        hash.update(key)
        return int.from_bytes(hash.digest(), "big", signed=True) & ~1

    async def _written(self, attempt: Attempt, token: Token, request: _Request) -> int:
        again = TRUE if attempt.number > 1 else FALSE
        whose: list[bytes | None] = [bytes.fromhex(token.slot), pack_integer(token.sequence), again]
        parameters = [*whose, *request.before, pack_float(self.clock()), *request.asked]

        async def send(link: Link, *, commits: bool = False) -> list[Row]:
            attempt.sent = True
            return await link.run(self._write, parameters, commits=commits)

        try:
            rows = await self._in_turn(attempt, send)
            [[outcome]] = await self._with_link(attempt, send) if rows is None else rows
        except StoreError as error:
            if request.was_sent:
                raise AnswerLostError(
                    f"{self._data.server}: a write was sent and its answer was lost; whether it was committed is not "
                    f"known, since the server could not be asked again: {error}"
                ) from error
            raise
        finally:
            request.was_sent = request.was_sent or attempt.sent
        version, *unmet = integers(outcome)
        if version == 0:
            raise _conflict(request.expect, unmet)
        if version < 0:
            raise AnswerLostError(
                f"{self._data.server}: a later write has used this write's slot; whether this write was committed is not known"
            )
        return version

    # ------------------------------------------------------------ turns
    def turn(self, names: Collection[str]) -> AbstractAsyncContextManager[None]:
        """A transaction that locks these keys; others wait in the server's queue. Its write has to begin within 1 second."""
        locks = self._locks([name.encode() for name in names], (), False)
        return Turn(lambda: self._here(self._turn_pools), locks, self._retrying, self._explaining)

    async def _in_turn(self, attempt: Attempt, send: Callable[..., Awaitable[list[Row]]]) -> list[Row] | None:
        """Send a write in the transaction of the caller's turn. None if it has to be sent without one: there is no turn, it was
        used or lost, the server is read-only, or this attempt is not the first."""
        turn = had.get()
        link = None if turn is None or attempt.number > 1 else turn.use(self._here(self._turn_pools))
        if link is None:
            return None
        attempt.cut = link.close
        with self._explaining():
            try:
                return await send(link, commits=True)
            except psycopg.errors.ReadOnlySqlTransaction:  # `_with_link` sends it next, and handles this error
                attempt.sent = False
                return None

    # ------------------------------------------------------------ connections
    async def _rows(self, statement: Statement, parameters: list[bytes | None]) -> list[Row]:
        return await self._retrying(
            lambda attempt: self._with_link(attempt, lambda link: link.run(statement, parameters))
        )

    async def _with_link(self, attempt: Attempt, use: Callable[[Link], Awaitable[T]]) -> T:
        """Use a connection of this loop's pool for one attempt."""
        pool = self._here(self._pools)
        try:
            with self._explaining():
                if pool.is_full:
                    attempt.awaits = (
                        f"free connection of the {self.connections} that this event loop may have (connections=…)"
                    )
                link = await pool.take(attempt)
                attempt.cut, attempt.awaits = link.close, "answer"
                is_new = link.is_new
                try:
                    return await use(link)
                except psycopg.errors.ReadOnlySqlTransaction as error:
                    if is_new:
                        raise
                    # perhaps a failover has made this server a standby; its name may lead to the new primary now
                    attempt.sent = False
                    link.close()
                    pool.forget()
                    raise ConnectionLostError("it has become read-only") from error
        finally:
            try:
                if attempt.is_over:  # the other connections may lead nowhere too
                    pool.forget()
                pool.leave(attempt)
            except BaseException:  # interrupted
                pool.leave(attempt)
                raise

    @contextmanager
    def _explaining(self) -> Generator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise explained(self._data.server, error) from error

    def _here(self, pools: PerLoop[Pool[Link]] | None) -> Pool[Link]:
        if pools is None:
            raise StoreClosedError(
                f"{self._data.server} is not open: it was closed, or not opened yet (with SyncStore(…), async with Store(…))"
            )
        return pools.here()

    # ------------------------------------------------------------ values, sizes and errors
    def _encoded(self, change: Put, end: float | None) -> bytes:
        return bound(record_of(change.key, change.value), place_of(change.key, _OWN_VERSION, end))

    def _entry(self, key: str, row: Row, now: float) -> Entry | None:
        """The entry of a row; None if it has expired. Raises CorruptRecordError if the row is damaged, also if it seems to have
        expired."""
        record, version, ends = row[:3]
        end = number(ends)
        place = place_of(key, _OWN_VERSION, end)
        try:
            if end is not None and end <= now:
                if not is_whole(record or b"", place):
                    raise CorruptRecordError(
                        "the record's checksum does not match: it was damaged, or its key, version or expiry time was changed"
                    )
                return None
            return Entry(default_codec.decode(record or b"", place), integer(version or b""), end)
        except CodecError as error:
            raise type(error)(f"{self._data.server}, key {key!r}: {error}") from error

    def _check_size(self, count: int) -> None:
        if count > MAX_CHANGES:
            raise WriteSizeError(
                f"{self._data.server}: a write has {count:,} keys; {MAX_CHANGES:,} are allowed; nothing was written: split it "
                "into several writes"
            )

    def _check_bytes(self, count: int) -> None:
        if count > MOST_BYTES:
            raise WriteSizeError(
                f"{self._data.server}: a write has {count:,} bytes of values; {MOST_BYTES:,} are allowed, since the server "
                "closes a connection that sends more; nothing was written: split it into several writes"
            )


class _Request:
    """The parameters of the function `write`, except those of the attempt and the time; and whether they may have been sent
    before."""

    __slots__ = ("asked", "before", "expect", "was_sent")

    def __init__(self, expect: Mapping[str, int], before: list[bytes], asked: list[bytes]) -> None:
        self.expect, self.before, self.asked = expect, before, asked
        self.was_sent = False


_STATEMENTS = ("read", "read_many", "check", "version", "scan", "scan_back", "write")


def _conflict(expect: Mapping[str, int], numbers: Iterable[int]) -> ConflictError:
    keys = list(expect)
    return ConflictError(keys[number - 1] for number in numbers)


def _bounds(prefix: bytes, after: bytes, reverse: bool) -> tuple[bytes, bytes]:
    """The bounds of a scan: its keys are not below the first, and below the second. No byte of UTF-8 is FF."""
    if reverse:
        is_within = after and (after < prefix or after.startswith(prefix))
        return prefix, after if is_within else prefix + b"\xff"
    return max(prefix, after + b"\0" if after else b""), prefix + b"\xff"


# ---------------------------------------------------------------- URLs
_OPTIONS: Mapping[str, type] = {
    "store": str,
    "durability": str,
    "timeout": float,
    "patience": float,
    "connections": int,
}


def _split(url: str) -> tuple[str, dict[str, Any]]:
    """Split a URL into one that has only libpq's options, and our options."""
    address, _, query = url.partition("?")
    login = address.partition("://")[2].rpartition("@")[0]
    if {*login} & {*"@/"} or any("@" in part.partition("=")[0] for part in query.split("&")):
        raise ConfigError(f"{public_url(url)!r}: {PERCENT}")
    ours = [part for part in query.split("&") if unquote(part.partition("=")[0]) in _OPTIONS]
    theirs = [part for part in query.split("&") if part and part not in ours]
    for part in theirs:
        name = unquote(part.partition("=")[0])
        if name not in _LIBPQ:
            known = (*_OPTIONS, *_LIBPQ)
            raise ConfigError(
                f"{public_url(url)!r}: postgresql has no option {name!r}; it has: {', '.join(_OPTIONS)}, and those of libpq."
                f"{suggest(name, known)}"
            )
    _, options = url_options(f"{address}?{'&'.join(ours)}", "postgresql", _OPTIONS)
    return f"{address}?{'&'.join(theirs)}" if theirs else address, options


_LIBPQ = frozenset(each.keyword.decode() for each in Conninfo.get_defaults())


LEAST_CONNECT = 2
"""The shortest `connect_timeout` that libpq applies, in seconds."""


def _parsed(conninfo: str, shown: str, timeout: float) -> tuple[str, list[tuple[str, int]], str]:
    """The connection string for libpq; and for errors and telemetry, the hosts with their ports, and the database.

    If there are several hosts, each gets a part of an attempt's time: otherwise one that doesn't answer would take all of it.
    """
    try:
        given = conninfo_to_dict(conninfo)

        def listed(name: str, default: str) -> list[str]:
            found = given.get(name) or os.environ.get(f"PG{name.upper()}") or default
            return str(found).split(",")

        hosts = listed("host", ",".join(listed("hostaddr", "localhost")))
        ours: dict[str, Any] = {"application_name": "pocket_plug"}
        if len(hosts) > 1:
            ours["connect_timeout"] = max(LEAST_CONNECT, int(timeout / len(hosts)))
        # Any text will do. Without one, OpenSSL asks on the terminal for the pass phrase of a key. A service may have its own.
        if not given.get("service") and not os.environ.get("PGSERVICE"):
            ours["sslpassword"] = "none"
        whole = make_conninfo(conninfo, **{name: value for name, value in ours.items() if name not in given})
    except (psycopg.Error, UnicodeDecodeError) as error:
        text = re.sub(r'"[^"]*"', '"…"', str(error)).strip()  # libpq may quote a part of the password
        # any word of the string may be the password
        what = repr(shown) if URL_SCHEME.match(shown) else "postgresql: the connection string"
        raise ConfigError(f"{what}: libpq can't read it ({text})") from None

    database = given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or "the user's"
    ports = [int(port) if port.isdigit() else 5432 for port in listed("port", "5432")]
    return whole, list(zip(hosts, ports if len(ports) > 1 else ports * len(hosts), strict=False)), str(database)


def _shown(conninfo: str) -> str:
    """A connection string without its passwords and its secret of OAuth."""
    if URL_SCHEME.match(conninfo):  # and not just anywhere in it: another option may have a URL
        return public_url(conninfo)
    return re.sub(r"((?:password|secret)\s*=\s*)('(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)+)", rf"\1{MASK}", conninfo)
