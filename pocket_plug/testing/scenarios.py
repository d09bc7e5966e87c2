"""What the contracts are made of: odd names, what a scan must give, and ways to do things at once, interrupted, or in a child."""

import asyncio
import faulthandler
import os
import signal
import string
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import contextmanager, suppress
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
HANGS = 30.0
"""Seconds after which something is taken for hanging; it takes no time at all where all is well."""

_LETTERS = (
    string.ascii_letters + string.digits,
    "".join(map(chr, range(128))),  # with NUL
    "".join(map(chr, range(0x10000, 0x110000, 17))),  # of four bytes in UTF-8
)


def _random_key(letters: str, size: int) -> str:
    """So many bytes of these letters, by chance, and the same each time."""
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
"""Names that a pattern, a collation, a quoting or a length limit would trip over."""

LONG_KEYS = ("k" * MAX_KEY_BYTES, *(_random_key(letters, MAX_KEY_BYTES) for letters in _LETTERS))
"""Keys as long as a backend must take them; but for the first nothing makes them shorter."""


LOSES = 10_000
"""After how many conflicts in a row a writer doesn't lose to others any more, as each conflict means that one of them has won."""


async def increment(backend: Backend, key: str, times: int) -> None:
    """Add 1 to a counter so many times, each by a write that expects what was read."""
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
            raise AssertionError(f"each of {LOSES} writes expected {entry!r}, as was read, and was in conflict")


@contextmanager
def hasty_threads() -> Generator[None]:
    """Let Python change from one thread to another some hundred times as often: what may come in between, does."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


GIVES_WAY = 0.002
"""Seconds for which a thread lets its rival go on, which may have to wait for it: then it goes on itself."""


@contextmanager
def rival(act: Callable[[], T]) -> Generator[tuple[Callable[[], object], list[T]]]:
    """A thread that does it once it is let go, or else at the end: what lets it go, and, afterwards, what it came to."""
    gate, done, came_to = threading.Lock(), threading.Lock(), list[T]()

    def wait() -> None:
        gate.acquire()
        came_to.append(act())
        done.release()

    def go() -> None:
        gate.release()
        done.acquire(timeout=GIVES_WAY)

    gate.acquire()
    done.acquire()
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield go, came_to
    finally:
        with suppress(RuntimeError):  # it is let go already
            gate.release()
        thread.join(HANGS)
        assert not thread.is_alive(), "it doesn't come to its end"


async def beside(
    backend: Backend, write: Callable[[int], Awaitable[object]], read: Callable[[], Awaitable[object]], times: int
) -> None:
    """Read so many times while `write(1)`, `write(2)`, … go on: in a thread, if the backend isn't bound to a loop."""
    over = threading.Event()

    async def write_on() -> None:
        n = 0
        while not over.is_set():
            await write(n := n + 1)
            for _ in range(n % 20 if backend.needs_loop else 0):  # a chance for readers that need several steps
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
    """Do it in this thread under the interrupter: without the loop, if the backend isn't bound to one."""
    if backend.needs_loop:
        return await under(interrupter, operation)
    with interrupter:
        return drive(operation)


async def in_a_thread(backend: Backend, operation: Coroutine[object, object, T], where: str) -> T:
    """Do it in another thread, if the backend isn't bound to a loop; fail where it hangs after the interrupt at `where`."""
    if backend.needs_loop:
        return await asyncio.wait_for(operation, HANGS)
    done: list[T] = []
    thread = threading.Thread(target=lambda: done.append(drive(operation)), daemon=True)
    thread.start()
    thread.join(HANGS)
    assert not thread.is_alive(), f"interrupted {where}, it lets nobody else write"
    return done[0]


async def keys_of(
    backend: Backend, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
) -> list[str]:
    """All that a scan gives."""
    return [key async for key in backend.scan(prefix, after=after, reverse=reverse, limit=limit)]


async def pages_of(backend: Backend, prefix: str, size: int, *, reverse: bool = False) -> AsyncGenerator[list[str]]:
    """All pages of so many keys, as a reader takes them who knows only the last key of the page before."""
    page = await keys_of(backend, prefix, reverse=reverse, limit=size)
    while page:
        yield page
        last = page[-1]
        page = await keys_of(backend, prefix, after=last, reverse=reverse, limit=size)
        assert page == scanned(page, prefix, after=last, reverse=reverse), f"a page that doesn't go on after {last!r}"


def scanned(
    names: Iterable[str], prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
) -> list[str]:
    """What a scan must give where these names are there, as it is told in `Backend.scan`, word by word."""
    found = sorted((name for name in names if name.startswith(prefix)), reverse=reverse)
    if after:
        found = [name for name in found if (name < after if reverse else name > after)]
    return found if limit is None else found[:limit]


CHILD_SECONDS = 60
"""How long a forked child may take before it is killed, as one that hangs."""


def die_where_it_hangs() -> None:
    """In a child: once its time is over, what each of its threads is at goes to stderr, and it is killed."""
    faulthandler.register(signal.SIGALRM, file=2, chain=True)  # by its number: a capture may have replaced sys.stderr
    signal.alarm(CHILD_SECONDS)


def works_in_a_child(use: Callable[[], Coroutine[object, object, None]]) -> bool:
    """Fork, and run it there on a new event loop: did it work, or raise StoreError? Anything else fails the test."""
    child = os.fork()
    if child == 0:
        die_where_it_hangs()
        try:
            asyncio.run(use())
            os._exit(0)
        except StoreError:
            os._exit(1)
        except BaseException:  # noqa: BLE001 - there is nobody to raise it to
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = "hung" if code == -signal.SIGALRM else f"failed with {code}"
    assert code in (0, 1), f"the child of a fork {said}; where, it has written to stderr"
    return code == 0


leaves_things_behind = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited",
    "ignore:unclosed database:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",  # of an interrupt that comes in a weakref's callback
)
"""An interrupt may come right before something is awaited, or is given back: the garbage collector ends it, with a warning."""
