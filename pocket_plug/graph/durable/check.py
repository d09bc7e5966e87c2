"""Checks, before a deployment, which open runs of a graph can resume in its current form. Nothing is executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from pocket_plug.errors import CorruptRecordError, PocketError, RunChangedError
from pocket_plug.graph.planning.plan import PlannedGraph
from pocket_plug.primitives.batches import batched
from pocket_plug.store.reading import Found, read_each, readable
from pocket_plug.store.stack import Stack, StorePlace

from .judging import How, Judge, RunRecords
from .records import BATCH, RUN, check_start, field_of, node_of, part_of, read_run, start_key, status_of
from .request import prepare
from .states import STATE, states_of
from .waits import current_place, read_wait, wait_key, waits_in

OPEN_RECORDED = ("pending", "running", "suspended", "failed")
"""The recorded states of runs that may be resumed."""


@dataclass(frozen=True, kw_only=True)
class RunCheck:
    """Whether one open run can resume, and why."""

    run_id: str
    can_resume: bool
    verdict: How | Literal["refused"]
    """`unchanged`: the graph is unchanged; `unchanged ahead`: the part that the run can still reach is; `not begun`: the run was
    only submitted; `upgraded`: an upgrade moves it; `refused`: it can't resume."""
    state: str
    """The recorded state: "running" also for a run that has stalled."""
    node: str
    """The node that comes next; `outer/inner` in a nested graph."""
    version: int | None
    """The version of the graph that began the run, or to which it was upgraded; None if that can't be read."""
    why: str
    """The error of a resume, if the run can't resume; else empty."""
    differences: tuple[str, ...]
    """The differences in the part of the graph that the run can still reach."""


async def check_runs(graph: PlannedGraph, place: StorePlace) -> list[RunCheck]:
    """Check all open runs of a graph whose nodes read and write in this place or a scope of it, in the order of their ids.

    No run is executed, and nothing is written. Raises ConfigError if the store can't keep durable runs, and errors of reads.
    """
    prepare(graph, place)
    (stack, scope), judges = place, dict[str, Judge]()
    found: list[RunCheck] = []
    keys = await _keys(stack, graph.name)
    for batch in batched(keys, BATCH):
        read = await read_each(stack, batch)
        runs = {key: entry for key, entry in read.items() if _is_open(entry, graph.name)}
        begun = await read_each(stack, [start_key(part_of(key)) for key in runs])
        asking = {key: name for key, entry in runs.items() if (name := _asking(key, entry)) is not None}
        waits = await read_each(stack, list(asking.values()))
        for key, entry in runs.items():
            start = begun.get(start_key(part_of(key)))
            begun_in = _scope_of(start, str(scope))
            if not begun_in.startswith(scope):
                continue
            if (judge := judges.get(begun_in)) is None:
                judge = judges[begun_in] = Judge(graph, (stack, begun_in))
            found.append(await _checked(stack, judge, key, entry, start, waits.get(asking.get(key, ""))))
    return found


async def _keys(stack: Stack, graph: str) -> list[str]:
    """The keys of all runs, except those whose state shows that they have ended or belong to another graph.

    Runs of older versions have no state, so they are included.
    """
    ours = [states_of("unreadable"), *(states_of(status, graph) for status in OPEN_RECORDED)]
    others = {
        key.rpartition(":")[2] async for key in stack.scan(STATE) if not any(key.startswith(each) for each in ours)
    }
    return [key async for key in stack.scan(RUN) if key.removeprefix(RUN) not in others]


def _is_open(entry: Found, graph: str) -> bool:
    """Is it an open run of that graph? A record that can't be read may be one."""
    if field_of(entry, "graph") is None:  # nor can it without the layer that encrypted it
        return True
    return field_of(entry, "graph") == graph and field_of(entry, "status") in OPEN_RECORDED


def _asking(key: str, entry: Found) -> str | None:
    """The key of the question that the run's next node would have asked; None if the record can't be read."""
    try:
        frames = read_run(key, readable(entry))[1].frames
    except PocketError:
        return None
    return wait_key(part_of(key), current_place(frames))


def _scope_of(start: Found | None, scope: str) -> str:
    """The scope in which a run was begun. If its record has none, it may be this one."""
    found = field_of(start, "scope")
    return found if isinstance(found, str) else scope


async def _checked(
    stack: Stack, judge: Judge, key: str, run: Found, start: Found | None, wait: Found | None
) -> RunCheck:
    state, node, version = "unreadable", "", None
    verdict: How | Literal["refused"] = "refused"
    why, differences = "", tuple[str, ...]()
    run_id, part = unquote(key.removeprefix(RUN)), part_of(key)
    try:
        entry, begun, asking = readable(run), readable(start), readable(wait)
        record, checkpoint = read_run(key, entry)
        state, node = status_of(record), node_of(checkpoint.frames)
        if begun is None:
            raise CorruptRecordError(f"run {run_id!r} has lost the record of its start; it can only be removed")
        check_start(start_key(part), begun.value)
        version = begun.value.get("version", 1)
        waits = waits_in(record, checkpoint.frames)
        if asking is not None:
            asked = read_wait(part, _asking(key, entry) or "", asking)
            waits[asked.place] = asked
        kept = RunRecords(run_id, part, record, begun.value, checkpoint.frames, waits)
        verdict = (await judge.verdict(stack, kept)).how
    except RunChangedError as error:
        why, differences = error.message, error.differences
    except PocketError as error:
        why = f"{type(error).__name__}: {error}"
    return RunCheck(
        run_id=run_id,
        can_resume=verdict != "refused",
        verdict=verdict,
        state=state,
        node=node,
        version=version,
        why=why,
        differences=differences,
    )
