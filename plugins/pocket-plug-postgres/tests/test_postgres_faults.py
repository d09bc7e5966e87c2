"""Failures of a server, a network or an administrator: an error in time that names the server and the way out, or no error at
all.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from pocket_plug_postgres import PostgreSQL, schema
from pocket_plug_postgres.backend import Durability

from pocket_plug import Delete, Put, StoreError, SyncStore
from pocket_plug.store.backend import Backend, Entry
from pocket_plug.testing.proxy import POSTGRES_TLS, Proxy
from pocket_plug.testing.scenarios import HANGS, increment, keys_of
from pocket_plug.testing.servers import Server, certificate, free_port, postgres, standby

SOON = 20.0
"""Seconds in which whatever has a patience of one or two has long ended, on a slow machine too."""


def sql(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements as the administrator; returns the rows of the last statement, if it has rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)  # type: ignore[arg-type] # no literal
        return cursor.fetchall() if cursor.description else []


def run(backend: Backend, scenario: Callable[[Backend], Awaitable[None]]) -> None:
    """The scenario, with the backend open."""

    async def main() -> None:
        await backend.open()
        try:
            await asyncio.wait_for(scenario(backend), HANGS)
        finally:
            await backend.close()

    asyncio.run(main())


def refusal(backend: Backend) -> str:
    """The message of `open`'s StoreError, which must come soon."""
    begun = time.monotonic()
    with pytest.raises(StoreError) as caught:
        asyncio.run(backend.open())
    assert time.monotonic() - begun < SOON
    return str(caught.value)


