"""What backends over a network share: a client for each event loop, deadlines and new attempts, and writes whose
answer was lost.

- `PerLoop`: one client (a pool of connections, say) for each event loop that uses the backend, and new ones in a
  forked child.
- `Retrying`: runs an attempt again when its connection was lost. Each attempt has a deadline, and so have all together.
- `Slots`: what a write carries, so that the server knows it again and does it once, however often it is sent.

A backend of one's own imports them as those of the plugins do; docs/howto/write-a-backend.md shows how they go
together.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import uuid4

from pocket_plug.errors import (
    AnswerLostError,
    ConfigError,
    ConflictError,
    StoreClosedError,
    StoreError,
    StoreUnreachableError,
)
from pocket_plug.primitives.forking import after_fork, new_lock
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.waiting import Waiter, to_its_end, wake

T = TypeVar("T")

LONGEST_CLOSE = 5.0
"""Seconds that `PerLoop.close` waits, at most, for clients of other event loops: one of them may be blocked, even by
the caller."""

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds: the longest pause after the first lost attempt, and after many. Each is random, from 0 on ("full jitter"),
so that all who lost the same server don't come back at the same moments."""

DEFAULT_STORE = "main"
_STORE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


def check_store(system: str, store: str) -> None:
    """Raise ConfigError if the option `store=`, a data set's name within the server, can't be used."""
    if not _STORE.fullmatch(store):
        raise ConfigError(
            f"{system}: store is {store!r:.80}; give a name of 1 to 40 letters, digits and any of `_.-` that begins with a "
            "letter or digit"
        )


# ---------------------------------------------------------------- one client for each event loop
_left_alone: list[object] = []
"""In a forked child: what belongs to its parent. It is kept, since to collect it could close what the two share: a
driver would say goodbye on the parent's connection, and a loop would take the connection out of the epoll set that
the parent waits on."""


class _Life(Generic[T]):
    """A client's life on its loop: an asynchronous generator, since an event loop ends those that have begun on it
    before it closes."""

    def __init__(self, client: Callable[[], T], close: Callable[[T], Awaitable[object]]) -> None:
        self.waiters: list[Waiter[None]] = []
        """Who waits for its end."""
        self._generator = self._live(client, close)

    async def _live(self, make: Callable[[], T], close: Callable[[T], Awaitable[object]]) -> AsyncGenerator[T]:
        client = make()
        try:
            yield client
        finally:
            try:
                await close(client)
            except asyncio.CancelledError:  # with all tasks, as the loop ends; it waits for what they still do
                await close(client)
                raise
            finally:
                wake([waiter.give(None) for waiter in self.waiters])

    def begin(self) -> T:
        """Make the client, on the running loop. By hand: nothing is awaited before the generator yields."""
        try:
            self._generator.__anext__().send(None)
        except StopIteration as begun:
            client: T = begun.value
            return client
        raise AssertionError("it awaits nothing")

    async def end(self) -> None:
        """Close the client."""
        await self._generator.aclose()


