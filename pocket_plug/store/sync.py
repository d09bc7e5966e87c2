"""The views without `await`: the same operations, run in place, in this thread, or on the stack's home loop.

Nothing is implemented a second time here; each call drives the coroutine that the async view makes.
"""

# These views are friends of the async ones.
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from typing_extensions import TypeForm

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.durations import Duration
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import Runner, drive_inline

from .backend import Backend, Clock
from .base import NO_DEFAULT, Name, StackOwner, StoredValue, View
from .caching import CachingView
from .driven import FEW, driven
from .keys import Key, ReadAs
from .layer import Layer
from .mapping import EACH, StoreMapping
from .overrides import refuse_bypassed_store
from .stack import Stack
from .typed import SyncTypedReader, SyncTypedStore, TypedReader, TypedStore
from .views import OpenTransaction, StoreReader, StoreWriter, refuse_writes

T = TypeVar("T")
D = TypeVar("D")
R = TypeVar("R")


class SyncReader(View):
    """`StoreReader` without `await`."""

    __slots__ = ()

    @property
    def _view(self) -> StoreWriter:
        """The view with `await`; made for each call, since most views of nodes get one call or none."""
        return StoreWriter(self._source, self._prefix)

    @overload
    def get(self, key: ReadAs[T], /) -> T | None: ...
    @overload
    def get(self, key: ReadAs[R, T], /, default: T) -> R: ...
    @overload
    def get(self, key: ReadAs[T], /, default: D) -> T | D: ...
    @overload
    def get(self, key: str, /, default: Value = None) -> Value: ...
    def get(self, key: Any, /, default: object = None) -> object:
        """The value at `key`, else `default`."""
        return self._source.run_read(_get(self, key, default))

    @overload
    def require(self, key: ReadAs[T], /) -> T: ...
    @overload
    def require(self, key: str, /) -> Value: ...
    def require(self, key: Any, /) -> object:
        """The value at `key`; raises MissingKeyError if there is none."""
        return self._source.run_read(self._view.require(key))

    def has(self, key: Name, /) -> bool:
        """Whether there is a value at `key`, None included."""
        return self._source.run_read(self._view.has(key))

    @overload
    def get_many(self, keys: Iterable[ReadAs[T]], /) -> dict[str, T]: ...
    @overload
    def get_many(self, keys: Iterable[Name], /) -> dict[str, Value]: ...
    def get_many(self, keys: Iterable[Any], /) -> dict[str, Value]:
        """The values that exist, by name, from one read."""
        return self._source.run_read(self._view.get_many(keys))

    @overload
    def entry(self, key: ReadAs[T], /) -> StoredValue[T] | None: ...
    @overload
    def entry(self, key: str, /) -> StoredValue[Value] | None: ...
    def entry(self, key: Any, /) -> StoredValue[Any] | None:
        """The value with its version and expiry time, from one read; None if there is none."""
        return self._source.run_read(self._view.entry(key))

    def keys(
        self, prefix: str = "", *, after: Name | None = None, reverse: bool = False, limit: int | None = None
    ) -> Iterator[str]:
        """The names that start with `prefix`, in order, without this view's scope; at most `limit`, from `after` on."""
        names = self._view.keys(prefix, after=after, reverse=reverse, limit=limit)
        return driven(self._source.run_read, names, FEW)

    def items(
        self, prefix: str = "", *, after: Name | None = None, reverse: bool = False, limit: int | None = None
    ) -> Iterator[tuple[str, Value]]:
        """The same names with their values, read 100 at a time."""
        pages = self._view._pages(prefix, after=after, reverse=reverse, limit=limit)
        return chain.from_iterable(driven(self._source.run_read, pages))

    def count(self, prefix: str = "") -> int:
        """The number of names that start with `prefix`."""
        return self._source.run_read(self._view.count(prefix))

    @overload
    def tail(self, key: ReadAs[list[T]], n: int, /) -> list[T]: ...
    @overload
    def tail(self, key: str, n: int, /) -> list[Value]: ...
    def tail(self, key: Any, n: int, /) -> list[Any]:
        """The last `n` items of an append-only list, the newest one last."""
        return self._source.run_read(self._view.tail(key, n))

    def length(self, key: Name, /) -> int:
        """The number of items of an append-only list."""
        return self._source.run_read(self._view.length(key))

    @overload
    def each_item(self, key: ReadAs[list[T]], /) -> Iterator[T]: ...
    @overload
    def each_item(self, key: str, /) -> Iterator[Value]: ...
    def each_item(self, key: Any, /) -> Iterator[Any]:
        """The items of an append-only list, the oldest one first; 100 at a time are read."""
        return chain.from_iterable(driven(self._source.run_read, self._view._item_pages(key)))

    def ttl(self, key: Name, /) -> float | None:
        """Seconds until `key` expires; None if it never does."""
        return self._source.run_read(self._view.ttl(key))

    @overload
    def typed(self, type: type[T], /) -> SyncTypedReader[T]: ...
    @overload
    def typed(self, type: TypeForm[T], /) -> SyncTypedReader[T]: ...
    def typed(self, type: Any, /) -> SyncTypedReader[Any]:
        """This view for values of one type, checked when they are read."""
        return SyncTypedReader(TypedReader(self._view, type))


