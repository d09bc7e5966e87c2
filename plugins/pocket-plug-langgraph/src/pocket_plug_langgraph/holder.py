"""What `PocketSaver` and `PocketStore` share: access to the pocket_plug store behind them, for async and sync callers."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from pocket_plug import ConfigError, Store, StoreScope, SyncScope, join_name

T = TypeVar("T")


class Holder:
    """Opens and closes the store if it was given as a URL; a store given as an object is opened and closed by its owner."""

    def _hold(self, store: str | StoreScope | SyncScope) -> None:
        self._own: Store | None = None
        if isinstance(store, str):
            store = self._own = Store(store)
        elif not isinstance(store, StoreScope | SyncScope):
            raise ConfigError(
                f"{type(self).__name__} needs a Store, a SyncStore, a scope of one of them, or a URL, not {type(store).__name__}"
            )
        self._scope = StoreScope(*store.place).scope("langgraph")

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run an async method for a sync caller: in the caller's thread, or on the store's own event loop."""
        return self._scope.stack.run(coroutine)

    def _read(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run an async method that only reads, for a sync caller."""
        return self._scope.stack.run_read(coroutine)

    async def __aenter__(self) -> Self:
        if self._own is not None:
            await self._own.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._own is not None:
            await self._own.close()

    def __enter__(self) -> Self:
        if self._own is not None:
            self._own.stack.open_sync()
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            self._own.stack.close_sync()


def below(*parts: str) -> str:
    """The prefix of all names whose first parts are these."""
    return join_name(*parts, "") if parts else ""