@contextmanager
def role(server: Server, name: str, *settings: str) -> Generator[str]:
    """A role with a password, and the URL by which it logs in."""
    sql(server.url, f"CREATE ROLE {name} LOGIN PASSWORD 'hunter2'", *(f"ALTER ROLE {name} {each}" for each in settings))
    try:
        yield server.url.replace("//postgres@", f"//{name}:hunter2@")
    finally:
        sql(server.url, f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


# ---------------------------------------------------------------- administrators
def test_connections_that_an_administrator_ends_are_made_anew(
    instances: Callable[[], Backend], shared_server: Server
) -> None:
    """Idle connections and connections in use, also by the server's idle_session_timeout: callers don't notice."""

    async def scenario(backend: Backend) -> None:
        await backend.write([Put("a", 0)])
        for n in range(3):
            await asyncio.to_thread(
                sql,
                shared_server.url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pocket_plug'",
            )
            await asyncio.gather(*(increment(backend, "a", 1) for _ in range(4)))
            entry = await backend.read("a")
            assert entry is not None
            assert entry.value == 4 * (n + 1)

    run(instances(), scenario)


# ---------------------------------------------------------------- servers that refuse
def test_nobody_listens(data_set: str) -> None:
    """The error names host, port and data set, not the password; and it comes within `patience`."""
    url = f"postgresql://app:hunter2@127.0.0.1:{(port := free_port())}/orders"
    said = refusal(PostgreSQL(url, store=data_set, patience=0.5))
    assert f"postgresql at 127.0.0.1:{port}/orders, store '{data_set}' can't be reached" in said
    assert "hunter2" not in said


def test_a_server_that_accepts_and_says_nothing() -> None:
    """A timeout, as for a server that is stopped."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"postgresql://127.0.0.1:{listening.getsockname()[1]}/orders"
        assert "no answer within" in refusal(PostgreSQL(url, timeout=0.5, patience=0.7))


def test_wrong_passwords_users_and_databases(data_set: str) -> None:
    """Refused at once, whatever `patience` is; the message doesn't contain the password."""
    with postgres(password="hunter2") as server:  # noqa: S106 - no secret
        for old, new, way_out in (
            (":hunter2@", ":hunter3@", "the password is wrong"),
            (":hunter2@", "@", "it asks for a password"),
            ("/postgres?", "/orders?", "there is no such database"),
            ("//postgres:", "//nobody:", "the password is wrong"),
        ):
            said = refusal(PostgreSQL(f"{server.url}?sslmode=disable".replace(old, new), store=data_set))
            assert way_out in said
            assert f"127.0.0.1:{server.port}" in said
            assert "hunter" not in said
        asyncio.run(PostgreSQL(server.url, store=data_set).open())


@pytest.mark.parametrize(
    ("option", "way_out"),
    [
        ("options=-c%20bad%3D1", "isn't one of the server's; correct it"),
        ("options=-c%20max_connections%3D1", "can't be given by a client"),
        ("options=-c%20work_mem%3Dx", "an option of the URL is wrong"),
        ("connect_timeout=soon", "an option of the URL is wrong"),
        ("service=orders", "there is no such service"),
    ],
)
def test_an_option_in_the_url_that_the_server_or_libpq_refuses(
    shared_server: Server, data_set: str, option: str, way_out: str
) -> None:
    """Refused at once: retrying until `patience` is over wouldn't help."""
    url = f"{shared_server.url}{'&' if '?' in shared_server.url else '?'}{option}"
    said = refusal(PostgreSQL(url, store=data_set, patience=1000.0))
    assert way_out in said
    assert "attempt" not in said


def test_tls_with_a_certificate_that_is_not_trusted(shared_server: Server, data_set: str, tmp_path: Path) -> None:
    """Refused at once; with the right authority it works, with another name in the certificate it doesn't."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    for pair, trusted, works in (
        (certificate(good), good, True),
        (certificate(bad, names=("elsewhere.example",)), bad, False),
        (certificate(good / ".."), bad, False),
    ):
        with Proxy(shared_server.port, tls=pair, asked=POSTGRES_TLS) as proxy:
            url = f"{proxy.through(shared_server.url)}?sslmode=verify-full&sslrootcert={trusted}/authority.pem"
            backend = PostgreSQL.from_url(f"{url}&store={data_set}&durability=process")
            if works:

                async def scenario(backend: Backend) -> None:
                    await backend.write([Put("a", "x" * 3_000_000)])
                    assert (await backend.read("a")) is not None

                run(backend, scenario)
            else:
                assert "its certificate is not trusted, or is not for this host" in refusal(backend)


def test_nobody_is_asked_for_the_pass_phrase_of_a_key(shared_server: Server, data_set: str, tmp_path: Path) -> None:
    """OpenSSL would ask on the terminal, and the event loop would wait for the answer for ever. The way out works."""
    from cryptography.hazmat.primitives import serialization

    made, key = certificate(tmp_path), tmp_path / "encrypted.pem"
    how = serialization.BestAvailableEncryption(b"hunter2")
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(serialization.load_pem_private_key(made.key.read_bytes(), None).private_bytes(*kinds, how))
    key.chmod(0o600)
    with Proxy(shared_server.port, tls=made, asked=POSTGRES_TLS) as proxy:
        url = f"{proxy.through(shared_server.url)}?sslmode=require&sslcert={made.chain}&sslkey={key}"
        said = refusal(PostgreSQL(url, store=data_set, durability="process"))
        assert "sslpassword=" in said
        asyncio.run(PostgreSQL(f"{url}&sslpassword=hunter2", store=data_set, durability="process").open())


def test_a_server_without_tls_where_it_is_asked_for(shared_server: Server, data_set: str) -> None:
    assert "TLS can't be used" in refusal(PostgreSQL(f"{shared_server.url}?sslmode=require", store=data_set))


def test_a_role_without_rights_is_told_what_to_grant(shared_server: Server, data_set: str) -> None:
    """Each of the three ways that the message names works."""
    with role(shared_server, "poor") as url:
        said = refusal(PostgreSQL(url, store=data_set, durability="process"))
        assert "hunter2" not in said
        first, second = said.split("To let it make the data set: ")[1].split("; where another role has made it: ")
        create, grant = first.split("; or: ")
        for statement in (create, grant):
            name = f"{data_set}{len(statement)}"
            sql(shared_server.url, statement.replace(data_set, name))
            asyncio.run(PostgreSQL(url, store=name, durability="process").open())
            sql(shared_server.url, f'DROP SCHEMA "pocket_plug_{name}" CASCADE')
        sql(shared_server.url, 'REVOKE CREATE ON DATABASE postgres FROM "poor"')
        asyncio.run(PostgreSQL(shared_server.url, store=data_set, durability="process").open())
        assert second in refusal(PostgreSQL(url, store=data_set, durability="process"))
        usage, *others = second.split("; ")
        sql(shared_server.url, usage, f'GRANT SELECT ON ALL TABLES IN SCHEMA "pocket_plug_{data_set}" TO "poor"')
        assert second in refusal(PostgreSQL(url, store=data_set, durability="process"))
        sql(shared_server.url, f'REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA "pocket_plug_{data_set}" FROM PUBLIC')
        sql(shared_server.url, *others[:-1])

        async def refused(backend: Backend) -> None:
            with pytest.raises(StoreError, match=r"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA.*function write"):
                await backend.write([Put("a", 1)])

        run(PostgreSQL(url, store=data_set, durability="process"), refused)
        sql(shared_server.url, others[-1])

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", 1), Delete("b"), Put("c", 1, version=50)])
            assert await backend.version() == 50

        run(PostgreSQL(url, store=data_set, durability="process"), scenario)


def test_a_server_that_can_only_be_read(shared_server: Server, data_set: str) -> None:
    """Reads work; a write fails at once, with the reason."""
    asyncio.run(PostgreSQL(shared_server.url, store=data_set, durability="process").open())
    with role(shared_server, "reader", "SUPERUSER", "SET default_transaction_read_only = on") as url:

        async def scenario(backend: Backend) -> None:
            assert await backend.read("a") is None
            with pytest.raises(StoreError, match="it is read-only"):
                await backend.write([Put("a", 1)])

        run(PostgreSQL(url, store=data_set, durability="process"), scenario)


def test_a_hot_standby_is_read_and_takes_over(data_set: str) -> None:
    """It refuses each write. With both hosts in the URL, writes go to the primary, and to the standby once it is promoted."""
    options = f"store={data_set}&durability=process&timeout=2"
    with postgres(binaries=os.environ.get("POCKET_PLUG_POSTGRES"), options={"fsync": "off"}) as primary:
        with SyncStore(f"{primary.url}?{options}") as store:
            store.set("price", 3)
        with standby(primary) as second:
            with SyncStore(f"{second.url}?{options}") as store:
                assert store.get("price") == 3
                with pytest.raises(StoreError, match=r"read-only \(a standby.*the address of the primary"):
                    store.set("price", 4)
            with (
                pytest.raises(StoreError, match=r"read-only \(a standby"),
                SyncStore(f"{second.url}?store=new&durability=process"),
            ):
                pass
            hosts = f"127.0.0.1:{second.port},127.0.0.1:{primary.port}"
            url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write&{options}"
            with SyncStore(url) as store:
                store.set("price", 5)
                primary.kill()
                sql(second.url, "SELECT pg_promote()")
                store.set("size", 6)
                assert (store.get("size"), store.get("price")) in ((6, 5), (6, 3))  # it followed, not at once


def test_after_a_failover_no_connection_to_the_former_primary_is_kept(shared_server: Server, data_set: str) -> None:
    """The server's name leads to the new primary; older connections lead to a server that is now read-only, and are closed."""

    async def scenario(backend: Backend) -> None:
        assert isinstance(backend, PostgreSQL)
        pools = backend._here(backend._pools), backend._here(backend._turn_pools)

        async def in_turn() -> None:
            async with backend.turn(["k"]):
                await backend.write([Put("k", 1)])

        await asyncio.gather(in_turn(), *(backend.write([Put(f"k{n}", n)]) for n in range(20)))
        for pool in pools:
            assert pool._idle
            for link in pool._idle:
                await link.script("SET default_transaction_read_only = on")
        await in_turn()
        for n in range(20):
            await backend.write([Put(f"k{n}", -n)])

    run(PostgreSQL(shared_server.url, store=data_set, durability="process"), scenario)


def test_of_several_hosts_a_silent_one_leaves_time_for_the_next(shared_server: Server, data_set: str) -> None:
    """The primary's machine has lost its power, so nothing refuses the connection; the new primary is the
    second host in the URL.
    """
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{shared_server.port}"
        options = f"target_session_attrs=read-write&store={data_set}&durability=process"
        with SyncStore(f"postgresql://postgres@{hosts}/postgres?{options}&patience=12") as store:
            store.set("price", 5)
            assert store.get("price") == 5


def test_a_server_without_a_free_connection_is_waited_for(shared_server: Server, data_set: str) -> None:
    """Callers that have a connection continue, and none fails; a caller that gets none within `patience` gets the reason."""
    with role(shared_server, "crowd", "SUPERUSER", "NOSUPERUSER", "CONNECTION LIMIT 2") as url:
        sql(shared_server.url, 'GRANT CREATE ON DATABASE postgres TO "crowd"')
        backend = PostgreSQL(url, store=data_set, durability="process")

        async def scenario(backend: Backend) -> None:
            await asyncio.gather(*(increment(backend, "n", 5) for _ in range(8)))
            entry = await backend.read("n")
            assert entry is not None
            assert entry.value == 40
            for patience in (0.5, 5.0, 30.0):  # on a busy machine the first may be over before the server has answered
                with pytest.raises(StoreError) as caught:
                    await PostgreSQL(url, store=data_set, durability="process", patience=patience).open()
                if "no answer" not in str(caught.value):
                    break
            assert "too many connections" in str(caught.value)

        run(backend, scenario)


# ---------------------------------------------------------------- what the server says in the middle of a write
def test_a_caller_that_gets_no_connection_of_the_pool_gets_the_reason(shared_server: Server, data_set: str) -> None:
    """Others use all of them; the error doesn't blame the server."""

    async def scenario(backend: Backend) -> None:
        assert isinstance(backend, PostgreSQL)
        pool, patient = backend._here(backend._pools), backend._retrying
        await pool.take(pool)
        backend._retrying = replace(patient, patience=0.2)
        with pytest.raises(StoreError, match="no free connection of the 1 that this event loop may have"):
            await backend.read("a")
        pool.leave(pool)
        backend._retrying = patient
        assert await backend.read("a") is None

    run(PostgreSQL(shared_server.url, store=data_set, durability="process", connections=1), scenario)


FAILS = """
CREATE FUNCTION "{schema}".fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('"{schema}".failures') <= {times} THEN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{code}'; END IF;
    RETURN NEW;
END $$
"""


def fails(server: Server, data_set: str, code: str, times: int) -> None:
    """Make the next writes fail on the server in this way."""
    schema = f"pocket_plug_{data_set}"
    sql(
        server.url,
        f'DROP SEQUENCE IF EXISTS "{schema}".failures; CREATE SEQUENCE "{schema}".failures',
        f'DROP FUNCTION IF EXISTS "{schema}".fail() CASCADE',
        FAILS.format(schema=schema, code=code, times=times),
        f'CREATE TRIGGER fail BEFORE INSERT ON "{schema}".entries FOR EACH ROW EXECUTE FUNCTION "{schema}".fail()',
    )


def test_transient_errors_are_retried(instances: Callable[[], Backend], shared_server: Server, data_set: str) -> None:
    """A deadlock, a serialization failure, a timeout of a lock, a statement or a transaction: the write is done, once."""

    async def scenario(backend: Backend) -> None:
        for n, code in enumerate(("40P01", "40001", "55P03", "57014", "25P04")):
            await asyncio.to_thread(fails, shared_server, data_set, code, 2)
            await increment(backend, "n", 1)
            entry = await backend.read("n")
            assert entry is not None
            assert entry.value == n + 1

    run(instances(), scenario)


def test_permanent_errors_are_raised_at_once(
    instances: Callable[[], Backend], shared_server: Server, data_set: str
) -> None:
    """A full disk, no memory: nothing of the write is stored, and the next write works once there is room."""

    async def scenario(backend: Backend) -> None:
        for code, way_out in (
            ("53100", "its disk is full"),
            ("53200", "out of memory"),
            ("42P05", "a pooler in transaction mode"),
            ("XX001", "PostgreSQL refuses"),
        ):
            await asyncio.to_thread(fails, shared_server, data_set, code, 1)
            with pytest.raises(StoreError, match=way_out) as caught:
                await backend.write([Delete("a"), Put("b", 1)])
            assert f"127.0.0.1:{shared_server.port}" in str(caught.value)
            assert await backend.read("b") is None
        version = await backend.write([Put("b", 1)])
        assert await backend.read("b") == Entry(1, version)

    run(instances(), scenario)


def test_a_data_set_that_is_dropped_while_it_is_open(
    instances: Callable[[], Backend], shared_server: Server, data_set: str
) -> None:
    """An error, and never an answer that looks like missing data; if it is opened again, it is created again."""

    async def scenario(backend: Backend) -> None:
        await backend.write([Put("a", 1)])
        await asyncio.to_thread(sql, shared_server.url, f'DROP SCHEMA "pocket_plug_{data_set}" CASCADE')
        for operation in (backend.read("a"), backend.write([Put("a", 1)]), backend.version()):
            with pytest.raises(StoreError, match="close the store and open it again"):
                await operation

    run(instances(), scenario)

    async def anew(backend: Backend) -> None:
        assert await backend.read("a") is None
        await backend.write([Put("a", 1)])

    run(instances(), anew)


@pytest.mark.parametrize(
    ("drop", "named"),
    [
        ("FUNCTION {s}.write", "write"),
        ("SEQUENCE {s}.versions", "versions"),
        ("TABLE {s}.slots", "slots"),
        ("TABLE {s}.entries", "entries"),
        ("TABLE {s}.about", "about"),
    ],
)
def test_a_data_set_of_which_a_part_was_dropped(
    instances: Callable[[], Backend], shared_server: Server, data_set: str, drop: str, named: str
) -> None:
    """What the open store says is to be done leads to an error that names the part, and never to a data set that seems new. The
    way out that it names works."""
    schema = f'"pocket_plug_{data_set}"'

    async def scenario(backend: Backend) -> None:
        await backend.write([Put("a", 1)])
        await asyncio.to_thread(sql, shared_server.url, f"DROP {drop.format(s=schema)}")
        with pytest.raises(StoreError, match=r"(is|are) gone"):
            await backend.write([Put("a", 2)])

    run(instances(), scenario)
    said = refusal(instances())
    assert f"lacks {named}" in said
    with pytest.raises(StoreError, match=f"lacks {named}"):
        asyncio.run(instances().probe(5))
    sql(shared_server.url, said.split("empty data set: ")[1])

    async def anew(backend: Backend) -> None:
        assert await backend.read("a") is None
        await backend.write([Put("a", 1)])

    run(instances(), anew)


def test_a_data_set_that_does_not_say_its_version(
    instances: Callable[[], Backend], shared_server: Server, data_set: str
) -> None:
    asyncio.run(instances().open())
    sql(shared_server.url, f'DELETE FROM "pocket_plug_{data_set}".about')
    assert "lacks the row of about" in refusal(instances())


def test_a_sequence_behind_the_entries_gives_no_version(
    instances: Callable[[], Backend], shared_server: Server, data_set: str
) -> None:
    """Logical replication copies no sequences, say. No entry gets a lower version than it had, and the way out works."""
    schema = f'"pocket_plug_{data_set}"'

    async def scenario(backend: Backend) -> None:
        for n in range(5):
            version = await backend.write([Put("a", n)])
        await asyncio.to_thread(sql, shared_server.url, f"SELECT setval('{schema}.versions', 1)")
        for operation in (
            lambda: backend.write([Put("b", 1), Put("a", 6)]),
            lambda: backend.write([Put("a", 6)], {"a": version}),
        ):
            with pytest.raises(StoreError, match="its sequence is behind its entries") as caught:
                await operation()
        assert await backend.read_many(["a", "b"]) == {"a": Entry(4, version)}
        await asyncio.to_thread(sql, shared_server.url, str(caught.value).split("run: ")[1].removesuffix(")"))
        assert await backend.write([Put("a", 6)], {"a": version}) > version

    run(instances(), scenario)


def test_rows_that_a_policy_hides_are_no_missing_data(shared_server: Server, data_set: str) -> None:
    """An administrator has enabled row-level security, without a policy for this role: each read would find nothing. The way
    out that the error names works."""
    asyncio.run(PostgreSQL(shared_server.url, store=data_set, durability="process").open())
    schema = f'"pocket_plug_{data_set}"'
    with role(shared_server, "guest") as url:
        sql(
            shared_server.url,
            f'GRANT USAGE ON SCHEMA {schema} TO "guest"; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO "guest"; '
            f'GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO "guest"',
        )

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("a", 1)])
            await asyncio.to_thread(sql, shared_server.url, f"ALTER TABLE {schema}.entries ENABLE ROW LEVEL SECURITY")
            operations: tuple[Callable[[], Awaitable[object]], ...] = (
                lambda: backend.read("a"),
                lambda: backend.read_many(["a"]),
                lambda: backend.write([], {"a": version}),
                lambda: backend.write([Put("a", 2)], {"a": 0}),
                lambda: keys_of(backend),
            )
            for operation in operations:
                with pytest.raises(StoreError, match="row-level security") as caught:
                    await operation()
                assert "ALTER ROLE … BYPASSRLS" in str(caught.value)
            await asyncio.to_thread(sql, shared_server.url, 'ALTER ROLE "guest" BYPASSRLS')
            assert await backend.read("a") == Entry(1, version)

        run(PostgreSQL(url, store=data_set, durability="process"), scenario)


