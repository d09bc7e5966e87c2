"""The backend that `Persistence(mode="behind")` writes to: a queue in front of a durable backend, and the thread that drains it.

All queued changes go into one atomic write, so the durable backend always has a prefix of history. Reads are answered by
the queue, else by the durable backend: together they are one backend, but the caller of `write` doesn't wait for the
durable part.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from pocket_plug.codec import Sealed, default_codec, record_of
from pocket_plug.errors import CodecError, ConfigError, ConflictError, StoreBusyError, StoreClosedError, StoreError
from pocket_plug.primitives.forking import after_fork, new_rlock
from pocket_plug.primitives.locks import Lock, in_the_middle, is_held_here
from pocket_plug.primitives.waiting import Waiter, drive, wake
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Delete, Entry, Put, is_expected
from pocket_plug.store.scanning import merged

T = TypeVar("T")

_logger = logging.getLogger("pocket_plug")

DELAYS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds between the tries of a batch while the backend is busy; after the last one the batch has failed."""

_owners: weakref.WeakSet[WriteBehind] = weakref.WeakSet()
_claiming = Lock()


class _Queued:
    """The last change of a key: a Put's record in the codec's bytes, or None for a Delete."""

    __slots__ = ("expires_at", "key", "record", "version")

    def __init__(self, key: str, record: bytes | None, expires_at: float | None, version: int) -> None:
        self.key = key
        self.record = record
        self.expires_at = expires_at
        self.version = version

    def alive(self, now: float) -> bool:
        return self.record is not None and (self.expires_at is None or now < self.expires_at)

    def entry(self, now: float) -> Entry | None:
        """The entry for a reader, with a value of its own; None for a deleted or expired one."""
        if self.record is None or not self.alive(now):
            return None
        try:
            return Entry(default_codec.decode(self.record), self.version, self.expires_at)
        except CodecError as error:
            raise type(error)(f"key {self.key!r}: {error}") from error

    def change(self) -> Change:
        """The change for the durable backend. An expired one too, or the value before it would be visible again."""
        if self.record is None:
            return Delete(self.key, self.version)
        try:
            value = default_codec.decode(self.record)
        except CodecError as error:  # its readers get the error; it must not fail the whole batch
            value = Sealed(self.record, error)
        return Put(self.key, value, self.expires_at, self.version)


Queue = dict[str, _Queued]


class _Ticket:
    """A write that waits for room."""

    __slots__ = ("admitted", "slots", "waiter")

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.admitted = False
        self.waiter = Waiter[None]()


