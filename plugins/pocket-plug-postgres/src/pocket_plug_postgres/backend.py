"""The backend in PostgreSQL, which any number of programs on any number of machines may share.

A read is one statement. A write is one call of a function in the database: one round trip and one transaction, which
locks the keys that it changes or expects something of, in an order that is the same for all, checks, and writes. What
is read behind the locks stays so until the commit, so whoever expects what he has read is serialisable. Reads and
pure checks need no lock: each is one statement, which sees everything that was committed before it and nothing else.
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

from pocket_plug.backends.network import Attempt, PerLoop, Retrying, Slots, Token, check_store
from pocket_plug.backends.urls import LEAST_WAIT, PERCENT, one_of, seconds, url_options
from pocket_plug.codec import bound, default_codec, is_whole, place_of
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
from pocket_plug.primitives.redaction import MASK, public_url
from pocket_plug.primitives.shown_names import shown_name
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
from .link import ConnectionLostError, Link, Pool, Row, Statement, connected
from .schema import DataSet, check_server, find_faults, find_or_make, look_at
from .turns import Turn, had
from .watching import Subscription

T = TypeVar("T")
Durability = Literal["power", "process", "none"]

PAGE = 256
"""How many keys a scan reads at a time, at most."""

REAP_EVERY, MOST_REAPED = 16, 1000
"""After so many changes, up to twice as many expired entries are removed; never more than the latter at once."""

MOST_LOCKS = 60
"""A write of more keys locks the whole data set instead. The server has room for 64 locks per connection, if all
take so many."""

TURN_CONNECTIONS = 2
"""So many connections for turns each event loop makes at most: those who wait there must not stop the others."""

MAX_CHANGES = 50_000
"""A write of so many takes about a second of the server, in which nobody else can write to the data set."""

CHECK_TIMEOUT = 3600.0
"""Seconds that `check` may take."""

_OWN_VERSION = 0
"""What a record is bound to in place of its version, which the server gives it only when it is written."""


class PostgreSQL(Backend):
    """Entries in the PostgreSQL database at `conninfo`, a URL or libpq's `key=value …`; its tables are made where
    there are none.

    `store` names a data set within the database: a schema of its own. `durability` names the failure that an
    acknowledged write survives: "power" (of the server's machine), "process" (a crash of any process, the server's
    too), or "none" (only this program's own: a crashed server loses up to a second of writes). `timeout` is how many
    seconds one attempt may take, `patience` how many all together, and `connections` how many each event loop makes
    at most.

    As a URL: `postgresql://user@host/database?store=main&durability=power&timeout=5&patience=30&connections=8`, with
    libpq's own parameters beside them. Raises ConfigError for invalid options; `open` raises StoreError where the
    server refuses.

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
        self._conninfo, host, port, database = _parsed(conninfo, self._shown)
        self.address = (host, None if host.startswith("/") else port)
        self._data = DataSet(f"postgresql at {host}:{port}/{database}, store {store!r}", store)
        self._retrying = Retrying(self._data.server, (ConnectionLostError,), timeout, patience)
        self._slots = Slots()
        self._pools: PerLoop[Pool] | None = None
        self._turn_pools: PerLoop[Pool] | None = None
        self._is_prepared = False
        self._subscription: Subscription | None = None
        self._unreaped = 0
        self._hash = blake2b(key=self._data.schema.encode(), digest_size=8)
        self._whole = self._lock_of(b"")
        of = {name: Statement.of(name, self._data.sql(getattr(statements, name.upper()))) for name in _STATEMENTS}
        self._read, self._read_many, self._checks, self._version, self._scan, self._scan_back, self._write = of.values()

    @classmethod
    def from_url(cls, url: str) -> PostgreSQL:
        """The backend that a URL names. Raises ConfigError, with the option that was probably meant."""
        conninfo, options = _split(url)
        return cls(conninfo, **options)

    def __repr__(self) -> str:
        return f"PostgreSQL({self._shown!r}, store={self._data.name!r}, durability={self.durability!r})"

    # ------------------------------------------------------------ opening and closing
    async def open(self) -> None:
        """Find the data set, or make it. Raises StoreError where the server can't be reached, refuses, or can't
        keep what is promised."""
        if self._pools is not None:
            return
        timeout = self._retrying.timeout
        self._pools = PerLoop(self._new_pool, lambda pool: pool.close(timeout))
        self._turn_pools = PerLoop(lambda: Pool(self._connect, TURN_CONNECTIONS), lambda pool: pool.close(timeout))
        try:
            await self._retrying(lambda attempt: self._with_link(attempt, self._prepare))
        except BaseException:
            await self.close()
            raise
        self._is_prepared = True
        if self._subscription is not None:
            self._subscription.start()

    def _new_pool(self) -> Pool:
        """For a loop that uses it for the first time; in a forked child that begins a subscription, too."""
        if self._subscription is not None and self._is_prepared:
            self._subscription.start()
        return Pool(self._connect, self.connections)

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
        """The same, but for what `open` makes: schema, tables and function. Whether the role may make them isn't tried."""
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
        """Let what is under way come to its end, and close all connections."""
        pools, self._pools, self._turn_pools = (self._pools, self._turn_pools), None, None
        subscription, self._subscription, self._is_prepared = self._subscription, None, False
        for each in pools:
            if each is not None:
                await each.close()
        if subscription is not None:
            await asyncio.to_thread(subscription.close)

    async def watch(self, watcher: Watcher) -> None:
        """Tell it of each write; what is not told within WATCH_EVERY and `timeout` seconds is told as lost."""
        self._subscription = Subscription(
            watcher, self._data, self._conninfo, self._whole, max(1.0, self._retrying.timeout)
        )
        if self._is_prepared:
            self._subscription.start()

    # ------------------------------------------------------------ reading
    async def read(self, key: str) -> Entry | None:
        """One statement."""
        rows = await self._rows(self._read, [key.encode()])
        return self._entry(key, rows[0], self.clock()) if rows else None

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """One statement, so all are as they were at one moment."""
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
        """Page by page, so that a slow reader keeps nothing open at the server."""
        given, size = 0, PAGE if limit is None else min(limit, PAGE)
        low, high = _bounds(prefix.encode(), after.encode(), reverse)
        while given != limit:
            page = await self._rows(self._scan_back if reverse else self._scan, [low, high, pack_small(size)])
            now = self.clock()
            for key, ends in page:
                ends_at = number(ends)
                if ends_at is None or now < ends_at:
                    yield (key or b"").decode()
                    given += 1
                    if given == limit:
                        return
            if len(page) < size:
                return
            last, size = page[-1][0] or b"", PAGE
            low, high = (low, last) if reverse else (last + b"\0", high)

    async def version(self) -> int:
        """The last one given, by whichever program."""
        [[version]] = await self._rows(self._version, [])
        return integer(version or b"")

    async def check(self) -> list[str]:
        """A counter that has gone back, and an index that differs from its table. It takes as long as reading all
        keys twice."""
        patient = replace(self._retrying, timeout=CHECK_TIMEOUT, patience=CHECK_TIMEOUT)
        return await patient(lambda attempt: self._with_link(attempt, lambda link: find_faults(link, self._data)))

    async def compact(self, size: int) -> int:
        """0: PostgreSQL's autovacuum makes the room of removed entries usable again, and gives it back from the
        files' ends."""
        return 0

    # ------------------------------------------------------------ writing
    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """One call of the data set's function, which is one transaction, whatever happens to the connection
        meanwhile."""
        if not changes:
            return await self._checked(expect)
        self._check_size(len(changes) + len(expect))
        request = self._request(changes, expect)
        with self._slots.token() as token:
            return await self._retrying.write(lambda attempt: self._written(attempt, token, request))

    async def _checked(self, expect: Mapping[str, int]) -> int:
        """One statement: what it sees is what was committed before it."""
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
        """The data set's lock first, then those of keys in order; an odd number is exclusive. Two keys with one lock
        take it once.

        A write with versions may raise the sequence, which nobody may use meanwhile.
        """
        if has_versions or len(keys) + len(expected) > MOST_LOCKS:
            return [self._whole + 1]
        changed = {self._lock_of(key) for key in keys}
        locks = {lock + 1 for lock in changed}.union(
            lock for key in expected if (lock := self._lock_of(key)) not in changed
        )
        return [self._whole, *sorted(locks)]

    def _lock_of(self, key: bytes) -> int:
        """An even number of 64 bits: the advisory lock of a key. All programs must come to the same."""
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
                    f"{self._data.server}: a write was sent and its answer was lost; whether it has landed is not "
                    f"known, since it could not be asked again: {error}"
                ) from error
            raise
        finally:
            request.was_sent = request.was_sent or attempt.sent
        version, *unmet = integers(outcome)
        if version == 0:
            raise _conflict(request.expect, unmet)
        if version < 0:
            raise AnswerLostError(
                f"{self._data.server}: a later write of the same slot has landed; of this one nothing is known"
            )
        return version

    # ------------------------------------------------------------ turns
    def turn(self, names: Collection[str]) -> AbstractAsyncContextManager[None]:
        """A transaction that locks these keys; those who want one wait in the server's queue. One second at most."""

        async def begun(begin: Callable[[Attempt], Awaitable[Link]]) -> Link:
            async def explained_begin(attempt: Attempt) -> Link:
                with self._explaining():
                    return await begin(attempt)

            return await self._retrying(explained_begin)

        locks = self._locks([name.encode() for name in names], (), False)
        return Turn(lambda: self._here(self._turn_pools), locks, begun)

    async def _in_turn(self, attempt: Attempt, send: Callable[..., Awaitable[list[Row]]]) -> list[Row] | None:
        """Send it in the transaction of the turn that the caller has. None where it has none, or has written in it."""
        turn = had.get()
        link = None if turn is None or attempt.number > 1 else turn.use(self._here(self._turn_pools))
        if link is None:
            return None
        attempt.cut = link.close
        with self._explaining():
            return await send(link, commits=True)

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
                link = await pool.take(attempt)
                attempt.cut = link.close
                return await use(link)
        finally:
            try:
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

    def _here(self, pools: PerLoop[Pool] | None) -> Pool:
        if pools is None:
            raise StoreClosedError(
                f"{self._data.server} is not open: it was closed, or not opened yet (with SyncStore(…), async with Store(…))"
            )
        return pools.here()

    # ------------------------------------------------------------ values, sizes and errors
    def _encoded(self, change: Put, end: float | None) -> bytes:
        try:
            return bound(default_codec.encode(change.value), place_of(change.key, _OWN_VERSION, end))
        except CodecError as error:
            raise type(error)(f"key {shown_name(change.key)!r}: {error}") from error

    def _entry(self, key: str, row: Row, now: float) -> Entry | None:
        """What a row holds; None where it has expired. Raises CorruptRecordError where it is damaged: that is no
        end."""
        record, version, ends = row[:3]
        end = number(ends)
        place = place_of(key, _OWN_VERSION, end)
        try:
            if end is not None and end <= now:
                if not is_whole(record or b"", place):
                    raise CorruptRecordError(
                        "the record's checksum does not match: it was damaged, or belongs to another place"
                    )
                return None
            return Entry(default_codec.decode(record or b"", place), integer(version or b""), end)
        except CodecError as error:
            raise type(error)(f"{self._data.server}, key {key!r}: {error}") from error

    def _check_size(self, count: int) -> None:
        if count > MAX_CHANGES:
            raise WriteSizeError(
                f"{self._data.server}: {count:,} keys at once, and the limit is {MAX_CHANGES:,}; nothing was done: do it in "
                "several parts"
            )


