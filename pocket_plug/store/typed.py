"""Views of a store for values of one type, checked at run time as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from typing_extensions import TypeForm

from pocket_plug.primitives.durations import Duration
from pocket_plug.primitives.typechecks import check_type, checker, declared_types, type_name
from pocket_plug.store.keys import newest

from .store import MISSING, Name, StoreReader
from .updating import replacing

if TYPE_CHECKING:
    from .sync import SyncReader

T = TypeVar("T")
D = TypeVar("D")


class TypedReader(Generic[T]):
    """A view for values of one type; what is of another raises ValueTypeError, naming the key."""

    def __init__(self, view: StoreReader, type: TypeForm[T], /) -> None:
        check_type(type, "a typed store")
        self._view: Any = view
        self._type = type
        self._fits = checker(type)
        declared_types.append(type)

    def _checked(self, key: Name, value: Any) -> Any:
        if value is MISSING or self._fits(value):
            return value
        return newest(
            value, self._type, self._fits, f"{str(key)!r}: this store is typed {type_name(self._type)}, the value is"
        )

    @overload
    async def get(self, key: str, /) -> T | None: ...
    @overload
    async def get(self, key: str, /, default: D) -> T | D: ...
    async def get(self, key: str, /, default: Any = None) -> Any:
        """The value at `key`, else `default`."""
        value = self._checked(key, await self._view.get(key, MISSING))
        return default if value is MISSING else value

    async def require(self, key: str, /) -> T:
        """The value at `key`, else MissingKeyError."""
        return self._checked(key, await self._view.require(key))  # type: ignore[no-any-return]


class TypedStore(TypedReader[T]):
    """A view for values of one type, checked when they are written too."""

    async def set(self, key: str, value: T, /, *, ttl: Duration | None = None) -> None:
        """Store a value of the type."""
        await self._view.set(key, self._checked(key, value), ttl=ttl)

    async def update(self, key: str, fn: Callable[[T], T], /, *, default: T) -> T:
        """Replace the value by `fn(value)`, atomically."""

        def checked(old: T) -> T:
            return self._checked(key, fn(self._checked(key, old)))  # type: ignore[no-any-return]

        name = self._view._name(key)
        return await self._view._source.apply(name, replacing(name, key, checked, default, declared=self._type))  # type: ignore[no-any-return]

    async def delete(self, key: str, /) -> bool:
        """Remove it; was it there?"""
        return await self._view.delete(key)  # type: ignore[no-any-return]


class SyncTypedReader(Generic[T]):
    """`TypedReader` without `await`."""

    def __init__(self, view: SyncReader, typed: TypedReader[T], /) -> None:
        source = view._source  # pyright: ignore[reportPrivateUsage]
        self._read, self._write, self._update = source.run_read, source.run_write, source.run_update
        self._typed: Any = typed

    @overload
    def get(self, key: str, /) -> T | None: ...
    @overload
    def get(self, key: str, /, default: D) -> T | D: ...
    def get(self, key: str, /, default: Any = None) -> Any:
        """The value at `key`, else `default`."""
        return self._read(self._typed.get(key, default))

    def require(self, key: str, /) -> T:
        """The value at `key`, else MissingKeyError."""
        return self._read(self._typed.require(key))  # type: ignore[no-any-return]


class SyncTypedStore(SyncTypedReader[T]):
    """`TypedStore` without `await`."""

    def set(self, key: str, value: T, /, *, ttl: Duration | None = None) -> None:
        """Store a value of the type."""
        self._write(self._typed.set(key, value, ttl=ttl))

    def update(self, key: str, fn: Callable[[T], T], /, *, default: T) -> T:
        """Replace the value by `fn(value)`, atomically."""
        return self._update(self._typed.update(key, fn, default=default))  # type: ignore[no-any-return]

    def delete(self, key: str, /) -> bool:
        """Remove it; was it there?"""
        return self._update(self._typed.delete(key))  # type: ignore[no-any-return]
