"""Failures of the network and of the server: each raises an error in time that names the server, and programs continue
afterwards.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from pocket_plug_redis import Redis, connections
from pocket_plug_redis.scripts import CHECK, HOURS, LEAVE, RENEW_EVERY, SCAN, TAKE, TRY, WRITE

from pocket_plug import Delete, Entry, Put, Store, StoreError, SyncStore
from pocket_plug.errors import (
    AnswerLostError,
    ConfigError,
    ConflictError,
    CorruptRecordError,
    StoreBusyError,
    StoreClosedError,
    StoreUnreachableError,
    WriteSizeError,
)
from pocket_plug.primitives.waiting import LoopThread, run_on
from pocket_plug.testing.proxy import Proxy, close_server
from pocket_plug.testing.scenarios import increment, keys_of
from pocket_plug.testing.server_contract import in_the_end
from pocket_plug.testing.servers import Server, certificate, free_port, valkey
from pocket_plug.testing.watch_contract import Noted

SHORT = "&timeout=0.5&patience=1.5"
PASSWORD = "hunter2-secret"  # noqa: S105 - of a test's server
Use = Callable[[Redis], Awaitable[object]]


def with_backend(url: str, use: Use) -> None:
    """Run it on an event loop of its own, with the backend opened before and closed after."""

    async def main() -> None:
        backend = Redis.from_url(url)
        await backend.open()
        try:
            await use(backend)
        finally:
            await backend.close()

    asyncio.run(main())


def with_hasty(url: str, use: Use) -> None:
    """The same for a backend whose operations fail soon."""

    async def main() -> None:
        backend = Redis.from_url(url)
        await in_the_end(backend.open)
        try:
            await use(backend)
        finally:
            await backend.close()

    asyncio.run(main())


def refused(url: str, *words: str) -> str:
    """Check that `open` raises StoreError with these words, with the server's name and without the
    password; return its message.
    """
    with pytest.raises(StoreError) as caught:
        with_backend(url, lambda backend: backend.version())
    said = f"{caught.value!r} {caught.value.__cause__!r} {Redis.from_url(url)!r}"
    assert PASSWORD not in said
    for word in (*words, "127.0.0.1:"):
        assert word in str(caught.value), said
    return str(caught.value)


# ---------------------------------------------------------------- what the server is
@pytest.mark.parametrize(
    ("options", "durability", "words"),
    [
        ({"appendonly": "no"}, "power", ("appendonly no", "appendonly yes", "durability=none")),
        ({"appendfsync": "everysec"}, "power", ("appendfsync everysec", "appendfsync always")),
        ({"no-appendfsync-on-rewrite": "yes"}, "power", ("no-appendfsync-on-rewrite yes", "durability=process")),
        ({"appendonly": "no"}, "process", ("appendonly no", "appendonly yes", "durability=none")),
        ({"appendfsync": "everysec"}, "process", ("appendfsync everysec", "appendfsync no")),
        ({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}, "none", ("allkeys-lru", "noeviction")),
    ],
)
def test_a_server_that_would_lose_entries_is_refused(
    options: Mapping[str, str], durability: str, words: tuple[str, ...]
) -> None:
    """The error names the settings, and the lines that correct them. If it suggests another durability, that one works."""
    with valkey(options=options) as server:
        said = refused(f"{server.url}?durability={durability}", *words)
        assert f"durability={durability}" in said or durability == "none"
        for less in re.findall(r"durability=(process|none)", said):
            if less != durability:
                with_backend(f"{server.url}?durability={less}", lambda backend: backend.version())


@pytest.mark.parametrize(
    ("options", "durability"),
    [
        ({}, "power"),
        ({"appendfsync": "no"}, "process"),
        ({}, "process"),
        ({"appendonly": "no", "maxmemory": "100mb", "maxmemory-policy": "volatile-lru"}, "none"),
    ],
)
def test_a_server_that_keeps_the_promise_is_accepted(options: Mapping[str, str], durability: str) -> None:
    """Also a server that evicts keys that have a TTL on the server: our entries have none."""
    with valkey(options=options) as server:
        with_backend(f"{server.url}?durability={durability}", lambda backend: backend.write([Put("a", 1, 4e9)]))


def test_a_replica_is_refused_and_named() -> None:
    """Its reads may be outdated."""
    with valkey() as primary, valkey(options={"replicaof": f"127.0.0.1 {primary.port}"}) as replica:
        refused(replica.url, "replica", f"127.0.0.1:{primary.port}")


def test_a_wrong_password_is_said_at_once() -> None:
    """The right password works; neither stands in any message."""
    with valkey(password="right-one") as server:  # noqa: S106 - of a test
        url = server.url.replace("right-one", PASSWORD)
        refused(url, "password", f"{server.port}")
        refused(server.url.replace(":right-one@", ""), "password")
        with_backend(server.url, lambda backend: backend.write([Put("a", 1)]))


def test_a_user_that_lacks_a_permission_is_refused_before_it_matters() -> None:
    """A script that is refused in the middle would have executed one half."""
    with valkey() as server, SyncStore(server.url):
        rules = "on >right-one ~{pocket:*}* resetchannels &{pocket:*}* +@all -@dangerous +info +config|get"
        for without in ("-publish", "-zadd", "-evalsha -eval", "resetchannels", "-config"):
            _cli(server, "ACL", "SETUSER", "app", "reset", *rules.split(), *without.split())
            url = server.url.replace("//", "//app:right-one@")
            words = () if without == "-config" else ("ACL", "&{pocket:*}*")
            assert "right-one" not in refused(url, *words)
        _cli(server, "ACL", "SETUSER", "app", "reset", *rules.split())
        with_backend(url, lambda backend: backend.write([Put("a", 1)]))


def test_a_refused_user_leaves_nothing_that_keeps_others_out() -> None:
    """`open` tries commands one after the other, in a script that isn't undone; each of them is refused here once."""
    called = {
        *re.findall(r"call\('(\w+)'", "".join(each.text for each in (CHECK, LEAVE, SCAN, TAKE, TRY, WRITE))),
        "BLPOP",
    }
    with valkey() as server:
        url = server.url.replace("//", "//app:right-one@")
        for command in sorted(called):
            rules = "on >right-one ~{pocket:*}* resetchannels &{pocket:*}* +@all -@dangerous +info +config|get"
            _cli(server, "ACL", "SETUSER", "app", "reset", *rules.split(), f"-{command}")
            refused(url, "ACL", command.lower())
            with_backend(server.url, lambda backend: backend.write([Put("a", 1)]))


