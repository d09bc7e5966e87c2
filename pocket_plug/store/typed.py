"""Views of a store for values of one type, checked at run time as well."""

# These views are friends of the others.
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, overload

from typing_extensions import TypeForm

from pocket_plug.primitives.durations import Duration
from pocket_plug.primitives.typechecks import check_type, checker, declared_types, type_name
from pocket_plug.primitives.values import Value

from .base import MISSING, Source, View
from .keys import newest
from .updating import replacing

T = TypeVar("T")
D = TypeVar("D")


class Readable(Protocol):
    """What a `TypedReader` needs of the view whose values it checks."""

    async def get(self, key: str, /, default: Value = None) -> Value: ...
    async def require(self, key: str, /) -> Value: ...


class Writable(Readable, Protocol):
    """What a `TypedStore` needs of it."""

    _source: Source

    def _written(self, key: str, /) -> str: ...
    async def set(self, key: str, value: Value, /, *, ttl: Duration | None = None) -> None: ...
    async def delete(self, key: str, /) -> bool: ...


class TypedReader(Generic[T]):
    """A view for values of one type; what is of another raises ValueTypeError, naming the key."""

    def __init__(self, view: Readable, type: TypeForm[T], /) -> None:
        check_type(type, "a typed store")
        self._reader = view
        self._type = type
        self._fits = checker(type)
        declared_types.append(type)

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
        """The value at `key`, else MissingKeyError."""
        return self._checked(key, await self._reader.require(key))


class TypedStore(TypedReader[T]):
    """A view for values of one type, checked when they are written too."""

    def __init__(self, view: Writable, type: TypeForm[T], /) -> None:
        super().__init__(view, type)
        self._writer = view

    async def set(self, key: str, value: T, /, *, ttl: Duration | None = None) -> None:
        """Store a value of the type."""
        await self._writer.set(key, self._checked(key, value), ttl=ttl)

    async def update(self, key: str, fn: Callable[[T], T], /, *, default: T) -> T:
        """Replace the value by `fn(value)`, atomically."""

        def checked(old: T) -> T:
            return self._checked(key, fn(self._checked(key, old)))

        name = self._writer._written(key)
        new: T = await self._writer._source.apply(name, replacing(name, key, checked, default, declared=self._type))
        return new

    async def delete(self, key: str, /) -> bool:
        """Remove it; was it there?"""
        return await self._writer.delete(key)


class SyncTypedReader(Generic[T]):
    """`TypedReader` without `await`."""

    def __init__(self, view: View, typed: TypedReader[T], /) -> None:
        self._source = view._source
        self._reader = typed

    @overload
    def get(self, key: str, /) -> T | None: ...
    @overload
    def get(self, key: str, /, default: D) -> T | D: ...
    def get(self, key: str, /, default: object = None) -> object:
        """The value at `key`, else `default`."""
        return self._source.run_read(self._reader.get(key, default))

    def require(self, key: str, /) -> T:
        """The value at `key`, else MissingKeyError."""
        return self._source.run_read(self._reader.require(key))


class SyncTypedStore(SyncTypedReader[T]):
    """`TypedStore` without `await`."""

    def __init__(self, view: View, typed: TypedStore[T], /) -> None:
        super().__init__(view, typed)
        self._writer = typed

    def set(self, key: str, value: T, /, *, ttl: Duration | None = None) -> None:
        """Store a value of the type."""
        self._source.run_write(self._writer.set(key, value, ttl=ttl))

    def update(self, key: str, fn: Callable[[T], T], /, *, default: T) -> T:
        """Replace the value by `fn(value)`, atomically."""
        return self._source.run_update(self._writer.update(key, fn, default=default))

    def delete(self, key: str, /) -> bool:
        """Remove it; was it there?"""
        return self._source.run_update(self._writer.delete(key))
