"""What backends over a network share: a client for each event loop, deadlines and retries, and writes that are sent again
without taking effect twice.

- `PerLoop`: one client (a pool of connections, say) for each event loop that uses the backend, and new ones in a
  forked child.
- `Retrying`: tries an operation again after its connection was lost. Each attempt has a deadline, and so has the operation.
- `Slots`: tokens by which a server recognises a write, so that it is done once, however often it is sent.

Backends of plugins import them; docs/howto/write-a-backend.md shows how they are used together.
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
    CorruptRecordError,
    StoreError,
    StoreUnreachableError,
)
from pocket_plug.primitives.forking import after_fork, new_lock
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.waiting import Waiter, to_its_end, wake

from .pool import closed

T = TypeVar("T")

LONGEST_CLOSE = 5.0
"""The most seconds that `PerLoop.close` waits for clients of other event loops: one may be blocked, even by the caller."""

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""The longest pauses in seconds, after the first lost attempt and after many. Each pause is random, from 0 on ("full jitter"),
so that clients of the same server don't return at the same moments."""

DEFAULT_STORE = "main"
_STORE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


def check_store(system: str, store: str) -> None:
    """Raise ConfigError if the option `store=`, a data set's name within the server, can't be used."""
    if not _STORE.fullmatch(store):
        raise ConfigError(
            f"{system}: store is {store!r:.80}; give a name of 1 to 40 letters, digits and any of `_.-` that begins with a "
            "letter or digit"
        )


def name_in(server: str, found: bytes) -> str:
    """The name of an entry, as a server lists it. Raises CorruptRecordError for one that no store has written."""
    try:
        return found.decode()
    except UnicodeDecodeError:
        raise CorruptRecordError(
            f"{server}: an entry has the name {found[:80]!r}, which is not UTF-8: it is damaged, or another program wrote it; "
            "remove it on the server"
        ) from None


# ---------------------------------------------------------------- one client for each event loop
_left_alone: list[object] = []
"""In a forked child: the parent's clients. They are kept, since their finalizers could close what both processes share: a driver
would end the parent's session, and a loop would remove the connection from the epoll set that the parent waits on."""


class _Life(Generic[T]):
    """Owns a client on its event loop. It is an asynchronous generator, since an event loop ends its generators before it
    closes."""

    def __init__(self, client: Callable[[], T], close: Callable[[T], Awaitable[object]]) -> None:
        self.waiters: list[Waiter[None]] = []
        """They are woken once the client is closed."""
        self._generator = self._live(client, close)

    async def _live(self, make: Callable[[], T], close: Callable[[T], Awaitable[object]]) -> AsyncGenerator[T]:
        client = make()
        try:
            yield client
        finally:
            try:
                await close(client)
            except asyncio.CancelledError:  # the loop ends: it has cancelled all tasks, and waits for their cleanup
                await close(client)
                raise
            finally:
                wake([waiter.give(None) for waiter in self.waiters])

    def begin(self) -> T:
        """Make the client on the running loop. The generator is driven by hand, since it awaits nothing before it yields."""
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
    """A client for each event loop that uses the backend. `make` is called on the loop that needs a client.

    When a loop ends, its client is closed: `asyncio.run`, and all others that call `loop.shutdown_asyncgens()`, await
    `close(client)` before the loop is closed. In a forked child the parent's clients are not touched, and new ones are
    made. If `close` is cancelled, it is called again.

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
        """The running loop's client. Raises StoreClosedError after `close`, RuntimeError if no loop runs, and the errors of
        `make`."""
        client = self._clients.get(asyncio._get_running_loop())
        return self._made() if client is None else client

    def _made(self) -> T:
        loop = asyncio.get_running_loop()
        life: _Life[T] = _Life(self._make, partial(self._end_of, loop))
        client = None if self._is_closed else life.begin()
        with self._lock:
            if client is None or self._is_closed:  # closed meanwhile; the collected generator closes its client
                raise closed()
            self._forget_closed_loops()
            self._lives[loop] = life
            self._clients[loop] = client
        return client

    def _forget_closed_loops(self) -> None:
        """Forget the clients of loops that were closed without ending their generators: they can't be closed any more."""
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
        """Close all clients: the running loop's here, those of other running loops on these, and those of loops that don't run
        now when these end.

        It waits for clients of other loops, `LONGEST_CLOSE` seconds at most. It may be called again.
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
        """End it from another loop's thread; the waiter is woken once the client is closed."""
        waiter = Waiter[None]()
        life.waiters.append(waiter)
        with suppress(RuntimeError):  # the loop is closed, and its client with it
            loop.call_soon_threadsafe(self._end_here, life)
        return waiter

    def _leave_alone(self) -> None:
        """In a forked child: keep the parent's clients without touching them."""
        _left_alone.extend((self._clients, self._lives, self._ending))
        self._clients, self._lives, self._ending = {}, {}, set()


