"""The SQLite backend passes the backend contract, and keeps its own guarantees: durability, sharing,
errors that name the file.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pocket_plug.backends import sqlite
from pocket_plug.backends.sqlite import SQLite, connections, files, opened, schema, statements, transactions, writer
from pocket_plug.errors import (
    CodecError,
    ConfigError,
    ConflictError,
    CorruptRecordError,
    StoreBusyError,
    StoreClosedError,
    StoreError,
    UnregisteredTypeError,
)
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import Backend, Change, Delete, Entry, Put
from pocket_plug.store.sync import SyncStore
from pocket_plug.testing.contracts import BackendContract
from pocket_plug.testing.interrupts import Between
from pocket_plug.testing.scenarios import keys_of
from pocket_plug.testing.shared_contract import SharedBackendContract

MODES: tuple[sqlite.Durability, ...] = ("power", "process")


class TestPower(BackendContract):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return lambda: SQLite(tmp_path / "state.db", durability="power")


class TestProcess(SharedBackendContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/state.db?durability=process"


class Traced(SQLite):
    """Records each statement with its thread, and lets a test prepare every connection."""

    prepare = ""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.statements: list[tuple[str, str]] = []
        connect = self._connections._connect
        self._connections._connect = lambda: self.traced(connect())  # type: ignore[method-assign]

    def traced(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        connection.set_trace_callback(lambda text: self.statements.append((text, threading.current_thread().name)))
        connection.execute(self.prepare)
        return connection

    def threads_of(self, statement: str) -> list[str]:
        return [thread for text, thread in self.statements if text == statement]


def run(backend: SQLite, scenario: Callable[[], Awaitable[None]]) -> None:
    """The scenario on an event loop, with the backend open."""

    async def main() -> None:
        await backend.open()
        try:
            await scenario()
        finally:
            await backend.close()

    asyncio.run(main())


async def opened_then(backend: SQLite, scenario: Callable[[], Awaitable[None]]) -> None:
    """Like `run`, but leaves the backend open."""
    await backend.open()
    await scenario()


@contextmanager
def another_writer(path: Path) -> Iterator[sqlite3.Connection]:
    """Another connection in the middle of a write, as a second process would be; the test ends it by a commit."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def fork() -> None:
    """Fork, which closes this process's connections; the child ends at once."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


async def settle(turns: int = 20) -> None:
    """Let all tasks of this loop run until they wait."""
    for _ in range(turns):
        await asyncio.sleep(0)


# ---------------------------------------------------------------- reading
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("after", ["", "k:0500"])
def test_a_page_is_found_by_the_index(tmp_path: Path, after: str, reverse: bool) -> None:
    """It starts at the right place of the index, between two bounds, and reads as many rows as it returns: nothing is sorted or
    skipped.
    """
    backend = Traced(tmp_path / "state.db", durability="process")

    async def scenario() -> None:
        await backend.write([Put(f"{letter}:{n:04}", n) for letter in "jkl" for n in range(1000)])
        backend.statements.clear()
        assert len(await keys_of(backend, "k:", after=after, reverse=reverse, limit=10)) == 10
        ((statement, _),) = [each for each in backend.statements if "SELECT key" in each[0]]
        assert statement.endswith("LIMIT 10")
        with closing(sqlite3.connect(backend.path)) as connection:
            ((*_, plan),) = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        assert f"'{after or 'k:'}" in statement
        assert plan.startswith("SEARCH ")
        assert plan.endswith("entries USING INDEX sqlite_autoindex_entries_1 (key>? AND key<?)")

    run(backend, scenario)


# ---------------------------------------------------------------- URLs
def test_a_url_names_the_file_and_the_options() -> None:
    """Three slashes are relative, four absolute; percent escapes are decoded; options have types."""
    relative = SQLite.from_url("sqlite:///folder/state%20one.db?durability=process&timeout=2.5")
    assert (relative.path, relative.durability, relative.timeout) == ("folder/state one.db", "process", 2.5)
    absolute = SQLite.from_url("sqlite:////var/lib/state.db")
    assert (absolute.path, absolute.durability, absolute.timeout) == ("/var/lib/state.db", "power", 5.0)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///x.db?durabilty=power", "Did you mean 'durability'?"),
        ("sqlite:///x.db?cache=shared", "sqlite has no option 'cache'; it has: durability, timeout"),
        ("sqlite:///x.db?durability=proces", "allowed: power, process. Did you mean 'process'?"),
        ("sqlite:///x.db?durability=", "durability is ''"),
        ("sqlite:///x.db?timeout=soon", "timeout is 'soon'"),
        ("sqlite:///a%00b.db", "can't be a file's name: it has a NUL"),
        ("sqlite:///a\0b.db", "can't be a file's name"),
        ("sqlite:///\ud800.db", "a character that isn't in the encoding of file names, which is"),
        ("sqlite:///x.db?timeout=1&timeout=2", "has the option 'timeout' twice; give it once"),
        ("sqlite:///x.db?durability=power&durability=power", "has the option 'durability' twice"),
        ("sqlite:///x.db?timeout=-1", "timeout is -1.0"),
        ("sqlite:///x.db?timeout=nan", "timeout is nan"),
        ("sqlite:///x.db?timeout=1e12", "timeout is 1000000000000.0"),
        ("sqlite://x.db", "'sqlite://x.db' names no file; write sqlite:///relative.db"),
        ("SQLITE:///x.db?cache=shared", "sqlite has no option 'cache'"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "memory:// for memory"),
    ],
)
def test_an_invalid_url_is_refused(url: str, said: str) -> None:
    """The message says what was found and what is allowed, and suggests an option."""
    with pytest.raises(ConfigError) as caught:
        SQLite.from_url(url)
    assert said in str(caught.value)


def test_it_is_registered_by_the_hook() -> None:
    """The module is a plugin that registers the scheme `sqlite`."""
    made = sqlite.pocket_backends()["sqlite"]("sqlite:///state.db")
    assert isinstance(made, SQLite)


# ---------------------------------------------------------------- the file
def test_the_folder_is_made(tmp_path: Path) -> None:
    """A path such as .pocket_plug/state.db needs no mkdir."""
    path = tmp_path / "not yet" / "there" / "state.db"
    backend = SQLite(path)
    drive(backend.open())
    drive(backend.close())
    assert path.exists()


def test_a_folder_that_cant_be_made_is_named(tmp_path: Path) -> None:
    """If there is a file in its place, the error names the store and the cause."""
    (tmp_path / "file").write_text("in the way")
    backend = SQLite(tmp_path / "file" / "state.db")
    with pytest.raises(StoreError, match=r"state\.db: its folder can't be created.*file"):
        drive(backend.open())


def test_a_folder_in_the_files_place_is_named(tmp_path: Path) -> None:
    """The error names what can't be opened. SQLite says the same of a file on a read-only medium, even for a read."""
    with pytest.raises(
        StoreError, match=r"can't be opened; .* copy a file first that is on a read-only medium"
    ) as caught:
        drive(SQLite(tmp_path).open())
    assert str(tmp_path) in str(caught.value)


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a chdir, reads and writes still use the same file."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    backend = SQLite("state.db")
    monkeypatch.chdir(tmp_path / "there")
    drive(backend.open())
    drive(backend.write([Put("a", 1)]))
    assert drive(backend.read("a")) is not None
    drive(backend.close())
    assert (tmp_path / "here" / "state.db").exists()
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("CREATE TABLE users (id INTEGER)", "is the SQLite file of another program"),
        ("PRAGMA application_id = 77", "is the SQLite file of another program"),
        (f"PRAGMA application_id = {statements.APPLICATION_ID}; PRAGMA user_version = 99", "has schema 99"),
        (None, "is not an SQLite file"),
    ],
)
def test_a_foreign_file_is_refused_untouched(tmp_path: Path, make: str | None, said: str) -> None:
    """Another program's file, a newer schema, or no database at all: the error names it, and not a byte is changed."""
    path = tmp_path / "state.db"
    if make is None:
        path.write_bytes(b"Dear diary, " * 500)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(make)
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        drive(SQLite(path).open())
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.db"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("CREATE TRIGGER sly AFTER INSERT ON Entries BEGIN DELETE FROM entries; END", "'sly'"),
        ("CREATE TRIGGER sly BEFORE UPDATE ON counter BEGIN SELECT RAISE(IGNORE); END", "'sly'"),
        ("DROP TABLE entries; CREATE VIEW entries AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) "
         "SELECT 'a' AS key, x'00' AS value, x AS version, NULL AS expires_at FROM c", "'entries'"),
        ("DROP TABLE entries; CREATE TABLE entries (key TEXT NOT NULL PRIMARY KEY COLLATE NOCASE, value BLOB NOT NULL, "
         "version INTEGER NOT NULL, expires_at REAL)", "'entries'"),
        ("DROP TABLE entries; DROP TABLE counter", "'counter' and 'entries'"),
    ],
)  # fmt: skip
def test_a_file_with_a_changed_schema_is_refused(tmp_path: Path, change: str, name: str) -> None:
    """Whoever gives us a file could have its triggers remove what is acknowledged, or let a read never end."""
    path = tmp_path / "state.db"
    with SyncStore(SQLite(path)) as store:
        store.set("a", 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(change)
    for use in (SQLite(path).open, lambda: SQLite(path).probe(1.0)):
        with pytest.raises(StoreError, match=f"state.db: {name} of its schema"):
            asyncio.run(use())


def test_tables_and_views_of_others_beside_ours_are_left_alone(tmp_path: Path) -> None:
    """A report may have a view of the entries in the same file."""
    path = tmp_path / "state.db"
    with SyncStore(SQLite(path)) as store:
        store.set("a", 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE VIEW report AS SELECT key FROM entries; CREATE INDEX mine ON entries (version); "
            "CREATE TABLE theirs (x); CREATE TRIGGER t AFTER INSERT ON theirs BEGIN DELETE FROM theirs; END"
        )
    with SyncStore(SQLite(path)) as store:
        assert store.get("a") == 1


def test_two_processes_that_create_the_same_file_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another process makes the file between the check and the creation, it is used."""
    path = tmp_path / "state.db"
    is_new = schema.is_new

    def overtaken(connection: sqlite3.Connection, name: str) -> bool:
        new = is_new(connection, name)
        monkeypatch.setattr(schema, "is_new", is_new)
        other = SQLite(path)
        drive(other.open())
        drive(other.write([Put("a", "the other's")]))
        drive(other.close())
        return new

    monkeypatch.setattr(schema, "is_new", overtaken)
    backend = SQLite(path)
    drive(backend.open())
    entry = drive(backend.read("a"))
    drive(backend.close())
    assert entry is not None


def test_open_waits_for_another_process_that_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the file is not yet in WAL mode, SQLite refuses at once if another connection is writing."""
    path = tmp_path / "state.db"
    made = SQLite(path)
    drive(made.open())
    drive(made.close())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    with another_writer(path) as other:
        refusals: list[sqlite3.Error] = []

        def prepare(*arguments: Any) -> None:
            try:
                schema.prepare(*arguments)
            except sqlite3.Error as error:
                refusals.append(error)
                other.execute("COMMIT")
                raise

        monkeypatch.setattr(connections, "prepare", prepare)
        backend = SQLite(path)
        drive(backend.open())
        drive(backend.close())
    assert len(refusals) == 1


def test_it_can_be_opened_again(tmp_path: Path) -> None:
    """A backend that was closed and is opened again has the same data; opening an open one does nothing."""
    backend = SQLite(tmp_path / "state.db")
    for n in range(3):
        drive(backend.open())
        drive(backend.open())
        drive(backend.write([Put(f"k{n}", n)]))
        drive(backend.close())
    drive(backend.open())
    assert drive(keys_of(backend)) == ["k0", "k1", "k2"]
    drive(backend.close())


def test_close_leaves_one_file(tmp_path: Path) -> None:
    """After a close the log is part of the file, so copying the file copies everything."""
    backend = SQLite(tmp_path / "state.db")

    async def scenario() -> None:
        await asyncio.gather(*(backend.write([Put(f"k{n}", n)]) for n in range(10)))
        await backend.read("k1")

    run(backend, scenario)
    assert [file.name for file in tmp_path.iterdir()] == ["state.db"]


def test_the_end_of_the_process_leaves_one_file_too(tmp_path: Path) -> None:
    """A run opens its graph's store, and nobody closes it."""
    (tmp_path / "app.py").write_text("""
import pocket_plug as pp

@pp.node.post
def keep(store: pp.SyncWriter, number: int) -> None:
    store.set("number", number)

graph = pp.Graph(keep, store=pp.Store("sqlite:///state.db"))
""")
    run_it = "import app, asyncio; asyncio.run(app.graph.run(7))"
    subprocess.run([sys.executable, "-c", run_it], cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "copy.db").write_bytes((tmp_path / "state.db").read_bytes())
    assert [*tmp_path.glob("state.db*")] == [tmp_path / "state.db"]
    with SyncStore(f"sqlite:///{tmp_path}/copy.db") as copied:
        assert copied.get("number") == 7


def test_before_open_everything_is_refused(tmp_path: Path) -> None:
    """Neither a read nor a write creates a file by accident; the message says what to do."""
    backend = SQLite(tmp_path / "state.db")
    for use in (backend.read("a"), backend.write([Put("a", 1)]), backend.write([])):
        with pytest.raises(StoreError, match=r"not opened yet\. Open it by `store\.open\(\)`") as refused:
            drive(use)
        assert refused.value.__context__ is None  # "During handling of …" would be above it in the traceback
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- commits, and their thread
def test_power_syncs_and_process_does_not(tmp_path: Path) -> None:
    """`power` commits with synchronous=FULL, which syncs the log before a commit returns; `process` with NORMAL."""
    found = {}
    for durability in MODES:
        backend = Traced(tmp_path / f"{durability}.db", durability=durability)
        drive(backend.open())
        found[durability] = [text for text, _ in backend.statements if "synchronous" in text]
        drive(backend.close())
    assert found == {"power": ["PRAGMA synchronous = FULL"], "process": ["PRAGMA synchronous = NORMAL"]}


def test_writes_that_wait_together_share_a_commit(tmp_path: Path) -> None:
    """A hundred tasks need only a few commits; each write has its own version and its own outcome."""
    backend = Traced(tmp_path / "state.db")

    async def scenario() -> None:
        versions = await asyncio.gather(*(backend.write([Put(f"k{n}", n)]) for n in range(100)))
        assert len(set(versions)) == 100
        assert len(backend.threads_of("COMMIT")) < 20

    run(backend, scenario)


def test_no_write_is_acknowledged_before_its_commit(tmp_path: Path) -> None:
    """While the transaction is open, none of its callers is notified."""
    backend = SQLite(tmp_path / "state.db")
    with Gate(backend) as gate:

        async def scenario() -> None:
            writing = [asyncio.ensure_future(backend.write([Put(f"k{n}", n)])) for n in range(5)]
            await gate.reached()
            await settle()
            assert not any(task.done() for task in writing)
            assert await keys_of(backend) == []
            gate.open()
            await asyncio.gather(*writing)
            assert len(await keys_of(backend)) == 5

        run(backend, scenario)


def test_a_lone_sync_caller_commits_in_its_own_thread(tmp_path: Path) -> None:
    """It blocks nobody, so it needs no other thread; a task's write goes to the writer thread."""
    backend = Traced(tmp_path / "state.db", durability="power")
    here = threading.current_thread().name
    drive(backend.open())
    drive(backend.write([Put("a", 1)]))
    assert set(backend.threads_of("BEGIN IMMEDIATE")) == {here}
    asyncio.run(write_and_close(backend))
    assert backend.threads_of("BEGIN IMMEDIATE")[-1].startswith("writer of ")


class Busy:
    """A lock that is held, and released for a caller that waits."""

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self.asked.append(blocking)
        return blocking

    def release(self) -> None:
        """Nobody else waits for it."""

    def __enter__(self) -> None:
        """Acquired, as the writer thread does."""

    def __exit__(self, *_: object) -> None:
        """Released, as the writer thread does."""

    def _is_owned(self) -> bool:
        """Not by this thread."""
        return False


def test_a_thread_waits_for_another_ones_commit_rather_than_for_the_writer_thread(tmp_path: Path) -> None:
    """If no commit waits for the disk, this is faster: two threads that write in turn are as fast as one."""
    backend = Traced(tmp_path / "state.db", durability="process")
    here = threading.current_thread().name
    drive(backend.open())
    backend._connections.writing = busy = Busy()  # type: ignore[assignment]
    drive(backend.write([Put("a", 1)]))
    assert busy.asked == [False, True]
    assert set(backend.threads_of("BEGIN IMMEDIATE")) == {here}
    asyncio.run(write_and_close(backend))  # a task must not block its loop
    assert busy.asked == [False, True, False]
    assert backend.threads_of("BEGIN IMMEDIATE")[-1].startswith("writer of ")


def test_process_writes_in_place(tmp_path: Path) -> None:
    """A task's write is done in its own thread, without suspension, while nobody else is writing."""
    backend = Traced(tmp_path / "state.db", durability="process")
    drive(backend.open())
    asyncio.run(write_and_close(backend))
    assert set(backend.threads_of("BEGIN IMMEDIATE")) == {threading.current_thread().name}


async def write_and_close(backend: Backend) -> None:
    await backend.write([Put("b", 2)])
    await backend.close()


@pytest.mark.parametrize("durability", MODES)
def test_another_writer_never_stops_the_loop(tmp_path: Path, durability: sqlite.Durability) -> None:
    """While another process writes, tasks continue and reads are answered; the write is done when it can be."""
    backend = Traced(tmp_path / "state.db", durability=durability)

    async def scenario() -> None:
        await backend.write([Put("a", 1)])
        with another_writer(tmp_path / "state.db") as other:
            begun = len(backend.threads_of("BEGIN IMMEDIATE"))
            writing = [asyncio.ensure_future(backend.write([Put("a", 2)]))]
            # Until the writer thread waits for the file.
            while not any(name.startswith("writer") for name in backend.threads_of("BEGIN IMMEDIATE")[begun:]):
                await asyncio.sleep(0)
            writing += [asyncio.ensure_future(backend.write([Put("a", 3 + n)])) for n in range(2)]
            await settle()
            entry = await backend.read("a")
            assert entry is not None
            assert entry.value == 1
            assert not any(task.done() for task in writing)
            other.execute("COMMIT")
            versions = await asyncio.gather(*writing)
        assert await backend.read("a") == Entry(4, versions[-1])

    run(backend, scenario)


@pytest.mark.parametrize("durability", MODES)
def test_a_file_that_stays_busy_is_an_error(tmp_path: Path, durability: sqlite.Durability) -> None:
    """After the timeout, StoreBusyError names the file and the option, for tasks and for threads; later writes work again."""
    backend = SQLite(tmp_path / "state.db", durability=durability, timeout=0.02)

    async def scenario() -> None:
        with another_writer(tmp_path / "state.db"):
            for writing in (backend.write([Put("a", 1)]), asyncio.to_thread(drive, backend.write([Put("a", 1)]))):
                with pytest.raises(StoreBusyError, match=r"state\.db.*0\.02 s.*timeout="):
                    await writing
        assert await backend.read("a") is None
        await backend.write([Put("a", 2)])

    run(backend, scenario)


def test_a_commit_of_another_process_is_seen_at_once(tmp_path: Path) -> None:
    """Two backends on one file read each other's writes, and get conflicts when they should."""
    one, other = SQLite(tmp_path / "state.db"), SQLite(tmp_path / "state.db", durability="process")
    drive(one.open())
    drive(other.open())
    seen = drive(one.write([Put("a", 1)]))
    assert drive(other.read("a")) == Entry(1, seen)
    newer = drive(other.write([Put("a", 2)], {"a": seen}))
    assert newer > seen
    assert drive(one.read("a")) == Entry(2, newer)
    with pytest.raises(ConflictError):
        drive(one.write([Put("a", 3)], {"a": seen}))
    drive(one.close())
    assert drive(other.read("a")) == Entry(2, newer)
    drive(other.close())


@pytest.mark.parametrize("durability", MODES)
def test_two_processes_that_alternate_have_consecutive_versions(tmp_path: Path, durability: sqlite.Durability) -> None:
    """Each write's version is the next number, whoever wrote before; a conflict uses none."""
    one, other = (SQLite(tmp_path / "state.db", durability=durability) for _ in range(2))
    drive(one.open())
    drive(other.open())
    versions: list[int] = []
    for backend in (one, one, other, one, other, other):
        versions.append(drive(backend.write([Put("a", backend is one)])))
        with pytest.raises(ConflictError):
            drive(backend.write([Put("b", 1)], {"a": 99}))
        assert drive(backend.version()) == versions[-1]
    assert versions == [1, 2, 3, 4, 5, 6]
    drive(one.close())
    drive(other.close())


def test_a_single_writer_does_not_write_the_counter_each_time(tmp_path: Path) -> None:
    """It reserves versions, which are then used without a gap; versions still reserved at its end are never used."""
    backend, given = Traced(tmp_path / "state.db", durability="process"), list[int]()

    async def scenario() -> None:
        for n in range(2 * transactions.RESERVED):
            changes: list[Change] = [Delete(f"k{n - 1}")] if n % 5 == 4 else [Put(f"k{n}", n)]
            given.append(await backend.write(changes))
            if n % 3 == 0:
                with pytest.raises(ConflictError):
                    await backend.write([Put("k0", -1)], {"k0": transactions.RESERVED**2})
        assert await backend.version() == given[-1]

    run(backend, scenario)
    assert given == list(range(1, len(given) + 1))
    assert sum(text.startswith("UPDATE counter") for text, _ in backend.statements) <= transactions.RESERVE_AFTER + 3
    before = given[-1]

    async def again() -> None:
        first = await backend.version()
        given.append(await backend.write([Put("k0", 1)]))
        assert before <= first < given[-1]
        assert first == given[-1] - 1
        assert await backend.check() == []

    run(backend, again)


def test_reserved_versions_are_given_up_when_another_instance_writes(tmp_path: Path) -> None:
    """Of two instances, each continues above the other's versions, whatever it had reserved."""
    one, other = (SQLite(tmp_path / "state.db", durability="process") for _ in range(2))
    drive(one.open())
    drive(other.open())
    given: list[int] = []
    for backend, writes in (
        (one, 40),
        (other, 1),
        (one, 1),
        (other, 40),
        (one, 30),
        (other, transactions.RESERVED + 30),
    ):
        for n in range(writes):
            given.append(drive(backend.write([Put("k", n)])))
            assert drive(one.read("k")) == drive(other.read("k")) == Entry(n, given[-1])
    assert given == sorted(set(given))
    assert drive(one.version()) == drive(other.version()) >= given[-1]
    drive(one.close())
    drive(other.close())


def test_reading_the_version_of_an_owned_file_changes_nothing(tmp_path: Path) -> None:
    """The owner's versions are consecutive, whoever reads the last version meanwhile, and whatever the counter's value is."""
    owner, other = (SQLite(tmp_path / "state.db", durability="process") for _ in range(2))
    drive(owner.open())
    drive(owner.own())
    drive(other.open())
    given: list[int] = []
    for n in range(2 * transactions.RESERVED + 2):
        given.append(drive(owner.write([Put("k", n)])))
        assert given[-1] <= drive(other.version()) <= given[-1] + 1
    assert given == list(range(1, len(given) + 1))
    drive(other.close())
    drive(owner.close())


@pytest.mark.parametrize("why", ["locked", "read-only"])
def test_a_reader_without_write_access_can_read_the_version(tmp_path: Path, why: str) -> None:
    """If another instance has reserved versions, it is at least as high as the version of each write."""
    one, other = SQLite(tmp_path / "state.db"), SQLite(tmp_path / "state.db", timeout=0)
    drive(one.open())
    drive(other.open())
    given = [drive(one.write([Put("k", n)])) for n in range(transactions.RESERVE_AFTER + 2)]
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as raw:
        if why == "locked":
            raw.execute("BEGIN IMMEDIATE")
        else:
            assert other._connections.writer is not None
            other._connections.writer.execute("PRAGMA query_only = 1")
        version = drive(other.version())
    assert version >= given[-1]
    assert drive(one.version()) == given[-1]
    drive(one.close())
    drive(other.close())


class Refusing(Traced):
    """Refuses statements that begin with `refused`."""

    refused = "nothing"

    def traced(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        backend, connection = self, super().traced(connection)

        class Cursor(sqlite3.Cursor):
            def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
                if statement.startswith(backend.refused):
                    raise sqlite3.OperationalError("disk I/O error")
                return super().execute(statement, *parameters)

        made = connection.cursor
        connection.cursor = lambda: made(Cursor)  # type: ignore[method-assign, assignment] # asked for without arguments
        return connection


@pytest.mark.parametrize("refused", ["SELECT version", "INSERT INTO entries", "UPDATE counter", "COMMIT"])
def test_a_write_that_fails_gives_no_version_twice(tmp_path: Path, refused: str) -> None:
    """Whichever statement fails; also if it would have reserved versions, and another instance then reserves the same."""
    one, other = (Refusing(tmp_path / "state.db", durability="process") for _ in range(2))
    drive(one.open())
    drive(other.open())
    given: list[int] = []
    failed = 0
    for backend, writes in (
        (one, 40),
        (other, transactions.RESERVE_AFTER),
        (one, 1),
        (other, 40),
        (one, 40),
        (other, 1),
    ):
        for n in range(writes):
            backend.refused = refused
            try:
                given.append(drive(backend.write([Put("k", -1)])))
            except StoreError:
                failed += 1
            backend.refused = Refusing.refused
            given.append(drive(backend.write([Put("k", n)])))
            assert drive(other.read("k")) == Entry(n, given[-1])
    assert failed > transactions.RESERVE_AFTER
    assert given == sorted(set(given))
    drive(one.close())
    drive(other.close())


def test_of_two_that_would_reserve_the_same_versions_one_does(tmp_path: Path) -> None:
    """A commit that reserves versions fails, and another instance reserves the same: the first continues above the other's
    versions.
    """
    one, other = (Refusing(tmp_path / "state.db", durability="process") for _ in range(2))
    drive(one.open())
    drive(other.open())
    given = [drive(one.write([Put("k", n)])) for n in range(transactions.RESERVE_AFTER)]
    one.refused = "COMMIT"
    with pytest.raises(StoreError, match="disk I/O error"):
        drive(one.write([Put("k", -1)]))
    given += [drive(other.write([Put("k", n)])) for n in range(transactions.RESERVE_AFTER + 10)]
    one.refused = Refusing.refused
    given.append(drive(one.write([Put("k", 1)])))
    assert given == sorted(set(given))
    with closing(sqlite3.connect(tmp_path / "state.db")) as raw:
        assert raw.execute("SELECT version FROM counter").fetchone() == (given[-1],)
    drive(one.close())
    drive(other.close())


def test_of_a_shared_commit_conflicts_take_no_version(tmp_path: Path) -> None:
    """Of writes in one commit some conflict: only the others use a version."""
    backend = SQLite(tmp_path / "state.db")

    async def scenario() -> None:
        with another_writer(tmp_path / "state.db") as other:
            writes = [backend.write([Put(f"k{n}", n)], {"absent": n % 2}) for n in range(6)]
            writing = asyncio.gather(*writes, return_exceptions=True)
            await settle()
            other.execute("COMMIT")
            outcomes = await writing
        assert outcomes[::2] == [1, 2, 3]
        assert all(isinstance(outcome, ConflictError) for outcome in outcomes[1::2])
        assert await backend.version() == 3
        assert await backend.write([Put("next", 1)]) == 4

    run(backend, scenario)


@pytest.mark.parametrize("durability", MODES)
def test_a_turn_locks_other_processes_out(tmp_path: Path, durability: sqlite.Durability) -> None:
    """Until its write, its end, or a time limit; others wait meanwhile."""
    one, other = (SQLite(tmp_path / "state.db", durability=durability, timeout=60) for _ in range(2))
    drive(one.open())
    drive(other.open())
    order: list[str] = []

    def theirs() -> None:
        drive(other.write([Put("a", "theirs")]))
        order.append("theirs")

    async def ours(writes: bool) -> None:
        async with one.turn(("n",)):
            rival.start()
            entry = await one.read("a")
            if writes:
                await one.write([Put("a", "ours")], {"a": entry.version if entry else 0})
                rival.join()
                order.append("ours")
            assert rival.is_alive() is not writes

    for writes in (True, False):
        rival = threading.Thread(target=theirs)
        drive(ours(writes))
        rival.join()
        assert drive(other.read("a")).value == "theirs"  # type: ignore[union-attr]
    assert order == ["theirs", "ours", "theirs"]
    drive(one.close())
    drive(other.close())


def test_a_turn_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that takes too long gets a conflict, as without a turn; two nested turns end so, too."""
    monkeypatch.setattr(writer, "LONGEST_TURN", 0.01)
    one, other = (SQLite(tmp_path / "state.db", durability="process", timeout=60) for _ in range(2))
    drive(one.open())
    drive(other.open())

    async def scenario() -> None:
        async with one.turn(("n",)):
            drive(other.write([Put("a", "theirs")]))  # waits for the end of the turn
            with pytest.raises(ConflictError):
                await one.write([Put("a", "ours")], {"a": 0})
        async with one.turn(("n",)), one.turn(("n",)):
            await one.write([Put("a", "ours")])

    drive(scenario())
    assert drive(other.read("a")).value == "ours"  # type: ignore[union-attr]
    drive(one.close())
    drive(other.close())


def test_a_turn_that_waits_for_another_process_ends(tmp_path: Path) -> None:
    """By cancellation, by StoreBusyError after the timeout, and by a close: nothing is left of it."""
    backend = SQLite(tmp_path / "state.db", timeout=0.02)

    async def in_turn() -> None:
        async with backend.turn(("n",)):
            await backend.write([Put("a", 1)])

    async def scenario() -> None:
        with another_writer(tmp_path / "state.db"):
            with pytest.raises(StoreBusyError, match=r"state\.db.*0\.02 s"):
                await in_turn()
            backend._connections.timeout = 60
            cancelled = asyncio.ensure_future(in_turn())
            await settle()
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            assert cancelled.cancelled()
            waiting = asyncio.ensure_future(in_turn())
            await settle()
            closing = asyncio.ensure_future(backend.close())
            await settle()
        await closing
        with pytest.raises(StoreClosedError):
            await waiting
        with pytest.raises(StoreClosedError):
            await in_turn()
        await backend.open()
        await in_turn()
        assert await backend.read("a") == Entry(1, 1)

    run(backend, scenario)


def test_a_read_holds_no_old_state(tmp_path: Path) -> None:
    """After a read, its connection doesn't keep others from truncating the log."""
    backend = SQLite(tmp_path / "state.db", durability="process")
    drive(backend.open())
    drive(backend.write([Put("a", 1)]))
    assert drive(backend.read("a")) == Entry(1, 1)
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA busy_timeout = 0")
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    drive(backend.close())


# ---------------------------------------------------------------- cancellation and the end
class Gate:
    """Holds the writer thread inside a transaction, by the clock that the thread reads there."""

    def __init__(self, backend: SQLite) -> None:
        self._begun, self._go = threading.Event(), threading.Event()
        backend.clock = self._clock

    def _clock(self) -> float:
        if threading.current_thread().name.startswith("writer of "):
            self._begun.set()
            assert self._go.wait(30)
        return 1_700_000_000.0

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, 30)

    def open(self) -> None:
        self._go.set()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self._go.set()


@pytest.mark.parametrize("cancels", [1, 3])
def test_cancelled_in_the_queue_it_is_withdrawn(tmp_path: Path, cancels: int) -> None:
    """Behind a running write, and behind another process: a cancelled write is withdrawn at once."""
    backend = SQLite(tmp_path / "state.db")

    async def scenario() -> None:
        with another_writer(tmp_path / "state.db") as other:
            kept = asyncio.ensure_future(backend.write([Put("kept", 1)]))
            writing = asyncio.ensure_future(backend.write([Put("withdrawn", 1)]))
            await settle()
            for _ in range(cancels):
                writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            other.execute("COMMIT")
            await kept
        assert await keys_of(backend) == ["kept"]

    run(backend, scenario)


@pytest.mark.parametrize("cancels", [1, 3])
def test_cancelled_in_the_transaction_its_outcome_comes_first(tmp_path: Path, cancels: int) -> None:
    """Once it has begun, it is awaited through any number of cancellations: when the caller is notified, it is committed."""
    backend = SQLite(tmp_path / "state.db")
    with Gate(backend) as gate:

        async def scenario() -> None:
            writing = asyncio.ensure_future(backend.write([Put("landed", 1)]))
            await gate.reached()
            for _ in range(cancels):
                writing.cancel()
                await settle()
                assert not writing.done()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await writing
            assert await keys_of(backend) == ["landed"]

        run(backend, scenario)


def test_a_sync_write_given_up_in_the_queue_is_withdrawn(tmp_path: Path) -> None:
    """As a keyboard interrupt does to a blocked thread: its coroutine is closed, and the write is never done."""
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    with another_writer(tmp_path / "state.db"):
        writing = backend.write([Put("withdrawn", 1)])
        writing.send(None)
        writing.close()
    drive(backend.write([Put("later", 1)]))
    assert drive(keys_of(backend)) == ["later"]
    drive(backend.close())


def test_a_sync_write_interrupted_in_the_transaction_is_committed(tmp_path: Path) -> None:
    """A keyboard interrupt that comes while the writer thread commits is raised once the outcome is known."""
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    with Gate(backend) as gate:
        with another_writer(tmp_path / "state.db"):
            writing = backend.write([Put("landed", 1)])
            writing.send(None)
        asyncio.run(gate.reached())
        waiter = writing.throw(KeyboardInterrupt())
        gate.open()
        assert waiter.block()
        with pytest.raises(KeyboardInterrupt):
            writing.send(None)
    assert drive(keys_of(backend)) == ["landed"]
    drive(backend.close())


def test_an_interrupt_inside_a_transaction_rolls_it_back(tmp_path: Path) -> None:
    """A keyboard interrupt during a commit in place leaves no open transaction and no lock."""
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())

    def interrupted() -> float:
        raise KeyboardInterrupt

    backend.clock = interrupted
    with pytest.raises(KeyboardInterrupt):
        drive(backend.write([Put("a", 1)]))
    del backend.clock
    drive(backend.write([Put("b", 1)]))
    assert drive(keys_of(backend)) == ["b"]
    drive(backend.close())


