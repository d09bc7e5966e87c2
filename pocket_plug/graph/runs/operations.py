"""The operations of operators: cancel a run, and retry a failed one.

Each reads the run, and its write expects what was read. After a conflict it reads the run again: then either another operator has
done the same, or the operation is refused with a RunStateError that names the state.
"""

from __future__ import annotations

from dataclasses import replace

from pocket_plug.errors import ConflictError, RunStateError, UnknownRunError
from pocket_plug.graph.durable.moving import Seen, mark_stalled, move, read_after_failure, see
from pocket_plug.graph.durable.processes import this_process
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.durable.states import put_state, read_state
from pocket_plug.graph.observing.host import RunHost
from pocket_plug.graph.observing.views import RunNotice
from pocket_plug.store.backend import Backend, Entry

from .info import RunInfo, info_of


async def must_see(watch: StallWatch, run_id: str) -> Seen:
    """The run with this id. Raises UnknownRunError, StoreError for a newer format, CorruptRecordError."""
    seen = await see(watch.stack, run_id)
    if seen is None:
        raise UnknownRunError(
            f"there is no run {run_id!r} in {watch.stack!r}; `pocket-plug runs ls` lists the runs of [store], `pocket-plug runs "
            "--url URL ls` those of another store"
        )
    (seen,) = await mark_stalled(watch, [seen])
    return seen


async def cancel(watch: StallWatch, run_id: str, host: RunHost) -> RunInfo:
    """Cancel a run, and notify the host; if an execution owns it, request its end. Raises RunStateError if it has finished."""
    while True:
        seen = await must_see(watch, run_id)
        if seen.status == "cancelled":
            return info_of(seen)
        if seen.status == "finished":
            raise RunStateError(run_id, "finished", f"run {run_id!r} can't be cancelled: it has finished")
        if seen.is_at_work:
            cancelled = await _request_cancel(watch.stack, seen)
        else:
            cancelled = await move(watch.stack, seen, "cancelled")
        if cancelled is None:
            continue
        if not seen.is_at_work:  # otherwise its execution sends the notice
            host.notify(RunNotice("cancelled", run_id, str(seen.record["graph"])))
        return info_of(cancelled)


async def _request_cancel(stack: Backend, seen: Seen) -> Seen | None:
    """Write the request to cancel into a run's state. Returns None if the state has changed meanwhile."""
    if seen.state.cancelled:
        return seen
    state = replace(seen.state, cancelled=True)
    put = put_state(seen.state_key, state)
    try:
        version = await stack.write([put], {seen.state_key: seen.state_version})
    except ConflictError:
        return None
    except Exception:
        now = await read_after_failure(seen.run_id, stack.read(seen.state_key))
        if now is None:
            return None  # the execution has ended meanwhile; the caller reads the run again
        if not read_state(seen.state_key, now).cancelled:
            raise
        version = now.version
    held = this_process().held.get(state.owner)
    if held is not None:
        held.receive_state(Entry(put.value, version))
    return replace(seen, state=state, state_version=version)


async def retry(watch: StallWatch, run_id: str) -> RunInfo:
    """Make a failed or a stalled run pending, so that a worker resumes it. Raises RunStateError for another state."""
    while True:
        seen = await must_see(watch, run_id)
        if seen.status == "pending":
            return info_of(seen)
        if seen.status != "failed" and (not seen.is_stalled or seen.state.cancelled):
            raise RunStateError(run_id, info_of(seen).state, _not_retried(seen))
        retried = await move(watch.stack, seen, "pending", failure=seen.state.failure)
        if retried is not None:
            return info_of(retried)


def _not_retried(seen: Seen) -> str:
    why = {
        "running": "it is being executed",
        "suspended": "it has not failed, and waits",
        "cancelled": "it was cancelled; remove it, or give the work another run_id",
        "finished": "it has finished",
    }[seen.status]
    if seen.state.cancelled:
        why = "it was cancelled while it was running; cancel it again to end it"
    return f"run {seen.run_id!r} can't be tried again: {why}"
