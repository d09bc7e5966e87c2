"""The end of the process: what is open ends, exporters get a little time, and then the process dies as it would have.

At exit, in a process of multiprocessing's, at a SIGTERM that nobody handles, and where a server's workers end in a way of
their own.
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
from pocket_plug.primitives.noted_signals import insist

from .logs import put_logging_back
from .providers import interrupt_spans
from .servers import watch_servers

INTERRUPT_SECONDS = 2.0
"""How long, of a SIGTERM, what is open may take to end. One may wait for a lock that the signal interrupted."""

STANDBYS = 8
"""Threads that wait for the end where none can be started there: one for each exporter of three signals, and to spare."""

_close: Callable[[], object] | None = None


def watch_the_end(close: Callable[[], object]) -> None:
    """Call `close` at the end of the process; after a SIGTERM, die of it as before. Called again it watches no more often."""
    global _close
    if _close is None:
        _close = close
        atexit.register(close)
        processes.register_after_fork(close, _watch_the_end_of_a_worker)
        _watch_the_end_of_a_worker(close)
        after_fork(_watch_servers)  # one may have been imported meanwhile
        around_forks(_hold_sigterm, _take_sigterm)
        if sys.version_info[:2] == (3, 12):
            _standbys.extend(_Standby() for _ in range(STANDBYS))
    _watch_servers()
    watch_sigterm()


def watch_sigterm() -> None:
    """Of what is watched, end what is open at a SIGTERM that nobody handles, if the main thread asks: no other one may."""
    main = threading.current_thread() is threading.main_thread()
    if _close is not None and main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)
        _die_in_any_case()


def _watch_the_end_of_a_worker(close: Callable[[], object]) -> None:
    """A process of multiprocessing's ends without what `atexit` has, and forgets what was registered before it began."""
    processes.Finalize(None, close, exitpriority=-1)
    _die_in_any_case()


def _die_in_any_case() -> None:
    """Who terminates a process of multiprocessing's waits for its end without a limit, so no SIGTERM may be lost there."""
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
    """A SIGTERM that comes within the block is raised after it: what is half closed would be lost."""
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
    """The signals that a thread blocked before each fork that it is in: a handler may fork in the middle of one."""

    def __init__(self) -> None:
        self.former: list[Collection[int]] = []


_masks = _Masks()


def _hold_sigterm() -> None:
    """Before a fork: in a child Python forgets the signals that came before its first step."""
    _masks.former.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _take_sigterm() -> None:
    """After it, once all is begun anew in the child: one that was held is handled here."""
    if _masks.former:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.former.pop())


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one, from an impatient sender, would lose what is open
    _end()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _end() -> None:
    """End what is open, and close."""
    in_time([partial(end, "SIGTERM") for end in (open_runs.interrupt, interrupt_spans)], INTERRUPT_SECONDS)
    _close_now()


# ---------------------------------------------------------------- a time limit for what may hang
def in_time(works: Sequence[Callable[[], object]], timeout: float) -> bool:
    """Do each in a thread of its own, since an exporter may hang. False if all together took longer than `timeout` seconds."""
    threads = [thread for work in works if (thread := _begin(work)) is not None]
    end = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    return not any(thread.is_alive() for thread in threads)


def _begin(work: Callable[[], object]) -> threading.Thread | None:
    """Do it in a thread; None if no thread could be started, and it was done here."""
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
    """A thread that waits for its work. Python 3.12 starts none any more while the process ends: these are there already."""

    def __init__(self) -> None:
        self._work: Callable[[], object] | None = None
        self._needed = threading.Event()
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
