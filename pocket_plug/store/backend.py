"""The interface of backends and layers. Every operation that a user calls is derived from it, once, in the views.

Batches, transactions and single operations all go through `write` and `read`, so a layer that encrypts, logs or bounds
can't be bypassed by a sibling method.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from typing_extensions import dataclass_transform

from pocket_plug.errors import (
    AnswerLostError,
    ConfigError,
    ConflictError,
    StoreBusyError,
    StoreTimeoutError,
    StoreUnreachableError,
)
from pocket_plug.primitives.values import Value

from .overrides import check_scan, refuse_bypassed

T = TypeVar("T")
Clock = Callable[[], float]
"""Returns epoch seconds, as `time.time` does; injected wherever time matters, so that tests can control it."""

READ_TRIES = 100
"""The most times that a `read_many` derived from `read` tries, if the keys that it reads change meanwhile."""

OUTAGES = (StoreUnreachableError, StoreBusyError, StoreTimeoutError, AnswerLostError)
"""Errors of a store that is away, or locked for too long."""

NO_EXPECTATIONS: Mapping[str, int] = {}

Reason = Literal["size", "bytes", "expired"]
"""Why an entry was evicted."""

PRESENT = -1
"""Expected of a key in place of a version: there must be an entry, of any version."""


def is_expected(version: int, expected: int) -> bool:
    """Does the version of a key (0: absent) match what a write expects?"""
    return version == expected or (expected == PRESENT and version > 0)


@dataclass_transform(frozen_default=True)
def _record(cls: type[T]) -> type[T]:
    """A slotted dataclass that is frozen for type checkers only: at run time that would triple its cost."""
    return dataclass(slots=True)(cls)


@_record
class Entry:
    """What a backend stores at a key. `version` is above 0; `expires_at` is in epoch seconds."""

    value: Value
    version: int
    expires_at: float | None = None


@_record
class Put:
    """Set a key. With a `version` (one tier fills another) only if it is newer than that of the entry that is there.

    `renews` is False in an update: a layer that sets expiry times of its own then keeps the entry's. A layer that changes
    the value passes on all else: `dataclasses.replace(put, value=…)`.
    """

    key: str
    value: Value
    expires_at: float | None = None
    version: int | None = None
    renews: bool = True


@_record
class Delete:
    """Remove a key. With a `version`, only an entry that is not newer."""

    key: str
    version: int | None = None


Change = Put | Delete


def with_version(change: Change, version: int) -> Change:
    """The change with a version, for a tier or an index that takes it only if that is newer."""
    if isinstance(change, Put):
        return Put(change.key, change.value, change.expires_at, version, change.renews)
    return Delete(change.key, version)


class Watcher(Protocol):
    """Is notified of writes, by a backend that can watch (`Backend.watch`). It begins as lost, until `back` is called.

    Its methods may be called from any thread, before or after the writes are acknowledged. They must not raise, and only
    mark entries as outdated: the caller waits for them.
    """

    def changed(self, versions: Mapping[str, int], up_to: int | None = None) -> None:
        """These keys were written or deleted: an entry of a key that is older than the key's version here is outdated.

        The keys of one write are in one call. Writes by the watcher's own process are notified too. Notifications may come
        twice, late, and in any order. All writes with versions up to `up_to` have been notified by now; None: notifications
        come in the order of versions. So a cache knows whether several of its entries are of one moment.
        """
        ...

    def lost(self) -> None:
        """From now on notifications may be missing, so every cached entry may be outdated.

        Also called if a write has more keys than one notification can hold.
        """
        ...

    def back(self, up_to: int | None = None) -> None:
        """From now on each change is notified again. Earlier changes are not.

        Earlier are all writes with versions up to `up_to`, which are complete; None: up to the last version given.
        """
        ...


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What `Backend.probe` has found out about the place where a backend keeps its entries."""

    system: str
    """The database and its version, as text: "PostgreSQL 18.1", "SQLite file"."""
    is_new: bool = False
    """Is there no data set yet? It is created when the store is opened."""
    durability: str = ""
    """The failure that acknowledged writes survive, as it is configured there: "power", "process" or "none"."""
    read_only: bool = False
    """Does it refuse writes, as a standby does?"""
    skew: float | None = None
    """Seconds by which the server's clock is ahead of this machine's; None where there is no other clock."""


