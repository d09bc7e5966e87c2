"""Records are read in batches; one that can't be read is its error, and keeps no other back."""

from __future__ import annotations

from collections.abc import Sequence

from pocket_plug.errors import CodecError
from pocket_plug.store.backend import Backend, Entry

Found = Entry | CodecError


async def read_each(stack: Backend, keys: Sequence[str]) -> dict[str, Found]:
    """What is there at these keys; as of one moment, unless something of it can't be read. No keys ask for nothing."""
    if not keys:
        return {}
    try:
        return dict(await stack.read_many(keys))
    except CodecError:
        pass
    found: dict[str, Found] = {}
    for key in keys:
        try:
            entry = await stack.read(key)
        except CodecError as error:
            found[key] = error
        else:
            if entry is not None:
                found[key] = entry
    return found
