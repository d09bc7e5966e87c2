"""The executor `processes`: worker processes on this machine, for an `exec` that uses a whole core and holds the GIL.

Each worker has a thread here, which sends it one request at a time. So a worker that dies loses one request, and not all, as in a
ProcessPoolExecutor; and a worker can be killed once nobody waits for its result. Workers are started by spawn, end with this
process, however it ends, and ignore Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from types import FrameType

from pocket_plug.errors import ConfigError, ExecutorError, ExecutorLostError
from pocket_plug.graph.nodes.options import check_count
from pocket_plug.primitives.failures import describe
from pocket_plug.primitives.forking import after_fork, new_rlock
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.spawned import UNGUARDED, WORKER
from pocket_plug.primitives.urls import url_options
from pocket_plug.remote import Executor, close_at_exit

TRIES = 3
"""How often a request is tried whose worker dies: the request may be what kills it."""
GRACE = 2.0
"""Seconds that an idle worker has to end by itself, and to export its spans."""
LOOK = 1.0
"""Seconds between two checks whether a busy worker is still alive."""

_READY, _DONE, _FAILED = b"r", b"d", b"f"


class Processes(Executor):
    """`workers` processes, by default as many as there are cores; each is started when it is needed.

    They import the code that they run. So the graph must be in a module, or in a script whose main part is below
    `if __name__ == "__main__":`.
    """

    maps_main = True

    def __init__(self, workers: int | None = None) -> None:
        self.workers = (os.cpu_count() or 1) if workers is None else check_count(workers, "workers")
        self._lock = new_rlock()
        self._begin()
        after_fork(self._begin)
        close_at_exit(self)  # before multiprocessing does, which would wait for idle workers

    def _begin(self) -> None:
        """Begin without workers: at first, after `close`, and in a forked child, which doesn't touch its parent's."""
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._tasks: set[Future[bytes]] = set()
        self._workers: list[_Worker] = []

    def __del__(self) -> None:
        """Nobody can use it any more: its workers end by themselves, and the process doesn't wait for them at its end."""
        for _ in getattr(self, "_workers", ()):
            self._queue.put(None)

    @classmethod
    def from_url(cls, url: str) -> Processes:
        """`processes://`, with `?workers=4`. Raises ConfigError."""
        address, options = url_options(url, "processes", {"workers": int})
        if address.partition("://")[2]:
            raise ConfigError(f"{public_url(url)!r}: only options may follow processes://, such as ?workers=4")
        return cls(**options)

    def __repr__(self) -> str:
        return f"Processes({self.workers})"

    @property
    def title(self) -> str:
        return "processes"

    @property
    def window(self) -> int:
        return self.workers

    def submit(self, function: Callable[[bytes], bytes], request: bytes) -> Future[bytes]:
        task = _Task(f"{function.__module__}:{function.__qualname__}".encode(), request)
        with self._lock:
            self._tasks.add(task)
            if len(self._tasks) > len(self._workers) < self.workers:
                self._workers.append(_Worker(self._queue, len(self._workers) + 1))
            queue = self._queue
        task.add_done_callback(self._over)
        queue.put(task)
        return task

    def _over(self, task: Future[bytes]) -> None:
        with self._lock:
            self._tasks.discard(task)

    def close(self) -> None:
        """End all workers: an idle one ends by itself, a busy one is killed."""
        with self._lock:
            queue, tasks, workers = self._queue, self._tasks, self._workers
            self._begin()
        for task in list(tasks):
            task.cancel()
        for _ in workers:
            queue.put(None)
        for worker in workers:
            worker.join()


class _Task(Future[bytes]):
    """One request."""

    def __init__(self, function: bytes, request: bytes) -> None:
        super().__init__()
        self.function, self.request = function, request
        self.worker: _Worker | None = None
        self.is_left = False

    def cancel(self) -> bool:
        """Cancel it. If it has begun, its worker is killed: nothing else would stop it."""
        if super().cancel():
            return True
        self.is_left = True
        if (worker := self.worker) is not None:
            worker.kill(self)
        return False


