"""A store over Redis as programs use it: commands, layers, several event loops and processes, and notifications."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent

import pytest
import redis
from pocket_plug_redis import Redis, watching
from pocket_plug_redis.watching import WATCH_EVERY

from pocket_plug import Delete, Graph, Memory, Put, Runs, Store, StoreError, SyncStore, node
from pocket_plug.cli import main
from pocket_plug.layers.persistence import Persistence
from pocket_plug.testing.scenarios import works_in_a_child
from pocket_plug.testing.servers import Server, valkey
from pocket_plug.testing.watch_contract import Noted

POCKET_PLUG = [sys.executable, "-W", "error", "-m", "pocket_plug"]
WAITS = 30.0
"""Seconds after which something is taken for lost."""


def command(folder: Path, *words: str) -> str:
    """What a command of `pocket-plug` prints."""
    done = subprocess.run([*POCKET_PLUG, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- commands
def test_the_commands_of_a_store(
    fresh_url: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Entries are listed, read, changed, checked, exported, and moved to another store without loss."""

    def run(url: str, *words: str) -> str:
        assert main(["store", "--url", url, *words]) == 0
        return capsys.readouterr().out

    ours, other, file = fresh_url(""), fresh_url("x"), str(tmp_path / "exported")
    with SyncStore(ours) as store:
        for n in range(300):
            store.set(f"order:{n}", {"n": n, "place": Path("a")})
        store.set("short", 1, ttl=3600)
    assert "'n': 7" in run(ours, "get", "order:7")
    assert "order:17" in run(ours, "ls", "order:1")
    run(ours, "set", "one", "1")
    run(ours, "rm", "order:0")
    run(ours, "check")
    run(ours, "stats")
    Path(file).write_text(run(ours, "export"))
    run(other, "import", file)
    with SyncStore(ours) as store, SyncStore(other) as copied:
        assert store.get_many([*store.keys()]) == copied.get_many([*copied.keys()])
        assert copied.get("one") == 1


def test_runs_and_workers(fresh_url: Callable[[str], str], tmp_path: Path) -> None:
    """One process submits a run, a worker executes it, and `runs` shows it."""
    url = fresh_url("")
    (tmp_path / "shop.py").write_text(
        dedent("""
            import pocket_plug as pp

            @pp.node
            async def price(word: str) -> int:
                return len(word)

            graph = pp.Graph(price, name="shop")
        """)
    )

    @node
    async def price(word: str) -> int:
        return len(word)

    async def submit() -> None:
        async with Store(url) as store:
            graph = Graph(price, store=store, name="shop")
            for n in range(5):
                await graph.submit("x" * n, run_id=f"r{n}")

    asyncio.run(submit())
    command(tmp_path, "worker", "shop.py:graph", "--url", url, "--once")
    assert command(tmp_path, "runs", "--url", url, "ls").count("finished") == 5
    with SyncStore(url) as store:
        assert {Runs(store).sync.get(f"r{n}").state for n in range(5)} == {"finished"}


