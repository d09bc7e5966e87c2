"""The persistence layer: the stack inside is a cache, and another backend, `to`, is the authority.

With `mode="behind"` the authority is that backend with a queue in front (`write_behind`). The near tier never answers
for the durable one where the two might differ: a key that is being written, whose write failed, or that somebody else is
known to have written, is read from the durable tier until the near one has dropped its entry.

Writes by others are known if the durable backend can watch (`Backend.watch`). Its notifications only mark keys, since they
come from another thread; the next reader drops the marked entries. Between `lost` and `back` all keys count as marked.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Literal

from pocket_plug.errors import ConfigError, ConflictError
from pocket_plug.hookspecs import hookimpl
from pocket_plug.primitives.forking import after_fork, new_rlock
from pocket_plug.primitives.waiting import pause
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Delete, Entry, Put, with_version
from pocket_plug.store.entry_table import Closed
from pocket_plug.store.layer import Layer
from pocket_plug.store.resolving import resolve_backend

if TYPE_CHECKING:
    from .write_behind import WriteBehind

_logger = logging.getLogger("pocket_plug")

Mode = Literal["through", "behind"]
MAX_PENDING = 10_000

MANY_MARKS = 1_000
"""With more marked keys than these, the next call that uses the durable tier anyway drops them all."""

MAX_MARKS = 10_000
"""With more marked keys than these, all keys count as marked: nobody has read or written here for long."""

BATCH = 256
"""How many keys are dropped in one step when the near tier is emptied."""


class Persistence(Layer):
    """Keeps everything in a durable backend too; the stack inside is a cache, which answers if it has the entry.

    - `to`: a URL such as "sqlite:///orders.db", or a Backend that isn't open yet.
    - `mode="through"`: a write is done when the durable tier has it. A read asks the near tier first, and fills it with
      what the durable one has.
    - `mode="behind"`: a write is done when it is queued, with its values encoded; a thread writes to the durable tier,
      which is locked exclusively. Queued writes are lost if the process is killed: never a part of a write, and if one is
      lost, so are all after it. `flush` waits until nothing is queued; `close` and the end of the process do so too.
    - `max_pending`: how many keys may be queued, with `behind`; further writes wait.

    With `through`, a write by others is seen when the near tier has dropped its own copy. A backend that can watch, as
    Redis and PostgreSQL can, notifies of it within milliseconds. While it can't, because the server doesn't answer,
    everything is dropped within the time that the backend states, and reads ask the server. So a read is never older
    than that time. Over other backends, such as SQLite, bound the age by a `ttl` (`layers=[Persistence(to=…),
    Bounding(ttl="1m")]`), or write: a write over an outdated entry raises ConflictError and overwrites nothing.

    Raises ConfigError when it is built over a backend that is durable itself, or with an unknown mode.

    >>> from pocket_plug import Memory
    >>> from pocket_plug import SyncStore
    >>> shelf = Memory()  # in production a file or a server
    >>> SyncStore(layers=[Persistence(to=shelf)]).set("a", 1)
    >>> SyncStore(layers=[Persistence(to=shelf)]).get("a")
    1
    """

    to: str | Backend
    mode: Mode = "through"
    max_pending: int | None = None

    def on_build(self) -> None:
        self._check_options()
        self.authority = durable = self._resolved()
        durable.clock = self.clock
        self.queue: WriteBehind | None = None
        if self.mode == "behind":
            from .write_behind import WriteBehind  # late: the codec comes with it

            self.authority = durable = self.queue = WriteBehind(durable, self.max_pending or MAX_PENDING)
        self.survives, self.buffered, self.max_changes = durable.survives, durable.buffered, durable.max_changes
        self.read_only, self.evicts = durable.read_only, durable.evicts
        near = self.inner
        self.inline_write = near.inline_write and durable.inline_write
        self.inline_read = near.inline_read and near.inline_write and durable.inline_read  # a read may fill
        self.needs_loop = near.needs_loop or durable.needs_loop
        self._lock = new_rlock()  # reentrant: garbage collection may close a caller's coroutine while this is held
        self._begun = 0  # counts the writes, and the notifications of writes by others
        self._writes: MutableMapping[str, tuple[_Write, ...]] = {}  # those that are running, by key
        self._unsure: dict[str, _Mark] = {}  # keys that the near tier has yet to drop, each with a mark of its own
        self._leases: dict[str, list[_Lease]] = {}  # for each key, the fills that a write of it has to stop
        self._is_watched = durable.can_watch
        self._is_lost = False  # may notifications be missing?
        self._watched_in = 0  # the process in which the backend was last known to notify
        self._known_up_to = 0  # all writes with versions up to this one were notified, or were there before
        self._gets_up_to = False  # do notifications say that version, or must the durable tier be asked for it?
        if self._is_watched:
            self.lost()
        after_fork(self._forget_others)

    def _check_options(self) -> None:
        if self.max_pending is not None and (self.mode != "behind" or self.max_pending < 1):
            raise ConfigError(
                f"persistence: max_pending is {self.max_pending!r} with mode={self.mode!r}; give a number of keys, "
                "1 or more, with mode='behind': only this mode has a queue"
            )
        if self.inner.read_only:
            raise ConfigError(
                f"persistence over {self.inner!r}, which is read-only: the cache could not be filled; put readonly around "
                "persistence: layers=[Readonly(), Persistence(…)]"
            )
        if self.inner.encrypts:
            raise ConfigError(
                f"persistence over {self.inner!r}: only the cache would be encrypted, and `to` would not; put encryption around "
                "persistence: layers=[Encryption(…), Persistence(…)]"
            )
        if self.inner.survives:
            raise ConfigError(
                f"persistence over {self.inner!r}: the stack inside it is a cache, which must not outlive the "
                "process; put it over memory, and give the durable backend as `to`"
            )

    def _resolved(self) -> Backend:
        if isinstance(self.to, Backend):
            if self.to is self.inner:
                raise ConfigError(
                    "persistence: `to` is the same backend as the one inside the layer; give another backend"
                )
            return self.to
        return resolve_backend(self.to)

    # ------------------------------------------------------------ reading
    async def read(self, key: str) -> Entry | None:
        """The near tier's entry, else the durable one's."""
        if key not in self._writes and (key not in self._unsure or await self._settle((key,))):
            entry = await self.inner.read(key)
            if entry is not None:
                return entry
        return (await self._load((key,))).get(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The near tier's entries, if they are of one moment, else the durable one's.

        If the backend can't watch, missing entries are read from the durable tier: while nothing is being written the tiers
        agree. If it can, an entry that is newer than the last notification may be of a later moment than the others.
        """
        names = list(dict.fromkeys(keys))
        begun = self._begun
        if self._agrees(names) or (await self._settle(names) and self._agrees(names)):
            found = await self.inner.read_many(names)
            missing = [key for key in names if key not in found]
            if self._is_watched:
                ahead = len(names) > 1 and any(entry.version > self._known_up_to for entry in found.values())
                if not missing and not ahead and self._begun == begun:
                    return found
            else:
                if missing:
                    found |= await self._load(missing)
                if self._begun == begun:
                    return found
        return await self._load(names)

    def _agrees(self, keys: Iterable[str]) -> bool:
        """Are the near tier's entries of these keys the durable one's, as far as is known?"""
        return not any(key in self._writes or key in self._unsure for key in keys)

    async def _load(self, keys: Collection[str]) -> dict[str, Entry]:
        """Read from the durable tier and fill the near one, except keys that are written in between."""
        if len(self._unsure) > MANY_MARKS:
            await self._drop([*self._unsure])
        lease = _Lease()
        try:
            with self._lock:
                leased = tuple(key for key in keys if key not in self._writes and key not in self._unsure)
                lease.keys.update(leased)
                for key in leased:
                    self._leases.setdefault(key, []).append(lease)
            found = await self.authority.read_many(keys)
            with self._lock:
                lease.is_filling = True
                fill = list(
                    Put(key, entry.value, entry.expires_at, entry.version)
                    for key, entry in found.items()
                    if key in lease.keys
                )
            if fill:
                await self.inner.write(fill)
        finally:
            try:
                self._end_lease(lease, keys)
            except BaseException:  # interrupted
                self._end_lease(lease, keys)
                raise
        # Written during the fill: the near tier may have got the old entry after the new one.
        if late := [put.key for put in fill if put.key not in lease.keys]:
            await self._drop(late)
        return found

    def _end_lease(self, lease: _Lease, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                leases = list(other for other in self._leases.get(key, ()) if other is not lease)
                if leases:
                    self._leases[key] = leases
                else:
                    self._leases.pop(key, None)

    # ------------------------------------------------------------ writing
    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Write to the durable tier, then to the near one with the version that it got. The durable tier checks `expect`."""
        last = {change.key: change for change in changes}
        doubtful, versioned = set(last), {key for key, change in last.items() if change.version is not None}
        write = _Write(last)
        try:
            self._begin(write)
            version = await self.authority.write(changes, expect)
            if await self._follow(last.values(), version):
                doubtful = versioned  # it isn't known whether these were newer
        except ConflictError as conflict:
            doubtful |= conflict.keys
            raise
        finally:
            try:
                unsure = self._end(write, doubtful)
            except BaseException:  # interrupted
                self._end(write, doubtful)
                raise
            if len(self._unsure) > MANY_MARKS:
                unsure.update(self._unsure)
            if unsure:
                await self._drop_quietly(unsure)
        return version

    async def _follow(self, changes: Iterable[Change], version: int) -> bool:
        """Write to the near tier what the durable one has; returns whether that succeeded. The write is done either way."""
        near = [with_version(change, version) for change in changes]
        try:
            if near:
                await self.inner.write(near)
        except Exception as error:  # whatever it is, the durable tier has the write
            _logger.warning(
                "persistence: the near tier could not store a write that the durable tier has", exc_info=error
            )
            return False
        return True

    def _begin(self, write: _Write) -> None:
        with self._lock:
            for key in write.keys:
                others = self._writes.get(key, ())
                for other in (*others, write) if others else ():
                    other.overlapped.add(key)
                self._writes[key] = (*others, write)
                for lease in self._leases.get(key, ()):
                    lease.keys.discard(key)
                    # the fill may take effect after this write's end
                    self._unsure |= {key: _Mark()} if lease.is_filling else {}
            if isinstance(self._unsure, _Everything):
                write.overlapped.update(write.keys)
            self._begun += 1  # last: a caller that has read it before finds the keys above

    def _end(self, write: _Write, doubtful: Iterable[str]) -> set[str]:
        """End a write; returns the keys that the near tier has to drop, and marks them until then. Can be called again.

        Besides the doubtful keys, these are keys with several writes at once: the near tier may have another order of them.
        """
        with self._lock:
            unsure = write.overlapped.union(doubtful)
            for key in unsure:
                self._unsure[key] = _Mark()
            for key in write.keys:  # may be missing, if this thread has forked this process in between
                others = tuple(other for other in self._writes.get(key, ()) if other is not write)
                if others:
                    self._writes[key] = others
                else:
                    self._writes.pop(key, None)
        return unsure

    async def _drop(self, keys: Collection[str]) -> None:
        with self._lock:
            marks = {key: self._unsure.get(key) for key in keys}
            settled = self._settled(marks)
        await self.inner.write([Delete(key, None if mark is None else mark.newest) for key, mark in marks.items()])
        with self._lock:
            self._unmark(settled)

    def _settled(self, marks: Mapping[str, _Mark | None]) -> dict[str, _Mark | None]:
        """Without keys of running fills and writes: those may bring back what is dropped now, so the marks stay."""
        return {key: mark for key, mark in marks.items() if key not in self._leases and key not in self._writes}

    def _unmark(self, marks: Mapping[str, _Mark | None]) -> None:
        """Called with the lock held. Newer marks stay."""
        for key, mark in marks.items():
            if mark is not None and self._unsure.get(key) is mark:
                del self._unsure[key]

    async def _drop_quietly(self, keys: Collection[str]) -> None:
        try:
            await self._drop(keys)
        except Exception as error:  # the keys stay marked: the next read of them tries again
            _logger.warning("persistence: the near tier could not remove %d key(s)", len(keys), exc_info=error)

    def _forget_others(self) -> None:
        """In a forked child: only the durable tier has the outcome of writes by the parent's threads."""
        self._leases.clear()
        if self.queue is not None:  # it is the parent's, which continues: the near tier here would soon be outdated
            self._writes = Closed(str(self.queue.not_open()))
            return
        self._unsure.update((key, _Mark()) for key in self._writes)
        self._writes.clear()
        if self._is_watched and self._watched_in != os.getpid():
            self.lost()

    # ------------------------------------------------------------ what others write
    def changed(self, versions: Mapping[str, int], up_to: int | None = None) -> None:
        """These keys were written. Called by the durable backend, as are the next two methods: see `Watcher`."""
        with self._lock:
            self._known_up_to = max(self._known_up_to, *versions.values() if up_to is None else (up_to,), 0)
            self._begun += 1
            if isinstance(self._unsure, _Everything):
                return
            self._mark(versions)
            if len(self._unsure) > MAX_MARKS:
                self._distrust_all()

    def _mark(self, versions: Mapping[str, int]) -> None:
        """Called with the lock held."""
        for key, version in versions.items():
            known = self._unsure.get(key)
            if known is None or known.newest is None or known.newest < version - 1:
                # a new mark in any case: a running drop may come before a running write of ours
                self._unsure[key] = _Mark(version - 1 if known is None or known.newest is not None else None)

    def lost(self) -> None:
        """From now on notifications may be missing."""
        with self._lock:
            self._is_lost = True
            self._known_up_to = 0  # what comes back may be an older copy
            self._begun += 1
            self._distrust_all()

    def back(self, up_to: int | None = None) -> None:
        """From now on each change is notified again. The near tier is emptied before it is read again."""
        with self._lock:
            self._is_lost = False
            self._gets_up_to = up_to is not None
            if up_to is not None:
                self._known_up_to = up_to
            self._watched_in = os.getpid()

    def _distrust_all(self) -> None:
        """Mark all keys, also those of running fills and writes. Called with the lock held."""
        filling = [key for key, leases in self._leases.items() if any(lease.is_filling for lease in leases)]
        self._unsure = _Everything((key, _Mark()) for key in filling)
        for leases in self._leases.values():
            for lease in leases:
                lease.keys.clear()
        for writes in self._writes.values():
            for write in writes:
                write.overlapped.update(write.keys)

    async def _settle(self, keys: Collection[str]) -> bool:
        """Drop the marked ones of these keys from the near tier; returns whether all of them can be read there now."""
        unsure = self._unsure
        if isinstance(unsure, _Everything) and not await self._empty(unsure):
            return False
        if marked := [key for key in keys if key in self._unsure and key not in self._writes]:
            await self._drop(marked)
        return not any(key in self._unsure for key in keys)

    async def _empty(self, everything: _Everything) -> bool:
        """Drop all that the near tier has, unless it is still lost or being emptied; returns whether it can be read again."""
        with self._lock:
            if self._is_lost or everything.is_emptying:
                return False
            everything.is_emptying = True
        try:
            version = self._known_up_to if self._gets_up_to else await self.authority.version()
            await self._delete_all()
            with self._lock:
                if self._unsure is not everything:  # lost again
                    return False
                self._unsure = dict(everything)
                self._known_up_to = max(self._known_up_to, version)
                return True
        finally:
            everything.is_emptying = False

    async def _delete_all(self) -> None:
        """Remove all keys of the near tier, in batches."""
        names = [key async for key in self.inner.scan()]
        while names:
            await self.inner.write([Delete(key) for key in names[-BATCH:]])
            del names[-BATCH:]
            if not self.inline_read:
                await pause(0)  # let other tasks run

    # ------------------------------------------------------------ the rest
    def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The durable tier's."""
        return self.authority.scan(prefix, after=after, reverse=reverse, limit=limit)

    async def version(self) -> int:
        """The durable tier's."""
        return await self.authority.version()

    async def check(self) -> list[str]:
        """Both tiers."""
        return [*await self.inner.check(), *await self.authority.check()]

    async def compact(self, size: int) -> int:
        """The durable tier."""
        return await self.authority.compact(size)

    async def flush(self) -> None:
        """Both tiers."""
        await self.inner.flush()
        await self.authority.flush()

    def turn(self, names: Collection[str]) -> AbstractAsyncContextManager[None] | None:
        """The durable tier's."""
        return self.authority.turn(names)

    async def open(self) -> None:
        """Both tiers, or neither."""
        await self.authority.open()
        try:
            if self._is_watched:
                self.lost()
                await self.authority.watch(self)
            if isinstance(self._writes, Closed):
                await self.inner.close()
                self._writes = {}
            await self.inner.open()
        except BaseException:
            await self.authority.close()
            raise

    async def close(self) -> None:
        """Both tiers, even if one of them fails."""
        try:
            await self.inner.close()
        finally:
            await self.authority.close()


class _Lease:
    """The keys that a read may fill into the near tier, as long as nobody has written them."""

    __slots__ = ("is_filling", "keys")

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.is_filling = False


class _Write:
    """A running write, and those of its keys that another write has written meanwhile."""

    __slots__ = ("keys", "overlapped")

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = tuple(keys)
        self.overlapped: set[str] = set()


class _Mark:
    """Marks a key that the near tier has to drop: an entry newer than the version `newest` may stay; None: none may."""

    __slots__ = ("newest",)

    def __init__(self, newest: int | None = None) -> None:
        self.newest = newest


class _Everything(dict[str, _Mark]):
    """The marks while every key counts as marked. Those that are in it stay when that is over."""

    is_emptying = False  # is a caller emptying the near tier?

    def __contains__(self, key: object) -> bool:
        return True


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    return [Persistence]
