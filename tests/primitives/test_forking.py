"""Forks of this process: the child inherits consistent data and waits for no thread; the parent continues as before."""

from __future__ import annotations

import asyncio
import dis
import gc
import importlib
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import pocket_plug as pp
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.backends.sqlite.connections import _Connection
from pocket_plug.errors import StoreBusyError, StoreClosedError
from pocket_plug.graph.running import context
from pocket_plug.layers import Bounding, Persistence
from pocket_plug.primitives import forking
from pocket_plug.primitives.forking import after_fork, new_lock, new_rlock
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import NO_EXPECTATIONS
from pocket_plug.testing.interrupts import Interrupted, Interrupter
from pocket_plug.testing.layer_contract import FaultyMemory


def in_child(do: Callable[[], object]) -> int:
    """Do it in a child of fork; returns 0, or 1 with the exception on stderr. A child that hangs is killed."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            do()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - there is nobody to raise it to
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(script: str, *arguments: object) -> str:
    """The output of a program; it must succeed."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork that doesn't wait long."""
    monkeypatch.setattr(forking, "PATIENCE", 0.05)


@pytest.fixture
def end() -> Iterator[threading.Event]:
    """Set when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def thread(target: Callable[[], object]) -> threading.Thread:
    started = threading.Thread(target=target, daemon=True)
    started.start()
    return started


# ---------------------------------------------------------------- locks
@pytest.mark.parametrize("make", [new_lock, new_rlock])
def test_nobody_is_in_a_critical_section_at_a_fork(make: Callable[[], Any], end: threading.Event) -> None:
    """Data that a lock protects is consistent in the child, and the lock is free in both processes."""
    lock, pair, turns = make(), [0, 0], threading.Semaphore(0)

    def change() -> None:
        while not end.is_set():
            with lock:
                pair[0] += 1
                for _ in range(1000):  # to be found in the middle
                    pass
                pair[1] += 1
            turns.release()

    threads = [thread(change) for _ in range(2)]

    def check() -> None:
        assert lock.acquire(timeout=0)
        assert pair[0] == pair[1]

    for _ in range(10):
        assert turns.acquire(timeout=60)
        assert in_child(check) == 0
    end.set()
    for each in threads:
        each.join()
    assert lock.acquire(timeout=60)
    lock.release()


def test_a_fork_acquires_locks_in_any_order(end: threading.Event) -> None:
    """Threads that nest two locks, in either order, and a fork: none waits for another without end, none is given up."""
    locks, turns = (new_lock(), new_lock()), threading.Semaphore(0)

    def nest() -> None:
        outer, inner = locks
        while not end.is_set():
            with outer, inner:
                turns.release()
            outer, inner = inner, outer

    nesting = thread(nest)
    for _ in range(20):
        assert turns.acquire(timeout=60)
        assert in_child(lambda: [lock.acquire(blocking=False) or os._exit(3) for lock in locks]) == 0
    end.set()
    nesting.join()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "layers", [[], [Bounding(max_entries=9)], [Bounding(max_bytes=999)]], ids=["plain", "9", "999"]
)
def test_a_thread_that_stays_in_a_critical_section_is_an_error_in_the_child(
    layers: list[pp.Layer], end: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """The fork doesn't wait for it without end, nor does the child; there the half-changed data is refused, and can be
    initialized again. The parent logs it, and continues.
    """
    memory = pp.Memory()
    store = pp.SyncStore(memory, layers=layers)
    store.set("a", 1)
    inside = threading.Event()

    def stay() -> None:
        with memory.lock:
            inside.set()
            end.wait()

    staying = thread(stay)
    assert inside.wait(60)

    def use() -> None:
        for do in (lambda: store.set("b", 1), lambda: store.get("a"), lambda: store.get_many(["a"])):
            with pytest.raises(StoreClosedError, match="forked during a write"):
                do()
        store.close()
        with store:
            store.set("b", 1)
            assert store.get_many(["a", "b"]) == {"b": 1}

    assert in_child(use) == 0
    assert "a child was forked although 1 lock(s) were held" in caplog.text
    end.set()
    staying.join()
    store.set("b", 1)
    assert store.get_many(["a", "b"]) == {"a": 1, "b": 1}


@pytest.mark.usefixtures("hasty")
def test_a_thread_that_stays_in_a_change_of_an_index_is_an_error_in_the_child(end: threading.Event) -> None:
    """Bounding over another backend than memory: in the child its bound can't be kept until it is opened again."""

    class Other(pp.Memory):
        """Has no table that bounding can replace."""

    def clock() -> float:
        if not inside.is_set() and asked.is_set():  # in the middle of the change
            inside.set()
            end.wait()
        return 0.0

    asked, inside = threading.Event(), threading.Event()
    store = pp.SyncStore(Other(), layers=[Bounding(max_entries=2)], clock=clock)
    store.set("a", 1)
    asked.set()
    thread(lambda: store.set("b", 1))
    assert inside.wait(60)

    def use() -> None:
        with pytest.raises(StoreClosedError, match="forked during a write to this bounded store"):
            store.set("c", 1)
        store.close()
        with store:
            store.set_many({"d": 1, "e": 1, "f": 1})
            assert list(store.keys()) == ["e", "f"]

    assert in_child(use) == 0


