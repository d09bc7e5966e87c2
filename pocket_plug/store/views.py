"""The views that read and write, each derived once from the waist: what a node's phases are handed.

`sync` has the same without `await`, and `store` what opens and closes a stack.
"""

# What makes views of views is a friend of theirs.
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, TypeVar, overload

from typing_extensions import TypeForm

from pocket_plug.errors import ConflictError, MissingKeyError, StoreError
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.values import Value

from .backend import PRESENT, Delete, Put
from .base import MISSING, Name, Source, View
from .keys import RESERVED, Key, ReadAs, check_prefix
from .stack import Stack
from .transaction import Transaction
from .typed import TypedReader, TypedStore
from .updating import replacing

T = TypeVar("T")
D = TypeVar("D")
R = TypeVar("R")


class StoreReader(View):
    """Reads. What a node's `prep` is handed, and what `store.reader()` gives."""

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
        """The value at `key`, else `default`. A failing backend raises StoreError: it never looks like nothing there.

        >>> from pocket_plug import SyncStore
        >>> store = SyncStore()
        >>> store.get("user:1", MISSING)
        MISSING
        """
        entry = await self._source.read(self._name(key))
        if entry is None:
            return default
        return key.checked(entry.value) if key.__class__ is Key else entry.value

    @overload
    async def require(self, key: ReadAs[T], /) -> T: ...
    @overload
    async def require(self, key: str, /) -> Value: ...
    async def require(self, key: Any, /) -> object:
        """The value at `key`; raises MissingKeyError, naming the key and the scope, where there is none."""
        value = await self.get(key, MISSING)
        if value is MISSING:
            scope = f" (scope {self._prefix!r})" if self._prefix else ""
            raise MissingKeyError(f"nothing at {str(key)!r}{scope}")
        return value

    async def has(self, key: Name, /) -> bool:
        """Is there a value, None included?"""
        return await self._source.read(self._name(key)) is not None

    @overload
    async def get_many(self, keys: Iterable[ReadAs[T]], /) -> dict[str, T]: ...
    @overload
    async def get_many(self, keys: Iterable[Name], /) -> dict[str, Value]: ...
    async def get_many(self, keys: Iterable[Any], /) -> dict[str, Value]:
        """The values that exist, by name, in one go."""
        names = {self._name(key): key for key in keys}
        entries = await self._source.read_many(names)
        start = len(self._prefix)
        return {
            name[start:]: key.checked(entry.value) if isinstance(key := names[name], Key) else entry.value
            for name, entry in entries.items()
        }

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """The names that start with `prefix`, in order, without this view's scope. Raises KeyNameError if none can."""
        check_prefix(prefix)
        start = len(self._prefix)
        async for name in self._source.scan(self._prefix + prefix):
            if not name.startswith(RESERVED):
                yield name[start:]

    async def ttl(self, key: Name, /) -> float | None:
        """Seconds until `key` expires; None where it never does. Raises MissingKeyError where there is nothing."""
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
    """Reads and writes. What a node's `post` is handed: there, all writes land at once or not at all."""

    __slots__ = ()

    @overload
    async def set(self, key: Key[T], value: T, /, *, ttl: Duration | None = None) -> None: ...
    @overload
    async def set(self, key: str, value: Value, /, *, ttl: Duration | None = None) -> None: ...
    async def set(self, key: Any, value: Value, /, *, ttl: Duration | None = None) -> None:
        """Store `value`. `ttl`: seconds, timedelta or "5m"; a set without one lasts for ever, whatever was there.

        Raises ValueTypeError if it isn't what the Key declares, ConfigError for a ttl of 0 and below.
        """
        if key.__class__ is Key:
            value = key.checked(value)
        deadline = None if ttl is None else _deadline(self._source, ttl)
        await self._source.write((Put(self._written(key), value, deadline),))

    async def set_many(self, values: Mapping[Value, Value], /, *, ttl: Duration | None = None) -> None:
        """Store several values in one write: all or none."""
        deadline = _deadline(self._source, ttl)
        checked = {key: key.checked(value) if isinstance(key, Key) else value for key, value in values.items()}
        await self._source.write([Put(self._written(key), value, deadline) for key, value in checked.items()])

    async def delete(self, key: Name, /) -> bool:
        """Remove it; was it there? Of several that delete it at once, one is told True. What others set meanwhile goes too."""
        name = self._name(key)
        found = await self._source.read(name)
        if found is None:  # a look is cheaper than a write that does nothing
            return False
        try:
            await self._source.write((Delete(name),), {name: PRESENT})
        except ConflictError:  # somebody else has removed it
            left = await self._source.read(name)
            if left is not None and left.version == found.version:
                raise StoreError(
                    f"{str(key)!r} could not be deleted: its backend refuses what expects PRESENT of an entry that is there; "
                    "let its write compare by pocket_plug.store.backend.is_expected"
                ) from None
            return False
        return True

    async def delete_many(self, keys: Iterable[Name], /) -> None:
        """Remove several in one write."""
        await self._source.write([Delete(self._name(key)) for key in keys])

    @overload
    async def update(self, key: ReadAs[R, T], fn: Callable[[T], T], /, *, default: T) -> R: ...
    @overload
    async def update(self, key: str, fn: Callable[[Value], Value], /, *, default: Value = ...) -> Value: ...
    async def update(self, key: Any, fn: Callable[[Value], object], /, *, default: object = MISSING) -> object:
        """Replace the value by `fn(value)`, atomically, and give the new one. The deadline stays.

        `fn` may be called several times and gets a private copy. Without a `default`, nothing there is a
        MissingKeyError. None in place of what can be changed in place, such as a list, is a ValueTypeError, unless the
        Key's type has None: `fn` has forgotten to return it. Raises ConflictError if other processes, or `fn` itself, change the
        key at each of 20 tries.

        >>> from pocket_plug import SyncStore
        >>> SyncStore().update("hits", lambda n: n + 1, default=0)
        1
        """

        name = self._written(key)
        return await self._source.apply(name, replacing(name, key, fn, default, default is not MISSING))

    @overload
    def typed(self, type: type[T], /) -> TypedStore[T]: ...
    @overload
    def typed(self, type: TypeForm[T], /) -> TypedStore[T]: ...
    def typed(self, type: Any, /) -> TypedStore[Any]:
        """This view for values of one type, checked when they are written and read."""
        return TypedStore(self, type)


def _deadline(source: Source, ttl: Duration | None) -> float | None:
    return None if ttl is None else source.clock() + seconds(ttl)


class OpenTransaction:
    """The context manager behind `store.transaction()`."""

    def __init__(self, stack: Stack, prefix: str) -> None:
        self._stack, self._prefix = stack, prefix

    async def __aenter__(self) -> StoreWriter:
        self._transaction = Transaction(self._stack)
        return StoreWriter(self._transaction, self._prefix)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        commit = self._transaction.end()
        if kind is None and commit is not None:
            await self._stack.write(*commit)
