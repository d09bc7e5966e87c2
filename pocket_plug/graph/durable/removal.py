"""Removing runs: there is one way in which all that there is of a run goes.

Only what nobody goes on with is taken apart: a finished or cancelled run. Any other one is cancelled first, in one write, so
that whoever is at it, or begins to be, has lost it before its first part goes. The run's record goes in the last write, with
its state: after a crash at any moment the run is still there, to be removed. Each write expects the record's version, so
nothing is ever removed of a run that was begun anew under the same id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from pocket_plug.errors import CodecError, ConflictError, PocketError, RunBusyError
from pocket_plug.store.backend import Delete, Entry
from pocket_plug.store.stack import Stack

from .moving import Seen, look_after, move, see
from .reading import Found, read_each
from .records import PART, RUN, keys_of, look_at, look_key
from .states import STATE

FINAL = ("finished", "cancelled")
"""The states of runs that nobody goes on with."""
CHUNK = 256
"""How many records of a run are removed in one write, about."""


async def remove_run(stack: Stack, run_id: str, *, force: bool = False) -> bool:
    """Remove a run; its id is free again. Was it there?

    Raises RunBusyError for one that is `running`, unless the process that was at it is known to have ended, or `force`: then an
    execution that is at it is fenced off.
    """
    name = keys_of(run_id)[0].removeprefix(RUN)
    while True:
        try:
            return await _remove(stack, name, force)
        except ConflictError:
            continue  # somebody has gone on with it: look again


async def _remove(stack: Stack, name: str, force: bool) -> bool:
    key = RUN + name
    found = (await read_each(stack, [key])).get(key)
    if found is None:
        is_there = bool([each async for each in stack.scan(f"{PART}{name}:", limit=1)])
        if is_there:
            await erase(stack, name, {key: 0})
        return is_there
    seen = None
    if is_sound := _is_sound(key, found):
        try:
            seen = await see(stack, unquote(name))
        except CodecError:
            is_sound = False
    if not is_sound:  # it, or its state, so nobody goes on with it
        expect = {} if isinstance(found, CodecError) else {key: found.version}
        await erase(stack, name, expect, [each async for each in stack.scan(STATE) if each.endswith(f":{name}")])
        return True
    if seen is None:
        return True  # somebody else has removed it
    if seen.status == "running" and not seen.is_stalled and not force:
        raise RunBusyError(
            f"run {seen.run_id!r} is running; it moved "
            f"{max(stack.clock() - seen.record['updated'], 0):.0f} seconds ago. To remove it all the same, use force=True"
        )
    version, doomed = await take_apart(stack, seen)
    try:
        await stack.write([Delete(each) for each in doomed], {key: version})
    except ConflictError:
        raise
    except Exception:
        if await look_after(seen.run_id, stack.read(key)) is not None:  # else only the answer was lost
            raise
    return True


def _is_sound(key: str, found: Found) -> bool:
    """Is it the record of a run that this version can read?"""
    try:
        if isinstance(found, Entry):
            look_at(key, found)
        return isinstance(found, Entry)
    except PocketError:
        return False


async def take_apart(stack: Stack, seen: Seen) -> tuple[int, list[str]]:
    """Remove what there is of a run but what fits into one write, which it is still there without. The caller does that write.

    Gives the version of its record then, and the keys for the last write. Raises ConflictError where somebody has gone on
    with the run, or has removed it.
    """
    ended: Seen | None = seen
    if seen.status not in FINAL:
        ended = await move(stack, seen, "cancelled", since=seen.state.since)  # where it is left by half, it is as old
    if ended is None:
        raise ConflictError([seen.key])
    version, others = ended.entry.version, [ended.state_key]
    if ended.state.look_at is not None:
        others.append(look_key(ended.state.look_at, seen.name))
    return version, [*await _trim(stack, seen.name, {seen.key: version}), *others, seen.key]


async def erase(stack: Stack, name: str, expect: Mapping[str, int], others: Iterable[str] = ()) -> None:
    """Remove the parts of a run that nobody goes on with, and then its record, with these others.

    Raises ConflictError where what is expected of its record isn't so any more.
    """
    last = [*await _trim(stack, name, expect), *others, RUN + name]
    await stack.write([Delete(each) for each in last], expect)


async def _trim(stack: Stack, name: str, expect: Mapping[str, int]) -> list[str]:
    """Remove parts of such a run until the rest fits into one write, and give the keys of that rest."""
    part, after = f"{PART}{name}:", ""
    start = part + "start"  # without it a finished run would not give its result any more
    while True:
        page = [each async for each in stack.scan(part, after=after, limit=CHUNK)]
        parts = [each for each in page if each != start]
        if len(page) < CHUNK:
            return [*parts, start]
        await stack.write([Delete(each) for each in parts], expect)
        after = page[-1]
