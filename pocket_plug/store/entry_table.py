"""The table in which a Memory keeps its entries, in order for scans, with what expires or is dropped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from math import inf
from typing import Any, NoReturn, cast

from pocket_plug.errors import ConflictError, StoreClosedError

from .backend import Change, Entry, Put, Reason, is_expected

FEW = 256
"""The most new or removed names that a scan puts in order one by one; with more it sorts again."""

Dropped = tuple[str, Any, Reason]
"""A key, the entry that was there, and why it was removed."""


# dict's own: an OrderedDict's iterator raises if a read in another thread has moved an entry meanwhile
_items: Callable[[Any], Iterable[tuple[str, Any]]] = cast("Any", dict).items


_new: Callable[[type[Entry]], Any] = object.__new__  # half the cost of calling the class, which runs __init__


class EntryTable:
    """The entries of a Memory; the bounding layer replaces it by a table of its own. Called with the Memory's lock held.

    A signal handler (Ctrl-C) can raise at every call and at every iteration of a loop, and only there. So changes that
    belong together are prepared first, and then applied by statements without calls and loops.
    """

    notify: Callable[[Sequence[Dropped]], Awaitable[None]] | None = None
    """Awaited after a write that dropped something, with no lock held."""

    mapping: Callable[[], Any] = dict
    has_ttl = False
    """Does each new entry get a deadline?"""
    gone: Any = Entry(None, 0, -inf)
    """Replaces an entry that a write deletes, until the write is complete. It counts as expired, so it is never read."""

    def __init__(self) -> None:
        self.version = 0
        self.evictions: dict[Reason, int] = {"size": 0, "bytes": 0, "expired": 0}
        self.clear()

    def __len__(self) -> int:
        return 0 if isinstance(self.entries, Closed) else len(self.entries)

    def clear(self) -> None:
        """Remove all entries; the version stays."""
        entries = self.mapping()
        self.sorted: list[str] | None = None  # the names in order, once a scan has needed them
        self.moved: dict[str, None] = {}  # names that were added or removed since the last scan
        self.earliest = inf  # no entry expires before that
        self.dropped: list[Dropped] = []  # `notify` has not been called for these yet
        self.buried: list[str] = []  # keys whose entry may be `gone`
        self._swept = 0  # the version at the last search for expired entries
        self.entries: Any = entries

    def take_over(self, entries: Mapping[str, Entry], now: float) -> None:
        """Start with the entries of another table."""
        self.apply([Put(key, e.value, e.expires_at, e.version) for key, e in entries.items()], self.version, now)

    def count(self, dropped: Iterable[Dropped]) -> None:
        """Count these evictions."""
        for _, _, reason in dropped:
            self.evictions[reason] += 1

    def deadline(self, entry: Any) -> float | None:
        """When the entry expires; None for never."""
        deadline: float | None = entry.expires_at
        return deadline

    def alive(self, entry: Any, now: float) -> bool:
        """Can the entry be read?"""
        return (deadline := self.deadline(entry)) is None or now < deadline

    def read_many(self, keys: Iterable[str], now: float) -> dict[str, Entry]:
        """The entries of these keys that can be read."""
        entries = self.entries
        return {key: entry for key in keys if (entry := entries.get(key)) is not None and self.alive(entry, now)}

    def check(self, expect: Mapping[str, int], now: float) -> None:
        """Raise ConflictError with the keys that have another version than the expected one."""
        entries = self.entries
        if now < self.earliest:  # nothing has expired, so there is no need to ask `alive`: half the time
            for key in expect:
                entry = entries.get(key)
                if (0 if entry is None else entry.version) != expect[key]:
                    break
            else:
                return
        changed: list[str] = []
        for key, version in expect.items():
            entry = entries.get(key)
            if not is_expected(entry.version if entry is not None and self.alive(entry, now) else 0, version):
                changed.append(key)
        if changed:
            raise ConflictError(changed)

    def apply(self, changes: Sequence[Change], version: int, now: float) -> None:
        """Do all changes or none, then remove expired entries if it is time for that."""
        entries = self.entries
        new: Any = entries if len(changes) == 1 else {}  # several are collected first, to be added at once
        for change in changes:
            key, own = str(change.key), change.version
            if own is not None and not self.takes(change, own, new.get(key) or entries.get(key), now):
                continue
            if isinstance(change, Put):
                expires_at = change.expires_at
                entry = _new(Entry)
                entry.value, entry.version, entry.expires_at = change.value, own or version, expires_at
                if self.sorted is not None and key not in entries:
                    self.note(key)
                if expires_at is not None and expires_at < self.earliest:
                    self.earliest = expires_at
                new[key] = entry
            elif key in entries or key in new:
                self.buried += [key]
                new[key] = self.gone
        if new is not entries:
            entries |= new
        if self.buried:
            self.bury()
        if now >= self.earliest:
            self.sweep(now)

    def takes(self, change: Change, version: int, old: Any, now: float) -> bool:
        """Is a change with a version newer than `old`? A put of the same version renews what has expired here."""
        if old is None or old.version < version:
            self.version = max(self.version, version)
            return True
        return bool(old.version == version and not (isinstance(change, Put) and self.alive(old, now)))

    def take(self, key: str, reason: Reason | None = None) -> None:
        """Remove an entry; with a `reason` it is reported as dropped."""
        if self.sorted is not None:
            self.note(key)
        dropped: list[Dropped] = [] if reason is None else [(key, self.entries[key], reason)]
        self.dropped += dropped
        del self.entries[key]

    def note(self, key: str) -> None:
        """Note for the next scan that a name is about to be added or removed; only needed if there are sorted names."""
        self.moved[key] = None
        if len(self.moved) > FEW + len(self.entries) // 4:  # without scans the notes would grow for ever
            self.sorted, self.moved = None, {}

    def names(self) -> list[str]:
        """All names in order. The next call changes the list.

        To insert a name among 200,000 takes 20 to 70 µs, among a million up to 250; to sort 200,000 of which all but
        a few are in order takes 9 ms.
        """
        entries, names, moved = self.entries, self.sorted, self.moved
        if names is None:
            names = self.sorted = sorted(entries)
        elif len(moved) > FEW:
            names = [name for name in names if name not in moved]
            names += [name for name in moved if name in entries]
            names.sort()
            self.sorted, self.moved = names, {}
        elif moved:
            for name in moved:
                place = bisect_left(names, name)
                is_there = place < len(names) and names[place] == name
                if name in entries and not is_there:
                    names.insert(place, name)
                elif is_there and name not in entries:
                    del names[place]
            self.moved = {}
        return names

    def bury(self) -> None:
        """Remove the marks of deleted entries. If a write is interrupted, the next one does it."""
        for key in self.buried:
            if self.entries.get(key) is self.gone:
                self.take(key)
        self.buried = []

    def sweep(self, now: float) -> None:
        """Remove expired entries, if it is time to search for them; called by a write that comes after `earliest`.

        The search takes about 50 ns per entry. So it is done once per n/4 writes, n being the number of entries; with
        each write if n is at most 64.
        """
        if self.version - self._swept < len(self.entries) // 4 - 16:
            return
        earliest = inf
        found: list[str] = []
        for key, entry in _items(self.entries):
            if (deadline := self.deadline(entry)) is not None:
                if deadline <= now:
                    found.append(key)
                elif deadline < earliest:
                    earliest = deadline
        for key in found:
            self.take(key, "expired")
        self._swept, self.earliest = self.version, earliest


class Closed(MutableMapping[str, Any]):
    """Stands in for a closed store's entries, so that the open one need not check a flag on every read."""

    def __init__(self, why: str = "this memory store is closed, and its entries are gone") -> None:
        self._why = why

    def _refuse(self, *_: object) -> NoReturn:
        raise StoreClosedError(self._why)

    __getitem__ = __setitem__ = __delitem__ = __ior__ = __iter__ = __len__ = _refuse
