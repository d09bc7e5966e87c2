"""A signal whose handler doesn't begin, since the main thread waits in C, is sent again.

Python calls a handler between two steps of Python code. A signal that comes after the last step before a wait (for a lock,
say) and before the wait itself interrupts nothing: it is noted, and its handler is called when the wait is over, which may be
never. So Python is made to write the numbers of signals into a pipe, too, and a thread reads them.
"""

from __future__ import annotations

import inspect
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from .forking import after_fork

AGAIN = 0.1
"""Seconds that a handler is given to begin, each time that its signal is sent."""

Handler = Callable[[int, FrameType | None], object]

_pipe: tuple[int, int] | None = None


def insist(number: int, handler: Handler) -> None:
    """In this process, send the signal again until its handler begins, which must first of all install another handler.

    Nothing is done outside of the main thread, nor if something else uses `signal.set_wakeup_fd`: asyncio's event loop does,
    and wakes the main thread by itself. A forked child has to call it again.
    """
    global _pipe
    if not hasattr(signal, "pthread_kill") or threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    if former != -1:
        signal.set_wakeup_fd(former)
        os.close(reading)
        os.close(writing)
        return
    _pipe = reading, writing
    threading.Thread(target=_watch, args=(reading, number, handler), name="pocket_plug signals", daemon=True).start()


def _watch(reading: int, number: int, handler: Handler) -> None:
    main = threading.main_thread().ident
    assert main is not None
    while came := os.read(reading, 1):
        while came[0] == number:
            time.sleep(AGAIN)
            present = signal.getsignal(number)
            if not callable(present) or inspect.unwrap(present) is not handler:  # `run_loop` wraps it
                break
            signal.pthread_kill(main, number)


def _forget() -> None:
    """In a forked child: close the parent's pipe, from which the parent would read this process's signals as its own."""
    global _pipe
    if _pipe is None:
        return
    reading, writing = _pipe
    _pipe = None
    former = signal.set_wakeup_fd(-1)
    if former != writing:
        signal.set_wakeup_fd(former)  # somebody else's
    os.close(reading)
    os.close(writing)


after_fork(_forget)
