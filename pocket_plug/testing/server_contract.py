"""The promises of backends with a server, as tests: inherit `ServerBackendContract`.

Besides all that several processes share (`shared_contract`), answers are lost, and the server is stopped, killed and started
again. Nothing waits on a clock: time-outs are a few tenths of a second, given in the URL, and what hangs fails by `HANGS`.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

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
from pocket_plug.testing.scenarios import HANGS, increment, keys_of
from pocket_plug.testing.servers import Server, free_port
from pocket_plug.testing.several import Use, in_threads, on_loops_of_threads, opened
from pocket_plug.testing.shared_contract import SharedBackendContract

HASTE = {"timeout": 0.3, "patience": 0.9}
"""Options for what is to fail soon."""
HARDY = {"timeout": 0.5, "patience": 20}
"""Options for what is to go on once the server does."""
SECRET = "hunter2-of-the-contract"  # noqa: S105 - it has to show up nowhere


def with_options(url: str, **options: object) -> str:
    """A URL with more options: those of backends over a network, such as `timeout=0.2, patience=1`.

    >>> with_options("redis://cache:6379/0?store=a", timeout=0.2)
    'redis://cache:6379/0?store=a&timeout=0.2'
    """
    given = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{given}"


class ServerBackendContract(SharedBackendContract):
    """Inherit it where a server has the data; override the fixtures `server`, `url` and `guarded_url`.

        class TestMine(ServerBackendContract):
            @pytest.fixture
            def server(self, valkey_server):    # of `pocket_plug.testing.fixtures`, for the whole session
                return valkey_server

            @pytest.fixture
            def url(self, server):
                return f"{server.url}?store=t{next(numbers)}"

    The server is this class's to stop, kill and start again; it is as it was after each test. Its URL names
    `127.0.0.1` and its port; the options `timeout` and `patience` are taken by the URL, and the protocol sends the
    bytes of keys as they are, or in hex.
    """

    @pytest.fixture
    def server(self) -> Server:
        """The server; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture server")

    @pytest.fixture
    def guarded_url(self) -> str:
        """The URL of a server that asks for a password, with the wrong one in it: `SECRET`. To be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture guarded_url")

    @pytest.fixture
    def proxy(self, server: Server) -> Iterator[Proxy]:
        """What stands between, and loses answers."""
        with Proxy(server.port) as proxy:
            yield proxy

    @pytest.fixture
    def through(self, proxy: Proxy, url: str, clock: FakeClock) -> Callable[[Use], Any]:
        """Runs a scenario with an open instance behind the proxy."""

        def run(use: Use, **options: float) -> Any:
            backend = resolve_backend(proxy.through(with_options(url, **(options or HARDY))))
            backend.clock = clock
            return asyncio.run(opened(backend, use))

        return run

    @pytest.fixture
    def hasty(self, url: str, clock: FakeClock) -> Callable[[Use], Any]:
        """Runs a scenario with an open instance that soon gives up."""

        def run(use: Use) -> Any:
            backend = resolve_backend(with_options(url, **HASTE))
            backend.clock = clock
            return asyncio.run(opened(backend, use))

        return run

    # ------------------------------------------------------------ lost answers
    @pytest.mark.parametrize("times", [1, 2])
    @pytest.mark.parametrize("loses", ["answer", "request"])
    def test_a_write_whose_answer_is_lost_counts_once(
        self, through: Callable[..., Any], proxy: Proxy, loses: str, times: int
    ) -> None:
        """It is acknowledged with the version that it got, however often it was sent: puts, expectations, deletes,
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
        """The entry at a key that is there; a read whose answer is lost is done again."""
        entry = await backend.read(key)
        assert entry is not None
        return entry

    def test_a_lost_answer_of_a_conflict_is_a_conflict(self, through: Callable[..., Any], proxy: Proxy) -> None:
        """Nothing is done, and the same keys are named."""

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("lost:a", 1)])
            proxy.swallow(b"lost:a")
            with pytest.raises(ConflictError) as caught:
                await backend.write([Put("lost:a", 2), Put("b", 2)], {"lost:a": version + 1000})
            proxy.wait()
            assert caught.value.keys == {"lost:a"}
            assert await backend.read_many(["lost:a", "b"]) == {"lost:a": Entry(1, version)}

        through(scenario)

    def test_reads_scans_and_checks_are_done_again(self, through: Callable[..., Any], proxy: Proxy) -> None:
        """Whatever answer is lost, what they give is what is there."""

        async def scenario(backend: Backend) -> None:
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

        through(scenario)

    @pytest.mark.parametrize("later", [0, 1], ids=["at once", "after the next write"])
    def test_a_copy_that_comes_late_does_nothing(
        self,
        through: Callable[..., Any],
        proxy: Proxy,
        make_backend: Callable[[], Backend],
        clock: FakeClock,
        later: int,
    ) -> None:
        """A write that was sent again has two copies under way. What its caller was told, done or conflict, stays so when
        the other one arrives, though by then what it expects may be there again; also if he has written other things."""

        async def scenario(backend: Backend) -> None:
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

        through(scenario)

    def test_connections_that_were_cut_are_made_again(self, through: Callable[..., Any], proxy: Proxy) -> None:
        """Idle or in use: nobody sees that there was anything, neither on this loop nor on another one's
        connections."""

        async def scenario(backend: Backend) -> None:
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

        through(scenario)

    # ------------------------------------------------------------ a server that doesn't answer
    def test_a_server_that_does_not_answer_is_an_error_in_time(
        self, hasty: Callable[[Use], Any], server: Server
    ) -> None:
        """Reads and writes end with a StoreError that names it, the program goes on meanwhile and after; once it
        answers all works."""

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("a", 1)])
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
            assert await backend.read("a") == Entry(1, version)
            assert await backend.write([Put("c", 2)]) > version

        hasty(scenario)

    async def settled(self, backend: Backend, key: str) -> Entry | None:
        """The entry at a key once no write is under way any more whose outcome wasn't known."""
        while True:
            entry = await backend.read(key)
            try:
                await backend.write([Put("settled", 0)], {key: 0 if entry is None else entry.version})
                return entry
            except ConflictError:
                continue

    def test_who_is_cancelled_while_the_server_does_not_answer_ends(
        self, hasty: Callable[[Use], Any], server: Server
    ) -> None:
        """A read and a write alike, in time; what they used is not handed to others."""

        async def scenario(backend: Backend) -> None:
            version = await backend.write([Put("a", 1)])
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
                assert await backend.read("a") == Entry(1, version)

        hasty(scenario)

    def test_callers_without_a_loop_are_told_in_time(self, url: str, server: Server) -> None:
        """A SyncStore in several threads: StoreError in each, and afterwards all works; closing it doesn't hang
        either."""
        with SyncStore(with_options(url, **HASTE)) as store:
            store.set("a", 1)
            server.stop()
            try:
                failed = in_threads([lambda: store.get("a"), lambda: store.set("a", 2), lambda: store.get_many(["a"])])
            finally:
                server.go_on()
            assert [isinstance(error, StoreError) for error in failed] == [True] * 3, failed
            assert store.get("a") in (1, 2)
            server.stop()
            try:
                assert not in_threads([store.close])
            finally:
                server.go_on()

    # ------------------------------------------------------------ a server that is started again
    @pytest.mark.parametrize("how", ["restart", "kill"])
    def test_no_acknowledged_write_is_lost_with_the_server(
        self, url: str, server: Server, clock: FakeClock, how: str
    ) -> None:
        """In the middle of writes it ends, in order or by SIGKILL, and starts again: programs go on, each increment
        counts once."""

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
        """Host and port, what to look at, and no password; `open` says so within its patience."""
        port = free_port()
        nowhere = with_options(url.replace(f":{server.port}", f":{port}"), **HASTE)
        said = said_of(_with_password(nowhere))
        assert str(port) in said
        assert "127.0.0.1" in said
        assert SECRET not in said

    def test_a_probe_looks_and_writes_nothing(self, url: str) -> None:
        """What the server is, whether there is a data set yet, whose clock differs by how much; nothing is made by it."""

        async def use() -> None:
            backend = resolve_backend(url)
            found = None
            for _ in range(2):
                found = await backend.probe(10.0)
                assert found is not None
                assert found.is_new
            assert found is not None
            assert found.system
            assert found.durability in ("power", "process", "none")
            assert not found.read_only
            assert found.skew is not None
            assert abs(found.skew) < 1  # the same machine's
            await opened(backend, lambda backend: backend.write([Put("a", 1)]))
            found = await backend.probe(10.0)
            assert found is not None
            assert not found.is_new

        asyncio.run(use())

    def test_a_probe_of_no_server_or_of_one_that_is_stopped_is_an_error_in_time(self, url: str, server: Server) -> None:
        """StoreUnreachableError, without the patience of the URL; a password is not in it."""
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
        """As opening it does."""
        with pytest.raises(StoreError, match="password") as caught:
            asyncio.run(resolve_backend(guarded_url).probe(HANGS))
        assert SECRET not in str(caught.value)

    def test_a_wrong_password_is_an_error_that_names_the_server_and_not_the_password(self, guarded_url: str) -> None:
        """Neither does the backend's repr, nor what the error was caused by. It is no reason to try again."""
        said = said_of(guarded_url)
        assert "127.0.0.1" in said
        assert SECRET in guarded_url
        assert SECRET not in said
        assert SECRET not in repr(resolve_backend(guarded_url))
        assert SECRET not in public_url(guarded_url)

    def test_before_open_nothing_is_done(self, url: str) -> None:
        """Whether the server keeps what is promised is looked at by `open`; until then nothing is read or written."""

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
        """As the error of a closed one says, by the same object; what it keeps is there."""
        store = SyncStore(url)
        for turn in range(3):
            with store:
                assert store.get("turn") == (turn - 1 if turn else None)
                store.set("turn", turn)

    def test_of_a_password_that_breaks_the_url_nothing_is_shown(self, url: str) -> None:
        """A character that separates the parts of a URL puts a piece of it where a host, a port, a database or an option
        is expected."""
        scheme, _, rest = url.partition("://")
        place = rest.rpartition("@")[2]
        for character in "/?#@: [%":
            broken = f"{scheme}://app:hun{character}ter2@{place}{'&' if '?' in place else '?'}timeout=0.2&patience=0.2"
            try:
                said = repr(resolve_backend(broken)) + said_of(broken)
            except ConfigError as error:
                said = "".join(traceback.format_exception(error))
            shown = [line for line in said.splitlines() if not line.startswith(" ")]  # the code isn't
            assert shown
            assert not [line for line in shown if "hun" in line or "ter2" in line], character

    def test_what_has_no_time_for_an_answer_is_refused(self, url: str) -> None:
        """A time-out of 0 would be 30 seconds of attempts that can't succeed."""
        for option in ("timeout", "patience"):
            with pytest.raises(ConfigError, match=f"{option} is 0"):
                resolve_backend(f"{url.partition('?')[0]}?{option}=0")

    def test_an_option_that_is_not_there_is_refused(self, url: str) -> None:
        """With the one that was probably meant; values as well."""
        for option, said in (("patiense=3", "patience"), ("timeout=soon", "seconds"), ("durability=proces", "process")):
            address = url.partition("?")[0]
            with pytest.raises(ConfigError, match=said):
                resolve_backend(f"{address}?{option}")

    def test_a_write_has_a_size(self, url: str, clock: FakeClock) -> None:
        """As many changes and expectations as `max_changes` says are done; one more is refused, and nothing of it is
        done."""

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
        """`system` and `address` are known before it is open, for telemetry; its entries outlive the process."""
        backend = resolve_backend(url)
        assert backend.system
        assert backend.address == ("127.0.0.1", server.port)
        assert backend.survives

    def test_why_it_can_not_be_owned(self, url: str) -> None:
        """Others write to it at any time, so writing behind is refused, with the reason."""

        async def scenario(backend: Backend) -> None:
            with pytest.raises(ConfigError, match="mode='behind'"):
                await backend.own()

        asyncio.run(opened(resolve_backend(url), scenario))


def _with_password(url: str) -> str:
    """The URL with a password in it, in place of the user's if there is one."""
    scheme, _, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    name = user.partition(":")[0] if at else ""
    return f"{scheme}://{name}:{SECRET}@{host}"


def said_of(url: str) -> str:
    """All that is said of a store that can't be opened, causes included. Fails if it can be."""

    async def use(backend: Backend) -> None:
        raise AssertionError(f"{backend!r} could be opened")

    try:
        asyncio.run(opened(resolve_backend(url), use))
    except StoreError as error:
        causes: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None:
            assert cause not in causes, f"{cause!r} is a cause of itself: who follows the causes never ends"
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        attributes = [repr(vars(cause)) for cause in causes]  # what is reported by who reports an exception's
        return "".join([*traceback.format_exception(error), *attributes])
    raise AssertionError("no error")
