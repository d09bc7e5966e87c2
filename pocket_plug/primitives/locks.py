"""Locks for `with` that never stay locked, whatever a signal's handler raises.

Python's own locks are such, except in 3.14: there a handler may run between `__enter__` and the body of the `with`, and what
it raises skips `__exit__` (CPython's issue 148874; fixed in 3.15). So Python 3.14 gets the locks below. A lock that one
thread acquires and another one releases is not used in a `with`, and may be one of Python's own.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
