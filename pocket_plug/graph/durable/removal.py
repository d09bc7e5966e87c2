"""Removes all records of a run. Every removal of a run is done here.

Only a finished or cancelled run is taken apart, since nobody resumes it. Any other run is cancelled first, in one write, so that
an execution of it is fenced before the first part is removed. The last write removes the run's record and its state, so after a
crash at any moment the run still exists, and can be removed. Each write expects the record's version, so nothing is ever removed
of a new run with the same id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from pocket_plug.errors import CodecError, ConflictError, PocketError, RunBusyError
from pocket_plug.store.backend import Delete
from pocket_plug.store.reading import Found, read_each, readable
from pocket_plug.store.stack import Stack

from .moving import Seen, move, read_after_failure, see
from .records import RUN, keys_of, look_key, part_of, read_run, start_key
from .states import STATE

FINAL = ("finished", "cancelled")
"""The states of runs that nobody resumes."""
CHUNK = 256
"""About how many records of a run are removed in one write."""


async def remove_run(stack: Stack, run_id: str, *, force: bool = False) -> bool:
    """Remove a run, so that its id is free again. Returns False if there was no such run.

    Raises RunBusyError for a run that is `running`, unless its process is known to have ended, or `force` is given: then its
    execution is fenced.
    """
    name = keys_of(run_id)[0].removeprefix(RUN)
    while True:
        try:
            return await _remove(stack, name, force)
        except ConflictError:
            continue  # it has changed meanwhile, so read it again


async def _remove(stack: Stack, name: str, force: bool) -> bool:
    key = RUN + name
    found = (await read_each(stack, [key])).get(key)
    if found is None:
        is_there = bool([each async for each in stack.scan(part_of(key), limit=1)])
        if is_there:
            await erase(stack, name, {key: 0})
        return is_there
    seen = None
    if is_sound := _is_sound(key, found):
        try:
            seen = await see(stack, unquote(name))
        except CodecError:
            is_sound = False
    if not is_sound:  # the record or the state is damaged, so nobody can resume the run
        expect = {} if isinstance(found, CodecError) else {key: found.version}
        await erase(stack, name, expect, [each async for each in stack.scan(STATE) if each.endswith(f":{name}")])
        return True
    if seen is None:
        return True  # it was removed by another process meanwhile
    if seen.status == "running" and not seen.is_stalled and not force:
        raise RunBusyError(
            f"run {seen.run_id!r} is running; its record was last written "
            f"{max(stack.clock() - seen.record['updated'], 0):.0f} seconds ago. To remove it nevertheless, use force=True"
        )
    version, doomed = await take_apart(stack, seen)
    try:
        await stack.write([Delete(each) for each in doomed], {key: version})
    except ConflictError:
        raise
    except Exception:
        # If the record is gone, only the answer was lost.
        if await read_after_failure(seen.run_id, stack.read(key)) is not None:
            raise
    return True


def _is_sound(key: str, found: Found) -> bool:
    """Is it a run's record that this version can read?"""
    try:
        read_run(key, readable(found))
    except PocketError:
        return False
    return True


async def take_apart(stack: Stack, seen: Seen) -> tuple[int, list[str]]:
    """Remove records of a run until the rest fits into one write, which the caller does. Until then the run still exists.

    Returns the version of its record, and the keys for the last write. Raises ConflictError if the run was changed or removed
    meanwhile.
    """
    ended: Seen | None = seen
    if seen.status not in FINAL:
        # `since` is unchanged: if this process is killed now, the next pass of pruning finds the run as old as before.
        ended = await move(stack, seen, "cancelled", since=seen.state.since)
    if ended is None:
        raise ConflictError([seen.key])
    version, others = ended.entry.version, [ended.state_key]
    if ended.state.look_at is not None:
        others.append(look_key(ended.state.look_at, seen.name))
    return version, [*await _trim(stack, seen.name, {seen.key: version}), *others, seen.key]


async def erase(stack: Stack, name: str, expect: Mapping[str, int], others: Iterable[str] = ()) -> None:
    """Remove the parts of a run that nobody resumes, and then, in one write, its record and these other keys.

    Raises ConflictError if its record doesn't have the expected version any more.
    """
    last = [*await _trim(stack, name, expect), *others, RUN + name]
    await stack.write([Delete(each) for each in last], expect)


async def _trim(stack: Stack, name: str, expect: Mapping[str, int]) -> list[str]:
    """Remove parts of such a run until the rest fits into one write, and return the keys of the rest."""
    part, after = part_of(RUN + name), ""
    start = start_key(part)  # last, since without it a finished run could not return its result
    while True:
        page = [each async for each in stack.scan(part, after=after, limit=CHUNK)]
        parts = [each for each in page if each != start]
        if len(page) < CHUNK:
            return [*parts, start]
        await stack.write([Delete(each) for each in parts], expect)
        after = page[-1]
