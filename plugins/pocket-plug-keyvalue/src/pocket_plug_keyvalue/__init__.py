"""A pocket_plug store as py-key-value's `AsyncKeyValue`, in which FastMCP and others keep state. The reverse isn't possible."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NoReturn, SupportsFloat

from key_value.aio.errors import DeserializationError, InvalidTTLError, SerializationError
from key_value.aio.protocols import AsyncKeyValue

from pocket_plug import ConfigError, Key, StoreScope

from .reasons import reason_against

LONGEST = 150
"""The most bytes of a collection's or key's name. Longer ones are stored under a digest, since a store limits its names."""

ENTRY = Key("{collection}:{key?}", str)
HASHED = Key(":{digest}", str)  # never the name of an ENTRY: no collection is called ""


class KeyValue(AsyncKeyValue):
    """A store, or a scope of one, as an `AsyncKeyValue`.

    A value is stored as JSON text, so each read returns a new object, with JSON's types. A collection is a scope: whatever
    characters its name and its keys contain, two entries never share a name. The store's guarantees hold here too: `put_many`
    is atomic. The first call opens a store that wasn't opened yet; the caller who made the store closes it.

    >>> import asyncio
    >>> from pocket_plug import Store
    >>> store = Store()
    >>> asyncio.run(KeyValue(store.scope("mcp")).put("a:b", {"hits": 1}, collection="state", ttl=60))
    >>> store.sync.get("mcp:state:a%3Ab")
    '{"hits": 1}'
    """

    def __init__(self, store: StoreScope, /, *, default_collection: str | None = None) -> None:
        if not isinstance(store, StoreScope):
            raise ConfigError(f"KeyValue needs a Store or a scope of a Store, not a {type(store).__name__}")
        self._store = store
        self.default_collection = default_collection or "default_collection"  # as in py-key-value's own stores

    async def _opened(self) -> StoreScope:
        if self._store.stack.is_new:
            await self._store.stack.ensure_open()
        return self._store

    def _key(self, key: str, collection: str | None) -> Key[str]:
        collection = collection or self.default_collection
        if all(
            len(name) <= LONGEST and len(name.encode("utf-8", "surrogatepass")) <= LONGEST for name in (collection, key)
        ):
            return ENTRY(collection, key)
        return HASHED(sha256(json.dumps([collection, key]).encode()).hexdigest())

    async def get(self, key: str, *, collection: str | None = None) -> dict[str, Any] | None:
        """The value; None if there is none."""
        return _value(await (await self._opened()).get(self._key(key, collection)))

    async def get_many(self, keys: Sequence[str], *, collection: str | None = None) -> list[dict[str, Any] | None]:
        """The values in the order of their keys, all as of the same moment."""
        wanted = [self._key(key, collection) for key in keys]
        found = await (await self._opened()).get_many(wanted)
        return [_value(found.get(str(key))) for key in wanted]

    async def ttl(self, key: str, *, collection: str | None = None) -> tuple[dict[str, Any] | None, float | None]:
        """The value, and the seconds until it expires or None if it never does. Both are None if there is no value."""
        store = await self._opened()
        entry = await store.entry(self._key(key, collection))
        if entry is None:
            return None, None
        left = None if entry.expires_at is None else max(0.0, entry.expires_at - store.stack.clock())
        return _value(entry.value), left

    async def ttl_many(
        self, keys: Sequence[str], *, collection: str | None = None
    ) -> list[tuple[dict[str, Any] | None, float | None]]:
        """What `ttl` returns, for several keys; they are read one after the other."""
        return [await self.ttl(key, collection=collection) for key in keys]

    async def put(
        self, key: str, value: Mapping[str, Any], *, collection: str | None = None, ttl: SupportsFloat | None = None
    ) -> None:
        """Store a value, for `ttl` seconds.

        Raises SerializationError if JSON can't represent it, and InvalidTTLError if `ttl` isn't a finite number above 0.
        """
        await self.put_many([key], [value], collection=collection, ttl=ttl)

    async def put_many(
        self,
        keys: Sequence[str],
        values: Sequence[Mapping[str, Any]],
        *,
        collection: str | None = None,
        ttl: SupportsFloat | None = None,
    ) -> None:
        """Store several values in one write: all or none."""
        if len(keys) != len(values):
            raise ValueError(f"put_many was called with {len(keys)} keys and {len(values)} values")
        texts = {self._key(key, collection): _text(key, value) for key, value in zip(keys, values, strict=True)}
        await (await self._opened()).set_many(texts, ttl=_seconds(ttl))

    async def delete(self, key: str, *, collection: str | None = None) -> bool:
        """Remove a value; return whether it was there."""
        return await (await self._opened()).delete(self._key(key, collection))

    async def delete_many(self, keys: Sequence[str], *, collection: str | None = None) -> int:
        """Remove several values; return how many were there."""
        return await (await self._opened()).delete_many([self._key(key, collection) for key in keys])


def as_backend(store: AsyncKeyValue) -> NoReturn:
    """A py-key-value store can't be a backend of pocket_plug: raises ConfigError, with the reason and what to use instead."""
    raise ConfigError(f"{type(store).__name__} can't be a backend: {reason_against(store)}")


def _text(key: str, value: Mapping[str, Any]) -> str:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise SerializationError(f"{key!r}: a value is a mapping whose keys are str, not a {type(value).__name__}")
    try:
        return json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise SerializationError(f"{key!r}: JSON can't represent this value: {type(error).__name__}") from error


def _value(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value: dict[str, Any] | list[Any] | str | float | None = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else "is not JSON"
        raise DeserializationError(f"the stored value {what}, so another program has written it") from error
    if not isinstance(value, dict):
        raise DeserializationError("the stored value is JSON, but not an object, so another program has written it")
    return value


def _seconds(ttl: SupportsFloat | None) -> float | None:
    if ttl is None:
        return None
    try:
        seconds = math.nan if isinstance(ttl, bool | str | bytes) else float(ttl)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidTTLError(ttl)
    return seconds
