"""Notifies of each write to a data set, by LISTEN and NOTIFY. It uses a thread with a connection of its own, since the program's
loops may be blocked.

NOTIFY makes writes slower: of all transactions that notify, one commits at a time. So a write notifies only while somebody
watches, which the subscription stores in the data set's table `about`. Then it locks the data set for a moment: writes that
didn't see this have committed by then, and later writes see it.

Notifications ("words") arrive in the order of the commits, which isn't the order of versions. So `_Told` tracks the version up to
which all writes were notified.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from random import uniform
from time import monotonic
from uuid import uuid4

import psycopg
from psycopg.errors import LockNotAvailable
from psycopg.pq import ExecStatus

from pocket_plug.primitives.forking import after_fork, new_lock
from pocket_plug.primitives.redaction import public_url
from pocket_plug.store.backend import Watcher

from .schema import DataSet

WATCH_EVERY = 1.0
"""Seconds between two checks of the server. A write is notified within this plus `timeout`; otherwise `lost` is called."""

LONGEST_HOLD = 0.1
"""The most seconds that writers are blocked if the notification of a version is missing: it was never written, say."""

LONGEST_PAUSE = 2.0
"""The most seconds between two attempts to subscribe."""

_WATCHED = "UPDATE {s}.about SET watched_until = greatest(watched_until, clock_timestamp() + interval '60 s')"
_IS_WATCHED = (
    "SELECT watched_until > clock_timestamp(), watched_until > clock_timestamp() + interval '30 s' FROM {s}.about"
)
# A write that has drawn a version holds the lock until it ends, so no write up to the last version drawn is still running.
_SINCE_NOW = (
    "SET LOCAL lock_timeout = {milliseconds}; SELECT pg_advisory_xact_lock({lock}); SELECT last_value FROM {s}.versions"
)

_left_alone: list[object] = []
"""In a forked child: the parent's connections, which must not be collected."""

_logger = logging.getLogger("pocket_plug")


class _SilentServerError(Exception):
    """The server didn't answer in time, or didn't deliver the subscription's own notification, or its clock has jumped."""


class Subscription:
    """Notifies a watcher of writes to a data set, from `start` to `close`. In a forked child it has to be started again."""

    def __init__(self, watcher: Watcher, data: DataSet, conninfo: str, lock: int, timeout: float) -> None:
        self._watcher, self._data, self._conninfo, self._timeout = watcher, data, conninfo, timeout
        self._whole = lock
        self._lock = new_lock()
        self._thread: _Thread | None = None
        after_fork(self._begin_anew)

    def start(self) -> None:
        """Start the thread, unless it is running."""
        with self._lock:
            if self._thread is None:
                self._thread = _Thread(self._live, f"pocket_plug watch {self._data.schema}")
                self._thread.start()

    def close(self) -> None:
        """End the thread and wait for it. The watcher is not notified afterwards."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close(self._timeout + LONGEST_PAUSE)

    def _begin_anew(self) -> None:
        if self._thread is not None:
            _left_alone.append(self._thread)
            self._thread = None
            self._watcher.lost()

    # ------------------------------------------------------------ in the thread
    def _live(self, thread: _Thread) -> None:
        lost, reason = 0, ""
        while not thread.is_closed:
            try:
                with _Line(thread, self._conninfo, self._timeout) as line:
                    told = self._subscribe(line)
                    if reason:
                        _logger.info("%s: other programs' writes are notified again", self._data.server)
                    lost, reason = 0, ""
                    self._watcher.back(told.up_to)
                    try:
                        while self._look(line, told):
                            pass
                    finally:
                        if not thread.is_closed:
                            self._watcher.lost()
            except (psycopg.Error, OSError, ValueError, _SilentServerError) as error:
                lost += 1
                before, reason = reason, public_url(" ".join(str(error).split()))
                if reason != before and not thread.is_closed:  # once for each reason, however long it lasts
                    _logger.warning(
                        "%s: other programs' writes are not notified now (%s); until they are, reads go to the server",
                        self._data.server,
                        reason,
                    )
                thread.pause(uniform(0, min(LONGEST_PAUSE, 0.1 * 2.0 ** min(lost, 10))))  # noqa: S311 - no secret

    def _subscribe(self, line: _Line) -> _Told:
        """Subscribe to all writes after its return. It also sends itself a word, since some poolers don't pass words on."""
        line.ask(f'LISTEN "{self._data.schema}"')
        line.ask(self._data.sql(_WATCHED))
        return _Told(self._landed(line, self._timeout, lambda words: None))

    def _landed(self, line: _Line, hold: float, tell: Callable[[list[str]], None]) -> int:
        """Return a version up to which all writes are committed, and pass their words to `tell`.

        New writes wait until running ones have committed, but no more than `hold` seconds: then it raises LockNotAvailable.
        """
        word = f"?{uuid4().hex}"
        milliseconds = max(1, int(1000 * hold))
        [[version]] = line.ask(self._data.sql(_SINCE_NOW, lock=self._whole, milliseconds=milliseconds))
        line.ask(f"SELECT pg_notify('{self._data.schema}', '{word}')")
        until = monotonic() + self._timeout
        while word not in (words := line.told()):
            tell(words)
            if not line.wait(until - monotonic()):
                raise _SilentServerError(
                    "no notification arrives: LISTEN needs the server itself, or a pooler in session mode"
                )
        tell(words)
        return int(version)

    def _look(self, line: _Line, told: _Told) -> bool:
        """Pass on what arrives within WATCH_EVERY; then check the server, and close a gap that has lasted. False once closed."""
        before, until = told.up_to, monotonic() + WATCH_EVERY
        while line.wait(until - monotonic()):
            self._tell(line.told(), told)
        if line.is_closed:
            return False
        [[is_watched, is_watched_on]] = line.ask(self._data.sql(_IS_WATCHED))
        if is_watched != "t":
            raise _SilentServerError("the server's clock has jumped")
        if is_watched_on != "t":
            line.ask(self._data.sql(_WATCHED))
        self._tell(line.told(), told)
        if told.has_gap and told.up_to == before:
            with suppress(LockNotAvailable):  # the next look tries again
                told.skip_to(self._landed(line, LONGEST_HOLD, lambda words: self._tell(words, told)))
                self._watcher.changed({}, told.up_to)
        return True

    def _tell(self, words: list[str], told: _Told) -> None:
        for word in words:
            if word.startswith("?"):
                continue
            if not word:  # the write has more keys than fit into a word
                told.has_gap = True
                self._watcher.lost()
                self._watcher.back(told.up_to)
                continue
            versions = _versions(word)
            told.add(versions.values())
            self._watcher.changed(versions, told.up_to)


