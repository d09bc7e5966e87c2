"""A near tier over a backend that notifies of others' writes (`Persistence` over `can_watch`)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from random import Random
from types import coroutine
from typing import Any, cast

import pytest

from pocket_plug.errors import ConfigError, StoreClosedError, StoreError
from pocket_plug.layers.persistence import MANY_MARKS, Persistence
from pocket_plug.layers.persistence.trust import MAX_MARKS
from pocket_plug.primitives.forking import after_fork
from pocket_plug.primitives.waiting import drive_inline
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Delete, Entry, Put, Watcher
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from pocket_plug.testing.scenarios import works_in_a_child
from pocket_plug.testing.watch_contract import Noted, WatchContract


# ---------------------------------------------------------------- the contract, on a simulated server
class Hub:
    """A data set in memory with several clients; a thread notifies each client of writes; it can be stopped."""

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
    """A client of a hub's data."""

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
    """The contract can be passed, so what it requires is possible."""

    @pytest.fixture
    def server(self) -> Hub:
        return Hub()

    @pytest.fixture
    def make_backend(self, server: Hub) -> Callable[[], Backend]:
        return lambda: Client(hub=server).build(server.data)


WALKS = 2_000
"""So many in the tests; `tests/crash/near_tier.py` goes on."""


# ---------------------------------------------------------------- any order of notifications, reads, fills and writes
@coroutine
def _step() -> Generator[None, None, None]:
    """An operation stops there, until the model continues it."""
    yield


class Stepped(Memory):
    """Memory that stops before and after each operation. As the durable tier it can be watched."""

    inline_read = inline_write = False

    def __init__(self, can_watch: bool = False) -> None:
        super().__init__()
        self.can_watch = can_watch
        self.is_slow = True
        self.history: list[dict[str, int]] = [{}]
        """The versions of all keys, after each write."""
        self.words: list[dict[str, int]] = []
        """What has been written and not been told yet."""

    async def read(self, key: str) -> Entry | None:
        await self._pause()
        entry = await super().read(key)
        await self._pause()
        return entry

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        await self._pause()
        entries = await super().read_many(keys)
        await self._pause()
        return entries

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        await self._pause()
        version = await super().write(changes, expect)
        if changes and self.can_watch:
            put = {change.key: version if isinstance(change, Put) else 0 for change in changes}
            self.history.append(self.history[-1] | put)
            self.words.append(dict.fromkeys(put, version))
        await self._pause()
        return version

    async def _pause(self) -> None:
        if self.is_slow:
            await _step()


