"""A near tier over a backend that tells what others write (`Persistence` over `can_watch`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue

import pytest

from pocket_plug.errors import StoreError
from pocket_plug.primitives.forking import after_fork
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry, Watcher
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from pocket_plug.testing.watch_contract import WatchContract


# ---------------------------------------------------------------- the contract, on a server that is none
class Hub:
    """A data set in memory with several clients, each told by a thread of its own what is written; it can be stopped."""

    def __init__(self) -> None:
        self.data = Memory()
        self.clients: list[Client] = []
        self.answers = threading.Event()
        self.answers.set()

    def stop(self) -> None:
        self.answers.clear()
        self.say("lost")

    def go_on(self) -> None:
        self.answers.set()
        self.say("back")

    def say(self, word: str, versions: Mapping[str, int] = NO_EXPECTATIONS) -> None:
        for client in self.clients:
            client.words.put((word, versions))


class Client(Layer):
    """One of the instances over a hub's data."""

    inline_read = inline_write = True
    hub: Hub

    def on_build(self) -> None:
        self.can_watch = True
        self._begin()
        after_fork(self._begin_in_child)

    def _begin(self) -> None:
        self.words: SimpleQueue[tuple[str, Mapping[str, int]]] = SimpleQueue()
        self._watcher: Watcher | None = None
        self._thread: threading.Thread | None = None

    def _begin_in_child(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            self._begin()
            self._tell(watcher)

    def _tell(self, watcher: Watcher) -> None:
        self._watcher = watcher

        def tell() -> None:
            while (word := self.words.get())[0] != "end":
                getattr(watcher, word[0])(*([word[1]] if word[0] == "changed" else []))

        self._thread = threading.Thread(target=tell, name="hub watch", daemon=True)
        self._thread.start()
        self.words.put(("back", {}))

    async def watch(self, watcher: Watcher) -> None:
        self._tell(watcher)

    async def read(self, key: str) -> Entry | None:
        return await self.inner.read(key) if self.hub.answers.is_set() else _no_answer()

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        version = await self.inner.write(changes, expect) if self.hub.answers.is_set() else _no_answer()
        if changes:
            keys = [change.key for change in changes]
            words = [("lost", {}), ("back", {})] if len(keys) > 100 else [("changed", dict.fromkeys(keys, version))]
            for word, versions in words:
                self.hub.say(word, versions)
        return version

    async def open(self) -> None:
        self.hub.clients.append(self)

    async def close(self) -> None:
        if self in self.hub.clients:
            self.hub.clients.remove(self)
        self.words.put(("end", {}))
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _no_answer() -> int:
    raise StoreError("the hub doesn't answer")


class TestHub(WatchContract):
    """The contract holds where it must, so what it asks of others can be had."""

    @pytest.fixture
    def server(self) -> Hub:
        return Hub()

    @pytest.fixture
    def make_backend(self, server: Hub) -> Callable[[], Backend]:
        return lambda: Client(hub=server).build(server.data)
