"""The bounding layer: bounds the number of entries, their bytes and their lifetime. It evicts the least recently used first.

Directly over Memory it replaces Memory's table, so there is no second index. Over anything else it keeps an index, and
evicts by deleting.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import sys
import types
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from math import inf
from typing import Any

from pocket_plug.errors import ConfigError, ConflictError, is_fault
from pocket_plug.hookspecs import hookimpl
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.failures import log_failure
from pocket_plug.primitives.forking import new_rlock
from pocket_plug.primitives.names import OWN, PAST_OWN
from pocket_plug.primitives.signatures import is_async, misfit
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Delete, Entry, Put, Reason, Tiered, with_version
from pocket_plug.store.entry_table import Closed, Dropped, EntryTable
from pocket_plug.store.layer import Layer, parts
from pocket_plug.store.memory import Memory
from pocket_plug.store.scanning import paged

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
        self._index = index = _Bounded(self)
        inner = self.inner
        if type(inner) is Memory:
            index.notify = self._report_evictions if self.on_evict is not None else None
            inner.adopt(index)
            write = index.writing(inner)
            direct: dict[str, Any] = {"read": index.read, "write": write, "scan": inner.scan, "open": inner.open}
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

    # ------------------------------------------------------------ over anything but Memory
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


class _Kept(Entry):
    """An entry with its own deadline: the earlier one of `expires_at` and the layer's ttl."""

    __slots__ = ("deadline",)
    deadline: float | None

    def __init__(
        self: Any, value: Any, version: int, expires_at: float | None = None, deadline: float | None = None
    ) -> None:
        self.value = value
        self.version = version
        self.expires_at = expires_at
        self.deadline = deadline

    def __eq__(self, other: object) -> bool:
        """Equal to any Entry with the same fields."""
        if not isinstance(other, Entry):
            return NotImplemented
        mine, its = (self.value, self.version, self.expires_at), (other.value, other.version, other.expires_at)
        return mine == its


_new: Callable[[type[_Kept]], Any] = object.__new__  # half the cost of calling the class, which runs __init__


class _Weighed(_Kept):
    __slots__ = ("size",)
    size: int


_GONE = _Weighed(None, 0, -inf, -inf)
_GONE.size = 0


