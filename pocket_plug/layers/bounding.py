"""The bounding layer: so many entries, so many bytes, so long. What is used least recently goes first.

Directly over Memory it is Memory's own way of keeping entries, without a second index. Over anything else it keeps an
index, and evicts by deleting.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from math import inf
from typing import Any

from pocket_plug.backend import NO_EXPECTATIONS, Change, Delete, Entry, Put
from pocket_plug.errors import ConfigError, Conflict
from pocket_plug.hookspecs import hookimpl
from pocket_plug.keys import RESERVED
from pocket_plug.layer import Layer, parts
from pocket_plug.memory import Dropped, Keeping, Memory, Reason
from pocket_plug.ttl import TTL, seconds

__all__ = ["Bounding", "Reason", "size_of"]

_logger = logging.getLogger("pocket_plug")

_telling: ContextVar[tuple[Layer, ...]] = ContextVar("pocket_plug.telling", default=())
"""The layers whose `on_evict` is being called here: what it evicts itself isn't told again."""


class Bounding(Layer):
    """Keeps a store small: an upper bound for entries, for bytes, and for how long each one lives.

    - `max_entries`: how many keys. The one least recently set or read goes first.
    - `max_bytes`: how much all keys and values take together, as `size_of` estimates each when it is set.
    - `ttl`: how long an entry lives after a set (seconds, timedelta or "5m"), besides a ttl that it may have itself.
      Reading doesn't renew it, and nothing below this layer learns of it.
    - `on_evict(key, value, reason)`: called for what had to go, with reason "size", "bytes" or "expired"; never for a
      delete, nor where a live value is overwritten. It is called after the write that evicted, with no lock held, and
      may use the store; what it evicts itself is not told. What it raises goes to the `pocket_plug` logger the first
      time, is counted in `failures`, and never fails the write. An `async def` is awaited by the write; the store's
      sync writes then go through an event loop.
    - `durable=True`: yes, delete what the backend would have kept.

    Records of pocket_plug itself are neither counted nor evicted. A write looks for expired entries before it evicts
    a live one: always where there are no more than 64, else at most once in so many writes as a quarter of the
    entries. What a backend other than Memory has itself let expire is gone without a call.

    Built without a limit, with one below 1, over a durable backend without `durable=True`, or around persistence, it
    raises ConfigError.

    >>> from pocket_plug.store import SyncStore
    >>> store = SyncStore(layers=[Bounding(max_entries=2, on_evict=print)])
    >>> store.set_many({"a": 1, "b": 2})
    >>> store.get("a")
    1
    >>> store.set("c", 3)  # prints what on_evict is called with
    b 2 size
    """

    max_entries: int | None = None
    max_bytes: int | None = None
    ttl: TTL | None = None
    on_evict: Callable[[str, Any, Reason], object] | None = None
    durable: bool = False

    inline_read = inline_write = True

    def on_build(self) -> None:
        self._refuse_nonsense()
        self.failures = 0
        """How often `on_evict` raised, and how often an eviction failed."""
        self._awaits = _is_async(self.on_evict)
        self._lock = threading.Lock()
        self._writes = 0
        self._index = index = _Bounded(self)
        inner = self.inner
        if type(inner) is Memory:
            index.tell = self._tell if self.on_evict is not None else None
            inner.adopt(index)
            direct: dict[str, Any] = {"read": index.read, "write": inner.write, "scan": inner.scan, "open": inner.open}
            self.__dict__.update(direct)
        self.inline_write = inner.inline_write and inner.inline_read and not self._awaits
        self.needs_loop = inner.needs_loop or self._awaits

    def _refuse_nonsense(self) -> None:
        for option in ("max_entries", "max_bytes"):
            limit = getattr(self, option)
            if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
                raise ConfigError(f"bounding: {option} can't be {limit!r:.80}; give a whole number from 1 up")
        if self.max_entries is None and self.max_bytes is None and self.ttl is None:
            raise ConfigError("bounding has nothing to do; give it max_entries, max_bytes or ttl")
        if self.ttl is not None:
            seconds(self.ttl)
        if any(part.name == "persistence" for part in parts(self.inner) if isinstance(part, Layer)):
            raise ConfigError(
                "bounding around persistence would delete what persistence is there to keep; write persistence first: "
                "layers=[Persistence(…), Bounding(…)] bounds the cache in memory"
            )
        if self.inner.survives and not self.durable:
            raise ConfigError(
                f"bounding over {self.inner!r} deletes durable entries when they are too many or too old; if that is "
                "meant, say durable=True; to bound what is in memory only: layers=[Persistence(to=…), Bounding(…)]"
            )

    # ------------------------------------------------------------ over anything but Memory
    async def open(self) -> None:
        """Count what is there already, as if it were set now."""
        await super().open()
        with self._lock:
            self._index.clear()
        async for key in self.inner.scan():
            if self.max_bytes is None:
                self._note([Put(key, None)], 0)  # which version, is seen when it matters
            elif entry := await self.inner.read(key):
                self._note([Put(key, entry.value, entry.expires_at)], entry.version)
        await self._evict()

    async def read(self, key: str) -> Entry | None:
        """The inner one's, unless it has been there for too long."""
        index = self._index
        known = index.entries.get(key)
        entry = await self.inner.read(key)
        if entry is None:
            if known is not None:
                with self._lock:
                    if index.entries.get(key) is known:  # else it was set in the meantime
                        index.delete(key, known, -inf)
            return None
        if known is None or 0 < known.version < entry.version:  # set by somebody else
            self._note([Put(key, entry.value, entry.expires_at)], entry.version)
            return entry
        if known.deadline is not None and self.clock() >= known.deadline:
            return None
        known.version = entry.version
        index.touch(key)
        return entry

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """The inner one's; then whatever is over the bounds is deleted."""
        if self.ttl is not None:
            # What has expired here is still there for the inner one, which would say Conflict to "expect nothing".
            await self._evict([*expect, *(change.key for change in changes)])
        try:
            version = await self.inner.write(changes, expect)
        except Conflict:
            raise
        except BaseException:
            self._note([change for change in changes if isinstance(change, Put)], 0)  # it may have landed
            raise
        if changes:
            self._note(changes, version)
            await self._evict()
        return version

    async def scan(self, prefix: str = "") -> AsyncIterator[str]:
        """The inner one's, without what has been there for too long."""
        async for key in self.inner.scan(prefix):
            known = self._index.entries.get(key)
            if known is None or known.deadline is None or self.clock() < known.deadline:
                yield key

    def _note(self, changes: Iterable[Change], version: int) -> None:
        """Writes may come back in another order than they were done in: the newest one counts."""
        now = self.clock()
        index = self._index
        with self._lock:
            for change in changes:
                known = index.entries.get(change.key)
                newest = change.version or version
                if known is None or known.version < newest:
                    if isinstance(change, Put):
                        index.put(change, known, newest, now)
                    elif known is not None:
                        index.delete(change.key, known, now)

    async def _evict(self, keys: Iterable[str] | None = None) -> None:
        """Delete what is over the bounds; of `keys`, if given, what has expired. It fails no write."""
        now = self.clock()
        with self._lock:
            self._writes += 1
            index = self._index
            chosen = list(index.settle(now, self._writes) if keys is None else index.take_expired(keys, now))
        dropped: list[Dropped] = []
        try:
            while chosen:
                key, known, reason = chosen[-1]
                entry = await self._delete(key, known)
                chosen.pop()
                if entry is not None:
                    dropped.append((key, entry, reason))
        except Exception as error:  # noqa: BLE001 - whatever the backend raises: it is tried again with the next write
            self._report(f"could not evict {chosen[-1][0]!r}", error)
        finally:
            with self._lock:
                index.put_back(chosen)
        if dropped and self.on_evict is not None:
            await self._tell(dropped)

    async def _delete(self, key: str, known: Entry) -> Entry | None:
        """Delete the version that was chosen and give its entry; None where somebody else has changed it since."""
        while (entry := await self.inner.read(key)) is not None:
            if known.version not in (0, entry.version):
                self._note([Put(key, entry.value, entry.expires_at)], entry.version)
                return None
            try:
                await self.inner.write((Delete(key),), {key: entry.version})
            except Conflict:
                continue
            with self._lock:
                seen = self._index.entries.get(key)  # by a read, just before it was deleted
                if seen is not None and seen.version <= entry.version:
                    self._index.delete(key, seen, -inf)
            return entry
        return None

    # ------------------------------------------------------------ on_evict
    async def _tell(self, dropped: Sequence[Dropped]) -> None:
        """Call `on_evict` for each, whatever becomes of the others; a cancellation is raised at the end."""
        telling = _telling.get()
        if self in telling or self.on_evict is None:
            return
        _telling.set((*telling, self))
        cancelled: asyncio.CancelledError | None = None
        try:
            for key, entry, reason in dropped:
                try:
                    answer = self.on_evict(key, entry.value, reason)
                    if self._awaits and inspect.isawaitable(answer):
                        await answer
                    elif inspect.iscoroutine(answer):
                        answer.close()
                        raise TypeError("it gave back a coroutine; write it as an `async def`, so that it is awaited")
                except asyncio.CancelledError as error:
                    cancelled = error
                except Exception as error:  # noqa: BLE001 - it is the user's, and the write has landed
                    self._report(f"on_evict raised for {key!r}", error)
        finally:
            _telling.set(telling)
        if cancelled is not None:
            raise cancelled

    def _report(self, what: str, error: Exception) -> None:
        self.failures += 1
        if self.failures == 1:
            _logger.warning("bounding: %s; later failures are only counted", what, exc_info=error)


