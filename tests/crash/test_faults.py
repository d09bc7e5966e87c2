"""Failures below a run: it fails with the cause, leaves nothing half done, and continues once the cause is gone."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

import pocket_plug as pp
from pocket_plug.backends.sqlite import Durability, SQLite, connections, schema

pytestmark = pytest.mark.crash
MODES: list[Durability] = ["power", "process"]
VISITS = 30


Faults = dict[int, Callable[[], object]]
"""What happens before a visit's work, by its number."""


def counting(store: pp.Store, faults: Faults | None = None) -> pp.Graph[None, int]:
    """A loop that continues from the store's state: each visit writes a number's page and increases two sums."""

    class Count(pp.Node[None, int, int]):
        again = pp.Action[None]()

        def prep(self, store: pp.SyncReader, _: None) -> int:
            return store.get("count", 0) + 1

        def exec(self, number: int) -> int:
            if faults and number in faults:
                faults[number]()
            return number

        def post(self, store: pp.SyncWriter, _: None, prepared: int, number: int) -> int | pp.Next[None]:
            store.set(f"page:{number:02}", "x" * 3000)
            store.update("count", lambda count: count + 1, default=0)
            store.update("sum", lambda total: total + number, default=0)
            return self.again(None) if number < VISITS else number

    node = Count()
    return pp.Graph(node, node.again >> node, store=store)


def state(store: pp.SyncStore) -> int:
    """How many visits were made, after checking that each of them is complete and no other exists."""
    count = store.get("count", 0)
    assert list(store.keys("page:")) == [f"page:{n:02}" for n in range(1, count + 1)]
    assert store.get("sum", 0) == sum(range(count + 1))
    return count


def has_failed_then_goes_on(store: pp.Store, graph: pp.Graph[None, int], said: str, mend: Callable[[], None]) -> int:
    """Run into the fault, check the state, repair it, run to the end; returns the number of visits before the fault."""
    with store.sync as sync:
        with pytest.raises(pp.StoreError, match=said):
            graph.run_sync(None)
        reached = state(sync)
        with pytest.raises(pp.StoreError, match=said):  # trying again doesn't get any further
            graph.run_sync(None)
        assert state(sync) == reached
        mend()
        assert graph.run_sync(None) == VISITS
        assert state(sync) == VISITS
    return reached


@pytest.mark.parametrize("durability", MODES)
def test_a_run_that_fills_the_disk(tmp_path: Path, durability: Durability, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node that doesn't fit fails with 'the disk is full'; once there is space again, the run does the rest."""

    prepared: list[sqlite3.Connection] = []

    def prepare(connection: sqlite3.Connection, path: str, power: bool) -> None:
        schema.prepare(connection, path, power)
        connection.execute("PRAGMA max_page_count = 20")
        prepared.append(connection)

    monkeypatch.setattr(connections, "prepare", prepare)
    store = pp.Store(SQLite(tmp_path / "state.db", durability=durability))

    def mend() -> None:
        prepared[-1].execute("PRAGMA max_page_count = 1000000")

    reached = has_failed_then_goes_on(store, counting(store), r"state\.db: the disk is full", mend)
    assert 5 < reached < VISITS


@pytest.mark.parametrize("durability", MODES)
def test_a_run_whose_file_is_locked_for_too_long(tmp_path: Path, durability: Durability) -> None:
    """Another program that never releases the file: StoreBusyError within the timeout; later the run does the rest."""
    path = tmp_path / "state.db"
    store = pp.Store(SQLite(path, durability=durability, timeout=0.05))
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        faults: Faults = {10: lambda: other.in_transaction or other.execute("BEGIN IMMEDIATE")}

        def mend() -> None:
            faults.clear()
            other.execute("COMMIT")

        said = "another connection has been writing for longer"
        assert has_failed_then_goes_on(store, counting(store, faults), said, mend) == 9


class SoFarError(Exception):
    """Ends a run in the middle."""


def stop() -> None:
    raise SoFarError


def run_up_to(path: Path, number: int) -> None:
    """Make a file by a run that ends before this visit."""
    store = pp.Store(SQLite(path))
    with store.sync, pytest.raises(SoFarError):
        counting(store, {number: stop}).run_sync(None)


CUT_OFF = r"state\.db: (the file is damaged|the disk reports an error)"


@pytest.mark.parametrize("visit", [None, 20, 22])
def test_a_run_whose_file_is_truncated(tmp_path: Path, visit: int | None) -> None:
    """Before a run or in the middle: an error that names the file, never a miss; with a copy of the file the run continues."""
    path = tmp_path / "state.db"
    run_up_to(path, 20)
    copy = shutil.copy(path, tmp_path / "copy.db")
    cut_off = partial(os.truncate, path, 8192)
    store = pp.Store(SQLite(path))
    if visit is None:
        cut_off()
        with pytest.raises(pp.StoreError, match=CUT_OFF):
            counting(store).run_sync(None)
    else:
        with pytest.raises(pp.StoreError, match=CUT_OFF):
            counting(store, {visit: cut_off}).run_sync(None)
        with pytest.raises(pp.StoreError, match=CUT_OFF):
            state(store.sync)
        store.sync.close()
    for file in tmp_path.glob("state.db*"):
        file.unlink()
    shutil.copy(copy, path)
    store = pp.Store(SQLite(path))
    assert counting(store).run_sync(None) == VISITS
    assert state(store.sync) == VISITS
    store.sync.close()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "PRAGMA user_version = 2",
            r"state\.db has schema 2, but this pocket_plug knows only schema 1; upgrade pocket_plug",
        ),
        ("PRAGMA application_id = 7", r"state\.db is the SQLite file of another program"),
        (None, r"state\.db: this is not an SQLite file"),
    ],
)
def test_a_run_over_a_file_that_is_not_ours(tmp_path: Path, statement: str | None, said: str) -> None:
    """No node runs, the file is unchanged byte for byte, and once our file is back the run continues."""
    path = tmp_path / "state.db"
    run_up_to(path, 20)
    ours = path.read_bytes()
    if statement is None:
        path.write_bytes(b"Dear diary, " * 1000)
    else:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(statement)
    theirs = path.read_bytes()
    visited: list[int] = []
    store = pp.Store(SQLite(path))
    graph = counting(store, {number: partial(visited.append, number) for number in range(VISITS + 1)})
    with pytest.raises(pp.StoreError, match=said):
        graph.run_sync(None)
    assert visited == []
    assert path.read_bytes() == theirs
    path.write_bytes(ours)
    assert graph.run_sync(None) == VISITS
    assert visited == list(range(20, VISITS + 1))
    assert state(store.sync) == VISITS
    store.sync.close()


