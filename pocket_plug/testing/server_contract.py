"""The promises of a backend with a server, as tests: inherit `ServerBackendContract`.

Besides the tests of `shared_contract`, answers are lost, and the server is stopped, killed and restarted. Timeouts of a few
tenths of a second are given in the URL; a test that hangs fails after `HANGS` seconds.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import pytest

from pocket_plug.errors import (
    AnswerLostError,
    ConfigError,
    ConflictError,
    StoreClosedError,
    StoreError,
    StoreUnreachableError,
    WriteSizeError,
)
from pocket_plug.primitives.redaction import public_url
from pocket_plug.store.backend import Backend, Delete, Entry, Put
from pocket_plug.store.resolving import resolve_backend
from pocket_plug.store.sync import SyncStore
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.proxy import Proxy
from pocket_plug.testing.scenarios import HANGS, awaited_by, increment, keys_of
from pocket_plug.testing.servers import Server, free_port
from pocket_plug.testing.several import Use, in_threads, on_loops_of_threads, opened
from pocket_plug.testing.shared_contract import SharedBackendContract

T = TypeVar("T")
HASTE = {"timeout": 0.3, "patience": 0.9}
"""URL options with which operations fail soon."""
HARDY = {"timeout": 0.5, "patience": 20}
"""URL options with which operations wait until the server is back."""
SECRET = "hunter2-of-the-contract"  # noqa: S105 - no message may contain it


async def in_the_end(operation: Callable[[], Awaitable[T]]) -> T:
    """The result of an operation on a hasty backend whose server answers: a busy machine may be late, so it is repeated."""
    async with asyncio.timeout(HANGS):
        while True:
            with suppress(StoreUnreachableError, AnswerLostError):
                return await operation()


def with_options(url: str, **options: object) -> str:
    """A URL with more options, such as `timeout=0.2, patience=1` of backends over a network.

    >>> with_options("redis://cache:6379/0?store=a", timeout=0.2)
    'redis://cache:6379/0?store=a&timeout=0.2'
    """
    given = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{given}"


class ServerBackendContract(SharedBackendContract):
    """Tests a backend whose data are on a server. Inherit it, and override the fixtures `server`, `url` and `guarded_url`:

        class TestMine(ServerBackendContract):
            @pytest.fixture
            def server(self, valkey_server):    # of `pocket_plug.testing.fixtures`, for the whole session
                return valkey_server

            @pytest.fixture
            def url(self, server):
                return f"{server.url}?store=t{next(numbers)}"

    The tests stop, kill and restart the server, and restore it after each test. Its URL must have `127.0.0.1` and its port,
    and take the options `timeout` and `patience`; the protocol must send the bytes of keys unchanged or in hex.
    """

    @pytest.fixture
    def server(self) -> Server:
        """The server; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture server")

    @pytest.fixture
    def guarded_url(self) -> str:
        """The URL of a server that needs a password, with the wrong password `SECRET`; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture guarded_url")

    @pytest.fixture
    def proxy(self, server: Server) -> Iterator[Proxy]:
        """A proxy before the server, which loses answers."""
        with Proxy(server.port) as proxy:
            yield proxy

    @pytest.fixture
    def through(self, proxy: Proxy, url: str, clock: FakeClock) -> Callable[[Use], Any]:
        """Runs a scenario with an open backend that is connected through the proxy."""

        def run(use: Use, **options: float) -> Any:
            backend = resolve_backend(proxy.through(with_options(url, **(options or HARDY))))
            backend.clock = clock
            return asyncio.run(opened(backend, use))

        return run

    @pytest.fixture
    def hasty(self, url: str, clock: FakeClock) -> Callable[[Use], Any]:
        """Runs a scenario with an open backend whose operations fail soon."""

        async def main(use: Use) -> Any:
            backend = resolve_backend(with_options(url, **HASTE))
            backend.clock = clock
            await in_the_end(backend.open)
            try:
                return await use(backend)
            finally:
                await backend.close()

        return lambda use: asyncio.run(main(use))

    # ------------------------------------------------------------ lost answers
    @pytest.mark.parametrize("times", [1, 2])
    @pytest.mark.parametrize("loses", ["answer", "request"])
    def test_a_write_whose_answer_is_lost_counts_once(
        self, through: Callable[..., Any], proxy: Proxy, loses: str, times: int
    ) -> None:
        """It is made once and acknowledged with its version, however often it was sent: puts, expectations, deletes and
        increments."""
        lose = proxy.swallow if loses == "answer" else proxy.drop

        async def scenario(backend: Backend) -> None:
            await increment(backend, "lost:n", 1)
            for n in range(2, 6):
                lose(b"lost:n", times)
                before = await self.read_again(backend, "lost:n")
                version = await backend.write([Put("lost:n", n), Put("beside", n)], {"lost:n": before.version})
                proxy.wait()
                assert await backend.read_many(["lost:n", "beside"]) == {
                    "lost:n": Entry(n, version),
                    "beside": Entry(n, version),
                }
            lose(b"lost:gone", times)
            created = await backend.write([Put("lost:gone", 0)], {"lost:gone": 0})
            proxy.wait()
            lose(b"lost:gone", times)
            assert await backend.write([Delete("lost:gone")], {"lost:gone": created}) > created
            proxy.wait()
            assert await backend.read("lost:gone") is None

        through(scenario)
        assert (proxy.lost > 0) == (loses == "answer")

    async def read_again(self, backend: Backend, key: str) -> Entry:
        """The entry of an existing key; the backend repeats a read whose answer is lost."""
        entry = await backend.read(key)
        assert entry is not None
        return entry

    @awaited_by("through")
    async def test_a_lost_answer_of_a_conflict_is_a_conflict(self, backend: Backend, proxy: Proxy) -> None:
        """Nothing is written, and the error names the same keys."""
        version = await backend.write([Put("lost:a", 1)])
        proxy.swallow(b"lost:a")
        with pytest.raises(ConflictError) as caught:
            await backend.write([Put("lost:a", 2), Put("b", 2)], {"lost:a": version + 1000})
        proxy.wait()
        assert caught.value.keys == {"lost:a"}
        assert await backend.read_many(["lost:a", "b"]) == {"lost:a": Entry(1, version)}

    @awaited_by("through")
    async def test_reads_scans_and_checks_are_done_again(self, backend: Backend, proxy: Proxy) -> None:
        """Whatever answer is lost, the result is right."""
        version = await backend.write([Put(f"lost:{n}", n) for n in range(5)])
        names = [f"lost:{n}" for n in range(5)]
        for lose in (proxy.swallow, proxy.drop):
            lose(b"lost:3")
            assert await backend.read("lost:3") == Entry(3, version)
            proxy.wait()
            lose(b"lost:3")
            assert list(await backend.read_many(names)) == names
            proxy.wait()
            lose(b"lost:3")
            assert await backend.write([], {"lost:3": version}) >= version
            proxy.wait()
            lose(b"lost:")
            assert await keys_of(backend, "lost:") == names
            proxy.wait()

    @pytest.mark.parametrize("later", [0, 1], ids=["at once", "after the next write"])
    @awaited_by("through")
    async def test_a_copy_that_comes_late_does_nothing(
        self, backend: Backend, proxy: Proxy, make_backend: Callable[[], Backend], clock: FakeClock, later: int
    ) -> None:
        """A repeated write exists twice. Its outcome, success or conflict, doesn't change when the other copy arrives, though
        what the copy expects may be true again by then; also if the caller has made other writes."""
        other = make_backend()
        other.clock = clock

        async def meanwhile(other: Backend) -> None:
            proxy.delay(b"late:done")
            landed = await backend.write([Put("late:done", 1)], {"late:done": 0})
            await other.write([Delete("late:done")], {"late:done": landed})
            for n in range(later):
                await backend.write([Put("next", n)])
            proxy.release()
            assert await backend.read("late:done") is None
            assert await other.version() >= landed

            proxy.delay(b"late:refused")
            writing = asyncio.ensure_future(backend.write([Put("late:refused", 1)], {"late:refused": 0}))
            await asyncio.to_thread(proxy.wait)
            await other.write([Put("late:refused", 2)])
            with pytest.raises(ConflictError):
                await writing
            await other.write([Delete("late:refused")])
            for n in range(later):
                await backend.write([Put("next", n)])
            proxy.release()
            assert await backend.read("late:refused") is None

        await opened(other, meanwhile)

    @awaited_by("through")
    async def test_connections_that_were_cut_are_made_again(self, backend: Backend, proxy: Proxy) -> None:
        """Callers notice nothing of cut connections, idle or in use, on this loop and on others."""
        for n in range(3):
            await asyncio.gather(*(backend.read(f"k{m}") for m in range(10)))
            proxy.cut()
            version = await backend.write([Put("a", n)])
            proxy.cut()
            assert await backend.read("a") == Entry(n, version)
            proxy.cut()
            assert await keys_of(backend) == ["a"]
            proxy.cut()
            [other] = await on_loops_of_threads([lambda: backend.read("a")])
            assert other == Entry(n, version)

    @awaited_by("through")
    async def test_connections_that_lead_nowhere_cost_one_attempt(self, backend: Backend, proxy: Proxy) -> None:
        """The server's machine has lost its power, or a firewall has forgotten idle connections, so that nothing closes them: an
        operation doesn't try one after the other until its patience is over."""
        version = await backend.write([Put("a", 1)])
        await asyncio.gather(*(backend.read("a") for _ in range(30)))
        proxy.silence()
        assert await backend.read("a") == Entry(1, version)
        await asyncio.gather(*(backend.read("a") for _ in range(30)))
        proxy.silence()
        assert await backend.write([Put("a", 2)]) > version

    # ------------------------------------------------------------ a server that doesn't answer
    @awaited_by("hasty")
    async def test_a_server_that_does_not_answer_is_an_error_in_time(self, backend: Backend, server: Server) -> None:
        """Reads and writes raise a StoreError that names the server, other tasks run meanwhile, and all works again when the
        server answers."""
        version = await in_the_end(lambda: backend.write([Put("a", 1)]))
        server.stop()
        try:
            turns = 0

            async def go_on() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0.01)

            others = asyncio.ensure_future(go_on())
            with pytest.raises(AnswerLostError, match=str(server.port)):
                await backend.write([Put("b", 1)])
            outcomes = await asyncio.gather(
                backend.read("a"),
                backend.read_many(["a", "b"]),
                backend.write([Put("c", 1)]),
                backend.write([], {"a": version}),
                keys_of(backend),
                backend.version(),
                return_exceptions=True,
            )
            others.cancel()
            assert turns > 10
            for outcome in outcomes:
                assert isinstance(outcome, StoreError), outcome
                assert str(server.port) in str(outcome)
        finally:
            server.go_on()
        for key in ("b", "c"):
            found = await self.settled(backend, key)
            assert found is None or (key == "b" or isinstance(outcomes[2], AnswerLostError))
        assert await in_the_end(lambda: backend.read("a")) == Entry(1, version)
        assert await in_the_end(lambda: backend.write([Put("c", 2)])) > version

    async def settled(self, backend: Backend, key: str) -> Entry | None:
        """The entry of a key after all writes with unknown outcome have ended."""
        while True:
            entry = await in_the_end(lambda: backend.read(key))
            try:
                await in_the_end(
                    partial(backend.write, [Put("settled", 0)], {key: 0 if entry is None else entry.version})
                )
                return entry
            except ConflictError:
                continue

    @awaited_by("hasty")
    async def test_who_is_cancelled_while_the_server_does_not_answer_ends(
        self, backend: Backend, server: Server
    ) -> None:
        """Cancelled reads and writes end in time, and others don't get their connections."""
        version = await in_the_end(lambda: backend.write([Put("a", 1)]))
        for operation in (lambda: backend.read("a"), lambda: backend.write([Put("b", 1)])):
            server.stop()
            try:
                task = asyncio.ensure_future(operation())
                await asyncio.sleep(0.05)
                task.cancel()
                done, _ = await asyncio.wait([task], timeout=HANGS)
                assert done
                assert task.cancelled() or isinstance(task.exception(), StoreError)
            finally:
                server.go_on()
        for _ in range(10):
            assert await in_the_end(lambda: backend.read("a")) == Entry(1, version)

    def test_callers_without_a_loop_are_told_in_time(self, url: str, server: Server) -> None:
        """A SyncStore in several threads raises StoreError in each, and works again afterwards; closing it doesn't hang."""
        store = SyncStore(with_options(url, **HASTE))

        def answered(call: Callable[[], T]) -> T:
            return asyncio.run(in_the_end(lambda: asyncio.to_thread(call)))

        with answered(store.__enter__):
            answered(lambda: store.set("a", 1))
            server.stop()
            try:
                failed = in_threads([lambda: store.get("a"), lambda: store.set("a", 2), lambda: store.get_many(["a"])])
            finally:
                server.go_on()
            assert [isinstance(error, StoreError) for error in failed] == [True] * 3, failed
            assert answered(lambda: store.get("a")) in (1, 2)
            server.stop()
            try:
                assert not in_threads([store.close])
            finally:
                server.go_on()

    # ------------------------------------------------------------ a restarted server
    @pytest.mark.parametrize("how", ["restart", "kill"])
    def test_no_acknowledged_write_is_lost_with_the_server(
        self, url: str, server: Server, clock: FakeClock, how: str
    ) -> None:
        """If the server is shut down or killed during writes, and restarted, programs continue, and each increment counts
        once."""

        over = threading.Event()

        async def count(backend: Backend, name: str) -> None:
            done = 0
            while not over.is_set():
                entry = await backend.read(name) or Entry(0, 0)
                assert entry.value == done
                await backend.write([Put(name, done + 1), Put(f"{name}'", done + 1)], {name: entry.version})
                done += 1
            found = await backend.read_many([name, f"{name}'"])
            assert {entry.value for entry in found.values()} == {done}

        async def some_writes(backend: Backend) -> None:
            for n in range(20):
                await backend.write([Put("some", n)])

        async def main(backend: Backend) -> None:
            writers: list[asyncio.Future[Any]] = [asyncio.ensure_future(count(backend, f"w{n}")) for n in range(4)]
            writers.append(asyncio.ensure_future(on_loops_of_threads([lambda: count(backend, "t")])))
            try:
                for _ in range(2):
                    await some_writes(backend)
                    if how == "kill":
                        await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.restart)
                    await some_writes(backend)
            finally:
                over.set()
                await asyncio.gather(*writers)

        backend = resolve_backend(with_options(url, timeout=2, patience=HANGS))
        backend.clock = clock
        asyncio.run(opened(backend, main))

    # ------------------------------------------------------------ errors
    def test_no_server_is_an_error_that_names_it(self, url: str, server: Server) -> None:
        """With host and port and without the password; `open` raises it within its patience."""
        port = free_port()
        nowhere = with_options(url.replace(f":{server.port}", f":{port}"), **HASTE)
        said = said_of(_with_password(nowhere))
        assert str(port) in said
        assert "127.0.0.1" in said
        assert SECRET not in said

    def test_a_probe_looks_and_writes_nothing(self, url: str) -> None:
        """`probe` reports the server, whether the data set exists, and the clock's skew; it creates nothing."""

        async def use() -> None:
            backend = resolve_backend(url)
            found = None
            for _ in range(2):
                asked = time.monotonic()
                found = await backend.probe(10.0)
                took = time.monotonic() - asked
                assert found is not None
                assert found.is_new
                assert found.skew is not None
                assert abs(found.skew) < 1 + took  # the server is on this machine, which may be busy
            assert found is not None
            assert found.system
            assert found.durability in ("power", "process", "none")
            assert not found.read_only
            await opened(backend, lambda backend: backend.write([Put("a", 1)]))
            found = await backend.probe(10.0)
            assert found is not None
            assert not found.is_new

        asyncio.run(use())

    def test_a_probe_of_no_server_or_of_one_that_is_stopped_is_an_error_in_time(self, url: str, server: Server) -> None:
        """StoreUnreachableError, within the probe's timeout and not the URL's patience, and without the password."""
        nowhere = _with_password(url.replace(f":{server.port}", f":{free_port()}"))
        with pytest.raises(StoreUnreachableError, match=r"127\.0\.0\.1") as caught:
            asyncio.run(resolve_backend(nowhere).probe(HANGS))
        assert SECRET not in str(caught.value)
        server.stop()
        try:
            with pytest.raises(StoreUnreachableError, match=r"no answer within 0\.2 s"):
                asyncio.run(resolve_backend(with_options(url, patience=HANGS)).probe(0.2))
        finally:
            server.go_on()

    def test_a_probe_refuses_a_wrong_password(self, guarded_url: str) -> None:
        """The probe raises the same error as `open`."""
        with pytest.raises(StoreError, match="password") as caught:
            asyncio.run(resolve_backend(guarded_url).probe(HANGS))
        assert SECRET not in str(caught.value)

    def test_a_wrong_password_is_an_error_that_names_the_server_and_not_the_password(self, guarded_url: str) -> None:
        """Neither the backend's repr nor the causes of the error contain the password. It is not retried."""
        said = said_of(guarded_url)
        assert "127.0.0.1" in said
        assert SECRET in guarded_url
        assert SECRET not in said
        assert SECRET not in repr(resolve_backend(guarded_url))
        assert SECRET not in public_url(guarded_url)

    def test_before_open_nothing_is_done(self, url: str) -> None:
        """`open` checks the server's durability; before that, operations are refused."""

        async def use() -> None:
            backend = resolve_backend(url)
            uses: list[Callable[[], Awaitable[object]]] = [
                lambda: backend.read("a"),
                lambda: backend.read_many([]),
                lambda: backend.write([Put("a", 1)]),
                backend.version,
                lambda: keys_of(backend),
            ]
            for operation in uses:
                with pytest.raises(StoreClosedError, match="not opened yet"):
                    await operation()

        asyncio.run(use())

    def test_after_close_it_can_be_opened_again(self, url: str) -> None:
        """The same object can be opened again, as the error of a closed store says; its data are still there."""
        store = SyncStore(url)
        for turn in range(3):
            with store:
                assert store.get("turn") == (turn - 1 if turn else None)
                store.set("turn", turn)

    def test_of_a_password_that_breaks_the_url_nothing_is_shown(self, url: str) -> None:
        """If a password contains a separator of URLs, a part of it is parsed as host, port, database or option. No error may
        show it."""
        scheme, _, rest = url.partition("://")
        place = rest.rpartition("@")[2]
        for character in "/?#@: [%":
            broken = f"{scheme}://app:hun{character}ter2@{place}{'&' if '?' in place else '?'}timeout=0.2&patience=0.2"
            try:
                said = repr(resolve_backend(broken)) + said_of(broken)
            except ConfigError as error:
                said = "".join(traceback.format_exception(error))
            shown = [line for line in said.splitlines() if not line.startswith(" ")]  # without lines of source code
            assert shown
            assert not [line for line in shown if "hun" in line or "ter2" in line], character

    def test_what_has_no_time_for_an_answer_is_refused(self, url: str) -> None:
        """With a timeout of 0, no attempt could succeed."""
        for option in ("timeout", "patience"):
            with pytest.raises(ConfigError, match=f"{option} is 0"):
                resolve_backend(f"{url.partition('?')[0]}?{option}=0")

    def test_an_option_that_is_not_there_is_refused(self, url: str) -> None:
        """The error has the option that was probably meant; invalid values are refused, too."""
        for option, said in (("patiense=3", "patience"), ("timeout=soon", "seconds"), ("durability=proces", "process")):
            address = url.partition("?")[0]
            with pytest.raises(ConfigError, match=said):
                resolve_backend(f"{address}?{option}")

    def test_a_write_has_a_size(self, url: str, clock: FakeClock) -> None:
        """A write may have `max_changes` changes and expectations; with one more it is refused as a whole."""

        async def scenario(backend: Backend) -> None:
            most = backend.max_changes
            assert most is not None
            assert most >= 1000
            changes = [Put(f"k{n:06}", n) for n in range(most)]
            version = await backend.write(changes)
            for too_many, expect in (([*changes, Put("one more", 0)], {}), (changes[1:], {"a": 0, "b": 0})):
                with pytest.raises(WriteSizeError) as caught:
                    await backend.write(too_many, expect)
                for number in (most, most + 1):
                    assert f"{number:,}" in str(caught.value)
            assert await backend.version() == version
            assert await backend.read("one more") is None

        backend = resolve_backend(with_options(url, timeout=HANGS, patience=HANGS))
        backend.clock = clock
        asyncio.run(opened(backend, scenario))

    def test_it_says_where_it_is(self, url: str, server: Server) -> None:
        """`system` and `address` are known before `open`, for telemetry; the entries are persistent."""
        backend = resolve_backend(url)
        assert backend.system
        assert backend.address == ("127.0.0.1", server.port)
        assert backend.survives

    def test_why_it_can_not_be_owned(self, url: str) -> None:
        """Others may write at any time, so persistence with mode='behind' is refused, with the reason."""

        async def scenario(backend: Backend) -> None:
            with pytest.raises(ConfigError, match="mode='behind'"):
                await backend.own()

        asyncio.run(opened(resolve_backend(url), scenario))


def _with_password(url: str) -> str:
    """The URL with a password, which replaces the one that it may have."""
    scheme, _, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    name = user.partition(":")[0] if at else ""
    return f"{scheme}://{name}:{SECRET}@{host}"


def said_of(url: str) -> str:
    """All texts of the error for a store that can't be opened, with its causes. Fails if it can be opened."""

    async def use(backend: Backend) -> None:
        raise AssertionError(f"{backend!r} could be opened")

    try:
        asyncio.run(opened(resolve_backend(url), use))
    except StoreError as error:
        causes: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None:
            assert cause not in causes, f"{cause!r} is a cause of itself, so a walk over the causes never ends"
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        attributes = [repr(vars(cause)) for cause in causes]  # some tools also report an exception's attributes
        return "".join([*traceback.format_exception(error), *attributes])
    raise AssertionError("no error")