class WriteBehind(Backend):
    """A backend whose writes are done when they are queued; a thread writes them to `durable`.

    It locks `durable` exclusively: from `open` to `close` nothing else may write there. `max_pending` bounds the keys that
    are queued or being written; further writes wait for room. If the backend is busy, the thread tries again after `DELAYS`,
    by `sleep`. Any other error there is raised by the next write, flush or close, and each of these lets the thread try
    again; no queued change is given up before `close`.
    """

    needs_loop = False
    buffered = True

    def __init__(self, durable: Backend, max_pending: int, *, sleep: Callable[[float], None] = time.sleep) -> None:
        if durable.needs_loop:
            raise ConfigError(
                f"persistence mode='behind' to {durable!r}: that backend needs an event loop, and the queue must be "
                "written even when there is no loop any more; use mode='through'"
            )
        self.durable = durable
        self.clock = durable.clock
        self.survives = durable.survives
        self.inline_read = durable.inline_read
        self.max_pending = max_pending
        self._sleep = sleep
        self._is_open = self._drains = False
        self._begin_empty()

    def __repr__(self) -> str:
        return f"WriteBehind({self.durable!r})"

    def _begin_empty(self) -> None:
        self._lock = new_rlock()  # guards all of these
        # Used to wait and notify only: its `__enter__` is a Python function, which may be interrupted.
        self._state = threading.Condition(self._lock)
        self._pending: Queue = {}
        self._in_flight: Queue = {}
        self._since = self._in_flight_since = 0.0
        self._reserved = 0  # slots of admitted writes that aren't queued yet
        self._tickets: deque[_Ticket] = deque()
        self._admitted: list[Waiter[None]] = []  # to be woken
        self._flushes: list[tuple[int, Waiter[None]]] = []
        self._closers: list[Waiter[None]] = []
        self._looks: list[list[Queue]] = []
        """For each running look into the durable backend, the batches written meanwhile."""
        self._version = 0  # the last one that a write got
        self._counters = {0}  # what the durable backend's counter may be; after a lost answer there are several
        self._failure: Exception | None = None
        self._intrusion: StoreError | None = None
        self._try_again = False

    # ------------------------------------------------------------ state for observers
    @property
    def length(self) -> int:
        """How many keys have a write that the durable backend doesn't have yet."""
        with self._lock:
            return len({**self._in_flight, **self._pending})

    @property
    def age(self) -> float:
        """How many seconds the oldest write has been waiting; 0 if none is waiting."""
        with self._lock:
            if not self._in_flight and not self._pending:
                return 0.0
            return max(0.0, self.clock() - (self._in_flight_since if self._in_flight else self._since))

    @property
    def failure(self) -> Exception | None:
        """The error of the last try to write; None if it succeeded."""
        return self._failure

    # ------------------------------------------------------------ opening and closing
    async def open(self) -> None:
        """Open the durable backend and lock it exclusively. Raises StoreBusyError if another store has locked it."""
        if self._is_open:
            return
        if self._drains:  # a close was interrupted: the queue must still be written
            await self.close()
        thread = threading.Thread(target=self._drain, name=f"drain to {self.durable!r}"[:60], daemon=True)
        try:
            self._claim()
            await self.durable.open()
            try:
                if self.durable.survives:
                    await self.durable.own()
                self._begin_empty()
                self._version = await self.durable.version()
                self._counters = {self._version}
                atexit.register(self._close_at_exit)  # daemon threads end with the process, whatever is queued
                self._is_open = self._drains = True
                thread.start()
            except BaseException:
                if thread.ident is None:
                    self._is_open = self._drains = False
                await self.close()
                raise
        except BaseException:
            if not self._drains:
                _owners.discard(self)
            raise

    def _claim(self) -> None:
        with _claiming:
            if any(owner.durable is self.durable and owner is not self for owner in _owners):
                raise StoreBusyError(
                    f"{self.durable!r} is locked by another store with persistence mode='behind'; share this other store"
                )
            _owners.add(self)

    async def close(self) -> None:
        """Write what is queued, then close the durable backend. Raises StoreError if the queue can't be written."""
        self._refuse_in_between()
        waiter = Waiter[None]()
        with self._lock:
            if self._drains:
                self._closers.append(waiter)
                self._state.notify_all()
                if self._is_open:
                    self._is_open, self._try_again = False, True
            else:
                wake([waiter.give(None)])
            wake([ticket.waiter.fail(self.not_open()) for ticket in self._tickets])
            self._tickets.clear()
        try:
            await waiter.shielded()
        finally:
            if not self._drains:  # else it was interrupted, and what is queued is written at exit
                atexit.unregister(self._close_at_exit)
                _owners.discard(self)
                await self.durable.close()
        lost, self._pending = len(self._pending), {}
        if lost:
            raise StoreError(
                f"{self.durable!r} was closed without the last writes of {lost} key(s), which are lost: {self._failure}"
            ) from self._failure
        self._raise_intrusion()

    def _close_at_exit(self) -> None:
        try:
            drive(self.close())
        except Exception as error:  # no caller could catch it
            _logger.error("persistence: at the end of the process: %s", error, exc_info=error)

    def forget(self) -> None:
        """In a forked child: the queue is the parent's, which has the thread and the lock of the durable backend."""
        atexit.unregister(self._close_at_exit)
        self._is_open = self._drains = False
        self._begin_empty()

    def not_open(self) -> StoreClosedError:
        """The error for all calls while it isn't open."""
        return StoreClosedError(
            f"{self.durable!r} is not open for queued writes: it was closed, or not opened yet (with SyncStore(…), "
            "async with Store(…)), or it was opened by the process that this one was forked from"
        )

    def _refuse_unless_open(self) -> None:
        if not self._is_open:
            raise self.not_open()

    def _refuse_in_between(self) -> None:
        """Raise StoreError if this interrupts an operation of the same thread: the draining thread waits for its end."""
        if is_held_here(self._lock):
            raise in_the_middle(f"an operation of the queue to {self.durable!r}", "write, flush or close it")

    def _refuse_unless_usable(self) -> None:
        """Raise the error of the last try to write, if there is one, and let the thread try again."""
        self._refuse_unless_open()
        self._raise_intrusion()
        if self._failure is not None:
            self._try_again = True
            self._state.notify_all()
            raise self._refusal(self._failure)

    def _refusal(self, failure: Exception) -> StoreError:
        kind = StoreBusyError if isinstance(failure, StoreBusyError) else StoreError
        error = kind(
            f"the queued writes to {self.durable!r} failed: {failure}. They stay queued ({self.length} key(s)); each write, "
            "flush and close starts another try, and new writes are refused until a try succeeds"
        )
        error.__cause__ = failure
        return error

    def _raise_intrusion(self) -> None:
        """Raise, once, the error that somebody else has written to the durable backend."""
        intrusion, self._intrusion = self._intrusion, None
        if intrusion is not None:
            raise intrusion

    # ------------------------------------------------------------ reading
    def _queued(self, key: str) -> _Queued | None:
        return self._pending.get(key) or self._in_flight.get(key)

    def _find(self, key: str) -> _Queued | None:
        with self._lock:
            if not self._is_open:  # in place, for each read
                raise self.not_open()
            return self._queued(key)

    async def _look(self, keys: Collection[str], then: Callable[[Mapping[str, _Queued | Entry]], T]) -> T:
        """Call `then` with the entries of these keys, in both together, as of the moment of the call; returns its answer.

        The durable backend is read before that moment. A batch that is written in between has left the queue, and what was
        read may not have it yet: so each look gets all batches that are written during it.
        """
        landed: list[Queue] = []
        try:
            with self._lock:
                self._refuse_unless_open()
                missing = tuple(key for key in keys if self._queued(key) is None)
                if not missing:
                    return then(dict((key, found) for key in keys if (found := self._queued(key)) is not None))
                self._looks.append(landed)
            durable = await self.durable.read_many(missing)
            with self._lock:
                known: dict[str, _Queued | Entry] = {**durable}
                for batch in (*landed, self._in_flight, self._pending):  # the last one that has a key counts
                    known.update((key, batch[key]) for key in keys if key in batch)
                return then(known)
        finally:
            try:
                self._end_look(landed)
            except BaseException:  # interrupted
                self._end_look(landed)
                raise

    def _end_look(self, landed: list[Queue]) -> None:
        with self._lock:
            self._looks = list(look for look in self._looks if look is not landed)

    async def read(self, key: str) -> Entry | None:
        """The queued entry of the key, else the durable backend's."""
        queued = self._find(key)
        return await self.durable.read(key) if queued is None else queued.entry(self.clock())

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The same for several keys, as of one moment, with one read of the durable backend."""
        known = await self._look(list(dict.fromkeys(keys)), dict)  # queued values are decoded without the lock
        now = self.clock()
        entries = {key: found.entry(now) if isinstance(found, _Queued) else found for key, found in known.items()}
        return {key: entry for key, entry in entries.items() if entry is not None}

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The keys of both in one order; each is listed if it is alive when the scan reaches it."""
        with self._lock:
            self._refuse_unless_open()
            queued = {**self._in_flight, **self._pending}
        if limit == 0:
            return
        given = 0
        both = merged(self.durable, queued, prefix, after=after, reverse=reverse, size=limit)
        async with aclosing(both) as keys:
            async for key in keys:
                if await self._is_alive(key, key in queued):
                    yield key
                    given += 1
                    if given == limit:
                        return

    async def _is_alive(self, key: str, was_queued: bool) -> bool:
        """Is a key still there? One that was queued when the scan began may have been written or removed since."""
        queued = self._find(key)
        if queued is not None:
            return queued.alive(self.clock())
        return not was_queued or await self.durable.read(key) is not None

    async def version(self) -> int:
        """The last version that a write got. The durable backend's counter follows it."""
        self._refuse_unless_open()
        return self._version

    async def check(self) -> list[str]:
        """The faults of the durable backend."""
        return await self.durable.check()

    async def compact(self, size: int) -> int:
        """Compact the durable backend."""
        return await self.durable.compact(size)

    # ------------------------------------------------------------ writing
    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Queue all changes or none, once there is room. Raises CodecError for a value that can't be stored."""
        self._refuse_in_between()
        if not changes:
            return await self._enter((), expect)
        # Encoded here: a value may be changed by its owner from now on, and one that can't be stored must be refused.
        records = [record_of(change.key, change.value) if isinstance(change, Put) else None for change in changes]
        ticket = _Ticket(min(len({change.key for change in changes}), self.max_pending))
        try:
            await self._reserve(ticket)
            return await self._enter([*zip(changes, records, strict=True)], expect)
        finally:
            try:
                self._free_slots(ticket)  # from here on the queued keys themselves are counted
            except BaseException:  # interrupted
                self._free_slots(ticket)
                raise

    async def _reserve(self, ticket: _Ticket) -> None:
        """Wait for room, in line."""
        with self._lock:
            self._refuse_unless_usable()
            if not self._tickets and self._fits(ticket.slots):
                ticket.admitted = True
                self._reserved += ticket.slots
                return
            self._tickets.append(ticket)
        await ticket.waiter

    def _free_slots(self, ticket: _Ticket) -> None:
        """Free the reserved slots, or leave the line. Can be called again."""
        with self._lock:
            if ticket.admitted:
                ticket.admitted = False
                self._reserved -= ticket.slots
            elif ticket in self._tickets:
                self._tickets.remove(ticket)
            self._admit()

    def _fits(self, slots: int) -> bool:
        return self._reserved + len(self._pending) + len(self._in_flight) + slots <= self.max_pending

    def _admit(self) -> None:
        """Admit the tickets that there is room for now."""
        while self._tickets and self._fits(self._tickets[0].slots):
            ticket = self._tickets[0]
            ticket.admitted = True
            self._reserved += ticket.slots
            self._admitted += [ticket.waiter]
            del self._tickets[0]
        if self._admitted:
            wake(waiter.give(None) for waiter in self._admitted)
            self._admitted = []

    async def _enter(self, changes: Sequence[tuple[Change, bytes | None]], expect: Mapping[str, int]) -> int:
        """Check and queue in one step, after reading from the durable backend the keys that have to be compared."""
        asked = {*expect, *(change.key for change, _ in changes if change.version is not None)}

        def enter(known: Mapping[str, _Queued | Entry]) -> int:
            self._check(expect, known)
            return self._queue(changes, known)

        return await self._look(asked, enter)

    def _check(self, expect: Mapping[str, int], known: Mapping[str, _Queued | Entry]) -> None:
        now = self.clock()
        changed: list[str] = []
        for key, expected in expect.items():
            found = known.get(key)
            alive = found is not None and (not isinstance(found, _Queued) or found.alive(now))
            if not is_expected(found.version if found is not None and alive else 0, expected):
                changed.append(key)
        if changed:
            raise ConflictError(changed)

    def _queue(self, changes: Iterable[tuple[Change, bytes | None]], known: Mapping[str, _Queued | Entry]) -> int:
        """Add the changes to the queue, with the next version, and notify the thread."""
        self._refuse_unless_open()
        if not changes:
            return self._version
        version = highest = self._version + 1
        new: Queue = {}
        now = self.clock()
        for change, record in changes:
            key, own = str(change.key), version
            if change.version is not None:
                own = change.version
                found = new.get(key) or self._pending.get(key) or known.get(key)
                if found is not None and (found.version > own or (found.version == own and record is not None)):
                    continue
                highest = max(highest, own)
            new[key] = _Queued(key, record, change.expires_at if isinstance(change, Put) else None, own)
        self._state.notify_all()  # before the changes are added: an interrupt may come in between
        if not self._pending:
            self._since = now
        self._version = highest
        self._pending |= new
        return version

    async def flush(self) -> None:
        """Wait until the durable backend has what was queued when this was called, and has flushed it too."""
        self._refuse_in_between()
        waiter = Waiter[None]()
        try:
            with self._lock:
                self._refuse_unless_open()
                if not self._pending and not self._in_flight:
                    wake([waiter.give(None)])
                else:
                    self._flushes.append((self._version, waiter))
                    self._try_again = self._failure is not None
                    self._state.notify_all()
            await waiter
        finally:
            with self._lock:
                self._flushes = list(flush for flush in self._flushes if flush[1] is not waiter)
        self._raise_intrusion()
        await self.durable.flush()

    # ------------------------------------------------------------ draining
    def _drain(self) -> None:
        """Run in the thread: all that was queued while the last batch was written goes into the next batch."""
        while (taken := self._take()) is not None:
            version, batch = taken
            failure: Exception | None = None
            try:
                self._write_in_tries(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next call raises it
                failure = error
            except BaseException as error:  # noqa: BLE001 - the thread must not end: others wait for it
                failure = StoreError(f"{type(error).__name__}: {error}")
            wake(self._failed(batch, failure) if failure else self._done(version))
        with self._lock:
            self._drains = False
            closers = [waiter.give(None) for waiter in self._closers]
        wake(closers)

    def _take(self) -> tuple[int, Queue] | None:
        with self._lock:
            while not self._pending or (self._failure is not None and not self._try_again):
                if not self._is_open:
                    return None
                self._state.wait()
            self._try_again = False
            self._in_flight, self._pending = self._pending, {}
            self._in_flight_since = self._since
            return self._version, self._in_flight

    def _write_in_tries(self, batch: Queue) -> None:
        """One atomic write, tried again while the backend is busy."""
        changes = [queued.change() for queued in batch.values()]
        highest = max(queued.version for queued in batch.values())
        for delay in DELAYS:
            try:
                return self._write(changes, highest)
            except StoreBusyError as busy:
                _logger.warning("persistence: %r is busy, next try in %g s: %s", self.durable, delay, busy)
                self._sleep(delay)
        return self._write(changes, highest)

    def _write(self, changes: Sequence[Change], highest: int) -> None:
        """Write, and check the version: if it is not the next one, somebody else has written, and may have won."""
        try:
            version = drive(self.durable.write(changes))
        except BaseException:  # it may have been stored all the same
            self._counters |= {max(counter + 1, highest) for counter in self._counters}
            raise
        expected, self._counters = self._counters, {max(version, highest)}
        if version - 1 not in expected:
            intrusion = StoreError(
                f"another writer has written to {self.durable!r}, which this process has locked for persistence mode='behind'; a "
                "key that both wrote may have the other writer's value there, and this store's value in memory. Let only one "
                "store at a time write there"
            )
            with self._lock:
                self._intrusion = intrusion
                self._version = max(self._version, *self._counters)
            _logger.error("persistence: %s", intrusion)

    def _done(self, version: int) -> list[Waiter[Any]]:
        with self._lock:
            for look in self._looks:
                look.append(self._in_flight)
            self._in_flight = {}
            self._failure = None
            done = [waiter.give(None) for wanted, waiter in self._flushes if wanted <= version]
            self._flushes = [flush for flush in self._flushes if flush[0] > version]
            self._admit()
            return done

    def _failed(self, batch: Queue, failure: Exception) -> list[Waiter[Any]]:
        """Put the batch back, before what was queued since; returns all waiters, with the error."""
        _logger.error("persistence: %r rejects the queued writes: %s", self.durable, failure, exc_info=failure)
        with self._lock:
            self._pending, self._in_flight = {**batch, **self._pending}, {}
            self._since = self._in_flight_since
            self._failure = failure
            waiting = [waiter for _, waiter in self._flushes] + [ticket.waiter for ticket in self._tickets]
            self._flushes.clear()
            self._tickets.clear()
            return [waiter.fail(self._refusal(failure)) for waiter in waiting]


def _forget_all() -> None:
    global _claiming
    _claiming = Lock()
    for queue in list(_owners):
        queue.forget()
        _owners.discard(queue)


after_fork(_forget_all)
