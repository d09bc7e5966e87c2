"""Locks for `with`: free after any signal handler's exception, and otherwise like Python's own."""

from __future__ import annotations

import gc
import itertools
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from pocket_plug.primitives.locks import Flag, GuardedLock, GuardedRLock, Lock, RLock
from pocket_plug.testing.interrupts import Interrupted, Interrupter

every = pytest.mark.parametrize("make", [Lock, RLock, GuardedLock, GuardedRLock])


@pytest.fixture
def alarm() -> Iterator[Callable[[], None]]:
    """A signal comes soon after the call, and its handler raises Interrupted."""

    def handle(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handle)
    gc.collect()
    gc.disable()  # an exception in the finalizer of another test's garbage is only printed
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 50e-6) and None
    gc.enable()
    signal.signal(signal.SIGALRM, before)


def elsewhere(do: Callable[[], Any]) -> Any:
    """The result of a call in another thread."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(do()), daemon=True)
    thread.start()
    thread.join()
    return found[0]


def is_free(lock: Any) -> bool:
    """Can another thread acquire it?"""
    return bool(elsewhere(lambda: lock.acquire(blocking=False) and (lock.release() or True)))


def often(lock: Any) -> None:
    for _ in range(1000):
        with lock:
            pass


@every
def test_an_interrupt_leaves_no_lock_locked(make: Callable[[], Any], alarm: Callable[[], None]) -> None:
    """Wherever in a `with` a handler raises, the lock is free afterwards. (Python 3.14's own often isn't.)"""
    lock = make()
    for _ in range(300):
        with pytest.raises(Interrupted):
            alarm()
            while True:
                often(lock)
        assert is_free(lock)


@every
def test_a_lock_excludes_other_threads(make: Callable[[], Any]) -> None:
    """In a `with` no other thread gets it; after it, and after an exception in it, any thread does."""
    lock = make()
    with lock as got:
        assert got is True
        assert not is_free(lock)
    assert is_free(lock)
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    assert is_free(lock)


@pytest.mark.parametrize("make", [RLock, GuardedRLock])
def test_a_reentrant_lock_belongs_to_its_thread(make: Callable[[], Any]) -> None:
    """Its thread can acquire it again; a Condition can wait with it, and releases it meanwhile."""
    lock = make()
    condition = threading.Condition(lock)
    with lock, lock:
        assert not is_free(lock)

        def notify() -> None:
            with lock:
                condition.notify()

        thread = threading.Thread(target=notify, daemon=True)
        thread.start()
        assert condition.wait(60)
        thread.join()
        assert not is_free(lock)
    assert is_free(lock)


@every
def test_a_lock_can_be_referred_to_weakly(make: Callable[[], Any]) -> None:
    """So a fork finds all of them."""
    lock = make()
    reference = weakref.ref(lock)
    assert reference() is lock
    del lock
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("use", [Flag.set, lambda flag: flag.wait(0)], ids=["set", "wait"])
def test_a_flag_works_after_an_interrupt(use: Callable[[Flag], Any]) -> None:
    """At each place of `set` and `wait` in which a handler may raise. A `threading.Event` stays locked there."""
    for place in itertools.count(1):
        flag, interrupter = Flag(), Interrupter(place)
        with suppress(Interrupted), interrupter:
            use(flag)
        elsewhere(flag.set)
        assert elsewhere(lambda flag=flag: flag.wait(0))
        assert not elsewhere(lambda flag=flag: flag.wait(0))
        if not interrupter.where:
            return