# ---------------------------------------------------------------- deadlines and retries
def _nothing() -> None: ...


class Attempt:
    """One attempt at an operation, as `Retrying` runs it."""

    __slots__ = ("awaits", "cut", "is_over", "number", "sent")

    def __init__(self, number: int) -> None:
        self.number = number
        """1 for the first."""
        self.cut: Callable[[], object] = _nothing
        """Closes the attempt's socket at once, without a message to the server. Set it once there is a connection. It is called
        at the deadline, before the attempt is cancelled: a driver may tell the server of a cancellation, and wait for an answer
        that doesn't come."""
        self.sent = False
        """May the server have got a write? Set it before a write is sent."""
        self.is_over = False
        """Has its deadline passed?"""
        self.awaits = "answer"
        """What it waits for, for the error at its deadline."""


@dataclass(frozen=True)
class Retrying:
    """Runs an operation. After a lost connection it tries again, after random pauses, until `patience` seconds have passed.

    `server` is its name in errors: kind, host, port and data set, never a password. `lost` are the driver's exceptions for a
    connection that is lost or can't be made; all others are raised at once. `timeout` is the deadline for each attempt, in
    seconds. `attempts` is the highest number of attempts, for callers that only want to know whether the server is there.
    Switch the driver's own retries off: it would send a write again, and be in conflict with itself.

        entry = await retrying(lambda attempt: self._get(attempt, key))
        with slots.token() as token:
            version = await retrying.write(lambda attempt: self._put(attempt, token, changes))

    A read is simply done again. A write carries a token of `Slots`, and continues to its end if its caller is cancelled. Raises
    StoreUnreachableError after `patience`, but AnswerLostError if a write may have been stored.
    """

    server: str
    lost: tuple[type[Exception], ...]
    timeout: float = 5.0
    patience: float = 30.0
    attempts: int | None = None
    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep
    public: Callable[[str], str] = public_url
    """Removes passwords from a driver's message."""

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
                # otherwise the attempt was cut short by the patience, and the failure before says more
                if failure is None or seconds == self.timeout:
                    failure = error
            longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(number - 1, 10))  # beyond 2.0 ** 1023 it is an error
            pause = random.uniform(0, longest)  # noqa: S311 - no secret
            if self.now() + pause >= until or number == self.attempts:
                raise self._given_up(number, sent, failure) from failure
            await self.pause(pause)

    async def write(self, attempt: Callable[[Attempt], Awaitable[T]]) -> T:
        """The same for a write. Once begun, it continues if the caller is cancelled, for `timeout` seconds at most.

        So nothing is stored after the caller was told that it wasn't.
        """
        begun: list[asyncio.Task[Any] | None] = []
        try:
            task, cancelled = await to_its_end(self._begun(attempt, begun), self.timeout)
        except GeneratorExit:  # the coroutine was closed: nobody waits for the result
            raise
        except BaseException:  # interrupted, perhaps while it waited for the task
            if begun:
                await asyncio.wait({task for task in begun if task is not None})
            begun.append(None)
            raise
        if cancelled is not None:
            if not task.cancelled():
                task.exception()  # mark it as retrieved
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
            # the driver may raise anything for a closed socket or a cancellation
            if task.cancelling() - 1 > before:  # the caller was cancelled as well
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
                f"one: {last}); whether it was committed is not known: read what it wrote before you do it again, or wait "
                "longer (timeout=… for each attempt, patience=… for all together)"
            )
        tried = f", and could not for {self.patience:g} s" if self.attempts is None else ""
        return StoreUnreachableError(
            f"{self.server} can't be reached{tried} ({times}; the last one: {last}); "
            "check that it runs, its address and its load, or wait longer (timeout=… for each attempt, patience=… for all "
            "together)"
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


# ---------------------------------------------------------------- writes that are sent again
class Token(NamedTuple):
    """Identifies a write: `slot`, 32 letters, and its `sequence` number in the slot, from 1 on."""

    slot: str
    sequence: int


class Slots:
    """Slots for writes. A slot is used by one write at a time, and gives each write the next number.

    For each slot the server stores the last number and its result, in the transaction (or script) of the write itself:

    - a write with a higher number is done, and its number is stored with the version that it got;
    - a write with the same number is not done again: the answer is the stored result;
    - a write with a lower number is refused: it is a late copy of an earlier write.

    So a write may be sent until it is answered, and is done once. If an attempt sends a write again (`attempt.number > 1`), the
    server has to store a conflict as well: otherwise the copy that was lost could be stored after the caller was told of the
    conflict. The server may forget a slot that was not used for a day.
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
        """In a forked child: the parent uses the slots."""
        self._free = []
