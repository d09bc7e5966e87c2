"""Reads several entries although some are damaged: such an entry yields its error, and the others are read nevertheless."""

from __future__ import annotations

from collections.abc import Collection
from typing import overload

from pocket_plug.errors import CodecError

from .backend import Backend, Entry
from .transaction import Transaction

Found = Entry | CodecError


@overload
def readable(found: Found) -> Entry: ...
@overload
def readable(found: None) -> None: ...
def readable(found: Found | None) -> Entry | None:
    """The entry, if there is one. Raises its error if it can't be read."""
    if isinstance(found, CodecError):
        raise found
    return found


async def read_each(source: Backend | Transaction, keys: Collection[str]) -> dict[str, Found]:
    """The entries at these keys, or the errors of those that can't be read. As of one moment if all can be read."""
    if not keys:
        return {}
    try:
        return dict(await source.read_many(keys))
    except CodecError:
        pass
    found: dict[str, Found] = {}
    for key in keys:
        try:
            entry = await source.read(key)
        except CodecError as error:
            found[key] = error
        else:
            if entry is not None:
                found[key] = entry
    return found
