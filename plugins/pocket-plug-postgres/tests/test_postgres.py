"""The PostgreSQL backend's own guarantees: URLs, data sets, how it reads and writes, and that stores need nothing but its URL."""

from __future__ import annotations

import asyncio
import contextvars
import random
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from pocket_plug_postgres import PostgreSQL, schema, turns, watching
from pocket_plug_postgres.backend import _bounds, _shown
from pocket_plug_postgres.failures import explained
from pocket_plug_postgres.link import ConnectionLostError
from psycopg.pq import DiagnosticField

from pocket_plug import ConfigError, Delete, Graph, Node, Put, Store, StoreWriter, SyncStore, WriteSizeError
from pocket_plug.cli import main
from pocket_plug.errors import CorruptRecordError, StoreError
from pocket_plug.layers.persistence import Persistence
from pocket_plug.store.backend import Backend, Watcher
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from pocket_plug.store.resolving import resolve_backend
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.proxy import Proxy
from pocket_plug.testing.scenarios import HANGS, keys_of
from pocket_plug.testing.servers import Server
from pocket_plug.testing.watch_contract import Noted

Make = Callable[[], Backend]


def run(backend: Backend, scenario: Callable[[Any], Awaitable[None]]) -> None:
    """The scenario, with the backend open."""

    async def main() -> None:
        await backend.open()
        try:
            await asyncio.wait_for(scenario(backend), HANGS)
        finally:
            await backend.close()

    asyncio.run(main())


def rows(server: Server, statement: str) -> list[tuple[Any, ...]]:
    """The rows that the administrator sees; none if the statement returns no rows."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type] # no literal
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize(
    ("severity", "kind"), [(b"ERROR", StoreError), (b"FATAL", StoreError), (b"PANIC", ConnectionLostError)]
)
def test_a_server_that_crashes_of_a_full_disk_is_asked_again(severity: bytes, kind: type[Exception]) -> None:
    """A full disk is an error: nothing was written. A panic happens while the log is written, so the commit may exist after the
    recovery.
    """
    fields = {
        DiagnosticField.SEVERITY_NONLOCALIZED: severity,
        DiagnosticField.MESSAGE_PRIMARY: b"could not write to file",
    }
    error = psycopg.errors.DiskFull("could not write to file", info=fields, encoding="utf-8")  # type: ignore[arg-type]
    assert type(explained("postgresql at here", error)) is kind


def test_names_that_the_server_quotes_explain_nothing() -> None:
    """A host that can't be found now may be found later, also if its name is one of the words that mean a refusal."""
    said = "failed to resolve host 'db.invalid': [Errno -3] Temporary failure in name resolution"
    assert isinstance(explained("postgresql at db.invalid", psycopg.OperationalError(said)), ConnectionLostError)
    said = 'connection to server at "certificate.example", port 5432 failed: Connection refused'
    assert isinstance(explained("postgresql at it", psycopg.OperationalError(said)), ConnectionLostError)
    said = 'connection is bad: invalid port number: "99999"'
    assert isinstance(explained("postgresql at it", psycopg.OperationalError(said)), StoreError)


# ---------------------------------------------------------------- URLs
def test_a_url_names_server_data_set_and_promises() -> None:
    """libpq's own parameters beside ours; the password is shown nowhere, and telemetry gets the address."""
    url = (
        "postgres://app:hunter2@db.example:6000/orders?sslmode=require&store=eu&durability=none&timeout=2&connections=3"
    )
    backend = resolve_backend(url)
    assert isinstance(backend, PostgreSQL)
    assert repr(backend) == (
        "PostgreSQL('postgres://app:***@db.example:6000/orders?sslmode=require', store='eu', durability='none')"
    )
    assert (backend.system, backend.address, backend.connections) == ("postgresql", ("db.example", 6000), 3)


