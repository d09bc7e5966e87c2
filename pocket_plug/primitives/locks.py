"""Locks for `with`, and a flag to wait for, that never stay locked, whatever a signal's handler raises.

Python's own locks are such, except in 3.14: there a handler may run between `__enter__` and the body of the `with`, and what
it raises skips `__exit__` (CPython's issue 148874; fixed in 3.15). So Python 3.14 gets the locks below. A lock that one
thread acquires and another one releases is not used in a `with`, and may be one of Python's own.

A handler that waits for a lock of its own thread would wait for ever: `is_held_here` asks, and `in_the_middle` is the error.
`HAS_GIL` says whether a lock is needed where the GIL does its work.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from pocket_plug.errors import StoreError

HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
"""False in a free-threaded Python: there, only locks keep a thread from seeing what another one has half done."""

_BLOCKING = (True,)
_CRLock: Any = type(threading.RLock())


class GuardedLock:
    """A `threading.Lock` that no handler can interrupt between `__enter__` and the body of its `with`.

    A handler runs at the entry of a Python function and after a call. So `__enter__` is a Python function that calls nothing
    once the lock is acquired: unpacking a `map` is no call. `__exit__` is the lock's own, in C.

    >>> lock = GuardedLock()
    >>> with lock:
    ...     lock.locked()
    True
    >>> lock.locked()
    False
    """

    __slots__ = ("__exit__", "__weakref__", "acquire", "locked", "release")
    __exit__: Callable[..., None]

    def __init__(self) -> None:
        lock = threading.Lock()
        self.acquire, self.release, self.locked = lock.acquire, lock.release, lock.locked
        self.__exit__ = lock.__exit__

    def __enter__(self) -> bool:
        [acquired] = map(self.acquire, _BLOCKING)
        return acquired


class GuardedRLock(_CRLock):  # type: ignore[misc]  # a class in C that `threading` has no public name for
    """The same, reentrant."""

    __slots__ = ()

    def __enter__(self) -> bool:
        acquired: bool
        [acquired] = map(self.acquire, _BLOCKING)
        return acquired


if TYPE_CHECKING or sys.version_info[:2] != (3, 14):
    Lock, RLock = threading.Lock, threading.RLock
else:
    Lock, RLock = GuardedLock, GuardedRLock


is_held_here: Callable[[threading.RLock], bool] = methodcaller("_is_owned")
"""Does this thread hold a reentrant lock? `threading.Condition` asks by the same method."""


def in_the_middle(of: str, forbidden: str) -> StoreError:
    """The error for code that runs in the middle of an operation in its own thread, where waiting for that would never end."""
    return StoreError(
        f"this thread is in the middle of {of}, so what has interrupted it can't {forbidden}: a signal's handler, a value's "
        "`__del__`, or the end of a dropped coroutine. Let it note what to do, and do that later"
    )


class Flag:
    """Wakes a thread that waits for it. `wait` takes the flag down, so that the thread can wait for the next time.

    A `threading.Event` stays locked if a signal's handler raises within its `set` or `wait`, since `Condition.__enter__` is a
    Python function; then the next thread that touches it hangs.

    >>> flag = Flag()
    >>> flag.set()
    >>> flag.wait(0), flag.wait(0)
    (True, False)
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()  # locked while the flag is down
        self._lock.acquire()

    def set(self) -> None:
        """Put the flag up. Any thread may call it."""
        if self._lock.locked():
            with suppress(RuntimeError):  # another thread was faster
                self._lock.release()

    def wait(self, timeout: float = -1) -> bool:
        """Wait for the flag, at most `timeout` seconds, and take it down; returns whether it was up."""
        return self._lock.acquire(timeout=timeout)
