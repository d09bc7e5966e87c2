"""Transactions: repeatable reads and buffered writes over a stack, committed as one write.

A transaction is a backend itself, so the views of `store` work over it as they do over a stack.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .backend import NO_EXPECTATIONS, Backend, Change, Entry, Put
from .contention import Step
from .errors import TransactionError

if TYPE_CHECKING:
    from .store import Stack

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, datetime, date, time, timedelta, Decimal, UUID})


def private(value: Any) -> Any:
    """A copy that its holder may change: of containers and dataclasses. Immutable atoms come back as they are."""
    if value.__class__ in _ATOMS:
        return value
    from .codec import default_codec

    return default_codec.private(value)


class Transaction(Backend):
    """What a transaction has read and wants to write. The first version seen of a key is the one expected at commit.

    Keys found by a scan are not tracked: one that somebody else adds meanwhile is no conflict.

    A node's transaction has two parts, `prep` and then `post`; what only prep read is checked where post writes it, or
    everywhere if `serializable`.
    """

    inline_write = True

    def __init__(self, stack: Stack, may_use: Callable[[str, bool], None] | None = None) -> None:
        self.stack = stack
        self._seen: dict[str, Entry | None] = {}
        self._read_by_prep: Set[str] = frozenset()
        self._read_in_post: set[str] | None = None
        self._changes: dict[str, Change] = {}
        self._may_use = may_use
        self._ended = False

    @property
    def inline_read(self) -> bool:  # type: ignore[override]
        """As the stack's."""
        return self.stack.inline_read

    @property
    def needs_loop(self) -> bool:  # type: ignore[override]
        """As the stack's."""
        return self.stack.needs_loop

    @property
    def clock(self) -> Callable[[], float]:  # type: ignore[override]
        """As the stack's."""
        return self.stack.clock

    def _check(self, key: str, writing: bool = False) -> None:
        if self._ended:
            raise TransactionError(f"{key!r}: this transaction has ended; its store must not be kept beyond it")
        if self._may_use is not None:
            self._may_use(key, writing)

    def _known(self, key: str) -> bool:
        if self._read_in_post is not None and key not in self._changes:
            self._read_in_post.add(key)
        return key in self._changes or key in self._seen

    def _entry(self, key: str) -> Entry | None:
        change = self._changes.get(key)
        if change is None:
            return self._seen[key]
        if isinstance(change, Put) and (change.expires_at is None or self.clock() < change.expires_at):
            return Entry(change.value, 1, change.expires_at)
        return None

    def _see(self, key: str, entry: Entry | None) -> Entry | None:
        if entry is not None:
            entry = Entry(private(entry.value), entry.version, entry.expires_at)
        return self._seen.setdefault(key, entry)

    async def read(self, key: str) -> Entry | None:
        """Its own write, else what it saw first, else a private copy of what the stack has."""
        self._check(key)
        return self._entry(key) if self._known(key) else self._see(key, await self.stack.read(key))

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """As `read`, what is not known yet in one go."""
        keys = list(keys)
        for key in keys:
            self._check(key)
        unknown = [key for key in keys if not self._known(key)]
        if unknown:
            found = await self.stack.read_many(unknown)
            for key in unknown:
                self._see(key, found.get(key))
        return {key: entry for key in keys if (entry := self._entry(key)) is not None}

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Buffer the changes; `expect` is left to the commit, which knows the versions first seen."""
        for change in changes:
            self._check(change.key, writing=True)
        for change in changes:
            self._changes[change.key] = change
        return 1

    async def scan(self, prefix: str = "") -> AsyncIterator[str]:
        """The stack's keys with its own writes applied."""
        self._check(prefix)
        changed = {key for key in self._changes if key.startswith(prefix)}
        keys = {key async for key in self.stack.scan(prefix) if key not in changed}
        for key in sorted(keys | {key for key in changed if self._entry(key) is not None}):
            yield key

    async def apply(self, name: str, step: Step) -> Any:
        """An update within the transaction."""
        change, answer = step(await self.read(name))
        if change is not None:
            await self.write((change,))
        return answer

    def begin_post(self) -> None:
        """From now on reads are post's."""
        if self._seen:
            self._read_by_prep = set(self._seen)
        self._read_in_post = set()

    def again(self) -> Transaction:
        """A fresh one for another try at post, which knows what prep has read."""
        fresh = Transaction(self.stack, self._may_use)
        fresh._seen = {key: self._seen[key] for key in self._read_by_prep}
        return fresh

    def unread_by_prep(self, keys: Iterable[str]) -> bool:
        """Did prep read none of these? Then post alone can be tried again."""
        return self._read_by_prep.isdisjoint(keys)

    def expected(self, *, serializable: bool = True) -> dict[str, int]:
        """The versions that must be unchanged at commit."""
        checked: Iterable[str] = self._seen
        if self._read_in_post is not None and not serializable:
            checked = self._read_in_post | (self._changes.keys() & self._seen.keys())
        return {key: entry.version if (entry := self._seen[key]) else 0 for key in checked}

    def end(self, *, serializable: bool = True) -> tuple[Sequence[Change], Mapping[str, int]] | None:
        """End it, and give what is to be written; None where nothing was used that would need a check."""
        self._ended = True
        changes = tuple(self._changes.values())
        expect = self.expected(serializable=serializable)
        return (changes, expect) if changes or len(expect) > 1 else None
