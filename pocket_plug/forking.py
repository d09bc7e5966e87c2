"""Forks of this process, whose child has a copy of everything but the other threads. The only place that knows of them.

Before a fork, the thread that forks waits until no other thread is in the middle of anything: it takes all locks that
were made here, and what has files open closes them (`Participant`). So what the child inherits is whole. In the child
`after_fork` then has each part forget what belongs to threads, loops and connections that only the parent has.

What isn't ready within `PATIENCE` seconds is left as it is, and the fork goes on: a thread may be stuck, and a signal's
handler that forks may have interrupted the very thread that holds a lock. So in the child such a lock has as long again to
be released by the thread that forked; if it is not, who held it isn't there, what it guards refuses to be used (`lost`),
and it is freed. A child that is forked without Python's functions for it (by a library in C) is not helped by any of this.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count, takewhile
from operator import methodcaller
from types import MethodType
from typing import Any, Protocol, TypeVar
from weakref import ReferenceType, ref

from .errors import StoreError, is_fault

PATIENCE = 5.0
"""Seconds that a fork waits, at most, for other threads to finish what they are at."""

_SLICE = 0.01  # seconds for one lock, while the others are held already

_module_locks: dict[str, Callable[[], Any]] = getattr(getattr(importlib, "_bootstrap", None), "_module_locks", {})
"""Python's own, of the modules that are being imported; where they are not to be found, a fork doesn't look at them."""

_logger = logging.getLogger("pocket_plug")
T = TypeVar("T")
Callback = Callable[[], object]


class Participant(Protocol):
    """What a fork must find at rest, such as connections to a file. The thread that forks calls these."""

    def rest(self) -> bool:
        """Try to come to rest, and stay so while `is_under_way`; is it? Called again and again if not."""
        ...

    def begin_anew(self) -> None:
        """The fork is over, and this is the child. What wasn't at rest must never be touched here."""
        ...


class _Weak:
    """A callback; the object of a bound one is held weakly.

    What happens when that is gone is a step of C's: an exception that a signal's handler raises in a function of Python's
    that the garbage collector calls would only be printed, and Ctrl-C would be lost.
    """

    __slots__ = ("_function", "_owner")

    def __init__(self, callback: Callback, gone: Callable[[Any], object] | None = None) -> None:
        self._function: Callable[..., object] = callback
        self._owner: ReferenceType[Any] | None = None
        if isinstance(callback, MethodType):
            self._function, self._owner = callback.__func__, ref(callback.__self__, gone)

    def __repr__(self) -> str:
        return getattr(self._function, "__qualname__", repr(self._function))

    def __call__(self) -> None:
        if self._owner is None:
            self._function()
        elif (owner := self._owner()) is not None:
            self._function(owner)


_numbers = count()
_callbacks: dict[int, _Weak] = {}  # in the order in which they came
_participants: dict[int, ReferenceType[Participant]] = {}
_locks: dict[int, ReferenceType[Any]] = {}
_lost: dict[int, _Weak] = {}  # by the lock's id


def after_fork(callback: Callback) -> None:
    """Have it called in each child of a fork, in the order in which they were given. A bound method is held weakly."""
    number = next(_numbers)
    _callbacks[number] = _Weak(callback, partial(_callbacks.pop, number))


def take_part(participant: Participant) -> None:
    """Have it come to rest before each fork. It is held weakly."""
    number = next(_numbers)
    _participants[number] = ref(participant, partial(_participants.pop, number))


def new_lock(lost: Callback | None = None) -> threading.Lock:
    """A plain `threading.Lock` that nobody holds at the moment of a fork.

    `lost` is called in a child where that couldn't be had: what the lock guards may be half changed there. A bound
    method is held weakly.
    """
    return _known(threading.Lock(), lost)  # type: ignore[no-any-return]


def new_rlock(lost: Callback | None = None) -> threading.RLock:
    """The same, reentrant."""
    return _known(threading.RLock(), lost)  # type: ignore[no-any-return]


def _known(lock: Any, lost: Callback | None) -> Any:
    key = id(lock)
    _locks[key] = ref(lock, partial(_locks.pop, key))
    if lost is not None:
        _lost[key] = _Weak(lost, partial(_lost.pop, key))
    return lock


# ---------------------------------------------------------------- one fork
_turn = threading.Lock()  # one fork at a time
_under_way = False


class _Here(threading.local):
    fork: _Fork | None = None


_here = _Here()


def is_under_way() -> bool:
    """Is this process about to be forked? Then nothing may be begun that a child can't inherit: see `wait_for_fork`."""
    return _under_way


def wait_for_fork() -> None:
    """Wait until the fork that goes on, if one does, is over; hold no lock meanwhile. Raises StoreError where it goes on."""
    if _here.fork is not None:
        raise StoreError(
            "a store is used in the middle of a fork, by a function that os.register_at_fork was given; register it "
            "after pocket_plug is imported"
        )
    with _turn:
        pass


# A signal's handler may raise between any two steps of Python's; what must not be torn apart is one step, of C's.
_acquire: Callable[[Any], bool] = methodcaller("acquire", True, _SLICE)
_release: Callable[[Any], None] = methodcaller("release")


def take(locks: Iterable[Any], taken: list[Any]) -> None:
    """Acquire them in this order, as far as each is to be had soon; `taken` has exactly those, whatever is raised."""
    taken.extend(takewhile(_acquire, locks))


def release(taken: list[Any]) -> None:
    """Release them all, the last one first; `taken` has none of them then."""
    taken.insert(0, None)
    deque(map(_release, iter(taken.pop, None)), maxlen=0)