def test_a_fork_within_a_critical_section_of_the_same_thread_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal handler may do it: the thread continues in the child too, and completes its work."""
    monkeypatch.setattr(forking, "PATIENCE", 1.0)  # the child has to complete within it
    memory = pp.Memory()
    store = pp.SyncStore(memory)

    def end_of_section() -> None:
        memory.lock.release()
        store.set("b", 1)
        assert store.get("b") == 1

    memory.lock.acquire()
    assert in_child(end_of_section) == 0
    end_of_section()


@pytest.mark.parametrize("seconds", [0.01, 0])
def test_a_keyboard_interrupt_while_a_fork_waits_is_raised_after_it(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not lost, though an error in a fork callback is only printed, however soon after the fork it comes; the preparation
    is made, and undone.
    """
    monkeypatch.setattr(forking, "SOON", seconds)
    lock = new_lock()
    rests: list[str] = []

    class Part:
        def rest(self) -> bool:
            rests.append("rest")
            if len(rests) == 1:
                raise KeyboardInterrupt
            return True

        def begin_anew(self) -> None:
            if not lock.acquire(timeout=0):
                os._exit(3)

    part = Part()
    forking.take_part(part)
    with pytest.raises(KeyboardInterrupt):
        assert in_child(lambda: None) == 0
        threading.Event().wait(60)  # it comes a moment later
    assert rests == ["rest", "rest"]
    assert not forking.is_under_way()
    assert lock.acquire(timeout=60)
    lock.release()
    with suppress(ChildProcessError):  # otherwise it was waited for
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0


INTERRUPTED = """
import itertools, os, signal, sys, threading
import pocket_plug as pp
from pocket_plug.primitives import forking
from pocket_plug.primitives.forking import new_lock
from pocket_plug.testing.interrupts import Interrupter

class Within(Interrupter):
    def _pass(self, frame, what):
        if frame.f_code.co_filename == forking.__file__:
            super()._pass(frame, what)

sys.unraisablehook = lambda raised: None  # Python can only print what is raised in a function that it calls at a fork
signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent again after the fork
lock = new_lock()

def check(name):
    with lock:
        store.update(name, lambda n: n + 1, default=0)

def in_thread(name):
    checking = threading.Thread(target=check, args=(name,), daemon=True)
    checking.start()
    checking.join(20)
    return not checking.is_alive()

with pp.SyncStore(f"sqlite:///{sys.argv[1]}/state.db") as store:
    for n in itertools.count(1):
        with Within(n, KeyboardInterrupt) as interrupter:
            child = os.fork()
        if child == 0:
            os._exit(9 if not in_thread("child") else 1 if interrupter.where else 0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, 1) or not in_thread("parent"):
            print("child" if status not in (0, 1) else "parent", "hangs after an interrupt", interrupter.where, flush=True)
            os._exit(0)
        if not interrupter.where and status == 0:
            break
    assert store.get_many(["child", "parent"]) == {"child": n, "parent": n}
print("interrupted" if n > 10 else "never interrupted", flush=True)
os._exit(0)  # a thread may hang
"""


