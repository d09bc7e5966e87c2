"""Creates the keys of states for runs of older versions, which had none; once for each store."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from pocket_plug.errors import CodecError, ConflictError, PocketError
from pocket_plug.primitives.batches import batched
from pocket_plug.primitives.waiting import pause
from pocket_plug.store.backend import Put
from pocket_plug.store.keys import RESERVED
from pocket_plug.store.reading import Found, read_each, readable
from pocket_plug.store.scanning import paged
from pocket_plug.store.stack import Stack

from .records import RUN, read_run
from .states import STATE, State, put_state, state_key, state_of

INDEXED = f"{RESERVED}run-indexed"
"""The key that notes that this was done."""
BATCH = 100
"""How many keys, or runs, are read at once. Few, since other tasks of the event loop wait for a batch."""


async def index_old(stack: Stack, rest: float = 0.0) -> None:
    """Create the key of the state of each run that has none. A run that can't be read gets the state `unreadable`.

    After each batch it pauses for `rest` seconds, for callers that have more time than the store's other users.
    """
    if await stack.read(INDEXED) is not None:
        return
    names = [key.removeprefix(RUN) for key in await _keys(stack, RUN, rest)]
    known = {key.rpartition(":")[2] for key in await _keys(stack, STATE, rest)} if names else set[str]()
    old = [name for name in names if name not in known]
    for batch in batched(old, BATCH):
        found = await read_each(stack, [RUN + name for name in batch])
        await _put(stack, [_state(key, entry) for key, entry in found.items()])
        await pause(rest)
    if names:  # without runs, the next call costs nothing either, and a store that is only read isn't written
        await stack.write([Put(INDEXED, {"format": 1})])


async def _keys(stack: Stack, prefix: str, rest: float) -> list[str]:
    """All keys with this prefix, read with a pause after each batch."""
    found: list[str] = []
    async with aclosing(paged(stack, prefix, size=BATCH)) as keys:
        async for key in keys:
            found.append(key)
            if len(found) % BATCH == 0:
                await pause(rest)
    return found


def _state(key: str, found: Found) -> tuple[str, int, Put]:
    """A run's key, its version (0 if it can't be read), and the change that records its state."""
    name = key.removeprefix(RUN)
    try:
        entry = readable(found)
        record, _ = read_run(key, entry)
    except PocketError:
        version = 0 if isinstance(found, CodecError) else found.version
        return key, version, put_state(state_key("unreadable", "", 0.0, name), State(0.0))
    return key, entry.version, put_state(state_of(record, name), State(record["updated"]), entry.expires_at)


async def _put(stack: Stack, states: Sequence[tuple[str, int, Put]]) -> None:
    """Write these states in one write. After a conflict, one at a time: a run that has changed meanwhile has a state already."""
    expect = {key: version for key, version, _ in states if version} | {put.key: 0 for _, _, put in states}
    try:
        await stack.write([put for _, _, put in states], expect)
    except ConflictError:
        if len(states) == 1:
            return
        for each in states:
            await _put(stack, [each])