# ---------------------------------------------------------------- unsuitable servers
def test_a_server_that_is_too_old(
    instances: Callable[[], Backend], monkeypatch: pytest.MonkeyPatch, shared_server: Server
) -> None:
    monkeypatch.setattr(schema, "OLDEST_SERVER", 99)
    assert "this needs 99 or newer" in refusal(instances())


def test_a_newer_schema_is_refused(instances: Callable[[], Backend], shared_server: Server, data_set: str) -> None:
    asyncio.run(instances().open())
    sql(shared_server.url, f'UPDATE "pocket_plug_{data_set}".about SET schema_version = 2')
    assert "has schema 2, but this pocket-plug-postgres knows only schema 1; upgrade pocket-plug-postgres" in refusal(
        instances()
    )


def test_durability_is_compared_with_what_the_server_has(shared_server: Server, data_set: str) -> None:
    """Data on a server without fsync doesn't survive a power failure, so "power" is refused, and the error names the setting."""
    said = refusal(PostgreSQL(shared_server.url, store=data_set))
    assert "has fsync = off: an acknowledged write may be lost" in said
    assert "durability=process" in said


@pytest.mark.parametrize(("durability", "expected"), [("power", "on"), ("process", "on"), ("none", "off")])
def test_synchronous_commit_is_as_the_durability_says(
    durability: Durability, expected: str, data_set: str, shared_server: Server
) -> None:
    """Whatever the role's setting: on if the write must survive a crash of the server, off if not."""
    seen = f'"pocket_plug_{data_set}"'
    opposite = {"on": "off", "off": "on"}[expected]
    with role(shared_server, "committer", "SUPERUSER", f"SET synchronous_commit = {opposite}") as url:
        backend = PostgreSQL(url, store=data_set, durability="none")
        asyncio.run(backend.open())
        backend.durability = durability  # the server has no fsync, which `open` would refuse
        sql(
            shared_server.url,
            f"CREATE TABLE {seen}.seen (value text)",
            f"CREATE FUNCTION {seen}.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"INSERT INTO {seen}.seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$",
            f"CREATE TRIGGER see BEFORE INSERT ON {seen}.entries FOR EACH ROW EXECUTE FUNCTION {seen}.see()",
        )

        async def scenario(backend: Backend) -> None:
            await backend.write([Put("a", 1)])

        run(backend, scenario)
        assert sql(shared_server.url, f"SELECT value FROM {seen}.seen") == [(expected,)]


