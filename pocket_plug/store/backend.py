"""The waist: what a backend and a layer speak. Everything a user calls is derived from it, once, in `store`.

One road in (`write`) and one road out (`read`): batches, transactions and single sets all pass them, so an encrypting,
logging or bounding layer can't be bypassed by a sibling method.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from typing_extensions import dataclass_transform

from pocket_plug.errors import ConfigError, ConflictError, StoreBusyError
from pocket_plug.primitives.values import Value

T = TypeVar("T")
Clock = Callable[[], float]
"""Gives epoch seconds, as `time.time` does; injected wherever time matters, so that tests own it."""

READ_TRIES = 100
"""How often a `read_many` that is derived from `read` starts again because something it read has changed, at most."""

NO_EXPECTATIONS: Mapping[str, int] = {}

Reason = Literal["size", "bytes", "expired"]
"""Why an entry was evicted."""

PRESENT = -1
"""Expected of a key in place of a version: that there is an entry, whichever."""


def is_expected(version: int, expected: int) -> bool:
    """Does the version of a key (0: absent) fit what a write expects of it?"""
    return version == expected or (expected == PRESENT and version > 0)


@dataclass_transform(frozen_default=True)
def _record(cls: type[T]) -> type[T]:
    """A slotted dataclass that type checkers hold frozen. At run time it isn't: that would triple its cost."""
    return dataclass(slots=True)(cls)


@_record
class Entry:
    """What a backend has at a key. `version` is above 0; `expires_at` is in epoch seconds."""

    value: Value
    version: int
    expires_at: float | None = None


