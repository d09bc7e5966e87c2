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
from pocket_plug.store.backend import Delete, Entry, Put
from pocket_plug.store.stack import Stack

from .records import FORMAT, PART, RUN, RUN_FIELDS, check, keys_of, look_key, status_of
from .states import STATE, State, plain_state, read_state, state_key, state_of

FINAL = ("finished", "cancelled")
"""The states of runs that nobody goes on with."""
CHUNK = 256
"""How many records of a run are removed in one write, about."""


async def remove_run(stack: Stack, run_id: str, *, force: bool = False) -> bool:
    """Remove a run; its id is free again. Was it there?

    Raises RunBusyError for one that is `running`, unless `force`: then an execution that is at it is fenced off.
    """
    name = keys_of(run_id)[0].removeprefix(RUN)
    while True:
        try:
            return await _remove(stack, name, force)
        except ConflictError:
            continue  # somebody has gone on with it: look again


async def _remove(stack: Stack, name: str, force: bool) -> bool:
    key, entry = RUN + name, None
    try:
        entry = await stack.read(key)
        if entry is not None:
            check(key, entry.value, RUN_FIELDS)
    except PocketError as error:  # no record of a run, so nobody goes on with it
        if entry is None and not isinstance(error, CodecError):
            raise
        expect = {} if entry is None else {key: entry.version}
        await erase(stack, name, expect, [each async for each in stack.scan(STATE) if each.endswith(f":{name}")])
        return True
    if entry is None:
        is_there = bool([each async for each in stack.scan(f"{PART}{name}:", limit=1)])
        if is_there:
            await erase(stack, name, {key: 0})
        return is_there
    status, there = status_of(entry.value), state_of(entry.value, name)
    if status == "running" and not force:
        raise RunBusyError(
            f"run {unquote(name)!r} is running, or its process died; it moved "
            f"{max(stack.clock() - entry.value['updated'], 0):.0f} seconds ago. To remove it all the same, use force=True"
        )
    if status in FINAL:
        await erase(stack, name, {key: entry.version}, ended_keys(there, await stack.read(there)))
    else:
        left = state_key("cancelled", entry.value["graph"], entry.value["started"], name)
        await erase(stack, name, {key: await _cancel(stack, entry, key, (there, left))}, (left,))
    return True


async def _cancel(stack: Stack, entry: Entry, key: str, states: tuple[str, str]) -> int:
    """Record that a run was cancelled, whoever is at it; give the version of its record."""
    there, left = states
    stood, now = await stack.read(there), stack.clock()
    record = {**entry.value, "format": FORMAT, "status": "cancelled", "owner": "", "updated": now}
    expect = {key: entry.version, there: stood.version if stood is not None else 0}
    return await stack.write([Put(key, record), Delete(there), Put(left, plain_state(State(now)))], expect)


def ended_keys(there: str, stood: Entry | None) -> tuple[str, ...]:
    """What there is of an ended run besides its record and its parts: its state, and its note for `keep_finished`."""
    look_at = read_state(there, stood).look_at if stood is not None else None
    return (there,) if look_at is None else (there, look_key(look_at, there.rpartition(":")[2]))


async def erase(stack: Stack, name: str, expect: Mapping[str, int], others: Iterable[str] = ()) -> None:
    """Remove the parts of a run that nobody goes on with, and then its record, with these others.

    Raises ConflictError where what is expected of its record isn't so any more.
    """
    last = [*await trim(stack, name, expect), *others, RUN + name]
    await stack.write([Delete(each) for each in last], expect)


async def trim(stack: Stack, name: str, expect: Mapping[str, int]) -> list[str]:
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
