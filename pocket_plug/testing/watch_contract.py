"""The promises of `Backend.watch` as tests: for a backend that can watch, inherit `WatchContract` besides `BackendContract`.

While a test waits for notifications, it blocks its thread, and so the event loop that opened the backend. So every test also
shows that the subscription doesn't need this loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import pytest

from pocket_plug.layers.persistence import Persistence
from pocket_plug.store.backend import Backend, Delete, Put, Watcher
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from pocket_plug.testing.scenarios import HANGS, ODD_KEYS, works_in_a_child

MAX_NAME = 1024
"""The longest length of a key, in bytes of UTF-8."""
SLOW = 8.0
"""Seconds by which a busy machine may be late."""


class Stoppable(Protocol):
    """A server that can be stopped as by SIGSTOP: it doesn't answer, but no connection is closed."""

    def stop(self) -> object: ...
    def go_on(self) -> object: ...


class Noted:
    """A watcher that records its notifications, with the process: "lost", "back", or "changed" with the versions by key."""

    def __init__(self, beside: Watcher | None = None) -> None:
        self._beside = beside
        self._said = threading.Condition()
        self.words: list[tuple[int, str, Mapping[str, int]]] = []

    def _note(self, word: str, versions: Mapping[str, int]) -> None:
        with self._said:
            self.words.append((os.getpid(), word, dict(versions)))
            self._said.notify_all()

    def changed(self, versions: Mapping[str, int], up_to: int | None = None) -> None:
        """Notify the other watcher, then record it."""
        if self._beside is not None:
            self._beside.changed(versions, up_to)
        self._note("changed", versions)

    def lost(self) -> None:
        """Notify the other watcher, then record it."""
        if self._beside is not None:
            self._beside.lost()
        self._note("lost", {})

    def back(self, up_to: int | None = None) -> None:
        """Notify the other watcher, then record it."""
        if self._beside is not None:
            self._beside.back(up_to)
        self._note("back", {})

    @property
    def count(self) -> int:
        """The number of notifications so far."""
        return len(self.words)

    def wait(self, what: str, told: Callable[[], bool], within: float = HANGS) -> None:
        """Block until `told()` is true. Fails, with `what` was awaited, after `within` seconds."""
        with self._said:
            assert self._said.wait_for(told, within), (
                f"not notified within {within} s of: {what}; the last notifications: {self.words[-5:]!r}"
            )

    def wait_for_back(self, since: int = 0) -> None:
        """Block until the last notification in this process, except changes, is `back`; the first `since` ones don't count."""

        def is_back() -> bool:
            said = [word for pid, word, _ in self.words[since:] if pid == os.getpid() and word != "changed"]
            return said[-1:] == ["back"]

        self.wait("back", is_back)

    def wait_for_version(self, versions: Mapping[str, int], since: int = 0) -> None:
        """Block until each key was notified with its version, or `lost` and `back` were; the first `since` ones don't count."""

        def is_told() -> bool:
            words = [(word, told) for pid, word, told in self.words[since:] if pid == os.getpid()]
            told = {key: version for word, some in words if word == "changed" for key, version in some.items()}
            lost = [place for place, (word, _) in enumerate(words) if word == "lost"]
            return versions.items() <= told.items() or any(
                word == "back" for word, _ in words[min(lost, default=len(words)) :]
            )

        self.wait(f"{len(versions)} key(s)", is_told)


class Noting(Layer):
    """Passes a subscription on, and records the notifications."""

    inline_read = inline_write = True

    def on_build(self) -> None:
        self.noted = Noted()

    async def watch(self, watcher: Watcher) -> None:
        """Subscribe to the inner backend, for the watcher and the record."""
        self.noted = Noted(watcher)
        await self.inner.watch(self.noted)


