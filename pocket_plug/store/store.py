"""`Store`, which opens and closes its stack, and the scopes of it.

`sync` has the same without `await`.
"""

from __future__ import annotations

from typing import Any, Self

from .base import MISSING as MISSING
from .base import Name, StackOwner
from .base import View as View
from .caching import CachingView
from .overrides import refuse_bypassed_store
from .stack import Stack
from .sync import SyncScope, SyncStore
from .views import OpenTransaction
from .views import StoreReader as StoreReader
from .views import StoreWriter as StoreWriter


class StoreScope(StoreWriter, CachingView):
    """A part of a store, from `store.scope(…)`: it has the store's methods, but opens and closes nothing."""

    __slots__ = ()
    _source: Stack

    async def flush(self) -> None:
        """Wait until all acknowledged writes are as durable as the stack makes them."""
        await self._source.flush()

    def reader(self) -> StoreReader:
        """This view without the methods that write; its scopes are readers too."""
        return StoreReader(self._source, self._prefix)

    def transaction(self) -> OpenTransaction:
        """`async with store.transaction() as tx:` repeatable reads, buffered writes, one atomic commit.

        Raises ConflictError at the end of the block if anything that it read has been changed by then; an exception in the
        block discards it.
        """
        return OpenTransaction(self._source, self._prefix)

    @property
    def sync(self) -> SyncScope:
        """The same without `await`."""
        return SyncScope(self._source, self._prefix)

    @property
    def stack(self) -> Stack:
        """The built stack: `parts(store.stack)[1:]` lists its parts, `str` draws it."""
        return self._source


class Store(StackOwner, StoreScope):
    """A store: a stack of layers over a backend. `Store()` is in memory and need not be opened.

    `backend` is a URL or a Backend; `layers` are recipes or names, outermost first as written (a set of names is put
    in the usual order). `clock` returns epoch seconds. Open any other store with `async with`.
    """

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_bypassed_store(cls, StoreWriter)

    async def __aenter__(self) -> Self:
        await self._source.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the store, as `async with` does at its beginning."""
        await self._source.open()

    async def close(self) -> None:
        """Close the store, as `async with` does at its end; after that it raises StoreClosedError."""
        await self._source.close()

    # Not a Store, although other views return their own class: the end of a `with` around a scope must not close the store.
    def scope(self, prefix: Name, /) -> StoreScope:  # type: ignore[override] # see above
        """A view of the names below `prefix`; its `get("123")` is `get("user:123")` here."""
        return StoreScope(self._source, self._below(prefix))

    @property
    def sync(self) -> SyncStore:
        """The same store without `await`."""
        return SyncStore(self)