def _imports() -> bool:
    """Is another thread importing a module? In a child whoever imports that one too would wait for it for ever."""
    me = threading.get_ident()
    locks = [lock for it in [*_module_locks.values()] if (lock := it()) is not None]
    return any(getattr(lock, "owner", None) not in (None, me) for lock in locks)


def _taking_part() -> list[Participant]:
    return [each for it in [*_participants.values()] if (each := it()) is not None]


class _Fork:
    """What was taken for it, and what wasn't to be had."""

    def __init__(self) -> None:
        self.depth = 1
        self.until = time.monotonic() + PATIENCE
        self.turn: list[Any] = []
        self.taken: list[Any] = []
        self.missing: list[Any] = []
        self.restless: list[Participant] = []
        self.interrupt: BaseException | None = None

    def prepare(self) -> None:
        """May be called again, where something was raised in the middle of it."""
        global _under_way
        release(self.taken)
        while not self.turn and time.monotonic() < self.until + PATIENCE:  # the other one's is over by then
            take((_turn,), self.turn)
        _under_way = True
        self.restless = _taking_part()
        while True:  # these first: who works on a file may need a lock to come to its end
            self.restless = [each for each in self.restless if _guarded(each, each.rest) is False]
            if not self.restless or time.monotonic() >= self.until:
                break
            time.sleep(0.001)
        locks = [lock for it in [*_locks.values()] if (lock := it()) is not None]
        while not self._take_all(locks) or (_imports() and time.monotonic() < self.until):
            release(self.taken)
            time.sleep(0.001)

    def _take_all(self, locks: list[Any]) -> bool:
        """One that isn't to be had soon may be held by who waits for another: then none is taken, and that one is next."""
        self.missing, left = [], locks
        while left:
            before = len(self.taken)
            take(left, self.taken)
            left = left[len(self.taken) - before :]
            if left and time.monotonic() < self.until:
                locks.remove(left[0])
                locks.insert(0, left[0])
                return False
            self.missing += left[:1]
            left = left[1:]
        return True

    def end(self) -> bool:
        """Release everything, if this was all of it: a signal's handler may have forked in the middle of a fork."""
        self.depth -= 1
        if self.depth:
            return False
        _here.fork = None
        release(self.taken)
        return True


def _in_spite_of_interrupts(fork: _Fork, step: Callback) -> None:
    """Do it, again if a signal's handler raises meanwhile: an error in a function for forks would only be printed."""
    for _ in range(10):
        try:
            step()
            return
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt is raised again when the fork is over
            fork.interrupt = error


def _guarded(part: object, step: Callable[[], T]) -> T | None:
    """What a plugin's part raises must not keep the others from being prepared."""
    try:
        return step()
    except BaseException as error:
        if not is_fault(error):
            raise
        _logger.exception("a fork: %r has failed to prepare for it, or to begin anew in the child", part)
    return None


def _before() -> None:
    fork = _here.fork
    if fork is not None:
        fork.depth += 1
        return
    fork = _here.fork = _Fork()
    _in_spite_of_interrupts(fork, fork.prepare)


def _after_in_parent() -> None:
    fork = _here.fork
    if fork is None or not fork.end():
        return

    def go_on() -> None:
        global _under_way
        _under_way = False
        release(fork.turn)

    _in_spite_of_interrupts(fork, go_on)
    if fork.restless or fork.missing:
        _logger.warning(
            "a child was forked though %s, for all of the %g s that were waited; what that concerns may refuse to be "
            "used there", _title(fork), PATIENCE,
        )  # fmt: skip
    _raise_again(fork)


def _raise_again(fork: _Fork) -> None:
    """What a signal's handler has raised meanwhile."""
    if isinstance(fork.interrupt, KeyboardInterrupt):  # sent once more, for when this is over
        main = threading.main_thread().ident
        assert main is not None
        again = threading.Timer(_SLICE, signal.pthread_kill, (main, signal.SIGINT))
        again.daemon = True
        again.start()
    elif fork.interrupt is not None:
        raise fork.interrupt


def _title(fork: _Fork) -> str:
    busy = [f"{participant!r} was in use" for participant in fork.restless]
    return ", ".join([*busy, *[f"{len(fork.missing)} lock(s) were held"] * bool(fork.missing)])


def _after_in_child() -> None:
    fork = _here.fork
    if fork is not None:
        fork.end()
        _in_spite_of_interrupts(fork, lambda: _begin_anew(fork))
        _raise_again(fork)


def _begin_anew(fork: _Fork) -> None:
    global _turn, _under_way
    _turn, _under_way = threading.Lock(), False
    for participant in _taking_part():
        _guarded(participant, participant.begin_anew)
    for callback in [*_callbacks.values()]:
        _guarded(callback, callback)
    reentrant: Any = type(threading.RLock())
    for lock in fork.missing:
        if isinstance(lock, reentrant):  # another thread has it, for this one would have got it
            _tell_it_is_lost(lock)
            lock._at_fork_reinit()  # as `logging` and `threading` do with theirs
    plain = [lock for lock in fork.missing if not isinstance(lock, reentrant)]
    if plain:
        threading.Thread(target=_free_in_time, args=(plain,), name="pocket_plug fork", daemon=True).start()


def _free_in_time(locks: Sequence[Any]) -> None:
    until = time.monotonic() + PATIENCE
    for lock in locks:
        if not lock.acquire(timeout=max(until - time.monotonic(), _SLICE)):
            _tell_it_is_lost(lock)
        lock.release()


def _tell_it_is_lost(lock: Any) -> None:
    if lost := _lost.get(id(lock)):
        lost()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