# The two most used methods need only what SyncReader has too, so no other view is made for them.
_get: Any = StoreReader.get
_set: Any = StoreWriter.set


class SyncWriter(SyncReader):
    """`StoreWriter` without `await`."""

    __slots__ = ()

    @overload
    def set(self, key: Key[T], value: T, /, *, ttl: Duration | None = None, expect: int | None = None) -> None: ...
    @overload
    def set(self, key: str, value: Value, /, *, ttl: Duration | None = None, expect: int | None = None) -> None: ...
    def set(self, key: Any, value: Value, /, *, ttl: Duration | None = None, expect: int | None = None) -> None:
        """Store `value`; `ttl` is seconds, a timedelta or "5m". With `expect` only if the entry has that version."""
        self._source.run_write(_set(self, key, value, ttl=ttl, expect=expect))

    @overload
    def add(self, key: Key[T], value: T, /, *, ttl: Duration | None = None) -> bool: ...
    @overload
    def add(self, key: str, value: Value, /, *, ttl: Duration | None = None) -> bool: ...
    def add(self, key: Any, value: Value, /, *, ttl: Duration | None = None) -> bool:
        """Store `value` if there is no entry; returns whether it did."""
        return self._source.run_write(self._view.add(key, value, ttl=ttl))

    def set_many(self, values: Mapping[Value, Value], /, *, ttl: Duration | None = None) -> None:
        """Store several values in one write: all or none."""
        self._source.run_write(self._view.set_many(values, ttl=ttl))

    def delete(self, key: Name, /) -> bool:
        """Remove the entry; returns whether there was one."""
        return self._source.run_update(self._view.delete(key))

    def delete_many(self, keys: Iterable[Name], /) -> int:
        """Remove several entries; returns how many there were."""
        return self._source.run_update(self._view.delete_many(keys))

    def delete_prefix(self, prefix: str, /) -> int:
        """Remove all entries whose names start with `prefix`, in writes of at most 500; returns how many there were."""
        return self._source.run_update(self._view.delete_prefix(prefix))

    @overload
    def pop(self, key: ReadAs[T], /) -> T: ...
    @overload
    def pop(self, key: ReadAs[R, T], /, default: T) -> R: ...
    @overload
    def pop(self, key: ReadAs[T], /, default: D) -> T | D: ...
    @overload
    def pop(self, key: str, /, default: Value = ...) -> Value: ...
    def pop(self, key: Any, /, default: object = NO_DEFAULT) -> object:
        """Remove the value and return it; if there is none, return `default`, or raise MissingKeyError without one."""
        return self._source.run_update(self._view.pop(key, default))

    def touch(self, key: Name, /, *, ttl: Duration | None) -> bool:
        """Set a new TTL, None for none; returns whether there was an entry."""
        return self._source.run_update(self._view.touch(key, ttl=ttl))

    @overload
    def append(self, key: Key[list[T]], item: T, /, *, ttl: Duration | None = None) -> int: ...
    @overload
    def append(self, key: str, item: Value, /, *, ttl: Duration | None = None) -> int: ...
    def append(self, key: Any, item: Value, /, *, ttl: Duration | None = None) -> int:
        """Add an item at the end of an append-only list, and return the new length."""
        return self._source.run_update(self._view.append(key, item, ttl=ttl))

    def trim(self, key: Name, /, *, keep: int) -> int:
        """Remove all but the last `keep` items of an append-only list; returns how many were removed."""
        return self._source.run_update(self._view.trim(key, keep=keep))

    @overload
    def update(
        self, key: ReadAs[R, T], fn: Callable[[T], T], /, *, default: T = ..., ttl: Duration | None = None
    ) -> R: ...
    @overload
    def update(
        self, key: str, fn: Callable[[Value], Value], /, *, default: Value = ..., ttl: Duration | None = None
    ) -> Value: ...
    def update(
        self,
        key: Any,
        fn: Callable[[Value], object],
        /,
        *,
        default: object = NO_DEFAULT,
        ttl: Duration | None = None,
    ) -> object:
        """Replace the value by `fn(value)`, atomically, and return the new one."""
        return self._source.run_update(self._view.update(key, fn, default=default, ttl=ttl))

    @overload
    def typed(self, type: type[T], /) -> SyncTypedStore[T]: ...
    @overload
    def typed(self, type: TypeForm[T], /) -> SyncTypedStore[T]: ...
    def typed(self, type: Any, /) -> SyncTypedStore[Any]:
        """This view for values of one type, checked when they are written and read."""
        return SyncTypedStore(TypedStore(self._view, type))

    @overload
    def mapping(self, /) -> StoreMapping[Value]: ...
    @overload
    def mapping(self, key: Key[T], /) -> StoreMapping[T]: ...
    def mapping(self, key: Any = EACH, /) -> StoreMapping[Any]:
        """Entries of this view as a `MutableMapping`: its keys fill the one placeholder of `key`.

        By default it has all entries with names of one part.
        Raises KeyNameError for a Key with more placeholders, or none.

        >>> store = SyncStore()
        >>> ages = store.mapping(Key("user:{}:age", int))
        >>> ages["a:b"] = 42
        >>> list(store.keys()), list(ages)
        (['user:a%3Ab:age'], ['a:b'])
        """
        return StoreMapping(self._view, key)