def test_close_does_what_is_queued_first(tmp_path: Path) -> None:
    """Writes that were accepted before the close are done and acknowledged, whoever else is writing; later ones are refused."""
    backend = SQLite(tmp_path / "state.db")

    async def scenario() -> None:
        with another_writer(tmp_path / "state.db") as other:
            writing = [asyncio.ensure_future(backend.write([Put(f"k{n}", n)])) for n in range(5)]
            await settle()
            ending = asyncio.ensure_future(backend.close())
            await settle()
            with pytest.raises(StoreError):
                await backend.write([Put("late", 1)])
            assert not ending.done()
            other.execute("COMMIT")
            await asyncio.gather(*writing)
            await ending
        await backend.open()
        assert await keys_of(backend) == [f"k{n}" for n in range(5)]

    run(backend, scenario)


def test_a_cancelled_close_still_closes(tmp_path: Path) -> None:
    """The queue is written and the file closed before the cancellation is raised."""
    backend = SQLite(tmp_path / "state.db")
    with Gate(backend) as gate:

        async def scenario() -> None:
            writing = asyncio.ensure_future(backend.write([Put("a", 1)]))
            await gate.reached()
            ending = asyncio.ensure_future(backend.close())
            await settle()
            ending.cancel()
            await settle()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await ending
            await writing

        asyncio.run(opened_then(backend, scenario))
    assert [file.name for file in tmp_path.iterdir()] == ["state.db"]