def test_a_connection_string_of_libpq_will_do() -> None:
    backend = PostgreSQL("host=/run/postgresql user=app password='hunter 2' dbname=orders")
    assert "hunter" not in repr(backend)
    assert backend.address == ("/run/postgresql", None)
    for misspelt in ("host=db pasword=hunter2", "host=db password=hunter 2"):
        with pytest.raises(ConfigError, match=r"^postgresql: the connection string: libpq can't read it") as caught:
            PostgreSQL(misspelt)
        assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://one:6000,two/orders", "one:6000,two:5432/orders"),
        ("postgresql:///orders?host=one,two&port=6000", "one:6000,two:6000/orders"),
        ("postgresql:///orders?hostaddr=192.0.2.1", "192.0.2.1:5432/orders"),
    ],
)
def test_an_error_names_each_host_that_may_be_meant(url: str, named: str) -> None:
    """Nobody knows beforehand which of several hosts is the primary."""
    with pytest.raises(StoreError, match=rf"^postgresql at {named}, store 'main' is not open"):
        asyncio.run(PostgreSQL.from_url(url).version())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://db/orders?storr=x", "has no option 'storr'.*store.*Did you mean 'store'"),
        ("postgresql://db/orders?sslmod=x", "has no option 'sslmod'.*Did you mean 'sslmode'"),
        ("postgresql://db/orders?durability=full", "durability is 'full'; allowed: power, process, none"),
        ("postgresql://db/orders?timeout=soon", "timeout is 'soon'; give seconds"),
        ("postgresql://db/orders?timeout=-1", "timeout is -1.0; give seconds"),
        ("postgresql://db/orders?connections=0", "connections is 0; give a whole number"),
        ("postgresql://db/orders?store=a'b", "store is"),
        ("postgresql://db/orders?store=a&store=b", "has the option 'store' twice"),
        ("postgresql://app:hunter2%zz@db/orders", "libpq can't read it"),
        ("postgresql://app:hunter2%ff@db/orders", "libpq can't read it"),
        ("postgresql://app:hunter2@x@db/orders", "percent-encoded: %2F for /, %40 for @"),
    ],
)
def test_options_that_are_invalid(url: str, said: str) -> None:
    """An error names the option, what was found and what is allowed; and no password."""
    with pytest.raises(ConfigError, match=said) as caught:
        PostgreSQL.from_url(url)
    assert "hunter" not in str(caught.value)