class _Request:
    """What is asked of the function `write`, but for the attempt and the time; and whether it may have been told
    already."""

    __slots__ = ("asked", "before", "expect", "was_sent")

    def __init__(self, expect: Mapping[str, int], before: list[bytes], asked: list[bytes]) -> None:
        self.expect, self.before, self.asked = expect, before, asked
        self.was_sent = False


_STATEMENTS = ("read", "read_many", "check", "version", "scan", "scan_back", "write")


def _conflict(expect: Mapping[str, int], numbers: Iterable[int]) -> ConflictError:
    keys = list(expect)
    return ConflictError(keys[number - 1] for number in numbers)


def _bounds(prefix: bytes, after: bytes, reverse: bool) -> tuple[bytes, bytes]:
    """The first key of a scan, and what all of its keys come before. No byte of UTF-8 is FF."""
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
    """A URL without our options, which has libpq's still, and our options."""
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


def _parsed(conninfo: str, shown: str) -> tuple[str, str, int, str]:
    """For libpq; the host, the port and the database for errors and telemetry."""
    try:
        given = conninfo_to_dict(conninfo)
        whole = make_conninfo(conninfo, **{} if "application_name" in given else {"application_name": "pocket_plug"})
    except (psycopg.Error, UnicodeDecodeError) as error:
        text = re.sub(r'"[^"]*"', '"…"', str(error)).strip()  # it may quote what was meant as a password
        what = (
            repr(shown) if "://" in shown else "postgresql: the connection string"
        )  # any word of it may be the password
        raise ConfigError(f"{what}: libpq can't read it ({text})") from None

    def first(name: str, default: str) -> str:
        found = given.get(name) or os.environ.get(f"PG{name.upper()}") or default
        return str(found).partition(",")[0]

    database = given.get("dbname") or os.environ.get("PGDATABASE") or given.get("user") or "the user's"
    port = first("port", "5432")
    return whole, first("host", "localhost"), int(port) if port.isdigit() else 5432, str(database)


def _shown(conninfo: str) -> str:
    """A connection string without its password."""
    if "://" in conninfo:
        return public_url(conninfo)
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", rf"\1{MASK}", conninfo)
