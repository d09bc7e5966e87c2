"""Which running runs are stalled: nobody has moved them for a lease.

Judged by whoever looks, with a monotonic clock of its own: what one machine's clock wrote is never compared with another's. So
it takes at least two looks, a lease apart, unless the process that was at the run is known to have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pocket_plug.errors import CorruptRecordError
from pocket_plug.store.backend import Backend, Entry

from .heartbeat import BEAT
from .processes import this_process
from .reading import read_each
from .records import RUN, SECONDS, escaped, field_of
from .states import State, StateKey, read_state


@dataclass(frozen=True, slots=True)
class Stalled:
    """A run that nobody moves, as it was seen."""

    key: str
    """That of its state."""
    run_id: str
    graph: str
    state: State
    seen: Mapping[str, int]
    """The versions of its record, its state and its process's heartbeat: a takeover expects just these."""
    moved: float
    """When its record was last written, in epoch seconds."""


@dataclass(slots=True)
class _Seen:
    """What was seen of one running run, and since when it is unmoved."""

    versions: Mapping[str, int]
    since: float
    until: float
    """When that is forgotten."""


KEPT = 10
"""For so many leases is remembered what was seen of a run that is looked at no more."""


class StallWatch:
    """Remembers what it saw of the running runs of a store, and tells which of them are stalled."""

    def __init__(self, stack: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._stack, self._clock = stack, clock
        self._seen: dict[str, _Seen] = {}

    async def look(self, keys: Iterable[str]) -> list[Stalled]:
        """Look at the `running` runs of these keys of states, and give those that are stalled.

        A record that can't be read is nobody's to take over.
        """
        states: dict[str, tuple[StateKey, State, int]] = {}
        for key, entry in (await read_each(self._stack, list(keys))).items():
            if isinstance(entry, Entry):
                try:
                    states[key] = (StateKey.parse(key), read_state(key, entry), entry.version)
                except CorruptRecordError:
                    continue
        runs = {key: RUN + escaped(parsed.run_id, ":") for key, (parsed, _, _) in states.items()}
        beats = {key: BEAT + state.process["id"] for key, (_, state, _) in states.items() if state.process is not None}
        found = {
            key: entry
            for key, entry in (await read_each(self._stack, [*runs.values(), *dict.fromkeys(beats.values())])).items()
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
            if key in beats:  # also one that says nothing of this run yet: it may before the takeover lands
                expected = {**versions, beats[key]: beat.version if beat is not None else 0}
            if beat is not None and state.owner in (field_of(beat, "owners") or ()):
                versions = expected
            if self._is_stalled(key, state, versions):
                moved = field_of(run, "updated")
                moved = moved if isinstance(moved, SECONDS) else state.since
                stalled.append(Stalled(key, parsed.run_id, parsed.graph, state, expected, moved))
        return stalled

    def _is_stalled(self, key: str, state: State, versions: Mapping[str, int]) -> bool:
        now, former = self._clock(), self._seen.get(key)
        is_unmoved = former is not None and former.versions == versions
        since = former.since if former is not None and is_unmoved else now
        self._seen[key] = _Seen(versions, since, now + KEPT * state.lease)
        if state.process is None:
            return False
        return now - since >= state.lease or this_process().knows_ended(state.owner, state.process)

    def _forget(self) -> None:
        """Runs end, and their keys are never looked at again."""
        now = self._clock()
        for key in [key for key, seen in self._seen.items() if seen.until < now]:
            del self._seen[key]
