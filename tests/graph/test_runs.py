"""`Runs`: the durable runs of a store, and the operations on them; the common contract over SQLite, and details."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import (
    Answered,
    Ask,
    ConfigError,
    CorruptRecordError,
    Graph,
    InputError,
    Node,
    OutcomeUnknownError,
    RunCancelledError,
    RunInfo,
    RunMismatchError,
    Runs,
    RunState,
    RunStateError,
    RunSuspendedError,
    Store,
    StoreError,
    SyncRuns,
    SyncStore,
    UnknownRunError,
    each,
    node,
)
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.graph.durable import indexing
from pocket_plug.graph.durable.heartbeat import Heart
from pocket_plug.graph.durable.processes import this_process
from pocket_plug.graph.durable.records import RUN
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.durable.states import LEASE, STATE
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Delete, Entry, Put
from pocket_plug.store.layer import parts
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.runs_contract import RunsContract


class TestSQLite(RunsContract):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> Callable[[], Backend]:
        return lambda: SQLite(tmp_path / "state.db", durability="process")


@asynccontextmanager
async def stored(folder: Path, kind: type[SQLite] = SQLite) -> AsyncGenerator[Store]:
    async with Store(kind(folder / "state.db", durability="process"), clock=FakeClock()) as store:
        yield store


class Faulty(SQLite):
    """Fails the next write, and the reads that follow, as it is told."""

    fault = ""
    reads = True

    async def read(self, key: str) -> Entry | None:
        if not self.reads:
            raise StoreError("the server is gone")
        return await super().read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        fault, self.fault = self.fault if changes else "", "" if changes else self.fault
        if fault:
            self.reads = "look" not in fault
        if "refuse" in fault:
            raise StoreError("the server is gone")
        version = await super().write(changes, expect)
        if fault:
            raise StoreError("the answer is lost")
        return version


class Counting(SQLite):
    """Counts the operations."""

    scans = keys = reads = 0

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        self.reads += 1
        return await super().read_many(keys)

    async def read(self, key: str) -> Entry | None:
        self.reads += 1
        return await super().read(key)

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        self.scans += 1
        async for key in super().scan(prefix, after=after, reverse=reverse, limit=limit):
            self.keys += 1
            yield key


@node
async def same(word: str) -> str:
    return word


@node
async def fails(word: str) -> str:
    raise RuntimeError("closed")


@node
async def dies(word: str) -> str:
    raise KeyboardInterrupt


async def dies_of(answered: Answered[str, bool]) -> str:
    raise KeyboardInterrupt


ask = Ask[str, bool](bool, question=lambda word: f"{word}?", name="ask")


@node
async def told(answered: Answered[str, bool]) -> str:
    return f"{answered.input} {answered.answer}"


async def begun(store: Store, kind: Any, run_id: str, name: str = "g") -> None:
    """A run that has got as far as it can."""
    with suppress(RuntimeError, RunSuspendedError, KeyboardInterrupt):
        graph: Graph[Any, Any] = Graph(kind, store=store, name=name)
        await graph.run("word", run_id=run_id)


async def ids(runs: Runs, **wanted: Any) -> list[str]:
    return [each.run_id for each in (await runs.list(**wanted)).runs]


async def keep_alive(store: Store, run_id: str) -> None:
    """Make it the run of a process on another computer, of which nothing is known here."""
    (key,) = [key async for key in store.stack.scan(f"{STATE}running:") if key.endswith(f":{run_id}")]
    entry = await store.stack.read(key)
    assert entry is not None
    process = {**entry.value["process"], "id": "another", "machine": "another", "host": "far", "pid": 7}
    await store.stack.write([Put(key, {**entry.value, "process": process})])


# ---------------------------------------------------------------- looking
@pytest.mark.parametrize("number", [0, 2, 3, 4])
def test_the_last_page_says_that_it_is_the_last(tmp_path: Path, number: int) -> None:
    """Also if it is full: whoever asks for the next one would get an empty page."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            for at in range(number):
                await begun(store, (same, fails)[at % 2], f"r{at}")
            page = await Runs(store).list(limit=2)
            assert (page.after is None) == (number <= 2)
            if page.after is not None:
                rest = await Runs(store).list(limit=2, after=page.after)
                assert (len(rest.runs), rest.after) == (number - 2, None)

    asyncio.run(main())


