"""A backend with three methods and a counter passes the backend contract; `read_many`, which is derived, shows one moment too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from pocket_plug.backends.sqlite import SQLite
from pocket_plug.errors import StoreBusyError
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import NO_EXPECTATIONS, READ_TRIES, Backend, Change, Entry, Put
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.contracts import BackendContract


class Plain(Backend):
    """The methods that the manual requires of a backend, and no more."""

    def __init__(self, clock: FakeClock) -> None:
        self._memory = Memory()
        self._memory.clock = clock

    async def read(self, key: str) -> Entry | None:
        await asyncio.sleep(0)
        return await self._memory.read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        await asyncio.sleep(0)
        return await self._memory.write(changes, expect)

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        async for key in self._memory.scan(prefix, after=after, reverse=reverse, limit=limit):
            yield key

    async def version(self) -> int:
        return await self._memory.version()

    async def close(self) -> None:
        await self._memory.close()


class TestPlain(BackendContract):
    """Passes the whole contract."""

    @pytest.fixture
    def make_backend(self, clock: FakeClock) -> Callable[[], Backend]:
        return lambda: Plain(clock)


class Rewritten(Memory):
    """During the first reads of "b", another caller writes "a"."""

    left = 0
    reads = 0

    async def read(self, key: str) -> Entry | None:
        self.reads += 1
        if key == "b" and self.left:
            self.left -= 1
            await self.write([Put("a", self.left), Put("c", self.left)])
        return await super().read(key)


def test_what_was_changed_between_the_reads_is_read_again() -> None:
    """And no other key."""
    memory = Rewritten()
    drive(memory.write([Put(key, "old") for key in "abcd"]))
    memory.left = 1
    found = drive(memory.read_many("abcd"))
    assert {key: entry.value for key, entry in found.items()} == {"a": 0, "b": "old", "c": 0, "d": "old"}
    assert memory.reads == 4 + 1


def test_a_batch_that_never_reads_one_moment_is_an_error() -> None:
    """The error names the keys and the way out: never half of a write, and never a read without end."""

    class Restless(Memory):
        async def read(self, key: str) -> Entry | None:
            found = await super().read(key)
            await self.write([Put(key, "new")])
            return found

    with pytest.raises(StoreBusyError, match=rf"{READ_TRIES} tries, last 'a', 'b'; .* override read_many in Restless"):
        drive(Restless().read_many("ab"))
    assert drive(Restless().read_many("a")) == {}


@pytest.mark.parametrize("kind", [Memory, SQLite])
def test_a_class_that_overrides_read_alone_is_not_passed_by(kind: type[Backend], tmp_path: Path) -> None:
    """Its batches use its own `read`, whatever its base class has."""

    class Doubled(kind):  # type: ignore[misc, valid-type]
        async def read(self, key: str) -> Entry | None:
            entry = await super().read(key)
            return entry and Entry(entry.value * 2, entry.version)

    backend = Doubled() if kind is Memory else Doubled(tmp_path / "state.db")
    drive(backend.open())
    drive(backend.write([Put("a", 1), Put("b", 2)]))
    assert {key: entry.value for key, entry in drive(backend.read_many("ab")).items()} == {"a": 2, "b": 4}
    drive(backend.close())


def test_a_layer_that_overrides_read_alone_is_not_passed_by() -> None:
    """Nor is a layer that inherits `read_many` from a layer with both."""

    class Both(Layer):
        async def read(self, key: str) -> Entry | None:
            return await self.inner.read(key)

        async def read_many(self, keys: object) -> dict[str, Entry]:
            raise AssertionError("this batch is another read's")

    class Hidden(Both):
        async def read(self, key: str) -> Entry | None:
            return None if key == "secret" else await self.inner.read(key)

    async def main() -> None:
        layer = Hidden().build(Memory())
        await layer.write([Put("secret", 1), Put("open", 2)])
        assert (await layer.read_many(["secret", "open"])).keys() == {"open"}

    asyncio.run(main())
