"""The copying layer: what is written and what is read are private copies, over a store in memory too.

It is outside of the layers that keep values: persistence, bounding. A plugin module, like any third party's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pocket_plug.errors import CodecError
from pocket_plug.hookspecs import hookimpl
from pocket_plug.primitives.shown_names import shown_name
from pocket_plug.primitives.values import Value
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Entry, Put
from pocket_plug.store.layer import Layer
from pocket_plug.store.transaction import private


class Copying(Layer):
    """Copies values when they are written and read, as SQLite does: to change such a value doesn't change the store.

    For tests of code that will run over a file or a server, and for safety. A copy is made as in `Codec.private`: immutable
    values are not copied, and an object that is neither data nor registered (a socket) is shared. Over a backend that keeps
    bytes it costs time and has no benefit.

    >>> from pocket_plug import SyncStore
    >>> store = SyncStore(layers=[Copying()])
    >>> names = ["Alice"]
    >>> store.set("guests", names)
    >>> names.append("Bob")
    >>> store.get("guests").append("Carol")
    >>> store.get("guests")
    ['Alice']
    """

    inline_read = inline_write = True

    async def read(self, key: str) -> Entry | None:
        """The inner one's entry, with a copy of its value."""
        entry = await self.inner.read(key)
        return None if entry is None else _copied(key, entry)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The inner one's entries, each with a copy of its value."""
        entries = await self.inner.read_many(keys)
        return {key: _copied(key, entry) for key, entry in entries.items()}

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Write the changes with copies of their values. Raises CodecError if one can't be copied; nothing is done then."""
        mine = [
            replace(change, value=_copy(change.key, change.value)) if isinstance(change, Put) else change
            for change in changes
        ]
        return await self.inner.write(mine, expect)


def _copied(key: str, entry: Entry) -> Entry:
    return Entry(_copy(key, entry.value), entry.version, entry.expires_at)


def _copy(key: str, value: Value) -> Value:
    try:
        return private(value)
    except CodecError as error:
        raise type(error)(f"key {shown_name(key)!r}: {error}") from error


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    return [Copying]
