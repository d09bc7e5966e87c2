"""The promises of `Backend.watch` as tests: a backend that can watch inherits `WatchContract` besides `BackendContract`.

All waiting for words blocks the thread, and with it the event loop that opened the backend: so every test also shows that the
subscription doesn't need that loop.
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
"""Bytes of UTF-8 that a key may have."""


class Stoppable(Protocol):
    """A server that can be stopped as by SIGSTOP: it answers nothing, and no connection is closed."""

    def stop(self) -> object: ...
    def go_on(self) -> object: ...


class Noted:
    """A watcher that notes what it is told, and in which process: "lost", "back", or the versions by key."""

    def __init__(self, beside: Watcher | None = None) -> None:
        self._beside = beside
        self._said = threading.Condition()
        self.words: list[tuple[int, str, Mapping[str, int]]] = []

    def _note(self, word: str, versions: Mapping[str, int]) -> None:
        with self._said:
            self.words.append((os.getpid(), word, dict(versions)))
            self._said.notify_all()

    def changed(self, versions: Mapping[str, int], up_to: int | None = None) -> None:
        """Noted, after the other watcher has been told."""
        if self._beside is not None:
            self._beside.changed(versions, up_to)
        self._note("changed", versions)

    def lost(self) -> None:
        """Noted, after the other watcher has been told."""
        if self._beside is not None:
            self._beside.lost()
        self._note("lost", {})

    def back(self, up_to: int | None = None) -> None:
        """Noted, after the other watcher has been told."""
        if self._beside is not None:
            self._beside.back(up_to)
        self._note("back", {})

    @property
    def count(self) -> int:
        """How many words there are."""
        return len(self.words)

    def wait(self, what: str, told: Callable[[], bool], within: float = HANGS) -> None:
        """Block until it is told, for so many seconds at most; fail then, with what was wanted."""
        with self._said:
            assert self._said.wait_for(told, within), f"not told within {within} s: {what}; told {self.words[-5:]!r}"

    def wait_for_back(self, since: int = 0, within: float = HANGS) -> None:
        """Block until the last word but for changes is `back`, of this process, and came after the first `since` words."""

        def is_back() -> bool:
            said = [word for pid, word, _ in self.words[since:] if pid == os.getpid() and word != "changed"]
            return said[-1:] == ["back"]

        self.wait("back", is_back, within)

    def wait_for_version(self, versions: Mapping[str, int], since: int = 0) -> None:
        """Block until each key was told with its version, or everything was told to be old, after the first `since` words."""

        def is_told() -> bool:
            words = [(word, told) for pid, word, told in self.words[since:] if pid == os.getpid()]
            told = {key: version for word, some in words if word == "changed" for key, version in some.items()}
            lost = [place for place, (word, _) in enumerate(words) if word == "lost"]
            return versions.items() <= told.items() or any(
                word == "back" for word, _ in words[min(lost, default=len(words)) :]
            )

        self.wait(f"{len(versions)} key(s)", is_told)


class Noting(Layer):
    """Passes a subscription on, and notes what is told to whoever watches."""

    inline_read = inline_write = True

    def on_build(self) -> None:
        self.noted = Noted()

    async def watch(self, watcher: Watcher) -> None:
        """The inner one's, with both told, the watcher first."""
        self.noted = Noted(watcher)
        await self.inner.watch(self.noted)


