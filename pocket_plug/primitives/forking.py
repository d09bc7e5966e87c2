"""What is done when this process forks: a child has a copy of everything but the other threads.

Before a fork, the thread that forks waits until no other thread is in the middle of anything. It acquires every lock that was
made here, and each `Participant` closes what a child can't share, such as connections to a file. So what the child inherits is
consistent. In the child, the callbacks of `after_fork` drop what belongs to threads, event loops and connections that only
the parent has.

A fork waits `PATIENCE` seconds at most, and not for a participant that its own thread is using: a thread may be stuck, and a
signal's handler may fork while its own thread holds a lock. In the child, such a lock may be released by the thread that
forked, for as long again. If it isn't, the thread that held it doesn't exist there: the lock's callback (`lost`) makes what it
guards refuse to be used, and the lock is freed. A child that a library in C forks by itself gets none of this.
"""

from __future__ import annotations

import _thread
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count, takewhile
from operator import methodcaller
from types import FrameType, MethodType
from typing import Literal, Protocol, TypeVar
from weakref import ReferenceType, ref

from pocket_plug.errors import StoreError, is_fault

from .locks import Lock, RLock
from .signals import raised_by_handler

PATIENCE = 5.0
"""Seconds that a fork waits, at most, for other threads to finish what they are doing."""

SOON = 0.1
"""Seconds after a fork until a Ctrl-C that came in the middle of it is raised again: until then the caller has the child's id,
also on a machine under load."""

_SLICE = 0.01  # seconds to wait for one lock, while others are held

_module_locks: dict[str, Callable[[], object]] = getattr(getattr(importlib, "_bootstrap", None), "_module_locks", {})
"""Python's own locks of modules that are being imported. If a Python has none of that name, forks don't wait for imports."""

_logger = logging.getLogger("pocket_plug")
T = TypeVar("T")
Callback = Callable[[], object]


class Lockable(Protocol):
    """A lock of `threading`, plain or reentrant."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...
    def release(self) -> None: ...


L = TypeVar("L", bound=Lockable)
Taken = list[Lockable | None]
"""Locks that are held here; None while they are being released."""
Rested = bool | Literal["never"]
"""Is a participant idle? "never": it can't be in time, since the thread that forks is itself in the middle of a use."""


class Participant(Protocol):
    """What must be idle at a fork, such as connections to a file. The thread that forks calls the methods."""

    def rest(self) -> Rested:
        """Try to become idle, and stay so while `is_under_way()`. Returns True if it is, and False to be called again."""
        ...

    def begin_anew(self) -> None:
        """Called in the child. Anything that wasn't idle at the fork must never be used here."""
        ...


class _Weak:
    """A callback; the object of a bound method is held weakly.

    `gone` is called when that object is garbage-collected. It has to be a C function: what a signal's handler raises in a
    Python function that the garbage collector calls is only printed, so a Ctrl-C would be lost.
    """

    __slots__ = ("_function", "_owner")

    def __init__(self, callback: Callback, gone: Callable[[ReferenceType[object]], object] | None = None) -> None:
        self._function: Callable[..., object] = callback
        self._owner: ReferenceType[object] | None = None
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
_callbacks: dict[int, _Weak] = {}  # in the order in which they were given
_participants: dict[int, ReferenceType[Participant]] = {}
_locks: dict[int, ReferenceType[Lockable]] = {}
_lost: dict[int, _Weak] = {}  # by the lock's id


def after_fork(callback: Callback) -> None:
    """Call `callback` in each forked child; callbacks are called in the order given. A bound method is held weakly."""
    number = next(_numbers)
    _callbacks[number] = _Weak(callback, partial(_callbacks.pop, number))


def around_forks(before: Callback, after: Callback) -> None:
    """At a fork, call `before` before all that is registered so far, and `after` after it, in the parent and in the child."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)


def take_part(participant: Participant) -> None:
    """Ask `participant` to become idle before each fork. It is held weakly."""
    number = next(_numbers)
    _participants[number] = ref(participant, partial(_participants.pop, number))


def new_lock(lost: Callback | None = None) -> threading.Lock:
    """A `Lock` of `locks` that no other thread holds at the moment of a fork.

    If another thread holds it for longer than a fork waits, `lost` is called in the child: what the lock guards may be half
    changed there. A bound method is held weakly.
    """
    return _known(Lock(), lost)


def new_rlock(lost: Callback | None = None) -> threading.RLock:
    """The same, reentrant: while a thread holds it, garbage collection may close a caller's coroutine, which acquires it too."""
    return _known(RLock(), lost)


def _known(lock: L, lost: Callback | None) -> L:
    key = id(lock)
    _locks[key] = ref(lock, partial(_locks.pop, key))
    if lost is not None:
        _lost[key] = _Weak(lost, partial(_lost.pop, key))
    return lock