class PerLoop(Generic[T]):
    """A client for each event loop that uses the backend, made by `make` on the loop that first asks for it.

    A loop that ends takes its client along: `asyncio.run`, and whoever else calls `loop.shutdown_asyncgens()`, awaits
    `close(client)` before the loop is closed. In a forked child the parent's clients are left alone, and new ones are
    made. A `close` that is cancelled is called again.

        self._pools = PerLoop(lambda: Pool(url), lambda pool: pool.close())
        …
        pool = self._pools.here()
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[object]]) -> None:
        self._make, self._close = make, close
        self._clients: dict[asyncio.AbstractEventLoop | None, T] = {}
        self._lives: dict[asyncio.AbstractEventLoop, _Life[T]] = {}
        self._ending: set[asyncio.Task[None]] = set()  # a loop holds its tasks weakly
        self._is_closed = False
        self._lock = new_lock()
        after_fork(self._leave_alone)

    def here(self) -> T:
        """The running loop's client. Raises StoreClosedError after `close`, RuntimeError where no loop runs, and what
        `make` raises."""
        client = self._clients.get(asyncio._get_running_loop())
        return self._made() if client is None else client

    def _made(self) -> T:
        loop = asyncio.get_running_loop()
        life: _Life[T] = _Life(self._make, partial(self._end_of, loop))
        client = None if self._is_closed else life.begin()
        with self._lock:
            if client is None or self._is_closed:  # closed meanwhile: collected, it ends on its loop
                raise StoreClosedError("the store is closed; open it again: with SyncStore(…), async with Store(…)")
            self._forget_closed_loops()
            self._lives[loop] = life
            self._clients[loop] = client
        return client

    def _forget_closed_loops(self) -> None:
        """Of loops that were closed without an end of their generators nothing can be closed any more."""
        for loop in [loop for loop in self._lives if loop.is_closed()]:
            self._forget(loop, self._clients.get(loop))

    def _forget(self, loop: asyncio.AbstractEventLoop, client: T | None) -> None:
        if self._clients.get(loop) is client:
            self._clients.pop(loop, None)
            self._lives.pop(loop, None)

    async def _end_of(self, loop: asyncio.AbstractEventLoop, client: T) -> None:
        self._forget(loop, client)
        await self._close(client)

    async def close(self) -> None:
        """Close all clients: this loop's here, those of other loops there, and those of a loop that doesn't run just
        now at its end.

        Clients of other loops are waited for, `LONGEST_CLOSE` seconds at most. It may be called again.
        """
        here = asyncio.get_running_loop()
        with self._lock:
            self._is_closed, self._clients = True, {}
            lives = self._of_running_loops()
            self._lives = {loop: self._lives[loop] for loop in self._lives.keys() - lives.keys()}
        waiters = [self._end_there(loop, life) for loop, life in lives.items() if loop is not here]
        if here in lives:
            await asyncio.shield(self._end_here(lives[here]))
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_CLOSE):
                for waiter in waiters:
                    await waiter

    def _of_running_loops(self) -> dict[asyncio.AbstractEventLoop, _Life[T]]:
        return {loop: life for loop, life in self._lives.items() if loop.is_running()}

    def _end_here(self, life: _Life[T]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(life.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    def _end_there(self, loop: asyncio.AbstractEventLoop, life: _Life[T]) -> Waiter[None]:
        """End it from another loop's thread; the waiter is woken at its end."""
        waiter = Waiter[None]()
        life.waiters.append(waiter)
        with suppress(RuntimeError):  # the loop is closed by now, and its client with it
            loop.call_soon_threadsafe(self._end_here, life)
        return waiter

    def _leave_alone(self) -> None:
        """In a forked child."""
        _left_alone.extend((self._clients, self._lives, self._ending))
        self._clients, self._lives, self._ending = {}, {}, set()


# ---------------------------------------------------------------- deadlines, and new attempts
def _nothing() -> None: ...


class Attempt:
    """One attempt at an operation, as `Retrying` runs it."""

    __slots__ = ("awaits", "cut", "is_over", "number", "sent")

    def __init__(self, number: int) -> None:
        self.number = number
        """1 for the first."""
        self.cut: Callable[[], object] = _nothing
        """Closes the attempt's socket at once, without a goodbye. Set it once there is a connection: it is called at
        the deadline, before the attempt is cancelled, since a driver may want to tell the server of a cancellation,
        and that one doesn't answer."""
        self.sent = False
        """May the server have been told to write? Set it before a write is sent."""
        self.is_over = False
        """Is its time over?"""
        self.awaits = "answer"
        """What has not come when its time is over, in the words of the error."""