class Backend:
    """Stores entries. A subclass implements `read`, `write`, `scan` and `version`.

    `inline_read` and `inline_write` say that the operation never suspends: sync callers then need no event loop.
    `needs_loop` says that operations that suspend await asyncio objects; False if they only await `waiting.Waiter`.

    Any thread, any event loop and any forked child may use it, also loops that begin after the one that opened it has ended.
    If its entries survive the process, several instances may use them at the same time, here and in other processes: then too
    no update is lost, no write is seen in part, and no operation waits forever. Over a network each has a timeout.
    A key has at most `keys.MAX_KEY_BYTES` (2 KiB) in UTF-8, of any characters, NUL included.

    `pocket_plug.testing` tests all of this: `contracts`, `shared_contract` for shared data, `server_contract` for servers.
    """

    inline_read: bool = False
    inline_write: bool = False
    needs_loop: bool = True
    clock: Clock = time.time
    """Returns epoch seconds. A store passes the clock that it was given to its backend, and layers take it from there.

    This clock alone decides whether an entry has expired. A server's clock may only remove entries that expired long ago."""

    survives: bool = False
    """Do entries survive the process? A stack that would delete such entries by accident is refused."""

    buffered: bool = False
    """May a write that was acknowledged still be lost with the process, until `flush` or `close`?"""

    read_only: bool = False
    """Is every write refused? Runs and layers that would write by themselves are refused then, before they begin."""

    evicts: bool = False
    """Does it remove entries by itself, to stay within bounds? Then some items of a list may be missing."""

    encrypts: bool = False
    """Are values encrypted here? A layer around it that stores values elsewhere too, where they are not, is refused."""

    can_watch: bool = False
    """Can it notify of the writes of other instances and processes, by `watch`?"""

    system: str = ""
    """What telemetry calls the database: its `db.system.name` in OpenTelemetry's conventions, such as "redis" or "postgresql".
    "" stands for the class's name in lower case."""

    address: tuple[str, int | None] | None = None
    """The host and port of the server that it talks to (of a socket file its path and None); None where there is no server."""

    backed_up_by: str = ""
    """The tools that back its data up, in words, where it has no `backup` of its own (`Copyable`)."""

    max_changes: int | None = None
    """How many changes and expectations one write may have; more raise WriteSizeError, and nothing is done. None: any number."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_bypassed(cls, Backend)
        if "scan" in cls.__dict__:
            check_scan(cls)
        if "read" in cls.__dict__ and "read_many" not in cls.__dict__:
            cls.read_many = cls._read_one_by_one  # type: ignore[method-assign] # else batches would bypass this `read`
        if "read_page" not in cls.__dict__ and not cls.__dict__.keys().isdisjoint(("read", "read_many", "scan")):
            cls.read_page = cls._read_page_in_two  # type: ignore[method-assign] # else pages would bypass them

    async def read(self, key: str) -> Entry | None:
        """The entry at `key`; None if there is none or it has expired. Raises StoreError if it can't know that."""
        raise NotImplementedError(f"{type(self).__name__} has no read")

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries that exist, all as of one moment: each write by others is seen as a whole or not at all.

        By default it calls `read` for each key, then checks by a write without changes that no key has changed in between.
        Changed keys are read again, and after 100 tries it raises StoreBusyError. Override it where a batch is cheaper.
        """
        seen: dict[str, Entry | None] = dict.fromkeys(keys)
        unsure = list(seen)
        for _ in range(READ_TRIES):
            for key in unsure:
                seen[key] = await self.read(key)
            try:
                if len(seen) > 1:
                    await self.write((), {key: 0 if entry is None else entry.version for key, entry in seen.items()})
            except ConflictError as conflict:
                unsure = sorted(conflict.keys & seen.keys()) or list(seen)
            else:
                return {key: entry for key, entry in seen.items() if entry is not None}
        raise _busy_error(self, seen, unsure)

    _read_one_by_one = read_many  # for a class that overrides `read` alone

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Do all changes or none; returns the version that they got.

        `expect` maps keys to the version the caller has seen (0: absent), or to `PRESENT`: any entry will do. If one
        differs (`is_expected`) nothing is done and `ConflictError` names the keys. Without changes it only checks, and
        returns the current version; that suspends no more than a read does.

        If it is cancelled before anything was done, it is withdrawn; otherwise it waits for the outcome first. So a
        cancelled write never takes effect after its caller has continued.

        ConflictError means that nothing was done, and callers try again after it. So a backend must not send a write a second
        time without knowing the outcome of the first: the second would be in conflict with the first. If its driver retries
        by itself, that has to be switched off. If an answer is lost, the backend finds out the outcome: a write that took
        effect counts once, and its version is returned (`backends.network.Slots`). If it can't find out in time, it raises
        AnswerLostError.

        More changes and expectations than `max_changes` raise WriteSizeError, and nothing is done.
        """
        raise NotImplementedError(f"{type(self).__name__} has no write")

    def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The live keys that start with `prefix`, in the order of their code points. Keys only, so that no layer is bypassed.

        They begin after the key `after`, which need not exist nor start with the prefix; "" stands for the beginning. With
        `reverse` they are listed backwards, from before `after`. There are at most `limit` of them, 0 or more, and fewer
        only at the end. So the last key of a page, given as `after`, gets the next page, and every page costs the same.

        A key that exists during the whole scan is listed once, whatever is written meanwhile; a key that is added or
        removed meanwhile may be listed or not.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scan")

    async def read_page(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int
    ) -> list[tuple[str, Entry | None]]:
        """The keys that `scan` lists, with their entries, all as of one moment; fewer than `limit` only at the end.

        An entry that was removed after its key was found is None. By default `read_many` reads the keys that `scan` finds.
        Override it where one query finds both.
        """
        return await page_of(self.scan(prefix, after=after, reverse=reverse, limit=limit), self.read_many)

    _read_page_in_two = read_page  # for a class that overrides one of the two

    async def check(self) -> list[str]:
        """Finds faults in the stored data that reads do not show, such as in an index; returns a sentence for each."""
        return []

    async def compact(self, size: int) -> int:
        """Give about `size` bytes that removed entries have left free back to the file system; returns how many it gave back.

        It is one short step, so that others can write meanwhile; call it until it returns 0 to free all of them. A backend
        that can't free any returns 0. No entry and no version changes.
        """
        return 0

    async def version(self) -> int:
        """The last version that a write got: at least that of each acknowledged write, by any process.

        It never decreases, not by a delete, not by a restart. Each write has another version, and the versions of one key
        increase. They need not be consecutive, nor in the order in which writes of different keys took effect.
        """
        raise NotImplementedError(f"{type(self).__name__} has no version")

    async def flush(self) -> None:
        """Wait until all acknowledged writes are as durable as this backend makes them."""

    async def open(self) -> None:
        """Acquire what it needs, such as connections. Called once, before the first operation.

        What its URL says of a server, such as `durability=`, is verified here: if it isn't so, it raises StoreError with the
        server's setting and how to change it.
        """

    async def probe(self, patience: float) -> ProbeResult | None:
        """Check, within `patience` seconds and without opening it, that it can be opened and is as its URL says.

        Nothing is written or created, and no connection stays open. Raises StoreError for whatever `open` would refuse, if
        that can be found out in this way. By default None: it can't be found out without opening it.
        """
        return None

    async def own(self) -> None:
        """Lock the data exclusively, until `close` or the end of the process; called once it is open.

        Raises StoreBusyError if another process or store has locked them, and ConfigError if they can't be locked. The
        owner's writes get consecutive versions, which a server that others write to can't guarantee.
        """
        raise ConfigError(
            f"{self!r} can't be locked by one process, which persistence mode='behind' needs: other programs may write to it "
            "at any time, so its versions are not consecutive; use mode='through'"
        )

    def turn(self, names: Collection[str]) -> AbstractAsyncContextManager[None] | None:
        """A context for one read and one write of these keys: no other writer, in any process, writes them in between.

        It may block writes of other keys too. None: this backend has no turns.

        For an update that has lost to others a few times. Its write ends the turn, and so does a time limit. So callers
        still say what they expect: only that the update finishes depends on turns. Callers that wait get turns in a fair
        order.
        """
        return None

    async def watch(self, watcher: Watcher) -> None:
        """Notify the watcher of each write to these data, by any process, from now on until `close`.

        It is called once, before `open` or after it, and returns before the first notification, which is `back`. The
        subscription has a thread of its own, since the loop that opened the backend may be blocked, or gone. A change is
        notified at most a stated time after the write was acknowledged. If the backend can't keep that, because the server
        doesn't answer, it calls `lost` within that time, and `back` as soon as there is a new subscription. In a forked
        child the watcher is lost again, and gets a subscription of its own.

        Raises ConfigError if `can_watch` is False.
        """
        raise ConfigError(f"{self!r} can't notify of other processes' writes: can_watch is False")

    async def close(self) -> None:
        """Release everything; operations raise StoreClosedError from now on. May be called twice."""


