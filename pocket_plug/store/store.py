"""What users hold: a store and its views, each derived once from the waist.

A view is a source (a stack, or a transaction over one) and a prefix. `StoreReader` has what only reads, `StoreWriter`
adds what writes, `Store` owns the stack. `sync` has the same without `await`.
"""

# What makes views of views is a friend of theirs.
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from typing_extensions import TypeForm

from pocket_plug.errors import ConflictError, KeyNameError, MissingKeyError
from pocket_plug.primitives.durations import Duration, seconds

from .backend import PRESENT, Backend, Clock, Delete, Put
from .keys import RESERVED, Key, ReadAs, check_name, check_prefix
from .layer import Layer
from .stack import Stack, build
from .transaction import Transaction
from .updating import replacing

if TYPE_CHECKING:
    from .sync import SyncScope, SyncStore
    from .typed import TypedReader, TypedStore

T = TypeVar("T")
D = TypeVar("D")
R = TypeVar("R")
Name = str | Key[Any]


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"

    __str__ = __repr__


MISSING: Final = Missing.MISSING
"""A default for `get` that no stored value equals: it tells a stored None from nothing stored."""


Source = Stack | Transaction


_PAST_RESERVED = RESERVED[:-1] + chr(ord(RESERVED[-1]) + 1)  # names in between begin with it; cheaper than a slice


class View:
    """What every view is: a source and a prefix."""

    __slots__ = ("_prefix", "_source")

    def __init__(self, source: Source, prefix: str = "") -> None:
        self._source = source
        self._prefix = prefix

    def __repr__(self) -> str:
        scope = f", scope={self._prefix[:-1]!r}" if self._prefix else ""
        return f"{type(self).__name__}({self._source!r}{scope})"

    def _name(self, key: Any) -> str:
        if key.__class__ is str and not (RESERVED <= key < _PAST_RESERVED) and key and key.isascii():
            return self._prefix + key
        if isinstance(key, Key):
            return self._prefix + str(key)  # pyright: ignore[reportUnknownArgumentType]
        return check_name(self._prefix + key if key and isinstance(key, str) else key)

    @property
    def place(self) -> tuple[Stack, str]:
        """The stack that it is a view of, and the prefix there."""
        return self._source.stack, self._prefix

    def scope(self, prefix: Name, /) -> Self:
        """A view of the names below `prefix`; its `get("123")` is `get("user:123")` here.

        >>> from pocket_plug import SyncStore
        >>> store = SyncStore()
        >>> store.scope("user").scope("admin").set("001", "Alice")
        >>> store.get("user:admin:001")
        'Alice'
        """
        view = object.__new__(type(self))
        view._source, view._prefix = self._source, self._below(prefix)
        return view

    def _below(self, prefix: Name) -> str:
        name = self._name(prefix) + ":"
        if name.startswith(RESERVED):
            raise KeyNameError(f"the scope {name[:-1]!r} is reserved; choose another one")
        return name


class StoreReader(View):
    """Reads. What a node's `prep` is handed, and what `store.reader()` gives."""

    __slots__ = ()

    @overload
    async def get(self, key: ReadAs[T, Any], /) -> T | None: ...
    @overload
    async def get(self, key: ReadAs[R, T], /, default: T) -> R: ...
    @overload
    async def get(self, key: ReadAs[T, Any], /, default: D) -> T | D: ...
    @overload
    async def get(self, key: str, /, default: Any = None) -> Any: ...
    async def get(self, key: Any, /, default: Any = None) -> Any:
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
    async def require(self, key: ReadAs[T, Any], /) -> T: ...
    @overload
    async def require(self, key: str, /) -> Any: ...
    async def require(self, key: Any, /) -> Any:
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
    async def get_many(self, keys: Iterable[ReadAs[T, Any]], /) -> dict[str, T]: ...
    @overload
    async def get_many(self, keys: Iterable[Name], /) -> dict[str, Any]: ...
    async def get_many(self, keys: Iterable[Any], /) -> dict[str, Any]:
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
        from .typed import TypedReader

        return TypedReader(self, type)