@dataclass(frozen=True)
class Retrying:
    """Runs an operation, and again after a lost connection, after pauses at random, until `patience` seconds are over.

    `server` is what errors call it: kind, host, port and data set, never a password. `lost` are the exceptions by
    which the driver says that the connection is lost or can't be made; all others are raised at once. `timeout` is
    the deadline for each attempt, in seconds; `attempts` is how many there are at most, for those who only want to
    know whether the server is there. The driver's own retries have to be switched off: it would send a write
    again, and meet its own conflict.

        entry = await retrying(lambda attempt: self._get(attempt, key))
        with slots.token() as token:
            version = await retrying.write(lambda attempt: self._put(attempt, token, changes))

    A read is simply done again. A write carries a token of `Slots`; it goes on to its end through cancellations.
    Raises StoreUnreachableError if the patience is over; of a write that may have landed AnswerLostError.
    """

    server: str
    lost: tuple[type[Exception], ...]
    timeout: float = 5.0
    patience: float = 30.0
    attempts: int | None = None
    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep
    public: Callable[[str], str] = public_url
    """Makes of a driver's message what may be shown: without passwords."""

    async def __call__(self, attempt: Callable[[Attempt], Awaitable[T]]) -> T:
        until = self.now() + self.patience
        number, sent = 0, False
        failure: Exception | None = None
        while True:
            number += 1
            this = Attempt(number)
            seconds = max(0.0, min(self.timeout, until - self.now()))
            try:
                return await self._in_time(attempt, this, seconds)
            except self.lost as error:
                sent = sent or this.sent
                failure = error
            except _OutOfTimeError as error:
                sent = sent or this.sent
                if (
                    failure is None or seconds == self.timeout
                ):  # else what was left of the patience: the failure before says more
                    failure = error
            pause = random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (number - 1)))  # noqa: S311 - no secret
            if self.now() + pause >= until or number == self.attempts:
                raise self._given_up(number, sent, failure) from failure
            await self.pause(pause)

    async def write(self, attempt: Callable[[Attempt], Awaitable[T]]) -> T:
        """The same for a write: once begun it goes on when the caller is cancelled, for `timeout` seconds at most.

        So nothing lands after the caller was told that it did not.
        """
        begun: list[asyncio.Task[Any] | None] = []
        try:
            task, cancelled = await to_its_end(self._begun(attempt, begun), self.timeout)
        except GeneratorExit:  # closed: nobody waits for it
            raise
        except BaseException:  # interrupted; it may have been in the middle of waiting
            if begun:
                await asyncio.wait({task for task in begun if task is not None})
            begun.append(None)
            raise
        if cancelled is not None:
            if not task.cancelled():
                task.exception()  # seen
            raise cancelled
        return task.result()

    async def _begun(self, attempt: Callable[[Attempt], Awaitable[T]], begun: list[asyncio.Task[Any] | None]) -> T:
        if begun:  # interrupted before
            raise asyncio.CancelledError
        begun.append(asyncio.current_task())
        return await self(attempt)

    async def _in_time(self, attempt: Callable[[Attempt], Awaitable[T]], this: Attempt, seconds: float) -> T:
        """One attempt. Raises _OutOfTimeError at its deadline."""
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        timer = task.get_loop().call_later(seconds, _expire, this, task)
        try:
            return await attempt(this)
        except (Exception, asyncio.CancelledError) as error:
            if not this.is_over:
                raise
            # whatever the driver makes of a closed socket, or of the cancellation
            if task.cancelling() - 1 > before:  # the caller was cancelled, too
                raise asyncio.CancelledError from error
            raise _OutOfTimeError(this.awaits, seconds) from error
        finally:
            timer.cancel()
            if this.is_over:
                task.uncancel()

    def _given_up(self, attempts: int, sent: bool, failure: Exception) -> StoreError:
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        last = self.public(f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__)
        if isinstance(failure, _OutOfTimeError):
            last = str(failure)
        if sent:
            return AnswerLostError(
                f"{self.server}: a write was sent, and its answer did not come within {self.patience:g} s ({times}; the last "
                f"one: {last}); whether it has landed is not known: read what it wrote before you do it again, or wait longer "
                "(timeout=… for an attempt, patience=… for all)"
            )
        tried = f", and could not for {self.patience:g} s" if self.attempts is None else ""
        return StoreUnreachableError(
            f"{self.server} can't be reached{tried} ({times}; the last one: {last}); "
            "check that it runs, its address and its load, or wait longer (timeout=… for an attempt, patience=… for all)"
        )


class _OutOfTimeError(Exception):
    def __init__(self, awaited: str, seconds: float) -> None:
        super().__init__(f"no {awaited} within {seconds:.3g} s")


def _expire(attempt: Attempt, task: asyncio.Task[Any]) -> None:
    attempt.is_over = True
    try:
        attempt.cut()
    finally:
        task.cancel()


# ---------------------------------------------------------------- writes whose answer was lost
class Token(NamedTuple):
    """What a write carries: `slot`, 32 letters, and its `sequence` there, from 1 on."""

    slot: str
    sequence: int


class Slots:
    """Slots for writes: each is used by one write at a time, and gives each of them the next number.

    The server keeps for each slot the last number with what came of it, written in the transaction (or script) of the
    write itself:

    - a higher number is done, and noted with the version that it got;
    - the same number again is not done again: it is answered with what was noted;
    - a lower one is refused: a copy of an earlier write that comes late.

    So a write may be sent until it is answered, and lands once. A conflict has to be noted as well when an attempt
    sends a write again (`attempt.number > 1`): else the copy that was lost could land after the caller was told of
    the conflict. The server may forget a slot that was not used for a day.
    """

    def __init__(self) -> None:
        self._free: list[Token] = []
        after_fork(self._begin_anew)

    @contextmanager
    def token(self) -> Generator[Token]:
        """The token of one write. If the outcome isn't known at its end, its slot is never used again."""
        try:
            last = self._free.pop()
        except IndexError:
            last = Token(uuid4().hex, 0)
        token = Token(last.slot, last.sequence + 1)
        try:
            yield token
        except ConflictError:
            self._free.append(token)
            raise
        self._free.append(token)

    def _begin_anew(self) -> None:
        """In a forked child: its parent uses them."""
        self._free = []
