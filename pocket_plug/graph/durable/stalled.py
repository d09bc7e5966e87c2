"""Finds stalled runs: those that are recorded as running, but had no commit and no heartbeat for a lease.

Each observer finds this out with its own monotonic clock: times from different machines' clocks are never compared. So it takes
at least two checks, a lease apart, unless the process that executed the run is known to have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pocket_plug.errors import CorruptRecordError
from pocket_plug.store.backend import Backend, Entry
from pocket_plug.store.reading import read_each

from .heartbeat import BEAT, written_at
from .processes import this_process
from .records import RUN, SECONDS, escaped, field_of
from .states import State, StateKey, read_state


@dataclass(frozen=True, slots=True)
class Stalled:
    """A stalled run, as it was seen."""

    key: str
    """The key of its state."""
    run_id: str
    graph: str
    state: State
    versions: Mapping[str, int]
    """The versions of its record, its state and its process's heartbeat, which a takeover expects."""
    moved: float
    """When its record was last written, in epoch seconds."""


@dataclass(slots=True)
class _Seen:
    """The versions of one running run's records, and since when they are unchanged."""

    versions: Mapping[str, int]
    since: float
    until: float
    """When this is forgotten."""
    beat: float
    """When its process wrote its heartbeat, in epoch seconds; 0 if it has none."""


KEPT = 10
"""For how many leases the versions of a run are remembered if it isn't checked again."""


class StallWatch:
    """Remembers the versions of running runs' records, and finds which runs are stalled."""

    def __init__(self, stack: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self.stack, self._clock = stack, clock
        self._seen: dict[str, _Seen] = {}

    async def look(self, keys: Iterable[str]) -> list[Stalled]:
        """Check the `running` runs with these keys of states, and return those that are stalled.

        Runs with records that can't be read are left out, since nobody can take them over.
        """
        states: dict[str, tuple[StateKey, State, int]] = {}
        for key, entry in (await read_each(self.stack, list(keys))).items():
            if isinstance(entry, Entry):
                try:
                    states[key] = (StateKey.parse(key), read_state(key, entry), entry.version)
                except CorruptRecordError:
                    continue
        runs = {key: RUN + escaped(parsed.run_id, ":") for key, (parsed, _, _) in states.items()}
        beats = {key: BEAT + state.process["id"] for key, (_, state, _) in states.items() if state.process is not None}
        found = {
            key: entry
            for key, entry in (await read_each(self.stack, [*runs.values(), *dict.fromkeys(beats.values())])).items()
            if isinstance(entry, Entry)
        }
        self._forget()
        stalled: list[Stalled] = []
        for key, (parsed, state, version) in states.items():
            if (run := found.get(runs[key])) is None:
                continue
            versions = {runs[key]: run.version, key: version}
            beat = found.get(beats.get(key, ""))
            expected = versions
            # Also a heartbeat without this run: the process may add the run before the takeover is written.
            if key in beats:
                expected = {**versions, beats[key]: beat.version if beat is not None else 0}
            alive_at = 0.0
            if beat is not None and state.owner in (field_of(beat, "owners") or ()):
                versions, alive_at = expected, written_at(beat)
            if self._is_stalled(key, state, versions, alive_at):
                moved = field_of(run, "updated")
                moved = moved if isinstance(moved, SECONDS) else state.since
                stalled.append(Stalled(key, parsed.run_id, parsed.graph, state, expected, moved))
        return stalled

    def beat_of(self, key: str) -> float:
        """When the heartbeat for the run with this state was written, by the last `look`, in epoch seconds; 0 if it has none."""
        seen = self._seen.get(key)
        return 0.0 if seen is None else seen.beat

    def _is_stalled(self, key: str, state: State, versions: Mapping[str, int], beat: float) -> bool:
        now, former = self._clock(), self._seen.get(key)
        is_unmoved = former is not None and former.versions == versions
        since = former.since if former is not None and is_unmoved else now
        self._seen[key] = _Seen(versions, since, now + KEPT * state.lease, beat)
        if state.process is None:
            return False
        return now - since >= state.lease or this_process().knows_ended(state.owner, state.process)

    def _forget(self) -> None:
        """Forget runs that were not checked for long: most of them have ended."""
        now = self._clock()
        for key in [key for key, seen in self._seen.items() if seen.until < now]:
            del self._seen[key]