# ---------------------------------------------------------------- what goes wrong
def test_one_write_that_fails_spoils_no_other(tmp_path: Path) -> None:
    """In a batch that shares a commit only the invalid write fails, with its own error."""
    backend = SQLite(tmp_path / "state.db")

    async def scenario() -> None:
        with another_writer(tmp_path / "state.db") as other:
            impossible = asyncio.ensure_future(backend.write([Put("half", 1), Put("huge", 1, version=2**70)]))
            others = [asyncio.ensure_future(backend.write([Put(f"k{n}", n)], {"half": 0})) for n in range(5)]
            await settle()
            other.execute("COMMIT")
            with pytest.raises(struct.error):
                await impossible
            await asyncio.gather(*others)
        assert await keys_of(backend) == [f"k{n}" for n in range(5)]

    run(backend, scenario)


@pytest.mark.parametrize("durability", MODES)
def test_a_full_disk_loses_nothing_and_writes_work_again_with_space(
    tmp_path: Path, durability: sqlite.Durability
) -> None:
    """All writes that don't fit fail with an error that says so, none by half; once there is space again, writes work."""

    class Small(Traced):
        prepare = "PRAGMA max_page_count = 40"

    backend = Small(tmp_path / "state.db", durability=durability)
    said: list[str] = []

    async def fill() -> int:
        for n in range(1000):
            try:
                await backend.write([Put(f"k{n:03}", "x" * 2000), Put(f"l{n:03}", "x" * 2000)])
            except StoreError as error:
                said.append(str(error))
                return n
        return 1000

    async def scenario() -> None:
        landed = await fill()
        assert 0 < landed < 100
        assert "state.db: the disk is full" in said[0]
        refused = await asyncio.gather(
            *(backend.write([Put(f"m{n}", "x" * 50_000)]) for n in range(3)), return_exceptions=True
        )
        assert all(isinstance(outcome, StoreError) for outcome in refused)
        assert await keys_of(backend) == [f"{letter}{n:03}" for letter in "kl" for n in range(landed)]
        assert await backend.version() == landed
        await backend.write([Delete(f"k{n:03}") for n in range(landed)])
        await backend.write([Put("m", "x" * 2000)])

    run(backend, scenario)