def test_an_interrupt_at_any_place_of_a_fork_leaves_no_lock_locked(tmp_path: Path) -> None:
    """Also where Python enters a function that it calls at a fork: most signals that come during a fork are handled there."""
    assert run(INTERRUPTED, tmp_path) == "interrupted\n"


def test_what_a_signal_handler_raises_in_a_participant_is_no_failure_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A time limit at SIGALRM: all steps of the participant are done again, before the fork and in the child."""
    steps: list[str] = []

    def time_is_over(*_: object) -> None:
        raise TimeoutError

    def do(step: str) -> None:
        steps.append(f"{step} begins")
        if steps.count(f"{step} begins") == 1:
            signal.raise_signal(signal.SIGALRM)
        steps.append(f"{step} ends")

    class Part:
        def rest(self) -> bool:
            do("rest")
            return True

        def begin_anew(self) -> None:
            do("anew")

    def check() -> None:
        assert steps == ["rest begins", "rest begins", "rest ends", "anew begins", "anew begins", "anew ends"]

    part = Part()
    forking.take_part(part)
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: None)  # Python can only print it
    former = signal.signal(signal.SIGALRM, time_is_over)
    try:
        assert in_child(check) == 0
    finally:
        signal.signal(signal.SIGALRM, former)
    assert not caplog.text


def test_a_child_can_import_what_its_parent_was_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's lock of a module would be held there for ever: a fork waits until other threads' imports have ended."""
    (tmp_path / "slow_to_import.py").write_text(
        "from tests_of_forks import begun, forks\nbegun.set()\nassert forks.wait(60)\nhere = max(range(200_000))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shared: Any = types.ModuleType("tests_of_forks")
    shared.begun, shared.forks = threading.Event(), threading.Event()
    monkeypatch.setitem(sys.modules, "tests_of_forks", shared)

    class Part:
        def rest(self) -> bool:
            shared.forks.set()
            return True

        def begin_anew(self) -> None: ...

    part = Part()
    forking.take_part(part)
    importing = thread(lambda: importlib.import_module("slow_to_import"))
    assert shared.begun.wait(60)

    def use() -> None:
        assert importlib.import_module("slow_to_import").here

    assert in_child(use) == 0
    importing.join()
    del sys.modules["slow_to_import"]


def test_deleted_objects_are_forgotten() -> None:
    """Locks, methods and stores are held weakly; functions are kept."""

    class Part:
        def __init__(self) -> None:
            self.lock = new_lock(self.renew)
            after_fork(self.renew)

        def renew(self) -> None: ...

    gc.collect()

    def known() -> set[tuple[str, int]]:  # what earlier tests left may be forgotten meanwhile
        return {(name, key) for name in ("_locks", "_callbacks", "_lost") for key in [*getattr(forking, name)]}

    before = known()
    part = Part()
    assert known() - before
    seen = weakref.ref(part)
    del part
    gc.collect()
    assert seen() is None
    assert not known() - before


# ---------------------------------------------------------------- stores
def test_a_store_on_a_loop_of_its_own_works_in_a_child() -> None:
    """The loop's thread doesn't exist in the child: another one is started, by a sync call as at first. A closed store stays
    closed.
    """
    store = pp.SyncStore(FaultyMemory())
    store.set("a", 1)

    def use() -> None:
        assert store.get("a") == 1
        store.update("a", lambda n: n + 1)
        assert store.get("a") == 2
        store.close()
        with pytest.raises(StoreClosedError):
            store.get("a")

    assert in_child(use) == 0
    assert store.get("a") == 1
    store.close()

    def is_closed() -> None:
        with pytest.raises(StoreClosedError):
            store.get("a")

    assert in_child(is_closed) == 0


def test_a_child_works_while_its_parents_loop_waits() -> None:
    """Forked by a task, while others wait for the same key and gate: the child has a queue of its own."""

    async def main() -> None:
        store = pp.Store(FaultyMemory())
        async with store:
            updates = [asyncio.ensure_future(store.update("n", lambda n: n + 1, default=0)) for _ in range(20)]
            for _ in range(15):
                await asyncio.sleep(0)
            assert in_child(lambda: asyncio.run(store.update("n", lambda n: n + 1, default=0))) == 0
            assert in_child(lambda: store.sync.update("n", lambda n: n + 1, default=0)) == 0
            assert sorted(await asyncio.gather(*updates)) == list(range(1, 21))

    asyncio.run(main())


MODES = ("power", "process")


@pytest.mark.parametrize("durability", MODES)
def test_children_and_their_parent_count_in_one_file(tmp_path: Path, durability: str) -> None:
    """With the inherited store, and with one of their own; while the parent continues, and after it has closed."""
    url = f"sqlite:///{tmp_path}/state.db?durability={durability}"
    context = multiprocessing.get_context("fork")

    def inherited() -> None:
        for _ in range(10):
            store.update("n", lambda n: n + 1, default=0)

    def own() -> None:
        with pp.SyncStore(url) as mine:
            for _ in range(10):
                mine.update("n", lambda n: n + 1, default=0)

    with pp.SyncStore(url) as store:
        children = [context.Process(target=target) for target in (inherited, own) * 2]
        threads = [thread(inherited) for _ in range(2)]
        for child in children:
            child.start()
        for each in threads:
            each.join()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    with pp.SyncStore(url) as store:
        assert store.get("n") == 60


@pytest.mark.filterwarnings(
    "ignore:unclosed database:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_connection_that_an_interrupt_has_dropped_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the garbage collector closes it, since sqlite3 refers to it in a circle. It may not run for hours."""
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    drive(backend.read("a"))
    backend._connections._readers.clear()  # as if an interrupt had come when it was taken from there
    assert in_child(lambda: drive(backend.write([pp.Put("a", 1)]))) == 0
    assert not caplog.text
    drive(backend.close())


def test_a_read_keeps_no_connection_while_a_fork_waits(tmp_path: Path) -> None:
    """A thread that reads without a break would use it again before the fork can close it: some forks took 5 s, and failed."""
    kept: list[int] = []

    class Reads:
        """Another thread's read ends in the middle of the fork."""

        def rest(self) -> None:
            thread(lambda: drive(backend.read("a"))).join()
            kept.append(len(backend._connections._readers))

        def begin_anew(self) -> None: ...

    reads = Reads()
    forking.take_part(reads)  # asked before the backend
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    drive(backend.read("a"))
    assert len(backend._connections._readers) == 1
    assert in_child(lambda: drive(backend.read("a"))) == 0
    assert kept == [0]
    drive(backend.close())


@pytest.mark.usefixtures("hasty")
def test_a_connection_whose_close_was_interrupted_is_not_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The interrupt comes when SQLite has just closed it: a fork doesn't wait for it, and the child can use the file."""

    def interrupt(frame: types.FrameType, event: str, called: Any) -> None:
        if event == "c_return" and called.__name__ == "close" and isinstance(called.__self__, sqlite3.Connection):
            sys.setprofile(None)
            raise KeyboardInterrupt

    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    drive(backend.read("a"))
    sys.setprofile(interrupt)
    with pytest.raises(KeyboardInterrupt) as error:
        drive(backend.read("\ud800"))
    assert in_child(lambda: drive(backend.write([pp.Put("a", 1)]))) == 0
    assert not caplog.text
    assert drive(backend.read("a")) == pp.Entry(1, 1)
    drive(backend.close())
    del error  # whose traceback has kept the connection


def test_a_connection_whose_close_was_interrupted_at_any_call_knows_whether_it_is_open() -> None:
    """If it seemed closed while it is open, a child would inherit it, and take the parent's locks for its own."""
    ends: list[bool] = []

    def interrupt(frame: types.FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not _Connection.close.__code__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        step = dis.opname[frame.f_code.co_code[frame.f_lasti]] if event == "opcode" else ""
        if event == "opcode" and steps and steps[-1].startswith("CALL"):
            calls.append(step)
            if len(calls) == number:
                raise KeyboardInterrupt
        steps.append(step)
        return interrupt

    for number in count(1):
        connection, steps, calls = sqlite3.connect(":memory:", factory=_Connection), list[str](), list[str]()
        sys.settrace(interrupt)
        try:
            connection.close()
        except KeyboardInterrupt:
            ends.append(connection.is_open)
        finally:
            sys.settrace(None)
        is_open = True
        try:
            _ = connection.in_transaction
        except sqlite3.ProgrammingError:
            is_open = False
        assert connection.is_open == is_open
        connection.close()
        if len(calls) < number:
            break
    assert ends == [False] or sys.version_info >= (3, 12)  # where the close is one step


@pytest.mark.filterwarnings("ignore:.*WeakSet:pytest.PytestUnraisableExceptionWarning")  # it is interrupted, too
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of Python 3.13, for the one that is collected
def test_a_write_succeeds_after_an_interrupt_while_a_fork_closes_the_connections(tmp_path: Path) -> None:
    """The fork then closes them once more, and finds none in use; another thread may write in between."""
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    for place in count(1):
        drive(backend.read("a"))
        interrupter, raised = Interrupter(place), list[Interrupted]()
        try:
            with interrupter:
                backend._writer.rest()
        except Interrupted as error:
            raised.append(error)  # its traceback keeps what was in use
        gc.collect()  # for one that nothing refers to any more, as a fork does
        assert backend._writer.rest(), interrupter.where
        drive(backend.write([pp.Put("a", place)]))
        if not interrupter.where:
            break
    drive(backend.close())


@pytest.mark.usefixtures("hasty")
def test_a_connection_that_another_thread_is_closing_is_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the child SQLite's library would believe for ever that the lock with which it closes a file is held."""
    closing, go_on = threading.Event(), threading.Event()

    class Function:
        """What SQLite drops in the middle of a close."""

        def __call__(self) -> None: ...

        def __del__(self) -> None:
            closing.set()
            assert go_on.wait(timeout=60)

    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    assert backend._connections.writer is not None
    backend._connections.writer.connection.create_function("function", 0, Function())
    closer = thread(lambda: drive(backend.close()))
    assert closing.wait(timeout=60)
    assert in_child(lambda: None) == 0
    assert caplog.text.count("SQLite(") == caplog.text.count("was in use") == 1
    go_on.set()
    closer.join()
    assert in_child(lambda: drive(SQLite(tmp_path / "state.db").open())) == 0
    assert caplog.text.count("was in use") == 1


POOL = """
import multiprocessing, sys
import pocket_plug as pp

store = pp.SyncStore(f"sqlite:///{sys.argv[1]}/state.db")

def add(n):
    return store.update("n", lambda value: value + n, default=0)

if __name__ == "__main__":
    with store:
        add(0)
        with multiprocessing.get_context("fork").Pool(3) as pool:
            pool.map(add, range(50))
        add(1000)
        print(store.get("n"))
"""

DAEMON = """
import os, sys
import pocket_plug as pp

store = pp.SyncStore(f"sqlite:///{sys.argv[1]}/state.db")
store.__enter__()
store.set("n", 1)
done = os.pipe()
if os.fork():
    os.close(done[1])
    print(os.read(done[0], 100).decode())
    sys.exit()
os.setsid()
if os.fork():
    os._exit(0)
store.update("n", lambda n: n + 1)
os.write(done[1], f"{store.get('n')}".encode())
store.close()
"""


@pytest.mark.parametrize(("program", "said"), [(POOL, "2225"), (DAEMON, "2")], ids=["pool", "daemon"])
def test_programs_that_fork_with_an_open_store_continue(program: str, said: str, tmp_path: Path) -> None:
    """Workers of a Pool use the inherited store; a program that becomes a daemon uses its own."""
    assert run(program, tmp_path) == f"{said}\n"


def test_a_files_exclusive_lock_stays_with_its_owner_after_forks(tmp_path: Path) -> None:
    """Neither a child nor its end releases the lock, and a child doesn't have it; the parent's close releases it, though children
    live.
    """
    path = tmp_path / "state.db"
    first = SQLite(path)
    drive(first.open())
    drive(first.own())

    def is_owned() -> None:
        other = SQLite(path)
        drive(other.open())
        try:
            drive(other.own())
        except StoreBusyError:
            os._exit(10)
        finally:
            drive(other.close())

    assert in_child(is_owned) == 10
    assert in_child(lambda: drive(first.close())) == 0
    assert in_child(is_owned) == 10
    go = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(go[0], 1)
        os._exit(0)
    drive(first.close())
    assert in_child(is_owned) == 0
    os.write(go[1], b".")
    os.waitpid(child, 0)


@pytest.mark.parametrize("durability", MODES)
def test_forked_in_the_middle_of_a_commit_the_child_refuses_the_file(
    tmp_path: Path, durability: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked by the committing thread itself, for which a fork waits in vain, so it doesn't: the parent's write is done. In the
    child the inherited store and a new one on the file say why they can't be used; other files work.
    """
    pauses: list[float] = []
    monkeypatch.setattr(forking, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append))
    path = tmp_path / "state.db"
    backend = SQLite(path, durability=durability)
    drive(backend.open())
    codes: list[int] = []

    def use() -> None:
        for again in (backend.read("a"), backend.write([pp.Put("b", 1)]), backend.open(), SQLite(path).open()):
            with pytest.raises(
                StoreClosedError, match=r"state\.db: this process was forked while this file was in use"
            ):
                drive(again)
        with pp.SyncStore(f"sqlite:///{tmp_path}/other.db") as other:
            other.set("a", 1)

    def forks() -> float:
        if not codes:
            codes.append(99)
            codes[0] = in_child(use)
        return 0.0

    backend.clock = forks
    drive(backend.write([pp.Put("a", 1)]))
    assert codes == [0]
    assert not pauses
    assert "a child was forked although SQLite(" in caplog.text
    drive(backend.write([pp.Put("c", 1)]))
    drive(backend.close())
    assert len(drive(_all_of(path))) == 2


def test_forked_in_the_middle_of_a_commit_no_other_thread_is_within_sqlite(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a thread may hold a lock of SQLite's library, which nobody would release in the child: every file would hang there."""
    copying, copied = threading.Event(), threading.Event()

    def until_the_fork(done: int, total: int) -> None:
        copying.set()
        while not forking.is_under_way():
            time.sleep(0)

    def copy() -> None:
        backend.backup(tmp_path / "copy.db", until_the_fork)
        copied.set()

    def forks() -> float:
        thread(copy)
        assert copying.wait(timeout=60)
        codes.append(in_child(lambda: copied.is_set() or os._exit(2)))
        return 0.0

    codes: list[int] = []
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    backend.clock = forks
    drive(backend.write([pp.Put("a", 1)]))
    assert codes == [0]
    assert caplog.text.count("SQLite(") == 1
    drive(backend.close())


async def _all_of(path: Path) -> list[str]:
    backend = SQLite(path)
    await backend.open()
    try:
        return [key async for key in backend.scan()]
    finally:
        await backend.close()


@pytest.mark.parametrize("durability", MODES)
def test_a_fork_does_not_wait_for_another_process_that_writes(
    tmp_path: Path, durability: str, caplog: pytest.LogCaptureFixture, new_threads: Callable[[], list[threading.Thread]]
) -> None:
    """A write that waits for it, in the writer's thread, keeps waiting after the fork, and is done later."""
    with pp.SyncStore(f"sqlite:///{tmp_path}/state.db?durability={durability}&timeout=600") as store:
        store.set("a", 1)
        with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            writing = thread(lambda: asyncio.run(store.stack.write([pp.Put("a", 2)])))
            while not any(each.name.startswith("writer of") for each in new_threads()):
                pass
            assert in_child(lambda: store.require("a")) == 0
            assert writing.is_alive()
            other.execute("COMMIT")
        writing.join()
        assert store.get("a") == 2
    assert caplog.text == ""


# `asyncio.to_thread` would import concurrent.futures.thread in the middle of the fork: its fork callback would then
# release a lock that was never acquired (CPython prints it and continues).
WAITING = """
import concurrent.futures.thread, itertools, os, signal, sqlite3, sys, threading
import pocket_plug as pp
from pocket_plug.testing.layer_contract import FaultyMemory

parent = os.getpid()
signals = itertools.count()
is_handled = threading.Event()

def on_signal(number, frame):
    if next(signals):  # one may come in the middle of the handler of the first
        return
    is_handled.set()
    if os.fork() == 0:
        signal.alarm(60)
        return  # and the thread waits on, in the child too
    os.wait()
    release()

signal.signal(signal.SIGUSR1, on_signal)

if sys.argv[2] == "queued":
    store = pp.SyncStore(f"sqlite:///{sys.argv[1]}/state.db?timeout=600")
    with store:
        store.set("a", 0)
    store.__enter__()
    other = sqlite3.connect(f"{sys.argv[1]}/state.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = lambda: other.execute("COMMIT")
else:
    go = threading.Event()
    class Slow(FaultyMemory):
        async def write(self, changes, expect={}):
            import asyncio
            await asyncio.to_thread(go.wait)
            return await super().write(changes, expect)
    store = pp.SyncStore(Slow())
    store.__enter__()
    release = go.set

def interrupt():
    main = threading.main_thread().ident
    while True:
        frame = sys._current_frames()[main]
        if frame.f_code.co_name == "block" or frame.f_back is not None and frame.f_back.f_code.co_name == "result":
            break
    # Python doesn't look for signals between the entry of `block` and its lock: one that comes there needs a second one
    signal.pthread_kill(main, signal.SIGUSR1)
    while not is_handled.wait(0.1):
        signal.pthread_kill(main, signal.SIGUSR1)

threading.Thread(target=interrupt, daemon=True).start()
try:
    store.set("a", 1)
    print("parent" if os.getpid() == parent else "child", "has written", flush=True)
except pp.StoreError as error:
    print("parent" if os.getpid() == parent else "child", error, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("how", ["queued", "on a loop"])
def test_a_child_forked_by_a_signal_handler_waits_for_no_thread(tmp_path: Path, how: str) -> None:
    """The handler interrupts a call that waits, forks, and returns in the child: there the call raises, here it succeeds."""
    child, parent = run(WAITING, tmp_path, how).splitlines()
    assert child.startswith("child this process was forked while this call waited")
    assert parent == "parent has written"


def test_a_failing_fork_callback_affects_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """A plugin's fork callback: its exception is logged, and all other callbacks are called, before and after the fork."""
    lock = new_lock()

    class Part:
        def rest(self) -> bool:
            raise ZeroDivisionError

        begin_anew = rest

    part = Part()
    forking.take_part(part)
    forking.after_fork(part.rest)
    ids = context.run_ids.next()

    def check() -> None:
        assert lock.acquire(timeout=0)
        assert context.run_ids.next()[:12] != ids[:12]
        assert caplog.text.count("failed to prepare for a fork") == 3

    assert in_child(check) == 0
    assert caplog.text.count("failed to prepare for a fork") == 1


def test_a_participant_that_says_nothing_is_idle(caplog: pytest.LogCaptureFixture) -> None:
    """It has closed what it had; so a fork waits for nothing, and gives no warning."""

    class Part:
        def rest(self) -> None: ...

        begin_anew = rest

    part: Any = Part()
    forking.take_part(part)
    assert in_child(lambda: None) == 0
    assert not caplog.text


def test_forks_while_stores_are_opened_and_closed(tmp_path: Path, end: threading.Event) -> None:
    """On one file, all the time, by several threads: the child finds no half-made connection, and no wrong owner."""
    opened = threading.Semaphore(0)

    def use(name: str) -> None:
        with pp.SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
            store.update(name, lambda n: n + 1, default=0)
        behind = pp.SyncStore(layers=[Persistence(to=f"sqlite:///{tmp_path}/behind.db", mode="behind")])
        with suppress(StoreBusyError), behind:
            behind.set(name, 1)

    def go_on(name: str) -> Callable[[], None]:
        def go_on() -> None:
            while not end.is_set():
                use(name)
                counts[name] += 1
                opened.release()

        return go_on

    counts = {"first": 0, "second": 0}
    threads = [thread(go_on(name)) for name in counts]
    for _ in range(6):
        assert opened.acquire(timeout=60)
        assert in_child(lambda: use("child")) == 0
    end.set()
    for each in threads:
        each.join()
    with pp.SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        assert store.get_many([*counts, "child"]) == {**counts, "child": 6}


def test_forks_within_a_scan_and_a_transaction(tmp_path: Path) -> None:
    """The forking thread's scan and transaction continue, in both processes."""
    with pp.SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        store.set_many({f"k{n:03}": n for n in range(600)})
        names = store.keys()
        first = [next(names) for _ in range(10)]

        def rest() -> None:
            assert len([*first, *names]) == 600

        assert in_child(rest) == 0
        rest()
        with store.transaction() as tx:
            tx.set("k000", tx.get("k001"))

            def commit() -> None:
                store.set("child", 1)

            assert in_child(commit) == 0
            tx.set("k002", 5)
        assert store.get_many(["k000", "k002", "child"]) == {"k000": 1, "k002": 5, "child": 1}


def test_a_cache_in_a_child_doesnt_answer_for_what_its_parent_was_writing(tmp_path: Path) -> None:
    """Persistence through: forked while another thread's write is between the tiers, the child reads the durable one."""
    reached, go = threading.Event(), threading.Event()

    class Slow(pp.Memory):
        async def write(self, changes: Any, expect: Any = NO_EXPECTATIONS) -> int:
            version = await super().write(changes, expect)
            if not go.is_set() and expect == {"a": 1}:
                reached.set()
                go.wait(60)
            return version

    store = pp.SyncStore(layers=[Persistence(to=Slow())])
    with store:
        store.set("a", "old")
        assert store.get("a") == "old"
        writing = thread(lambda: drive(store.stack.write([pp.Put("a", "new")], {"a": 1})))
        assert reached.wait(60)

        def use() -> None:
            assert store.get("a") == "new"
            store.set("a", "newer")
            assert store.get("a") == "newer"

        assert in_child(use) == 0
        go.set()
        writing.join()
        assert store.get("a") == "new"


BEFORE = """
import os
class Hook:
    def __call__(self):
        try:
            store.get("a")
        except Exception as error:
            print(type(error).__name__, error)
hook = Hook()
os.register_at_fork(before=hook)
import sys
import pocket_plug as pp
store = pp.SyncStore(f"sqlite:///{sys.argv[1]}/state.db")
with store:
    store.set("a", 1)
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    print(store.get("a"))
"""


def test_a_fork_callback_that_uses_a_store_too_late_gets_an_error(tmp_path: Path) -> None:
    """Registered before pocket_plug's, it is called when all files are closed: an error, and no deadlock."""
    said, after = run(BEFORE, tmp_path).splitlines()
    assert said.startswith("StoreError a function that was passed to os.register_at_fork used a store during a fork")
    assert after == "1"


# ---------------------------------------------------------------- platforms
ELSEWHERE = """
import os, sys
del os.register_at_fork, os.fork
sys.modules["fcntl"] = None
import pocket_plug as pp
from pocket_plug.layers import Persistence
import pocket_plug.layers.metrics, pocket_plug.telemetry.wiring, pocket_plug.testing.contracts
with pp.SyncStore(layers=[Persistence(to=f"sqlite:///{sys.argv[1]}/state.db", mode="behind")]) as store:
    store.set("a", 1)

@pp.node
def add(n: int) -> int:
    return n + 1

import asyncio
print(asyncio.run(pp.Graph(add).run(1)), "fork" in dir(pocket_plug.testing.contracts.BackendContract))
"""


def test_it_works_without_fork(tmp_path: Path) -> None:
    """As on Windows: neither os.fork nor os.register_at_fork nor fcntl."""
    assert run(ELSEWHERE, tmp_path) == "2 False\n"


def test_one_module_handles_forks() -> None:
    """All fork callbacks are registered by `forking`, which checks whether forks exist."""
    package = Path(pp.__file__).parent
    users = [
        str(file.relative_to(package)) for file in package.rglob("*.py") if "register_at_fork(" in file.read_text()
    ]
    assert users == ["primitives/forking.py"]
