"""Removes finished runs after their `keep_finished`. Whatever run ends next continues with the rest."""

from __future__ import annotations

import logging
from contextlib import aclosing, suppress
from dataclasses import replace

from pocket_plug.errors import CodecError, ConflictError
from pocket_plug.primitives.failures import log_failure
from pocket_plug.store.backend import Change, Delete, Put
from pocket_plug.store.scanning import paged
from pocket_plug.store.stack import Stack

from .records import RUN, RUN_ENDED, field_of, look_key, look_time
from .removal import erase
from .states import put_state, read_state, state_of

SWEPT = 4
"""How many finished runs are checked when a run ends, at most. More than one, so that a backlog gets smaller."""


async def sweep(stack: Stack) -> None:
    """Remove some of the finished runs whose `keep_finished` has passed.

    The records have no expiry: each client would apply it by its own clock, and a client whose clock is ahead would execute a
    finished run again. A run is removed after two checks, by any clients, have each found that `keep_finished` has passed: the
    first check since the run's end, the second since the first check. So a single wrong clock can't remove a run early.
    """
    try:
        now, swept = stack.clock(), 0
        async with aclosing(paged(stack, RUN_ENDED, size=SWEPT)) as keys:
            async for key in keys:
                if swept == SWEPT or look_time(key) > now:
                    break
                # Another client may be removing it. A damaged note is skipped, since it does no harm.
                with suppress(ConflictError, CodecError):
                    await _look_again(stack, key, now)
                    swept += 1
    except Exception as error:  # noqa: BLE001 - the run that calls this has finished, so it must not fail by other runs' records
        log_failure(logging.WARNING, "removing finished runs failed; the next run that ends tries again", error)


async def _look_again(stack: Stack, key: str, now: float) -> None:
    name = key.removeprefix(RUN_ENDED).partition(":")[2]
    run = RUN + name
    found = await stack.read_many((key, run))
    look, ended = found.get(key), found.get(run)
    if look is None:
        return
    keep = field_of(look, "keep")
    if ended is None or field_of(ended, "owner") != field_of(look, "owner") or not isinstance(keep, int | float):
        # The run was removed, and perhaps another one has begun with its id.
        await stack.write([Delete(key)], {key: look.version})
        return
    state_at = state_of(ended.value, name)
    if field_of(look, "is_seen"):
        await erase(stack, name, {run: ended.version}, (key, state_at))
        return
    changes: list[Change] = [Delete(key), Put(look_key(now + keep, name), {**look.value, "is_seen": True})]
    expect = {key: look.version, run: ended.version}
    if (state_entry := await stack.read(state_at)) is not None:
        changes.append(put_state(state_at, replace(read_state(state_at, state_entry), look_at=now + keep)))
        expect[state_at] = state_entry.version
    await stack.write(changes, expect)
