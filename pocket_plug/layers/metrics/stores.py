"""The layer `metrics`: what a stack is asked, and what it answers, in numbers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from pocket_plug.backend import NO_EXPECTATIONS, Backend, Change, Entry, Put
from pocket_plug.errors import is_fault
from pocket_plug.layer import Layer, parts
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.persistence import Persistence
from pocket_plug.memory import Memory
from pocket_plug.reporting import say_once, system_of

from . import settings
from .counting import Keeper, Tally, namespaces
from .instruments import failure, instruments_of, of_store


class Metrics(Layer):
    """Counts lookups with hits and misses, writes, conflicts, errors and evictions; times operations that go to a disk or
    a network, which are those that may suspend, and those on a durable backend with no cache in front of it.

    - `namespace`: names the store in what is published (`db.namespace`); stores without one are counted together.
    - `durations=True`: time operations in memory, too, which costs some 10 µs each.
    """

    namespace: str = ""
    durations: bool = False

    inline_read = inline_write = True

    def on_build(self) -> None:
        self._system = system_of(parts(self.inner)[-1])
        self._instruments = instruments_of(settings.settings.meter_provider)
        self._namespace = namespaces[self.namespace]
        self._tally = tally = self._instruments.tally(self._namespace, self._system)
        self._put = tally.puts.add
        self._counted_read = counted_read = _counting(self.inner.read, tally)
        cached = any(isinstance(part, Persistence) for part in parts(self.inner))
        always = self.durations or (self.inner.survives and not cached)
        self._timed_read = always or not self.inner.inline_read
        self._timed_write = always or not self.inner.inline_write
        if not self._timed_read:
            setattr(self, "read", counted_read)  # noqa: B010 - decided here once, not at each call
        keeper = _keeper_of(self.inner)
        if keeper is not None:
            tally.watch(keeper)
        for part in parts(self.inner):
            queue = part.queue if isinstance(part, Persistence) else None
            if queue is not None:
                self._instruments.watch(queue, self._namespace, system_of(queue.durable))

    async def read(self, key: str) -> Entry | None:
        started = time.perf_counter()
        try:
            entry = await self._counted_read(key)
        except BaseException as error:
            self._record("get", started, error)
            raise
        self._record("get", started, None)
        return entry

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        keys = list(keys)
        started = time.perf_counter()
        failed: BaseException | None = None
        try:
            entries = await self.inner.read_many(keys)
        except BaseException as error:
            failed = error
            if isinstance(error, Exception):
                self._tally.failed("get_many", error)
            raise
        finally:
            if self._timed_read:
                self._record("get_many", started, failed)
        self._tally.hits.add_many(len(entries))
        self._tally.misses.add_many(len(keys) - len(entries))
        return entries

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        started = time.perf_counter() if self._timed_write else 0.0
        failed: BaseException | None = None
        try:
            version = await self.inner.write(changes, expect)
        except BaseException as error:
            failed = error
            if isinstance(error, Exception):
                self._tally.failed(_operation(changes), error)
            raise
        finally:
            if self._timed_write:
                self._record(_operation(changes), started, failed)
        for change in changes:
            if change.__class__ is Put:
                self._put()
            else:
                self._tally.deletes.add()
        return version

    def _record(self, operation: str, started: float, error: BaseException | None) -> None:
        attributes = of_store(self._namespace, self._system) | failure(error)
        attributes["db.operation.name"] = operation
        try:
            self._instruments.operation_duration.record(time.perf_counter() - started, attributes)
        except BaseException as fault:  # a failing meter must not fail the store
            if not is_fault(fault):
                raise
            say_once("measuring a store operation", fault)


def _keeper_of(stack: Backend) -> Keeper | None:
    """The outermost part that knows what it keeps. Bounding right over Memory is Memory's own way of keeping."""
    for part in parts(stack):
        if isinstance(part, Memory) or (isinstance(part, Bounding) and type(part.inner) is not Memory):
            return part
    return None


def _counting(
    inner_read: Callable[[str], Awaitable[Entry | None]], tally: Tally
) -> Callable[[str], Awaitable[Entry | None]]:
    """A read that is counted. What it calls are local names: a third of what it costs would be to find them."""
    hits, misses = tally.hits.counter, tally.misses.counter

    async def read(key: str) -> Entry | None:
        try:
            entry = await inner_read(key)
        except Exception as error:
            tally.failed("get", error)
            raise
        if entry is None:
            next(misses)
        else:
            next(hits)
        return entry

    return read


def _operation(changes: Sequence[Change]) -> str:
    if len(changes) == 1:
        return "set" if isinstance(changes[0], Put) else "delete"
    return "write" if changes else "check"
