"""The record of a durable run: its state, the process that executes it, its failure, the questions that it waits for."""

from __future__ import annotations

import ast
import asyncio
import itertools
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from typing_extensions import TypeAliasType

from pocket_plug import (
    Action,
    Answered,
    Ask,
    ConfigError,
    Graph,
    InputError,
    Memory,
    Next,
    Node,
    OtherRunError,
    OutcomeUnknownError,
    Retry,
    RunBusyError,
    RunCancelledError,
    RunFencedError,
    RunMismatchError,
    Runs,
    RunSuspendedError,
    RunTimeoutError,
    Sleep,
    Store,
    StoreWriter,
    each,
    node,
)
from pocket_plug.graph.durable import heartbeat, processes
from pocket_plug.graph.durable.processes import Held, Process, this_process
from pocket_plug.graph.durable.states import STATE, WAKE, State, StateKey, read_state
from pocket_plug.graph.durable.waits import waits_of
from pocket_plug.graph.kinds.ask import choices
from pocket_plug.store.backend import Put
from pocket_plug.testing.clock import FakeClock, run_virtual
from pocket_plug.testing.interrupts import Between


@asynccontextmanager
async def stored(folder: Path, clock: FakeClock | None = None) -> AsyncGenerator[Store]:
    async with Store(f"sqlite:///{folder}/state.db?durability=process", clock=clock or FakeClock()) as store:
        yield store


async def states(store: Store) -> list[tuple[StateKey, State]]:
    """All states, in the order of their keys."""
    keys = [key async for key in store.stack.scan(STATE)]
    entries = await store.stack.read_many(keys)
    return [(StateKey.parse(key), read_state(key, entries[key])) for key in keys]


async def state(store: Store) -> tuple[str, State]:
    ((key, found),) = await states(store)
    return key.status, found


def held_of(store: Store) -> list[Held]:
    """This process's executions in a store: an execution that an earlier test has dropped may still be there."""
    return [each for each in this_process().executions() if each.stack is store.stack]


async def cancel(store: Store) -> None:
    """Request the only run's cancellation in the store, for its execution."""
    (key,) = [key async for key in store.stack.scan(STATE)]
    entry = await store.stack.read(key)
    assert entry is not None
    await store.stack.write([Put(key, {**entry.value, "cancelled": True})], {key: entry.version})


@node
async def same(n: Any) -> Any:
    return n


# ---------------------------------------------------------------- states
def test_a_run_has_one_state_at_a_time(tmp_path: Path) -> None:
    """While it is executed, running with its owner; then finished; the key has graph, start and id."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            seen: list[Any] = []

            @node
            async def looks(n: int) -> int:
                seen.extend(await states(store))
                return n

            await Graph(looks >> looks.with_options(name="b"), store=store, name="a:b").run(1, run_id="x:y")
            for key, found in seen:
                assert (key.status, key.graph, key.run_id) == ("running", "a:b", "x:y")
                assert found.process == this_process().record
                assert (found.tries, found.lease) == (1, 30.0)
            assert len(seen) == 2
            ((key, found),) = await states(store)
            assert (key.status, found) == ("finished", State(1_000_000_000.0))
            assert not held_of(store)

    asyncio.run(main())


def test_a_failed_run_records_its_error(tmp_path: Path) -> None:
    """The exception's class, the node within its graphs, the visit, the item, the attempts; the same call resumes it."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            broken = True

            class Pay(Node[int, int], retry=Retry(attempts=3, delay=0.0), name="pay"):
                async def exec(self, prepared: int) -> int:
                    if broken and prepared == 2:
                        raise ValueError("no money")
                    return prepared

            graph = Graph(same >> each(Graph(same.with_options(name="look") >> Pay(), name="way")), store=store)
            with pytest.raises(ValueError, match="no money"):
                await graph.run([0, 1, 2], run_id="r")
            status, found = await state(store)
            failure = found.failure
            assert failure is not None
            assert status == "failed"
            assert (failure.type, failure.message) == ("ValueError", "no money")
            assert (failure.node, failure.visit, failure.item, failure.attempts) == ("each_way/pay", 1, 2, 3)
            broken = False
            assert await graph.run([0, 1, 2], run_id="r") == [0, 1, 2]
            assert (await state(store))[0] == "finished"

    asyncio.run(main())