class _Bounded(EntryTable):
    """Entries in the order of their last use, with what is needed to keep the bounds.

    For Memory these are the entries themselves. As an index over another backend it holds no values.
    """

    mapping = OrderedDict[str, Any]
    gone = _GONE

    def __init__(self, limits: Bounding) -> None:
        super().__init__()
        self._max_entries = limits.max_entries or sys.maxsize
        self._max_bytes = limits.max_bytes or sys.maxsize
        self._weighs = limits.max_bytes is not None
        self._ttl = None if limits.ttl is None else seconds(limits.ttl)
        self.has_ttl = limits.ttl is not None
        self._values = type(limits.inner) is Memory
        self._simple = self._values and not self._weighs and limits.on_evict is None  # evictions needn't be reported
        self._record: type[_Kept] = _Weighed if self._weighs else _Kept
        self._clock = limits.clock

    def clear(self) -> None:
        self._bytes = self._exempt = 0
        super().clear()

    def take_over(self, entries: Mapping[str, Entry], now: float) -> None:
        """Take them as if they were set now. The next write evicts what is too much, since it can report it."""
        limits = self._max_entries, self._max_bytes
        self._max_entries = self._max_bytes = sys.maxsize
        super().take_over(entries, now)
        self._max_entries, self._max_bytes = limits

    async def read(self, key: str) -> Entry | None:
        """The entry, which is the most recently used one then. Without a lock: each call on an OrderedDict is atomic."""
        entries, clock = self.entries, self._clock
        entry: _Kept | None = entries.get(key)
        if entry is None or ((deadline := entry.deadline) is not None and clock() >= deadline):
            return None
        try:  # noqa: SIM105 - half the cost of this function
            entries.move_to_end(key)
        except KeyError:  # removed by another thread, just now
            pass
        return entry

    def read_many(self, keys: Iterable[str], now: float) -> dict[str, Entry]:
        found = super().read_many(keys, now)
        for key in found:
            self.touch(key)
        return found

    def writing(self, memory: Memory) -> Callable[..., Awaitable[int]]:
        """The function that writes if the entries are Memory's own: Memory's `write`, or a faster one.

        If evictions needn't be reported, nothing may have expired and nothing is exempt, the faster one does in one frame
        what a put needs. A set then takes 1.17 µs instead of 1.44: four frames less, counting __init__.
        """
        if not self._simple:
            return memory.write
        others, lock, clock, ttl, most = memory.write, memory.lock, memory.clock, self._ttl, self._max_entries

        async def write(changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            change: Any = changes[0] if len(changes) == 1 else None
            if change.__class__ is not Put or change.version is not None or not memory.is_free:
                return await others(changes, expect)
            key = str(change.key)
            with lock:
                memory.is_free = False
                try:
                    now = clock() if ttl is not None or self.earliest < inf else 0.0
                    if expect:
                        self.check(expect, now)
                    version = self.version = self.version + 1
                    if now >= self.earliest or self.buried or self._exempt or OWN <= key < PAST_OWN:
                        self.apply(changes, version, now)
                        dropped, self.dropped = self.dropped, []
                        self.count(dropped)
                        return version
                    entries: OrderedDict[str, Any] = self.entries
                    expires_at = deadline = change.expires_at
                    if ttl is not None:
                        own = now + ttl if change.renews or (old := entries.get(key)) is None else old.deadline
                        if deadline is None or own < deadline:
                            deadline = own
                    record = _new(_Kept)
                    record.value = change.value
                    record.version = version
                    record.expires_at = expires_at
                    record.deadline = deadline
                    if deadline is not None and deadline < self.earliest:
                        self.earliest = deadline
                    if key in entries:
                        entries.move_to_end(key)
                    elif self.sorted is not None:
                        self.note(key)
                    entries[key] = record
                    if len(entries) > most:
                        self.shrink(entries, most)
                    return version
                finally:
                    memory.is_free = True

        return write

    def shrink(self, entries: OrderedDict[str, Any], most: int) -> None:
        """Evict down to `most` entries, without a report."""
        while len(entries) > most:
            self.evictions["size"] += 1
            key, _ = entries.popitem(False)
            if self.sorted is not None:
                self.note(key)

    def touch(self, key: str) -> None:
        """Make this entry the most recently used one."""
        with contextlib.suppress(KeyError):  # removed by another thread, just now
            self.entries.move_to_end(key)

    def deadline(self, entry: _Kept) -> float | None:
        return entry.deadline

    def alive(self, entry: _Kept, now: float) -> bool:
        return (deadline := entry.deadline) is None or now < deadline

    def apply(self, changes: Sequence[Change], version: int, now: float) -> None:
        """Do all changes or none, as in Memory's own table, then evict what is over the bounds."""
        entries, gone = self.entries, self.gone
        new: dict[str, Any] = {}
        deleted: list[str] = []
        overwritten: list[Dropped] = []
        exempted = 0
        for change in changes:
            key = str(change.key)
            old = new[key] if key in new else entries.get(key)
            if change.version is not None and not self.takes(change, change.version, old, now):
                continue
            if old is None:
                if self.sorted is not None:
                    self.note(key)
            elif now >= self.earliest and old is not gone and not self.alive(old, now):
                overwritten.append((key, old, "expired"))
            if isinstance(change, Put):
                exempt = OWN <= key < PAST_OWN
                if exempt and old is None:
                    exempted += 1
                record = self._record_of(change, old, version, now, exempt)
            elif old is not None:
                record = gone
                deleted.append(key)
            else:
                continue
            new.pop(key, None)  # the last change of a key is its last use
            new[key] = record
        self._bytes += self._growth(new) if self._weighs else 0
        self._exempt += exempted
        if overwritten:
            self.dropped += overwritten
        if deleted:
            self.buried += deleted
        entries |= new
        if self.buried:
            self.bury()
        self._keep_bounds(new, now)

    def _record_of(self, put: Put, old: Any, version: int, now: float, exempt: bool) -> _Kept:
        """The record of a put, with its expiry time: `old` is the record that it overwrites."""
        deadline = put.expires_at
        if self._ttl is not None and not exempt:
            own = now + self._ttl
            if not put.renews and old is not None and old.deadline is not None and self.alive(old, now):
                own = old.deadline
            if deadline is None or own < deadline:
                deadline = own
        if deadline is not None and deadline < self.earliest:
            self.earliest = deadline
        record: Any = _new(self._record)
        record.value = put.value if self._values else None
        record.version = put.version or version
        record.expires_at = put.expires_at
        record.deadline = deadline
        if self._weighs:
            record.size = 0 if exempt else sys.getsizeof(put.key) + size_of(put.value)
        kept: _Kept = record
        return kept

    def _growth(self, new: Mapping[str, Any]) -> int:
        """How many bytes `new` adds."""
        entries = self.entries
        return sum(record.size - (entries[key].size if key in entries else 0) for key, record in new.items())

    def _keep_bounds(self, new: Mapping[str, Any], now: float) -> None:
        """Make `new` the most recently used, and take out what is over the bounds."""
        entries, gone, weighs = self.entries, self.gone, self._weighs
        for key, record in new.items():
            if record is not gone:
                # an entry that is too big is evicted first, so that no other is evicted for it
                entries.move_to_end(key, not weighs or record.size <= self._max_bytes)
        if now >= self.earliest:
            self.sweep(now)
        while len(entries) - self._exempt > self._max_entries:
            self._take_oldest("size", now)
        while self._bytes > self._max_bytes:
            self._take_oldest("bytes", now)

    def take(self, key: str, reason: Reason | None = None) -> None:
        entries = self.entries
        record = entries[key]
        exempt = OWN <= key < PAST_OWN
        if self.sorted is not None:
            self.note(key)
        if exempt:
            self._exempt -= 1
        if self._weighs:
            self._bytes -= record.size
        if reason is not None:
            dropped: Dropped = (key, record, reason)
            self.dropped += [dropped]
        del entries[key]

    def _take_oldest(self, reason: Reason, now: float) -> None:
        """Take out the least recently used entry, but none of pocket_plug's own records."""
        key = self._oldest()
        self.take(key, reason if self.alive(self.entries[key], now) else "expired")

    def _oldest(self) -> str:
        while True:
            try:
                key: str = next(iter(self.entries))
            except RuntimeError:  # reordered by a read in another thread, just now
                continue
            if not OWN <= key < PAST_OWN:
                return key
            self.entries.move_to_end(key)

    def take_expired(self, keys: Iterable[str], now: float) -> None:
        """Take out the entries of `keys` that have expired."""
        for key in keys:
            record: Any = self.entries.get(key)
            if record is not None and record is not self.gone and not self.alive(record, now):
                self.take(key, "expired")


_ATOMS = frozenset({str, bytes, int, float, bool, type(None)})
_NOT_FOLLOWED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def size_of(value: object) -> int:
    """About how many bytes of memory a value takes: `sys.getsizeof` of it and of all that it refers to.

    Shared parts count once; classes, functions and modules don't count. Cheap for a str or bytes; else about 0.2 µs
    for each object within.

    >>> size_of("x" * 1000) > 1000, size_of(["x" * 1000, "y" * 1000]) > 2000
    (True, True)
    """
    if value.__class__ in _ATOMS:
        return sys.getsizeof(value)
    total, seen, pending = 0, {id(value)}, [value]
    while pending:
        item = pending.pop()
        try:
            total += sys.getsizeof(item)
        except Exception:  # noqa: BLE001 - a user's __sizeof__ may raise anything; an estimate must not fail for it
            total += object.__sizeof__(item)
        for part in () if type(item) in _ATOMS else _parts_of(item):
            if id(part) not in seen and not isinstance(part, _NOT_FOLLOWED):
                seen.add(id(part))
                pending.append(part)
    return total


_DICT: type[dict[Any, Any]] = dict  # its methods, which a subclass may have overridden, are called on this


def _parts_of(item: Any) -> list[Any]:
    """What an object refers to. The garbage collector leaves out a dict's keys that are texts, and may leave out a whole dict."""
    if type(item) is dict:
        return [*item, *item.values()]
    parts = gc.get_referents(item)
    return [*parts, *_DICT.keys(item), *_DICT.values(item)] if issubclass(type(item), dict) else parts


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    return [Bounding]
