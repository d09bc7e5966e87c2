"""The ways in which a program executes a run: awaited, as a stream of events, or in a thread without an event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

import pocket_plug as pp

from .graphs import GRAPHS, SYNC_GRAPHS
from .world import ATTEMPT, Attempt, Machine, Story, World

T = TypeVar("T")


class Left(Exception):
    """The reader of a stream has left it before its end."""


async def run(world: World, machine: Machine, story: Story, **options: Any) -> Any:
    """Start a run, or resume it, in a way chosen by chance."""
    if goes_in_thread(world, story):
        graph = SYNC_GRAPHS[story.kind]
        return await in_thread(machine, lambda: graph.run_sync(story.input, run_id=story.id, **options))
    if world.streams and world.random.random() < world.streams:
        return await streamed(world, machine, story, **options)
    return await GRAPHS[story.kind].run(story.input, run_id=story.id, **options)


async def resume(world: World, machine: Machine, story: Story, **options: Any) -> Any:
    """Resume a run."""
    if goes_in_thread(world, story):
        return await in_thread(machine, lambda: SYNC_GRAPHS[story.kind].resume_sync(story.id, **options))
    return await GRAPHS[story.kind].resume(story.id, **options)


# ---------------------------------------------------------------- without a loop
def goes_in_thread(world: World, story: Story) -> bool:
    """Is it to be executed in a thread? Not with a time limit, which would need an event loop of its own."""
    can = world.in_threads and GRAPHS[story.kind].timeout is None
    return bool(can and world.random.random() < world.in_threads)


def _ends(world: World, mine: Attempt) -> None:
    """The execution has ended, though its caller may not know yet."""
    mine.ended = world.scheduler.now


async def in_thread(machine: Machine, function: Callable[[], T]) -> T:
    """Let a thread of the process do it. It can't be cancelled, so it is awaited in any case."""
    result: asyncio.Future[T] = machine.process.create_future()
    mine, soon = ATTEMPT.get(), machine.process.call_soon_threadsafe
    assert mine is not None

    def call() -> None:
        try:
            given = function()
        except Exception as error:  # noqa: BLE001 - the caller's
            soon(result.set_exception, error)
        else:
            soon(result.set_result, given)
        _ends(machine.world, mine)  # though the loop may be blocked, and doesn't know it

    machine.thread(call, copy_context())
    cancelled: asyncio.CancelledError | None = None
    while not result.done():
        try:
            await asyncio.wait({result})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        result.exception()  # nobody else reads it
        raise cancelled
    return result.result()


# ---------------------------------------------------------------- as a stream
async def streamed(world: World, machine: Machine, story: Story, **options: Any) -> Any:
    """Read a run's events to the last, or some of them, and check them. Raises Left."""
    chance = world.random
    mine = ATTEMPT.get()
    assert mine is not None
    stream = GRAPHS[story.kind].stream(story.input, run_id=story.id, buffer=chance.choice((1, 2, 100)), **options)
    leave_after = chance.choice((1, 3, 10)) if world.is_faulty and chance.random() < 0.3 else None
    pause = chance.choice((0.0, 0.0, 0.02, 1.0))
    told = Told(world, story, mine)
    mine.is_streamed = True
    async with stream:
        assert stream._task is not None
        stream._task.add_done_callback(lambda _: _ends(world, mine))  # its reader may notice later
        async for event in stream:
            told.take(event)
            if told.count == leave_after and not isinstance(event, pp.Finished | pp.Suspended):
                break
            if pause:
                await asyncio.sleep(pause if world.is_faulty else 0.0)
    world.note(machine.name, f"{told.count} events by {mine.number}, the last {told.last}")
    if isinstance(event, pp.Finished):
        told.end()
        return event.output
    if isinstance(event, pp.Suspended):
        told.end()
        raise pp.RunSuspendedError(event.run_id, event.questions, event.wake_at)
    raise Left