class _Worker:
    """One process, and the thread that sends it requests. If the process dies, another one is started."""

    def __init__(self, queue: SimpleQueue[_Task | None], number: int) -> None:
        self._queue, self._number = queue, number
        self._lock = new_rlock()
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._task: _Task | None = None
        self._thread = threading.Thread(target=self._serve, name=f"pocket_plug worker {number}", daemon=True)
        self._thread.start()

    def kill(self, task: _Task) -> None:
        """Kill the process if it executes this task."""
        with self._lock:
            if self._task is task and self._process is not None:
                self._process.kill()

    def join(self) -> None:
        """Wait until process and thread have ended."""
        self._thread.join(2 * GRACE)

    def _serve(self) -> None:
        if hasattr(signal, "pthread_sigmask"):  # the process inherits this mask: Ctrl-C is for the parent only
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while (task := self._queue.get()) is not None:
            if task.set_running_or_notify_cancel():
                self._do(task)
            del task
        try:
            self._end()
        except Exception:  # while the interpreter ends, modules that this thread uses are torn down
            if threading.main_thread().is_alive():
                raise

    def _do(self, task: _Task) -> None:
        task.worker = self
        for tried in range(1, TRIES + 1):
            try:
                answer = self._asked(task)
            except (EOFError, OSError):
                code = self._end()
                if task.is_left or tried == TRIES:
                    said = f"the worker process died {tried} times while it ran this ({_how(code)})"
                    task.set_exception(ExecutorLostError(said, workers_died=True))
                    return
            except Exception as error:  # noqa: BLE001 - whoever waits for the task raises it
                self._end()
                task.set_exception(error)
                return
            else:
                if answer is None:
                    task.set_exception(ExecutorLostError("no caller waits for it any more"))
                elif answer[:1] == _DONE:
                    task.set_result(answer[1:])
                else:
                    task.set_exception(ExecutorError(answer[1:].decode()))
                return

    def _asked(self, task: _Task) -> bytes | None:
        """The answer of the process; None if nobody waits for it. Raises EOFError or OSError if the process dies."""
        if task.is_left:
            return None
        connection = self._connection or self._start()
        with self._lock:
            self._task = task
        try:
            if task.is_left:  # meanwhile; the new process stays for the next task
                return None
            connection.send_bytes(task.function)
            connection.send_bytes(task.request)
            while True:
                if connection.poll(LOOK):
                    return connection.recv_bytes()
                self._look()  # the pipe stays open while a process lives that it has forked
        finally:
            with self._lock:
                self._task = None

    def _look(self) -> None:
        """Raise EOFError if the process has ended."""
        with self._lock:
            if self._process is None or not self._process.is_alive():
                raise EOFError

    def _start(self) -> Connection:
        try:
            here, there = _spawning.Pipe()
            process = _spawning.Process(target=_work, args=(there,), name=f"{WORKER} {self._number}")
            process.start()
        except OSError as error:  # a limit of this process or of the system; no worker has died
            raise ExecutorError(f"a worker process can't be started: {describe(error)}") from error
        there.close()
        with self._lock:
            self._process, self._connection = process, here
        try:
            here.recv_bytes()
        except (EOFError, OSError):
            code = self._end()
            if code == UNGUARDED:
                raise ExecutorError(
                    "a worker process imports the script, and the import runs a graph; put the code that runs it below "
                    '`if __name__ == "__main__":`'
                ) from None
            raise ExecutorError(
                f"a worker process ended at its start ({_how(code)}); its output on stderr shows why. A script needs its "
                'main part below `if __name__ == "__main__":`, since workers import it'
            ) from None
        return here

    def _end(self) -> int | None:
        """End the process, and return its exit code."""
        with self._lock:
            process, connection, self._process, self._connection = self._process, self._connection, None, None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        process.join(GRACE)
        if process.exitcode is None:
            process.kill()
            process.join()
        code = process.exitcode
        with suppress(ValueError):  # another thread is just waiting for this child
            process.close()
        return code


_spawning = multiprocessing.get_context("spawn")


def _how(code: int | None) -> str:
    if code is None:
        return "unknown exit code, since other code in this process has waited for it"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


# ---------------------------------------------------------------- the worker process
def _work(connection: Connection) -> None:
    """Execute requests until the parent closes the connection, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_to_parent)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, name="pocket_plug parent", daemon=True).start()
    connection.send_bytes(_READY)
    while True:
        try:
            module, _, name = connection.recv_bytes().decode().partition(":")
            request = connection.recv_bytes()
        except EOFError:
            return
        try:
            answer = _DONE + getattr(import_module(module), name)(request)
        except Exception as error:  # noqa: BLE001 - it is raised in the parent
            answer = _FAILED + describe(error).encode()
        connection.send_bytes(answer)


def _leave_to_parent(number: int, frame: FrameType | None) -> None:
    """Do nothing: systemd sends SIGTERM to all processes. SIG_IGN would be inherited by processes that exec starts."""


def _end_with_parent() -> None:
    """End with the parent, also if that is killed: nobody else would end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
