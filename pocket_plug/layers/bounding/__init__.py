"""The bounding layer: bounds the number of entries, their bytes and their lifetime. It evicts the least recently used first.

Directly over Memory it replaces Memory's table, so there is no second index. Over anything else it keeps an index, and
evicts by deleting.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from pocket_plug.errors import ConfigError, ConflictError, is_fault
from pocket_plug.hookspecs import hookimpl
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.failures import log_failure
from pocket_plug.primitives.forking import new_rlock
from pocket_plug.primitives.locks import HAS_GIL
from pocket_plug.primitives.signatures import is_async, misfit
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Delete, Entry, Put, Reason, Tiered, with_version
from pocket_plug.store.entry_table import Closed, Dropped
from pocket_plug.store.layer import Layer, parts
from pocket_plug.store.memory import Memory
from pocket_plug.store.scanning import paged

from .sizes import size_of as size_of
from .table import BoundedTable

__all__ = ["Bounding", "Reason", "size_of"]

_UNKNOWN = 0
"""The version of an entry that is there, or may be, and wasn't read yet."""

_reporting: ContextVar[tuple[Layer, ...]] = ContextVar("pocket_plug.reporting", default=())
"""The layers whose `on_evict` is being called here: evictions that it causes itself are not reported."""


class Bounding(Layer):
    """Keeps a store small: an upper bound for entries, for bytes, and for the lifetime of each entry.

    - `max_entries`: the most keys. The least recently set or read entry is evicted first.
    - `max_bytes`: the most bytes that all keys and values take together, as `size_of` estimates each when it is set.
    - `ttl`: how long an entry lives after a set (seconds, timedelta or "5m"), besides a ttl that it may have itself.
      Neither reading nor `update` renews it, so a counter starts again from its default after that time. No other layer
      knows it: `store.ttl` and `entry` return the entry's own expiry time.
    - `on_evict(key, value, reason)`: called for each evicted entry, with reason "size", "bytes" or "expired"; never for a
      delete, nor if a live value is overwritten. It is called after the write that evicted, with no lock held, and
      may use the store; evictions that it causes itself are not reported. What it raises is logged by the `pocket_plug`
      logger the first time, is counted in `failures`, and never fails the write. An `async def` is awaited by the write;
      the store's sync writes then go through an event loop.
    - `durable=True`: confirms that entries of a durable backend may be deleted.

    Each item of an append-only list is an entry, so lists lose their oldest items first, as if they were trimmed. Records of
    pocket_plug itself are neither counted nor evicted. A write looks for expired entries before it evicts a live one: always
    if there are at most 64, else at most once per n/4 writes, n = number of entries. Entries that a backend other than
    Memory has removed itself when they expired are not reported.

    With a limit below 1 it raises ConfigError; also when it is built without a limit, over a durable backend without
    `durable=True`, or around persistence.

    >>> from pocket_plug import SyncStore
    >>> store = SyncStore(layers=[Bounding(max_entries=2, on_evict=print)])
    >>> store.set_many({"a": 1, "b": 2})
    >>> store.get("a")
    1
    >>> store.set("c", 3)  # prints what on_evict is called with
    b 2 size
    """

    max_entries: int | None = None
    max_bytes: int | None = None
    ttl: Duration | None = None
    on_evict: Callable[[str, Any, Reason], object] | None = None
    durable: bool = False

    inline_read = inline_write = True

    def __post_init__(self) -> None:
        for option in ("max_entries", "max_bytes"):
            limit = getattr(self, option)
            if limit is not None and limit < 1:
                raise ConfigError(f"bounding: {option} can't be {limit}; give a whole number from 1 up")
        if self.ttl is not None:
            seconds(self.ttl, "bounding: ttl")
        if self.on_evict is not None and (taken := misfit(self.on_evict, 3)) is not None:
            raise ConfigError(f"bounding: on_evict takes {taken}, but is called with 3 arguments: key, value, reason")

    def on_build(self) -> None:
        self._check_stack()
        self.evicts = True
        self.failures = 0
        """How often `on_evict` raised or an eviction failed."""
        self._awaits = self.on_evict is not None and is_async(self.on_evict)
        self._lock = new_rlock(self._cut_off)  # reentrant, as Memory's
        self._is_free = True  # false while the index is being changed, by whoever has the lock
        self._going: dict[str, tuple[Any, Reason]] = {}  # chosen for eviction, but not deleted yet
        self._unnoted: list[tuple[Iterable[Change], int]] = []  # writes to be noted, and their versions
        inner, ttl = self.inner, None if self.ttl is None else seconds(self.ttl)
        self._index = index = BoundedTable(
            self.max_entries,
            self.max_bytes,
            ttl,
            self.clock,
            keeps_values=type(inner) is Memory,
        )
        if type(inner) is Memory:
            # The index becomes Memory's own table, and its functions and Memory's replace the methods below.
            index.notify = self._report_evictions if self.on_evict is not None else None
            inner.adopt(index)
            write = index.writing(inner)
            read = index.read if HAS_GIL else inner.locked_read
            direct: dict[str, Any] = {"read": read, "write": write, "scan": inner.scan, "open": inner.open}
            self.__dict__.update(direct)
        self.inline_write = inner.inline_write and inner.inline_read and not self._awaits
        self.needs_loop = inner.needs_loop or self._awaits

    def _check_stack(self) -> None:
        if self.max_entries is None and self.max_bytes is None and self.ttl is None:
            raise ConfigError("bounding has no limit; give it max_entries, max_bytes or ttl")
        if any(isinstance(part, Tiered) for part in parts(self.inner)):
            raise ConfigError(
                "bounding around persistence would delete what persistence must keep; write persistence first: "
                "layers=[Persistence(…), Bounding(…)] bounds the cache in memory"
            )
        if self.inner.read_only:
            raise ConfigError(
                f"bounding over {self.inner!r}, which is read-only: it evicts by deleting; leave out one of the two, or put "
                "readonly around bounding"
            )
        if self.inner.survives and not self.durable:
            raise ConfigError(
                f"bounding over {self.inner!r} deletes durable entries when they are too many or too old; if that is "
                "meant, set durable=True; to bound what is in memory only: layers=[Persistence(to=…), Bounding(…)]"
            )

    @property
    def entries(self) -> int:
        """The number of entries that it knows, including expired ones that no write has removed yet."""
        return len(self._index)

    @property
    def evictions(self) -> Mapping[Reason, int]:
        """The number of evicted entries so far, by reason; always the same mapping, which is updated."""
        return self._index.evictions

    # ------------------------------------------------------------ over anything but Memory (see `on_build`)
    async def open(self) -> None:
        """Count the entries that are there already, as if they were set now."""
        await super().open()
        self._change(self._forget_all)
        async for key in self.inner.scan():
            if self.max_bytes is None:
                self._note([Put(key, None)], _UNKNOWN)
            elif entry := await self.inner.read(key):
                self._note([Put(key, entry.value, entry.expires_at)], entry.version)
        await self._evict()

    async def read(self, key: str) -> Entry | None:
        """The inner one's entry, unless it is older than its ttl."""
        known = self._known(key)
        return self._seen(key, known, await self.inner.read(key))

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The inner one's entries, as of one moment, without those whose ttl is over."""
        if type(self.inner) is Memory:  # its table is this layer's
            return await self.inner.read_many(keys)
        known = {key: self._known(key) for key in keys}
        entries = await self.inner.read_many(known)
        seen = {key: self._seen(key, known[key], entries.get(key)) for key in known}
        return {key: entry for key, entry in seen.items() if entry is not None}

    def _seen(self, key: str, known: Any, entry: Entry | None) -> Entry | None:
        """What a reader gets of the inner one's entry; `known` is what the index had before the read."""
        if entry is None:
            if known is not None:
                self._change(self._forget, key, known)
        elif known is None or _UNKNOWN < known.version < entry.version:
            self._note([Put(key, entry.value, entry.expires_at)], entry.version)  # set by somebody else
        elif not self._index.alive(known, self.clock()):
            return None
        else:
            known.version = entry.version
            self._index.touch(key)
        return entry

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Write to the inner one; then delete whatever is over the bounds."""
        if self.ttl is not None:
            # The inner one still has entries that have expired here, and would raise ConflictError if none is expected.
            self._change(self._take_note, [*expect, *(change.key for change in changes)])
            await self._evict()
        puts = [change for change in changes if isinstance(change, Put)]
        try:
            version = await self.inner.write(changes, expect)
            self._note(changes, version)
        except ConflictError:
            raise
        except BaseException:
            # They may have been stored. If this is interrupted too, the next write notes them.
            self._unnoted += [(puts, _UNKNOWN)]
            self._change(self._take_note)
            raise
        await self._evict()
        return version

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The inner one's keys, without those whose ttl is over."""
        if limit == 0:
            return
        given = 0
        async with aclosing(paged(self.inner, prefix, after=after, reverse=reverse, size=limit)) as keys:
            async for key in keys:
                known = self._known(key)
                if known is None or self._index.alive(known, self.clock()):
                    yield key
                    given += 1
                    if given == limit:
                        return

    def _known(self, key: str) -> Any:
        """What the index has of a key, or had until it was chosen for eviction."""
        known = self._index.entries.get(key)
        if known is self._index.gone:
            known = None
        return known if known is not None or (going := self._going.get(key)) is None else going[0]

    def _change(self, change: Callable[..., None], *arguments: Any) -> None:
        """Change the index; but not if this has interrupted a change in the same thread, as a signal's handler may, or the end of
        a dropped coroutine. What is in `_unnoted` is noted later then.
        """
        with self._lock:
            was_free, self._is_free = self._is_free, False
            try:
                if was_free:
                    change(*arguments)
            finally:
                self._is_free = was_free

    def _forget_all(self) -> None:
        self._index.clear()
        self._going.clear()
        self._unnoted.clear()

    def _forget(self, key: str, known: Any) -> None:
        if self._index.entries.get(key) is known:  # not set in the meantime
            self._index.take(key)

    def _note(self, changes: Iterable[Change], version: int) -> None:
        """Note what was written. Writes may return in another order than they were done in: the newest version counts."""
        self._unnoted += [(changes, version)]
        self._change(self._take_note)

    def _take_note(self, keys: Iterable[str] = ()) -> None:
        """Note all writes, and choose what is to be evicted: what of `keys` has expired, and what is over the bounds."""
        index = self._index
        while self._unnoted:
            changes, version = self._unnoted[0]
            # Of two with the same version the second would be ignored.
            last = {change.key: change for change in changes}
            versioned = [with_version(change, change.version or version) for change in last.values()]
            index.version += 1  # here it only counts the writes
            index.apply(versioned, version, self.clock())
            del self._unnoted[0]
        index.take_expired(keys, self.clock())
        self._choose_dropped()

    def _choose_dropped(self) -> None:
        for key, known, reason in self._index.dropped:
            self._going.pop(key, None)  # chosen again, with another version: its order is the new one
            self._going[key] = known, reason
        self._index.dropped = []

    async def _evict(self) -> None:
        """Delete the chosen entries. A failure fails no write: the deletion is tried again after the next write."""
        dropped: list[Dropped] = []
        if self._unnoted:  # by what has interrupted the last change
            self._change(self._take_note)
        while self._going:
            try:
                key, chosen = next(iter(self._going.items()))
            except (RuntimeError, StopIteration):  # changed by another thread or by what has interrupted this, just now
                continue
            try:
                entry = await self._delete(key, chosen[0])
            except Exception as error:  # noqa: BLE001 - whatever a backend may raise
                self._report("could not evict", error)
                break
            with self._lock:
                if self._going.get(key) is chosen:
                    self._going.pop(key, None)
                if entry is not None:
                    dropped.append((key, entry, chosen[1]))
                    self._index.count(dropped[-1:])
        if dropped and self.on_evict is not None:
            await self._report_evictions(dropped)

    async def _delete(self, key: str, known: Any) -> Entry | None:
        """Delete the version that was chosen and return its entry; None if somebody else has changed it since."""
        while (entry := await self.inner.read(key)) is not None:
            if known.version == _UNKNOWN and key not in self._index.entries:
                known.version = entry.version
            if known.version != entry.version:
                self._note([Put(key, entry.value, entry.expires_at)], entry.version)
                return None
            try:
                await self.inner.write((Delete(key),), {key: entry.version})
            except ConflictError:
                continue
            return entry
        return None

    def _cut_off(self) -> None:
        """In a forked child: another thread held the lock at the fork, so the index may be half changed."""
        self._is_free = True
        self._index.entries = Closed(
            "this process was forked during a write to this bounded store, so the number of its entries is not known; "
            "close it and open it again"
        )

    # ------------------------------------------------------------ on_evict
    async def _report_evictions(self, dropped: Sequence[Dropped]) -> None:
        """Call `on_evict` for each, even if a call fails; a cancellation is raised at the end."""
        reporting = _reporting.get()
        if self in reporting or self.on_evict is None:
            return
        cancelled: asyncio.CancelledError | None = None
        try:
            _reporting.set((*reporting, self))
            for key, entry, reason in dropped:
                try:
                    answer = self.on_evict(key, entry.value, reason)
                    if self._awaits and inspect.isawaitable(answer):
                        await answer
                    elif inspect.iscoroutine(answer):
                        answer.close()
                        self._report("on_evict isn't `async def`, but returned a coroutine, which was not awaited, for")
                except asyncio.CancelledError as error:
                    cancelled = error
                except BaseException as error:  # it is the user's error, and the write is done
                    if not is_fault(error):
                        raise
                    self._report("on_evict raised for", error)
        finally:
            _reporting.set(reporting)
        if cancelled is not None:
            raise cancelled

    def _report(self, what: str, error: BaseException | None = None) -> None:
        self.failures += 1
        if self.failures == 1:
            log_failure(logging.WARNING, f"bounding: {what} an entry; later failures are only counted", error)


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    return [Bounding]