def test_the_driver_is_loaded_when_it_is_used() -> None:
    """Neither pocket_plug nor the search for plugins loads it."""
    script = (
        "import sys; from pocket_plug import SyncStore; SyncStore('memory://').set('a', 1); import pocket_plug_postgres; "
        "print('pocket_plug_postgres' in sys.modules, [name for name in sys.modules if name.startswith('psycopg')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"


# ---------------------------------------------------------------- data sets
def test_data_sets_know_nothing_of_each_other(shared_server: Server, data_set: str) -> None:
    """Each is a schema of its own, with its own versions."""

    async def scenario(one: Backend) -> None:
        other = PostgreSQL(shared_server.url, store=f"{data_set}-B.2", durability="process")
        await other.open()
        await other.write([Put("a", "other"), Put("b", 1)])
        await other.close()
        assert await one.version() == 0
        assert await one.read("a") is None
        assert await keys_of(one) == []

    run(PostgreSQL(shared_server.url, store=data_set, durability="process"), scenario)
    found = rows(
        shared_server, f"SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pocket_plug_{data_set}%' ORDER BY 1"
    )
    assert found == [(f"pocket_plug_{data_set}",), (f"pocket_plug_{data_set}-B.2",)]


def test_many_make_a_data_set_at_once(shared_server: Server, data_set: str) -> None:
    """One makes the tables, the others find them."""

    async def main() -> None:
        backends = [PostgreSQL(shared_server.url, store=data_set, durability="process") for _ in range(8)]
        await asyncio.gather(*(backend.open() for backend in backends))
        versions = await asyncio.gather(*(backend.write([Put("a", n)]) for n, backend in enumerate(backends)))
        assert len({*versions}) == 8
        await asyncio.gather(*(backend.close() for backend in backends))

    asyncio.run(main())


def test_old_slots_are_deleted(instances: Make, shared_server: Server, data_set: str) -> None:
    """They are deleted after a day, when a program opens the data set."""

    async def write(backend: Backend) -> None:
        await backend.write([Put("a", 1)])

    run(instances(), write)
    run(instances(), write)
    slots = f'"pocket_plug_{data_set}".slots'
    rows(shared_server, f"UPDATE {slots} SET used_at = used_at - interval '25 hours' WHERE version = 1")
    run(instances(), write)
    assert sorted(rows(shared_server, f"SELECT version FROM {slots}")) == [(2,), (3,)]


# ---------------------------------------------------------------- reading
@pytest.mark.parametrize("reverse", [False, True])
def test_reads_and_pages_are_found_by_the_index(instances: Make, reverse: bool) -> None:
    """Also statements that were prepared while the table was empty; nothing is sorted, and a page reads
    only the rows it returns.
    """

    async def scenario(backend: PostgreSQL) -> None:
        pool = backend._pools.here()
        link = await pool.take("test")

        async def plan(statement: str) -> str:
            return "\n".join(
                line for [line] in await link.script(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {statement}")
            )

        sql = (backend._scan_back if reverse else backend._scan).sql.decode()
        low, high = _bounds(b"k:", b"k:0500", reverse)
        sql = sql.replace("$1", "'k:'").replace("$2", "'k;'").replace("$3", "10")
        for name, prepared in (
            ("page", sql),
            ("one", backend._read.sql.decode()),
            ("several", backend._read_many.sql.decode()),
        ):
            await link.script(f"PREPARE {name} AS {prepared}")
        for filled in (False, True):
            assert low < high
            for statement, rows in (
                ("EXECUTE page", 10),
                ("EXECUTE one ('k:0001')", 1),
                ("EXECUTE several (ARRAY['k:0001', 'k:0002']::bytea[])", 2),
            ):
                said = await plan(statement)
                assert "Index Scan" in said
                assert "Sort" not in said
                assert "Seq Scan" not in said
                assert f"rows={rows if filled else 0}" in said
            if not filled:
                await backend.write([Put(f"{letter}:{n:04}", n) for letter in "jkl" for n in range(1000)])
        pool.leave("test")

    run(instances(), scenario)


def test_a_key_as_long_as_it_may_be(instances: Make) -> None:
    """A key of 2 KiB of UTF-8 that can't be compressed is found by the index."""
    chance = random.Random(1)
    keys = ["".join(chance.choices([chr(n) for n in range(0x10000, 0x20000)], k=512)) for _ in range(50)]
    assert {len(key.encode()) for key in keys} == {2048}

    async def scenario(backend: Backend) -> None:
        await backend.write([Put(key, n) for n, key in enumerate(keys)])
        assert {key: entry.value for key, entry in (await backend.read_many(keys)).items()} == {
            key: n for n, key in enumerate(keys)
        }
        assert await keys_of(backend) == sorted(keys)

    run(instances(), scenario)


def test_a_connection_string_is_shown_without_secrets() -> None:
    """Also if it is no URL, whatever else is in it, and in each way in which libpq lets one write a value."""
    for secret in (
        "password=hunter2",
        r"password=hunter\ 2",
        "password = 'hunter 2'",
        "sslpassword=hunter2",
        "password=hunter2 application_name=https://shop.example",
        "oauth_client_secret=hunter2 oauth_issuer=https://a.example oauth_client_id=b",
    ):
        shown = _shown(f"host=db.example {secret} user=app")  # an old libpq doesn't know the options of OAuth
        assert "hunter" not in shown
        assert "2 " not in shown
        assert "host=db.example" in shown
        assert "user=app" in shown
    assert "hunter" not in repr(PostgreSQL("host=db.example password=hunter2"))


def test_a_damaged_record_is_an_error(
    instances: Make,
    shared_server: Server,
    data_set: str,
) -> None:
    """A record at another key, with another deadline or other bytes: never a wrong value, and never missing data."""
    entries = f'"pocket_plug_{data_set}".entries'
    clock = FakeClock()

    async def scenario(backend: Backend) -> None:
        backend.clock = clock
        for damage in (
            "UPDATE {e} SET key = 'b' WHERE key = 'a'",
            "UPDATE {e} SET expires_at = 1e8 WHERE key = 'a'",
            "UPDATE {e} SET expires_at = NULL WHERE key = 'a'",
            "UPDATE {e} SET value = set_byte(value, 12, get_byte(value, 12) # 1) WHERE key = 'a'",
            "UPDATE {e} SET value = '' WHERE key = 'a'",
        ):
            await backend.write([Put("a", "some text", clock() + 60), Delete("b")])
            await asyncio.to_thread(rows, shared_server, damage.format(e=entries))
            key = "b" if "'b'" in damage else "a"
            for reading in (backend.read(key), backend.read_many([key])):
                with pytest.raises(CorruptRecordError, match=f"store '{data_set}', key '{key}'"):
                    await reading

    run(instances(), scenario)


def test_a_name_that_is_not_utf_8_is_an_error(instances: Make, shared_server: Server, data_set: str) -> None:
    """pocket_plug never writes one. A scan neither skips it, nor raises an error that isn't pocket_plug's."""
    entries = f'"pocket_plug_{data_set}".entries'

    async def scenario(backend: Backend) -> None:
        await backend.write([Put("a", 1)])
        await asyncio.to_thread(rows, shared_server, f"INSERT INTO {entries} VALUES ('\\x6bc328'::bytea, '', 1, NULL)")
        for reverse in (False, True):
            with pytest.raises(CorruptRecordError, match=rf"store '{data_set}'.*b'k\\xc3\('"):
                [key async for key in backend.scan(reverse=reverse)]
        assert [key async for key in backend.scan("a")] == ["a"]

    run(instances(), scenario)


def test_no_operator_of_another_role_is_called(instances: Make, shared_server: Server) -> None:
    """Up to PostgreSQL 14 any role may create operators in `public`. One that fits our arguments better than PostgreSQL's own
    would be executed with the rights of whoever writes."""
    rows(shared_server, "CREATE ROLE mallory; GRANT CREATE ON SCHEMA public TO mallory")
    try:
        rows(
            shared_server,
            "SET ROLE mallory; CREATE FUNCTION public.evil(bigint, integer) RETURNS bigint LANGUAGE plpgsql AS "
            "$$BEGIN RAISE 'evil as %', current_user; END$$; "
            "CREATE OPERATOR public.& (FUNCTION = public.evil, LEFTARG = bigint, RIGHTARG = integer)",
        )

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("a", 1)])
            await backend.write([Put("a", 2)], {"a": version})

        run(instances(), scenario)
    finally:
        rows(shared_server, "DROP OWNED BY mallory CASCADE; DROP ROLE mallory")