@_record
class Put:
    """Set a key. With a `version` (a tier filling another) it is done only where that is newer than what is there.

    An update doesn't `renew`: a layer with a deadline of its own leaves that as it was. A layer that changes a value
    hands on the rest: `dataclasses.replace(put, value=…)`.
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


class Watcher(Protocol):
    """What is told of the writes of others, by a backend that can (`Backend.watch`). It begins as lost, until `back`.

    Its methods may be called from any thread and in any order with writes. They never raise, and take no longer than it
    takes to mark what is old: whoever calls waits for them.
    """

    def changed(self, versions: Mapping[str, int], up_to: int | None = None) -> None:
        """These keys were written, or deleted. What is older than the version given with a key is old, of this key.

        The keys of one write are told in one call. The watcher's own process is told its own writes too. It may be told twice,
        late, and in any order. All writes with versions up to `up_to` have been told by now; None: changes are told in the
        order of their versions. By this several entries of a cache are known to be of one moment.
        """
        ...

    def lost(self) -> None:
        """From now on changes may not be told, so all that is known may be old. Said also for more keys than can be told."""
        ...

    def back(self, up_to: int | None = None) -> None:
        """From now on each change is told again. What was changed before is not.

        That holds of all writes with versions up to `up_to`, which have landed; None: of all that have been given.
        """
        ...


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What `Backend.probe` has found out about the place where a backend keeps its entries."""

    system: str
    """What is there, in words, with its version: "PostgreSQL 18.1", "SQLite file"."""
    is_new: bool = False
    """Is there no data set yet? It is made when the store is opened."""
    durability: str = ""
    """The failure that acknowledged writes survive there, as it was looked up: "power", "process" or "none"."""
    read_only: bool = False
    """Does it take no writes, as a standby does?"""
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
    """Epoch seconds. A store that was given a clock hands it to its backend, and the layers take it from there.

    Whether an entry has expired is judged by this clock alone. A server's own may only remove what has ended for long."""

    survives: bool = False
    """Do entries survive the process? A stack that would delete such entries by accident is refused."""

    buffered: bool = False
    """May a write that was acknowledged still be lost with the process, until `flush` or `close`?"""

    read_only: bool = False
    """Is every write refused? Runs and layers that would write by themselves are refused then, before they begin."""

    evicts: bool = False
    """Does it remove entries by itself, to stay within bounds? Then some items of a list may be missing."""

    can_watch: bool = False
    """Can it tell what other instances and processes write, by `watch`?"""

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
        if "read_many" in cls.__dict__ and cls.read is Backend.read:
            raise TypeError(f"{cls.__name__} overrides read_many without read: single gets would pass it by")
        if "scan" in cls.__dict__:
            _check_scan(cls)
        if "read" in cls.__dict__ and "read_many" not in cls.__dict__:
            cls.read_many = cls._read_one_by_one  # type: ignore[method-assign] # not a batch that passes this read by
        if "read_page" not in cls.__dict__ and not cls.__dict__.keys().isdisjoint(("read", "read_many", "scan")):
            cls.read_page = cls._read_page_in_two  # type: ignore[method-assign] # nor a page that passes any of them by

    async def read(self, key: str) -> Entry | None:
        """The entry at `key`; None where there is none or it has expired. Raises StoreError, never answers wrongly."""
        raise NotImplementedError(f"{type(self).__name__} has no read")

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries that exist, all as they were at one moment: another's write is seen whole or not at all.

        By default it calls `read` for each key, then checks by a write without changes that none has changed in between;
        those that have are read again, and after 100 tries it raises StoreBusyError. Override it where a batch is cheaper.
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
        raise _restless(self, seen, unsure)

    _read_one_by_one = read_many  # what a class gets that overrides `read` alone

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Do all changes or none, and give the version they got.

        `expect` maps keys to the version the caller has seen (0: absent), or to `PRESENT`: any entry will do. Where one
        differs (`is_expected`) nothing is done and `ConflictError` names the keys. Without changes it is a pure check, and
        gives the current version; that suspends no more than a read does.

        Cancelled, it is withdrawn if nothing of it was done; else its outcome is awaited first. It never lands after
        the caller was told that it did not.

        ConflictError means that nothing was done, and callers try again after it. So a backend must not send a write a second
        time without knowing the outcome of the first: the second would be in conflict with the first. If its driver retries
        by itself, that has to be switched off. An answer that was lost is found out: a write that landed counts once, and gives
        its version (`backends.network.Slots`). If that can't be found out in time, raise AnswerLostError.

        More changes and expectations than `max_changes` raise WriteSizeError, and nothing is done.
        """
        raise NotImplementedError(f"{type(self).__name__} has no write")

    def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The live keys that start with `prefix`, in the order of their code points. Keys only, so that no layer is passed by.

        They begin after the key `after`, which need not exist nor start with the prefix; "" stands for the beginning. In
        `reverse` they are given from the last one on, and `after` is the key that they are before. There are at most
        `limit` of them, 0 or more: fewer only where there are no more. So who hands the last key of a page on as
        `after` gets the next page, and every page costs the same.

        A key that is there all the while is given, once, whatever is written meanwhile; one that comes or goes may be.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scan")

    async def read_page(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int
    ) -> list[tuple[str, Entry | None]]:
        """The keys that `scan` gives, with their entries, all as they were at one moment; fewer than `limit` only at the end.

        None stands where the entry has gone since its key was found. By default `read_many` reads what `scan` has found.
        Override it where one look finds both.
        """
        return await page_of(self.scan(prefix, after=after, reverse=reverse, limit=limit), self.read_many)

    _read_page_in_two = read_page  # what a class gets that overrides a part of it

    async def check(self) -> list[str]:
        """A sentence for each fault in how the entries are stored that reading them does not show, such as in an index."""
        return []

    async def compact(self, size: int) -> int:
        """Give about so many bytes, that removed entries have left free, back to whoever lent them; gives how many it were.

        In one short step, so that others write on: who wants all of it back calls it until it gives 0, which also a backend
        does that has nothing to give back. No entry and no version changes.
        """
        return 0

    async def version(self) -> int:
        """The last version given: at least that of each write that was acknowledged, whoever wrote.

        It never goes back, not by a delete, not by a restart. Versions differ from write to write, and those of one key
        rise. They need not be consecutive, nor have the order in which writes of different keys have landed.
        """
        raise NotImplementedError(f"{type(self).__name__} has no version")

    async def flush(self) -> None:
        """Wait until everything acknowledged is as durable as this backend makes it."""

    async def open(self) -> None:
        """Acquire what is needed. Called once, before the first operation.

        What it was told of a server, such as `durability=` in its URL, is verified here: it raises StoreError with what the
        server has, and how to change that.
        """

    async def probe(self, patience: float) -> ProbeResult | None:
        """Look, without opening it, whether it could be opened and keeps what its URL promises; within `patience` seconds.

        Nothing is written, nothing is made where there is nothing yet, and no connection is kept. Raises StoreError for
        whatever `open` would refuse and that can be seen so. By default None: that can't be known without opening it.
        """
        return None

    async def own(self) -> None:
        """Once open: keep whoever else would own the same data off it, until `close` or the end of the process.

        Raises StoreBusyError where somebody owns it, and ConfigError if it can't be owned. The owner's writes get consecutive
        versions, which a server that others write to can't give.
        """
        raise ConfigError(
            f"{self!r} can't be locked by one process, which persistence mode='behind' needs: others may write to it at any "
            "time, so its versions are not consecutive; use mode='through'"
        )

    def turn(self, names: Collection[str]) -> AbstractAsyncContextManager[None] | None:
        """A context for one read and one write of these keys, between which nobody else writes them, in other processes neither.

        It may keep others off all other keys, too. None: there are no turns.

        For an update that has lost to others a few times. Its write ends it; what takes long ends it too. So callers still say
        what they expect, and no promise but that of an end depends on it. Those that want it get it in a fair order.
        """
        return None

    async def watch(self, watcher: Watcher) -> None:
        """Tell the watcher of each write to these data from now on, whoever writes, until `close`. Where `can_watch` says so.

        It is called once, before `open` or after it, and returns before the first word, which is `back`. The subscription
        has a thread of its own, since the loop that opened the backend may be blocked, or gone. A change is told at most
        a stated time after the write was acknowledged; if that can't be kept, as the server doesn't answer, the watcher is
        told `lost`, within that time too, and `back` as soon as there is a new subscription. A forked child
        begins as lost again, and gets a subscription of its own.

        Raises ConfigError where `can_watch` is False.
        """
        raise ConfigError(f"{self!r} can't notify of other processes' writes: can_watch is False")

    async def close(self) -> None:
        """Let go of everything; operations raise StoreClosedError from now on. May be called twice."""


def _check_scan(cls: type[Backend]) -> None:
    """Raise TypeError where the class has a `scan` of before pages."""
    try:
        taken = inspect.signature(cls.scan).parameters
    except (TypeError, ValueError):  # it doesn't say what it takes
        return
    lacking = [name for name in ("after", "reverse", "limit") if name not in taken]
    if lacking and not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        raise TypeError(
            f"{cls.__name__}.scan doesn't take {', '.join(lacking)}; declare it as "
            '`scan(self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None)`. A layer '
            "hands them on to its inner one; what they mean to a backend stands in `Backend.scan`"
        )


# ---------------------------------------------------------------- what a part may know besides
@runtime_checkable
class Keeper(Protocol):
    """A part of a stack that counts the entries which it keeps, and those which it evicted."""

    @property
    def entries(self) -> int:
        """How many entries it keeps now."""
        ...

    @property
    def evictions(self) -> Mapping[Reason, int]:
        """How many entries it evicted so far, by reason. It is always the same mapping, which goes on counting."""
        ...


@runtime_checkable
class WriteQueue(Protocol):
    """Writes that were acknowledged, and that the durable backend doesn't have yet."""

    durable: Backend
    """The backend that they are for."""

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
        """Copy all entries, as they are at one moment, into a new file, which is whole or not there; gives its bytes.

        `copied` is called now and then with how much was copied since, and how much it is in all. Raises StoreError.
        """
        ...


