"""The backend in Redis or Valkey: any number of programs on any number of machines share a data set there.

A read is one GET or MGET. A write is one script, which checks the expected versions, increments the counter, stores the changes
and publishes them, atomically. It carries a token, so that it is done once, however often it is sent
(`pocket_plug.backends.network`).
"""

from __future__ import annotations

import math
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from time import monotonic
from typing import Any, Literal, TypeVar, cast, get_args

from redis.exceptions import BusyLoadingError, ResponseError

from pocket_plug import Backend, Change, CodecError, ConflictError, CorruptRecordError, Delete, Entry, StoreError
from pocket_plug.backends.network import DEFAULT_STORE, Attempt, PerLoop, Retrying, Slots, Token, check_store, name_in
from pocket_plug.codec import bound, default_codec, is_whole, place_of, record_of
from pocket_plug.errors import AnswerLostError, StoreBusyError, StoreClosedError, WriteSizeError
from pocket_plug.primitives.urls import LEAST_WAIT, one_of, seconds, url_options
from pocket_plug.store.backend import NO_EXPECTATIONS, ProbeResult, Watcher

from .checking import check_server, look_at
from .connections import MOST, TLS_FILES, Connection, Pool, Server, call, cut, run_script
from .failures import DAMAGED_COUNTER, LOST, NotNowError, explained, moved_to
from .scripts import CHECK, HEAD, HELD, LAST_VERSION, LATE, RENEW_EVERY, SCAN, TAIL, WRITE, Script
from .turns import Turn, had
from .watching import Watching

T = TypeVar("T")
Durability = Literal["power", "process", "none"]
Do = Callable[[Connection], Awaitable[T]]

LONGEST_PAUSE = 0.01
"""The longest pause in seconds between two tries of a write while another caller has the turn. Each pause is random, so that no
caller that waits is preferred."""

PAGE = 256
"""How many names a scan, or a check of the index, reads from the server at a time, at most. For the command SCAN it is a hint."""

MOST_BYTES = 512 * 1024 * 1024
"""How many bytes the entries of one write may have. The server closes a connection that sends 1 GiB at once."""
ALWAYS_FIT = MOST_BYTES // default_codec.max_bytes - 1

MOST_CHANGES = 10_000
"""How many changes and expectations one write may have: they take some 100 ms, in which the server does nothing else."""