refuse_writes(SyncReader, SyncWriter)


class SyncScope(SyncWriter, CachingView):
    """`StoreScope` without `await`."""

    __slots__ = ()
    _source: Stack

    def flush(self) -> None:
        """Wait until all acknowledged writes are as durable as the stack makes them."""
        self._source.flush_sync()

    @property
    def stack(self) -> Stack:
        """The built stack, as on Store."""
        return self._source

    def reader(self) -> SyncReader:
        """This view without the methods that write."""
        return SyncReader(self._source, self._prefix)

    def transaction(self) -> OpenSyncTransaction:
        """`with store.transaction() as tx:` as on Store."""
        return OpenSyncTransaction(OpenTransaction(self._source, self._prefix), self._source.run_write)


class SyncStore(SyncScope):
    """`Store` without `await`. Open it with `with`, or by `open()`, unless it is memory."""

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_bypassed_store(cls, SyncWriter)

    def __init__(
        self,
        backend: str | Backend | StackOwner = "memory://",
        /,
        *,
        layers: Collection[str | Layer] = (),
        clock: Clock | None = None,
    ) -> None:
        if isinstance(backend, View) and not isinstance(backend, StackOwner):
            raise ConfigError(
                "SyncStore can't be made of a scope, since it would close the whole store; use scope.sync"
            )
        if not isinstance(backend, StackOwner):
            backend = StackOwner(backend, layers=layers, clock=clock)
        elif layers or clock is not None:
            raise ConfigError("SyncStore of a Store takes no layers and no clock; give them to the Store")
        super().__init__(backend._source, backend._prefix)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Open the store, as `with` does at its beginning."""
        self._source.open_sync()

    def close(self) -> None:
        """Close the store, as `with` does at its end."""
        self._source.close_sync()

    def scope(self, prefix: Name, /) -> SyncScope:  # type: ignore[override] # a part, as on Store
        """A view of the names below `prefix`, as on Store."""
        return SyncScope(self._source, self._below(prefix))


class OpenSyncTransaction:
    """The context manager behind `SyncStore.transaction()`."""

    def __init__(self, transaction: OpenTransaction, run: Runner) -> None:
        self._transaction, self._run = transaction, run

    def __enter__(self) -> SyncWriter:
        view = drive_inline(self._transaction.__aenter__())
        return SyncWriter(view._source, view._prefix)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._transaction.__aexit__(kind, error, trace))