@runtime_checkable
class Tiered(Protocol):
    """A layer for which the stack inside is a cache, and another backend the authority."""

    authority: Backend
    """What answers where the two differ."""

    @property
    def queue(self) -> WriteQueue | None:
        """What waits to be written to the authority; None where each write waits for it itself."""
        ...


async def page_of(
    names: AsyncIterator[str], read_many: Callable[[list[str]], Awaitable[Mapping[str, Entry]]]
) -> list[tuple[str, Entry | None]]:
    """These names with what is read of them: None where the entry has gone meanwhile."""
    found = [name async for name in names]
    entries: Mapping[str, Entry] = await read_many(found) if found else {}
    return [(name, entries.get(name)) for name in found]


async def read_around(layer: Backend, inner: Backend, keys: Iterable[str]) -> dict[str, Entry]:
    """What the layer's `read` gives of these keys while the inner one's stay as they are; else again.

    Whatever `read` makes of an entry: it may hide one. Raises StoreBusyError where the keys never stay for so long.
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
    raise _restless(layer, names, changed)


def _restless(backend: Backend, keys: Collection[str], changed: Collection[str]) -> StoreBusyError:
    return StoreBusyError(
        f"{len(keys)} keys could not be read as of one moment: some were changed at each of {READ_TRIES} tries, last "
        f"{', '.join(map(repr, sorted(changed)[:5]))}; try again, or override read_many in {type(backend).__name__}"
    )