class Underway:
    """A running operation: from which state on its result may be, and how it ended."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], since: dict[str, int], keys: Sequence[str], reads: bool
    ) -> None:
        self.coroutine, self.since, self.keys, self.reads = coroutine, since, keys, reads
        self.result: Any = None

    def is_over(self) -> bool:
        """Continue it to its next stop."""
        try:
            self.coroutine.send(None)
        except StopIteration as done:
            self.result = done.value
            return True
        return False


KEYS = ("a", "b")


class Walk:
    """Operations and notifications in an order made from a seed: no read returns a value older than what had been notified at its
    start.

    The model knows the states of the durable tier; its nth write leads to the nth state, and has version n. A read is right if
    its result is that of one of these states: not before the last notification of the key, nor before an own write of it was
    acknowledged; while the subscription is lost, not before the read's start. Several keys are read as of one state, if
    notifications come in order, or if each says up to which version all were notified.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.near, self.durable = Stepped(), Stepped(can_watch=True)
        self.stack = Persistence(to=self.durable).build(self.near)
        self.watcher = cast("Persistence", self.stack).trust
        self.under_way: list[Underway] = []
        self.since = dict.fromkeys(KEYS, 0)
        self.is_lost, self.in_order = True, self.random.random() < 0.5
        self.counts = not self.in_order and self.random.random() < 0.5
        self.told = set[int]()
        self._at_once(self.durable.write([Put(key, "value") for key in KEYS]))
        self.come_back()
        self._at_once(self.stack.read_many(KEYS))
        self.near.is_slow = self.random.random() < 0.8
        self.durable.is_slow = True

    def _at_once(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        self.near.is_slow = self.durable.is_slow = False
        return drive_inline(coroutine)

    def go(self, steps: int) -> None:
        """Take some steps; then everything ends and is notified, and the tiers agree."""
        rules = [self.read, self.read_one, self.write, self.others_write, self.go_on, self.tell, self.lose, self.cancel]
        weights = [self.random.choice((0, 1, 2, 4)) for _ in rules[:-2]] + [
            self.random.choice((0, 0.5, 2)) for _ in rules[-2:]
        ]
        weights[4] = self.random.choice((4, 8, 16))
        for rule in self.random.choices(rules, weights, k=steps):
            rule()
        while self.under_way:
            self.go_on()
        if self.is_lost:
            self.come_back()
        while self.durable.words:
            self.tell()
        durable = self._at_once(self.durable.read_many(KEYS))
        for _ in range(2):
            assert {key: entry for key in KEYS if (entry := self._at_once(self.stack.read(key)))} == durable
        assert self._at_once(self.near.read_many(KEYS)) == durable

    # ------------------------------------------------------------ operations of this process
    def _begin(self, coroutine: Coroutine[Any, Any, Any], keys: Sequence[str], *, reads: bool) -> None:
        since = dict.fromkeys(KEYS, len(self.durable.history) - 1) if self.is_lost else dict(self.since)
        self.under_way.append(Underway(coroutine, since, keys, reads))

    def read(self) -> None:
        self._begin(self.stack.read_many(KEYS), KEYS, reads=True)

    def read_one(self) -> None:
        async def read(key: str) -> dict[str, Entry]:
            entry = await self.stack.read(key)
            return {} if entry is None else {key: entry}

        key = self.random.choice(KEYS)
        self._begin(read(key), [key], reads=True)

    def write(self) -> None:
        keys, changes = self._changes()
        self._begin(self.stack.write(changes), keys, reads=False)

    def _changes(self) -> tuple[Sequence[str], list[Change]]:
        keys = self.random.choice((["a"], ["b"], ["a", "b"]))
        deletes = self.random.random() < 0.2
        return keys, [Delete(key) if deletes else Put(key, "value") for key in keys]

    def go_on(self) -> None:
        """A running operation takes a few steps."""
        if not self.under_way:
            return
        task = self.random.choice(self.under_way)
        for _ in range(self.random.choice((1, 1, 2, 99))):
            if task.is_over():
                self.under_way.remove(task)
                self._end(task)
                return

    def cancel(self) -> None:
        if self.under_way:
            task = self.under_way.pop(self.random.randrange(len(self.under_way)))
            with suppress(asyncio.CancelledError, StopIteration):
                task.coroutine.throw(asyncio.CancelledError())
                while True:
                    task.coroutine.send(None)

    def _end(self, task: Underway) -> None:
        if not task.reads:
            self._known(dict.fromkeys(task.keys, task.result))
            return
        seen = {key: task.result[key].version if key in task.result else 0 for key in task.keys}
        states = self.durable.history
        for key, version in seen.items():
            assert any(state.get(key, 0) == version for state in states[task.since[key] :]), (key, version, task.since)
        if self.in_order or self.counts:
            since = max(task.since[key] for key in seen)
            assert any(all(state.get(key, 0) == seen[key] for key in seen) for state in states[since:]), (seen, since)

    def _known(self, versions: Mapping[str, int]) -> None:
        """No later read may return older values than these."""
        for key, version in versions.items():
            self.since[key] = max(self.since[key], version)

    # ------------------------------------------------------------ writes of others, and notifications
    def others_write(self) -> None:
        is_slow, self.durable.is_slow = self.durable.is_slow, False
        drive_inline(self.durable.write(self._changes()[1]))
        self.durable.is_slow = is_slow

    def tell(self) -> None:
        """A notification: the next one, or any, and perhaps not for the last time."""
        if self.is_lost:
            self.come_back()
        elif words := self.durable.words:
            word = words[0] if self.in_order else self.random.choice(words)
            if self.in_order or self.random.random() < 0.8:
                words.remove(word)
            self.told |= set(word.values())
            self.watcher.changed(word, self._up_to() if self.counts else None)
            self._known(word)

    def lose(self) -> None:
        self.is_lost = True
        self.watcher.lost()

    def come_back(self) -> None:
        self.is_lost = False
        self.durable.words.clear()  # writes in between are not notified
        self.since = dict.fromkeys(KEYS, len(self.durable.history) - 1)
        self.told = {*range(len(self.durable.history))}
        self.watcher.back(self._up_to() if self.counts else None)

    def _up_to(self) -> int:
        """All writes with versions up to this one were notified, or existed when the subscription came back."""
        return next(version for version in count() if version + 1 not in self.told)


@pytest.mark.parametrize("seeds", [range(n, n + 250) for n in range(0, WALKS, 250)], ids=lambda seeds: f"{seeds[0]}")
def test_no_read_is_older_than_the_notifications(seeds: range) -> None:
    """Notifications may be late, doubled, in any order, or missing; when all have come, both tiers agree."""
    for seed in seeds:
        try:
            Walk(seed).go(60)
        except BaseException as error:
            error.add_note(f"the walk of seed {seed}")
            raise


# ---------------------------------------------------------------- one thing at a time
def watched(near: Memory | None = None) -> tuple[Persistence, Memory, Stepped]:
    """The stack, its near tier, and a durable tier that can be watched; notifications come."""
    near, durable = near or Memory(), Stepped(can_watch=True)
    durable.is_slow = False
    stack = cast("Persistence", Persistence(to=durable).build(near))
    stack.trust.back()
    drive_inline(stack.read("nothing"))
    return stack, near, durable


def test_own_writes_stay_near_when_they_are_notified() -> None:
    """The notification may come before or after the acknowledgement: its version shows that it is the own write."""
    stack, near, durable = watched()
    durable.is_slow = True
    writing = stack.write([Put("a", 1)])
    writing.send(None)
    writing.send(None)  # it is done
    stack.trust.changed(durable.words[0])
    with pytest.raises(StopIteration):
        writing.send(None)
    stack.trust.changed(durable.words[0])
    # without an operation of the durable tier
    assert drive_inline(stack.read("a")) == drive_inline(near.read("a")) == Entry(1, 1)
    assert drive_inline(stack.read_many(["a"])) == {"a": Entry(1, 1)}


def test_a_later_write_of_another_client_is_not_hidden_by_ours() -> None:
    """Another's write is notified while ours is on its way to the near tier, after the durable tier has done both."""
    near = Stepped()
    near.is_slow = False
    stack, _, durable = watched(near)
    near.is_slow = True
    writing = stack.write([Put("a", "ours")])
    writing.send(None)
    drive_inline(durable.write([Put("a", "theirs")]))
    stack.trust.changed(durable.words[-1])
    reading = stack.read("a")
    with suppress(StopIteration):
        while True:
            reading.send(None)
    with suppress(StopIteration):
        while True:
            writing.send(None)
    near.is_slow = False
    assert drive_inline(stack.read("a")) == Entry("theirs", 2)


def test_a_batch_does_not_mix_newer_and_older_states() -> None:
    """If a later write is notified before an earlier one, this says nothing about the earlier one's other keys."""
    stack, near, durable = watched()
    drive_inline(stack.write([Put("b", "old")]))
    stack.trust.changed(durable.words[-1], 1)
    drive_inline(durable.write([Put("a", "new"), Put("b", "new")]))
    drive_inline(durable.write([Put("c", 1)]))
    stack.trust.changed(durable.words[-1], 1)
    assert drive_inline(stack.read("a")) == Entry("new", 2)
    assert drive_inline(near.read("b")) == Entry("old", 1)
    assert drive_inline(stack.read_many("ab")) == {"a": Entry("new", 2), "b": Entry("new", 2)}
    stack.trust.changed(durable.words[-2], 3)
    drive_inline(stack.read_many("ab"))
    durable.is_slow = True  # from here on it doesn't answer
    assert drive_inline(stack.read_many("ab")) == {"a": Entry("new", 2), "b": Entry("new", 2)}


def test_nothing_is_mixed_after_the_server_was_restored_from_an_older_copy() -> None:
    """Its versions are lower than those notified before the subscription was lost."""
    stack, _, durable = watched()
    for _ in range(5):
        drive_inline(durable.write([Put("c", 1)]))
        stack.trust.changed(durable.words[-1])
    stack.trust.lost()
    stack.authority = older = Stepped(can_watch=True)
    older.is_slow = False
    drive_inline(older.write([Put("b", "old")]))
    stack.trust.back()
    assert drive_inline(stack.read("b")) == Entry("old", 1)
    drive_inline(older.write([Put("a", "new"), Put("b", "new")]))
    assert drive_inline(stack.read("a")) == Entry("new", 2)
    assert drive_inline(stack.read_many("ab")) == {"a": Entry("new", 2), "b": Entry("new", 2)}


def test_without_notifications_reads_go_through_and_fill_nothing() -> None:
    """A value that is read then could be outdated when notifications come again."""
    stack, near, durable = watched()
    drive_inline(stack.write([Put("a", 1), Put("b", 1)]))
    stack.trust.lost()
    drive_inline(durable.write([Put("a", 2)]))
    assert drive_inline(stack.read("a")) == Entry(2, 2)
    assert drive_inline(stack.read_many(["a", "b"])) == {"a": Entry(2, 2), "b": Entry(1, 1)}
    drive_inline(stack.write([Put("c", 3)]))
    assert drive_inline(near.read_many("abc")) == {"a": Entry(1, 1), "b": Entry(1, 1)}
    stack.trust.back()
    assert drive_inline(stack.read("b")) == Entry(1, 1)
    assert drive_inline(near.read_many("abc")) == {"b": Entry(1, 1)}


def test_unread_notifications_take_limited_memory() -> None:
    """A process that is idle while others write: in the end it drops its cached values, and reads again."""
    stack, near, durable = watched()
    drive_inline(stack.write([Put("a", 1)]))
    for n in range(MAX_MARKS + 5):
        stack.trust.changed({f"k{n}": n + 2})
    assert len(stack.trust.unsure) < MAX_MARKS
    drive_inline(durable.write([Put("a", 2)]))
    assert drive_inline(stack.read("a")) == Entry(2, 2)
    for n in range(MANY_MARKS + 5):
        stack.trust.changed({f"k{n}": n + 2})
    drive_inline(stack.read("not near"))
    assert not stack.trust.unsure
    assert drive_inline(near.read("a")) == Entry(2, 2)


def test_a_forked_child_trusts_no_cached_value_until_it_is_subscribed() -> None:
    """The subscription is its parent's."""
    stack, _, durable = watched()
    drive_inline(stack.write([Put("a", "old")]))
    drive_inline(durable.write([Put("a", "new")]))

    async def use() -> None:
        assert await stack.read("a") == Entry("new", 2)

    assert drive_inline(stack.read("a")) == Entry("old", 1)  # no notification has come
    assert works_in_a_child(use)
    assert drive_inline(stack.read("a")) == Entry("old", 1)


def test_a_backend_that_can_not_watch_is_not_watched() -> None:
    """The near tier works as before; and `watch` of such a backend is an error."""
    durable = Memory()
    stack = Persistence(to=durable).build(Memory())
    drive_inline(stack.open())
    drive_inline(stack.write([Put("a", 1)]))
    drive_inline(durable.write([Put("a", 2)]))
    assert drive_inline(stack.read("a")) == Entry(1, 1)
    assert not stack.can_watch
    with pytest.raises(ConfigError, match="can_watch"):
        drive_inline(durable.watch(cast("Persistence", stack)))


def test_a_failed_subscription_leaves_nothing_open() -> None:
    """A store that seems subscribed, and isn't, would return outdated values for ever."""

    class Deaf(Stepped):
        async def watch(self, watcher: Watcher) -> None:
            raise StoreError("no channel")

    durable = Deaf(can_watch=True)
    durable.is_slow = False
    stack = Persistence(to=durable).build(Memory())
    with pytest.raises(StoreError, match="no channel"):
        drive_inline(stack.open())
    with pytest.raises(StoreClosedError):
        drive_inline(durable.read("a"))


def test_layers_pass_a_subscription_on() -> None:
    """A layer around a backend that can watch can as well."""
    hub = Hub()
    layer = Idle().build(Client(hub=hub).build(hub.data))
    assert layer.can_watch
    noted = Noted()
    drive_inline(layer.open())
    drive_inline(layer.watch(noted))
    drive_inline(layer.write([Put("a", 1)]))
    noted.wait_for_version({"a": 1})
    drive_inline(layer.close())


class Idle(Layer):
    """Does nothing."""
