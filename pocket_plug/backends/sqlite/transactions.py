"""One transaction: the requests in it, the versions that they get, and their outcomes.

A request is a write, or another operation that needs the writer. It is done as a whole or not at all, even if others in the
same transaction fail.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from pocket_plug.codec import bound, place_of
from pocket_plug.errors import ConflictError
from pocket_plug.primitives.waiting import Waiter
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Clock, Put, is_expected

from .connections import Connections, roll_back
from .records import Execute, Records
from .refusals import REFUSALS
from .statements import COUNT, DELETE, DELETE_IF_NOT_NEWER, FREE, PUT, PUT_IF_NEWER, REAP, SHRINK, VERSION

REAP_EVERY = 16
"""After so many changes, up to twice as many expired entries are removed."""

RESERVED = 1024
"""The least number of versions that are reserved at a time. If the stored counter is a multiple of it, some may be unused."""

RESERVE_AFTER = 16
"""An instance reserves versions after so many commits in a row, with no commit by another instance in between."""

_UNKNOWN = (0, -1)


class Request:
    """One write, and its outcome. Its `clock` decides what has expired when it is done."""

    __slots__ = ("changes", "clock", "error", "expect", "is_queued", "version", "waiter")
    waiter: Waiter[None]
    """Woken by the writer thread, if that thread does the request."""

    def __init__(
        self, clock: Clock, changes: Sequence[Change] = (), expect: Mapping[str, int] = NO_EXPECTATIONS
    ) -> None:
        self.clock, self.changes, self.expect = clock, changes, expect
        self.version = 0
        self.is_queued = False
        self.error: Exception | None = None

    def outcome(self) -> int:
        """The version that it got. Raises its error if it failed."""
        if self.error is not None:
            raise self.error
        return self.version

    def serve(self, execute: Execute, version: int) -> int:
        """Do a request without changes, in the open transaction; returns the last version after it."""
        raise NotImplementedError


class Compaction(Request):
    """The request to free about `size` bytes of the file; `freed` is how many it has freed."""

    __slots__ = ("freed", "size")

    def __init__(self, clock: Clock, size: int) -> None:
        super().__init__(clock)
        self.size, self.freed = size, 0

    def serve(self, execute: Execute, version: int) -> int:
        ((_, before, page),) = execute(FREE).fetchall()
        execute(SHRINK.format(max(1, self.size // page))).fetchall()  # it frees a page for each row that is fetched
        ((_, after, _),) = execute(FREE).fetchall()
        self.freed = int(before - after) * int(page)
        return version


class Settlement(Request):
    """The request for the last version, if another instance may have reserved some: that one has to reserve again."""

    __slots__ = ()

    def serve(self, execute: Execute, version: int) -> int:
        self.version = version + _is_reserved(version)
        return self.version


class Transactions:
    """The transactions of one backend. Callers of `commit` hold the connections' `writing`."""

    def __init__(self, connections: Connections, records: Records) -> None:
        self._connections = connections
        self._file = connections.file
        self._records = records
        self._versions = _UNKNOWN  # its last version, and the stored counter after its last commit
        self._alone = 0  # its commits in a row, with no other instance's in between
        self._unreaped = 0

    def begin_anew(self) -> None:
        """After a fork, in the child: the versions that are reserved are the parent's."""
        self._versions = _UNKNOWN

    def given(self, stored: int) -> tuple[int, bool]:
        """By the stored counter: the last version, and True; or the last one that another instance has reserved, and False."""
        given, counter = self._versions
        return (given, True) if counter == stored else (stored, not _is_reserved(stored))

    def commit(self, writer: sqlite3.Cursor, batch: list[Request]) -> None:
        """Do the requests in the transaction that has begun, commit, and note in each its outcome."""
        known, self._versions = self._versions, _UNKNOWN  # in case this is interrupted
        try:
            self._file.look_with_logs()
            versions = self._do(writer.execute, batch, *known)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this write's outcome
            roll_back(writer)
            self._versions = known
            if len(batch) == 1:
                batch[0].error = self._connections.explained(error)
            else:
                self._commit_singly(writer, batch)
            return
        if versions is None:
            roll_back(writer)
            self._versions = known
            return
        try:
            writer.execute("COMMIT")
        except REFUSALS as error:
            roll_back(writer)
            for request in batch:
                request.error = self._connections.explained(error)
            if versions[1] != known[1]:
                return  # the counter may have changed: it has to be read again
        self._versions = versions  # also after a failed commit: it may have been stored, so its versions are used up

    def _commit_singly(self, writer: sqlite3.Cursor, batch: list[Request]) -> None:
        """A request in the batch can't be done: do each in a transaction of its own, so that no other fails with it."""
        for request in batch:
            try:
                writer.execute("BEGIN IMMEDIATE")
            except REFUSALS as error:
                request.error = self._connections.explained(error)
            else:
                self.commit(writer, [request])

    def _do(self, execute: Execute, batch: list[Request], given: int, counter: int) -> tuple[int, int] | None:
        """Do the requests in the open transaction; returns the new `_versions`, or None if all were in conflict."""
        now = batch[0].clock()  # all requests of one backend have the same clock
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

    def _counter_for(self, version: int) -> int:
        """The counter to store after that version: the version itself, or a higher one, to reserve versions for later writes.

        A reserved version is used without a change of the counter, whose page would be a second page to write in most commits.
        An instance that finds another counter than it has stored continues from there, so no version is used twice, and the
        versions of each key increase. Versions that are reserved at a crash are never used.
        """
        if self._file.is_owned:  # then versions are consecutive, so the counter must not look as if some were reserved
            return version + _is_reserved(version)
        self._alone += 1
        if self._alone <= RESERVE_AFTER:
            return version
        return version - version % RESERVED + 2 * RESERVED

    def _apply(self, execute: Execute, request: Request, version: int, now: float) -> int:
        """Do one request in the open transaction, unless it conflicts; returns the last version after it."""
        request.error = None
        if not request.changes:
            return request.serve(execute, version)
        records = self._records
        if request.expect:
            changed: list[str] = []
            for key, expected in request.expect.items():
                if not is_expected(records.version(execute, str(key), now), expected):
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
                    not execute(PUT_IF_NEWER, row).rowcount and records.is_damaged(execute, key)
                ):
                    execute(PUT, row)
            elif change.version is None or (
                not execute(DELETE_IF_NOT_NEWER, (key, own)).rowcount and records.is_damaged(execute, key)
            ):
                execute(DELETE, (key,))
        self._unreaped += len(request.changes)
        return highest


def _is_reserved(version: int) -> bool:
    return version > 0 and version % RESERVED == 0
