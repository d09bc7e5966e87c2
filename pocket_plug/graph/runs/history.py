"""The history of a run: its executions, the nodes that it has passed, and its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocket_plug.graph.durable.executions import EXECUTION
from pocket_plug.graph.durable.moving import Seen
from pocket_plug.graph.durable.records import BATCH, PATH, field_of, start_key
from pocket_plug.graph.durable.states import RunFailure
from pocket_plug.primitives.batches import batched
from pocket_plug.store.backend import Backend
from pocket_plug.store.reading import Found, read_each

from .info import PassedNode, RunExecution, RunHistory, RunInfo, info_of, kept, questions_of, waits_for


async def history_of(stack: Backend, seen: Seen) -> RunHistory:
    """The history of a run. If some of its records are damaged, their fields are None, and the rest is complete."""
    part, frames = seen.part, seen.checkpoint.frames
    waits = await waits_for(stack, seen)
    info = info_of(seen, waits if seen.status == "suspended" else ())
    key = start_key(part)
    start = (await read_each(stack, [key])).get(key)
    passed = await _records(stack, part + PATH)
    nodes = [frame.node for frame in frames]
    return RunHistory(
        run=info,
        executions=_executions(info, await _records(stack, f"{part}{EXECUTION}")),
        path=tuple(_passed(each) for each in passed.values()),
        visits={
            "/".join([*filter(None, nodes[:depth]), name]): visits
            for depth, frame in enumerate(frames)
            for name, visits in frame.visits.items()
        },
        input=kept(field_of(start, "input")),
        value=kept(frames[-1].value),
        questions=tuple(questions_of(seen.run_id, waits)),
    )


async def _records(stack: Backend, prefix: str) -> dict[str, Found]:
    keys = [key async for key in stack.scan(prefix)]
    found: dict[str, Found] = {}
    for batch in batched(keys, BATCH):
        found |= await read_each(stack, batch)
    return {key: found[key] for key in keys if key in found}


def _passed(found: Found) -> PassedNode:
    node, following, at = (field_of(found, name) for name in ("node", "next", "at"))
    return PassedNode(
        node.removeprefix("/") if isinstance(node, str) else None,
        following if isinstance(following, str) else None,
        at if isinstance(at, float) else None,
    )


def _executions(run: RunInfo, notes: Mapping[str, Found]) -> tuple[RunExecution, ...]:
    """The run's executions: each is read from its own note, and from the next one's note about the run's former state."""
    numbered = {int(key.rpartition(":")[2]): note for key, note in notes.items() if key[-6:].isdigit()}
    return tuple(_execution(run, number, numbered) for number in range(1, (run.executions or 0) + 1))


def _execution(run: RunInfo, number: int, notes: Mapping[int, Found]) -> RunExecution:
    note, following = notes.get(number), notes.get(number + 1)
    began = run.started if number == 1 and note is None else field_of(note, "began")
    host, pid = field_of(note, "host"), field_of(note, "pid")
    if number == run.executions:
        owner = run.owner
        host, pid = (host, pid) if owner is None else (owner.host, owner.pid)
        return RunExecution(number, began, host, pid, run.trace_id, run.state, run.failure)
    former: Mapping[str, Any] = field_of(following, "former") or {}
    host, pid = host or former.get("host"), pid or former.get("pid")
    failure = former.get("failure")
    left = former.get("state")
    return RunExecution(
        number,
        began,
        host,
        pid,
        former.get("trace_id"),
        "stalled" if left == "running" else left,
        None if failure is None else RunFailure(**failure),
    )
