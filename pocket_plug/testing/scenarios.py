"""Helpers of the contracts: odd names, the model of a scan, and ways to run code concurrently, interrupted, or in a child."""

import asyncio
import faulthandler
import inspect
import os
import signal
import string
import sys
import threading
import traceback
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import wraps
from random import Random
from typing import TypeVar

import pytest

from pocket_plug.errors import ConflictError, StoreError
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Backend, Entry, Put
from pocket_plug.store.keys import MAX_KEY_BYTES
from pocket_plug.testing.interrupts import Interrupter, under

T = TypeVar("T")
Scenario = Callable[[Backend], Awaitable[None]]
HANGS = 60.0
"""Seconds after which something counts as hanging; a passing test doesn't wait."""


def awaited_by(fixture: str) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]:
    """For a test that is a coroutine function; pytest gets a plain one. The fixture is a function that opens what the test uses,
    and awaits the test with it as the first argument. The other arguments are fixtures as well.
    """

    def decorated(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
        itself, _, *others = inspect.signature(test).parameters.values()
        run = inspect.Parameter(fixture, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        signature = inspect.Signature([itself, run, *others])

        @wraps(test)
        def opened(*given: object, **fixtures: object) -> None:
            contract, run, *others = signature.bind(*given, **fixtures).args

            async def scenario(used: object) -> None:
                await test(contract, used, *others)

            run(scenario)

        setattr(opened, "__signature__", signature)  # noqa: B010 - pytest reads it, and type checkers don't know it
        return opened

    return decorated


_LETTERS = (
    string.ascii_letters + string.digits,
    "".join(map(chr, range(128))),  # with NUL
    "".join(map(chr, range(0x10000, 0x110000, 17))),  # of four bytes in UTF-8
)


def _random_key(letters: str, size: int) -> str:
    """A pseudo-random text of `size` bytes of these letters, the same each time."""
    return "".join(Random(size).choices(letters, k=size // len(letters[-1].encode())))  # noqa: S311 - no secret


ODD_KEYS = (
    "%",
    "_",
    "a%b",
    "a_b",
    "a:b",
    "axb",
    "'",
    "''; --",
    '"',
    "\\",
    "[a]",
    "*",
    "?",
    " ",
    "\t\n",
    "A",
    "a",
    "Ä",
    "ä",
    "a\u0308",
    "ß",
    "\u017f",
    "日本",
    "🙂",
    "\ud7ff",
    "\uffff",
    "\U00010000",
    "\U0010ffff",
    "\x00",
    "a\x00b",
    "a\x00",
    "k" * 1000,
    *(_random_key(letters, 1000) for letters in _LETTERS),
)
"""Names that could cause trouble with patterns, collations, quoting or length limits."""

LONG_KEYS = ("k" * MAX_KEY_BYTES, *(_random_key(letters, MAX_KEY_BYTES) for letters in _LETTERS))
"""Keys of the longest length that a backend must take; all but the first can't be compressed."""


LOSES = 10_000
"""So many conflicts in a row can't be caused by other writers: each conflict means that another write was stored."""


async def increment(backend: Backend, key: str, times: int) -> None:
    """Add 1 to a counter `times` times, each time by a write that expects the version that was read."""
    entry: Entry | None = None
    for _ in range(times):
        for _ in range(LOSES):
            entry = await backend.read(key)
            value, version = (entry.value, entry.version) if entry else (0, 0)
            try:
                await backend.write([Put(key, value + 1)], {key: version})
                break
            except ConflictError as conflict:
                if conflict.keys != frozenset({key}):
                    raise
        else:
            raise AssertionError(f"{LOSES} writes that expected what was read, {entry!r}, were all in conflict")


@contextmanager
def hasty_threads() -> Generator[None]:
    """Let Python switch threads some hundred times as often, so that rare interleavings happen."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


GIVES_WAY = 0.005
"""Seconds for which a thread waits for its rival once that has begun: the rival may itself have to wait for this thread."""


@contextmanager
def rival(act: Callable[[], T]) -> Generator[tuple[Callable[[], object], list[T]]]:
    """A thread that calls `act` when released, or else at the end. Yields the function that releases it, and a list that gets
    the result."""
    gate, begun, done, came_to = threading.Lock(), threading.Lock(), threading.Lock(), list[T]()

    def wait() -> None:
        gate.acquire()
        begun.release()
        came_to.append(act())
        done.release()

    def go() -> None:
        gate.release()
        begun.acquire()
        done.acquire(timeout=GIVES_WAY)

    for lock in (gate, begun, done):
        lock.acquire()
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield go, came_to
    finally:
        with suppress(RuntimeError):  # already released
            gate.release()
        thread.join(HANGS)
        assert not thread.is_alive(), "the rival thread hangs"


async def beside(
    backend: Backend, write: Callable[[int], Awaitable[object]], read: Callable[[], Awaitable[object]], times: int
) -> None:
    """Read `times` times during `write(1)`, `write(2)`, …, which run in a thread if the backend isn't bound to a loop."""
    over = threading.Event()

    async def write_on() -> None:
        n = 0
        while not over.is_set():
            await write(n := n + 1)
            for _ in range(n % 20 if backend.needs_loop else 0):  # so that readers with several steps get time
                await asyncio.sleep(0)

    async def read_on() -> None:
        for _ in range(times):
            await read()
            await asyncio.sleep(0)

    writing = write_on() if backend.needs_loop else asyncio.to_thread(lambda: drive(write_on()))
    task = asyncio.ensure_future(writing)
    try:
        with hasty_threads():
            await read_on()
    finally:
        over.set()
        await task


async def interrupted(backend: Backend, operation: Coroutine[object, object, T], interrupter: Interrupter) -> T:
    """Run an operation in this thread under the interrupter; without the loop, if the backend isn't bound to one."""
    if backend.needs_loop:
        return await under(interrupter, operation)
    with interrupter:
        return drive(operation)


async def in_a_thread(backend: Backend, operation: Coroutine[object, object, T], where: str) -> T:
    """Run an operation in another thread, if the backend isn't bound to a loop. Fails if it hangs after an interrupt `where`."""
    if backend.needs_loop:
        return await asyncio.wait_for(operation, HANGS)
    done: list[T] = []
    thread = threading.Thread(target=lambda: done.append(drive(operation)), daemon=True)
    thread.start()
    thread.join(HANGS)
    assert not thread.is_alive(), f"interrupted {where}, it blocks all others"
    return done[0]


async def keys_of(
    backend: Backend, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
) -> list[str]:
    """All keys of a scan."""
    return [key async for key in backend.scan(prefix, after=after, reverse=reverse, limit=limit)]


async def pages_of(backend: Backend, prefix: str, size: int, *, reverse: bool = False) -> AsyncGenerator[list[str]]:
    """All pages of `size` keys, as read by a client that knows only the last key of the page before."""
    page = await keys_of(backend, prefix, reverse=reverse, limit=size)
    while page:
        yield page
        last = page[-1]
        page = await keys_of(backend, prefix, after=last, reverse=reverse, limit=size)
        assert page == scanned(page, prefix, after=last, reverse=reverse), (
            f"a page that doesn't continue after {last!r}"
        )


def scanned(
    names: Iterable[str], prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
) -> list[str]:
    """The result of a scan over these names: a model of what `Backend.scan` documents."""
    found = sorted((name for name in names if name.startswith(prefix)), reverse=reverse)
    if after:
        found = [name for name in found if (name < after if reverse else name > after)]
    return found if limit is None else found[:limit]


CHILD_SECONDS = 60
"""Seconds after which a forked child counts as hanging, and is killed."""


def die_where_it_hangs() -> None:
    """In a child: after CHILD_SECONDS, write the tracebacks of all threads to stderr, and kill the process."""
    # the number of stderr: pytest may have replaced sys.stderr
    faulthandler.register(signal.SIGALRM, file=2, chain=True)
    signal.alarm(CHILD_SECONDS)


def fork() -> int:
    """`os.fork`, also beside other threads. Python warns of them since 3.12, and from 3.15 on a filter can make that an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def works_in_a_child(use: Callable[[], Coroutine[object, object, None]]) -> bool:
    """Fork, and run a coroutine in the child on a new event loop. Returns False if it raised StoreError; other errors fail."""
    child = fork()
    if child == 0:
        die_where_it_hangs()
        try:
            asyncio.run(use())
            os._exit(0)
        except StoreError:
            os._exit(1)
        except BaseException:  # noqa: BLE001 - a child can't raise to the test
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcome = "hung" if code == -signal.SIGALRM else f"failed with {code}"
    assert code in (0, 1), f"a forked child {outcome}; its traceback is on stderr"
    return code == 0


leaves_things_behind = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited",
    "ignore:unclosed database:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",  # an interrupt within a weakref callback
)
"""An interrupt may come just before something is awaited or closed: then the garbage collector ends it, with a warning."""