def test_the_check_finds_what_reading_does_not_show(instances: Make, shared_server: Server, data_set: str) -> None:
    """A counter that has decreased, and an index that differs from its table."""
    name = f'"pocket_plug_{data_set}"'

    async def scenario(backend: Backend) -> None:
        await backend.write([Put(f"k{n}", n) for n in range(20)])
        await backend.write([Put("a", 1)])
        assert await backend.check() == []
        await asyncio.to_thread(rows, shared_server, f"SELECT setval('{name}.versions', 1)")
        [fault] = await backend.check()
        assert "the counter of versions is 1, but an entry has version 2" in fault

    run(instances(), scenario)


# ---------------------------------------------------------------- writing
def test_versions_that_are_given_and_those_that_come_never_meet(instances: Make) -> None:
    """Writes with versions of their own raise the counter while others increment it: no version is given
    twice, none decreases.
    """

    async def scenario(backend: Backend) -> None:
        async def plain(n: int) -> list[int]:
            return [await backend.write([Put(f"p{n}", 0)]) for _ in range(40)]

        async def raising(n: int) -> list[int]:
            given = []
            for step in range(20):
                version = await backend.version() + 3 + n
                given.append(await backend.write([Put(f"r{n}", step, version=version)]))
            return given

        several = await asyncio.gather(*(plain(n) for n in range(4)), *(raising(n) for n in range(2)))
        for given in several:
            assert given == sorted({*given})
        plain_ones = [version for given in several[:4] for version in given]
        assert len({*plain_ones}) == len(plain_ones)
        assert await backend.version() >= max(version for given in several for version in given)

    run(instances(), scenario)


