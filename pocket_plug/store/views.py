"""The views that read and write a stack or a transaction; a node's phases get them.

`sync` has the same without `await`, and `store` the views that open and close a stack.
"""

# Functions that make views of views are friends of theirs.
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar, overload

from typing_extensions import TypeForm

from pocket_plug.errors import CodecError, ConfigError, ConflictError, MissingKeyError, StoreError, TransactionError
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.lists import ListHead
from pocket_plug.primitives.names import check_length
from pocket_plug.primitives.redaction import found, named
from pocket_plug.primitives.values import Value

from . import lists
from .backend import PRESENT, Delete, Put
from .base import MISSING, NO_DEFAULT, SHORT, Name, Source, StoredValue, View
from .keys import Key, ReadAs, check_prefix
from .listing import names_of, pages_of, remove, remove_all
from .mapping import EACH, StoreMapping
from .stack import Stack
from .transaction import Transaction, begin
from .typed import TypedReader, TypedStore
from .updating import (
    checked_item,
    checked_items,
    no_single_value,
    replaced,
    single_value,
    taking,
    touching,
)

T = TypeVar("T")
D = TypeVar("D")
R = TypeVar("R")


class StoreReader(View):
    """Reads from a store: the view that a node's `prep` gets, and that `store.reader()` returns."""

    __slots__ = ()

    @overload
    async def get(self, key: ReadAs[T], /) -> T | None: ...
    @overload
    async def get(self, key: ReadAs[R, T], /, default: T) -> R: ...
    @overload
    async def get(self, key: ReadAs[T], /, default: D) -> T | D: ...
    @overload
    async def get(self, key: str, /, default: Value = None) -> Value: ...
    async def get(self, key: Any, /, default: object = None) -> object:
        """The value at `key`, else `default`. If the backend fails it raises StoreError, never returns `default`.

        >>> from pocket_plug import SyncStore
        >>> store = SyncStore()
        >>> store.get("user:1", MISSING)
        MISSING
        """
        entry = await self._source.read(self._name(key))
        if entry is None:
            return default
        value = entry.value
        if value.__class__ is ListHead:
            raise no_single_value(key, value)
        return key.checked(value) if key.__class__ is Key else value

    @overload
    async def require(self, key: ReadAs[T], /) -> T: ...
    @overload
    async def require(self, key: str, /) -> Value: ...
    async def require(self, key: Any, /) -> object:
        """The value at `key`; raises MissingKeyError, with the key and the scope, if there is none."""
        value = await self.get(key, MISSING)
        if value is MISSING:
            scope = f" (scope {self._prefix!r})" if self._prefix else ""
            raise MissingKeyError(f"nothing at {str(key)!r}{scope}")
        return value

    async def has(self, key: Name, /) -> bool:
        """Whether there is a value at `key`, None included."""
        return await self._source.read(self._name(key)) is not None

    @overload
    async def get_many(self, keys: Iterable[ReadAs[T]], /) -> dict[str, T]: ...
    @overload
    async def get_many(self, keys: Iterable[Name], /) -> dict[str, Value]: ...
    async def get_many(self, keys: Iterable[Any], /) -> dict[str, Value]:
        """The values that exist, by name, from one read and in the order of the keys."""
        names = self._names(keys)
        entries = await self._source.read_many(names)
        start = len(self._prefix)
        return {name[start:]: single_value(key, entries[name]) for name, key in names.items() if name in entries}

    @overload
    async def entry(self, key: ReadAs[T], /) -> StoredValue[T] | None: ...
    @overload
    async def entry(self, key: str, /) -> StoredValue[Value] | None: ...
    async def entry(self, key: Any, /) -> StoredValue[Any] | None:
        """The value with its version and expiry time, from one read; None if there is none.

        >>> from pocket_plug import SyncStore
        >>> store = SyncStore()
        >>> store.set("page", "draft")
        >>> store.entry("page")
        StoredValue(value='draft', version=1, expires_at=None)
        """
        entry = await self._source.read(self._name(key))
        if entry is None:
            return None
        return StoredValue(single_value(key, entry), entry.version, entry.expires_at)

    async def keys(
        self, prefix: str = "", *, after: Name | None = None, reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The names that start with `prefix`, in order, without this view's scope. Raises KeyNameError if no name can.

        They begin after the name `after`, which need not exist, and there are at most `limit`: the last name of a page is
        the next page's `after`, and every page costs the same. With `reverse` they are listed backwards, from before
        `after`.
        """
        start = len(self._prefix)
        check_prefix(prefix)
        names = names_of(self._source, self._prefix + prefix, after=self._bound(after), reverse=reverse, limit=limit)
        async for name in names:
            yield name[start:]

    async def items(
        self, prefix: str = "", *, after: Name | None = None, reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[tuple[str, Value]]:
        """The same names with their values.

        100 at a time are read; these are of one moment. An entry that is removed between the search for names and that
        moment is left out; an entry that is added in between may be missing. The value of an append-only list is an
        `ItemList`, which has its length.
        """
        async for page in self._pages(prefix, after=after, reverse=reverse, limit=limit):
            for pair in page:
                yield pair

    def _pages(
        self, prefix: str, *, after: Name | None, reverse: bool, limit: int | None
    ) -> AsyncIterator[list[tuple[str, Value]]]:
        check_prefix(prefix)
        bound = self._bound(after)
        return pages_of(self._source, self._prefix, prefix, after=bound, reverse=reverse, limit=limit)

    async def count(self, prefix: str = "") -> int:
        """The number of names that start with `prefix`. It reads each name, but no value."""
        check_prefix(prefix)
        number = 0
        async for _name in names_of(self._source, self._prefix + prefix):
            number += 1
        return number

    @overload
    async def tail(self, key: ReadAs[list[T]], n: int, /) -> list[T]: ...
    @overload
    async def tail(self, key: str, n: int, /) -> list[Value]: ...
    async def tail(self, key: Any, n: int, /) -> list[Any]:
        """The last `n` items of an append-only list, the newest one last, as of one moment; an empty list if there is none.

        Its cost depends on `n`, not on the length of the list. Raises ValueTypeError if the value at the key is not such
        a list, and for an item of another type than the Key declares, as in `Key("chat:{}", list[Message])`.
        """
        return checked_items(key, await lists.tail(self._source, self._name(key), key, n))

    async def length(self, key: Name, /) -> int:
        """The number of items of an append-only list; 0 if there is none, ValueTypeError if the value is not such a list."""
        return await lists.length(self._source, self._name(key), key)

    @overload
    def each_item(self, key: ReadAs[list[T]], /) -> AsyncIterator[T]: ...
    @overload
    def each_item(self, key: str, /) -> AsyncIterator[Value]: ...
    async def each_item(self, key: Any, /) -> AsyncIterator[Any]:
        """The items that an append-only list has when it begins, the oldest one first.

        100 at a time are read. Items that are trimmed meanwhile, or removed with the list, are left out.
        """
        async for page in self._item_pages(key):
            for item in page:
                yield item

    async def _item_pages(self, key: Any) -> AsyncIterator[list[Any]]:
        async for page in lists.item_pages(self._source, self._name(key), key):
            yield checked_items(key, page)

    async def ttl(self, key: Name, /) -> float | None:
        """Seconds until `key` expires; None if it never does. Raises MissingKeyError if there is no entry."""
        entry = await self._source.read(self._name(key))
        if entry is None:
            raise MissingKeyError(f"nothing at {str(key)!r}, so it has no time to live")
        return None if entry.expires_at is None else entry.expires_at - self._source.clock()

    @overload
    def typed(self, type: type[T], /) -> TypedReader[T]: ...
    @overload
    def typed(self, type: TypeForm[T], /) -> TypedReader[T]: ...
    def typed(self, type: Any, /) -> TypedReader[Any]:
        """This view for values of one type, checked when they are read."""
        return TypedReader(self, type)


class StoreWriter(StoreReader):
    """Reads and writes: the view that a node's `post` gets. There, all writes are committed together or not at all."""

    __slots__ = ()

    @overload
    async def set(
        self, key: Key[T], value: T, /, *, ttl: Duration | None = None, expect: int | None = None
    ) -> None: ...
    @overload
    async def set(
        self, key: str, value: Value, /, *, ttl: Duration | None = None, expect: int | None = None
    ) -> None: ...
    async def set(self, key: Any, value: Value, /, *, ttl: Duration | None = None, expect: int | None = None) -> None:
        """Store `value`.

        `ttl` is seconds, a timedelta or text such as "5m"; without one the entry never expires, even if the old one had a
        TTL. `expect` is the version that the entry must have, from `entry`, or 0 if there must be none: otherwise nothing
        is done, and it raises ConflictError. Raises ValueTypeError if the value isn't of the Key's type, and ConfigError
        for a ttl of 0 or less.
        """
        if key.__class__ is Key:
            value = key.checked(value)
        name = self._name(key)
        if len(name) > SHORT:
            check_length(name)
        put = Put(name, value, None if ttl is None else _deadline(self._source, ttl))
        if expect is None:
            await self._source.write((put,))
        else:
            await self._source.write((put,), {name: _version(expect, self._source)})

    @overload
    async def add(self, key: Key[T], value: T, /, *, ttl: Duration | None = None) -> bool: ...
    @overload
    async def add(self, key: str, value: Value, /, *, ttl: Duration | None = None) -> bool: ...
    async def add(self, key: Any, value: Value, /, *, ttl: Duration | None = None) -> bool:
        """Store `value` if there is no entry; returns whether it did. If several add it at once, exactly one gets True.

        >>> from pocket_plug import SyncStore
        >>> store = SyncStore()
        >>> store.add("leader", "a", ttl="30s"), store.add("leader", "b", ttl="30s"), store.get("leader")
        (True, False, 'a')
        """
        return bool(await self._added(key, value, ttl))

    async def _added(self, key: Any, value: Value, ttl: Duration | None) -> dict[str, int]:
        """As `add`; returns the name with its new version, or an empty dict if there was an entry."""
        name = self._written(key)
        put = Put(name, key.checked(value) if key.__class__ is Key else value, _deadline(self._source, ttl))
        try:
            return {name: await self._source.write((put,), {name: 0})}
        except ConflictError:
            return {}

    async def set_many(self, values: Mapping[Value, Value], /, *, ttl: Duration | None = None) -> None:
        """Store several values in one write: all or none."""
        if not hasattr(values, "items"):
            raise TypeError(f"set_many takes a dict of keys and values, not {named(values)}")
        deadline = _deadline(self._source, ttl)
        checked = {key: key.checked(value) if key.__class__ is Key else value for key, value in values.items()}
        await self._source.write([Put(self._written(key), value, deadline) for key, value in checked.items()])

    async def delete(self, key: Name, /) -> bool:
        """Remove the entry; returns whether there was one.

        If several delete it at once, exactly one gets True. A value that others set meanwhile is removed too. An
        append-only list is gone at once; its items are removed right after, in writes of at most 500.
        """
        name = self._name(key)
        try:
            found = await self._source.read(name)
        except CodecError:  # the entry is damaged; its removal repairs the store
            return await self.delete_many([key]) > 0
        if found is None:  # a look is cheaper than a write that does nothing
            return False
        try:
            await self._source.write((Delete(name),), {name: PRESENT})
        except ConflictError:  # somebody else has removed it
            left = await self._source.read(name)
            if left is not None and left.version == found.version:
                raise StoreError(
                    f"{str(key)!r} could not be deleted: its backend raises ConflictError where PRESENT is expected and there "
                    "is an entry; let its write compare versions by pocket_plug.store.backend.is_expected"
                ) from None
            return False
        if found.value.__class__ is ListHead:
            await lists.remove_list(self._source, name, found.value)
        return True

    async def delete_many(self, keys: Iterable[Name], /) -> int:
        """Remove several entries in one write, all or none; returns how many there were.

        If the backend limits the size of a write (`Backend.max_changes`), a bigger removal takes several writes, as few
        as possible.
        """
        names = self._names(keys)
        found = await lists.lists_at(self._source, names)
        removed = await remove(self._source, names)
        for name, head in found.items():
            await lists.remove_list(self._source, name, head)
        return removed

    async def delete_prefix(self, prefix: str, /) -> int:
        """Remove all entries whose names start with `prefix`; returns how many there were. With "" all of this view.

        It takes writes of at most 500 entries, in order. Each write is atomic; all together are atomic in a transaction
        only. After an error, earlier writes stay. Entries that others add meanwhile may be removed or not.
        """
        check_prefix(prefix)
        removed = await remove_all(self._source, self._prefix + prefix)
        await lists.remove_lists_below(self._source, self._prefix + prefix)
        return removed

    @overload
    async def pop(self, key: ReadAs[T], /) -> T: ...
    @overload
    async def pop(self, key: ReadAs[R, T], /, default: T) -> R: ...
    @overload
    async def pop(self, key: ReadAs[T], /, default: D) -> T | D: ...
    @overload
    async def pop(self, key: str, /, default: Value = ...) -> Value: ...
    async def pop(self, key: Any, /, default: object = NO_DEFAULT) -> object:
        """Remove the value and return it: exactly one caller gets it.

        If there is none, it returns `default`, or raises MissingKeyError without one. A value that isn't of the Key's
        type is not removed, and raises ValueTypeError.
        """
        name = self._name(key)
        return await self._source.apply(name, taking(name, key, default))

    async def touch(self, key: Name, /, *, ttl: Duration | None) -> bool:
        """Set a new TTL, None for none, without changing the value; returns whether there was an entry."""
        name = self._written(key)
        touched: bool = await self._source.apply(name, touching(name, _deadline(self._source, ttl)))
        return touched

    @overload
    async def append(self, key: Key[list[T]], item: T, /, *, ttl: Duration | None = None) -> int: ...
    @overload
    async def append(self, key: str, item: Value, /, *, ttl: Duration | None = None) -> int: ...
    async def append(self, key: Any, item: Value, /, *, ttl: Duration | None = None) -> int:
        """Add an item at the end of an append-only list, and return the new length. It costs the same at any length.

        If there is no entry, it starts a list. If several append at once, no item is lost. The list's expiry time stays,
        unless `ttl` sets a new one for the whole list. Raises ValueTypeError if there is a single value at the key, and for
        an item of another type than the Key declares: at `Key("chat:{}", list[Message])` a Message is appended.

        >>> from pocket_plug import SyncStore
        >>> store = SyncStore()
        >>> store.append("chat:7", "hello"), store.append("chat:7", "hello, Alice"), store.tail("chat:7", 1)
        (1, 2, ['hello, Alice'])
        """
        if key.__class__ is Key:
            item = checked_item(key, item)
        return await lists.append(self._source, self._written(key), key, item, _deadline(self._source, ttl))

    async def trim(self, key: Name, /, *, keep: int) -> int:
        """Remove all but the last `keep` items of an append-only list; returns how many were removed.

        They are gone at once. With 0 an empty list stays, which `delete` removes.
        """
        return await lists.trim(self._source, self._name(key), key, keep)

    @overload
    async def update(
        self, key: ReadAs[R, T], fn: Callable[[T], T], /, *, default: T = ..., ttl: Duration | None = None
    ) -> R: ...
    @overload
    async def update(
        self, key: str, fn: Callable[[Value], Value], /, *, default: Value = ..., ttl: Duration | None = None
    ) -> Value: ...
    async def update(
        self,
        key: Any,
        fn: Callable[[Value], object],
        /,
        *,
        default: object = NO_DEFAULT,
        ttl: Duration | None = None,
    ) -> object:
        """Replace the value by `fn(value)`, atomically, and return the new one. The expiry time stays, unless `ttl` sets one.

        `fn` gets a private copy, and may be called several times. Raises MissingKeyError if there is neither a value nor a
        `default`. Raises ValueTypeError if `fn` returns None in place of a mutable value, such as a list, unless the Key's
        type allows None: it probably forgot to return the value. Raises ConflictError if other processes, or `fn` itself,
        change the key at each of 20 tries.

        >>> from pocket_plug import SyncStore
        >>> SyncStore().update("hits", lambda n: n + 1, default=0)
        1
        """

        name = self._name(key)
        if len(name) > SHORT:
            check_length(name)
        until = None if ttl is None else _deadline(self._source, ttl)
        return await self._source.apply(name, partial(replaced, name, key, fn, default, None, until))

    @overload
    def typed(self, type: type[T], /) -> TypedStore[T]: ...
    @overload
    def typed(self, type: TypeForm[T], /) -> TypedStore[T]: ...
    def typed(self, type: Any, /) -> TypedStore[Any]:
        """This view for values of one type, checked when they are written and read."""
        return TypedStore(self, type)

    @overload
    def mapping(self, /) -> StoreMapping[Value]: ...
    @overload
    def mapping(self, key: Key[T], /) -> StoreMapping[T]: ...
    def mapping(self, key: Any = EACH, /) -> StoreMapping[Any]:
        """Entries of this view as a `MutableMapping`, without `await`, as `sync.mapping(key)` returns it."""
        return StoreMapping(self, key)


class WriterOnly:
    """A method that a reader lacks and its writer has: it raises AttributeError with the reason, so `hasattr` is False.

    A descriptor and no `__getattr__`, which would make each access to a view slower.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, view: object, owner: type) -> Any:
        message = f"{owner.__name__} only reads, so it has no {self.name!r}; a node writes in its post"
        raise AttributeError(message, name=self.name, obj=None)  # with no obj Python suggests no other name


def refuse_writes(reader: type, writer: type) -> None:
    """Let a reader raise an error with the reason for each method that only its writer has."""
    for name in vars(writer):
        if not name.startswith("_") and not hasattr(reader, name):
            setattr(reader, name, WriterOnly(name))


refuse_writes(StoreReader, StoreWriter)


def _version(expect: object, source: Source) -> int:
    least = PRESENT if isinstance(source, Transaction) else 0  # PRESENT stands for a transaction's own write
    if not isinstance(expect, int) or isinstance(expect, bool) or expect < least:
        own = f"; {PRESENT} is the version of a transaction's own write, until its commit" if expect == PRESENT else ""
        raise ConfigError(
            f"expect can't be {found(expect)}; give the version of entry(key), or 0 if the key must not exist{own}"
        )
    return expect


def _deadline(source: Source, ttl: Duration | None) -> float | None:
    return None if ttl is None else source.clock() + seconds(ttl)


class OpenTransaction:
    """The context manager behind `store.transaction()`."""

    __slots__ = ("_prefix", "_stack", "_transaction")

    def __init__(self, stack: Stack, prefix: str) -> None:
        self._stack, self._prefix = stack, prefix
        self._transaction: Transaction | None = None

    async def __aenter__(self) -> StoreWriter:
        if self._transaction is not None:  # a second block would forget the writes of the first one
            raise TransactionError("this transaction is open already; make one for each block: store.transaction()")
        self._transaction = transaction = begin(self._stack)
        return StoreWriter(transaction, self._prefix)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        transaction, self._transaction = self._transaction, None
        commit = None if transaction is None else transaction.end()
        if kind is None and commit is not None:
            changes, expect = commit
            await self._stack.write(changes, expect)
