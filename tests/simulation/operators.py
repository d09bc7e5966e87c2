"""The actors of a world: processes that execute graphs, operators who answer and take over, and chance, which kills and stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pocket_plug as pp
from pocket_plug.graph.durable import records

from . import ways
from .graphs import GRAPHS, HOOKED, Boom, stage
from .workers import bring_to_end, work, worker_of
from .world import ATTEMPT, Attempt, Machine, Reference, Story, World

CHAOS = 200
"""Seconds after which, at the latest, nothing goes wrong any more, and everything is brought to its end."""


class Unexpected(Exception):
    """An error that must not happen."""


async def attempt(
    world: World,
    machine: Machine,
    run: Story,
    call: Callable[[], Coroutine[Any, Any, Any]],
    takes_over: bool = False,
) -> Exception | None:
    """Execute a run, or try to, and check how that ends. Returns the error, if it ends with one."""
    world.attempts += 1
    mine = Attempt(world.attempts, run, machine, takes_over, world.scheduler.now)
    ATTEMPT.set(mine)
    former = run.owner
    run.in_flight += 1
    try:
        result = await call()
        mine.ended = mine.ended or world.scheduler.now
        run.in_flight -= 1
    except asyncio.CancelledError:
        if not mine.is_streamed:  # else who is cancelled while it leaves the stream doesn't wait for the run's end
            mine.ended = world.scheduler.now
        run.in_flight -= 1
        world.note(machine.name, f"attempt {mine.number} of {run.id} ends: cancelled")
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            world.violate(f"attempt {mine.number} ended by a cancellation that nobody has asked for")
        raise
    except Exception as error:  # noqa: BLE001 - judged right here
        mine.ended = mine.ended or world.scheduler.now
        run.in_flight -= 1
        word = type(error).__name__
        world.note(machine.name, f"attempt {mine.number} of {run.id} ends: {word}")
        _judge_error(world, mine, error, former)
        return error
    world.note(machine.name, f"attempt {mine.number} of {run.id} ends: {result!r}")
    run.results.append(result)
    if mine.overtaken_at is not None:
        world.violate(f"attempt {mine.number} was overtaken, and was told no error")
    return None


def _judge_error(world: World, mine: Attempt, error: Exception, former: Attempt | None) -> None:
    number, word = mine.number, type(error).__name__
    if isinstance(error, pp.RunBusyError):
        _judge_busy(world, mine, former)
        return
    if isinstance(error, ways.Left) or (isinstance(error, pp.UnknownRunError) and mine.run.is_removed):
        return
    if isinstance(error, pp.RunTimeoutError) and (timeout := GRAPHS[mine.run.kind].timeout) is not None:
        if not world.skew and world.scheduler.now - mine.run.states[1][0] < timeout - 1:
            world.violate(f"attempt {number} was told after {world.scheduler.now:.1f} s that the run's time is over")
        return
    if isinstance(error, pp.RunCancelledError):
        if not mine.run.is_cancelled:
            world.violate(f"attempt {number} was told that run {mine.run.id} is cancelled, and nobody has cancelled it")
        return
    if isinstance(error, pp.RunFencedError):
        if mine.overtaken_at is None:
            world.violate(f"attempt {number} was told that it is fenced, and nobody has overtaken it")
        return
    if isinstance(error, Boom):
        if not sum(mine.raised.values()):
            world.violate(f"attempt {number} got a node's error that was not raised in it")
    elif isinstance(error, pp.ConflictError):
        if mine.conflicts < 20:
            world.violate(f"attempt {number} ended by a conflict after {mine.conflicts} of them: {error}")
    elif isinstance(error, pp.StoreError):
        if not mine.faults:
            world.violate(f"attempt {number} ended by {word}, and its store has not failed: {error}")
    elif not isinstance(error, pp.RunSuspendedError | pp.RunMismatchError):
        world.violate(f"attempt {number} ended by an unexpected {word}: {error}")
    if mine.overtaken_at is not None and not mine.faults and not isinstance(error, Boom):
        world.violate(f"attempt {number} was overtaken, and was told {word} in place of RunFencedError")


def _judge_busy(world: World, mine: Attempt, former: Attempt | None) -> None:
    """Was the run really executed elsewhere, as the error says?"""
    owner = mine.run.owner
    if owner is None or mine.takes_over:
        world.violate(f"attempt {mine.number} was told that run {mine.run.id} is at work, without a reason")
    elif owner is former and not owner.is_at_work:
        here = owner.machine is mine.machine and owner.ended is not None and owner.ended < mine.began
        if here or (owner.machine.died_at < mine.began and owner.machine.host == mine.machine.host):
            world.violate(
                f"attempt {mine.number} was told that {owner.number} is at work, which is known to have ended"
            )


async def run_or_resume(world: World, machine: Machine, run: Story) -> Exception | None:
    """Continue a run in one of the possible ways, as an operator or a program would, and answer its questions."""
    chance = world.random
    takes_over = machine.name == "end" or chance.random() < world.takeovers
    options: dict[str, Any] = {"pocket": machine, "takeover": takes_over}
    if run.is_begun and chance.random() < 0.5:
        error = await attempt(world, machine, run, lambda: ways.resume(world, machine, run, **options), takes_over)
    else:
        error = await attempt(world, machine, run, lambda: ways.run(world, machine, run, **options), takes_over)
    if isinstance(error, pp.RunSuspendedError):
        await asyncio.sleep(chance.choice((0.0, 0.01, 3.0)) if world.is_faulty else 0.0)
        return await go_on(world, machine, run, error)
    return error


async def go_on(world: World, machine: Machine, run: Story, waits: pp.RunSuspendedError) -> Exception | None:
    """Answer one of the questions of a run, or let its time come."""
    chance = world.random
    place = chance.choice(sorted(waits.questions)) if waits.questions else ""
    answer = world.answer(run, place)
    if answer is None:
        if waits.wake_at is not None and (not world.is_faulty or chance.random() < 0.3):
            await asyncio.sleep(max(waits.wake_at - machine.clock(), 0) + 0.001)
        return await attempt(world, machine, run, lambda: ways.resume(world, machine, run, pocket=machine))
    error = await attempt(
        world, machine, run, lambda: ways.resume(world, machine, run, answer=answer, question=place, pocket=machine)
    )
    is_known = error is None or isinstance(error, pp.RunSuspendedError | pp.RunFencedError | Boom)
    if is_known and run.answers.get(place) != answer and not run.is_cancelled:
        world.violate(f"the answer {answer} to {run.id}/{place} was taken, and {run.answers.get(place)} is recorded")
    if isinstance(error, pp.RunMismatchError) and run.answers.get(place, answer) == answer:
        world.violate(f"the answer {answer} to {run.id}/{place} was refused: {error}")
    return error


# ---------------------------------------------------------------- operations of operators
async def operate(world: World, machine: Machine, run: Story, what: str = "") -> None:
    """Do something to a run as an operator, and check the result."""
    runs, began = pp.Runs(machine.store), world.scheduler.now
    if not what and run.asked and world.random.random() < 0.5:
        what = "answer"
    what = what or world.random.choice(("cancel", "retry", "retry", "get", "list", "remove", "answer", "answer"))
    if what == "answer" and not run.asked:
        return
    if what == "remove":
        if run.status not in ("finished", "cancelled") or run.in_flight or world.on_the_way:
            return  # it would be started again, with the same id, by an actor that executes it
        run.is_removed = True
    world.attempts += 1
    mine = Attempt(world.attempts, run, machine, is_operator=True)
    ATTEMPT.set(mine)
    try:
        if what == "list":
            await list_all(world, runs)
            return
        if what == "submit":
            run.in_flight += 1
            try:
                state = await GRAPHS[run.kind].submit(run.input, run_id=run.id, pocket=machine)
            finally:
                run.in_flight -= 1
            world.note(machine.name, f"submit {run.id} by {mine.number}: {state}")
            if not run.was(state, began):
                world.violate(f"whoever submitted {run.id} was told that it is {state}, and it was not")
            return
        if what == "answer":
            await answer_one(world, machine, runs, run)
            return
        info = await getattr(runs, what)(run.id)
    except (pp.RunStateError, pp.UnknownRunError) as error:
        told = error.state if isinstance(error, pp.RunStateError) else ""
        world.note(machine.name, f"{what} {run.id} by {mine.number}: {type(error).__name__} {told}")
        if not run.was(told, began):
            world.violate(f"whoever wanted to {what} {run.id} was told that it is {told}, and it was not")
    except pp.StoreError as error:
        world.note(machine.name, f"{what} {run.id} by {mine.number}: {type(error).__name__}")
        if not mine.faults:
            world.violate(f"{what} of {run.id} ended by {type(error).__name__}, and the store has not failed: {error}")
    except Exception as error:  # noqa: BLE001 - judged right here
        world.violate(f"{what} of {run.id} ended by an unexpected {type(error).__name__}: {error}")
    else:
        if what == "remove":
            world.note(machine.name, f"removed {run.id} by {mine.number}: {info}")
            return
        world.note(machine.name, f"{what} {run.id} by {mine.number}: {info.state}")
        if what == "cancel" and not run.is_cancelled:
            world.violate(f"whoever cancelled {run.id} was told that it is, and it is not")
        if what == "retry" and info.state != "pending":
            world.violate(f"whoever had {run.id} tried again was told that it is {info.state}")
        if not run.was(info.state, began):
            world.violate(f"{what} of {run.id} says that it is {info.state}, and it was not")


async def answer_one(world: World, machine: Machine, runs: pp.Runs, run: Story) -> None:
    """Answer a question that is open, or was open a moment ago."""
    place = world.random.choice(sorted(run.asked))
    answer = world.answer(run, place)
    if answer is None:
        return
    try:
        info = await runs.answer(run.id, answer, question=place)
    except pp.RunMismatchError as error:
        world.note(machine.name, f"answer {answer} to {run.id}/{place}: refused")
        if run.answers.get(place, answer) == answer and not run.is_removed:
            world.violate(f"the answer {answer} to {run.id}/{place} was refused: {error}")
    else:
        world.note(machine.name, f"answer {answer} to {run.id}/{place}: {info.state}")
        if run.answers.get(place) != answer:
            world.violate(
                f"the answer {answer} to {run.id}/{place} was taken, and {run.answers.get(place)} is recorded"
            )


async def list_all(world: World, runs: pp.Runs) -> dict[str, str]:
    """The states of all runs, page by page."""
    found: dict[str, str] = {}
    after = None
    while True:
        page = await runs.list(limit=2, after=after)
        for info in page.runs:
            if info.state == "unreadable":
                world.violate(f"run {info.run_id} is listed as unreadable: {info.error}")
            found[info.run_id] = info.state
        if (after := page.after) is None:
            return found


# ---------------------------------------------------------------- a world with chance
class Chaos:
    """The events in a world until its end."""

    def __init__(self, world: World) -> None:
        self.world, self.chance = world, world.random
        self.born = 0
        self.pending: list[asyncio.Task[Any]] = []

    def start(self) -> Machine:
        """A process starts, on a computer with a wrong clock."""
        self.born += 1
        world = self.world
        machine = Machine(
            world, f"p{self.born}", self.chance.choice(("h1", "h1", "h2")), self.chance.uniform(-world.skew, world.skew)
        )
        world.note(machine.name, f"begins on {machine.host} as {machine.pid}, its clock {machine.skew:+.0f} s")
        world.machines.append(machine)
        if world.has_workers:
            machine.spawn(self._serve(machine))
        for _ in range(self.chance.randrange(0 if world.has_workers else 1, 4)):
            machine.spawn(self._drive(machine))
        return machine

    async def _serve(self, machine: Machine) -> None:
        """A worker, which is stopped after a while: its process ends, and another one starts."""
        world, chance = self.world, self.chance
        worker = worker_of(world, machine)
        serving = machine.spawn(work(world, machine, worker))
        await asyncio.wait((serving,), timeout=chance.choice((1.0, 20.0, 1000.0)))
        world.note(machine.name, "its worker is to stop")
        worker.stop()
        await asyncio.wait((serving,))
        if serving.exception() is not None:
            world.violate(f"a worker ended by {serving.exception()!r}")
        machine.kill("by its own end")

    async def _drive(self, machine: Machine) -> None:
        world, chance = self.world, self.chance
        while world.is_faulty:
            await asyncio.sleep(chance.choice((0.0, 0.001, 0.05, 5.0)))
            run = chance.choice(list(world.runs.values()))
            if run.is_removed:
                continue
            if run.results and chance.random() < 0.7:
                await asyncio.sleep(5)
                continue
            if world.has_workers and (not run.is_begun or chance.random() < 0.1):
                await operate(world, machine, run, "submit")
            elif world.follows and chance.random() < world.follows:
                await ways.follow(world, machine, run)
            elif chance.random() < world.operations:
                await operate(world, machine, run)
            elif chance.random() < world.impatience:
                await self._give_up_soon(machine, run)
            else:
                await run_or_resume(world, machine, run)

    async def _give_up_soon(self, machine: Machine, run: Story) -> None:
        """Continue a run, and cancel that after a while, as a program does that ends."""
        task = machine.spawn(run_or_resume(self.world, machine, run))
        await asyncio.wait((task,), timeout=self.chance.choice((0.0, 0.003, 0.03, 1.0)))
        if task.cancel():
            self.world.note(machine.name, f"gives up on {run.id}")
            await asyncio.wait((task,))
            if not task.cancelled() and task.exception() is not None:
                self.world.violate(f"giving up on {run.id} ended by {task.exception()!r}")

    def _strike(self) -> None:
        """Something happens to a process."""
        world, chance = self.world, self.chance
        if not world.is_faulty:
            return
        world.scheduler.after(chance.expovariate(world.strikes), self._strike)
        living = [machine for machine in world.machines if not machine.process.is_dead]
        if not living:
            return
        machine = chance.choice(living)
        what = chance.choice(("kill", "stop", "cut", "nothing"))
        if what == "kill":
            machine.kill("by chance")
        elif what == "stop" and not machine.process.is_stopped:
            world.note(machine.name, "stopped")
            machine.process.stop()
            world.scheduler.after(chance.choice((0.05, 2.0, 90.0)), lambda: _continue(world, machine))
        elif what == "cut":
            machine.faulty_until = world.scheduler.now + chance.choice((0.1, 5.0))
            world.note(machine.name, f"is cut off until {machine.faulty_until:.3f}")

    def replace(self, machine: Machine) -> None:
        """Another process replaces one that has died."""
        delay = self.chance.choice((0.01, 1.0, 30.0))
        self.world.scheduler.after(delay, lambda: self.start() if self.world.is_faulty else None)

    def play(self) -> None:
        """Everything, from the first process to the last check."""
        world, chance = self.world, self.chance
        for number in range(1, chance.choice((1, 2, 4)) + 1):
            run = Story(f"r{number}", chance.choice(world.focus), chance.randrange(3))
            world.runs[run.id] = run
            world.note("", f"{run}")
        world.on_death = self.replace
        for _ in range(chance.randrange(1, 4)):
            self.start()
        if world.strikes:
            world.scheduler.after(chance.expovariate(world.strikes), self._strike)
        end = Machine(world, "end", "end", 0.0)
        world.scheduler.run(end.spawn(self._end(end)))

    async def _end(self, machine: Machine) -> None:
        """When nothing fails any more: bring all runs to their end."""
        world = self.world
        for _ in range(CHAOS // 2 if world.has_workers else CHAOS):
            await asyncio.sleep(1)
            if (
                all(run.results or run.status == "cancelled" for run in world.runs.values())
                and world.random.random() < 0.3
            ):
                break
        world.is_faulty = False
        world.note("end", "nothing goes wrong any more")
        await asyncio.sleep(20 if world.has_workers else 120)
        for each in world.machines:
            if not each.process.is_dead:
                each.kill("at the end")
        runs = pp.Runs(machine.store)
        if world.has_workers:
            await asyncio.sleep(2 * world.skew)  # until timers are over by this clock too
            await bring_to_end(world, machine, lambda run: self._help_on(machine, run))
        for run in world.runs.values():
            if run.is_removed:
                await runs.remove(run.id)
                world.removed(run)
                continue
            for _ in range(20):
                error = await run_or_resume(world, machine, run)
                if error is None or isinstance(error, pp.RunCancelledError | pp.RunTimeoutError):
                    break
            else:
                world.violate(f"run {run.id} does not end")
        listed = await list_all(world, runs)
        if listed != (states := {run.id: run.status for run in world.runs.values() if not run.is_removed}):
            world.violate(f"the list says {listed}, and the runs are {states}")
        world.judge()
        if world.random.random() < 0.1:
            await self._let_expire(machine)

    async def _help_on(self, machine: Machine, run: Story) -> None:
        """What a worker leaves to operators: the first start, a retry, an answer."""
        what = "answer" if run.status == "suspended" else "retry" if run.status else "submit"
        await operate(self.world, machine, run, what)

    async def _let_expire(self, machine: Machine) -> None:
        """A long time passes, and other runs end: runs with a `keep_finished` are removed, and nothing else."""
        world = self.world
        ended = [run for run in world.runs.values() if run.status == "finished" and not run.is_removed]
        for number in range(4):
            await asyncio.sleep(100 * 86_400)
            run = world.runs[f"x{number}"] = Story(f"x{number}", "single", 0)
            await run_or_resume(world, machine, run)
        left = {key.split(":")[2] for key in world.server.keys(records.PART)}
        for run in ended:
            if (run.id in left) == (GRAPHS[run.kind].keep_finished is not None):
                world.violate(f"run {run.id} of {run.kind} is {'still' if run.id in left else 'not'} there")


def _continue(world: World, machine: Machine) -> None:
    if not machine.process.is_dead:
        world.note(machine.name, "goes on")
        machine.disturbed_at = world.scheduler.now
        machine.process.go_on()


# ---------------------------------------------------------------- a world without chance
def undisturbed(kind: str, input: int, answers: Mapping[str, int | None]) -> Reference:
    """Run one graph in a world without failures, with these answers."""
    world = World(0, is_calm=True)
    stage.world = world
    run = world.runs["r"] = Story("r", kind, input, answers=dict(answers))
    machine = Machine(world, "calm", "calm", 0.0)

    async def until_done() -> None:
        for _ in range(20):
            if await run_or_resume(world, machine, run) is None:
                return

    world.scheduler.run(machine.spawn(until_done()))
    world.close()
    if world.violations or not run.results:
        raise AssertionError(f"with nothing going wrong {run} does: {world.violations}", world.history)
    hooks = (key.removeprefix(HOOKED) for key in world.server.keys(HOOKED))
    return Reference(
        run.results[0],
        frozenset(place.partition("/")[2] for place in run.effects),
        frozenset(place.partition("/")[2] for place in hooks),
    )