def test_a_damaged_file_is_an_error_not_a_miss(tmp_path: Path) -> None:
    """Reads and writes name the file and the way out; none says that the key is missing."""
    path = tmp_path / "state.db"
    backend = SQLite(path)
    drive(backend.open())
    drive(backend.write([Put(f"k{n:03}", "x" * 500) for n in range(100)]))
    drive(backend.close())
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    drive(backend.open())
    for use in (backend.read("k050"), backend.write([Put("k050", 1)]), keys_of(backend), backend.version()):
        with pytest.raises(StoreError, match=r"state\.db: the file is damaged.*recover"):
            drive(use)
    drive(backend.close())


def test_a_damaged_schema_that_is_no_text_is_a_damaged_file(tmp_path: Path) -> None:
    """Python can't decode SQLite's message, which quotes it."""
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET name = CAST(x'ff' AS TEXT), sql = 'CREATE nothing'")
    connection.close()
    with pytest.raises(StoreError, match=r"state\.db: the file is damaged.*UnicodeDecodeError"):
        drive(SQLite(path).open())


class Unregistered:
    """A type that the codec doesn't know."""


@pytest.mark.parametrize("durability", MODES)
def test_a_value_that_cant_be_encoded_is_refused_at_once(tmp_path: Path, durability: sqlite.Durability) -> None:
    """The error names the key, and nothing of the write was stored."""
    backend = SQLite(tmp_path / "state.db", durability=durability)

    async def scenario() -> None:
        with pytest.raises(UnregisteredTypeError, match=r"'bad'.*Unregistered"):
            await backend.write([Put("good", 1), Put("bad", [Unregistered()])])
        assert await keys_of(backend) == []

    run(backend, scenario)