def test_a_write_that_cannot_be_published_is_not_done() -> None:
    """The user loses its right to the channel while the program runs: the write raises, and has changed nothing."""
    with valkey() as server:

        async def use(backend: Redis) -> None:
            version = await backend.write([Put("a", 1)])
            _cli(server, "ACL", "SETUSER", "default", "resetchannels")
            with pytest.raises(StoreError, match="ACL"):
                await backend.write([Put("a", 2), Put("b", 2)])
            assert await backend.read_many(["a", "b"]) == {"a": Entry(1, version)}
            assert await keys_of(backend) == ["a"]
            assert await backend.version() == version
            _cli(server, "ACL", "SETUSER", "default", "allchannels")
            assert await backend.write([Put("b", 2)]) == version + 1

        with_backend(server.url, use)


def test_a_caller_that_gets_no_connection_gets_the_reason(
    fresh_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others use all of them; the error doesn't blame the server."""
    monkeypatch.setattr(connections, "MOST", 1)

    async def use(backend: Redis) -> None:
        pool, patient = backend._opened().here(), backend.retrying
        await pool.take("test")
        backend.retrying = replace(patient, patience=0.2)
        with pytest.raises(StoreError, match="no free connection of the"):
            await backend.read("a")
        pool.leave("test")
        backend.retrying = patient
        assert await backend.read("a") is None

    with_backend(fresh_url(""), use)


def test_an_unknown_database_is_refused() -> None:
    """With the number that was given."""
    with valkey() as server:
        refused(server.url.replace("/0", "/99"), "database 99", "databases")


def test_certificates_are_checked(tmp_path: Path) -> None:
    """A certificate for another name, or from an authority that isn't trusted, is refused at once; the right one is accepted."""
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    good, bad = certificate(tmp_path / "good"), certificate(tmp_path / "bad", names=("elsewhere.example",))
    with valkey() as server:
        with Proxy(server.port, tls=good) as proxy:
            url = proxy.through(server.url).replace("redis://", f"rediss://:{PASSWORD}@")
            refused(url, "certificate", "ssl_ca_certs")
            url = url.replace(f":{PASSWORD}@", "")
            with_backend(f"{url}?ssl_ca_certs={good.authority}", lambda backend: backend.write([Put("a", 1)]))
            refused(url.replace("rediss", "redis") + "?timeout=0.5&patience=1")
            refused(f"{url}?ssl_ca_certs={tmp_path}/gone.pem", f"ssl_ca_certs is '{tmp_path}/gone.pem'", "no such file")
            refused(f"{url}?ssl_ca_certs={Path(__file__)}", "a file of ssl_ca_certs", "PEM")
        with Proxy(server.port, tls=bad) as proxy:
            url = proxy.through(server.url).replace("redis://", "rediss://")
            refused(f"{url}?ssl_ca_certs={bad.authority}", "certificate", "127.0.0.1")
        refused(server.url.replace("redis://", "rediss://") + "?timeout=0.5&patience=1", "speak TLS", "redis://")


def test_a_key_with_a_pass_phrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    """OpenSSL would ask on the terminal, and the event loop would wait for the answer for ever."""
    from cryptography.hazmat.primitives import serialization

    made, other = certificate(tmp_path), tmp_path / "encrypted.pem"
    key = serialization.load_pem_private_key(made.key.read_bytes(), None)
    how = serialization.BestAvailableEncryption(PASSWORD.encode())
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other.write_bytes(key.private_bytes(*kinds, how))
    url = f"rediss://127.0.0.1:{free_port()}/0?ssl_certfile={made.chain}&ssl_keyfile="
    refused(f"{url}{other}", "ssl_keyfile", "no pass phrase")
    refused(f"{url}{made.chain}", "ssl_keyfile", "no pass phrase")
    with pytest.raises(ConfigError, match=r"has ssl_keyfile.* no ssl_certfile"):
        Redis.from_url(f"rediss://h/0?ssl_keyfile={made.key}")


def test_a_socket_file(tmp_path: Path) -> None:
    """`unix://` as in redis-py; the error names a socket that doesn't exist."""
    place = tmp_path / "socket"
    with valkey(options={"unixsocket": str(place)}):
        with_backend(f"unix://{place}?db=1", lambda backend: backend.write([Put("a", 1)]))
        assert Redis.from_url(f"unix://{place}").address == (str(place), None)
    with pytest.raises(StoreError, match=str(place)):
        with_backend(f"unix://{place}?timeout=0.2&patience=0.2", lambda backend: backend.version())


# ---------------------------------------------------------------- what becomes of it
def test_full_memory_is_said_and_room_can_be_made() -> None:
    """Nothing of the write is stored; entries can be read and removed, and then writes work again."""
    with valkey(options={"maxmemory": "30mb", "maxmemory-policy": "noeviction"}) as server:

        async def use(backend: Redis) -> None:
            large = "x" * 1_000_000
            written = 0
            with pytest.raises(StoreError, match="memory is full"):
                while True:
                    await backend.write([Put(f"k{written}", large), Put(f"l{written}", 0)])
                    written += 1
            assert await keys_of(backend, "l") == sorted(f"l{n}" for n in range(written))
            assert await backend.check() == []
            await backend.write([Delete(f"k{n}") for n in range(written)])
            await backend.write([Put("k", large)])

        with_backend(server.url, use)


def test_a_replica_that_was_the_primary_is_left() -> None:
    """Writes wait until the address leads to a primary again, at most for `patience`."""
    with valkey() as other, valkey() as server:

        async def use(backend: Redis) -> None:
            await in_the_end(lambda: backend.write([Put("a", 1)]))
            _cli(server, "REPLICAOF", "127.0.0.1", str(other.port))
            with pytest.raises(StoreError, match=f"127.0.0.1:{server.port}") as caught:
                await backend.write([Put("a", 2)])
            assert not isinstance(caught.value, AnswerLostError)
            _cli(server, "REPLICAOF", "NO", "ONE")
            await in_the_end(lambda: backend.write([Put("a", 3)]))

        with_hasty(server.url + "?timeout=1&patience=1", use)


@pytest.mark.parametrize("is_idle", [False, True])
def test_a_server_that_comes_back_with_other_settings_gets_no_write(is_idle: bool) -> None:
    """It was restarted with eviction, or without an fsync for each write: a write would be acknowledged and not survive. Once the
    settings are right again, programs continue.
    """
    with valkey() as server:

        async def use(backend: Redis) -> None:
            version = await in_the_end(lambda: backend.write([Put("a", 1)]))
            for setting in ("maxmemory-policy allkeys-lru maxmemory 1gb", "appendfsync everysec"):
                if is_idle:  # the server closes the connection before it is used again
                    _cli(server, "CONFIG", "SET", *setting.split())
                    _cli(server, "CLIENT", "KILL", "TYPE", "normal")
                    while not connections.has_ended(backend._opened().here()._idle[-1]):
                        await asyncio.sleep(0)
                else:
                    server.stop()
                    with pytest.raises(StoreError):
                        await backend.read("a")
                    server.go_on()
                    _cli(server, "CONFIG", "SET", *setting.split())
                said = f"127.0.0.1:{server.port}.*{setting.split()[0]}"
                with pytest.raises(StoreUnreachableError, match=said):
                    await backend.read("a")
                with pytest.raises(StoreUnreachableError, match=said):
                    await backend.write([Put("a", 2)])
                _cli(server, "CONFIG", "SET", "maxmemory", "0")
                _cli(server, "CONFIG", "SET", "appendfsync", "always")
                assert await in_the_end(lambda: backend.read("a")) == Entry(1, version)

        with_hasty(server.url + "?timeout=0.5&patience=1", use)


def test_a_replica_is_not_read_after_a_failover() -> None:
    """Sentinel closes the connections to a server that it makes a replica; the address may still lead there."""
    with valkey() as other, valkey() as server:

        async def use(backend: Redis) -> None:
            await in_the_end(lambda: backend.write([Put("a", 1)]))
            _cli(server, "REPLICAOF", "127.0.0.1", str(other.port))
            _cli(server, "CLIENT", "KILL", "TYPE", "normal")
            with pytest.raises(StoreError, match=f"127.0.0.1:{server.port}.* is a replica of 127.0.0.1:{other.port}"):
                await backend.read("a")
            _cli(server, "REPLICAOF", "NO", "ONE")
            await in_the_end(lambda: backend.read("a"))

        with_hasty(server.url + "?timeout=1&patience=1", use)


def test_nothing_is_sent_on_a_connection_that_the_server_has_closed() -> None:
    """If the server was killed or its `timeout` has closed the connection, no write is sent there, so no outcome is unknown."""
    with valkey() as server:

        async def use(backend: Redis) -> None:
            await asyncio.gather(*(in_the_end(lambda n=n: backend.write([Put(f"k{n}", 1)])) for n in range(5)))
            server.kill()
            while not all(connections.has_ended(each) for each in backend._opened().here()._idle):
                await asyncio.sleep(0)
            with pytest.raises(StoreUnreachableError, match=f"127.0.0.1:{server.port}"):
                await backend.write([Put("a", 2)])

        with_hasty(server.url + "?timeout=1&patience=1", use)


def test_a_server_that_is_down_is_named_in_time_and_programs_go_on() -> None:
    """The server is killed and restarted: the same store reads and writes again, without being reopened."""
    with valkey() as server:

        async def use(backend: Redis) -> None:
            version = await in_the_end(lambda: backend.write([Put("a", 1)]))
            server.kill()
            outcomes = await asyncio.gather(
                backend.read("a"), backend.write([Put("b", 1)]), keys_of(backend), return_exceptions=True
            )
            for outcome in outcomes:
                assert isinstance(outcome, StoreError)
                assert f"127.0.0.1:{server.port}" in str(outcome)
            server.restart()
            assert await in_the_end(lambda: backend.read("a")) == Entry(1, version)
            assert await in_the_end(lambda: backend.write([Put("b", 2)])) > version

        with_hasty(f"{server.url}?timeout=1&patience=1", use)
        server.kill()
        refused(f"{server.url}?timeout=0.3&patience=0.3", f"{server.port}")


def test_a_restart_within_the_patience_is_not_noticed() -> None:
    """Writes from several tasks continue over kills, and each is done once."""
    with valkey() as server:

        async def use(backend: Redis) -> None:
            writing = asyncio.gather(*(increment(backend, f"c{n}", 60) for n in range(4)))
            for _ in range(3):
                await asyncio.sleep(0.05)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.restart)
            await writing
            assert {(await backend.read_many([f"c{n}" for n in range(4)]))[f"c{n}"].value for n in range(4)} == {60}

        with_backend(server.url, use)