# ---------------------------------------------------------------- what a part may have besides
@runtime_checkable
class Keeper(Protocol):
    """A part of a stack that counts the entries that it keeps, and those that it evicted."""

    @property
    def entries(self) -> int:
        """How many entries it keeps now."""
        ...

    @property
    def evictions(self) -> Mapping[Reason, int]:
        """How many entries it evicted so far, by reason. It is always the same mapping, which is updated."""
        ...


@runtime_checkable
class WriteQueue(Protocol):
    """Writes that were acknowledged, and that the durable backend doesn't have yet."""

    durable: Backend
    """The backend that they will be written to."""

    @property
    def length(self) -> int:
        """How many keys wait."""
        ...

    @property
    def age(self) -> float:
        """How many seconds the oldest write has been waiting; 0 where there is none."""
        ...


@runtime_checkable
class Copyable(Protocol):
    """A backend that copies what it keeps into one file, while it is in use."""

    def backup(self, file: str | os.PathLike[str], copied: Callable[[int, int], object] = ..., /) -> int:
        """Copy all entries, as of one moment, into a new file; returns its size in bytes. After an error there is no file.

        `copied` is called now and then with how much was copied since its last call, and the total. Raises ConfigError if
        the new file exists already, and StoreError if it can't be written.
        """
        ...