def test_a_record_that_cant_be_decoded_names_its_key(tmp_path: Path) -> None:
    """A damaged value is an error with file and key; the other values are readable, and it can be overwritten."""
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    drive(backend.write([Put("bad", "x" * 50), Put("good", 1)]))
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as connection:
        connection.execute("UPDATE entries SET value = ? WHERE key = 'bad'", (b"\xc1 nonsense",))
    for use in (backend.read("bad"), backend.read_many(["good", "bad"])):
        with pytest.raises(CodecError, match=r"state\.db.*'bad'"):
            drive(use)
    assert drive(backend.read("good")) is not None
    drive(backend.write([Put("bad", "mended")]))
    assert drive(backend.read("bad")) is not None
    drive(backend.close())


@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_record_that_cant_be_decoded_can_be_deleted(tmp_path: Path, in_transaction: bool) -> None:
    """As its error advises: by `delete`, `delete_many` and `delete_prefix`; and it counts as having existed."""
    with SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        store.set_many({"bad": 1, "good": 2})
        with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as connection:
            connection.execute("UPDATE entries SET value = ? WHERE key = 'bad'", (b"\xc1 nonsense",))
        with pytest.raises(CorruptRecordError):
            store.get("bad")
        if in_transaction:
            with store.transaction() as tx:
                assert tx.delete("bad")
        else:
            assert store.delete("bad")
        assert (store.delete("bad"), dict(store.items())) == (False, {"good": 2})


