"""Views of a store for values of one type, checked at run time as well."""

# These views are friends of the others.
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Generic, TypeVar, cast, overload

from typing_extensions import TypeForm

from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.typechecks import check_type, checker, declared_types, type_name
from pocket_plug.primitives.values import Value

from .base import MISSING, NO_DEFAULT, Name, Readable, StoredValue, Writable
from .caching import TypedCaching
from .driven import FEW, driven
from .keys import Key, newest
from .mapping import StoreMapping
from .updating import replaced, taking

T = TypeVar("T")
D = TypeVar("D")


class TypedReader(Generic[T]):
    """A view for values of one type; a value of another type raises ValueTypeError, with the key."""

    def __init__(self, view: Readable, type: TypeForm[T], /) -> None:
        check_type(type, "a typed store")
        self._reader = view
        self._type = type
        self._fits = checker(type)
        declared_types.append(type)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._reader!r}, {type_name(self._type)})"

    def _checked(self, key: str, value: Value) -> T:
        fitting: T = value
        if not self._fits(value):
            wanted = f"{key!r}: this store is typed {type_name(self._type)}, the value is"
            fitting = newest(value, self._type, self._fits, wanted)
        return fitting

    @overload
    async def get(self, key: str, /) -> T | None: ...
    @overload
    async def get(self, key: str, /, default: D) -> T | D: ...
    async def get(self, key: str, /, default: object = None) -> object:
        """The value at `key`, else `default`."""
        value = await self._reader.get(key, MISSING)
        return default if value is MISSING else self._checked(key, value)

    async def require(self, key: str, /) -> T:
        """The value at `key`; raises MissingKeyError if there is none."""
        return self._checked(key, await self._reader.require(key))

    async def entry(self, key: str, /) -> StoredValue[T] | None:
        """The value with its version and expiry time, from one read; None if there is none."""
        found = await self._reader.entry(key)
        return None if found is None else replace(found, value=self._checked(key, found.value))

    def keys(
        self, prefix: str = "", *, after: Name | None = None, reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The names that start with `prefix`, whatever the types of their values."""
        return self._reader.keys(prefix, after=after, reverse=reverse, limit=limit)

    async def items(
        self, prefix: str = "", *, after: Name | None = None, reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[tuple[str, T]]:
        """The same names with their values, read 100 at a time."""
        async for page in self._pages(prefix, after=after, reverse=reverse, limit=limit):
            for pair in page:
                yield pair

    async def _pages(
        self, prefix: str, *, after: Name | None, reverse: bool, limit: int | None
    ) -> AsyncIterator[list[tuple[str, T]]]:
        async for page in self._reader._pages(prefix, after=after, reverse=reverse, limit=limit):
            yield [(name, self._checked(name, value)) for name, value in page]

    async def count(self, prefix: str = "") -> int:
        """The number of names that start with `prefix`."""
        return await self._reader.count(prefix)

    async def tail(self, key: str, n: int, /) -> list[T]:
        """The last `n` items of an append-only list, each of the type, the newest one last."""
        return [self._checked(key, item) for item in await self._reader.tail(key, n)]

    async def length(self, key: str, /) -> int:
        """The number of items of an append-only list."""
        return await self._reader.length(key)

    async def each_item(self, key: str, /) -> AsyncIterator[T]:
        """The items of an append-only list, each of the type, the oldest one first; 100 at a time are read."""
        async for page in self._item_pages(key):
            for item in page:
                yield item

    async def _item_pages(self, key: str) -> AsyncIterator[list[T]]:
        async for page in self._reader._item_pages(key):
            yield [self._checked(key, item) for item in page]


class TypedStore(TypedReader[T]):
    """A view for values of one type, checked when they are written too."""

    def __init__(self, view: Writable, type: TypeForm[T], /) -> None:
        super().__init__(view, type)
        self._writer = view

    async def set(self, key: str, value: T, /, *, ttl: Duration | None = None, expect: int | None = None) -> None:
        """Store a value of the type; with `expect` only if the entry has that version."""
        await self._writer.set(key, self._checked(key, value), ttl=ttl, expect=expect)

    async def add(self, key: str, value: T, /, *, ttl: Duration | None = None) -> bool:
        """Store a value of the type if there is no entry; returns whether it did."""
        return await self._writer.add(key, self._checked(key, value), ttl=ttl)

    async def update(
        self, key: str, fn: Callable[[T], T], /, *, default: T = NO_DEFAULT, ttl: Duration | None = None
    ) -> T:
        """Replace the value by `fn(value)`, atomically, and return the new one.

        Raises MissingKeyError if there is neither a value nor a `default`.
        """

        def checked(old: T) -> T:
            return self._checked(key, fn(self._checked(key, old)))

        name, source = self._writer._written(key), self._writer._source
        until = None if ttl is None else source.clock() + seconds(ttl)
        step = partial(replaced, name, key, checked, default, self._type, until)
        new: T = await source.apply(name, step)
        return new

    async def touch(self, key: str, /, *, ttl: Duration | None) -> bool:
        """Set a new TTL, None for none; returns whether there was an entry."""
        return await self._writer.touch(key, ttl=ttl)

    async def append(self, key: str, item: T, /, *, ttl: Duration | None = None) -> int:
        """Add an item of the type at the end of an append-only list, and return the new length."""
        return await self._writer.append(key, self._checked(key, item), ttl=ttl)

    async def trim(self, key: str, /, *, keep: int) -> int:
        """Remove all but the last `keep` items of an append-only list; returns how many were removed."""
        return await self._writer.trim(key, keep=keep)

    @overload
    async def pop(self, key: str, /) -> T: ...
    @overload
    async def pop(self, key: str, /, default: D) -> T | D: ...
    async def pop(self, key: str, /, default: object = NO_DEFAULT) -> object:
        """Remove the value and return it; if there is none, return `default`, or raise MissingKeyError without one."""
        name = self._writer._name(key)
        step = taking(name, key, default, lambda value: self._checked(key, value))
        return await self._writer._source.apply(name, step)

    async def delete(self, key: str, /) -> bool:
        """Remove the entry; returns whether there was one."""
        return await self._writer.delete(key)

    async def delete_many(self, keys: Iterable[str], /) -> int:
        """Remove several entries; returns how many there were."""
        return await self._writer.delete_many(keys)

    async def delete_prefix(self, prefix: str, /) -> int:
        """Remove all entries whose names start with `prefix`, of any type; returns how many there were."""
        return await self._writer.delete_prefix(prefix)

    def mapping(self) -> StoreMapping[T]:
        """The entries of this view as a `MutableMapping`, without `await`; their names are its keys, escaped."""
        return StoreMapping(self._writer, Key("{}", self._type))

    def cached(self, key: str, /, *, ttl: Duration | None = None, ignore: Collection[str] = ()) -> TypedCaching[T]:
        """A decorator that keeps the result of a function, a value of the type, at `key`: as on a store."""
        return TypedCaching[T](self._writer, Key(cast(Any, key), self._type), ttl, ignore)


class SyncTypedReader(Generic[T]):
    """`TypedReader` without `await`."""

    def __init__(self, typed: TypedReader[T], /) -> None:
        self._source = typed._reader._source
        self._reader = typed

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._reader!r})"

    @overload
    def get(self, key: str, /) -> T | None: ...
    @overload
    def get(self, key: str, /, default: D) -> T | D: ...
    def get(self, key: str, /, default: object = None) -> object:
        """The value at `key`, else `default`."""
        return self._source.run_read(self._reader.get(key, default))

    def require(self, key: str, /) -> T:
        """The value at `key`; raises MissingKeyError if there is none."""
        return self._source.run_read(self._reader.require(key))

    def entry(self, key: str, /) -> StoredValue[T] | None:
        """The value with its version and expiry time, from one read; None if there is none."""
        return self._source.run_read(self._reader.entry(key))

    def keys(
        self, prefix: str = "", *, after: Name | None = None, reverse: bool = False, limit: int | None = None
    ) -> Iterator[str]:
        """The names that start with `prefix`, whatever the types of their values."""
        names = self._reader.keys(prefix, after=after, reverse=reverse, limit=limit)
        return driven(self._source.run_read, names, FEW)

    def items(
        self, prefix: str = "", *, after: Name | None = None, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[str, T]]:
        """The same names with their values, read 100 at a time."""
        pages = self._reader._pages(prefix, after=after, reverse=reverse, limit=limit)
        return chain.from_iterable(driven(self._source.run_read, pages))

    def count(self, prefix: str = "") -> int:
        """The number of names that start with `prefix`."""
        return self._source.run_read(self._reader.count(prefix))

    def tail(self, key: str, n: int, /) -> list[T]:
        """The last `n` items of an append-only list, each of the type, the newest one last."""
        return self._source.run_read(self._reader.tail(key, n))

    def length(self, key: str, /) -> int:
        """The number of items of an append-only list."""
        return self._source.run_read(self._reader.length(key))

    def each_item(self, key: str, /) -> Iterator[T]:
        """The items of an append-only list, each of the type, the oldest one first; 100 at a time are read."""
        return chain.from_iterable(driven(self._source.run_read, self._reader._item_pages(key)))


class SyncTypedStore(SyncTypedReader[T]):
    """`TypedStore` without `await`."""

    def __init__(self, typed: TypedStore[T], /) -> None:
        super().__init__(typed)
        self._writer = typed

    def cached(self, key: str, /, *, ttl: Duration | None = None, ignore: Collection[str] = ()) -> TypedCaching[T]:
        """A decorator that keeps the result of a function, a value of the type, at `key`: as on a store."""
        return self._writer.cached(key, ttl=ttl, ignore=ignore)

    def mapping(self) -> StoreMapping[T]:
        """The entries of this view as a `MutableMapping`; their names are its keys, escaped."""
        return self._writer.mapping()

    def set(self, key: str, value: T, /, *, ttl: Duration | None = None, expect: int | None = None) -> None:
        """Store a value of the type; with `expect` only if the entry has that version."""
        self._source.run_write(self._writer.set(key, value, ttl=ttl, expect=expect))

    def add(self, key: str, value: T, /, *, ttl: Duration | None = None) -> bool:
        """Store a value of the type if there is no entry; returns whether it did."""
        return self._source.run_write(self._writer.add(key, value, ttl=ttl))

    def update(self, key: str, fn: Callable[[T], T], /, *, default: T = NO_DEFAULT, ttl: Duration | None = None) -> T:
        """Replace the value by `fn(value)`, atomically, and return the new one."""
        return self._source.run_update(self._writer.update(key, fn, default=default, ttl=ttl))

    def touch(self, key: str, /, *, ttl: Duration | None) -> bool:
        """Set a new TTL, None for none; returns whether there was an entry."""
        return self._source.run_update(self._writer.touch(key, ttl=ttl))

    def append(self, key: str, item: T, /, *, ttl: Duration | None = None) -> int:
        """Add an item of the type at the end of an append-only list, and return the new length."""
        return self._source.run_update(self._writer.append(key, item, ttl=ttl))

    def trim(self, key: str, /, *, keep: int) -> int:
        """Remove all but the last `keep` items of an append-only list; returns how many were removed."""
        return self._source.run_update(self._writer.trim(key, keep=keep))

    @overload
    def pop(self, key: str, /) -> T: ...
    @overload
    def pop(self, key: str, /, default: D) -> T | D: ...
    def pop(self, key: str, /, default: object = NO_DEFAULT) -> object:
        """Remove the value and return it; if there is none, return `default`, or raise MissingKeyError without one."""
        return self._source.run_update(self._writer.pop(key, default))

    def delete(self, key: str, /) -> bool:
        """Remove the entry; returns whether there was one."""
        return self._source.run_update(self._writer.delete(key))

    def delete_many(self, keys: Iterable[str], /) -> int:
        """Remove several entries; returns how many there were."""
        return self._source.run_update(self._writer.delete_many(keys))

    def delete_prefix(self, prefix: str, /) -> int:
        """Remove all entries whose names start with `prefix`, of any type; returns how many there were."""
        return self._source.run_update(self._writer.delete_prefix(prefix))