# ---------------------------------------------------------------- loops, processes, layers
def test_one_store_for_many_loops(fresh_url: Callable[[str], str]) -> None:
    """`asyncio.run` twenty times over one store at module level, threads with event loops of their own, and a forked child."""
    store = Store(fresh_url(""))

    async def count() -> int:
        await store.stack.ensure_open()
        return await store.update("n", lambda n: n + 1, default=0)

    assert [asyncio.run(count()) for _ in range(20)] == [*range(1, 21)]
    threads = [threading.Thread(target=lambda: asyncio.run(count())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.sync.get("n") == 40

    async def in_the_child() -> None:
        assert await count() == 41

    assert works_in_a_child(in_the_child)
    assert store.sync.get("n") == 41
    store.sync.close()


def test_layers_over_it(fresh_url: Callable[[str], str]) -> None:
    """A memory cache by `persistence`, tracing around it; deadlines, transactions and scopes work as over any backend."""
    with SyncStore(fresh_url(""), layers=["tracing", "metrics", "logging", "compress", "migrate"]) as store:
        users = store.scope("user")
        users.set("1", "x" * 5000, ttl="1h")
        with store.transaction() as tx:
            tx.set("a", 1)
            tx.set("b", tx.get("user:1"))
        assert store.get("b") == "x" * 5000
        assert list(store.keys()) == ["a", "b", "user:1"]


def test_a_hundred_calls_at_once(fresh_url: Callable[[str], str]) -> None:
    """More than there are connections: each gets one in turn, also if some calls are cancelled while they wait."""

    async def use() -> None:
        async with Store(fresh_url("")) as store:
            sets = [asyncio.ensure_future(store.set(f"k{n}", n)) for n in range(200)]
            await asyncio.sleep(0)
            for each in sets[::3]:
                each.cancel()
            outcomes = await asyncio.gather(*sets, return_exceptions=True)
            landed = {f"k{n}" for n, outcome in enumerate(outcomes) if outcome is None}
            assert {key async for key in store.keys()} >= landed
            assert await store.get_many([f"k{n}" for n in range(200)])
            await asyncio.gather(*(store.get("k1") for _ in range(200)))

    asyncio.run(use())


# ---------------------------------------------------------------- notifications
class Told:
    """A watcher that records its notifications."""

    def __init__(self) -> None:
        self.words: list[object] = []
        self._news = threading.Condition()

    def _say(self, word: object) -> None:
        with self._news:
            self.words.append(word)
            self._news.notify_all()

    def changed(self, versions: Mapping[str, int]) -> None:
        self._say(dict(versions))

    def lost(self) -> None:
        self._say("lost")

    def back(self) -> None:
        self._say("back")

    def wait_for_last(self, word: object) -> None:
        """Wait until this is the last notification."""
        with self._news:
            assert self._news.wait_for(lambda: word == self.words[-1], WAITS), (word, self.words)

    def wait(self, word: object) -> None:
        """Wait until this notification has come."""
        with self._news:
            assert self._news.wait_for(lambda: word in self.words, WAITS), (word, self.words)


def test_a_watcher_is_notified_of_each_write(fresh_url: Callable[[str], str]) -> None:
    """From any backend object, with versions: sets, deletes, changes with a version of their own; any names."""

    async def use() -> None:
        told, watching, writing = Told(), Redis.from_url(fresh_url("")), Redis.from_url(fresh_url(""))
        await watching.watch(told)
        await watching.open()
        await writing.open()
        await asyncio.to_thread(told.wait, "back")
        first = await writing.write([Put("a\0ü🙂", 1), Delete("gone"), Put("filled", 2, version=500)])
        await asyncio.to_thread(told.wait, {"a\0ü🙂": first, "gone": first, "filled": 500})
        own = await watching.write([Put("k" * 2000, 1)])
        await asyncio.to_thread(told.wait, {"k" * 2000: own})
        await writing.write([], {"filled": 500})
        await watching.close()
        await writing.close()
        assert told.words[0] == "back"
        assert told.words[-1] == "lost"
        assert len(told.words) == 4

    asyncio.run(use())


def test_a_watcher_is_told_of_no_write_that_is_refused() -> None:
    """The next write gets the version that it would have had: a cache would believe that it knows of that one already."""
    with valkey() as server:

        async def use() -> None:
            told, backend = Told(), Redis.from_url(server.url)
            await backend.open()
            await backend.write([Put("a", 0)])  # a data set's first write is told as a new beginning
            await backend.watch(told)
            await asyncio.to_thread(told.wait, "back")
            with redis.Redis(port=server.port) as client:
                client.config_set("maxmemory", 1)
                with pytest.raises(StoreError, match="memory is full"):
                    await backend.write([Put("a", 1)])
                client.config_set("maxmemory", 0)
            version = await backend.write([Put("b", 1)])
            await asyncio.to_thread(told.wait_for_last, {"b": version})
            assert told.words == ["back", {"b": version}]
            await backend.close()

        asyncio.run(use())


def test_a_lost_subscription_is_said_in_time_and_comes_back() -> None:
    """If the server is killed, or stopped: `lost` within a second plus the timeout; `back` once notifications can come again."""
    with valkey() as server:

        async def use() -> None:
            told, backend = Told(), Redis.from_url(f"{server.url}?timeout=0.5")
            await backend.open()
            await backend.watch(told)
            for end, begin in ((server.stop, server.go_on), (server.kill, server.restart)):
                await asyncio.to_thread(told.wait, "back")
                told.words.clear()
                end()
                await asyncio.to_thread(told.wait, "lost")
                begin()
                await asyncio.to_thread(told.wait, "back")
                version = await backend.write([Put("a", 1)])
                await asyncio.to_thread(told.wait, {"a": version})
            await backend.close()

        assert WATCH_EVERY + 0.5 < WAITS
        asyncio.run(use())


def test_a_failed_subscription_is_logged_once_for_each_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason, however often it is retried; and once more when the subscription works again."""
    monkeypatch.setattr(watching, "LONGEST_PAUSE", 0.01)
    caplog.set_level("INFO", "pocket_plug")
    with valkey() as server:

        async def use() -> None:
            told, backend = Noted(), Redis.from_url(server.url)
            await backend.open()
            await backend.watch(told)
            await asyncio.to_thread(told.wait_for_back)
            server.kill()
            await asyncio.to_thread(told.wait, "20 tries", lambda: told.count > 20)
            since = told.count
            server.restart()
            await asyncio.to_thread(told.wait_for_back, since)
            await backend.close()

        asyncio.run(use())
    *reasons, last = [record.getMessage() for record in caplog.records]
    assert len(reasons) == len({*reasons}), reasons
    assert last.endswith("other programs' writes are notified again")
    assert f"(ConnectionError: Error 111 connecting to 127.0.0.1:{server.port}. Connection refused.)" in caplog.text


def test_a_forked_child_has_a_subscription_of_its_own(valkey_server: Server) -> None:
    """It starts as lost."""
    told, backend = Told(), Redis.from_url(f"{valkey_server.url}?store=forked-watcher")

    async def watch() -> None:
        await backend.open()
        await backend.watch(told)
        await asyncio.to_thread(told.wait, "back")

    async def in_the_child() -> None:
        told.wait("lost")
        told.wait_for_last("back")
        version = await backend.write([Put("a", 1)])
        told.wait({"a": version})

    asyncio.run(watch())
    assert works_in_a_child(in_the_child)
    asyncio.run(backend.close())


def test_near_tiers_follow_each_other(fresh_url: Callable[[str], str]) -> None:
    """Two stores with a memory tier over Redis: what one has cached and the other writes is read again soon."""
    near = [Persistence(to=fresh_url(""))]
    with SyncStore(layers=near) as one, SyncStore(layers=near) as other:
        until = time.monotonic() + WAITS
        for n in range(50):
            one.set("a", n)
            while other.get("a") != n:
                assert time.monotonic() < until
        assert [one.update("n", lambda n: n + 1, default=0), other.update("n", lambda n: n + 1, default=0)] == [1, 2]


@pytest.mark.parametrize("heard", [0, 3], ids=["no write", "some writes"])
def test_a_near_tier_keeps_nothing_from_before_its_server_was_emptied(heard: int) -> None:
    """After FLUSHALL or a restored copy versions start again, so cached entries would always seem newer. It doesn't matter of
    how many writes the cache was notified before."""
    with valkey() as server, SyncStore(server.url) as other:
        other.set_many({"a": "old", "b": "old"})
        other.set("a", "old")
        until = time.monotonic() + WAITS
        memory = Memory()
        with SyncStore(memory, layers=[Persistence(to=server.url)]) as near:
            while not asyncio.run(memory.read("b")):  # it caches only while it is notified
                assert near.get_many(["a", "b"]) == {"a": "old", "b": "old"}
                assert time.monotonic() < until
            for n in range(heard):
                other.set("a", f"old {n}")
                while near.get("a") != f"old {n}":
                    assert time.monotonic() < until
            with redis.Redis(port=server.port) as client:
                client.flushall()
            other.set("a", "new")
            while near.get("a") != "new":
                assert time.monotonic() < until
            assert near.get("b") is None