def test_writes_of_any_size_get_past_each_other(instances: Make) -> None:
    """Few keys are locked one by one, many by one lock; in whatever order they are named, there is no deadlock and no lost
    update.
    """

    async def scenario(backend: Backend) -> None:
        keys = [f"k{n:03}" for n in range(100)]

        async def writer(seed: int) -> None:
            chance = random.Random(seed)
            for size in (1, 2, 3, 59, 60, 61, 100) * 2:
                some = chance.sample(keys, size)
                await backend.write([Put(key, [seed]) for key in some], {} if size < 60 else {"none": 0})

        await asyncio.gather(*(writer(seed) for seed in range(6)))
        assert await keys_of(backend) == keys

    run(instances(), scenario)


def test_keys_with_one_lock_take_it_once(instances: Make) -> None:
    """If the hashes of keys collide, a write of both doesn't wait for itself; the exclusive lock is taken."""

    async def scenario(backend: PostgreSQL) -> None:
        backend._lock_of = lambda key: 4  # type: ignore[method-assign] # all collide
        for changes, expect in (("a", "b"), ("ab", ""), ("ab", "ab"), ("b", "a")):
            await backend.write(
                [Put(key, 1) for key in changes], dict.fromkeys(expect, await version_of(backend, expect))
            )
            assert backend._locks([b"a"], [b"b"], False) == [backend._whole, 5]
            assert backend._locks([], [b"b"], False) == [backend._whole, 4]
            assert backend._locks([b"a"], [], True) == [backend._whole + 1]
            await backend.write([Delete("a"), Delete("b")])

    async def version_of(backend: Backend, keys: str) -> int:
        return 0

    run(instances(), scenario)


def test_locks_of_keys_are_the_same_for_all_programs() -> None:
    """They are part of the format: otherwise a newer program wouldn't be locked out."""
    backend = PostgreSQL("postgresql://db/orders")
    assert [backend._lock_of(key) for key in (b"", b"a", "ä".encode())] == LOCKS
    assert PostgreSQL("postgresql://db/orders", store="other")._lock_of(b"a") != LOCKS[1]


LOCKS = [-2274842393225731608, -2050211038533541382, -6742816893357903666]


def test_what_has_expired_is_removed_in_small_bites(instances: Make, shared_server: Server, data_set: str) -> None:
    """By writes, a few at a time; but not entries that are still valid by another program's clock."""
    clock = FakeClock()
    count = f'SELECT count(*) FROM "pocket_plug_{data_set}".entries'

    async def scenario(backend: Backend) -> None:
        backend.clock = clock
        await backend.write([Put(f"k{n:03}", n, clock() + 10) for n in range(200)])
        for ahead, left in ((30, 200), (10 + schema.REAP_SLACK - 31, 200), (2, None)):
            clock.advance(ahead)
            for n in range(20):
                await backend.write([Put(f"new{n}", n)])
            [(there,)] = await asyncio.to_thread(rows, shared_server, count)
            assert there - 20 == left if left is not None else 100 < there < 220
        for n in range(200):
            await backend.write([Put("new0", n)])
        assert await asyncio.to_thread(rows, shared_server, count) == [(20,)]

    run(instances(), scenario)


def test_a_write_that_is_too_large_is_refused(instances: Make) -> None:
    """The whole write is refused, with the limit and the way out; a write that has exactly the limit is done."""

    async def scenario(backend: Backend) -> None:
        assert backend.max_changes is not None
        with pytest.raises(WriteSizeError, match=r"a write has 50,001 keys; 50,000 are allowed; nothing was written"):
            await backend.write([Put(str(n), n) for n in range(50_000)], {"a": 0})
        assert await keys_of(backend) == []

    run(instances(), scenario)


