"""Transactions: repeatable reads and buffered writes over a stack, committed as one write.

A transaction is a backend itself, so the views of `store` work over it as they do over a stack.
"""

# `begin`, which makes a transaction, is a friend of it.
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from contextlib import aclosing
from functools import cache
from typing import TYPE_CHECKING

from pocket_plug.errors import ConflictError, StoreError, TransactionError
from pocket_plug.primitives.lists import place_of
from pocket_plug.primitives.values import Value

from .backend import NO_EXPECTATIONS, PRESENT, Change, Clock, Delete, Entry, Put, is_expected
from .contention import Step
from .scanning import merged

if TYPE_CHECKING:
    from pocket_plug.codec import Codec
    from pocket_plug.primitives.waiting import Runner

    from .stack import Stack

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values need no copy: they are immutable. The codec knows the other types."""


def private(value: Value) -> Value:
    """A copy of a container or a dataclass, which the caller may change. Immutable values are returned as they are."""
    if value.__class__ in ATOMS:
        return value
    return _codec().private(value)


@cache
def _codec() -> Codec:
    """Imported with the first container; an import for each would cost as much as the copy of a small one."""
    from pocket_plug.codec import default_codec

    return default_codec


def _equal(seen: Entry | None, found: Entry | None) -> bool:
    if seen is None or found is None:
        return seen is found
    old, new = seen.value, found.value
    return old.__class__ is new.__class__ and old == new and seen.expires_at == found.expires_at


def _is_as_read(seen: Entry | None, original: Value) -> bool:
    """Is the copy that was given to the caller still equal to the original?"""
    try:
        return seen is not None and bool(seen.value == original)
    except Exception:  # noqa: BLE001 - `==` of arrays, for example, is no bool: then it is unknown
        return False


def _own(put: Put) -> Put:
    value = private(put.value)
    return put if value is put.value else Put(put.key, value, put.expires_at, put.version, put.renews)


class Transaction:
    """What a transaction has read and wants to write. The first version seen of a key is the one expected at commit.

    Keys found by a scan are not tracked: a key that another writer adds meanwhile is not a conflict.

    A node's transaction has two parts, `prep` and then `post`; what only prep read is checked where post writes it, or
    everywhere if `serializable`. Every visit of a node makes one, so it is slotted, and its dicts are made when needed.
    """

    __slots__ = (
        "_may_use",
        "_originals",
        "_read_by_prep",
        "_read_in_post",
        "changes",
        "ended",
        "in_post",
        "seen",
        "stack",
        "stale",
    )

    stack: Stack
    _may_use: Callable[[str, bool], None] | None
    seen: dict[str, Entry | None] | None
    _originals: dict[str, Value] | None
    """The mutable values whose copies were given to callers."""
    _read_by_prep: set[str]  # set at post's first read
    changes: dict[str, Change] | None
    _read_in_post: set[str] | None
    in_post: bool
    """Set when a node's `post` begins: from then on reads are post's."""
    ended: bool
    stale: ConflictError | None
    """The conflict that one of its reads raised: what it read has changed, as its commit would find too."""

    def __repr__(self) -> str:
        return f"Transaction({self.stack!r})"

    @property
    def clock(self) -> Clock:
        """As the stack's."""
        return self.stack.clock

    @property
    def run_read(self) -> Runner:
        """How a sync view runs a read: as the stack does."""
        return self.stack.run_read

    run_write = run_update = run_read  # writes are buffered, and an update reads first

    def _check(self, key: str, writing: bool = False) -> None:
        if self.ended:
            where = f"{key!r}: " if key else ""
            raise TransactionError(f"{where}this transaction has ended; its store can't be used after the end")
        if self._may_use is not None:
            item = place_of(key)
            self._may_use(key if item is None else item.owner, writing)

    def _known(self, key: str) -> bool:
        if self.changes is not None and key in self.changes:
            return True
        if self.in_post:
            if self._read_in_post is None:
                self._read_by_prep, self._read_in_post = set(self.seen or ()), set()
            self._read_in_post.add(key)
        return self.seen is not None and key in self.seen

    def _entry(self, key: str) -> Entry | None:
        change = self.changes.get(key) if self.changes is not None else None
        if change is None:
            return self._as_read(key, self.seen[key]) if self.seen is not None else None
        if isinstance(change, Put) and self._is_alive(change):
            return Entry(private(change.value), PRESENT, change.expires_at)  # it gets its version with the commit
        return None

    def _as_read(self, key: str, entry: Entry | None) -> Entry | None:
        """What the first read of the key returned: a new copy if the caller has changed that one in place since."""
        if entry is None or entry.value.__class__ in ATOMS or self._originals is None:
            return entry
        original = self._originals[key]
        return entry if _is_as_read(entry, original) else Entry(private(original), entry.version, entry.expires_at)

    def _is_alive(self, change: Change) -> bool:
        return isinstance(change, Put) and (change.expires_at is None or self.clock() < change.expires_at)

    def _see(self, key: str, entry: Entry | None) -> Entry | None:
        if self.seen is None:
            self.seen = {}
        if entry is not None and entry.value.__class__ not in ATOMS:
            self._originals = self._originals or {}
            self._originals.setdefault(key, entry.value)
            entry = Entry(private(entry.value), entry.version, entry.expires_at)
        return self.seen.setdefault(key, entry)

    async def read(self, key: str) -> Entry | None:
        """Its own write, else what it read first, else a private copy of the stack's entry."""
        try:
            if self.ended or self._may_use is not None:
                self._check(key)
            if self.changes is None and not self.in_post:  # the common case, without calls
                if self.seen is None:
                    self.seen = {}
                elif key in self.seen:
                    return self._as_read(key, self.seen[key])
                entry = await self.stack.read(key)
                if entry is not None and entry.value.__class__ not in ATOMS:
                    entry = self._see(key, entry)
                else:
                    entry = self.seen.setdefault(key, entry)
                return entry if self.changes is None else self._entry(key)  # another task may have written
            if not self._known(key):
                self._see(key, await self.stack.read(key))
            return self._entry(key)
        except StoreError as error:
            error.stack = self.stack
            raise

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """As `read`; the keys that weren't read yet are read together."""
        keys = list(keys)
        for key in keys:
            self._check(key)
        return await self._look(keys)

    async def _look(self, keys: Iterable[str]) -> dict[str, Entry]:
        unknown = [key for key in keys if not self._known(key)]
        if unknown:
            try:
                found = await self.stack.read_many(unknown)
            except StoreError as error:
                error.stack = self.stack
                raise
            for key in unknown:
                self._see(key, found.get(key))
        return {key: entry for key in keys if (entry := self._entry(key)) is not None}

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Buffer the changes. `expect` is compared with what the transaction sees; the commit expects those versions.

        The values are copied, as a write to a file copies them: the caller may change its object before the commit.
        """
        if self.ended or self._may_use is not None:
            for change in changes:
                self._check(change.key, writing=True)
        if expect:
            found = await self._look(expect)
            versions = {key: entry.version for key, entry in found.items()}
            changed = [key for key, version in expect.items() if not is_expected(versions.get(key, 0), version)]
            if changed:
                raise ConflictError(changed)
        if self.changes is None:
            self.changes = {}
        for change in changes:
            if isinstance(change, Put) and change.value.__class__ not in ATOMS:
                change = _own(change)
            self.changes[change.key] = change
        return 1

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The stack's keys with the transaction's writes applied, those that exist when the scan begins."""
        if self.ended:
            self._check(prefix)
        if limit == 0:
            return
        given = 0
        own = {key: self._is_alive(change) for key, change in (self.changes or {}).items()}
        names = [key for key, is_there in own.items() if is_there]
        both = merged(self.stack, names, prefix, after=after, reverse=reverse, size=limit)
        try:
            async with aclosing(both) as keys:
                async for key in keys:
                    if own.get(key, True):
                        yield key
                        given += 1
                        if given == limit:
                            return
                        if self.ended:
                            self._check(prefix)
        except StoreError as error:
            error.stack = self.stack
            raise

    async def apply(self, name: str, step: Step) -> Value:
        """An update within the transaction. No other task's write comes between its read and its write."""
        changes, answer = step(await self.read(name))
        if changes:
            await self.write(changes)
        return answer

    async def look_at_items(self, names: Sequence[str]) -> dict[str, Entry]:
        """Items of a list whose head was read: they never change, so the commit expects the head's version only."""
        changes = self.changes or {}
        found = await self.stack.read_many([name for name in names if name not in changes])
        items = {name: Entry(private(entry.value), entry.version, entry.expires_at) for name, entry in found.items()}
        items.update((name, own) for name in names if name in changes and (own := self._entry(name)) is not None)
        return items

    def clear_away(self, names: Iterable[str]) -> None:
        """Remove items of removed lists. Nobody can see them, so a node need not declare them as its writes."""
        if self.changes is None:
            self.changes = {}
        self.changes.update((name, Delete(name)) for name in names)

    def _prep_read(self) -> Set[str]:
        return self._read_by_prep if self._read_in_post is not None else (self.seen or {}).keys()

    def again(self) -> Transaction:
        """A new transaction for another try of post, with what prep has read."""
        fresh = begin(self.stack, self._may_use)
        if self.seen is not None:
            kept, originals = self._prep_read(), self._originals or {}
            fresh.seen = {key: self.seen[key] for key in kept}
            fresh._originals = {key: originals[key] for key in kept if key in originals}
        fresh.in_post = True
        return fresh

    async def prep_stands(self, changed: Iterable[str]) -> bool:
        """Would prep read the same again, although these keys have changed? Then post alone can be tried again.

        It would if prep read none of them, or if their values are equal to those that prep read, and immutable. And no mutable
        value that prep read may have been changed in place, by post or by exec: it would be changed twice.
        """
        seen, of_prep = self.seen or {}, self._prep_read()
        again = of_prep & set(changed)
        if not all((entry := seen[key]) is None or entry.value.__class__ in ATOMS for key in again):
            return False
        if not all(
            _is_as_read(seen[key], original) for key, original in (self._originals or {}).items() if key in of_prep
        ):
            return False
        found = await self.stack.read_many(again) if again else {}
        if not all(_equal(seen[key], found.get(key)) for key in again):
            return False
        seen.update((key, found.get(key)) for key in again)
        return True

    def end(self, *, serializable: bool = True) -> tuple[Sequence[Change], Mapping[str, int]] | None:
        """End it; returns the changes to write and the versions to expect, or None if there is nothing to write or check."""
        self.ended = True
        seen, changes = self.seen, self.changes
        if seen is None:
            return None if changes is None else (tuple(changes.values()), NO_EXPECTATIONS)
        checked: Iterable[str] = seen
        if not serializable:
            checked = (self._read_in_post or set()) | ((changes or {}).keys() & seen.keys())
        expect: dict[str, int] = {}
        for key in checked:  # a comprehension would take as long as the rest of the commit's preparation
            entry = seen[key]
            expect[key] = 0 if entry is None else entry.version
        if changes is not None:
            return tuple(changes.values()), expect
        return ((), expect) if expect else None


def begin(stack: Stack, may_use: Callable[[str, bool], None] | None = None) -> Transaction:
    """A transaction over a stack, in half the time that an `__init__` would take: each visit makes one."""
    transaction = Transaction()
    transaction.stack, transaction._may_use = stack, may_use
    transaction.seen = transaction.changes = transaction.stale = None
    transaction._originals = transaction._read_in_post = None
    transaction.in_post = transaction.ended = False
    return transaction