def _versions(word: str) -> Mapping[str, int]:
    """Parse a word from the function `write`: `version:key …`, each key in hexadecimal.

    >>> _versions("7:61 7:62")
    {'a': 7, 'b': 7}
    """
    pairs = (each.split(":") for each in word.split(" "))
    try:
        return {bytes.fromhex(key).decode(): int(version) for version, key in pairs}
    except ValueError:
        raise ValueError("another program has sent a notification on this channel") from None


class _Told:
    """Tracks the version up to which all writes were notified. A gap closes soon, unless its version was never written (the
    connection was lost, say), or isn't in a word (the write had versions of its own, or too many keys for a word).

    >>> told = _Told(4)
    >>> told.add([6])
    >>> told.up_to, told.has_gap
    (4, True)
    >>> told.add([5])
    >>> told.up_to, told.has_gap
    (6, False)
    """

    def __init__(self, up_to: int) -> None:
        self.up_to = up_to
        self.has_gap = False
        self._behind_gap = set[int]()

    def add(self, versions: Iterable[int]) -> None:
        """Note that these versions were notified."""
        self._behind_gap.update(version for version in versions if version > self.up_to)
        while self.up_to + 1 in self._behind_gap:
            self.up_to += 1
            self._behind_gap.remove(self.up_to)
        self.has_gap = bool(self._behind_gap)

    def skip_to(self, version: int) -> None:
        """Note that no version up to this one is missing."""
        self.up_to = max(self.up_to, version)
        self._behind_gap = {each for each in self._behind_gap if each > self.up_to}
        self.add(())


class _Thread(threading.Thread):
    """The subscription's thread. A pipe wakes it when it has to end."""

    def __init__(self, live: Callable[[_Thread], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._live = live
        self.is_closed = False
        self.wake_up, self._wake = os.pipe()
        self.connection: psycopg.Connection | None = None

    def run(self) -> None:
        try:
            self._live(self)
        finally:
            os.close(self.wake_up)

    def pause(self, seconds: float) -> None:
        """Wait so many seconds, or until `close` is called."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.wake_up, selectors.EVENT_READ)
            selector.select(seconds)

    def close(self, patience: float) -> None:
        self.is_closed = True
        os.close(self._wake)  # this makes the other end readable
        self.join(patience)


class _Line:
    """A connection with a deadline for each wait. psycopg connects; after that libpq is called directly."""

    def __init__(self, thread: _Thread, conninfo: str, timeout: float) -> None:
        self._thread, self._timeout = thread, timeout
        # at least 2 seconds, libpq's minimum
        thread.connection = psycopg.Connection.connect(conninfo, autocommit=True, connect_timeout=max(2, int(timeout)))
        self._pgconn = thread.connection.pgconn
        self._pgconn.nonblocking = 1
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pgconn.socket, selectors.EVENT_READ)
        self._selector.register(thread.wake_up, selectors.EVENT_READ)

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        self._pgconn.finish()
        self._thread.connection = None

    @property
    def is_closed(self) -> bool:
        """Does the thread have to end?"""
        return self._thread.is_closed

    def wait(self, seconds: float) -> bool:
        """Wait until something arrives from the server. False if nothing does in so many seconds, or if the thread has to end."""
        events = self._selector.select(max(0.0, seconds))
        if self.is_closed or not events:
            return False
        self._pgconn.consume_input()
        return True

    def told(self) -> list[str]:
        """The words that have arrived."""
        words = list[str]()
        while (told := self._pgconn.notifies()) is not None:
            words.append(told.extra.decode())
        return words

    def ask(self, sql: str) -> list[list[str]]:
        """Run statements, and return the rows of the last one, as text."""
        until = monotonic() + self._timeout
        pgconn, rows, failure = self._pgconn, list[list[str]](), None
        pgconn.send_query(sql.encode())
        pgconn.flush()
        while True:
            while pgconn.is_busy():
                if not self.wait(until - monotonic()):
                    raise _SilentServerError(f"no answer within {self._timeout:g} s")
            if (result := pgconn.get_result()) is None:
                if failure is not None:
                    raise failure
                return rows
            if result.status == ExecStatus.FATAL_ERROR:
                failure = psycopg.errors.error_from_result(result)
            rows = [
                [(result.get_value(row, column) or b"").decode() for column in range(result.nfields)]
                for row in range(result.ntuples)
            ]
