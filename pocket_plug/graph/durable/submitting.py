"""Submits runs: a run is recorded, for any worker to execute."""

from __future__ import annotations

from pocket_plug.errors import ConflictError, InputError
from pocket_plug.graph.kinds.nesting import GraphStep
from pocket_plug.graph.observing.host import RunHost
from pocket_plug.graph.observing.views import Carrier, RunNotice
from pocket_plug.graph.planning.plan import Plan, PlannedGraph
from pocket_plug.primitives.typechecks import type_name, with_contents
from pocket_plug.store.backend import Put
from pocket_plug.store.stack import StorePlace

from .claim import begin, refuse_another
from .journal import Journal, Wanted
from .records import Status, check_run, check_start, start_key, status_of
from .request import prepare
from .states import State, put_state, state_key
from .waking import wake_workers


async def submit(
    graph: PlannedGraph,
    place: StorePlace,
    run_id: str,
    value: object,
    host: RunHost,
    traceparent: Carrier | None,
) -> Status:
    """Record a run as `pending` with its input, in one write, and notify plugins if it is new. Returns its state.

    If a run with this id and input exists, it stays unchanged. Raises RunMismatchError if it has another input or graph,
    InputError if the first node doesn't take the input, ConfigError if the graph's store can't keep durable runs.
    """
    prepare(graph, place, f"run_id={run_id!r}: ")
    _check_input(graph.plan, value)
    journal = Journal(Wanted(run_id), graph, place)
    stack, key, start = journal.stack, journal.checkpoint.key, start_key(journal.part)
    journal.epoch = 0
    if traceparent is not None:
        journal.carrier = {"traceparent": traceparent} if isinstance(traceparent, str) else dict(traceparent)
    while True:
        found = await stack.read_many((key, start))
        if (entry := found.get(key)) is not None:
            check_run(key, entry.value)
            if (begun := found.get(start)) is not None:
                check_start(start, begun.value)
                refuse_another(journal, begun.value, value)
            return status_of(entry.value)
        begins = begin(journal, value)
        record = journal.record(journal.token(), journal.checkpoint.frames, "pending")
        state_at = state_key("pending", graph.name, journal.started, journal.name)
        try:
            await stack.write([begins, Put(key, record), put_state(state_at, State(stack.clock()))], {key: 0})
        except ConflictError:
            continue  # another process was faster, or this write was sent twice: read the run
        wake_workers()
        host.notify(RunNotice("submitted", run_id, graph.name))
        return "pending"


def _check_input(plan: Plan, value: object) -> None:
    """Raise InputError if the first node doesn't take the value: here, since the caller wouldn't see it later."""
    step = plan.start
    while isinstance(step, GraphStep):
        step = step.graph.plan.start
    if step.fits is not None and not step.fits(value):
        raise InputError(
            f"node {step.name!r} of graph {plan.name!r} takes {type_name(step.input_type)}, not {with_contents(value)}"
        )
