"""Reads a run, and moves it into another state for an operator.

The record and the state are read as of one moment, and the write expects both versions. So if several change a run, one is first,
and the others read it again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import unquote

from pocket_plug.errors import ConflictError, OutcomeUnknownError
from pocket_plug.graph.running.context import run_ids
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Delete, Entry, Put

from .processes import this_process
from .records import (
    FORMAT,
    RUN,
    RUN_FIELDS,
    Checkpoint,
    Record,
    Status,
    check_run,
    field_of,
    keys_of,
    last_write,
    part_of,
    read_run,
    status_of,
)
from .stalled import StallWatch
from .states import State, put_state, read_state, state_key, state_of, wake_key
from .waits import put_wait, waits_in
from .waking import wake_workers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as it was seen at one moment."""

    key: str
    entry: Entry
    checkpoint: Checkpoint
    state_key: str
    state_version: int
    state: State
    """If an older version has written the run, it has none, and this is made from the record."""
    unmoved: Mapping[str, int] | None = None
    """The versions of its records, if they have not changed for a lease, so that the run is stalled; else None."""
    beat: float = 0.0
    """When its process wrote its heartbeat, in epoch seconds; 0 if it has none."""

    @property
    def record(self) -> Record:
        """The run's record."""
        record: Record = self.entry.value
        return record

    @property
    def run_id(self) -> str:
        """The run's id."""
        return unquote(self.name)

    @property
    def name(self) -> str:
        """The run's id, escaped for keys."""
        return self.key.removeprefix(RUN)

    @property
    def part(self) -> str:
        """The prefix of the keys of its parts."""
        return part_of(self.key)

    @property
    def status(self) -> Status:
        """The state in the record."""
        return status_of(self.record)

    @property
    def is_stalled(self) -> bool:
        """Is it recorded as running, but its process is known to have ended, or its records haven't changed for a lease?"""
        process = self.state.process
        if self.status != "running" or process is None:
            return False
        return self.unmoved is not None or this_process().knows_ended(self.state.owner, process)

    @property
    def is_at_work(self) -> bool:
        """May an execution own it that reads requests in the state? Executions of older versions don't."""
        return self.status == "running" and self.state.process is not None and not self.is_stalled


async def see(stack: Backend, run_id: str) -> Seen | None:
    """The run with this id; None if there is none. Raises StoreError for a newer format, CorruptRecordError."""
    key, _ = keys_of(run_id)
    entry = await stack.read(key)
    while entry is not None:
        check_run(key, entry.value)
        state_at = state_of(entry.value, key.removeprefix(RUN))
        found = await stack.read_many((key, state_at))
        now = found.get(key)
        if now is not None and now.version == entry.version:
            return seen_of(key, entry, state_at, found.get(state_at))
        entry = now
    return None


def seen_of(key: str, entry: Entry, state_at: str, state_entry: Entry | None) -> Seen:
    """A run from its entries: `state_at` is the key of its state, `state_entry` the entry there.

    Raises StoreError for a newer format, CorruptRecordError.
    """
    record, checkpoint = read_run(key, entry)
    state = State(record["updated"]) if state_entry is None else read_state(state_at, state_entry)
    return Seen(key, entry, checkpoint, state_at, 0 if state_entry is None else state_entry.version, state)


async def mark_stalled(watch: StallWatch, runs: Iterable[Seen]) -> list[Seen]:
    """The same runs; those that are executed have `beat`, and those that `watch` finds stalled `unmoved`."""
    found = list(runs)
    stalled = {
        each.key: each.versions for each in await watch.look([each.state_key for each in found if each.is_at_work])
    }
    return [
        replace(each, beat=watch.beat_of(each.state_key), unmoved=_if_current(each, stalled.get(each.state_key)))
        if each.is_at_work
        else each
        for each in found
    ]


def _if_current(seen: Seen, versions: Mapping[str, int] | None) -> Mapping[str, int] | None:
    """These versions, if the run still has them."""
    if versions is None:
        return None
    is_current = (versions[seen.key], versions[seen.state_key]) == (seen.entry.version, seen.state_version)
    return versions if is_current else None


async def move(
    stack: Backend,
    seen: Seen,
    status: Status,
    changes: Sequence[Put] = (),
    expect: Mapping[str, int] = NO_EXPECTATIONS,
    since: float | None = None,
    **facts: Any,
) -> Seen | None:
    """Move a run into another state, together with other changes. None: the run has changed meanwhile, so read it again.

    An execution that owned the run is fenced. Raises what the store raises, unless the write was stored nevertheless, and
    OutcomeUnknownError if that can't be known.
    """
    now, token = stack.clock(), f".{run_ids.next()}.{last_write(seen.record)}"  # begins with a dot: no execution's
    record = {name: seen.record[name] for name in RUN_FIELDS}
    record |= {"format": FORMAT, "status": status, "owner": token, "updated": now}
    state_at = state_key(status, record["graph"], record["started"], seen.name)
    state = State(now if since is None else since, **facts)
    writes: list[Change] = [Put(seen.key, record, seen.entry.expires_at), put_state(state_at, state), *changes]
    if seen.state_version and seen.state_key != state_at:
        writes.append(Delete(seen.state_key))
    if seen.state.wake_at is not None:
        writes.append(Delete(wake_key(record["graph"], seen.state.wake_at, seen.name)))
    old = waits_in(seen.record, seen.checkpoint.frames).values()  # format 1 has them in the record
    known = {each.key for each in changes}
    writes += [put for each in old if (put := put_wait(seen.part, each.place, each.wait)).key not in known]
    expect = {**expect, **(seen.unmoved or {}), seen.key: seen.entry.version, seen.state_key: seen.state_version}
    try:
        version = await stack.write(writes, expect)
    except Exception as error:
        landed = await _landed(stack, seen, token, error)
        if landed is None:
            if isinstance(error, ConflictError):
                return None
            raise
        version = landed
    if status == "pending":
        wake_workers()
    entry = Entry(record, version, seen.entry.expires_at)
    return replace(seen, entry=entry, state_key=state_at, state_version=version, state=state, unmoved=None)


async def _landed(stack: Backend, seen: Seen, token: str, failed: Exception) -> int | None:
    """After a failed write: its version if it was stored nevertheless, so that only the answer was lost; else None."""
    now = await read_after_failure(seen.run_id, stack.read(seen.key))
    if now is not None and field_of(now, "owner") == token:
        return now.version
    if isinstance(failed, ConflictError) or (now is not None and now.version == seen.entry.version):
        return None
    raise unknown(seen.run_id, "the run was changed by others since") from failed


async def read_after_failure(run_id: str, look: Awaitable[T]) -> T:
    """Await a read after a write of a run has failed. Raises OutcomeUnknownError if the read fails as well."""
    try:
        return await look
    except Exception as error:
        raise unknown(run_id, f"reading it failed too: {error}") from error


def unknown(run_id: str, why: str) -> OutcomeUnknownError:
    """The error for an operator's write that has failed, if it isn't known whether it was stored."""
    return OutcomeUnknownError(
        f"run {run_id!r}: whether this has taken effect is not known, since the store failed, and {why}. Look at the run"
    )