def test_a_stalled_server_is_left_in_time() -> None:
    """Also while large values are sent. If a write's outcome is unknown, the error says so; the write is stored, or not."""
    with valkey() as server:

        async def use(backend: Redis) -> None:
            await in_the_end(lambda: backend.write([Put("a", 1)]))
            server.stop()
            try:
                async with asyncio.timeout(60):
                    with pytest.raises(AnswerLostError):
                        await backend.write([Put("large", "x" * 20_000_000)])
                    with pytest.raises(StoreError):
                        await backend.read("a")
            finally:
                server.go_on()
            await in_the_end(lambda: backend.write([Put("a", 2)]))
            assert (await in_the_end(lambda: backend.read("large")) or Entry("x", 1)).value[0] == "x"

        with_hasty(server.url + "?" + SHORT[1:], use)


def test_a_turn_keeps_others_off_its_keys_only(fresh_url: Callable[[str], str], valkey_server: Server) -> None:
    """A caller that waits too long gets an error; the turn ends with the write, or by itself after a second."""
    url = fresh_url("")
    tag = "{pocket:" + url.rpartition("=")[2] + "}"

    async def use(backend: Redis) -> None:
        import redis

        other = Redis.from_url(fresh_url("&patience=1"))
        await in_the_end(other.open)
        async with backend.turn(("n", "m")):
            with redis.Redis.from_url(
                valkey_server.url
            ) as raw:  # for as long as this test takes, however busy the machine
                raw.hset(tag, "turn", (2**60).to_bytes(8, "big"))
                assert raw.persist(f"{tag}/turn/n") + raw.persist(f"{tag}/turn/m") == 2
            await in_the_end(lambda: other.write([Put("elsewhere", 1)]))
            for name in ("n", "m"):
                with pytest.raises(StoreBusyError, match="other callers locked the key"):
                    await in_the_end(lambda name=name: other.write([Put("elsewhere", 2), Put(name, 2)]))
                with pytest.raises(StoreBusyError, match="other callers locked the key"):
                    await in_the_end(lambda name=name: other.turn((name,)).__aenter__())
            await backend.write([Put("n", 1), Put("m", 1)])
            await in_the_end(lambda: other.write([Put("n", 2), Put("m", 2)]))
        async with other.turn(("n",)):
            pass
        await backend.turn(("n",)).__aenter__()  # left by one that stalls
        late = Redis.from_url(fresh_url(""))
        await late.open()
        await late.write([Put("n", 3)])
        assert {key: entry.value for key, entry in (await late.read_many(["elsewhere", "n"])).items()} == {
            "elsewhere": 1,
            "n": 3,
        }
        await late.close()
        await other.close()

    with_backend(fresh_url(""), use)