# ---------------------------------------------------------------- limits that need a process of their own
DENIED = """
import os, resource, sys
sys.path.insert(0, sys.argv[1])
import pocket_plug as pp
from test_faults import VISITS, counting, run_up_to, state

path, durability, denied = sys.argv[2:]
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
files = [os.path.dirname(path), path]

def deny_space():
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{path}-wal").st_size + 1000, hard))

def deny_writing():
    for file in files:
        os.chmod(file, 0o555)
    if os.getuid() == 0:
        os.seteuid(65534)  # permissions don't bind root

def allow():
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if os.getuid() == 0:
        os.seteuid(0)
    for file in files:
        os.chmod(file, 0o755)

def failed(graph):
    try:
        graph.run_sync(None)
    except pp.StoreError as error:
        print(error)

store = pp.Store(f"sqlite:///{path}?durability={durability}")
if denied == "space":
    failed(counting(store, {10: deny_space}))
    assert state(store.sync) == 9
    failed(counting(store))
    assert state(store.sync) == 9
else:
    run_up_to(path, 10)
    deny_writing()
    failed(counting(store))
    failed(counting(store))
allow()
assert counting(store).run_sync(None) == VISITS
assert state(store.sync) == VISITS
store.sync.close()
print("goes on")
"""


@pytest.mark.parametrize("durability", MODES)
@pytest.mark.parametrize(
    ("denied", "said"),
    [("space", "the disk reports an error"), ("writing", "check the permissions of it and its folder")],
)
def test_a_run_that_the_system_denies_its_file(denied: str, said: str, durability: str) -> None:
    """No space in the middle of a run, and a file that can't be written: an error at each attempt, until the cause is gone."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own lets nobody else in
        path = Path(folder) / "state.db"
        command = [sys.executable, "-c", DENIED, str(Path(__file__).parent), str(path), durability, denied]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    first, second, works = done.stdout.splitlines()
    for error in (first, second):
        assert error.startswith(f"{path}: ")
        assert said in error
    assert works == "goes on"


# ---------------------------------------------------------------- many processes
SHARING = """
import random, sys
import pocket_plug as pp

path, number = sys.argv[1], int(sys.argv[2])
chance = random.Random(number)
durability = ("power", "process")[number % 2]
lost = 0

def transfer(source, target, amount, before_commit=lambda: None):
    global lost
    while True:
        try:
            with store.transaction() as tx:
                if tx.require(f"account:{source}") >= amount:
                    tx.update(f"account:{source}", lambda money: money - amount)
                    tx.update(f"account:{target}", lambda money: money + amount)
                before_commit()
            return
        except pp.ConflictError:
            lost += 1
            before_commit = lambda: None

def meet():
    print("ready", flush=True)
    sys.stdin.readline()

with pp.SyncStore(f"sqlite:///{path}?durability={durability}&timeout=30") as store:
    transfer(0, 1 + number % 4, 1, meet)  # all of them have read the same account when the first one commits
    for turn in range(25):
        store.update(f"counter:{turn % 3}", lambda n: n + 1, default=0)
        transfer(*chance.sample(range(5), 2), chance.randrange(1, 20))
print(lost)
"""


def test_processes_that_count_and_transfer_are_exact(tmp_path: Path) -> None:
    """Eight processes on one file: no update is lost, no money appears or disappears, no process fails
    because the file was busy.
    """
    path = tmp_path / "state.db"
    with pp.SyncStore(f"sqlite:///{path}") as store:
        store.set_many({f"account:{n}": 100 for n in range(5)})
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, str(path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0] * 8, said
    with pp.SyncStore(f"sqlite:///{path}") as store:
        counters = [store.get(f"counter:{n}") for n in range(3)]
        accounts = [store.get(f"account:{n}") for n in range(5)]
    assert counters == [8 * 9, 8 * 8, 8 * 8]
    assert sum(accounts) == 500
    assert min(accounts) >= 0
    assert sum(int(out) for out, _ in said) >= 7, "of the first transactions only one can have been in time"
