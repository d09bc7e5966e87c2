"""The persistence layer: the stack inside is a cache, and another backend, `to`, is the authority.

With `mode="behind"` the authority is that backend with a queue in front (`write_behind`). The near tier never answers
for the durable one where the two might differ: a key that is being written, whose write failed, or that somebody else is
known to have written, is read from the durable tier until the near one has dropped its entry. `trust` knows which these are.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Literal

from pocket_plug.errors import ConfigError, ConflictError
from pocket_plug.hookspecs import hookimpl
from pocket_plug.primitives.forking import after_fork
from pocket_plug.primitives.waiting import pause
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Delete, Entry, with_version
from pocket_plug.store.entry_table import Closed
from pocket_plug.store.layer import Layer
from pocket_plug.store.resolving import resolve_backend

from .trust import Everything, Lease, Trust, Write

if TYPE_CHECKING:
    from .write_behind import WriteBehind

_logger = logging.getLogger("pocket_plug")

Mode = Literal["through", "behind"]
MAX_PENDING = 10_000

MANY_MARKS = 1_000
"""With more marked keys than these, the next call that uses the durable tier anyway drops them all."""

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
        self.trust = Trust(durable.can_watch)
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
        trust = self.trust
        if key not in trust.writes and (key not in trust.unsure or await self._settle((key,))):
            entry = await self.inner.read(key)
            if entry is not None:
                return entry
        return (await self._load((key,))).get(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The near tier's entries, if they are of one moment, else the durable one's.

        If the backend can't watch, missing entries are read from the durable tier: while nothing is being written the tiers
        agree. If it can, an entry that is newer than the last notification may be of a later moment than the others.
        """
        names, trust = list(dict.fromkeys(keys)), self.trust
        begun = trust.begun
        if trust.agrees(names) or (await self._settle(names) and trust.agrees(names)):
            found = await self.inner.read_many(names)
            missing = [key for key in names if key not in found]
            if trust.is_watched:
                ahead = len(names) > 1 and any(entry.version > trust.known_up_to for entry in found.values())
                if not missing and not ahead and trust.begun == begun:
                    return found
            else:
                if missing:
                    found |= await self._load(missing)
                if trust.begun == begun:
                    return found
        return await self._load(names)

    async def _load(self, keys: Collection[str]) -> dict[str, Entry]:
        """Read from the durable tier and fill the near one, except keys that are written in between."""
        trust, lease = self.trust, Lease()
        if len(trust.unsure) > MANY_MARKS:
            await self._drop([*trust.unsure])
        try:
            trust.begin_lease(lease, keys)
            found = await self.authority.read_many(keys)
            fill = trust.begin_fill(lease, found)
            if fill:
                await self.inner.write(fill)
        finally:
            try:
                trust.end_lease(lease, keys)
            except BaseException:  # interrupted
                trust.end_lease(lease, keys)
                raise
        # Written during the fill: the near tier may have got the old entry after the new one.
        if late := [put.key for put in fill if put.key not in lease.keys]:
            await self._drop(late)
        return found

    # ------------------------------------------------------------ writing
    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Write to the durable tier, then to the near one with the version that it got. The durable tier checks `expect`."""
        last = {change.key: change for change in changes}
        doubtful, versioned = set(last), {key for key, change in last.items() if change.version is not None}
        write, trust = Write(last), self.trust
        try:
            trust.begin(write)
            version = await self.authority.write(changes, expect)
            if await self._follow(last.values(), version):
                doubtful = versioned  # it isn't known whether these were newer
        except ConflictError as conflict:
            doubtful |= conflict.keys
            raise
        finally:
            try:
                unsure = trust.end(write, doubtful)
            except BaseException:  # interrupted
                trust.end(write, doubtful)
                raise
            if len(trust.unsure) > MANY_MARKS:
                unsure.update(trust.unsure)
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

    # ------------------------------------------------------------ what the near tier has to drop
    async def _drop(self, keys: Collection[str]) -> None:
        marks, settled = self.trust.marks_of(keys)
        await self.inner.write([Delete(key, None if mark is None else mark.newest) for key, mark in marks.items()])
        self.trust.unmark(settled)

    async def _drop_quietly(self, keys: Collection[str]) -> None:
        try:
            await self._drop(keys)
        except Exception as error:  # the keys stay marked: the next read of them tries again
            _logger.warning("persistence: the near tier could not remove %d key(s)", len(keys), exc_info=error)

    def _forget_others(self) -> None:
        """In a forked child. The queue is the parent's, which continues: the near tier here would soon be outdated."""
        self.trust.forget_others(None if self.queue is None else str(self.queue.not_open()))

    async def _settle(self, keys: Collection[str]) -> bool:
        """Drop the marked ones of these keys from the near tier; returns whether all of them can be read there now."""
        trust = self.trust
        unsure = trust.unsure
        if isinstance(unsure, Everything) and not await self._empty(unsure):
            return False
        if marked := [key for key in keys if key in trust.unsure and key not in trust.writes]:
            await self._drop(marked)
        return not any(key in trust.unsure for key in keys)

    async def _empty(self, everything: Everything) -> bool:
        """Drop all that the near tier has, unless it is still lost or being emptied; returns whether it can be read again."""
        trust = self.trust
        if not trust.begin_emptying(everything):
            return False
        try:
            version = trust.known_up_to if trust.gets_up_to else await self.authority.version()
            await self._delete_all()
            return trust.end_emptying(everything, version)
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
            if self.trust.is_watched:
                self.trust.lost()
                await self.authority.watch(self.trust)
            if isinstance(self.trust.writes, Closed):
                await self.inner.close()
                self.trust.writes = {}
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


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    return [Persistence]