LIMITED = """
import resource, sys
from pocket_plug.store.backend import Put
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.errors import StoreError
from pocket_plug.primitives.waiting import drive

backend = SQLite(sys.argv[1], durability=sys.argv[2])
drive(backend.open())
drive(backend.write([Put("before", 1)]))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
try:
    drive(backend.write([Put("big", "x" * 300_000), Put("before", 2)]))
except StoreError as error:
    print(error)
assert drive(backend.read("before")).value == 1 and drive(backend.read("big")) is None
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
drive(backend.write([Put("after", "x" * 300_000)]))
drive(backend.close())
drive(backend.open())
assert drive(backend.read("after")).value == "x" * 300_000
print("works again")
"""


def test_a_disk_without_room_for_the_index_of_the_log_is_named_as_a_cause(tmp_path: Path) -> None:
    """SQLite calls that an I/O error: a worker that began on a full disk was sent to look for a broken one."""
    code = """
import resource, sys
from pocket_plug import SyncStore
with SyncStore(sys.argv[1]) as store:
    store.set("a", 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, -1))
SyncStore(sys.argv[1]).open()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path}/state.db"], capture_output=True, text=True, check=False
    )
    assert "check it, its free space" in done.stderr.splitlines()[-1]


READ_ONLY = """
import os, sys
from pocket_plug.store.backend import Put
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.errors import StoreError
from pocket_plug.primitives.waiting import drive

path = sys.argv[1]
backend = SQLite(path, durability=sys.argv[2])
drive(backend.open())
drive(backend.write([Put("a", 1)]))
drive(backend.close())
folder = os.path.dirname(path)
os.chmod(path, 0o444)
os.chmod(folder, 0o555)
if os.getuid() == 0:
    os.seteuid(65534)  # permissions don't bind root
try:
    drive(backend.open())
    drive(backend.write([Put("a", 2)]))
except StoreError as error:
    print(error)
if os.getuid() == 0:
    os.seteuid(0)
os.chmod(folder, 0o755)
os.chmod(path, 0o644)
drive(backend.close())
drive(backend.open())
assert drive(backend.read("a")).value == 1
drive(backend.write([Put("a", 2)]))
drive(backend.close())
print("works again")
"""


@pytest.mark.parametrize("durability", MODES)
@pytest.mark.parametrize(
    ("program", "said"),
    [(LIMITED, "the disk reports an error"), (READ_ONLY, "check the permissions of it and its folder")],
    ids=["file size limit", "read only"],
)
def test_a_failure_of_the_system_is_an_error_and_later_writes_work(program: str, said: str, durability: str) -> None:
    """A write error and a read-only file: the error names the way out, and nothing is written by half;
    later writes work again.
    """
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lets nobody else in
        path = Path(folder) / "state.db"
        command = [sys.executable, "-c", program, str(path), durability]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    error, works = done.stdout.splitlines()
    assert error.startswith(f"{path}: ")
    assert said in error
    assert works == "works again"


# ---------------------------------------------------------------- housekeeping
def test_expired_entries_are_removed_a_few_at_a_time(tmp_path: Path) -> None:
    """Writes remove them faster than new ones can be added, so a store of short-lived entries doesn't grow."""
    backend = SQLite(tmp_path / "state.db", durability="process")
    now = 1_700_000_000.0
    backend.clock = lambda: now
    drive(backend.open())
    for n in range(600):
        now += 1
        drive(backend.write([Put(f"mortal:{n}", n, now + 50)]))
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM entries").fetchone()
    assert 50 <= rows <= 50 + 2 * transactions.REAP_EVERY
    assert len(drive(keys_of(backend))) == 50
    drive(backend.close())


def test_many_threads_read_what_was_committed(tmp_path: Path) -> None:
    """A thread that knows of a write reads its value, or a newer one, whichever connection it uses."""
    backend = SQLite(tmp_path / "state.db", durability="process")
    drive(backend.open())
    told = [drive(backend.write([Put("n", 0)]))]
    done = threading.Event()
    stale: list[tuple[int, int]] = []

    def read() -> None:
        while not done.is_set():
            at_least = told[0]
            entry = drive(backend.read("n"))
            if entry is None or entry.version < at_least:
                stale.append((at_least, entry.version if entry else 0))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(300):
        told[0] = drive(backend.write([Put("n", n)]))
    done.set()
    for thread in threads:
        thread.join()
    drive(backend.close())
    assert stale == []


# ---------------------------------------------------------------- nothing left open, no other files written
def open_files(folder: Path) -> list[str]:
    """The files of this process that are open there."""
    found: list[str] = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of the listing itself
            if (path := os.readlink(f"/proc/self/fd/{number}")).startswith(str(folder)):
                found.append(path)
    return found


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 100_000)


def make_foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")