def test_a_write_without_a_turn_wakes_no_waiter(fresh_url: Callable[[str], str], valkey_server: Server) -> None:
    """The next caller of the line is called already. A second one would find the turn taken, and go to the line's end."""
    url = fresh_url("")
    tag = "{pocket:" + url.rpartition("=")[2] + "}"

    async def use(backend: Redis) -> None:
        import redis

        with redis.Redis.from_url(valkey_server.url) as raw:
            raw.hset(tag, "turn", (2**60).to_bytes(8, "big"))
            raw.set(f"{tag}/turn/n", "")  # a turn that has ended, as `end_turn` leaves it, but it doesn't expire
            raw.rpush(f"{tag}/line/n", "")
            await backend.write([Put("n", 1)])
            assert raw.llen(f"{tag}/line/n") == 1
            await backend.turn(("n",)).__aenter__()
            await backend.write([Put("n", 2)])  # ends the turn
            assert raw.llen(f"{tag}/line/n") == 1

    with_backend(url, use)


def test_a_write_that_can_not_be_asked_about_again_is_unknown() -> None:
    """Its answer was lost, and then the server refuses the user: it may have been stored, so it must not be called refused."""
    with valkey() as server, Proxy(server.port) as proxy:

        async def use(backend: Redis) -> None:
            async def revoke(_: float) -> None:
                await asyncio.to_thread(_cli, server, "ACL", "SETUSER", "default", "-eval", "-evalsha")

            await backend.write([Put("a", 1)])  # from now on the server knows the script
            backend.retrying = replace(backend.retrying, pause=revoke)
            proxy.swallow(b"lost")
            with pytest.raises(AnswerLostError, match=r"could not be asked again: .*ACL"):
                await backend.write([Put("lost", 1)])
            assert await backend.read("lost") is not None
            with pytest.raises(StoreError, match="ACL") as caught:
                await backend.write([Put("never", 1)])
            assert not isinstance(caught.value, AnswerLostError)

        with_backend(proxy.through(server.url), use)


def test_a_write_whose_copies_are_refused_for_now_is_unknown() -> None:
    """Its answer was lost, and then a script keeps the server busy for longer than the patience: the refusals say nothing of
    the copy whose answer was lost. If none was lost, nothing was stored.
    """
    with valkey(options={"busy-reply-threshold": "1"}) as server, Proxy(server.port) as proxy:

        async def use(backend: Redis) -> None:
            scripts: list[asyncio.Task[str]] = []

            async def keep_busy(_: float) -> None:
                if not scripts:
                    script = asyncio.to_thread(_cli, server, "EVAL", "while true do end", "0")
                    scripts.append(asyncio.create_task(script))
                while not await asyncio.to_thread(_is_busy, server):
                    pass

            await backend.write([Put("a", 1)])  # from now on the server knows the script
            backend.retrying = replace(backend.retrying, patience=0.5, pause=keep_busy)
            proxy.swallow(b"lost")
            with pytest.raises(AnswerLostError, match="BUSY"):
                await backend.write([Put("lost", 1)])
            with pytest.raises(StoreUnreachableError, match="BUSY"):
                await backend.write([Put("never", 1)])
            await asyncio.to_thread(_cli, server, "SCRIPT", "KILL")
            await asyncio.wait(scripts)
            assert "killed" in str(scripts[0].exception())
            assert await backend.read("lost") is not None
            assert await backend.read("never") is None

        with_backend(proxy.through(server.url), use)


def test_a_copy_that_comes_after_later_writes_does_nothing(
    fresh_url: Callable[[str], str], valkey_server: Server
) -> None:
    """Its slot was used again meanwhile: otherwise a late write without expectations would undo a later write."""
    with Proxy(valkey_server.port) as proxy:

        async def use(backend: Redis) -> None:
            proxy.delay(b"late:a")
            first = await backend.write([Put("late:a", 1)])
            second = await backend.write([Put("late:a", 2)])
            proxy.release()
            assert await backend.read("late:a") == Entry(2, second)
            assert second == first + 1 == await backend.version()

        with_backend(proxy.through(fresh_url("&timeout=0.3")), use)