class Redis(Backend):
    """Entries of the data set `store` on a server that speaks Redis's protocol.

    `durability` names the failure that an acknowledged write must survive: "power" (also a crash of the server's machine),
    "process" (a crash of the server), or "none". `open` checks whether the server is configured for it, and raises
    StoreError if it isn't. `timeout` is the deadline for one attempt, in seconds, and `patience` that for all attempts
    at one operation.

    As a URL: `redis://host:6379/0?store=orders`, `rediss://user:password@host:6379/0` (TLS; `ssl_ca_certs=`,
    `ssl_certfile=` and `ssl_keyfile=` name files), `unix:///path/to/socket?db=0`. Raises ConfigError for invalid options.

    >>> Redis.from_url("redis://:hunter2@cache:6379/0?store=orders&durability=process")
    Redis('cache:6379, database 0', store='orders', durability='process')
    """

    needs_loop = True
    survives = True
    can_watch = True
    system = "redis"
    backed_up_by = "BGSAVE of Redis or Valkey, then a copy of its RDB file"
    max_changes = MOST_CHANGES

    def __init__(
        self,
        server: Server,
        *,
        store: str = DEFAULT_STORE,
        durability: Durability = "power",
        timeout: float = 5.0,
        patience: float = 30.0,
    ) -> None:
        check_store("redis", store)
        one_of("redis", "durability", durability, get_args(Durability))
        seconds("redis", "timeout", timeout, LEAST_WAIT)
        seconds("redis", "patience", patience, LEAST_WAIT)
        self.store, self.durability = store, durability
        self.timeout, self.patience = timeout, patience
        self.server = server
        self.address = server.address
        # Where to connect: the cluster's node with this data set, if it has redirected us, or None for the server of the URL.
        # If there is no answer, the other one of the two is asked next.
        self._at: tuple[str, int] | None = None
        self._not_at: tuple[str, int] | None = None
        tag = f"{{pocket:{store}}}"
        self._state = tag.encode()
        self._entry = f"{tag}:".encode()
        self._names, self._ends, self._slots, self._layout, self._try = (
            f"{tag}/{name}".encode() for name in ("names", "ends", "slots", "layout", "try")
        )
        self._changes = f"{tag}/changes".encode()
        self._title = f"redis at {server}, store {store!r}"
        self._pools: PerLoop[Pool] | None = None  # None unless it is open
        self._is_verified = False  # has `open` checked the server?
        self.retrying = Retrying(self._title, LOST, timeout, patience)
        self._tokens = Slots()
        self._hour, self._renewed = 0, set[str]()  # the slots that were renewed in this hour of the monotonic clock
        self._watching: Watching | None = None

    @classmethod
    def from_url(cls, url: str) -> Redis:
        """The backend that a URL names. Raises ConfigError, which names the option that was probably meant."""
        texts = dict.fromkeys(("store", "durability", *TLS_FILES), str)
        address, options = url_options(url, "redis", {**texts, "timeout": float, "patience": float, "db": int})
        files = {name: options.pop(name) for name in TLS_FILES if name in options}
        return cls(Server(address, options.pop("db", None), files), **options)

    def __repr__(self) -> str:
        return f"Redis({str(self.server)!r}, store={self.store!r}, durability={self.durability!r})"

    # ------------------------------------------------------------ opening and closing
    async def open(self) -> None:
        """Check whether the server can keep what the backend promises. Raises StoreError, with the settings to change, if not."""
        if self._pools is not None:
            return
        self._check_files()
        self._pools = PerLoop(
            lambda: Pool(lambda: self.server.connection(self._at)), lambda pool: pool.close(self.timeout)
        )

        async def look(connection: Connection) -> None:
            await check_server(
                connection, self._title, self.durability, self.clock, (self._layout, self._try, self._changes)
            )

        try:
            await self._read(look)
        except BaseException:
            await self.close()
            raise
        self._is_verified = True

    async def probe(self, patience: float) -> ProbeResult:
        """Make the checks of `open` that only read. `open` also tries the commands of scripts, and stores the layout's number."""
        self._check_files()
        few = replace(self.retrying, timeout=min(patience, self.timeout), patience=patience, attempts=2)
        pool = Pool(lambda: self.server.connection(self._at))

        async def look(connection: Connection) -> ProbeResult:
            return await look_at(connection, self._title, self.durability, self.clock, self._layout)

        try:
            return await few(lambda this: self._attempt(this, look, pool))
        finally:
            await pool.close(0)

    def _check_files(self) -> None:
        for name, path in self.server.files.items():
            if not os.path.isfile(path):
                raise StoreError(
                    f"{self._title}: {name} is {path!r}, but there is no such file on this machine; correct the URL"
                )
        if (certificate := self.server.files.get("ssl_certfile")) is None:
            return
        try:  # with a password, or OpenSSL would ask for it on the terminal
            key = self.server.files.get("ssl_keyfile")
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
        except OSError as error:
            raise StoreError(
                f"{self._title}: ssl_certfile and ssl_keyfile can't be used ({error}); both must be readable, in PEM format and "
                "belong together, and the key must have no pass phrase"
            ) from error

    async def close(self) -> None:
        """Wait for operations in progress, for one timeout at most, and close the connections of all event loops."""
        pools, self._pools, self._is_verified = self._pools, None, False
        if self._watching is not None:
            self._watching.stop()
        if pools is not None:
            await pools.close()

    async def watch(self, watcher: Watcher) -> None:
        """Subscribe, in a thread of its own.

        Writes are notified within `WATCH_EVERY` (1 s) plus the timeout, or `watcher.lost` is called.
        """
        self._watching = Watching(self._title, self.server, self._changes, watcher, self.timeout)

    # ------------------------------------------------------------ reading
    async def read(self, key: str) -> Entry | None:
        """Read by one GET."""
        data = await self.call("GET", self._entry + key.encode())
        return None if data is None else self._entry_of(str(key), data, self.clock())

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """Read by one MGET, so that all entries are as of one moment."""
        names = [*dict.fromkeys(map(str, keys))]
        if not names:
            self._opened()
            return {}
        entries = [self._entry + name.encode() for name in names]
        found = await self.call("MGET", *entries)
        now = self.clock()
        return {
            name: entry
            for name, data in zip(names, found, strict=True)
            if data is not None and (entry := self._entry_of(name, data, now)) is not None
        }

    def _entry_of(self, key: str, data: bytes, now: float) -> Entry | None:
        """The entry in these bytes; None if it has expired. Raises CodecError if it is damaged."""
        try:
            if len(data) < HEAD.size + TAIL.size or data[: TAIL.size] != data[-TAIL.size :]:
                raise CorruptRecordError("its first and last 8 bytes, the version, differ: it was damaged or cut off")
            version, deadline = HEAD.unpack_from(data)
            expires_at = None if deadline != deadline else deadline
            record, place = data[HEAD.size : -TAIL.size], place_of(key, 0, expires_at)
            if expires_at is not None and expires_at <= now:
                if not is_whole(record, place):  # a damaged deadline must not hide the entry
                    raise CorruptRecordError(
                        "the record's checksum does not match: it was damaged, or its key, version or expiry time was changed"
                    )
                return None
            return Entry(default_codec.decode(record, place), version, expires_at)
        except CodecError as error:
            raise type(error)(f"{self._title}, key {key!r}: {error}") from error

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """Read the index page by page."""
        given, size = 0, PAGE if limit is None else min(limit, PAGE)
        first, last = _range(prefix.encode(), after.encode(), reverse)
        command = "ZREVRANGEBYLEX" if reverse else "ZRANGEBYLEX"
        if not size:
            self._opened()
        while given != limit:
            arguments = (2, self._names, self._ends, command, first, last, size, repr(self.clock()))
            found: list[bytes] = await self.run_script(SCAN, *arguments)
            for name in found[1:]:
                yield name_in(self._title, name)
                given += 1
                if given == limit:
                    return
            if not found[0]:
                return
            first, size = b"(" + found[0], PAGE

    async def check(self) -> list[str]:
        """Find entries that the index lacks, names without an entry, deadlines that differ, and versions above the counter.

        Raises StoreError if the counter is damaged.
        """
        await self.version()
        faults: list[str] = []
        cursor = b"0"
        while True:
            cursor, keys = await self.call("SCAN", cursor, "MATCH", self._entry + b"*", "COUNT", PAGE)
            faults += await self._faults_of(keys)
            if cursor == b"0":
                break
        for index in (self._names, self._ends):
            position = 0
            while page := await self.call("ZRANGE", index, position, position + PAGE - 1):
                faults += await self._faults_of([self._entry + name for name in page])
                position += PAGE
        return [*dict.fromkeys(faults)]

    async def _faults_of(self, keys: Sequence[bytes]) -> list[str]:
        if not keys:
            return []
        found = await self.run_script(CHECK, len(keys) + 3, self._state, self._names, self._ends, *keys)
        pairs = zip(found[::2], found[1::2], strict=True)
        names = [key[len(self._entry) :].decode(errors="backslashreplace") for key in keys]
        return [f"key {names[place]!r} {_FAULTS[what]}" for what, place in pairs]

    async def version(self) -> int:
        """Read the counter. Raises StoreError if it is damaged."""
        counter: bytes | None = await self.call("HGET", self._state, b"")
        if counter is None:
            return 0
        if not counter.isdigit() or int(counter) > LAST_VERSION:
            raise StoreError(
                f"{self._title}: {DAMAGED_COUNTER} (it is '{counter[:40].decode(errors='backslashreplace')}')"
            )
        return int(counter)

    # ------------------------------------------------------------ writing
    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Run one script. If the connection is lost, the same write is sent again on another connection; it is done once."""
        size = len(changes) + len(expect)
        if size > MOST_CHANGES:
            raise WriteSizeError(
                f"{self._title}: a write has {size:,} changes and expectations; {MOST_CHANGES:,} are allowed, since the "
                "server does nothing else meanwhile; split it into several writes"
            )
        expected = [*expect]
        keys = [self._entry + key.encode() for key in (*expected, *(change.key for change in changes))]
        arguments: list[str | bytes | int] = [len(expected), len(changes), *expect.values()]
        for change in changes:
            arguments += self._arguments_of(change)
        if (
            len(changes) > ALWAYS_FIT
            and (bytes_ := sum(len(each) for each in arguments if isinstance(each, bytes))) > MOST_BYTES
        ):
            raise WriteSizeError(
                f"{self._title}: a write has {bytes_:,} bytes; {MOST_BYTES:,} are allowed, since the server closes a connection "
                "that sends more at once; split it into several writes"
            )
        turn = had.get()
        if turn is not None and turn.host is not self:
            turn = None
        who = "" if turn is None else turn.who
        fixed: list[str | bytes | int] = [
            4 + len(keys),
            self._state,
            self._names,
            self._ends,
            self._slots,
            *keys,
        ]

        async def send(connection: Connection, token: Token, again: bool) -> Any:
            if (hour := int(monotonic() / RENEW_EVERY)) != self._hour:
                self._hour, self._renewed = hour, set()
            renews = bool(changes) and token.slot not in self._renewed
            flags = (int(again), int(renews), who, repr(self.clock()))
            answer = await run_script(connection, WRITE, *fixed, *token, *flags, *arguments)
            if renews and isinstance(answer, int):
                self._renewed.add(token.slot)
            return answer

        if not changes:
            answer = await self._read(lambda connection: send(connection, Token("", 0), False))
        else:
            answer = await self._written(send)
            if turn is not None:
                turn.names.difference_update(str(change.key) for change in changes)
        if isinstance(answer, int):
            return answer
        code, *places = cast("list[int]", answer)
        if code == LATE:
            raise AnswerLostError(
                f"{self._title}: a later write has used this write's slot; whether this write was committed is not known"
            )
        raise ConflictError(str(expected[place - 1]) for place in places)

    async def _written(self, send: Callable[[Connection, Token, bool], Awaitable[Any]]) -> Any:
        """Send a write until it is answered, and again while another caller has the turn."""
        was_sent = was_lost = False  # was a copy sent, and was one not answered?

        async def attempt(this: Attempt) -> Any:
            async def do(connection: Connection) -> Any:
                nonlocal was_sent, was_lost
                if not connection.is_connected:
                    await connection.connect()
                again, before = was_sent, was_lost
                was_sent = was_lost = this.sent = True
                try:
                    answer = await send(connection, token, again)
                except (ResponseError, BusyLoadingError):  # the server refused it: nothing was done
                    was_sent, was_lost, this.sent = again, before, again
                    raise
                was_lost = before
                return answer

            return await self._attempt(this, do, self._opened().here())

        until = self.retrying.now() + self.patience
        with self._tokens.token() as token:
            try:
                while True:
                    answer = await self.retrying.write(attempt)
                    if isinstance(answer, int) or answer[0] != HELD:
                        return answer
                    if self.retrying.now() >= until:
                        raise StoreBusyError(
                            f"{self._title}: other callers locked the key during all {self.patience:g} s of waiting; try again, "
                            "or wait longer (patience=…)"
                        )
                    longest = min(answer[1] / 1000, LONGEST_PAUSE)
                    await self.retrying.pause(random.uniform(0, longest))  # noqa: S311 - no secret
            except AnswerLostError:
                raise
            except StoreError as error:
                if not was_lost:
                    raise
                raise AnswerLostError(
                    f"{self._title}: a write was sent and its answer was lost; whether it was committed is not known, since the "
                    f"server could not be asked again: {error}"
                ) from error

    def turn(self, names: Collection[str]) -> AbstractAsyncContextManager[None]:
        """A lease of a second at most for each key; the caller that has waited longest is next."""
        return Turn(self, names)

    def turn_keys(self, name: str) -> tuple[bytes, bytes, bytes]:
        """Three keys on the server: the state, the turn for this name, and the line of callers that wait for that turn."""
        return self._state, self._state + b"/turn/" + name.encode(), self._state + b"/line/" + name.encode()

    def _arguments_of(self, change: Change) -> tuple[str | bytes, str, str]:
        """The script's arguments for a change: the entry, its own version and the deadline, each empty if there is none."""
        own = "" if change.version is None else str(change.version)
        if change.version is not None and change.version > LAST_VERSION:
            raise StoreError(
                f"{self._title}, key {change.key!r}: its version is {change.version:,}; Redis counts up to {LAST_VERSION:,}"
            )
        if isinstance(change, Delete):
            return b"", own, ""
        record = record_of(change.key, change.value)
        deadline = math.nan if change.expires_at is None else change.expires_at
        ends = HEAD.pack(0, deadline)[TAIL.size :]
        entry = ends + bound(record, place_of(str(change.key), 0, change.expires_at))
        return entry, own, "" if change.expires_at is None else repr(float(deadline))

    # ------------------------------------------------------------ attempts
    def _opened(self) -> PerLoop[Pool]:
        if self._pools is None:  # `open` has not checked the server
            raise StoreClosedError(
                f"{self._title} is not open: it was closed, or not opened yet (with SyncStore(…), async with Store(…))"
            )
        return self._pools

    async def _read(self, do: Do[T]) -> T:
        return await self.retrying(lambda this: self._attempt(this, do, self._opened().here()))

    async def call(self, *command: str | bytes | int) -> Any:
        return await self._read(lambda connection: call(connection, *command))

    async def run_script(self, script: Script, *arguments: str | bytes | int) -> Any:
        return await self._read(lambda connection: run_script(connection, script, *arguments))

    async def _attempt(self, this: Attempt, do: Do[T], pool: Pool) -> T:
        """Make one attempt, on a connection of the pool. Raises one of LOST if another attempt may succeed."""
        connection: Connection | None = None
        is_whole, at = False, self._at
        try:
            if pool.is_full:
                this.awaits = f"free connection of the {MOST} that this event loop may have"
            connection = taken = await pool.take(this)
            this.cut, this.awaits = lambda: cut(taken), "answer"
            if self.server.is_tls and not connection.is_connected:
                this.awaits = "TLS handshake (does this port speak TLS? without it, write redis://)"
                await connection.connect()
                this.awaits = "answer"
            await self._verify_again(connection, pool)
            answer = await do(connection)
            is_whole = True
            return answer
        except ResponseError as error:
            found = self._explained(error, pool)
            is_whole = not isinstance(found, LOST)
            if found is error:
                raise
            raise found from error
        except Exception as error:
            if this.is_over:
                raise
            self._connect_elsewhere(at)
            found = self._explained(error, pool)
            if found is error:  # it must not be its own cause: a loop over causes would never end
                raise
            raise found from error
        finally:
            try:
                if this.is_over and connection is not None:
                    # the other connections may lead nowhere too, or the data set be on another node now
                    self._connect_elsewhere(at)
                    pool.forget()
                pool.leave(this, is_whole=is_whole)
            except BaseException:  # interrupted by a signal handler
                pool.leave(this, is_whole=False)
                raise

    def _connect_elsewhere(self, at: tuple[str, int] | None) -> None:
        """Connect elsewhere next, since there was no answer.

        Of several attempts that fail there only the first one does it: if each did, an even number would change nothing.
        """
        if self._at == at:
            self._at, self._not_at = self._not_at, at

    async def _verify_again(self, connection: Connection, pool: Pool) -> None:
        """After a loss, check again what `open` has checked: the server may have come back as a replica, or without its file."""
        losses = pool.losses
        if not self._is_verified or losses == pool.verified:
            return
        try:
            await look_at(connection, self._title, self.durability, self.clock, self._layout)
        except StoreError as error:
            raise NotNowError(str(error)) from error
        pool.verified = losses

    def _explained(self, error: Exception, pool: Pool) -> Exception:
        if (moved := moved_to(error)) is not None:
            self._at, self._not_at = (moved[0] or self.server.host, moved[1]), None
        found = explained(error, self._title)
        if isinstance(found, LOST):
            pool.forget()
        return found


def _range(prefix: bytes, after: bytes, reverse: bool) -> tuple[bytes, bytes]:
    """The first and the last bound of a scan, as ZRANGEBYLEX (in reverse: ZREVRANGEBYLEX) takes them.

    UTF-8 has no byte 0xFF, so the prefix with 0xFF sorts after all names with the prefix.
    """
    low, high = (b"[" + prefix, b"(" + prefix + b"\xff") if prefix else (b"-", b"+")
    if not reverse:
        return (b"(" + after if after and after >= prefix else low), high
    return (b"(" + after if after and after < prefix + b"\xff" else high), low


_FAULTS = {
    b"no entry": "is in the index, but there is no such entry",
    b"no entry with a deadline": "is in the index of deadlines, but there is no such entry",
    b"not listed": "is missing in the index, so scans don't return it",
    b"above the counter": "has a version above the counter, so its next version may be lower",
    b"another deadline": "has another deadline in the index of deadlines than in its entry",
}
