"""The end of the process: open spans end, exporters get a limited time, and then the process dies as it would without us.

This happens at exit, at the end of a `multiprocessing` process, at a SIGTERM that nobody else handles, and when a server
ends its worker processes by `os._exit` or a signal.
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import parent_process
from multiprocessing import util as processes
from types import FrameType

from pocket_plug.otel import open_runs
from pocket_plug.primitives.forking import after_fork, around_forks
from pocket_plug.primitives.locks import Flag
from pocket_plug.primitives.noted_signals import insist
from pocket_plug.primitives.signals import die

from .logs import put_logging_back
from .providers import interrupt_spans
from .servers import watch_servers

INTERRUPT_SECONDS = 2.0
"""After a SIGTERM, open runs and spans have this long to end: one may wait for a lock whose holder the signal interrupted."""

STANDBYS = 8
"""Threads started early, on a Python that can't start any at exit: one for each exporter of three signals, and a few more."""

_close: Callable[[], object] | None = None


def watch_the_end(close: Callable[[], object]) -> None:
    """Call `close` once at the end of the process. After a SIGTERM the process still dies of it. Further calls change nothing."""
    global _close
    if _close is None:
        _close = close
        atexit.register(close)
        processes.register_after_fork(close, _watch_the_end_of_a_worker)
        _watch_the_end_of_a_worker(close)
        after_fork(_watch_servers)  # a server may have been imported since
        around_forks(_hold_sigterm, _take_sigterm)
        if sys.version_info[:2] == (3, 12):
            _standbys.extend(_Standby() for _ in range(STANDBYS))
    _watch_servers()
    watch_sigterm()


def watch_sigterm() -> None:
    """Handle SIGTERM if nobody else does. Only the main thread may set a handler: a call of another thread does nothing."""
    main = threading.current_thread() is threading.main_thread()
    if _close is not None and main and signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, die):
        signal.signal(signal.SIGTERM, _on_sigterm)
        _die_in_any_case()


def _watch_the_end_of_a_worker(close: Callable[[], object]) -> None:
    """A `multiprocessing` process runs no `atexit` functions, and drops the finalizers that were registered before its start."""
    processes.Finalize(None, close, exitpriority=-1)
    _die_in_any_case()


def _die_in_any_case() -> None:
    """In a `multiprocessing` process no SIGTERM may be lost: its parent sends one and then waits for it without a limit."""
    if parent_process() is not None:
        insist(signal.SIGTERM, _on_sigterm)


def _watch_servers() -> None:
    watch_servers(on_sigterm=_end, on_exit=_close_now, on_logging=put_logging_back)


def _close_now() -> None:
    if _close is not None:
        _close()


# ---------------------------------------------------------------- SIGTERM
@contextmanager
def no_sigterm() -> Generator[None]:
    """Delay a SIGTERM until the end of the block: a half-closed exporter would lose its data."""
    handles = signal.getsignal(signal.SIGTERM) is _on_sigterm
    if not handles or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, _on_sigterm)
        for number in came[:1]:
            signal.raise_signal(number)


class _Masks(threading.local):
    """For each fork that a thread is in: the signals that it blocked before. A signal handler may fork during a fork."""

    def __init__(self) -> None:
        self.former: list[Collection[int]] = []


_masks = _Masks()


def _hold_sigterm() -> None:
    """Before a fork: block SIGTERM, since Python drops signals that reach a child before it runs its first bytecode."""
    _masks.former.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _take_sigterm() -> None:
    """After a fork, when the child is ready: unblock SIGTERM, so that a blocked one is handled now."""
    if _masks.former:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.former.pop())


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second SIGTERM would end the process before the spans are exported
    _end()
    die(number, frame)


def _end() -> None:
    """End open runs and spans, and close."""
    in_time([partial(end, "SIGTERM") for end in (open_runs.interrupt, interrupt_spans)], INTERRUPT_SECONDS)
    _close_now()


# ---------------------------------------------------------------- a time limit for what may hang
def in_time(works: Sequence[Callable[[], object]], timeout: float) -> bool:
    """Call each in its own thread, since an exporter may hang. False if they haven't all ended within `timeout` seconds."""
    threads = [thread for work in works if (thread := _begin(work)) is not None]
    end = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    return not any(thread.is_alive() for thread in threads)


def _begin(work: Callable[[], object]) -> threading.Thread | None:
    """Call `work` in a thread. If no thread can be started, call it here and return None."""
    thread = threading.Thread(target=work, name="pocket_plug telemetry", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        if not _standbys:
            work()
            return None
        standby = _standbys.pop()
        standby.do(work)
        return standby.thread
    return thread


class _Standby:
    """A thread that waits for work. Python 3.12 can't start threads while the process ends, so these are started before."""

    def __init__(self) -> None:
        self._work: Callable[[], object] | None = None
        self._needed = Flag()
        self.thread = threading.Thread(target=self._wait, name="pocket_plug telemetry", daemon=True)
        self.thread.start()

    def _wait(self) -> None:
        self._needed.wait()
        assert self._work is not None
        self._work()

    def do(self, work: Callable[[], object]) -> None:
        self._work = work
        self._needed.set()


_standbys: list[_Standby] = []
after_fork(_standbys.clear)
