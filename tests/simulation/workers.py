"""Workers in a world: their reports are checked, and at the end they bring all runs to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pocket_plug as pp

from .graphs import GRAPHS, stage
from .world import ATTEMPT, Attempt, Machine, World

LEASES = (3.0, 30.0)


class Sleeping:
    """Replaces the package's set of sleeping workers, of which there is one for each process."""

    def add(self, wake: Callable[[], None]) -> None:
        """A worker of the current process."""
        stage.world.here.sleeping.append(wake)

    def discard(self, wake: Callable[[], None]) -> None:
        """It ends."""
        sleeping = stage.world.here.sleeping
        if wake in sleeping:
            sleeping.remove(wake)

    def __iter__(self) -> Iterator[Callable[[], None]]:
        return iter([*stage.world.here.sleeping])


def worker_of(world: World, machine: Machine) -> pp.Worker:
    """A worker for all graphs of this world's runs."""
    graphs = {run.kind: GRAPHS[run.kind] for run in world.runs.values()}
    return pp.Worker(
        list(graphs.values()),
        pocket=machine,
        concurrency=world.random.choice((1, 3)),
        lease=world.lease,
        report=lambda report: _told(world, machine, report),
    )


async def work(world: World, machine: Machine, worker: pp.Worker) -> None:
    """Serve until the worker is stopped."""
    ATTEMPT.set(world.shell(machine))
    await worker.run()
    if any(
        attempt.machine is machine and attempt.is_at_work for attempt in world.executions.values() if attempt.is_worker
    ):
        world.violate(f"the worker of {machine.name} has ended, and executions of its have not")


def _told(world: World, machine: Machine, report: pp.WorkerReport) -> None:
    """Called in the task of the run."""
    mine: Any
    if report.became == "taken":
        owners = [each.owner for each in machine.identity.held.values() if getattr(each, "id", "") == report.run_id]
        mine = next(
            (found for owner in reversed(owners) if (found := world.executions.get(owner)) and found.is_worker), None
        )
        if mine is None:
            world.violate(f"a worker of {machine.name} was told that it has {report.run_id}, and no claim has landed")
            return
        ATTEMPT.set(mine)
        world.note(machine.name, f"takes {report.run_id} as {mine.number}")
        return
    mine = ATTEMPT.get()
    if not isinstance(mine, Attempt) or mine.run.id != report.run_id:
        # given up before it was started, or removed
        if report.became != "failed" and not isinstance(report.error, pp.UnknownRunError):
            world.violate(f"a worker of {machine.name} was told {report.became} of {report.run_id}: {report.error!r}")
        return
    mine.ended = world.scheduler.now
    word = type(report.error).__name__ if report.error is not None else ""
    world.note(machine.name, f"attempt {mine.number} of {report.run_id} ends: {report.became} {word}")
    is_truly_cancelled = report.became == "cancelled" and mine.run.is_cancelled
    if mine.overtaken_at is not None and report.became != "lost" and not is_truly_cancelled:
        world.violate(f"attempt {mine.number} was overtaken, and its worker was told {report.became}")
    status = "pending" if report.became == "released" else report.became
    is_true = is_truly_cancelled or status == "lost" or mine.run.was(status, mine.claimed_at or 0.0)
    if not is_true:
        world.violate(f"a worker was told {report.became} of {report.run_id}, which is {mine.run.status}")


async def bring_to_end(world: World, machine: Machine, help_on: Callable[[Any], Any]) -> None:
    """A worker executes all remaining runs; operators help where it can't."""
    worker = worker_of(world, machine)
    working = machine.spawn(work(world, machine, worker))
    for _ in range(60):
        await asyncio.sleep(max(world.lease, 5.0) * 1.2)
        left = [run for run in world.runs.values() if not run.is_over and not run.is_removed]
        if not left:
            break
        for run in left:
            if run.status in ("failed", "") or (run.status == "suspended" and run.asked):
                await help_on(run)
    else:
        world.violate(f"{[(run.id, run.status) for run in left]} are not brought to their end by a worker")
    worker.stop()
    await asyncio.wait((working,), timeout=600)
    if not working.done():
        world.violate("a worker that was stopped does not end")
    elif working.exception() is not None:
        world.violate(f"a worker ended by {working.exception()!r}")