def test_a_run_that_its_program_stops_can_be_resumed(tmp_path: Path) -> None:
    """A cancellation by the caller is no failure: nobody owns the run any more, and it can be resumed at once in the same
    process.
    """

    async def main() -> None:
        async with stored(tmp_path) as store:
            waits = asyncio.Event()

            @node
            async def long(n: int) -> int:
                if not waits.is_set():
                    waits.set()
                    await asyncio.Event().wait()
                return n

            graph = Graph(long, store=store)
            task = asyncio.create_task(graph.run(1, run_id="r"))
            await waits.wait()
            with pytest.raises(RunBusyError, match=r"run 'r' is running: process \d+ on .* takeover=True"):
                await graph.run(1, run_id="r")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            status, found = await state(store)
            assert (status, found.tries) == ("running", 1)
            assert await graph.run(1, run_id="r") == 1

    asyncio.run(main())


def test_executions_without_progress_are_counted(tmp_path: Path) -> None:
    """So a run that kills its process each time can be distinguished from one that makes progress."""

    class Death(BaseException):
        pass

    async def main() -> None:
        async with stored(tmp_path) as store:
            tries: list[int] = []

            @node
            async def dies(n: int) -> int:
                tries.append((await state(store))[1].tries)
                if len(tries) in (3, 6):
                    return n
                raise Death

            graph = Graph(dies >> dies.with_options(name="again"), store=store)
            for _ in range(4):
                with pytest.raises(Death):
                    await graph.run(1, run_id="r")
            assert tries == [1, 2, 3, 3, 1]

    asyncio.run(main())


# ---------------------------------------------------------------- cancel
@pytest.mark.parametrize("told", ["before a commit", "at work", "in an item"])
def test_a_cancelled_run_ends_and_its_hooks_are_called(tmp_path: Path, told: str) -> None:
    """At the next commit, or in exec at the next heartbeat; what was committed stays, and nothing continues it."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            called: list[str] = []
            heart = heartbeat.Heart()

            class Work(Node[int, int], name="work"):
                async def exec(self, prepared: int) -> int:
                    await cancel(store)
                    if told == "at work":
                        heart.look()  # there was a commit since its last round: the node may have just begun
                        await asyncio.Event().wait()
                    return prepared

                async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
                    await store.set("worked", True)
                    return n

                async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
                    called.append(type(error).__name__)
                    await store.set("told", True)

                async def on_complete(self, store: StoreWriter) -> None:
                    called.append("complete")

            @node.post
            async def first(store: StoreWriter, n: int) -> int:
                heart.look()
                await store.set("first", n)
                return n

            @node
            async def listed(n: int) -> list[int]:
                return [n]

            work: Any = listed >> each(Work(), errors="collect") if told == "in an item" else Work()
            graph = Graph(first >> work >> same, store=store)
            with pytest.raises(RunCancelledError, match="run 'r' was cancelled; what its nodes have written is kept"):
                await graph.run(1, run_id="r")
            task = asyncio.current_task()
            assert task is not None
            if told == "at work":
                assert not task.cancelling()
            assert (await state(store))[0] == "cancelled"
            assert called == ["CancelledError" if told == "at work" else "RunCancelledError", "complete"]
            assert [await store.get(key) for key in ("first", "worked", "told")] == [1, None, True]
            for again in (graph.run(1, run_id="r"), graph.resume("r", takeover=True)):
                with pytest.raises(RunCancelledError):
                    await again
            assert not held_of(store)

    asyncio.run(main())


def test_another_change_of_the_state_repeats_no_post(tmp_path: Path) -> None:
    """If the state was changed by something else than a cancellation, the commit is sent again unchanged, and nothing is done
    twice.
    """

    async def main() -> None:
        async with stored(tmp_path) as store:
            posts = 0

            @node.post
            async def put(view: StoreWriter, n: int) -> int:
                nonlocal posts
                posts += 1
                (key,) = [key async for key in store.stack.scan(STATE)]
                entry = await store.stack.read(key)
                assert entry is not None
                await store.stack.write([Put(key, entry.value)])
                await view.set("n", n)
                return n

            assert await Graph(put, store=store).run(1, run_id="r") == 1
            assert posts == 1

    asyncio.run(main())


# ---------------------------------------------------------------- owners and heartbeats
def test_a_process_sends_heartbeats_for_executions_without_progress(tmp_path: Path) -> None:
    """By a thread, so that a loop which is blocked for long doesn't lose its run."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            heart, blocked = heartbeat.Heart(), threading.Event()

            def look() -> None:
                heart.look()  # it sees the execution
                heart.look()  # which hasn't changed since
                blocked.set()

            @node
            async def blocks(n: int) -> int:
                threading.Thread(target=look).start()
                assert blocked.wait(20)
                return n

            await Graph(blocks, store=store).run(1, run_id="r")
            entry = await store.stack.read(heartbeat.BEAT + this_process().id)
            assert entry is not None
            assert len(entry.value["owners"]) == 1
            heart.look()
            after = await store.stack.read(heartbeat.BEAT + this_process().id)
            assert after == entry

    asyncio.run(main())