FAULTS: dict[str, Callable[[Path], object]] = {
    "damaged": damage,
    "truncated": lambda path: os.truncate(path, 8192),
    "no file of SQLite": lambda path: path.write_bytes(b"x" * 5000),
    "deleted": lambda path: path.unlink(),
    "another program's": make_foreign,
}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed by Linux only")
@pytest.mark.parametrize("when", ["before open", "while open"])
@pytest.mark.parametrize("durability", MODES)
@pytest.mark.parametrize("fault", FAULTS)
def test_after_an_error_close_leaves_nothing_open(
    tmp_path: Path, fault: str, durability: sqlite.Durability, when: str
) -> None:
    """Whatever has failed, also while the errors are referenced and no garbage is collected."""
    path = tmp_path / "state.db"
    backend = SQLite(path, durability=durability)
    drive(backend.open())
    drive(backend.write([Put(f"k{n:03}", "x" * 500) for n in range(1000)]))
    drive(backend.close())
    kept: list[Exception] = []
    gc.disable()
    try:
        if when == "while open":
            drive(backend.open())
            drive(backend.read("k001"))
        if fault == "another program's":
            path.unlink()
        FAULTS[fault](path)
        uses: list[Callable[[], Any]] = [
            lambda: backend.open(),
            lambda: backend.write([Put("k050", 1)]),
            lambda: backend.write([Put("a", 1)], {"k050": 1}),
            lambda: backend.read("k050"),
            lambda: backend.read_many(["k100", "k200"]),
            lambda: keys_of(backend),
            lambda: backend.write([], {"k050": 1}),
        ]
        for use in uses:
            try:
                drive(use())
            except StoreError as error:
                kept.append(error)
        drive(backend.close())
        assert kept or (fault, when) == ("deleted", "before open")  # then it is created again
        assert open_files(tmp_path) == []
        assert backend._connections.rest()  # it doesn't block a fork either
    finally:
        gc.enable()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed by Linux only")
def test_what_a_thread_still_has_open_is_closed_before_a_fork(tmp_path: Path) -> None:
    """A backend without references is freed at once. Its writer thread continues, and no child inherits its connections."""
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    asyncio.run(_written(backend, 1))
    gone, kept = weakref.ref(backend), weakref.ref(backend._writer)
    del backend
    assert gone() is None
    assert open_files(tmp_path) != []
    child = os.fork()
    if child == 0:
        os._exit(len(open_files(tmp_path)))
    assert os.waitpid(child, 0)[1] == 0
    left = kept()
    assert left is not None
    drive(left.close())


def test_a_fork_waits_for_a_connection_that_is_in_use(tmp_path: Path) -> None:
    """Here that of a backup: a child that inherited it would give up its locks."""
    backend, rested = SQLite(tmp_path / "state.db"), list[bool]()
    drive(backend.open())
    drive(backend.write([Put("a", 1)]))
    backend.backup(tmp_path / "copy.db", lambda done, total: rested.append(backend._connections.rest()))
    assert set(rested) == {False}
    assert backend._connections.rest()
    drive(backend.close())


def replace(path: Path) -> None:
    other = path.with_name("other.db")
    drive(_made(other))
    other.replace(path)


async def _made(path: Path) -> None:
    backend = SQLite(path)
    await backend.open()
    await backend.write([Put("theirs", 1)])
    await backend.close()


def unlink_all(path: Path) -> None:
    for file in path.parent.glob("state.db*"):
        file.unlink()


