"""What of the near tier may be believed: neither the keys that are being written, nor the marked ones, which it has yet to drop.

Here nothing is read or written: `Persistence` does that, and says here what it begins and ends. Writes by others are known if
the durable backend can watch (`Backend.watch`). Its notifications come from another thread, so they only mark keys, and the next
reader drops the marked entries. Between `lost` and `back` all keys count as marked.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, MutableMapping

from pocket_plug.primitives.forking import new_rlock
from pocket_plug.store.backend import Entry, Put
from pocket_plug.store.entry_table import Closed

MAX_MARKS = 10_000
"""With more marked keys than these, all keys count as marked: nobody has read or written here for long."""


class Lease:
    """The keys that a read may fill into the near tier, as long as nobody has written them."""

    __slots__ = ("is_filling", "keys")

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.is_filling = False


class Write:
    """A running write, and those of its keys that another write has written meanwhile."""

    __slots__ = ("keys", "overlapped")

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = tuple(keys)
        self.overlapped: set[str] = set()


class Mark:
    """Marks a key that the near tier has to drop: an entry newer than the version `newest` may stay; None: none may."""

    __slots__ = ("newest",)

    def __init__(self, newest: int | None = None) -> None:
        self.newest = newest


Marks = Mapping[str, Mark | None]


class Everything(dict[str, Mark]):
    """The marks while every key counts as marked. Those that are in it stay when that is over."""

    is_emptying = False  # is a caller emptying the near tier?

    def __contains__(self, key: object) -> bool:
        return True


class Trust:
    """The running writes and fills of one near tier, and the marks of its keys. It is the `Watcher` of the durable backend."""

    def __init__(self, is_watched: bool) -> None:
        self.is_watched = is_watched
        self._lock = new_rlock()
        self.begun = 0
        """Counts the writes, and the notifications of writes by others."""
        self.writes: MutableMapping[str, tuple[Write, ...]] = {}
        """Those that are running, by key."""
        self.unsure: dict[str, Mark] = {}
        """Keys that the near tier has yet to drop, each with a mark of its own."""
        self.known_up_to = 0
        """All writes with versions up to this one were notified, or were there before."""
        self.gets_up_to = False
        """Do notifications say that version, or must the durable tier be asked for it?"""
        self._leases: dict[str, list[Lease]] = {}  # for each key, the fills that a write of it has to stop
        self._is_lost = False  # may notifications be missing?
        self._watched_in = 0  # the process in which the backend was last known to notify
        if is_watched:
            self.lost()

    def agrees(self, keys: Iterable[str]) -> bool:
        """Are the near tier's entries of these keys the durable one's, as far as is known?"""
        return not any(key in self.writes or key in self.unsure for key in keys)

    # ------------------------------------------------------------ fills of the near tier
    def begin_lease(self, lease: Lease, keys: Iterable[str]) -> None:
        """A read of these keys begins, from the durable tier."""
        with self._lock:
            leased = tuple(key for key in keys if key not in self.writes and key not in self.unsure)
            lease.keys.update(leased)
            for key in leased:
                self._leases.setdefault(key, []).append(lease)

    def begin_fill(self, lease: Lease, found: Mapping[str, Entry]) -> list[Put]:
        """What may be filled in of the entries that were found."""
        with self._lock:
            lease.is_filling = True
            return list(
                Put(key, entry.value, entry.expires_at, entry.version)
                for key, entry in found.items()
                if key in lease.keys
            )

    def end_lease(self, lease: Lease, keys: Iterable[str]) -> None:
        """The read is over. Can be called again."""
        with self._lock:
            for key in keys:
                leases = list(other for other in self._leases.get(key, ()) if other is not lease)
                if leases:
                    self._leases[key] = leases
                else:
                    self._leases.pop(key, None)

    # ------------------------------------------------------------ our own writes
    def begin(self, write: Write) -> None:
        """A write begins."""
        with self._lock:
            for key in write.keys:
                others = self.writes.get(key, ())
                for other in (*others, write) if others else ():
                    other.overlapped.add(key)
                self.writes[key] = (*others, write)
                for lease in self._leases.get(key, ()):
                    lease.keys.discard(key)
                    # the fill may take effect after this write's end
                    self.unsure |= {key: Mark()} if lease.is_filling else {}
            if isinstance(self.unsure, Everything):
                write.overlapped.update(write.keys)
            self.begun += 1  # last: a caller that has read it before finds the keys above

    def end(self, write: Write, doubtful: Iterable[str]) -> set[str]:
        """End a write; returns the keys that the near tier has to drop, and marks them until then. Can be called again.

        Besides the doubtful keys, these are keys with several writes at once: the near tier may have another order of them.
        """
        with self._lock:
            unsure = write.overlapped.union(doubtful)
            for key in unsure:
                self.unsure[key] = Mark()
            for key in write.keys:  # may be missing, if this thread has forked this process in between
                others = tuple(other for other in self.writes.get(key, ()) if other is not write)
                if others:
                    self.writes[key] = others
                else:
                    self.writes.pop(key, None)
        return unsure

    # ------------------------------------------------------------ marks
    def marks_of(self, keys: Collection[str]) -> tuple[Marks, Marks]:
        """The marks of keys that are about to be dropped, and those marks that the drop settles.

        A running fill or write may bring back what is dropped now, so marks of its keys stay.
        """
        with self._lock:
            marks = {key: self.unsure.get(key) for key in keys}
            settled = ((key, mark) for key, mark in marks.items() if key not in self._leases and key not in self.writes)
            return marks, dict(settled)

    def unmark(self, marks: Marks) -> None:
        """These were dropped. Newer marks stay."""
        with self._lock:
            same = tuple(key for key, mark in marks.items() if mark is not None and self.unsure.get(key) is mark)
            for key in same:
                del self.unsure[key]

    def begin_emptying(self, everything: Everything) -> bool:
        """May the caller empty the near tier? Not while notifications are lost, nor beside another one who does it."""
        with self._lock:
            if self._is_lost or everything.is_emptying:
                return False
            everything.is_emptying = True
            return True

    def end_emptying(self, everything: Everything, version: int) -> bool:
        """The near tier is empty, as of this version; returns whether it may be believed: not if they were lost again."""
        with self._lock:
            if self.unsure is not everything:
                return False
            self.unsure = dict(everything)
            self.known_up_to = max(self.known_up_to, version)
            return True

    # ------------------------------------------------------------ what others write: see `Watcher`
    def changed(self, versions: Mapping[str, int], up_to: int | None = None) -> None:
        """These keys were written."""
        with self._lock:
            self.known_up_to = max(self.known_up_to, *versions.values() if up_to is None else (up_to,), 0)
            self.begun += 1
            if isinstance(self.unsure, Everything):
                return
            self._mark(versions)
            if len(self.unsure) > MAX_MARKS:
                self._distrust_all()

    def _mark(self, versions: Mapping[str, int]) -> None:
        """Called with the lock held."""
        for key, version in versions.items():
            known = self.unsure.get(key)
            if known is None or known.newest is None or known.newest < version - 1:
                # a new mark in any case: a running drop may come before a running write of ours
                self.unsure[key] = Mark(version - 1 if known is None or known.newest is not None else None)

    def lost(self) -> None:
        """From now on notifications may be missing."""
        with self._lock:
            self._is_lost = True
            self.known_up_to = 0  # what comes back may be an older copy
            self.begun += 1
            self._distrust_all()

    def back(self, up_to: int | None = None) -> None:
        """From now on each change is notified again. The near tier is emptied before it is read again."""
        with self._lock:
            self._is_lost = False
            self.gets_up_to = up_to is not None
            if up_to is not None:
                self.known_up_to = up_to
            self._watched_in = os.getpid()

    def _distrust_all(self) -> None:
        """Mark all keys, also those of running fills and writes. Called with the lock held."""
        filling = [key for key, leases in self._leases.items() if any(lease.is_filling for lease in leases)]
        self.unsure = Everything((key, Mark()) for key in filling)
        for leases in self._leases.values():
            for lease in leases:
                lease.keys.clear()
        for writes in self.writes.values():
            for write in writes:
                write.overlapped.update(write.keys)

    # ------------------------------------------------------------ forks
    def forget_others(self, closed: str | None) -> None:
        """In a forked child: only the durable tier has the outcome of writes by the parent's threads.

        `closed`: why the tiers can't be used here at all, if that is so.
        """
        self._leases.clear()
        if closed is not None:
            self.writes = Closed(closed)
            return
        self.unsure.update((key, Mark()) for key in self.writes)
        self.writes.clear()
        if self.is_watched and self._watched_in != os.getpid():
            self.lost()