def test_a_process_that_has_ended_is_recognized() -> None:
    """By its pid and its start time, on this machine, in this namespace; about others nothing is known."""
    script = "from pocket_plug.graph.durable.processes import Process, this_process as p; print(dict(p().record))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    ended: dict[str, Any] = ast.literal_eval(out)
    here, another = this_process(), Process()
    assert here.knows_ended("x", ended)
    assert not here.knows_ended("x", {**ended, "machine": "another"})
    assert not here.knows_ended("x", {**ended, "machine": ""})
    assert not here.knows_ended("x", another.record)  # with the same pid and start time: it is alive
    assert here.knows_ended("x", here.record)  # its lock would be held
    assert here.knows_ended("x", {**another.record, "began": "1"})  # the pid was reused
    assert here.knows_ended("x", {**ended, "began": ""})  # a system without start times: by the pid alone
    assert not here.knows_ended("x", {**another.record, "began": ""})


def test_a_process_that_cannot_be_looked_up_may_be_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/proc` hides other users' processes (hidepid), or too many files are open. Workers would take runs from each other."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here, began = this_process(), processes._began(process.pid) or ""
    theirs = {**here.record, "id": "x", "pid": process.pid, "began": began}
    assert not here.knows_ended("x", theirs)
    with monkeypatch.context() as hidden:
        hidden.setattr(processes, "_PROC", tmp_path)
        assert not here.knows_ended("x", theirs)
    process.communicate(b"\n")
    assert here.knows_ended("x", theirs)
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert here.knows_ended("x", theirs)


def test_a_process_that_waits_to_be_collected_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs = {**this_process().record, "id": "x", "pid": process.pid, "began": processes._began(process.pid) or ""}
    assert process.stdin is not None
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert this_process().knows_ended("x", theirs) == bool(theirs["began"])
    process.wait()


@pytest.mark.parametrize("shown", ["nothing", "all but the boot's id"])
def test_a_container_that_cannot_tell_its_namespace_is_like_no_other(
    shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one of its name has other processes with the same numbers, and its runs would be taken over."""
    if shown != "nothing":
        (tmp_path / "self").symlink_to(str(os.getpid()))
        (tmp_path / str(os.getpid()) / "ns").mkdir(parents=True)
        (tmp_path / "self/ns/pid").symlink_to("pid:[4026531836]")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert Process().record["machine"] == ""


@pytest.mark.parametrize("moment", ["while it pauses", "while it decides how long to pause"])
def test_a_run_with_a_short_lease_makes_the_heartbeat_faster_at_once(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pauses for a third of the shortest lease. Without a heartbeat in time, another process would take the run over."""
    heart, looked = heartbeat.Heart(), threading.Event()
    long, short = SimpleNamespace(lease=3000.0), SimpleNamespace(lease=30.0)

    class Here:
        def __init__(self) -> None:
            self.held = [long]

        def begin_short(self) -> None:
            self.held.append(short)
            heart.keep_beating(short.lease)

        def executions(self) -> list[SimpleNamespace]:
            found = [*self.held]
            if moment == "while it decides how long to pause" and found == [long]:
                self.begin_short()
            return found

    def look() -> None:
        here.held.clear()  # which ends the thread
        looked.set()

    here = Here()
    monkeypatch.setattr(heartbeat, "this_process", lambda: here)
    monkeypatch.setattr(heart, "look", look)
    heart.keep_beating(long.lease)
    if moment == "while it pauses":
        while heart._pause != 1000:
            assert heart._thread is not None
            time.sleep(0)
        here.begin_short()
    assert looked.wait(20)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_a_heartbeat_that_could_not_be_started_is_started_by_the_next_run(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The machine may have no room for a thread just then. Without a heartbeat the process's runs would be taken over."""
    monkeypatch.setattr(heartbeat, "this_process", lambda: SimpleNamespace(held=[], executions=list))
    heart, started = heartbeat.Heart(), list[threading.Thread]()

    def fail(thread: threading.Thread) -> None:
        raise error

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(type(error)):
        heart.keep_beating(30.0)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
    heart.keep_beating(30.0)
    assert [thread.name for thread in started] == ["pocket_plug heartbeat"]


def test_a_heartbeat_whose_start_is_interrupted_when_it_runs_leaves_the_beating_to_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process has one heartbeat."""
    beating: list[threading.Thread] = []

    def executions() -> list[Any]:
        beating.append(threading.current_thread())
        return []

    monkeypatch.setattr(heartbeat, "this_process", lambda: SimpleNamespace(held=[], executions=executions))
    heart, started, start = heartbeat.Heart(), list[threading.Thread](), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        heart.keep_beating(30.0)
    started[0].join()
    assert beating == []


def test_a_run_that_begins_in_the_middle_of_the_heartbeats_start_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal's handler may begin a durable run in the thread that is just starting the heartbeat for another one."""
    monkeypatch.setattr(heartbeat, "this_process", lambda: SimpleNamespace(held=[], executions=list))

    def sweep() -> None:
        for place in itertools.count(1):
            heart = heartbeat.Heart()
            with Between(place, lambda heart=heart: heart.keep_beating(30.0)) as between:
                heart.keep_beating(30.0)
            if not between.where:
                break

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a deadlock"


# ---------------------------------------------------------------- questions
class Colour(Enum):
    RED = "red"
    BLUE = "blue"


def test_the_choices_of_a_question_are_recorded() -> None:
    """Of types that have a few values."""
    assert choices(bool) == [True, False]
    assert choices(Literal["a", 1]) == ["a", 1]
    assert choices(Colour) == ["red", "blue"]
    assert choices(TypeAliasType("Verdict", Literal["yes", "no"])) == ["yes", "no"]
    assert choices(str) is None


def test_items_ask_and_are_answered_in_any_order(tmp_path: Path) -> None:
    """Items that don't wait are completed meanwhile; each question has an id; each item continues once."""

    async def main() -> None:
        done: list[str] = []

        @node
        async def before(n: int) -> int:
            done.append(f"before {n}")
            return n

        @node.post
        async def after(store: StoreWriter, answered: Answered[int, str]) -> str:
            await store.update("answered", lambda old: old + 1, default=0)
            done.append(f"after {answered.input}")
            return answered.answer

        ask = Ask[int, str](str, question=lambda n: f"{n}?", name="ask")
        way = Graph(before >> ask >> after, name="way")
        async with stored(tmp_path) as store:
            graph = Graph(each(way, concurrency=2) >> same, store=store)
            with pytest.raises(RunSuspendedError) as waiting:
                await graph.run([0, 1, 2], run_id="r")
            ids = [f"each_way#1[{n}]/ask#1" for n in range(3)]
            assert waiting.value.questions == {ids[0]: "0?", ids[1]: "1?", ids[2]: "2?"}
            assert (await state(store))[1].questions == 3
            for position in (2, 0):
                with pytest.raises(RunSuspendedError) as waiting:
                    await graph.resume("r", answer=f"a{position}", question=ids[position])
            assert list(waiting.value.questions) == [ids[1]]
            with pytest.raises(InputError, match=r"'ask' .* asks for str, not int"):
                await graph.resume("r", answer=1, question=ids[1])
            with pytest.raises(RunMismatchError, match="was already answered"):
                await graph.resume("r", answer="other", question=ids[0])
            assert await graph.resume("r", answer="a1", question=ids[1]) == ["a0", "a1", "a2"]
            assert await store.get("answered") == 3
            assert sorted(done) == [*(f"after {n}" for n in range(3)), *(f"before {n}" for n in range(3))]

    asyncio.run(main())


def test_a_question_of_an_item_that_is_an_ask_can_be_answered_by_the_asks_name(tmp_path: Path) -> None:
    """As if the Ask was in a graph; if several are open, the error says that the node alone isn't unique."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            ask = Ask[int, bool](bool, question="Really?")
            graph = Graph(each(ask), store=store)
            with pytest.raises(RunSuspendedError):
                await graph.run([1, 2], run_id="r")
            with pytest.raises(
                RunMismatchError, match="node 'ask' has asked several questions; give the question's id"
            ):
                await graph.resume("r", answer=True, question=ask)
            with pytest.raises(RunSuspendedError):
                await graph.resume("r", answer=True, question="each_ask#1[0]")
            assert await graph.resume("r", answer=False, question=ask) == [Answered(1, True), Answered(2, False)]

    asyncio.run(main())


def test_an_answer_while_other_items_run_is_accepted(tmp_path: Path) -> None:
    """The run is not suspended then: the item continues in the same execution."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            ask = Ask[int, int](int, question="How many?", name="ask")

            @node
            async def answers(n: int) -> int:
                """An item beside the one that asks: meanwhile an operator answers."""
                part = "pocket:run-part:r:"
                while not (waits := await waits_of(store.stack, part)):
                    await asyncio.sleep(0)
                ((place, found),) = waits.items()
                from dataclasses import asdict

                from pocket_plug.codec import default_codec

                settled = {**asdict(found.wait), "answer": default_codec.encode(7), "settled": 1.0}
                key = f"{part}wait:{place}"
                await store.stack.write([Put(key, settled)], {key: found.version})
                return 0

            class Choose(Node[int, int], name="choose"):
                async def exec(self, prepared: int) -> int:
                    return prepared

                async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> Any:
                    return Next("ask", n) if n else n

            chosen = Choose()
            way = Graph(chosen >> answers, chosen.on("ask") >> ask, name="way")
            results = await Graph(each(way, concurrency=2), store=store).run([1, 0], run_id="r")
            assert results == [Answered(1, 7), 0]

    asyncio.run(main())


@pytest.mark.parametrize("way", ["default", "action"])
def test_a_question_has_a_timeout(tmp_path: Path, way: str) -> None:
    """When its time is over the run continues, with the default or by the action; before that it waits; a
    late answer is refused.
    """

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            late = same.with_options(name="late")
            if way == "default":
                ask = Ask[int, bool](bool, question="Really?", timeout="1h", default=False)
                graph = Graph(ask, store=store)
            else:
                ask = Ask[int, bool](bool, question="Really?", timeout="1h", action="too_late")
                graph = Graph(ask >> same, ask.on("too_late") >> late, store=store)
            with pytest.raises(RunSuspendedError) as waiting:
                await graph.run(5, run_id="r")
            assert waiting.value.wake_at == clock() + 3600
            assert len([key async for key in store.stack.scan(WAKE)]) == 1
            clock.advance(3599)
            with pytest.raises(RunSuspendedError):
                await graph.resume("r")
            clock.advance(1)
            assert await graph.resume("r") == (Answered(5, False) if way == "default" else 5)
            with pytest.raises(RunMismatchError, match="question 'ask#1' was not answered in time"):
                await graph.resume("r", answer=True)
            assert [key async for key in store.stack.scan(WAKE)] == []

    asyncio.run(main())


def test_each_run_has_its_own_default(tmp_path: Path) -> None:
    """If a node changes the default answer in place, no other run is affected."""
    ask = Ask[int, list[int]](list[int], question="Which?", timeout="1h", default=[])

    class Adds(Node[Answered[int, list[int]], list[int]]):
        async def exec(self, asked: Answered[int, list[int]]) -> list[int]:
            asked.answer.append(asked.input)
            return asked.answer

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            graph = Graph(ask >> Adds(), store=store)
            for n in (1, 2):
                with pytest.raises(RunSuspendedError):
                    await graph.run(n, run_id=f"r-{n}")
            clock.advance(3600)
            assert [await graph.resume(f"r-{n}") for n in (1, 2)] == [[1], [2]]

    asyncio.run(main())


def test_an_invalid_ask_is_refused() -> None:
    """A timeout without an outcome, an outcome without a timeout, both outcomes, a default of another type."""
    for options in (
        {"timeout": "1h"},
        {"default": True},
        {"action": "late"},
        {"timeout": "1h", "default": True, "action": "late"},
        {"timeout": "1h", "default": 1},
    ):
        with pytest.raises(ConfigError, match="Ask:"):
            Ask[Any, bool](bool, question="Really?", **options)


# ---------------------------------------------------------------- sleep
def test_a_durable_run_sleeps_in_no_process(tmp_path: Path) -> None:
    """It is suspended until its time has come, nodes around the sleep are executed once, and a resume that is too early says
    until when.
    """

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            done: list[str] = []

            @node
            async def note(n: int) -> int:
                done.append(f"n{n}")
                return n + 1

            nap = Graph(Sleep[int]("1h") >> note.with_options(name="later"), name="nap")
            graph = Graph(note >> nap >> Sleep[int](until=lambda n: clock.start + 7200), store=store)
            with pytest.raises(
                RunSuspendedError, match=r"sleeps until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00; a worker"
            ) as waiting:
                await graph.run(1, run_id="r")
            assert (waiting.value.questions, waiting.value.wake_at) == ({}, clock() + 3600)
            status, found = await state(store)
            assert (status, found.wake_at, found.questions) == ("suspended", clock() + 3600, 0)
            with pytest.raises(RunSuspendedError):
                await graph.run(1, run_id="r")
            clock.advance(3600)
            with pytest.raises(RunSuspendedError) as waiting:
                await graph.run(1, run_id="r")
            assert waiting.value.wake_at == clock.start + 7200
            clock.advance(3600)
            assert await graph.run(1, run_id="r") == 3
            assert done == ["n1", "n2"]

    asyncio.run(main())


def test_items_sleep_side_by_side(tmp_path: Path) -> None:
    """The run wakes for the first of them, and each continues when its own time has come."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            start = clock()
            graph = Graph(each(Sleep[int](until=lambda n: start + n)), store=store)
            for due in (10, 20):
                with pytest.raises(RunSuspendedError) as waiting:
                    await graph.run([20, 10, 0], run_id="r")
                assert waiting.value.wake_at == start + due
                clock.advance(10)
            assert await graph.run([20, 10, 0], run_id="r") == [20, 10, 0]

    asyncio.run(main())


def test_an_invalid_sleep_is_refused() -> None:
    """Neither a duration nor a time, both, a time without a time zone, one that never comes."""
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    Sleep[Any](until=moment)
    for until in (datetime(2030, 1, 1), math.nan, math.inf):
        with pytest.raises(ConfigError, match="Sleep: until can't be"):
            Sleep[Any](until=until)
        with pytest.raises(ConfigError, match="Sleep: until can't be"):
            Graph(Sleep[Any](until=lambda _, until=until: until)).run_sync(1)
    for arguments, options in (((), {}), (("1h",), {"until": moment})):
        with pytest.raises(ConfigError, match="Sleep:"):
            Sleep[Any](*arguments, **options)
    for duration in (-1, "soon", None):
        with pytest.raises(ConfigError, match="Sleep: the duration can't be"):
            Graph(Sleep[Any](lambda _, duration=duration: duration)).run_sync(1)


def test_a_duration_given_as_a_moment_is_refused() -> None:
    """It would be over since 1970, so nothing would wait: a loop that polls would do so at once, again and again."""
    for until in (60, 86_400.0):
        with pytest.raises(ConfigError) as error:
            Sleep[Any](until=until)
        assert str(error.value) == (
            f"Sleep: until can't be {until!r}: as epoch seconds that is before 1973. To wait for some seconds, give a duration: "
            "Sleep(60), or Sleep(lambda input: 60)"
        )
        with pytest.raises(ConfigError, match=f"Sleep: until can't be {until!r}: as epoch"):
            Graph(Sleep[Any](until=lambda _, until=until: until)).run_sync(1)
    assert Graph(Sleep[Any](until=lambda _: 0)).run_sync(1) == 1  # no wait, in both senses


def test_a_sleep_may_compute_its_duration_from_its_input(tmp_path: Path) -> None:
    """By the clock of the store, not of the system: polling that backs off, and a test that lets the time pass."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            polls: list[float] = []

            class Poll(Node[int, int]):
                again = Action[int]()

                async def post(self, store: StoreWriter, tries: int, prepared: int, result: int) -> int | Next[int]:
                    polls.append(clock.elapsed)
                    return tries if tries == 3 else self.again(tries + 1)

            poll = Poll()
            graph = Graph(
                poll, poll.again >> Sleep[int](lambda tries: timedelta(minutes=2**tries)) >> poll, store=store
            )
            for wait in (120, 240, 480):
                with pytest.raises(RunSuspendedError) as waiting:
                    await graph.run(0, run_id="r")
                assert waiting.value.wake_at == clock() + wait
                clock.advance(wait)
            assert await graph.run(0, run_id="r") == 3
            assert polls == [0, 120, 360, 840]
            assert await Graph(Sleep[int](lambda n: 0), store=store).run(1, run_id="no wait") == 1

    asyncio.run(main())


# ---------------------------------------------------------------- who is at work
def test_executions_are_read_while_others_begin_and_end() -> None:
    """The heartbeat's thread reads them at any time: changes by other threads must not end it."""

    class Execution:
        pass

    process, is_over = Process(), threading.Event()
    held: dict[str, Any] = process.held  # type: ignore[assignment]  # what is held is of no account here
    lasting = [Execution() for _ in range(50)]
    held.update((str(number), each) for number, each in enumerate(lasting))

    def begin_and_end() -> None:
        while not is_over.is_set():
            brief = Execution()
            held["brief"] = brief
            held.pop("brief")

    interval = sys.getswitchinterval()
    beside = threading.Thread(target=begin_and_end)
    try:
        sys.setswitchinterval(1e-6)
        beside.start()
        for _ in range(3_000):
            assert len(process.executions()) - len(lasting) in (0, 1)
    finally:
        is_over.set()
        beside.join()
        sys.setswitchinterval(interval)


# ---------------------------------------------------------------- exceptions of another run
OF_ANOTHER_RUN = [
    RunSuspendedError("child", {"ask#1": "Really?"}),
    RunCancelledError("child was cancelled"),
    RunFencedError("child was taken over"),
    OutcomeUnknownError("nobody knows of child"),
]


class Begins(Node[int, int], name="begins"):
    """A node that executes another run, and raises its exception."""

    def __init__(self, error: Exception) -> None:
        self.error, self.hooks = error, list[str]()

    async def exec(self, n: int) -> int:
        raise self.error

    async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
        self.hooks.append(type(error).__name__)


@pytest.mark.parametrize("error", OF_ANOTHER_RUN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("how", ["node", "raise", "collect"])
def test_an_exception_of_another_run_fails_the_node(tmp_path: Path, error: Exception, how: Any) -> None:
    """The run doesn't wait with that other run, nor was it cancelled or overtaken: its node has failed, and that is recorded."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            begins = Begins(error)
            graph: Any = Graph(begins if how == "node" else each(begins, errors=how), store=store)
            value = 1 if how == "node" else [1, 2]
            if how == "collect":
                found = await graph.run(value, run_id="r")
                assert [each.type for each in found] == 2 * ["pocket_plug.errors.OtherRunError"]
                return
            with pytest.raises(OtherRunError, match=f"Begins.exec has ended with {type(error).__name__}") as raised:
                await graph.run(value, run_id="r")
            assert raised.value.__cause__ is error
            assert set(begins.hooks) == {"OtherRunError"}
            info = await Runs(store).get("r")
            assert info.state == "failed"
            assert info.failure is not None
            assert info.failure.type == "pocket_plug.errors.OtherRunError"

    asyncio.run(main())


@pytest.mark.parametrize("errors", ["raise", "collect"])
def test_in_a_run_that_is_not_durable_it_is_an_ordinary_error(errors: Any) -> None:
    """The caller gets it, and may answer the other run; items of a fan-out don't wait."""
    begins = Begins(OF_ANOTHER_RUN[0])
    graph = Graph(each(begins, errors=errors))
    if errors == "collect":
        assert graph.run_sync([1]) == [begins.error]
    else:
        with pytest.raises(RunSuspendedError, match="child"):
            graph.run_sync([1])
    assert begins.hooks == ["RunSuspendedError"]


# ---------------------------------------------------------------- a store's clock
def test_a_clock_may_return_whole_seconds_only(tmp_path: Path) -> None:
    """Its values are times like any others: its runs can be read and resumed."""

    async def main() -> None:
        async with Store(f"sqlite:///{tmp_path}/state.db", clock=lambda: 1_000_000_000) as store:
            graph = Graph(Ask[int, bool](bool, question="Really?"), store=store)
            with pytest.raises(RunSuspendedError):
                await graph.run(5, run_id="r")
            assert (await Runs(store).get("r")).started == 1_000_000_000
            assert await graph.resume("r", answer=True) == Answered(5, True)
            assert await graph.run(5, run_id="r") == Answered(5, True)


@pytest.mark.parametrize("never", [float("nan"), float("inf")])
def test_a_time_that_never_comes_is_refused(tmp_path: Path, never: float) -> None:
    """Given directly, or computed from the input: the run fails, rather than wait without end."""
    with pytest.raises(ConfigError, match=r"Sleep: until can't be (nan|inf)"):
        Sleep[Any](until=never)

    async def main() -> None:
        async with stored(tmp_path, FakeClock()) as store:
            with pytest.raises(ConfigError, match=r"Sleep: until can't be (nan|inf)"):
                await Graph(Sleep[float](until=lambda moment: moment), store=store).run(never, run_id="r")

    asyncio.run(main())


# ---------------------------------------------------------------- a whole run's time
@pytest.mark.parametrize("is_durable", [True, False])
def test_a_whole_run_has_a_timeout(is_durable: bool) -> None:
    """The running node is cancelled, its hooks are called, and the run has failed."""
    called: list[str] = []

    class Lasting(Memory):
        survives = is_durable

    class Long(Node[int, int], name="long"):
        async def exec(self, prepared: int) -> int:
            await asyncio.sleep(100)
            return prepared

        async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
            called.append(type(error).__name__)

    async def main() -> None:
        async with Store(Lasting()) as store:
            graph = Graph(Sleep[int]("1s") >> Long(), store=store, timeout=50)
            if is_durable:
                graph = Graph(same >> Long(), store=store, timeout=50)
            with pytest.raises(RunTimeoutError, match=r"took longer than 50 seconds"):
                await graph.run(1, run_id="r" if is_durable else None)
            assert called == ["CancelledError"]
            if is_durable:
                status, found = await state(store)
                assert (status, found.failure and found.failure.type) == (
                    "failed",
                    "pocket_plug.errors.RunTimeoutError",
                )

    run_virtual(main())


def test_waits_count_for_the_timeout_of_a_durable_run(tmp_path: Path) -> None:
    """The run wakes when its time is over, and fails: an answer comes too late."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock) as store:
            graph = Graph(Ask[int, bool](bool, question="Really?"), store=store, timeout="1h")
            with pytest.raises(RunSuspendedError) as waiting:
                await graph.run(1, run_id="r")
            assert waiting.value.wake_at == clock() + 3600
            clock.advance(3600)
            with pytest.raises(RunTimeoutError):
                await graph.resume("r", answer=True)
            assert (await state(store))[0] == "failed"

    asyncio.run(main())


def test_a_sync_run_has_a_timeout() -> None:
    """With `def` phases that never wait: the run yields to its loop now and then, and ends there."""

    @node
    def again(n: int) -> Any:
        return Next("again", n)

    graph = Graph(again, again.on("again") >> again, timeout=0.02, max_steps=10**9)
    with pytest.raises(RunTimeoutError):
        graph.run_sync(1)
