"""The notes of a run's executions: each execution that resumes a run notes when it began, and in which state the run was.

The first execution has no note, since the run's start and its record contain the same. So a run that is never resumed has none.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pocket_plug.store.backend import Put

from .processes import this_process
from .records import Record, last_write, status_of
from .states import State, trace_id

EXECUTION = "execution:"
"""`pocket:run-part:ID:execution:N` is the note of the run's Nth execution."""


def execution_key(part: str, number: int) -> str:
    """The key of the note of a run's Nth execution."""
    return f"{part}{EXECUTION}{number:06}"


def note_execution(part: str, number: int, now: float, record: Record, state: State | None) -> Put:
    """The note of an execution of this process that resumes a run with this record and this state."""
    process = this_process().record
    former: dict[str, Any] = {"state": status_of(record), "trace_id": trace_id(record["carrier"])}
    former["write"] = last_write(record)
    if state is not None and state.failure is not None:
        former["failure"] = asdict(state.failure)
    if state is not None and state.process is not None:
        former |= {"host": state.process["host"], "pid": state.process["pid"]}
    note = {"began": now, "host": process["host"], "pid": process["pid"], "former": former}
    return Put(execution_key(part, number), note)