def test_more_writes_than_connections_meet_a_close(fresh_url: Callable[[str], str]) -> None:
    """Each write is stored and acknowledged, or refused and not stored; writes that wait for a connection too."""

    async def main() -> None:
        backend = Redis.from_url(fresh_url(""))
        await backend.open()
        writing = [asyncio.ensure_future(backend.write([Put(f"k{n}", n)])) for n in range(100)]
        while await backend.read("k0") is None:
            pass
        await backend.close()
        outcomes = await asyncio.gather(*writing, return_exceptions=True)
        landed = sorted(f"k{n}" for n, outcome in enumerate(outcomes) if isinstance(outcome, int))
        refused = [outcome for outcome in outcomes if not isinstance(outcome, int)]
        assert {type(outcome) for outcome in refused} <= {StoreClosedError}
        after = Redis.from_url(fresh_url(""))
        await after.open()
        assert await keys_of(after) == landed
        await after.close()

    asyncio.run(main())


def test_slots_of_cancelled_writes_are_forgotten(
    fresh_url: Callable[[str], str], valkey_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled write's slot is never used again. This program forgets it within an hour, and the server after a day."""
    import redis

    url, hours = fresh_url(""), 0
    tag = "{pocket:" + url.rpartition("=")[2] + "}"
    monkeypatch.setattr("pocket_plug_redis.backend.monotonic", lambda: RENEW_EVERY * hours)

    async def use(backend: Redis) -> None:
        nonlocal hours
        for n in range(10):
            writing = asyncio.ensure_future(backend.write([Put("a", n)]))
            await asyncio.sleep(0)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
        assert len(backend._renewed) == 10
        hours += 1
        await backend.write([Put("a", -1)])
        assert len(backend._renewed) == 1
        with redis.Redis.from_url(valkey_server.url) as raw:
            assert raw.zcard(f"{tag}/slots") == raw.hlen(tag) - 1 == 11
            old = int(time.time() / 3600) - HOURS
            raw.zadd(f"{tag}/slots", dict.fromkeys(raw.zrange(f"{tag}/slots", 0, -1), old))
            hours += 1
            version = await backend.write([Put("a", -2)])
            assert raw.zcard(f"{tag}/slots") == raw.hlen(tag) - 1 == 1
        assert await backend.read("a") == Entry(-2, version)

    with_backend(url, use)


def test_a_write_over_the_limit_is_refused_whole(fresh_url: Callable[[str], str]) -> None:
    """The error names the size and the limit; a write that has exactly the limit is done."""

    async def use(backend: Redis) -> None:
        assert backend.max_changes is not None
        many = [Put(f"k{n}", n) for n in range(backend.max_changes)]
        with pytest.raises(WriteSizeError, match=r"10,001 .* 10,000"):
            await backend.write(many, {"k0": 0})
        assert await keys_of(backend) == []
        await backend.write(many)
        assert len(await keys_of(backend)) == backend.max_changes

    with_backend(fresh_url(""), use)


def test_a_write_of_too_many_bytes_is_refused_whole(
    fresh_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would close the connection, again and again."""
    monkeypatch.setattr("pocket_plug_redis.backend.MOST_BYTES", 100_000)

    async def use(backend: Redis) -> None:
        with pytest.raises(WriteSizeError, match=r"bytes; 100,000 are allowed"):
            await backend.write([Put(f"k{n}", "x" * 6_000) for n in range(20)])
        await backend.write([Put(f"k{n}", "x" * 4_000) for n in range(20)])

    with_backend(fresh_url(""), use)


def test_what_is_damaged_is_an_error_and_check_finds_the_rest(
    fresh_url: Callable[[str], str], valkey_server: Server
) -> None:
    """A flipped bit anywhere in an entry never gives another value or a missing entry; `check` finds what the index lacks."""
    url = fresh_url("")
    tag = "{pocket:" + url.rpartition("=")[2] + "}"

    async def use(backend: Redis) -> None:
        await backend.write([Put("a", {"n": 1}, 4e9), Put("b", 2), Put("c", 3)])
        import redis

        with redis.Redis.from_url(valkey_server.url) as raw:
            whole: bytes = raw.get(f"{tag}:a")
            for bit in range(8 * len(whole)):
                damaged = bytearray(whole)
                damaged[bit // 8] ^= 1 << bit % 8
                raw.set(f"{tag}:a", bytes(damaged))
                with pytest.raises(ValueError, match="key 'a'"):
                    await backend.read("a")
            raw.set(f"{tag}:a", whole)
            assert await backend.check() == []
            raw.zrem(f"{tag}/names", "b")
            raw.delete(f"{tag}:c")
            raw.zadd(f"{tag}/ends", {"a": 5e9})
            raw.hset(tag, "", 0)
            faults = await backend.check()
        for words in ("'b' is missing", "'c' is in the index", "'a' has another deadline", "'a' has a version above"):
            assert any(words in fault for fault in faults), faults

    with_backend(url, use)


def test_a_name_that_is_not_utf_8_is_an_error(fresh_url: Callable[[str], str], valkey_server: Server) -> None:
    """pocket_plug never writes one. A scan neither skips it, nor raises an error that isn't pocket_plug's."""
    url = fresh_url("")
    index = "{pocket:" + url.rpartition("=")[2] + "}/names"

    async def use(backend: Redis) -> None:
        await backend.write([Put("a", 1)])
        import redis

        with redis.Redis.from_url(valkey_server.url) as raw:
            raw.zadd(index, {b"k\xc3(": 0})
        for reverse in (False, True):
            with pytest.raises(CorruptRecordError, match=r"store=?.*b'k\\xc3\('"):
                [key async for key in backend.scan(reverse=reverse)]
        assert [key async for key in backend.scan("a")] == ["a"]

    with_backend(url, use)


@pytest.mark.parametrize("name", ["names", "ends", "slots"])
def test_a_write_that_meets_another_program_s_key_is_not_done(
    fresh_url: Callable[[str], str], valkey_server: Server, name: str
) -> None:
    """A script isn't undone where it fails, so it fails before its first change. Otherwise an entry would have a version that
    the next write gets too."""
    url = fresh_url("")
    foreign = "{pocket:" + url.rpartition("=")[2] + "}/" + name

    async def use(backend: Redis) -> None:
        told = Noted()
        version = await backend.write([Put("a", 1, 4e9)])
        await backend.watch(told)
        await asyncio.to_thread(told.wait_for_back)
        _cli(valkey_server, "RENAME", foreign, f"{foreign}-kept")
        _cli(valkey_server, "SET", foreign, "another program's")
        backend._renewed.clear()
        with pytest.raises(StoreError, match="another program uses pocket_plug's keys"):
            await backend.write([Put("a", 2, 4e9), Put("b", 2)], {"a": version})
        assert await backend.read_many(["a", "b"]) == {"a": Entry(1, version, 4e9)}
        assert await backend.version() == version
        _cli(valkey_server, "RENAME", f"{foreign}-kept", foreign)
        assert await backend.write([Put("a", 2, 4e9)], {"a": version}) == version + 1
        await asyncio.to_thread(told.wait_for_version, {"a": version + 1})
        assert [versions for _, _, versions in told.words if versions] == [{"a": version + 1}]
        assert await backend.check() == []

    with_backend(url, use)


@pytest.mark.parametrize("found", ["junk", "", "-5", "1.5", "nan", "1e3", str(2**53), str(10**20)])
def test_a_damaged_counter_is_an_error_of_whoever_needs_it(
    fresh_url: Callable[[str], str], valkey_server: Server, found: str
) -> None:
    """No write gets a version from it. Entries can be read and scanned, so also exported."""
    url = fresh_url("")
    tag = "{pocket:" + url.rpartition("=")[2] + "}"

    async def use(backend: Redis) -> None:
        version = await backend.write([Put("a", 1)])
        _cli(valkey_server, "HSET", tag, "", found)
        operations: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: backend.write([Put("a", 2)]),
            lambda: backend.write([], {"a": version}),
            backend.version,
            backend.check,
        )
        for operation in operations:
            with pytest.raises(StoreError, match=r"the counter of versions is damaged.*store=") as caught:
                await operation()
            assert f"'{found}'" in str(caught.value)
        assert await backend.read("a") == Entry(1, version)
        assert await keys_of(backend) == ["a"]

    with_backend(url, use)


def test_a_damaged_number_of_the_layout_is_said(fresh_url: Callable[[str], str], valkey_server: Server) -> None:
    """As what was found there, at most 40 bytes of it: it may be another program's."""
    url = fresh_url("")
    place = "{pocket:" + url.rpartition("=")[2] + "}/layout"
    for found in ("2", "junk", "", "x" * 41):
        _cli(valkey_server, "SET", place, found)
        refused(url, f"has layout '{found[:40]}'", "knows only layout 1")


def test_what_is_left_of_a_cut_off_entry_is_not_taken_for_nothing(
    fresh_url: Callable[[str], str], valkey_server: Server
) -> None:
    """Whoever expects that there is no entry doesn't write over it unseen."""
    url = fresh_url("")
    place = "{pocket:" + url.rpartition("=")[2] + "}:a"

    async def use(backend: Redis) -> None:
        await backend.write([Put("a", 1)])
        for length in range(1, 16):
            _cli(valkey_server, "SET", place, "x" * length)
            for expected in (0, -1):
                with pytest.raises(ConflictError):
                    await backend.write([Put("a", 2)], {"a": expected})
            with pytest.raises(CorruptRecordError, match="key 'a'"):
                await backend.read("a")
        await backend.write([Put("a", 2)])
        assert (await backend.read_many(["a"]))["a"].value == 2

    with_backend(url, use)


def test_what_has_expired_is_removed_later(fresh_url: Callable[[str], str], valkey_server: Server) -> None:
    """A minute after its deadline, by the writer's clock, so that a program whose clock is behind still finds it."""
    from pocket_plug.testing.clock import FakeClock

    url, clock = fresh_url(""), FakeClock()
    tag = "{pocket:" + url.rpartition("=")[2] + "}"

    async def use(backend: Redis) -> None:
        import redis

        backend.clock = clock
        await backend.write([Put(f"k{n}", n, clock() + 1) for n in range(100)])
        await backend.write([Put("lifted", 1, clock() + 1), Put("n", 0)])
        await backend.write([Put("lifted", 2)])
        with redis.Redis.from_url(valkey_server.url) as raw:
            clock.advance(30)
            for n in range(40):
                await backend.write([Put("n", n)])
            assert await keys_of(backend) == ["lifted", "n"]
            assert raw.zcard(f"{tag}/names") == 102
            clock.advance(32)
            for n in range(80):
                await backend.write([Put("n", n)])
            assert raw.zcard(f"{tag}/names") == 2
            assert raw.zcard(f"{tag}/ends") == 0
            assert {*raw.keys(f"{tag}:*")} == {f"{tag}:n".encode(), f"{tag}:lifted".encode()}

    with_backend(url, use)


def test_stores_of_one_server_are_apart(valkey_server: Server) -> None:
    """Also if one name starts with the other."""
    with (
        SyncStore(f"{valkey_server.url}?store=apart") as one,
        SyncStore(f"{valkey_server.url}?store=apart2") as other,
    ):
        one.set("a", 1)
        other.set("b", 2)
        assert (list(one.keys()), list(other.keys())) == (["a"], ["b"])


def _cli(server: Server, *command: str) -> str:
    """What the server itself answers."""
    import redis

    with redis.Redis.from_url(server.url, decode_responses=True) as raw:
        return str(raw.execute_command(*command))


def _is_busy(server: Server) -> bool:
    """Does a script keep it from answering others?"""
    import redis

    try:
        return not _cli(server, "PING")
    except redis.exceptions.RedisError as error:
        return "BUSY" in f"{error}" or "busy" in f"{error}"


# ---------------------------------------------------------------- URLs
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h/0?durabilty=none", "durability"),
        ("redis://h/0?durability=proces", "process"),
        ("redis://h/one", "database is 'one'"),
        ("redis://h/1?db=2", "twice"),
        ("redis://h:port/0", "is not a URL of a server"),
        ("redis://h/0?store=a:b", "store"),
        ("redis://h/0?timeout=soon", "timeout"),
        ("redis://h/0?ssl_ca_certs=/x", "rediss"),
        ("unix://?db=0", "no socket"),
    ],
)
def test_a_bad_url_says_what_is_wrong(url: str, words: str) -> None:
    """Before any connection is made."""
    with pytest.raises(ConfigError, match=words):
        Redis.from_url(url)


