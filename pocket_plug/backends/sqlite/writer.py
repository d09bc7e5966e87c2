"""Does the writes: in place if that blocks nobody, else in one thread, which commits all waiting requests together.

In a turn that thread begins the transaction before the caller reads, and keeps it open for that caller's write.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from operator import methodcaller
from time import monotonic

from pocket_plug.errors import StoreError
from pocket_plug.primitives.forking import Rested, is_under_way, take_part, wait_for_fork
from pocket_plug.primitives.waiting import Waiter, may_block, wake

from .connections import LONGEST_PAUSE, Connections, begin, roll_back
from .refusals import REFUSALS, is_busy
from .transactions import Request, Transactions

LONGEST_TURN = 1.0
"""The most seconds for which a turn keeps the file locked."""

_WAIT = 0.1  # seconds after which a turn checks whether its time is over or a fork is under way

_acquire_at_once: Callable[[threading.RLock], bool] = methodcaller("acquire", False)
# A commit that doesn't wait for the disk takes less time than waking the writer thread, which needs the interpreter's lock.
_acquire_soon: Callable[[threading.RLock], bool] = methodcaller("acquire", True, LONGEST_PAUSE)


class _Turn:
    """A time in which the writer thread keeps the file locked for one caller, until that has written or the time is over."""

    __slots__ = ("is_over", "request", "waiter")

    def __init__(self) -> None:
        self.waiter: Waiter[None] = Waiter()
        self.request: Request | None = None
        self.is_over = False


_current_turn: ContextVar[_Turn | None] = ContextVar("pocket_plug.turn", default=None)
"""The turn that the current call is in."""


class Writer:
    """The writer of one backend. Its thread keeps it alive, so that forks wait for it even if the backend itself is gone."""

    def __init__(self, connections: Connections, transactions: Transactions) -> None:
        self._connections = connections
        self._file = connections.file
        self._transactions = transactions
        self._begin_empty()
        take_part(self)

    def _begin_empty(self) -> None:
        self._lock = self._connections.lock  # guards all that follows, and `is_open`
        self._queued = threading.Condition(self._lock)
        self._queue: list[Request] = []
        self._turns: list[_Turn] = []
        self._turn: _Turn | None = None  # the one that has begun
        self._thread: threading.Thread | None = None
        self._closers: list[Waiter[None]] = []

    def __repr__(self) -> str:
        return f"SQLite({self._file.path!r})"  # for log messages about forks

    def rest(self) -> Rested:
        """Before a fork: close every connection that is not in use. Returns what `Connections.rest` does."""
        return self._connections.rest()

    def begin_anew(self) -> None:
        """After a fork, in the child: the queue and the lock are the parent's."""
        self._connections.begin_anew()
        self._begin_empty()
        self._transactions.begin_anew()

    async def close(self) -> None:
        """Do all queued requests, then close the file. Can be called again if it was interrupted."""
        self._connections.refuse_in_between()
        finished: Waiter[None] = Waiter()
        with self._lock:
            self._file.is_open = False
            thread = self._thread
            if thread is not None:
                self._closers.append(finished)
                self._queued.notify_all()
        try:
            if thread is not None:
                await finished.shielded()
                thread.join()
        finally:
            self._connections.close()

    # ------------------------------------------------------------ callers that write
    async def done(self, request: Request) -> int:
        """Do the request; returns its outcome once it is committed. If cancelled, it is withdrawn unless it has begun."""
        self._connections.refuse_in_between()
        if (not self._file.power or may_block()) and self._done_in_place(request):
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

    def _done_in_place(self, request: Request) -> bool:
        """Commit in the caller's thread; returns False if somebody is writing, and nothing was done."""
        if self._queue:
            return False
        connections, file = self._connections, self._file
        held: list[threading.RLock] = []
        try:
            # one call into C, so no interrupt comes in between
            held.extend(filter(_acquire_at_once, (connections.writing,)))
            if not held and not file.power and self._turn is None and may_block():
                held.extend(filter(_acquire_soon, (connections.writing,)))
            if not held:
                return False
            if not file.is_open:
                raise file.not_open()
            writer = connections.writer
            if writer is None:  # since a fork
                return False
            try:
                begin(writer)
                self._transactions.commit(writer, [request])
            except BaseException as error:
                roll_back(writer)  # a keyboard interrupt may have come between
                if isinstance(error, REFUSALS):
                    if is_busy(error):
                        return False
                    raise connections.explained(error) from error
                raise
        finally:
            if held:
                held[0].release()
        return True

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """The writer thread begins a transaction and keeps it open for the next request of this caller, one second at most."""
        self._connections.refuse_in_between()
        turn = _Turn()
        before = _current_turn.get()
        try:
            with self._lock:
                self._wake_thread(not self._turns)
                self._turns.append(turn)
            await turn.waiter
            _current_turn.set(turn)
            yield
        finally:
            try:
                self._end_turn(turn, before)
            except BaseException:  # interrupted
                self._end_turn(turn, before)
                raise

    def _end_turn(self, turn: _Turn, before: _Turn | None) -> None:
        with self._lock:
            _current_turn.set(before)
            turn.is_over = True
            if turn in self._turns:
                self._turns.remove(turn)
            self._queued.notify_all()

    def _wake_thread(self, is_waiting: bool) -> None:
        """Start the writer thread, or notify it of new work. Called with the lock held."""
        if not self._file.is_open:
            raise self._file.not_open()
        if self._thread is None:
            thread = threading.Thread(target=self._write_queued, name=f"writer of {self._file.path}", daemon=True)
            thread.start()
            self._thread = thread
        elif is_waiting:  # else it was notified already, or is busy and will look
            self._queued.notify_all()  # `notify` could wake a waiter that has gone, if an earlier one was interrupted

    def _enqueue(self, request: Request) -> None:
        """Pass a request to the writer thread, which is started for the first one."""
        with self._lock:
            turn = self._turn
            has_turn = turn is not None and turn is _current_turn.get() and turn.request is None
            self._wake_thread(has_turn or not self._queue)
            request.is_queued = True
            if turn is not None and has_turn:
                turn.request = request
            else:
                self._queue.append(request)

    def _withdraw(self, request: Request) -> bool:
        """Take a request back, unless it has begun; returns whether it was taken back."""
        with self._lock:
            try:
                self._queue.remove(request)
            except ValueError:
                return not request.is_queued
        return True

    # ------------------------------------------------------------ the writer thread
    def _write_queued(self) -> None:
        """Run in the thread: all requests that were queued during the last commit go into the next one."""
        with self._lock:
            me = threading.current_thread()
            if self._thread not in (None, me):  # there is another one, since the start of this one was interrupted
                return
            self._thread = me
        while True:
            with self._lock:
                while not self._queue and not self._turns and self._file.is_open:
                    self._queued.wait()
                if not self._queue and not self._turns:
                    self._thread = None
                    closers, self._closers = self._closers, []
                    wake([waiter.give(None) for waiter in closers])
                    return
                waiting = self._queue[:]
            with self._connections.writing:
                batch = [] if is_under_way() else self._write_batch(waiting)
            wake([request.waiter.give(None) for request in batch])
            if is_under_way():
                wait_for_fork()

    def _write_batch(self, waiting: list[Request]) -> list[Request]:
        """Begin a transaction, and then take the queue, so that requests can be withdrawn while it waits for other processes.

        If this process is about to be forked, no request is taken.
        """
        try:
            writer = self._connections.begun()
        except (*REFUSALS, StoreError) as error:
            with self._lock:
                turns, self._turns = self._turns, []
            wake([turn.waiter.fail(self._connections.explained(error)) for turn in turns])
            batch = [request for request in waiting if self._withdraw(request)]
            for request in batch:
                request.error = self._connections.explained(error)
            return batch
        if writer is None:
            return []
        first = self._written_in_turn()
        with self._lock:
            batch, self._queue = [*first, *self._queue], []
        if batch:
            self._transactions.commit(writer, batch)
        else:
            roll_back(writer)
        return batch

    def _written_in_turn(self) -> list[Request]:
        """Let the caller that has waited longest take its turn, in the transaction that has begun; returns its request."""
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
