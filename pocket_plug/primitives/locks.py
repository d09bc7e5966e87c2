"""Locks for `with`: whatever a signal's handler raises, none stays locked.

Python's own are that, but for 3.14: there a handler may run between `__enter__` and the body of the `with`, and what it
raises skips `__exit__` (CPython's issue 148874; 3.15 has it right). So Python 3.14 gets the locks of ours. A lock that one
thread acquires and another one releases is in no `with`, and may be of Python's own.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

_BLOCKING = (True,)
_CRLock: Any = type(threading.RLock())


class GuardedLock:
    """A `threading.Lock` whose `with` can't be cut in two.

    A handler runs at the entry of a Python function and after a call. So `__enter__` is a Python function that calls nothing
    once the lock is acquired: unpacking what `map` will do is no call. `__exit__` is the lock's own, in C.

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