class StoreWriter(StoreReader):
    """Reads and writes. What a node's `post` is handed: there, all writes land at once or not at all."""

    __slots__ = ()

    @overload
    async def set(self, key: Key[T], value: T, /, *, ttl: Duration | None = None) -> None: ...
    @overload
    async def set(self, key: str, value: Any, /, *, ttl: Duration | None = None) -> None: ...
    async def set(self, key: Any, value: Any, /, *, ttl: Duration | None = None) -> None:
        """Store `value`. `ttl`: seconds, timedelta or "5m"; a set without one lasts for ever, whatever was there.

        Raises ValueTypeError if it isn't what the Key declares, ConfigError for a ttl of 0 and below.
        """
        if key.__class__ is Key:
            value = key.checked(value)
        deadline = None if ttl is None else _deadline(self._source, ttl)
        await self._source.write((Put(self._name(key), value, deadline),))

    async def set_many(self, values: Mapping[Any, Any], /, *, ttl: Duration | None = None) -> None:
        """Store several values in one write: all or none."""
        deadline = _deadline(self._source, ttl)
        checked = {key: key.checked(value) if isinstance(key, Key) else value for key, value in values.items()}
        await self._source.write([Put(self._name(key), value, deadline) for key, value in checked.items()])

    async def delete(self, key: Name, /) -> bool:
        """Remove it; was it there? Of several that delete it at once, one is told True. What others set meanwhile goes too."""
        name = self._name(key)
        if await self._source.read(name) is None:  # a look is cheaper than a write that does nothing
            return False
        try:
            await self._source.write((Delete(name),), {name: PRESENT})
        except ConflictError:  # somebody else has removed it
            return False
        return True

    async def delete_many(self, keys: Iterable[Name], /) -> None:
        """Remove several in one write."""
        await self._source.write([Delete(self._name(key)) for key in keys])

    @overload
    async def update(self, key: ReadAs[R, T], fn: Callable[[T], T], /, *, default: T) -> R: ...
    @overload
    async def update(self, key: str, fn: Callable[[Any], Any], /, *, default: Any = ...) -> Any: ...
    async def update(self, key: Any, fn: Callable[[Any], Any], /, *, default: Any = MISSING) -> Any:
        """Replace the value by `fn(value)`, atomically, and give the new one. The deadline stays.

        `fn` may be called several times and gets a private copy. Without a `default`, nothing there is a
        MissingKeyError. None in place of what can be changed in place, such as a list, is a ValueTypeError, unless the
        Key's type has None: `fn` has forgotten to return it. Raises ConflictError if other processes, or `fn` itself, change the
        key at each of 20 tries.

        >>> from pocket_plug import SyncStore
        >>> SyncStore().update("hits", lambda n: n + 1, default=0)
        1
        """

        name = self._name(key)
        return await self._source.apply(name, replacing(name, key, fn, default, default is not MISSING))

    @overload
    def typed(self, type: type[T], /) -> TypedStore[T]: ...
    @overload
    def typed(self, type: TypeForm[T], /) -> TypedStore[T]: ...
    def typed(self, type: Any, /) -> TypedStore[Any]:
        """This view for values of one type, checked when they are written and read."""
        from .typed import TypedStore

        return TypedStore(self, type)


def _deadline(source: Source, ttl: Duration | None) -> float | None:
    return None if ttl is None else source.clock() + seconds(ttl)


class StoreScope(StoreWriter):
    """What `store.scope(…)` gives: a part of a store that can do what the store can, but opens and closes nothing."""

    __slots__ = ()
    _source: Stack

    async def flush(self) -> None:
        """Wait until everything acknowledged is as durable as the stack makes it."""
        await self._source.flush()

    def reader(self) -> StoreReader:
        """The same without the means to write; its scopes are readers too."""
        return StoreReader(self._source, self._prefix)

    def transaction(self) -> OpenTransaction:
        """`async with store.transaction() as tx:` repeatable reads, buffered writes, one atomic commit.

        Raises ConflictError at the end of the block if anything that it read has been changed by then; an exception in the
        block discards it.
        """
        return OpenTransaction(self)

    @property
    def sync(self) -> SyncScope:
        """The same without `await`."""
        from .sync import SyncScope

        return SyncScope(self._source, self._prefix)

    @property
    def stack(self) -> Stack:
        """The built stack: `parts(store.stack)[1:]` lists its parts, `str` draws it."""
        return self._source


class Store(StoreScope):
    """A store: a stack of layers over a backend. `Store()` is memory and needs no opening.

    `backend` is a URL or a Backend; `layers` are recipes or names, outermost first as written (a set of names is put
    in the usual order). `clock` gives epoch seconds. Open others with `async with`.
    """

    __slots__ = ()

    def __init__(self, backend: str | Backend = "memory://", /, *, layers: Collection[str | Layer] = (),
                 clock: Clock | None = None) -> None:  # fmt: skip
        super().__init__(build(backend, layers, clock))

    async def __aenter__(self) -> Self:
        await self._source.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """What `async with` does first."""
        await self._source.open()

    async def close(self) -> None:
        """What `async with` does last; the store raises StoreClosedError from then on."""
        await self._source.close()

    # Not of its own class, as those of other views are: the end of a block around a part must not close the whole.
    def scope(self, prefix: Name, /) -> StoreScope:  # type: ignore[override]
        """A view of the names below `prefix`; its `get("123")` is `get("user:123")` here."""
        return StoreScope(self._source, self._below(prefix))

    @property
    def sync(self) -> SyncStore:
        """The same store without `await`."""
        from .sync import SyncStore

        return SyncStore(self)


class OpenTransaction:
    """The context manager behind `store.transaction()`."""

    def __init__(self, store: StoreScope | SyncScope) -> None:
        self._store = store

    async def __aenter__(self) -> StoreWriter:
        self._transaction = Transaction(self._store._source)
        return StoreWriter(self._transaction, self._store._prefix)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        commit = self._transaction.end()
        if kind is None and commit is not None:
            await self._store._source.write(*commit)