GONE: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "deleted with its log": unlink_all,
    "moved": lambda path: path.rename(path.with_name("moved.db")),
    "replaced": replace,
    "its folder moved": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
}


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("durability", MODES)
@pytest.mark.parametrize("loop", [False, True], ids=["sync", "async"])
def test_a_deleted_file_acknowledges_no_write(
    tmp_path: Path, gone: str, durability: sqlite.Durability, loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads and writes name the file and the way out, until it is closed; opened again, the backend works
    with the present file.
    """
    monkeypatch.setattr(opened, "LOOK_EVERY", 0)
    folder = tmp_path / "folder"
    path = folder / "state.db"
    backend = SQLite(path, durability=durability)

    async def refused() -> None:
        for _ in range(2):
            for use in (
                backend.write([Put("late", 1)]),
                backend.write([Put("late", 1)], {"late": 0}),
                backend.write([], {"a": 1}),
                backend.read("a"),
                backend.read_many(["a", "b"]),
                keys_of(backend),
                backend.version(),
            ):
                with pytest.raises(StoreClosedError, match=r"state\.db was deleted, moved or replaced.*open it again"):
                    await use

    async def scenario() -> None:
        await backend.open()
        await backend.write([Put("a", 1)])
        await backend.read("a")
        GONE[gone](path)
        await refused()
        await backend.close()
        await backend.open()
        assert await keys_of(backend) == (["theirs"] if gone == "replaced" else [])
        await backend.write([Put("b", 1)])
        await backend.close()

    asyncio.run(scenario()) if loop else drive(scenario())


@pytest.mark.parametrize("log", ["-wal", "-shm"])
@pytest.mark.parametrize("durability", MODES)
@pytest.mark.parametrize(
    "moment", ["after a write", "before the first write", "first use of a new file", "read after a fork"]
)
def test_a_deleted_log_acknowledges_no_write(
    tmp_path: Path, log: str, durability: sqlite.Durability, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes that are only in the log would be lost with the last connection; without its index another process would neither see
    them nor be seen, and each would overwrite what the other has written.
    """
    monkeypatch.setattr(opened, "LOOK_EVERY", 0)
    backend = SQLite(tmp_path / "state.db", durability=durability)
    drive(backend.open())
    if moment != "first use of a new file":
        drive(backend.write([Put("a", 1)]))
    if moment == "before the first write":
        drive(backend.close())
        drive(backend.open())
    if moment == "read after a fork":  # with the last connection, SQLite has removed the log
        fork()
        assert not (tmp_path / f"state.db{log}").exists()
        assert drive(backend.read("a")) is not None
    (tmp_path / f"state.db{log}").unlink()
    with pytest.raises(StoreError, match=rf"state\.db{log} was deleted"):
        drive(backend.write([Put("late", 1)]))
    drive(backend.close())


@pytest.mark.parametrize("durability", MODES)
def test_a_log_that_sqlite_has_removed_is_no_deleted_log(
    tmp_path: Path, durability: sqlite.Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a fork, a reader may be the only connection. An error closes it, and SQLite removes the log; the next write creates
    another one.
    """
    monkeypatch.setattr(opened, "LOOK_EVERY", 0)
    backend = SQLite(tmp_path / "state.db", durability=durability)
    drive(backend.open())
    drive(backend.write([Put("a", 1)]))
    fork()
    drive(backend.read("a"))
    for log in ("-wal", "-shm"):  # else the other one may get the same number
        os.link(tmp_path / f"state.db{log}", tmp_path / f"taken{log}")
    with pytest.raises(UnicodeEncodeError):
        drive(backend.read("\ud800"))
    assert not (tmp_path / "state.db-wal").exists()
    drive(backend.write([Put("a", 2)]))
    entry = drive(backend.read("a"))
    assert entry is not None
    assert entry.value == 2
    drive(backend.close())


def test_a_log_that_sqlite_removes_while_another_thread_connects_is_no_deleted_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow disk, a close takes long: of the only reader since a fork, for example, if an error closes it."""
    monkeypatch.setattr(opened, "LOOK_EVERY", 0)
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    drive(backend.write([Put("a", 1)]))
    fork()
    drive(backend.read("a"))

    class Function:
        """What SQLite drops at the end of a close, when the log is removed."""

        def __call__(self) -> None: ...

        def __del__(self) -> None:
            other = threading.Thread(target=lambda: drive(backend.read("a")))
            other.start()
            other.join()

    for log in ("-wal", "-shm"):  # else the other one may get the same number
        os.link(tmp_path / f"state.db{log}", tmp_path / f"taken{log}")
    backend._connections._readers[0].connection.create_function("function", 0, Function())
    with pytest.raises(UnicodeEncodeError):
        drive(backend.read("\ud800"))
    drive(backend.write([Put("a", 2)]))
    drive(backend.close())


@pytest.mark.parametrize("gone", [*GONE, "log deleted"])
def test_an_old_time_stamp_of_the_folder_shows_any_change(
    tmp_path: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write then checks the folder only, until a file is created or removed there: another program's, or its own."""
    monkeypatch.setattr(files, "FINE", -1e9)
    looks: list[str] = []
    monkeypatch.setattr(opened, "is_at", lambda path, file: looks.append(path) or files.is_at(path, file))
    folder = tmp_path / "folder"
    folder.mkdir()
    backend = SQLite(folder / "state.db")
    drive(backend.open())
    drive(backend.write([Put("a", 1)]))
    drive(backend.write([Put("a", 2)]))
    looks.clear()
    drive(backend.write([Put("a", 3)]))
    assert not looks
    (folder / "other").touch()
    drive(backend.write([Put("a", 4)]))
    assert looks == [f"{folder}/state.db", f"{folder}/state.db-wal", f"{folder}/state.db-shm"]
    (GONE | {"log deleted": lambda path: path.with_name("state.db-wal").unlink()})[gone](folder / "state.db")
    with pytest.raises(StoreError, match=r"state\.db(-wal)? was deleted"):
        drive(backend.write([Put("late", 1)]))
    drive(backend.close())


def test_a_young_time_stamp_of_the_folder_is_not_trusted(tmp_path: Path) -> None:
    """The second of two changes in a row may leave the same time stamps: until they are old, the files themselves are checked."""
    (tmp_path / "file").touch()
    folder = files.Folder(str(tmp_path))
    assert not folder.is_as_known()
    folder.know()
    assert not folder.is_as_known()


@pytest.mark.parametrize(("stamp", "settles"), [(1_700_000_000_000_000_000, 3.0), (1_700_000_000_123_456_789, 0.1)])
def test_a_coarse_time_stamp_is_trusted_later(stamp: int, settles: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """If time stamps are whole seconds, a second change may leave the same for seconds, otherwise for one tick of a clock."""
    status = SimpleNamespace(st_dev=1, st_ino=2, st_mtime_ns=stamp, st_ctime_ns=stamp)
    folder = files.Folder("somewhere")
    for age, is_believed in ((0.99 * settles, False), (1.01 * settles, True)):
        monkeypatch.setattr(files, "os", SimpleNamespace(stat=lambda path: status))
        monkeypatch.setattr(files, "time", SimpleNamespace(time_ns=lambda now=stamp + int(age * 1e9): now))
        folder.is_as_known()
        folder.know()
        assert folder.is_as_known() is is_believed


def test_reads_look_for_the_file_now_and_then(tmp_path: Path) -> None:
    """Not at each read, which would take a third longer; but at each write, and at a read soon after."""
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())
    drive(backend.write([Put("a", 1)]))
    (tmp_path / "state.db").unlink()

    def read_until_it_is_noticed() -> None:
        while True:
            drive(backend.read("a"))

    with pytest.raises(StoreError, match="was deleted"):
        read_until_it_is_noticed()
    drive(backend.close())


def test_a_link_to_the_file_leads_to_it(tmp_path: Path) -> None:
    """A store opened by a symbolic link works, and notices when the link leads to another file."""
    (tmp_path / "link.db").symlink_to(tmp_path / "state.db")
    drive(_made(tmp_path / "state.db"))
    drive(_made(tmp_path / "other.db"))
    backend = SQLite(tmp_path / "link.db")
    drive(backend.open())
    drive(backend.write([Put("a", 1)]))
    (tmp_path / "link.db").unlink()
    (tmp_path / "link.db").symlink_to(tmp_path / "other.db")
    with pytest.raises(StoreError, match=r"link\.db was deleted, moved or replaced"):
        drive(backend.write([Put("b", 1)]))
    drive(backend.close())


def test_an_interrupted_wake_up_leaves_the_writer_awake(tmp_path: Path) -> None:
    """An interrupted `Condition.notify` keeps a waiter that is gone; the next writer wakes the writer thread all the same."""
    backend = SQLite(tmp_path / "state.db")
    drive(backend.open())

    def write(value: int) -> None:
        """Write by the writer thread, as a task does."""
        asyncio.run(_written(backend, value))

    write(1)
    condition: Any = backend._writer._queued
    waiters = condition._waiters
    for _ in range(3):
        while not waiters:  # until the writer waits
            threading.Event().wait(0.001)
        with condition:
            gone = waiters[0]
            gone.release()  # and now the interrupt comes
        while len(waiters) < 2:  # it has found nothing to do, and waits again
            threading.Event().wait(0.001)
        thread = threading.Thread(target=write, args=(2,), daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        while gone in waiters:
            waiters.remove(gone)
    drive(backend.close())


async def _written(backend: SQLite, value: int) -> None:
    await backend.write([Put("k", value)])


# ---------------------------------------------------------------- probing
def test_a_probe_makes_no_file(tmp_path: Path) -> None:
    """It says that a missing file is missing, and that an existing one is ours; no log appears beside it."""
    path = tmp_path / "new" / "state.db"
    found = asyncio.run(SQLite(path).probe(1.0))
    assert (found.is_new, found.durability) == (True, "power")
    assert not path.parent.exists()
    with SyncStore(SQLite(path)) as store:
        store.set("a", 1)
    before = sorted(file.name for file in path.parent.iterdir())
    found = asyncio.run(SQLite(path, durability="process").probe(1.0))
    assert (found.is_new, found.durability) == (False, "process")
    assert sorted(file.name for file in path.parent.iterdir()) == before == ["state.db"]


def test_a_probe_of_a_file_in_use_leaves_its_locks(tmp_path: Path) -> None:
    """A store that is open in this process still works, and others still can't lock what it has locked."""
    path = tmp_path / "state.db"
    with SyncStore(SQLite(path)) as store:
        store.set("a", 1)
        with store.transaction() as transaction:
            transaction.set("a", 2)
            assert not asyncio.run(SQLite(path).probe(1.0)).is_new
        assert store.get("a") == 2


def test_a_probe_refuses_what_opening_would(tmp_path: Path) -> None:
    """Another program's file, and a file that isn't SQLite's."""
    other, text = tmp_path / "other.db", tmp_path / "text.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    text.write_text("text" * 1000)
    for path, why in ((other, "the SQLite file of another program"), (text, "this is not an SQLite file")):
        with pytest.raises(StoreError, match=why):
            asyncio.run(SQLite(path).probe(1.0))


def test_a_check_of_a_file_in_use_finds_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another instance writes before each read of the check, so the reads show different moments."""

    async def main() -> None:
        backend, other = SQLite(tmp_path / "state.db"), SQLite(tmp_path / "state.db")
        await backend.open()
        await other.open()
        rows, written = backend._rows, itertools.count()

        def after_a_write(*look: Any) -> Any:
            drive(other.write([Put(f"k{next(written)}", 1)]))
            return rows(*look)

        monkeypatch.setattr(backend, "_rows", after_a_write)
        assert await backend.check() == []
        assert next(written) > 2
        await backend.close()
        await other.close()

    asyncio.run(main())


def test_a_use_in_the_middle_of_a_write_is_done_or_refused(tmp_path: Path) -> None:
    """A signal's handler, a `__del__` or the end of a dropped coroutine may use the store in a thread that is just writing: it
    must not wait for itself, nor take part in that write.
    """
    refused: list[str] = []

    def use() -> None:
        nonlocal total
        assert store.get("a") in {"before", "outer"}
        try:
            store.update("n", lambda n: n + 100, default=0)
            total += 100
        except StoreError as error:
            refused.append(str(error))

    with SyncStore(SQLite(tmp_path / "state.db", durability="process")) as store:
        total = 0
        for change in ("set", "update"):
            for place in itertools.count(1):
                store.set("a", "before")
                with Between(place, use) as between:
                    if change == "set":
                        store.set("a", "outer")
                    else:
                        store.update("n", lambda n: n + 1, default=0)
                        total += 1
                assert store.get("n", 0) == total, between.where
                if not between.where:
                    break
        assert total > 100
    assert refused
    assert all("in the middle of an operation of" in each for each in refused)