class WatchContract:
    """Inherit it, override two fixtures, and every promise of `Backend.watch` is tested.

        class TestWatching(WatchContract):
            told_within = 6.0

            @pytest.fixture
            def make_backend(self, server):
                return lambda: Mine(server.url)

            @pytest.fixture
            def server(self): ...

    What `make_backend` gives are instances over one data set, of which several are open at a time.
    """

    told_within: float = 10.0
    """Seconds that the backend states: later than so long after a write nobody believes what was before it."""

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        """What makes an instance, not yet opened; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture make_backend")

    @pytest.fixture
    def server(self) -> Stoppable:
        """The server, to be stopped for a while; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture server")

    @asynccontextmanager
    async def _watched(self, make_backend: Callable[[], Backend]) -> AsyncGenerator[tuple[Backend, Backend, Noted]]:
        """An instance that is watched and that has said `back`, another one over the same data, and what is told."""
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

    # ------------------------------------------------------------ words
    def test_it_says_that_it_can_watch(self, make_backend: Callable[[], Backend]) -> None:
        """Before it is open: a layer has to know as it is built."""
        assert make_backend().can_watch

    def test_what_another_instance_writes_is_told_with_its_version(self, make_backend: Callable[[], Backend]) -> None:
        """All keys of a write in one call, deletes too, with the version that the write has got."""

        async def scenario(mine: Backend, other: Backend, noted: Noted) -> None:
            first = await other.write([Put("a", 1), Put("b", 1)])
            noted.wait_for_version({"a": first, "b": first})
            second = await other.write([Put("a", 2), Delete("b")])
            noted.wait_for_version({"a": second, "b": second})
            changed = {tuple(sorted(versions.items())) for _, _, versions in noted.words if versions}
            assert changed == {(("a", first), ("b", first)), (("a", second), ("b", second))}

        self._run(make_backend, scenario)

    def test_own_writes_are_told_with_their_versions(self, make_backend: Callable[[], Backend]) -> None:
        """So a cache can tell them from what others have written after them."""

        async def scenario(mine: Backend, other: Backend, noted: Noted) -> None:
            version = await mine.write([Put("a", 1)])
            noted.wait_for_version({"a": version})
            await mine.write([], {"a": version})
            deleted = await mine.write([Delete("a")], {"a": version})
            noted.wait_for_version({"a": deleted})

        self._run(make_backend, scenario)

    def test_keys_of_every_kind_are_told_as_they_are(self, make_backend: Callable[[], Backend]) -> None:
        """Whatever the words travel in, a name with quotes, NUL or four bytes per character arrives as it was written."""

        async def scenario(mine: Backend, other: Backend, noted: Noted) -> None:
            for key in [*(key for key in ODD_KEYS if len(key.encode()) <= MAX_NAME), "n" * MAX_NAME]:
                version = await other.write([Put(key, 1)])
                noted.wait_for_version({key: version})
            told = {key for _, word, versions in noted.words if word == "changed" for key in versions}
            assert told <= {*ODD_KEYS, "n" * MAX_NAME}

        self._run(make_backend, scenario)

    @pytest.mark.parametrize("size", [5, MAX_NAME])
    def test_many_keys_are_told_or_everything_is_old(self, make_backend: Callable[[], Backend], size: int) -> None:
        """A write with more keys than a word can have is told as `lost` and `back`."""

        async def scenario(mine: Backend, other: Backend, noted: Noted) -> None:
            keys = [f"{n:0{size}}" for n in range(min(500, other_limit(other)))]
            since = noted.count
            version = await other.write([Put(key, 1) for key in keys])
            noted.wait_for_version(dict.fromkeys(keys, version), since)
            since = noted.count
            version = await other.write([Put("a", 1)])
            noted.wait_for_version({"a": version}, since)

        self._run(make_backend, scenario)

    # ------------------------------------------------------------ when it is told
    def test_it_may_be_watched_before_it_is_open(self, make_backend: Callable[[], Backend]) -> None:
        """The words come once it is."""

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
        """And the thread of the subscription is gone."""
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
        """And once it answers again as back; what is written from then on is told."""

        async def scenario(mine: Backend, other: Backend, noted: Noted) -> None:
            since = noted.count
            server.stop()
            try:
                noted.wait("lost", lambda: "lost" in [word for _, word, _ in noted.words[since:]], self.told_within)
            finally:
                server.go_on()
            noted.wait_for_back(since)
            since = noted.count
            version = await other.write([Put("a", 1)])
            noted.wait_for_version({"a": version}, since)

        self._run(make_backend, scenario)

    def test_a_forked_child_is_told_by_a_subscription_of_its_own(self, make_backend: Callable[[], Backend]) -> None:
        """From its first operation on; the parent's goes on as if nothing had been."""

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

    # ------------------------------------------------------------ what it is for
    def test_a_near_tier_gives_what_others_have_written(self, make_backend: Callable[[], Backend]) -> None:
        """Once it is told, and not before the next write: own writes are near, though they are told as well."""

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
        """What is near isn't given while nobody tells, and not afterwards either."""

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
    """How many changes one write may have there."""
    limit: int | None = getattr(backend, "max_changes", None)
    return limit or 1_000_000