def test_a_page_costs_what_the_first_page_costs(tmp_path: Path) -> None:
    """However many runs there are, and however many pages were read: keys and reads are counted."""

    async def main() -> None:
        async with stored(tmp_path, Counting) as store:
            counting: Any = parts(store.stack)[-1]
            clock: Any = store.stack.clock
            costs: list[set[tuple[int, int]]] = []
            runs = Runs(store)
            for number in range(120):
                clock.advance(1)
                await begun(store, (same, fails)[number % 2], f"{number:03}", "ab"[number // 2 % 2])
                if number in (59, 119):
                    await runs.list(limit=1)
                    page, paid = None, set[tuple[int, int]]()
                    while page is None or page.after:
                        before = counting.keys, counting.reads
                        page = await runs.list(limit=10, after=page.after if page else None)
                        paid.add((counting.keys - before[0], counting.reads - before[1]))
                    costs.append(paid)
            assert max(costs[1]) <= max(costs[0])
            assert max(keys for keys, _ in costs[1]) < 50, "four ranges, and ten runs"

    asyncio.run(main())


class Moving(SQLite):
    """Does something right before the runs of a state are read, the first time or a later one."""

    state = ""
    times = 1
    before: Callable[[], Awaitable[object]]

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        if self.state and reverse and prefix.startswith(f"{STATE}{self.state}:"):
            self.times -= 1
            if not self.times:
                self.state, self.times = "", 1
                await self.before()
        async for key in super().scan(prefix, after=after, reverse=reverse, limit=limit):
            yield key


def test_a_run_that_moves_while_it_is_listed_is_listed_once(tmp_path: Path) -> None:
    """With its new state, whether its former state or its new one is read first."""

    async def main() -> None:
        async with stored(tmp_path, Moving) as store:
            moving: Any = parts(store.stack)[-1]
            graph: Graph[Any, Any] = Graph(ask >> told, store=store, name="g")
            runs = Runs(store)
            for run_id in ("first", "a", "b", "c"):
                await begun(store, ask >> told, run_id)
            await graph.resume("first", answer=True)
            moving.before = lambda: graph.resume("a", answer=True)
            moving.state = "finished"  # after it was seen among the suspended runs
            assert sorted((each.run_id, each.state) for each in (await runs.list()).runs) == [
                *(("a", "finished"), ("b", "suspended"), ("c", "suspended"), ("first", "finished")),
            ]
            assert len(await ids(runs)) == 4
            moving.before = lambda: runs.cancel("b")
            moving.state = "finished"
            assert sorted(await ids(runs, state=("suspended", "finished"))) == ["a", "c", "first"]
            moving.before = lambda: runs.cancel("c")
            moving.state = "finished"
            page = await runs.list()
            assert sorted(each.run_id for each in page.runs) == ["a", "b", "c", "first"]

    asyncio.run(main())


def test_a_run_that_moves_back_while_it_is_listed_is_listed(tmp_path: Path) -> None:
    """A list of all that can still go on must not be empty, only because a suspended run resumes or a failed one is retried."""

    async def main() -> None:
        async with stored(tmp_path, Moving) as store:
            moving: Any = parts(store.stack)[-1]
            runs = Runs(store)
            await begun(store, ask >> node(dies_of), "resumed")
            graph: Graph[Any, Any] = Graph(ask >> node(dies_of), store=store, name="g")

            async def resume() -> None:
                with suppress(KeyboardInterrupt):
                    await graph.resume("resumed", answer=True)

            moving.state, moving.before = "suspended", resume
            assert await ids(runs, state=("pending", "running", "stalled", "suspended")) == ["resumed"]
            await begun(store, fails, "retried", "h")
            moving.state, moving.before = "failed", lambda: runs.retry("retried")
            assert await ids(runs, state=("pending", "failed")) == ["retried"]

    asyncio.run(main())


@pytest.mark.parametrize("times", [1, 2], ids=["first of its state", "after others"])
def test_a_run_that_moves_on_while_many_are_listed_is_listed(tmp_path: Path, times: int) -> None:
    """Also the oldest one, and the first run of its graph in the new state."""

    async def main() -> None:
        async with stored(tmp_path, Moving) as store:
            moving: Any = parts(store.stack)[-1]
            runs = Runs(store)
            expected = [f"{number}" for number in range(9)]
            for run_id in expected:
                await begun(store, ask >> told, run_id)
            if times == 2:
                await runs.cancel("8")
            moving.state, moving.times, moving.before = "suspended", times, lambda: runs.cancel("0")
            assert sorted(await ids(runs, state=("suspended", "cancelled"), limit=10)) == expected

    asyncio.run(main())


def test_names_that_look_like_keys(tmp_path: Path) -> None:
    """Graphs and ids with the separators of keys are listed unchanged, each graph separately."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            graphs = ["a", "a:", "a;", "a%3A", "a:b", "b", "ä"]
            for graph in graphs:
                await begun(store, same, f"run:{graph}", graph)
            runs = Runs(store)
            assert sorted(await ids(runs)) == sorted(f"run:{graph}" for graph in graphs)
            for graph in graphs:
                (info,) = (await runs.list(graph=graph)).runs
                assert (info.graph, info.run_id) == (graph, f"run:{graph}")

    asyncio.run(main())


def test_invalid_arguments_are_refused(tmp_path: Path) -> None:
    """An unknown state, an empty page, a cursor that no page has returned; anything but a store."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            runs = Runs(store)
            wrong: Any = "runing"
            with pytest.raises(
                ConfigError, match=r"'runing' is not a state of a run; give one of: .* Did you mean 'running'"
            ):
                await runs.list(state=wrong)
            with pytest.raises(ConfigError, match="limit=0"):
                await runs.list(limit=0)
            with pytest.raises(ConfigError, match="after='17' is not a position in a list"):
                await runs.list(after="17")
            with pytest.raises(UnknownRunError, match="there is no run 'none' in SQLite"):
                await runs.get("none")

    asyncio.run(main())


def test_unreadable_runs_hide_no_other(tmp_path: Path) -> None:
    """Damaged ones and those of a newer version are listed as unreadable; reading one says why."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            for run_id in ("good", "damaged", "newer"):
                await begun(store, same, run_id)
            await store.stack.write([Put(f"{RUN}newer", {"format": 9}), Put(f"{RUN}damaged", {"format": 2})])
            await store.stack.write([Put(f"{RUN}foreign", [1])])
            runs = Runs(store)
            assert {each.run_id: each.state for each in (await runs.list()).runs} == {
                "good": "finished",
                "damaged": "unreadable",
                "newer": "unreadable",
                "foreign": "unreadable",
            }
            assert sorted(await ids(runs, state="unreadable", limit=2)) == ["damaged", "newer"]
            with pytest.raises(StoreError, match="written by a newer pocket_plug"):
                await runs.get("newer")
            with pytest.raises(CorruptRecordError, match="damaged' is not a record of a durable run"):
                await runs.cancel("damaged")
            assert await runs.remove("newer")
            assert await runs.remove("foreign")
            assert sorted(await ids(runs)) == ["damaged", "good"]

    asyncio.run(main())


# ---------------------------------------------------------------- runs of older versions
async def make_old(store: Store, run_id: str, status: str, **fields: Any) -> None:
    """Change the run to the format of a version that had no states."""
    entry = await store.stack.read(RUN + run_id)
    assert entry is not None
    old = {
        **entry.value,
        "format": 1,
        "status": status,
        "question": None,
        "answer": None,
        "is_answered": False,
        **fields,
    }
    keys = [key async for key in store.stack.scan(STATE) if key.endswith(f":{run_id}")]
    keys += [key async for key in store.stack.scan(f"pocket:run-part:{run_id}:wait:")]
    await store.stack.write([Put(RUN + run_id, old), *(Delete(key) for key in keys)])


def test_runs_of_older_versions_are_found_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed with the others once the store was scanned, which happens once; their questions can be answered."""

    async def main() -> None:
        from pocket_plug.codec import default_codec

        monkeypatch.setattr(indexing, "BATCH", 2)
        async with stored(tmp_path) as store:
            for number in range(5):
                await begun(store, same, f"done{number}")
                await make_old(store, f"done{number}", "finished")
            await begun(store, dies, "at-work")
            await make_old(store, "at-work", "running")
            question = default_codec.encode("word?")
            for run_id in ("asks", "asks-too"):
                await begun(store, ask >> told, run_id, "asking")
                await make_old(store, run_id, "suspended", question=question)
            runs = Runs(store)
            assert len(await ids(runs)) == 8
            assert await ids(runs, state="suspended") == ["asks-too", "asks"]
            assert await ids(runs, state="running") == ["at-work"], "who knows whether it still is"
            (asked,) = await runs.questions("asks")
            assert (asked.id, asked.question.load()) == ("ask#1", "word?")
            with pytest.raises(InputError, match="give graph="):
                await runs.answer("asks", True)
            graph = Graph(ask >> told, store=store, name="asking")
            assert (await runs.answer("asks", True, graph=graph)).state == "pending"
            assert await graph.resume("asks") == "word True"
            assert (await runs.cancel("asks-too")).state == "cancelled"
            assert (await runs.history("asks-too")).questions[0].id == "ask#1"
            assert (await runs.cancel("at-work")).state == "cancelled"
            assert await store.stack.read(indexing.INDEXED) is not None, "so that nobody looks again"

    asyncio.run(main())


def test_changes_of_an_older_version_beside_this_one_are_found(tmp_path: Path) -> None:
    """A run that the older version has finished or removed is listed correctly; its key is corrected."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            for run_id in ("ended", "removed"):
                await begun(store, ask >> told, run_id)
            runs = Runs(store)
            assert len(await ids(runs)) == 2
            entry = await store.stack.read(f"{RUN}ended")
            assert entry is not None
            await store.stack.write(
                [Put(f"{RUN}ended", {**entry.value, "status": "finished"}), Delete(f"{RUN}removed")]
            )
            assert [each.state for each in (await runs.list()).runs] == ["finished"]
            assert await ids(runs, state="suspended") == []
            assert await ids(runs, state="finished") == ["ended"]
            assert len([key async for key in store.stack.scan(STATE)]) == 1

    asyncio.run(main())


# ---------------------------------------------------------------- stalled
def test_a_run_whose_execution_has_ended_is_stalled(tmp_path: Path) -> None:
    """Not running, failed or lost: it can be resumed, retried or cancelled; its history has the outcome."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            for run_id in ("retried", "cancelled", "resumed"):
                await begun(store, dies, run_id)
            runs = Runs(store)
            assert await ids(runs, state="running") == []
            assert sorted(await ids(runs, state="stalled")) == ["cancelled", "resumed", "retried"]
            assert (await runs.retry("retried")).state == "pending"
            assert (await runs.cancel("cancelled")).state == "cancelled"
            clock: Any = store.stack.clock
            first = clock()
            clock.advance(60)
            with pytest.raises(KeyboardInterrupt):
                await Graph(dies, store=store, name="g").resume("resumed")
            history = await runs.history("resumed")
            assert [(each.number, each.left) for each in history.executions] == [(1, "stalled"), (2, "stalled")]
            assert [each.began for each in history.executions] == [first, first + 60]
            assert {each.pid for each in history.executions} == {this_process().record["pid"]}

    asyncio.run(main())


def test_a_run_without_progress_is_stalled(tmp_path: Path) -> None:
    """The run of an unknown process, without progress for its lease, by the observer's clock."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            clock = FakeClock()
            runs = Runs(store)
            runs._watch = StallWatch(store.stack, clock)
            for run_id in ("retried", "cancelled"):
                await begun(store, dies, run_id)
                await keep_alive(store, run_id)
            assert await ids(runs, state="running") == ["retried", "cancelled"]
            clock.advance(LEASE - 1)
            assert (await runs.get("retried")).state == "running"
            clock.advance(1)
            assert await ids(runs, state="stalled") == ["retried", "cancelled"]
            assert await ids(Runs(store), state="stalled") == [], "who looks for the first time can't know"
            assert (await runs.get("retried")).state == "stalled"
            assert (await runs.retry("retried")).state == "pending"
            info = await runs.cancel("cancelled")
            assert (info.state, info.is_ending) == ("cancelled", False)

    asyncio.run(main())


# ---------------------------------------------------------------- cancelling a running run
def test_cancelling_takes_effect_at_once_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that would wait without end is cancelled as asyncio does; its hook runs, and nothing of it is committed."""
    monkeypatch.setattr(Heart, "look", lambda heart: None)  # which would tell the run

    async def main() -> None:
        async with stored(tmp_path) as store:
            at_work, hooks = asyncio.Event(), list[str]()

            class Waits(Node[str, str]):
                async def exec(self, word: str) -> str:
                    at_work.set()
                    await asyncio.Event().wait()
                    return word

                async def on_failure(self, error: BaseException, *given: Any) -> None:
                    hooks.append("failure")

                async def on_complete(self, *given: Any) -> None:
                    hooks.append("complete")

            running = asyncio.ensure_future(Graph(same >> Waits(), store=store, name="g").run("x", run_id="r"))
            await at_work.wait()
            runs = Runs(store)
            info = await runs.cancel("r")
            assert (info.state, info.is_ending, info.node) == ("running", True, "waits")
            with pytest.raises(RunCancelledError):
                async with asyncio.timeout(60):
                    await running
            ended = await runs.get("r")
            assert (ended.state, ended.is_ending, ended.owner) == ("cancelled", False, None)
            assert hooks[-1] == "complete"

    asyncio.run(main())


def test_a_cancellation_that_a_node_has_handled_is_not_taken_for_the_programs(tmp_path: Path) -> None:
    """Its count stays with the task, as a TaskGroup that has failed leaves one before Python 3.13 (simulation, seed 16487)."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            at_work = asyncio.Event()

            class GetsOverOne(Node[str, str]):
                async def exec(self, word: str) -> str:
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0)
                    at_work.set()
                    await asyncio.Event().wait()
                    return word

            running = asyncio.ensure_future(Graph(GetsOverOne(), store=store, name="g").run("x", run_id="r"))
            await at_work.wait()
            await Runs(store).cancel("r")
            with pytest.raises(RunCancelledError):
                async with asyncio.timeout(60):
                    await running
            assert (await Runs(store).get("r")).state == "cancelled"

    asyncio.run(main())


def test_a_run_of_another_computer_is_cancelled_by_a_request_in_the_store(tmp_path: Path) -> None:
    """It is marked as ending until its execution finds out; meanwhile it can't be retried, and isn't taken for stalled."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            await begun(store, dies, "r")
            await keep_alive(store, "r")
            runs = Runs(store)
            for _ in range(2):
                info = await runs.cancel("r")
                assert (info.state, info.is_ending) == ("running", True)
            assert info.owner is not None
            assert (info.owner.host, info.owner.pid) == ("far", 7)
            with pytest.raises(RunStateError, match="can't be tried again: it was cancelled") as told:
                await runs.retry("r")
            assert told.value.state == "running"
            with pytest.raises(RunCancelledError):
                await Graph(dies, store=store, name="g").resume("r", takeover=True)
            assert (await runs.get("r")).state == "cancelled"

    asyncio.run(main())


# ---------------------------------------------------------------- lost answers
Operation = Callable[[Runs], Awaitable[RunInfo]]
OPERATIONS: dict[str, tuple[Any, Operation, RunState]] = {
    "cancel": (ask >> told, lambda runs: runs.cancel("r"), "cancelled"),
    "retry": (fails, lambda runs: runs.retry("r"), "pending"),
    "answer": (ask >> told, lambda runs: runs.answer("r", True), "pending"),
    "word": (dies, lambda runs: runs.cancel("r"), "running"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", ["lose", "refuse", "lose look", "refuse look"])
def test_outcomes_of_writes_are_reported_correctly(tmp_path: Path, operation: str, fault: str) -> None:
    """Committed, with a lost answer: done. Refused: the store's error. If that can't be found out: OutcomeUnknownError."""

    async def main() -> None:
        async with stored(tmp_path, Faulty) as store:
            faulty: Any = parts(store.stack)[-1]
            kind, operate, state = OPERATIONS[operation]
            await begun(store, kind, "r")
            if operation == "word":
                await keep_alive(store, "r")
            runs = Runs(store)
            before = await runs.get("r")
            faulty.fault = fault
            if fault == "lose":
                assert (await operate(runs)).state == state
            else:
                with pytest.raises(StoreError) as told:
                    await operate(runs)
                assert isinstance(told.value, OutcomeUnknownError) is ("look" in fault)
            faulty.reads = True
            now = await runs.get("r")
            if "lose" in fault:
                assert (now.state, now.is_ending) == (state, operation == "word")
            else:
                assert now == before
            assert (await operate(runs)).state == state, "again, as one does who has not been told"

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["lose", "refuse", "lose look", "refuse look"])
def test_the_outcome_of_a_removal_is_reported_correctly(tmp_path: Path, fault: str) -> None:
    """The run is still there, or all of it is removed; it can be repeated."""

    async def main() -> None:
        async with stored(tmp_path, Faulty) as store:
            faulty: Any = parts(store.stack)[-1]
            await begun(store, same, "r")
            runs = Runs(store)
            faulty.fault = fault
            if fault == "lose":
                assert await runs.remove("r")
            else:
                with pytest.raises(StoreError) as told:
                    await runs.remove("r")
                assert isinstance(told.value, OutcomeUnknownError) is ("look" in fault)
            faulty.reads = True
            assert await runs.remove("r") is ("refuse" in fault)
            assert [key async for key in store.stack.scan(f"{RUN}r")] == []
            assert await ids(runs) == []

    asyncio.run(main())


def test_an_answer_during_an_execution_is_found_by_it(tmp_path: Path) -> None:
    """An item's question is answered while another item is executed: the run ends without waiting."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            runs = Runs(store)
            asks = Graph(ask >> told, name="asks")
            released = asyncio.Event()

            @node
            async def slow(word: str) -> str:
                if word == "slow":
                    await released.wait()
                return word

            items = each(Graph(slow >> asks, name="item"), concurrency=2)
            graph: Graph[Any, Any] = Graph(items, store=store, name="g")
            running = asyncio.ensure_future(graph.run(["fast", "slow"], run_id="r"))
            while not (questions := await runs.questions("r") if await ids(runs) else ()):
                await asyncio.sleep(0)
            assert (await runs.get("r")).state == "running"
            assert [each.question.load() for each in questions] == ["fast?"]
            assert (await runs.answer("r", True)).state == "running"
            released.set()
            with pytest.raises(RunSuspendedError) as suspended:
                await running
            assert list(suspended.value.questions.values()) == ["slow?"]
            (question,) = await runs.questions("r")
            assert (await runs.answer("r", False, question=question.id)).state == "pending"
            assert await graph.resume("r") == ["fast True", "slow False"]

    asyncio.run(main())


# ---------------------------------------------------------------- waiting, and without await
@pytest.mark.parametrize("fault", ["lose", "refuse", "lose look", "refuse look"])
def test_the_outcome_of_an_answer_during_an_execution_is_reported_correctly(tmp_path: Path, fault: str) -> None:
    """As that of other operations; this one changes neither the run's record nor its state."""

    async def main() -> None:
        async with stored(tmp_path, Faulty) as store:
            faulty: Any = parts(store.stack)[-1]
            asked, released = asyncio.Event(), asyncio.Event()

            @node
            async def slow(word: str) -> str:
                if word == "slow":
                    asked.set()
                    await released.wait()
                return word

            items = each(Graph(slow >> ask, name="item"), concurrency=1)
            running = asyncio.ensure_future(Graph(items, store=store, name="g").run(["fast", "slow"], run_id="r"))
            await asked.wait()
            runs = Runs(store)
            faulty.fault = fault
            if fault == "lose":
                assert (await runs.answer("r", True)).state == "running"
            else:
                with pytest.raises(StoreError) as told:
                    await runs.answer("r", True)
                assert isinstance(told.value, OutcomeUnknownError) is ("look" in fault)
            faulty.reads = True
            assert len(await runs.questions("r")) == ("refuse" in fault)
            released.set()
            with pytest.raises(RunSuspendedError):
                await running

    asyncio.run(main())


class Overtaken(SQLite):
    """Does something right before a run is claimed."""

    before: Callable[[], Awaitable[object]] | None = None

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        if self.before is not None and any(
            isinstance(change, Put) and change.key.startswith(RUN) for change in changes
        ):
            before, self.before = self.before, None
            await before()
        return await super().write(changes, expect)


def test_an_answer_is_not_replaced_by_that_of_a_resume_at_the_same_time(tmp_path: Path) -> None:
    """The run is pending, since its other question is answered: so this answer changes neither its record nor its state."""

    async def main() -> None:
        async with stored(tmp_path, Overtaken) as store:
            overtaken: Any = parts(store.stack)[-1]
            graph: Graph[Any, Any] = Graph(each(ask), store=store, name="g")
            with pytest.raises(RunSuspendedError):
                await graph.run(["a", "b"], run_id="r")
            runs = Runs(store)
            first, second = (asked.id for asked in await runs.questions("r"))
            assert (await runs.answer("r", True, question=first)).state == "pending"
            overtaken.before = lambda: runs.answer("r", True, question=second)
            with pytest.raises(RunMismatchError, match="was already answered, with another answer"):
                await graph.resume("r", answer=False, question=second)
            assert await graph.resume("r") == [Answered("a", True), Answered("b", True)]

    asyncio.run(main())


def test_waiting_for_a_run(tmp_path: Path) -> None:
    """It ends with the run, and returns its result; otherwise TimeoutError names the run's state."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            await begun(store, ask >> told, "r")
            runs = Runs(store)
            with pytest.raises(TimeoutError, match="run 'r' is still suspended"):
                await runs.wait("r", timeout=0.01)
            waiting = asyncio.ensure_future(runs.wait("r"))
            await Graph(ask >> told, store=store, name="g").resume("r", answer=True)
            info = await waiting
            assert info.result is not None
            assert (info.state, info.result.load()) == ("finished", "word True")

    asyncio.run(main())


def test_without_await(tmp_path: Path) -> None:
    """SyncRuns does the same, with a store of either kind; it opens a store that isn't open."""
    url = f"sqlite:///{tmp_path}/state.db?durability=process"
    store = SyncStore(url)
    graph: Graph[Any, Any] = Graph(ask >> told, store=store, name="g")
    runs = SyncRuns(store)
    assert runs.list().runs == ()
    for run_id in ("a", "b"):
        with pytest.raises(RunSuspendedError):
            graph.run_sync("word", run_id=run_id)
    assert [each.run_id for each in runs.list(limit=1).runs] == ["b"]
    assert runs.get("a").questions == runs.questions("a")
    assert runs.answer("a", True).state == "pending"
    assert graph.resume_sync("a") == "word True"
    assert runs.wait("a").state == runs.history("a").run.state == "finished"
    assert runs.cancel("b").state == "cancelled"
    with pytest.raises(RunStateError):
        runs.retry("b")
    assert runs.remove("a")
    assert [each.run_id for each in Runs(store).sync.list().runs] == ["b"]
    store.close()


def test_a_store_that_can_not_be_opened_is_the_only_error(tmp_path: Path) -> None:
    """SyncRuns raises the store's error; no coroutine is left that nobody awaits, of which Python would warn."""
    (tmp_path / "file").touch()
    runs = SyncRuns(SyncStore(f"sqlite:///{tmp_path}/file/state.db"))
    for look in (runs.list, lambda: runs.get("a"), lambda: list(runs.follow("a"))):
        with pytest.raises(StoreError, match=r"file/state\.db"):
            look()
    gc.collect()