# ---------------------------------------------------------------- one fork
_turn = Lock()  # one fork at a time
_under_way = False


class _Here(threading.local):
    fork: _Fork | None = None


_here = _Here()


def is_under_way() -> bool:
    """Is this process about to be forked? Then open nothing that a child can't inherit: call `wait_for_fork` before."""
    return _under_way


def wait_for_fork() -> None:
    """Wait for the end of a fork that another thread has begun; hold no lock meanwhile. Raises StoreError if this thread did."""
    if _here.fork is not None and _here.fork.callers:
        raise StoreError(
            "a function that was passed to os.register_at_fork used a store during a fork; register the function after "
            "pocket_plug is imported"
        )
    with _turn:
        pass


# A signal's handler may raise between any two steps of Python code, but not within C code. So acquiring and keeping account
# of it is one call into C.
_acquire: Callable[[Lockable], bool] = methodcaller("acquire", True, _SLICE)
_release: Callable[[Lockable | None], None] = methodcaller("release")


def take(locks: Iterable[Lockable], taken: Taken) -> None:
    """Acquire the locks in this order, up to the first that isn't free soon. `taken` has those acquired, whatever is raised."""
    acquired: Iterable[Lockable] = takewhile(_acquire, locks)
    taken.extend(acquired)


def release(taken: Taken) -> None:
    """Release all locks in `taken`, the last one first, and empty it."""
    taken.insert(0, None)
    deque(map(_release, iter(taken.pop, None)), maxlen=0)


def _is_importing() -> bool:
    """Is another thread importing a module? An import of the same module in a child would wait for that thread for ever."""
    me = threading.get_ident()
    locks = [lock for it in [*_module_locks.values()] if (lock := it()) is not None]
    return any(getattr(lock, "owner", None) not in (None, me) for lock in locks)


def _taking_part() -> list[Participant]:
    return [each for it in [*_participants.values()] if (each := it()) is not None]


class _Fork:
    """One fork: the locks that were acquired for it, and what wasn't idle or free in time."""

    def __init__(self) -> None:
        self.callers: list[FrameType | None] = []
        """The frames that fork now: a signal's handler may fork in the middle of a fork. Empty once the outermost one is over."""
        self.is_prepared = self.is_settled = False
        self.until = time.monotonic() + PATIENCE
        self.turn: Taken = []
        self.taken: Taken = []
        self.missing: list[Lockable] = []
        self.busy: list[Participant] = []
        self.interrupt: BaseException | None = None

    def prepare(self) -> None:
        """Wait for participants and locks. If a signal's handler raises in it, it is called again."""
        release(self.taken)
        self._await_turn()
        self._await_participants()  # before the locks: an operation on a file may need one to finish
        self._await_locks()
        self.is_prepared = True

    def _await_turn(self) -> None:
        global _under_way
        while not self.turn and time.monotonic() < self.until + PATIENCE:  # another fork takes no longer
            take((_turn,), self.turn)
        if self.turn:  # otherwise it is the other fork's, as long as that lasts
            _under_way = True

    def _await_participants(self) -> None:
        """Wait until all are idle. Those that aren't in time go into `busy`."""
        self.busy, awaited = [], _taking_part()
        collect_at = self.until - 0.9 * PATIENCE
        while True:
            rested = [(each, _guarded(each, each.rest)) for each in awaited]
            self.busy += [each for each, is_idle in rested if is_idle == "never"]
            awaited = [each for each, is_idle in rested if is_idle is False]
            if not awaited or time.monotonic() >= self.until:
                break
            if time.monotonic() >= collect_at:
                gc.collect()  # what isn't idle may be garbage, such as a connection that an interrupt dropped
                collect_at = self.until
            time.sleep(0.001)
        self.busy += awaited

    def _await_locks(self) -> None:
        """Acquire all locks, and wait for imports."""
        locks = [lock for it in [*_locks.values()] if (lock := it()) is not None]
        while not self._take_all(locks) or (_is_importing() and time.monotonic() < self.until):
            release(self.taken)
            time.sleep(0.001)

    def _take_all(self, locks: list[Lockable]) -> bool:
        """Acquire all of them; False if one isn't free soon, which is then the first of `locks`, to be tried first the next time.

        The order in which they nest isn't known. So a thread that holds one may wait for another that is held here: the
        caller releases all, and tries again. When the time is over, those that aren't free go into `missing`.
        """
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

    def is_over(self, caller: FrameType | None) -> bool:
        """Note that the fork of this frame is over; returns whether the outermost one is. Can be called again."""
        if self.callers and self.callers[-1] is caller:
            self.callers.pop()
        return not self.callers

    def go_on(self) -> None:
        """In the parent: let everybody continue. Can be called again."""
        global _under_way
        release(self.taken)
        if self.turn:
            _under_way = False
            release(self.turn)
        self.is_settled = True