class Told:
    """The events of one run so far. Each must be true by then, and in the right order."""

    def __init__(self, world: World, story: Story, mine: Attempt | None = None) -> None:
        self._world, self._story, self._mine = world, story, mine
        self._entered: set[str] = set()
        self.left: list[str] = []
        """The places that were left, in the order in which that was told."""
        self._done: set[str] = set()
        self._emitted: Counter[str] = Counter()
        self.count, self.last = 0, ""

    def _violate(self, what: str) -> None:
        by = f"attempt {self._mine.number}" if self._mine is not None else "a follower"
        self._world.violate(f"{by} of run {self._story.id} was told {what}")

    def take(self, event: Any) -> None:
        """One more event."""
        if self.last in ("finished", "suspended") and self._mine is not None:
            self._violate(f"{event.kind} after {self.last}")
        self.count, self.last = self.count + 1, event.kind
        match event:
            case pp.NodeEntered():
                self._enter(str(event.place))
            case pp.NodeLeft() if event.outcome in ("ok", "fallback"):
                self._leave(str(event.place))
            case pp.ItemDone() if event.error is None:
                self._item(str(event.place))
            case pp.Emitted():
                self._emitted[f"{self._story.id}/{event.place}"] += 1
            case pp.Asked() if str(event.place) not in self._story.asked | self._story.answers.keys():
                self._violate(f"that {event.place} asks, and it does not")
            case _:
                pass

    def _enter(self, place: str) -> None:
        # it is visited again once there is an answer, and so are the nodes around it, up to the item
        asked = self._story.asked | self._story.answers.keys()
        has_asked = any(each == place or each.startswith((f"{place}/", f"{place}[")) for each in asked)
        if place in self._entered and self._mine is not None and not has_asked:
            self._violate(f"twice that {place} was entered")
        if place in self.left:
            self._violate(f"that {place} was entered after it was left")
        self._entered.add(place)

    def _leave(self, place: str) -> None:
        if place in self.left:
            self._violate(f"twice that {place} was left")
        if place not in self._entered:
            self._violate(f"that {place} was left, and not that it was entered")
        self.left.append(place)
        self._has_landed(place)

    def _item(self, place: str) -> None:
        if place in self._done:
            self._violate(f"twice that item {place} is done")
        self._done.add(place)
        self._has_landed(place)

    def _has_landed(self, place: str) -> None:
        story = self._story
        if place in self._world.wanted(story).places and f"{story.id}/{place}" not in story.effects:
            self._violate(f"that {place} was left, and its effect has not landed")

    def end(self) -> None:
        """Did this attempt have events for everything that it has done?"""
        mine = self._mine
        assert mine is not None
        for place in sorted(mine.landed):
            if place.partition("/")[2] not in {*self.left, *self._done}:
                self._violate(f"nothing of {place}, which has landed")
        if self._emitted != mine.execs:
            self._violate(f"{dict(self._emitted)} of what was emitted, and that is {dict(mine.execs)}")


# ---------------------------------------------------------------- by its records
async def follow(world: World, machine: Machine, story: Story) -> None:
    """Follow a run by its records, for a while or to its end, and check the events."""
    began, told = world.scheduler.now, Told(world, story)
    world.attempts += 1
    mine = Attempt(world.attempts, story, machine, is_operator=True)
    ATTEMPT.set(mine)
    try:
        async with asyncio.timeout(world.random.choice((0.1, 3.0, 60.0))):
            async for event in pp.Runs(machine.store).follow(story.id):
                told.take(event)
                _judge(world, story, began, told, event)
    except TimeoutError:
        pass
    except (pp.UnknownRunError, pp.StoreError) as error:
        is_known = story.is_removed or story.was("", began) if isinstance(error, pp.UnknownRunError) else mine.faults
        if not is_known:
            world.violate(f"who followed {story.id} was told {type(error).__name__} without a reason: {error}")
    world.note(machine.name, f"followed {story.id} for {told.count} events, the last {told.last}")


def _judge(world: World, story: Story, began: float, told: Told, event: Any) -> None:
    """Is it true, and was all told that came before?"""
    path = [place for place in story.path if place]
    if told.left != path[: len(told.left)]:
        world.violate(f"who followed {story.id} was told the path {told.left}, and it is {path}")
    match event:
        case pp.Finished(output=output):
            story.results.append(output)
            if not story.was("finished", began) or told.left != path:
                world.violate(f"who followed {story.id} was told its end after {told.left}, and its path is {path}")
        case pp.StateChanged(state=state) if not story.was(state, began):
            world.violate(f"who followed {story.id} was told that it is {state}, and it was not")
        case pp.Suspended() if not story.was("suspended", began):
            world.violate(f"who followed {story.id} was told that it waits, and it does not")
        case _:
            pass