def test_another_isolation_level_is_refused(shared_server: Server, data_set: str) -> None:
    """A write could check versions that are older than its locks."""
    with role(shared_server, "strict", "SUPERUSER", "SET default_transaction_isolation = 'repeatable read'") as url:
        assert "ALTER ROLE … SET default_transaction_isolation = 'read committed'" in refusal(
            PostgreSQL(url, store=data_set, durability="process")
        )


def test_a_difference_of_the_clocks_is_logged(
    instances: Callable[[], Backend], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a warning: entries expire by the programs' clocks. If the store was given a clock, there is no warning."""
    now = time.time
    for ahead, is_systems, warnings in ((0.0, True, 0), (5.0, True, 1), (5.0, False, 0)):
        caplog.clear()
        backend = instances()
        backend.clock = lambda ahead=ahead: now() + ahead
        monkeypatch.setattr(
            "pocket_plug_postgres.schema.time", SimpleNamespace(time=backend.clock if is_systems else now)
        )
        asyncio.run(backend.open())
        differs = r"its clock differs from this machine's by -[3-7]\.\d s"  # a busy machine may be late
        said = [record for record in caplog.records if re.search(differs, record.message)]
        assert len(said) == warnings


def test_an_answer_that_takes_long_is_no_difference_of_the_clocks(instances: Callable[[], Backend]) -> None:
    """On a busy machine it may take seconds: the server has looked at its clock about the middle of them."""
    backend, now = instances(), time.time()
    asked_and_answered = iter((now - 60, now + 60))
    backend.clock = lambda: next(asked_and_answered)
    found = asyncio.run(backend.probe(HANGS))
    assert found is not None
    assert found.skew is not None
    assert abs(found.skew) < 30
