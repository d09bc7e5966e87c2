"""The migrate layer: a value that a read upgraded is written back, so that records of older versions disappear with use.

It is outside of the parts that turn values into records: persistence, compression. A plugin module, like any third party's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from pocket_plug.errors import ConfigError, ConflictError
from pocket_plug.hookspecs import hookimpl
from pocket_plug.store.backend import Entry, Put
from pocket_plug.store.layer import Layer

T = TypeVar("T")

_logger = logging.getLogger("pocket_plug")


class Migrate(Layer):
    """Writes a value back once a read had to upgrade it: see `register_type(…, version=2, upgrade={1: …})`.

    It is written only if the entry hasn't changed since the read, and keeps its expiry time. A write that fails (the disk
    is full, the file read-only) is logged as a warning: the value that was read is right, and the next read tries again.
    """

    inline_read = True
    needs_loop = False

    def on_build(self) -> None:
        """Raises ConfigError over a store that is read-only."""
        if self.inner.read_only:
            raise ConfigError(
                f"migrate over {self.inner!r}, which is read-only: it could not write upgraded values back; leave out one of "
                "the two, or put readonly around migrate: migrate can then write"
            )
        self.inline_read = self.inner.inline_read and self.inner.inline_write  # a read may write

    async def read(self, key: str) -> Entry | None:
        """The inner one's entry, written back if it was upgraded."""
        entry, is_old = await _watched(self.inner.read(key))
        return await self._written_back(key, entry) if is_old and entry is not None else entry

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The inner one's entries in one go; those that were upgraded are written back one by one."""
        entries, some_old = await _watched(self.inner.read_many(keys))
        if some_old:
            for key, entry in entries.items():
                _, is_old = await _watched(self.inner.read(key))  # to find those that were upgraded
                if is_old:
                    entries[key] = await self._written_back(key, entry)
        return entries

    async def _written_back(self, key: str, entry: Entry) -> Entry:
        change = Put(key, entry.value, entry.expires_at, renews=False)
        try:
            version = await self.inner.write([change], {key: entry.version})
        except ConflictError:
            return entry
        except Exception as error:  # whatever it is, the entry was read
            _logger.warning("migrate: the upgraded value of a key could not be written back", exc_info=error)
            return entry
        return Entry(entry.value, version, entry.expires_at)


async def _watched(operation: Awaitable[T]) -> tuple[T, bool]:
    """The result of an operation, and whether it upgraded anything."""
    from pocket_plug.codec import upgraded  # late: each program loads this module, and few need the codec

    outer, seen = upgraded.get(), list[str]()
    upgraded.set(seen)
    try:
        return await operation, bool(seen)
    finally:
        upgraded.set(outer)


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    return [Migrate]
