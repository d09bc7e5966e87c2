"""Removing runs: there is one way in which all that there is of a run goes.

Only what nobody goes on with is taken apart: a finished or cancelled run. Any other one is cancelled first, in one write, so
that whoever is at it, or begins to be, has lost it before its first part goes. The run's record goes in the last write, with
its state: after a crash at any moment the run is still there, to be removed. Each write expects the record's version, so
nothing is ever removed of a run that was begun anew under the same id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from urllib.parse import unquote

from pocket_plug.errors import CodecError, ConflictError, PocketError, RunBusyError
from pocket_plug.store.backend import Change, Delete, Entry, Put
from pocket_plug.store.stack import Stack

from .records import FORMAT, PART, RUN, RUN_FIELDS, check, keys_of, look_key, status_of
from .states import STATE, State, plain_state, read_state, state_key, state_of, wake_key

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
    stood: Entry | CodecError | None
    try:
        stood = await stack.read(there)
    except CodecError as error:
        stood = error
    version, doomed = await take_apart(stack, name, entry, stood)
    await stack.write([Delete(each) for each in doomed], {key: version})
    return True


async def take_apart(stack: Stack, name: str, entry: Entry, stood: Entry | CodecError | None) -> tuple[int, list[str]]:
    """Remove what there is of a run but what fits into one write, which it is still there without. The caller does that write.

    `entry` is its record, `stood` its state, or why that can't be read. Gives the version of the record then, and the keys for
    the last write. Raises ConflictError where somebody has gone on with the run, or has removed it.
    """
    version, there = entry.version, state_of(entry.value, name)
    state = None
    with suppress(CodecError):  # what a damaged one says is not needed
        state = read_state(there, stood) if isinstance(stood, Entry) else None
    others = [there]
    if status_of(entry.value) not in FINAL:
        others = [state_key("cancelled", entry.value["graph"], entry.value["started"], name)]
        changes: list[Change] = [Delete(there), Put(others[0], plain_state(State(stack.clock())))]
        if state is not None and state.wake_at is not None:
            changes.append(Delete(wake_key(entry.value["graph"], state.wake_at, name)))
        record = {**entry.value, "format": FORMAT, "status": "cancelled", "owner": "", "updated": stack.clock()}
        expect = {RUN + name: version}
        if not isinstance(stood, CodecError):
            expect[there] = stood.version if stood is not None else 0
        version = await stack.write([Put(RUN + name, record), *changes], expect)
    elif state is not None and state.look_at is not None:
        others.append(look_key(state.look_at, name))
    return version, [*await _trim(stack, name, {RUN + name: version}), *others, RUN + name]


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