class _Kept(Entry):
    """An entry with its own deadline: the earlier one of `expires_at` and the layer's ttl."""

    __slots__ = ("deadline",)
    deadline: float | None

    def __eq__(self, other: object) -> bool:
        """As the Entry that it is."""
        if not isinstance(other, Entry):
            return NotImplemented
        mine, its = (self.value, self.version, self.expires_at), (other.value, other.version, other.expires_at)
        return mine == its

    __hash__ = None  # type: ignore[assignment]


class _Weighed(_Kept):
    __slots__ = ("size",)
    size: int


class _Bounded(Keeping):
    """Entries in the order of their last use, with what is needed to hold the bounds.

    For Memory these are the entries themselves. As an index over another backend the values in it aren't kept.
    """

    def __init__(self, limits: Bounding) -> None:
        super().__init__()
        self._max_entries = inf if limits.max_entries is None else limits.max_entries
        self._max_bytes = inf if limits.max_bytes is None else limits.max_bytes
        self._weighs = limits.max_bytes is not None
        self._ttl = None if limits.ttl is None else seconds(limits.ttl)
        self._values = type(limits.inner) is Memory
        self._record: Callable[..., Any] = _Kept if limits.max_bytes is None else _Weighed
        self._clock = limits.clock

    def clear(self) -> None:
        super().clear()
        self.entries = OrderedDict[str, Any]()
        self._bytes = 0
        self._exempt = 0
        self._ended: list[Dropped] = []  # found expired by a change to the same key

    async def read(self, key: str) -> Entry | None:
        """The entry, which is then the last one used. Without a lock: each call on an OrderedDict is atomic."""
        entry: Any = self.entries.get(key)
        if entry is None or ((deadline := entry.deadline) is not None and self._clock() >= deadline):
            return None
        try:  # noqa: SIM105 - half the cost of this function
            self.entries.move_to_end(key)
        except KeyError:  # removed by another thread, just now
            pass
        return entry  # type: ignore[no-any-return]

    def touch(self, key: str) -> None:
        """It is the last one used."""
        with contextlib.suppress(KeyError):  # removed by another thread, just now
            self.entries.move_to_end(key)

    def deadline(self, entry: Any) -> float | None:
        return entry.deadline  # type: ignore[no-any-return]

    def put(self, change: Put, old: Any, version: int, now: float) -> None:
        key, deadline = change.key, change.expires_at
        exempt = key.startswith(RESERVED)
        if self._ttl is not None and not exempt and (deadline is None or now + self._ttl < deadline):
            deadline = now + self._ttl
        record = self._record(change.value if self._values else None, version, change.expires_at)
        record.deadline = deadline
        if deadline is not None and deadline < self.sweeps.earliest:
            self.sweeps.earliest = deadline
        if self._weighs:
            record.size = 0 if exempt else sys.getsizeof(key) + size_of(change.value)
        self.entries[key] = record
        self._count(key, record, 1)
        if old is not None:
            self._note_end(key, old, now)
            self._count(key, old, -1)
            self.entries.move_to_end(key)
        if self._weighs and record.size > self._max_bytes:
            self.entries.move_to_end(key, last=False)  # it can't stay, so nothing else shall go for it

    def delete(self, key: str, old: Any, now: float) -> None:
        self._note_end(key, old, now)
        self._take(key)

    def _note_end(self, key: str, old: Any, now: float) -> None:
        if old.deadline is not None and old.deadline <= now:
            self._ended.append((key, old, "expired"))

    def _take(self, key: str) -> Any:
        record: Any = self.entries.pop(key)
        self._count(key, record, -1)
        return record

    def _count(self, key: str, record: Any, sign: int) -> None:
        if self._weighs:
            self._bytes += sign * record.size
        if key.startswith(RESERVED):
            self._exempt += sign

    def settle(self, now: float, writes: int) -> list[Dropped]:
        entries: OrderedDict[str, Any] = self.entries
        sweeps = self.sweeps
        dropped, self._ended = self._ended, []
        if now >= sweeps.earliest and sweeps.due(writes, len(entries)):
            # dict.items: an OrderedDict's own iterator refuses to go on once a read in another thread has reordered it
            deadlines = ((key, record.deadline) for key, record in dict.items(entries))
            dropped += self.take_expired(sweeps.expired(deadlines, now, writes), now)
        while (too_many := len(entries) - self._exempt > self._max_entries) or self._bytes > self._max_bytes:
            try:
                key = next(iter(entries))
            except RuntimeError:  # reordered by a read in another thread, just now
                continue
            if key.startswith(RESERVED):
                entries.move_to_end(key)
                continue
            record = self._take(key)
            expired = record.deadline is not None and record.deadline <= now
            dropped.append((key, record, "expired" if expired else "size" if too_many else "bytes"))
        return dropped

    def take_expired(self, keys: Iterable[str], now: float) -> list[Dropped]:
        """Take out those of `keys` that have expired."""
        taken: list[Dropped] = []
        for key in keys:
            record: Any = self.entries.get(key)
            if record is not None and record.deadline is not None and record.deadline <= now:
                taken.append((key, self._take(key), "expired"))
        return taken

    def put_back(self, chosen: Sequence[Dropped]) -> None:
        """Those could not be evicted: they are the first ones next time, unless they were set again."""
        for key, record, _ in chosen:
            if key not in self.entries:
                self.entries[key] = record
                self.entries.move_to_end(key, last=False)
                self._count(key, record, 1)


def _is_async(function: Any) -> bool:
    call = getattr(type(function), "__call__", None)  # noqa: B004 - an object may have an async one
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


_ATOMS = (str, bytes, int, float, bool, type(None))
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
        except Exception:  # noqa: BLE001 - a user's __sizeof__ may do anything; an estimate need not fail for it
            total += object.__sizeof__(item)
        for part in gc.get_referents(item):
            if id(part) not in seen and not isinstance(part, _NOT_FOLLOWED):
                seen.add(id(part))
                pending.append(part)
    return total


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    return [Bounding]