def test_a_store_by_its_url(fresh_url: Callable[[str], str]) -> None:
    """The plugin is found by its entry point, with and without `await`."""
    with SyncStore(fresh_url("")) as store:
        store.set("a", {"n": 1})
        assert store.get("a") == {"n": 1}

    async def main() -> None:
        async with Store(fresh_url("")) as store:
            assert await store.get("a") == {"n": 1}

    asyncio.run(main())


def test_the_driver_is_loaded_when_a_url_asks_for_it(tmp_path: Path) -> None:
    """If the plugin is only installed, it costs a program nothing but the import of its hook."""
    code = (
        "import sys, pocket_plug; assert 'pocket_plug_redis' not in sys.modules; "
        f"pocket_plug.SyncStore('sqlite:///{tmp_path}/state.db').stack; assert 'pocket_plug_redis' in sys.modules; "
        "assert 'redis' not in sys.modules; import pocket_plug_redis; pocket_plug_redis.Redis; assert 'redis' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- what a server may say
@contextmanager
def saying(answers: Mapping[bytes, bytes], otherwise: bytes) -> Iterator[int]:
    """A server that answers a request by a word that is in it; returns its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while request := await reader.read(65536):
                for command in re.split(rb"^\*\d+\r\n", request, flags=re.MULTILINE)[1:]:
                    writer.write(next((said for word, said in answers.items() if word in command), otherwise))

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # whatever ends it, if it is the loop's end before its first step: an open connection would fail a later test
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)  # asyncio itself doesn't keep it
        task.add_done_callback(lambda _: writer.transport.abort())

    async def begin() -> int:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    servers: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()
    thread = LoopThread("a server that says things")
    thread.start()
    try:
        yield run_on(thread.loop, begin())
    finally:
        run_on(thread.loop, close_server(servers[0]))
        thread.close()


@pytest.mark.parametrize(
    ("said", "words", "is_tried_again"),
    [
        ("LOADING Redis is loading the dataset in memory", "loading", True),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "busy", True),
        ("CLUSTERDOWN The cluster is down", "CLUSTERDOWN|cluster is down", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "down", True),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "TRYAGAIN|rehashing", True),
        ("READONLY You can't write against a read only replica.", "read only", True),
        ("NOREPLICAS Not enough good replicas to write.", "NOREPLICAS", True),
        ("UNBLOCKED force unblock from blocking operation, instance state changed", "UNBLOCKED", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", "memory is full", False),
        (
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "disk",
            False,
        ),
        ("MISCONF Errors writing to the AOF file: No space left on device", "disk", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "another program", False),
        ("ERR unknown command 'EVALSHA'", "lacks a command", False),
        ("ERR Protocol error: invalid bulk length", "proto-max-bulk-len", False),
        ("NOAUTH Authentication required.", "password", False),
        ("NOPERM User app has no permissions to run the 'info' command", "ACL", False),
        ("ERR something new", "something new", False),
    ],
)
def test_errors_of_the_server_are_translated(said: str, words: str, is_tried_again: bool) -> None:
    """The error names the server and the way out. A transient error is retried; any other is raised at once."""
    with saying({}, f"-{said}\r\n".encode()) as port:
        with pytest.raises(StoreError, match=words) as caught:
            patience = 1 if is_tried_again else 30  # a busy machine must not be slower than that
            with_backend(f"redis://127.0.0.1:{port}/0?patience={patience}", lambda backend: backend.version())
        assert f"127.0.0.1:{port}, database 0" in str(caught.value)
        assert ("attempts" in str(caught.value)) == is_tried_again


@pytest.mark.parametrize(("version", "is_taken"), [("5.0.14", False), ("6.0.0", True), ("7.2.4", True), ("", False)])
def test_a_version_that_is_too_old_is_refused(version: str, is_taken: bool) -> None:
    """The error names the version that was found."""
    about = f"redis_version:{version}\r\nrole:master\r\n"
    answers = {b"INFO": f"${len(about)}\r\n{about}\r\n".encode(), b"TIME": b"*2\r\n$1\r\n1\r\n$1\r\n1\r\n"}
    answers |= {b"GET": b"$1\r\n1\r\n"}
    with saying(answers, b"+OK\r\n") as port:
        url = f"redis://127.0.0.1:{port}/0?durability=none"
        if is_taken:
            with_backend(url, lambda backend: asyncio.sleep(0))
        else:
            refused(url, "6.0", version)


def test_a_server_that_is_not_redis_is_reported() -> None:
    """Another program listens at the port."""
    with saying({}, b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        refused(f"redis://127.0.0.1:{port}/0?patience=0.3", str(port))


def test_a_disk_that_can_not_be_written_is_said_and_programs_go_on() -> None:
    """Its snapshots fail, so it accepts no writes; reads work. Once it can save again, writes work too."""
    with valkey(options={"appendonly": "no", "save": "3600 1", "enable-protected-configs": "yes"}) as server:
        place = server.folder / "gone"

        async def use(backend: Redis) -> None:
            version = await backend.write([Put("a", 1)])
            place.mkdir()
            _cli(server, "CONFIG", "SET", "dir", str(place))
            place.rmdir()
            _save(server)
            with pytest.raises(StoreError, match=f"127.0.0.1:{server.port}.*disk"):
                await backend.write([Put("a", 2), Put("b", 2)])
            assert await backend.read_many(["a", "b"]) == {"a": Entry(1, version)}
            _cli(server, "CONFIG", "SET", "dir", str(server.folder))
            _save(server)
            await backend.write([Put("a", 3)])

        with_backend(f"{server.url}?durability=none", use)


def _save(server: Server) -> None:
    """Make a snapshot, and wait for its end."""
    import redis

    with redis.Redis.from_url(server.url) as raw:
        raw.bgsave()
        while raw.info("persistence")["rdb_bgsave_in_progress"]:
            time.sleep(0.005)


# ---------------------------------------------------------------- a cluster
@contextmanager
def cluster() -> Generator[tuple[Server, Server]]:
    """A cluster of two nodes, each with half of the slots."""
    # of their own, for the usual port, 10,000 above the other, may be some client's
    first, second = ({"cluster-enabled": "yes", "cluster-port": str(free_port())} for _ in range(2))
    with valkey(options=first) as one, valkey(options=second) as two:
        _cli(one, "CLUSTER", "ADDSLOTSRANGE", "0", "8191")
        _cli(two, "CLUSTER", "ADDSLOTSRANGE", "8192", "16383")
        _cli(one, "CLUSTER", "MEET", "127.0.0.1", str(two.port), second["cluster-port"])
        for server in (one, two):
            while "cluster_state:ok" not in _cli(server, "CLUSTER", "INFO"):
                time.sleep(0.01)
        yield one, two


def test_a_slot_that_moves_to_another_node_takes_its_data_set_along() -> None:
    """While its keys are moved, reads and writes wait or are done on the right node; each write is done once."""
    import redis

    with cluster() as (one, two):

        def keys_here(here: Server) -> list[str]:
            with redis.Redis.from_url(here.url, decode_responses=True) as raw:
                return list(raw.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10_000))

        def move(here: Server, there: Server, keys: list[str]) -> None:
            if keys:
                _cli(here, "MIGRATE", "127.0.0.1", str(there.port), "", "0", "5000", "KEYS", *keys)

        async def use(backend: Redis) -> None:
            await backend.write([Put(f"k{n}", n) for n in range(300)])
            here, there = (one, two) if keys_here(one) else (two, one)
            assert len(keys_here(here)) > 300
            ids = [_cli(server, "CLUSTER", "MYID") for server in (here, there)]
            _cli(there, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            _cli(here, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            move(here, there, keys_here(here)[::2])
            working = asyncio.gather(
                *(increment(backend, "n", 5) for _ in range(4)), backend.read("k7"), keys_of(backend)
            )
            # half of it is there, half is here: the server refers or refuses
            await asyncio.wait({working}, timeout=0.2)
            await asyncio.to_thread(lambda: move(here, there, keys_here(here)))
            for server in (there, here):
                await asyncio.to_thread(_cli, server, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            await working
            entry = await backend.read("n")
            assert entry is not None
            assert entry.value == 20
            assert len(await keys_of(backend)) == 301
            assert await backend.check() == []

        slot = _cli(one, "CLUSTER", "KEYSLOT", "{pocket:moving}")
        with_backend(f"{one.url}?store=moving", use)


def test_a_cluster_is_followed_to_where_a_data_set_lies() -> None:
    """With the address of any node: entries, turns and scans work, on the node that has the slot."""
    with cluster() as (one, two):

        async def use(backend: Redis) -> None:
            await increment(backend, "n", 3)
            await backend.write([Put(f"k{n}", n) for n in range(300)])
            async with backend.turn(("n",)):
                await increment(backend, "n", 1)
            entry = await backend.read("n")
            assert entry is not None
            assert entry.value == 4
            assert len(await keys_of(backend)) == 301
            assert await backend.check() == []

        for name in ("a", "b", "c", "d"):
            for place, server in enumerate((one, two)):
                with_backend(f"{server.url}?store={name}{place}", use)
        assert all(int(_cli(server, "DBSIZE")) > 300 for server in (one, two))


def test_a_node_of_a_cluster_that_is_silent_is_left_for_the_one_that_took_over() -> None:
    """A redirection is followed as long as it leads somewhere; then the address of the URL is asked again."""
    with cluster() as (one, two):
        name = next(name for name in "abcdefgh" if int(_cli(one, "CLUSTER", "KEYSLOT", f"{{pocket:{name}}}")) > 8191)

        async def use(backend: Redis) -> None:
            await backend.write([Put("a", 1)])
            assert backend._at == ("127.0.0.1", two.port)
            slot, own = _cli(one, "CLUSTER", "KEYSLOT", f"{{pocket:{name}}}"), _cli(one, "CLUSTER", "MYID")
            two.stop()
            try:
                _cli(one, "CLUSTER", "SETSLOT", slot, "NODE", own)
                await asyncio.gather(*(backend.write([Put(f"k{n}", n)]) for n in range(8)))
            finally:
                two.go_on()
            assert backend._at is None

        with_backend(f"{one.url}?store={name}&timeout=2&patience=3.9", use)


def test_a_node_of_a_cluster_is_found_again_without_the_one_that_the_url_names() -> None:
    """The URL's node is gone, and the data set's node is silent for a while: programs that are running continue."""
    with cluster() as (one, two):
        name = next(name for name in "abcdefgh" if int(_cli(one, "CLUSTER", "KEYSLOT", f"{{pocket:{name}}}")) > 8191)

        async def use(backend: Redis) -> None:
            async def go_on(_: float) -> None:
                two.go_on()

            version = await backend.write([Put("a", 1)])
            one.kill()
            two.stop()
            backend.retrying = replace(backend.retrying, pause=go_on)
            assert await backend.read("a") == Entry(1, version)
            assert await backend.write([Put("a", 2)]) > version

        with_backend(f"{one.url}?store={name}&timeout=1&patience=4", use)


@pytest.mark.parametrize("readers", [2, 3, 4])
def test_a_silent_node_is_left_by_all_that_wait_for_it(readers: int) -> None:
    """Operations that fail at the same time ask the other node next, whether their number is even or odd."""
    with cluster() as (one, two):
        name = next(name for name in "abcdefgh" if int(_cli(one, "CLUSTER", "KEYSLOT", f"{{pocket:{name}}}")) > 8191)

        async def use(backend: Redis) -> None:
            await backend.write([Put("a", 1)])
            await asyncio.gather(*(backend.read("a") for _ in range(readers)))
            slot, own = _cli(one, "CLUSTER", "KEYSLOT", f"{{pocket:{name}}}"), _cli(one, "CLUSTER", "MYID")
            two.stop()
            try:
                _cli(one, "CLUSTER", "SETSLOT", slot, "NODE", own)
                assert await asyncio.gather(*(backend.read("a") for _ in range(readers))) == [None] * readers
            finally:
                two.go_on()
            assert backend._at is None

        with_backend(f"{one.url}?store={name}&timeout=1&patience=4", use)