def _in_spite_of_interrupts(fork: _Fork, step: Callback) -> None:
    """Run a step, again if a signal's handler raises in it: Python only prints what is raised while it forks."""
    for _ in range(10):
        try:
            step()
            return
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt is raised again when the fork is over
            fork.interrupt = error


def _guarded(part: object, step: Callable[[], T]) -> T | None:
    """Run a step of one participant or callback. If it fails that is logged, and the others still get their turn.

    What a signal's handler raises is no failure of the step: then all steps are done again.
    """
    try:
        return step()
    except BaseException as error:
        if not is_fault(error) or raised_by_handler(error):
            raise
        _logger.exception("%r failed to prepare for a fork, or to start again in the child", part)
    return None


def _caller() -> FrameType | None:
    """The frame that forks, for a function that Python calls at the fork."""
    return sys._getframe(1).f_back  # pyright: ignore[reportPrivateUsage] # as in `Key`


def _before() -> None:
    caller, fork = _caller(), _here.fork
    if fork is None or not fork.callers:
        fork = _here.fork = _Fork()
    if caller not in fork.callers:
        fork.callers.append(caller)
    if len(fork.callers) == 1 and not fork.is_prepared:
        _in_spite_of_interrupts(fork, fork.prepare)


def _after_in_parent() -> None:
    fork = _here.fork
    if fork is None or not fork.is_over(_caller()) or fork.is_settled:
        return
    _in_spite_of_interrupts(fork, fork.go_on)
    if fork.busy or fork.missing:
        _logger.warning(
            "a child was forked although %s; stores and queues that were in use may raise errors in the child",
            _title(fork),
        )


def _raise_again(fork: _Fork) -> None:
    """Raise what a signal's handler raised during the fork. It has to be the last that is done for a fork."""
    try:
        # Raised here it is only printed, so the signal is sent once more. Unpacking what `map` does is no call, so however soon
        # the signal comes, its handler is called after the fork.
        if isinstance(fork.interrupt, KeyboardInterrupt):
            [_] = map(_thread.start_new_thread, (_send_interrupt,), ((),))
        elif fork.interrupt is not None:
            raise fork.interrupt
    finally:
        fork.interrupt = None  # its traceback refers to the fork


def _send_interrupt() -> None:
    time.sleep(SOON)
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)  # which wakes it, too


def _title(fork: _Fork) -> str:
    in_use = [f"{participant!r} was in use" for participant in fork.busy]
    return ", ".join([*in_use, *[f"{len(fork.missing)} lock(s) were held"] * bool(fork.missing)])


def _after_in_child() -> None:
    caller, fork = _caller(), _here.fork
    if fork is None or fork.is_settled or (fork.callers and caller not in fork.callers):
        return
    if fork.is_over(caller):
        release(fork.taken)
    _in_spite_of_interrupts(fork, lambda: _begin_anew(fork))
    fork.is_settled = not fork.callers


def _end() -> None:
    """The outermost fork is over, in the parent or in the child."""
    fork = _here.fork
    if fork is not None and not fork.callers:
        _here.fork = None
        _raise_again(fork)


def _begin_anew(fork: _Fork) -> None:
    global _turn, _under_way
    _turn, _under_way = Lock(), False
    for participant in _taking_part():
        _guarded(participant, participant.begin_anew)
    for callback in [*_callbacks.values()]:
        _guarded(callback, callback)
    reentrant = type(RLock())
    for lock in fork.missing:
        if isinstance(lock, reentrant):  # another thread has it, for this one would have got it
            _report_lost(lock)
            methodcaller("_at_fork_reinit")(lock)  # as `logging` and `threading` do with theirs
    plain = [lock for lock in fork.missing if not isinstance(lock, reentrant)]
    if plain:
        threading.Thread(target=_free_in_time, args=(plain,), name="pocket_plug fork", daemon=True).start()


def _free_in_time(locks: Sequence[Lockable]) -> None:
    until = time.monotonic() + PATIENCE
    for lock in locks:
        if not lock.acquire(timeout=max(until - time.monotonic(), _SLICE)):
            _report_lost(lock)
        lock.release()


def _report_lost(lock: Lockable) -> None:
    if lost := _lost.get(id(lock)):
        lost()


if hasattr(os, "register_at_fork"):
    # An interrupt may come at the entry of a function, where no `try` helps: so each is called twice.
    for _ in range(2):
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
    os.register_at_fork(after_in_parent=_end, after_in_child=_end)
