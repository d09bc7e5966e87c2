"""The layer `metrics`: counts and times the operations of a stack."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from pocket_plug.errors import is_fault
from pocket_plug.otel.late import measuring_context
from pocket_plug.otel.reporting import current_context, suppressed, system_of
from pocket_plug.primitives.failures import say_once
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Entry, Keeper, Put, Tiered
from pocket_plug.store.layer import Layer, parts

from .counting import Tally
from .instruments import GLOBAL, Instruments, api, failure, join, look, of_store
from .recorded import RecordedRuns


class Metrics(Layer):
    """Counts lookups with hits and misses, writes, conflicts, errors and evictions; times operations on a disk or a network:
    those that may suspend, and those on a durable backend with no cache in front of it. Publishes how many durable runs a
    store keeps in each state.

    - `namespace`: the store's name in metrics (`db.namespace`); stores without one are counted together.
    - `durations=True`: times operations in memory, too, which costs some 10 µs each.
    """

    namespace: str = ""
    durations: bool = False

    inline_read = inline_write = True

    def on_build(self) -> None:
        below = parts(self.inner)
        self._about = of_store(system_of(below[-1]), self.namespace, self.label)
        tiered = [part for part in below if isinstance(part, Tiered)]
        self._keeper = next((part for part in below if isinstance(part, Keeper)), None)
        self._queues = [part.queue for part in tiered if part.queue is not None]
        self._durable = next((part.authority for part in tiered), below[-1])
        self._runs = (
            RecordedRuns(self.inner, self._durable) if self.inner.survives and not self.inner.buffered else None
        )
        self._instruments: Instruments | None = None
        self._tally: Tally | None = None
        self._counted_read, self._count_in = counted_read, _ = _counting(self.inner.read)
        join(self)
        always = self.durations or (self.inner.survives and not tiered)
        self._timed_read = always or not self.inner.inline_read
        self._timed_write = always or not self.inner.inline_write
        if not self._timed_read:
            setattr(self, "read", counted_read)  # noqa: B010 - decided here once, not at each call

    def follow(self, instruments: Instruments | None) -> None:
        """Count in the tally of these instruments from now on."""
        former, tally = self._instruments, self._tally
        if instruments is former:
            return
        if former is not None and tally is not None:
            if self._keeper is not None:
                tally.leave(self._keeper)
            for queue in self._queues:
                former.leave(queue)
            if self._runs is not None:
                former.leave_runs(self._runs)
        self._instruments = instruments
        self._tally = None if instruments is None else instruments.tally(self._about)
        self._count_in(self._tally)
        if instruments is None or self._tally is None:
            return
        if self._keeper is not None:
            self._tally.watch(self._keeper)
        for queue in self._queues:
            instruments.watch(queue, of_store(system_of(queue.durable), self.namespace, self.label))
        if self._runs is not None:
            instruments.watch_runs(self._runs, of_store(system_of(self._durable), self.namespace, self.label))

    async def open(self) -> None:
        await super().open()
        if self._runs is not None:
            self._runs.open()

    async def close(self) -> None:
        if self._runs is not None:
            self._runs.close()
        await super().close()

    def _now(self) -> Tally | None:
        """The tally to count in; None if there is no provider, or instrumentation is suppressed."""
        look()  # calls `follow` if the provider has changed
        return None if suppressed() else self._tally

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
            if isinstance(error, Exception) and (tally := self._now()) is not None:
                tally.failed("get_many", error)
            raise
        finally:
            if self._timed_read:
                self._record("get_many", started, failed)
        if (tally := self._now()) is not None:
            tally.hits.add_many(len(entries))
            tally.misses.add_many(len(keys) - len(entries))
        return entries

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        started = time.perf_counter() if self._timed_write else 0.0
        failed: BaseException | None = None
        try:
            version = await self.inner.write(changes, expect)
        except BaseException as error:
            failed = error
            if isinstance(error, Exception) and (tally := self._now()) is not None:
                tally.failed(_operation(changes), error)
            raise
        finally:
            if self._timed_write:
                self._record(_operation(changes), started, failed)
        if (tally := self._now()) is not None:
            for change in changes:
                if change.__class__ is Put:
                    tally.puts.add()
                else:
                    tally.deletes.add()
        return version

    def _record(self, operation: str, started: float, error: BaseException | None) -> None:
        instruments = look()
        if instruments is None or suppressed():
            return
        attributes = self._about | failure(error)
        attributes["db.operation.name"] = operation
        try:
            instruments.operation_duration.record(time.perf_counter() - started, attributes, measuring_context())
        except BaseException as fault:  # a failing meter must not fail the store
            if not is_fault(fault):
                raise
            say_once("measuring a store operation", fault)


def _counting(
    inner_read: Callable[[str], Awaitable[Entry | None]],
) -> tuple[Callable[[str], Awaitable[Entry | None]], Callable[[Tally | None], None]]:
    """A read that is counted, and a function that sets where: in a tally, or nowhere (None).

    A coroutine copies its closure at each call, so the closure has only what differs from stack to stack.
    """
    provider: object = None
    hits = misses = nowhere = itertools.count()
    failed: Callable[[str, Exception], None] | None = None

    def count_in(tally: Tally | None) -> None:
        nonlocal hits, misses, failed
        hits, misses, failed = (
            (nowhere, nowhere, None) if tally is None else (tally.hits.counter, tally.misses.counter, tally.failed)
        )

    async def read(key: str) -> Entry | None:
        nonlocal provider
        try:
            entry = await inner_read(key)
        except Exception as error:
            look()
            if failed is not None and not suppressed():
                failed("get", error)
            raise
        if api[GLOBAL] is not provider:
            provider = api[GLOBAL]
            look()  # calls `count_in` if the provider has changed
        if (context := current_context()) and suppressed(context):
            return entry
        if entry is None:
            next(misses)
        else:
            next(hits)
        return entry

    return read, count_in


def _operation(changes: Sequence[Change]) -> str:
    if len(changes) == 1:
        return "set" if isinstance(changes[0], Put) else "delete"
    return "write" if changes else "check"