def test_a_write_of_too_many_bytes_is_refused(instances: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would close the connection again and again, without a reason."""
    monkeypatch.setattr("pocket_plug_postgres.backend.MOST_BYTES", 100_000)

    async def scenario(backend: Backend) -> None:
        with pytest.raises(WriteSizeError, match=r"bytes of values; 100,000 are allowed.*nothing was written"):
            await backend.write([Put(f"k{n}", "x" * 6_000) for n in range(20)])
        assert await keys_of(backend) == []
        await backend.write([Put(f"k{n}", "x" * 4_000) for n in range(20)])

    run(instances(), scenario)


class Silent:
    """A watcher that waits for its first notification."""

    def __init__(self) -> None:
        self.is_back = threading.Event()

    def changed(self, versions: object, up_to: int | None = None) -> None: ...
    def lost(self) -> None: ...
    def back(self, up_to: int | None = None) -> None:
        self.is_back.set()


def test_only_what_is_watched_is_notified(instances: Make, shared_server: Server, data_set: str) -> None:
    """NOTIFY makes commits wait for each other, so writes notify only while somebody watches."""
    channel = f"pocket_plug_{data_set}"

    async def scenario(backend: PostgreSQL) -> None:
        with psycopg.connect(shared_server.url, autocommit=True) as listening:
            listening.execute(f'LISTEN "{channel}"')
            await backend.write([Put("a", 1)])
            assert [*listening.notifies(timeout=0)] == []
            watcher = Silent()
            await backend.watch(watcher)
            assert await asyncio.to_thread(watcher.is_back.wait, HANGS)
            version = await backend.write([Put("a\0", 1), Delete("b")])
            said = [notify.payload for notify in listening.notifies(timeout=HANGS, stop_after=2)]
            assert said[-1] == f"{version}:6100 {version}:62"

    run(instances(), scenario)


HELD_UP = "SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"


class Gate(Layer):
    """Holds notifications back until the test releases them, so that any may come late."""

    def on_build(self) -> None:
        self.can_watch, self.held = True, list[Callable[[], None]]()
        self.noted = Noted()

    async def watch(self, watcher: Watcher) -> None:
        def changed(*word: Any) -> None:
            self.held.append(lambda: watcher.changed(*word))
            self.noted.changed(word[0])

        to_it: Any = SimpleNamespace(changed=changed, lost=watcher.lost, back=watcher.back)
        to_it.back = lambda *word: (watcher.back(*word), self.noted.back())
        await self.inner.watch(to_it)

    def let_through(self) -> None:
        """Release all that were held back."""
        while self.held:
            self.held.pop(0)()


def test_a_cached_batch_shows_one_moment_whatever_the_order_of_the_commits(
    instances: Make, shared_server: Server, data_set: str
) -> None:
    """A write that got its version before another write may commit, and be notified, after it."""
    insert = f"INSERT INTO \"pocket_plug_{data_set}\".entries VALUES ('slow', '', 1)"

    async def scenario(other: PostgreSQL) -> None:
        await other.write([Put("b", "old")])
        gate = Gate().build(instances())
        assert isinstance(gate, Gate)
        tier = Persistence(to=gate).build(Memory())
        await tier.open()
        try:
            await asyncio.to_thread(gate.noted.wait_for_back)
            await tier.read_many(["b"])  # cached from here on
            with psycopg.connect(shared_server.url) as holding:
                holding.execute(insert)  # a write of this key has a version, and waits
                slow = asyncio.create_task(other.write([Put("a", "new"), Put("b", "new"), Put("slow", 0)]))
                while not await asyncio.to_thread(rows, shared_server, HELD_UP):
                    await asyncio.sleep(0)
                later = await other.write([Put("c", 1)])
                await asyncio.to_thread(gate.noted.wait_for_version, {"c": later})
                gate.let_through()
                holding.rollback()
            version = await slow
            assert version < later
            a = await tier.read("a")
            assert a is not None
            batch = await tier.read_many(["a", "b"])
            assert {entry.value for entry in batch.values()} == {"new"}
            await asyncio.to_thread(gate.noted.wait_for_version, {"a": version})
            gate.let_through()
            assert {key: entry.value for key, entry in (await tier.read_many(["a", "b"])).items()} == dict(
                a="new", b="new"
            )
        finally:
            await tier.close()

    run(instances(), scenario)


class UpTo(Silent):
    """A watcher that waits until all writes up to a version were notified."""

    def __init__(self) -> None:
        super().__init__()
        self.up_to, self.is_lost = 0, False
        self._news = threading.Condition()

    def changed(self, versions: object, up_to: int | None = None) -> None:
        assert up_to is not None
        with self._news:
            self.up_to = up_to
            self._news.notify_all()

    def lost(self) -> None:
        self.is_lost = True

    def wait_for(self, version: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.up_to == version, HANGS), (self.up_to, version)


def test_a_version_that_was_never_written_is_not_waited_for(
    instances: Make, shared_server: Server, data_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that failed after it got a version is never notified. So the server is asked, once no write is running."""
    monkeypatch.setattr(watching, "WATCH_EVERY", 0.02)
    monkeypatch.setattr(watching, "LONGEST_HOLD", 0.02)

    async def scenario(backend: PostgreSQL) -> None:
        watcher = UpTo()
        await backend.watch(watcher)
        assert await asyncio.to_thread(watcher.is_back.wait, HANGS)
        with psycopg.connect(shared_server.url) as writing:
            writing.execute(f"SELECT pg_advisory_xact_lock_shared({backend._whole})")
            rows(shared_server, f"SELECT nextval('pocket_plug_{data_set}.versions')")
            version = await backend.write([Put("a", 1)])
            for _ in range(3):
                while not await asyncio.to_thread(rows, shared_server, WAITING):
                    await asyncio.sleep(0)
                while await asyncio.to_thread(rows, shared_server, WAITING):
                    await asyncio.sleep(0)
            assert watcher.up_to == version - 2
        await asyncio.to_thread(watcher.wait_for, version)
        assert not watcher.is_lost

    run(instances(), scenario)


def test_a_word_of_somebody_else_ends_no_subscription(
    instances: Make, shared_server: Server, data_set: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Any role may NOTIFY on any channel. All cached entries count as outdated then, and later writes are notified."""

    async def scenario(backend: PostgreSQL) -> None:
        watcher = UpTo()
        await backend.watch(watcher)
        assert await asyncio.to_thread(watcher.is_back.wait, HANGS)
        watcher.is_back.clear()
        rows(shared_server, f"NOTIFY \"pocket_plug_{data_set}\", 'deployed'")
        assert await asyncio.to_thread(watcher.is_back.wait, HANGS)
        assert watcher.is_lost
        version = await backend.write([Put("a", 1)])
        await asyncio.to_thread(watcher.wait_for, version)

    run(instances(), scenario)
    assert "reads go to the server" in caplog.text


def test_a_failed_subscription_is_logged_once_for_each_reason(
    shared_server: Server, data_set: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason, however often it is retried."""
    tries, are_many = count(), threading.Event()

    def soon(*_: float) -> float:
        if next(tries) == 10:
            are_many.set()
        return 0.0

    monkeypatch.setattr(watching, "uniform", soon)
    with Proxy(shared_server.port) as proxy:

        async def scenario(backend: PostgreSQL) -> None:
            watcher = Silent()
            await backend.watch(watcher)
            assert await asyncio.to_thread(watcher.is_back.wait, HANGS)
            proxy.close()
            assert await asyncio.to_thread(are_many.wait, HANGS)

        run(PostgreSQL(proxy.through(shared_server.url), store=data_set, durability="process"), scenario)
    reasons = [record.getMessage() for record in caplog.records]
    assert len(reasons) == len({*reasons}), reasons
    assert "Connection refused" in reasons[-1]


def test_a_subscription_begins_after_writes_that_did_not_see_it(
    instances: Make, shared_server: Server, data_set: str
) -> None:
    """A write that found nobody watching, and hasn't committed yet, would not be notified: so `back` is called only after it."""

    async def scenario(backend: PostgreSQL) -> None:
        with psycopg.connect(shared_server.url, autocommit=True) as writing:
            writing.execute("BEGIN")
            writing.execute(f"SELECT pg_advisory_xact_lock_shared({backend._whole})")
            watcher = Silent()
            await backend.watch(watcher)
            while not await asyncio.to_thread(rows, shared_server, WAITING):
                await asyncio.sleep(0.01)
            assert not watcher.is_back.is_set()
            writing.execute("COMMIT")
            assert await asyncio.to_thread(watcher.is_back.wait, HANGS)

    run(instances(), scenario)


WAITING = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND NOT granted"


def test_a_connection_in_a_transaction_is_given_to_nobody(instances: Make) -> None:
    """Whatever left it in a transaction: it is closed, which ends the transaction and releases its locks."""

    async def scenario(backend: PostgreSQL) -> None:
        pool = backend._pools.here()
        for ends in ("BEGIN", "BEGIN; SELECT pg_advisory_xact_lock(1)"):
            link = await pool.take("test")
            await link.script(ends)
            pool.leave("test")
            assert not link.is_open
        link = await pool.take("test")
        await link.script("SELECT pg_advisory_xact_lock(1)")
        pool.leave("test")
        assert link.is_open

    run(instances(), scenario)


def test_a_turn_that_takes_too_long_ends(instances: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others can write again, and its own write becomes an ordinary write, with its expectations."""
    monkeypatch.setattr(turns, "LONGEST_TURN", 0.05)

    async def scenario(backend: Backend) -> None:
        await backend.write([Put("a", 0)])
        async with backend.turn(["a"]):
            seen = await backend.read("a")
            assert seen is not None
            await asyncio.wait_for(backend.write([Put("b", 0)]), HANGS)  # its own, which ends it
            await backend.write([Put("a", 1)], {"a": seen.version})
        async with backend.turn(["a"]):
            # by somebody else, who waits until the server has ended the turn
            await asyncio.create_task(backend.write([Put("a", 2)]), context=contextvars.Context())
            await backend.write([Put("a", 3)])
        entry = await backend.read("a")
        assert entry is not None
        assert entry.value == 3

    run(instances(), scenario)


# ---------------------------------------------------------------- what is used over it
class Count(Node[int, int], name="count"):
    async def post(self, store: StoreWriter, input: int, prepared: Any, result: Any) -> int:
        return await store.update("counted", lambda counted: counted + input, default=0)


def test_a_store_with_layers_over_it(shared_server: Server, data_set: str) -> None:
    """All operations of a store, with and without await, from twenty event loops and as many threads."""
    url = f"{shared_server.url}?store={data_set}&durability=process&connections=2"
    store = Store(url, layers=["tracing", "metrics", "compress"])

    async def use() -> None:
        for _ in range(3):
            await store.update("n", lambda n: n + 1, default=0)

    def use_sync() -> None:
        store.sync.update("n", lambda n: n + 1, default=0)
        asyncio.run(use())

    with store.sync:
        threads = [threading.Thread(target=use_sync) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.sync.get("n") == 80
        assert asyncio.run(Graph(Count(), store=store).run(3)) == 3
        assert asyncio.run(Graph(Count(), store=store).run(4)) == 7
        assert list(store.sync.keys()) == ["counted", "n"]


def test_the_commands_work_by_its_url(shared_server: Server, data_set: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`pocket-plug store` and `runs`, as over any store."""
    url = f"{shared_server.url}?store={data_set}&durability=process"
    for arguments, said in (
        (["store", "--url", url, "set", "user:1", '{"name": "Ada"}'], ""),
        (["store", "--url", url, "get", "user:1"], "Ada"),
        (["store", "--url", url, "ls"], "user:1"),
        (["store", "--url", url, "check"], ""),
        (["store", "--url", url, "stats"], "1"),
        (["store", "--url", url, "export"], "user:1"),
        (["runs", "--url", url, "ls"], ""),
    ):
        assert main(arguments) == 0
        assert said in capsys.readouterr().out


def test_a_store_is_found_by_an_alias_of_its_scheme(shared_server: Server, data_set: str) -> None:
    """`postgres://`, as some hosting services write it."""
    url = shared_server.url.replace("postgresql://", "postgres://")
    with SyncStore(f"{url}?store={data_set}&durability=process") as store:
        store.set("a", 1)
        assert store.get("a") == 1