class WatchContract:
    """Tests every promise of `Backend.watch`. Inherit it, and override two fixtures:

        class TestWatching(WatchContract):
            told_within = 6.0

            @pytest.fixture
            def make_backend(self, server):
                return lambda: Mine(server.url)

            @pytest.fixture
            def server(self): ...

    `make_backend` returns a function that makes instances over one data set; several are open at a time.
    """

    told_within: float = 10.0
    """The seconds that the backend promises: after a write, others' caches are outdated for no longer than this."""

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        """A function that makes an instance, which isn't opened yet; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture make_backend")

    @pytest.fixture
    def server(self) -> Stoppable:
        """The server, to be stopped for a while; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture server")

    @asynccontextmanager
    async def _watched(self, make_backend: Callable[[], Backend]) -> AsyncGenerator[tuple[Backend, Backend, Noted]]:
        """A watched instance that has sent `back`, another one over the same data, and the watcher."""
        mine, other, noted = make_backend(), make_backend(), Noted()
        await mine.open()
        try:
            await other.open()
            try:
                await mine.watch(noted)
                noted.wait_for_back()
                yield mine, other, noted
            finally:
                await other.close()
        finally:
            await mine.close()

    def _run(
        self, make_backend: Callable[[], Backend], scenario: Callable[[Backend, Backend, Noted], Awaitable[None]]
    ) -> None:
        async def main() -> None:
            async with self._watched(make_backend) as (mine, other, noted):
                await scenario(mine, other, noted)

        asyncio.run(main())

    # ------------------------------------------------------------ notifications
    def test_it_says_that_it_can_watch(self, make_backend: Callable[[], Backend]) -> None:
        """`can_watch` is known before `open`: layers need it when they are built."""
        assert make_backend().can_watch

    def test_what_another_instance_writes_is_told_with_its_version(self, make_backend: Callable[[], Backend]) -> None:
        """One call has all keys of a write, also deleted ones, with the version of the write."""

        async def scenario(mine: Backend, other: Backend, noted: Noted) -> None:
            since = noted.count
            first = await other.write([Put("a", 1), Put("b", 1)])
            noted.wait_for_version({"a": first, "b": first})
            second = await other.write([Put("a", 2), Delete("b")])
            noted.wait_for_version({"a": second, "b": second})
            told = noted.words[since:]
            changed = {tuple(sorted(versions.items())) for _, _, versions in told if versions}
            expected = {(("a", first), ("b", first)), (("a", second), ("b", second))}
            # on a busy machine the server may seem not to answer: what is written meanwhile is not told one by one
            assert changed <= expected if "lost" in [word for _, word, _ in told] else changed == expected

        self._run(make_backend, scenario)

    def test_own_writes_are_told_with_their_versions(self, make_backend: Callable[[], Backend]) -> None:
        """So a cache can distinguish them from later writes of others."""

        async def scenario(mine: Backend, other: Backend, noted: Noted) -> None:
            version = await mine.write([Put("a", 1)])
            noted.wait_for_version({"a": version})
            await mine.write([], {"a": version})
            deleted = await mine.write([Delete("a")], {"a": version})
            noted.wait_for_version({"a": deleted})

        self._run(make_backend, scenario)

    def test_keys_of_every_kind_are_told_as_they_are(self, make_backend: Callable[[], Backend]) -> None:
        """Names with quotes, NUL or four bytes per character arrive unchanged, whatever the transport is."""

        async def scenario(mine: Backend, other: Backend, noted: Noted) -> None:
            for key in [*(key for key in ODD_KEYS if len(key.encode()) <= MAX_NAME), "n" * MAX_NAME]:
                version = await other.write([Put(key, 1)])
                noted.wait_for_version({key: version})
            told = {key for _, word, versions in noted.words if word == "changed" for key in versions}
            assert told <= {*ODD_KEYS, "n" * MAX_NAME}

        self._run(make_backend, scenario)

    @pytest.mark.parametrize("size", [5, MAX_NAME])
    def test_many_keys_are_told_or_everything_is_old(self, make_backend: Callable[[], Backend], size: int) -> None:
        """A write with more keys than a notification can have is reported by `lost` and `back`."""

        async def scenario(mine: Backend, other: Backend, noted: Noted) -> None:
            keys = [f"{n:0{size}}" for n in range(min(500, other_limit(other)))]
            since = noted.count
            version = await other.write([Put(key, 1) for key in keys])
            noted.wait_for_version(dict.fromkeys(keys, version), since)
            since = noted.count
            version = await other.write([Put("a", 1)])
            noted.wait_for_version({"a": version}, since)

        self._run(make_backend, scenario)

    # ------------------------------------------------------------ times of notifications
    def test_it_may_be_watched_before_it_is_open(self, make_backend: Callable[[], Backend]) -> None:
        """Notifications come after it was opened."""

        async def main() -> None:
            mine, noted = make_backend(), Noted()
            await mine.watch(noted)
            await mine.open()
            try:
                noted.wait_for_back()
                version = await mine.write([Put("a", 1)])
                noted.wait_for_version({"a": version})
            finally:
                await mine.close()

        asyncio.run(main())

    def test_after_a_close_nothing_is_told(self, make_backend: Callable[[], Backend]) -> None:
        """And the thread of the subscription has ended."""
        before = {*threading.enumerate()}

        async def main() -> None:
            other = make_backend()
            await other.open()
            try:
                async with self._watched(make_backend) as (_, _, noted):
                    pass
                count = noted.count
                async with self._watched(make_backend) as (_, _, later):
                    version = await other.write([Put("a", 1)])
                    later.wait_for_version({"a": version})
                assert noted.count == count
            finally:
                await other.close()

        asyncio.run(main())
        assert not [thread for thread in threading.enumerate() if thread not in before and "watch" in thread.name]

    def test_a_server_that_does_not_answer_is_told_as_lost_in_time(
        self, make_backend: Callable[[], Backend], server: Stoppable
    ) -> None:
        """`lost` comes in time, `back` when the server answers again; later writes are notified."""

        async def scenario(mine: Backend, other: Backend, noted: Noted) -> None:
            since = noted.count

            def is_lost() -> bool:
                return "lost" in [word for _, word, _ in noted.words[since:]]

            server.stop()
            try:
                noted.wait("lost", is_lost, self.told_within + SLOW)
            finally:
                server.go_on()
            noted.wait_for_back(since)
            since = noted.count
            version = await other.write([Put("a", 1)])
            noted.wait_for_version({"a": version}, since)

        self._run(make_backend, scenario)

    def test_a_forked_child_is_told_by_a_subscription_of_its_own(self, make_backend: Callable[[], Backend]) -> None:
        """From its first operation on; the parent's subscription is not affected."""

        async def main() -> None:
            async with self._watched(make_backend) as (mine, other, noted):

                async def use() -> None:
                    await mine.read("a")
                    noted.wait_for_back(noted.count - len([1 for pid, _, _ in noted.words if pid == os.getpid()]))
                    since = noted.count
                    version = await mine.write([Put("a", "child")])
                    noted.wait_for_version({"a": version}, since)

                assert await asyncio.to_thread(works_in_a_child, use)
                since = noted.count
                version = await other.write([Put("a", "parent")])
                noted.wait_for_version({"a": version}, since)

        asyncio.run(main())

    # ------------------------------------------------------------ caches
    def test_a_near_tier_gives_what_others_have_written(self, make_backend: Callable[[], Backend]) -> None:
        """After the notification, the cache has others' writes. It keeps its own writes, although these are notified, too."""

        async def main() -> None:
            to = Noting().build(make_backend())
            assert isinstance(to, Noting)
            near, other = Memory(), make_backend()
            stack = Persistence(to=to).build(near)
            await stack.open()
            await other.open()
            try:
                to.noted.wait_for_back()
                await stack.read("a")
                mine = await stack.write([Put("a", "mine")])
                to.noted.wait_for_version({"a": mine})
                assert (entry := await stack.read("a")) is not None
                assert entry.value == "mine"
                assert await near.read("a") == entry
                theirs = await other.write([Put("a", "theirs")])
                to.noted.wait_for_version({"a": theirs})
                assert (entry := await stack.read("a")) is not None
                assert (entry.value, entry.version) == ("theirs", theirs)
                assert await near.read("a") == entry
            finally:
                await other.close()
                await stack.close()

        asyncio.run(main())

    def test_a_near_tier_reads_through_once_it_is_lost(
        self, make_backend: Callable[[], Backend], server: Stoppable
    ) -> None:
        """After `lost`, the cache isn't used, and its old entries aren't used after `back` either."""

        async def main() -> None:
            to = Noting().build(make_backend())
            assert isinstance(to, Noting)
            other = make_backend()
            stack = Persistence(to=to).build(Memory())
            await stack.open()
            await other.open()
            try:
                to.noted.wait_for_back()
                await stack.write([Put("a", "old")])
                since = to.noted.count
                server.stop()
                try:
                    to.noted.wait("lost", lambda: "lost" in [word for _, word, _ in to.noted.words[since:]])
                finally:
                    server.go_on()
                await other.write([Put("a", "new")])
                assert (entry := await stack.read("a")) is not None
                assert entry.value == "new"
                to.noted.wait_for_back(since)
                assert await stack.read("a") == entry
            finally:
                await other.close()
                await stack.close()

        asyncio.run(main())


def other_limit(backend: Backend) -> int:
    """How many changes a write of the backend may have."""
    limit: int | None = getattr(backend, "max_changes", None)
    return limit or 1_000_000