@runtime_checkable
class Tiered(Protocol):
    """A layer for which the stack inside is a cache, and another backend the authority."""

    authority: Backend
    """The backend that is right where the two differ."""

    @property
    def queue(self) -> WriteQueue | None:
        """The writes that the authority doesn't have yet; None if each write waits until it has them."""
        ...


async def page_of(
    names: AsyncIterator[str], read_many: Callable[[list[str]], Awaitable[Mapping[str, Entry]]]
) -> list[tuple[str, Entry | None]]:
    """These names with their entries: None if the entry was removed meanwhile."""
    found = [name async for name in names]
    entries: Mapping[str, Entry] = await read_many(found) if found else {}
    return [(name, entries.get(name)) for name in found]


async def read_around(layer: Backend, inner: Backend, keys: Iterable[str]) -> dict[str, Entry]:
    """What the layer's `read` returns for these keys, as of one moment: if an inner entry changes meanwhile, it reads again.

    `read` may change or hide entries. Raises StoreBusyError if the keys change at each try.
    """
    names, changed = list(dict.fromkeys(keys)), frozenset[str]()
    several = len(names) > 1
    for _ in range(READ_TRIES):
        before = await inner.read_many(names) if several else {}
        found = {key: entry for key in names if (entry := await layer.read(key)) is not None}
        try:
            if several:
                await inner.write((), {key: before[key].version if key in before else 0 for key in names})
            return found
        except ConflictError as conflict:
            changed = conflict.keys
    raise _busy_error(layer, names, changed)


def _busy_error(backend: Backend, keys: Collection[str], changed: Collection[str]) -> StoreBusyError:
    return StoreBusyError(
        f"{len(keys)} keys could not be read as of one moment: some were changed at each of {READ_TRIES} tries, last "
        f"{', '.join(map(repr, sorted(changed)[:5]))}; try again, or override read_many in {type(backend).__name__}"
    )
