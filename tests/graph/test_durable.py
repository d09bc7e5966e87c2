"""Durable runs: each effect exactly once, whatever fails in between, and none by an execution that was overtaken."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocket_plug import (
    END,
    Action,
    Answered,
    Ask,
    CodecError,
    ConfigError,
    ConflictError,
    InputError,
    Key,
    KeyNameError,
    Memory,
    Next,
    Node,
    OutcomeUnknownError,
    Pocket,
    Put,
    RecordedError,
    Retry,
    RunBusyError,
    RunChangedError,
    RunFencedError,
    RunMismatchError,
    Runs,
    RunSuspendedError,
    StepLimitError,
    Store,
    StoreClosedError,
    StoreError,
    StoreReader,
    StoreWriter,
    SyncReader,
    SyncStore,
    SyncWriter,
    UnknownRunError,
    UnregisteredTypeError,
    current_run_id,
    each,
    hookimpl,
    idempotency_key,
    node,
)
from pocket_plug.graph.durable.records import FORMAT, RUN
from pocket_plug.graph.graph import Graph
from pocket_plug.hookspecs import NodeCall, Observer, Run
from pocket_plug.layers.persistence import Persistence
from pocket_plug.propagation import session
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Delete, Entry
from pocket_plug.store.keys import MAX_KEY_BYTES
from pocket_plug.store.layer import Layer
from pocket_plug.testing.clock import FakeClock, run_virtual
from pocket_plug.testing.spans import SpanCapture


@asynccontextmanager
async def stored(folder: Path, **options: Any) -> AsyncGenerator[Store]:
    """A store in a file of that folder."""
    async with Store(f"sqlite:///{folder}/state.db?durability=process", **options) as store:
        yield store


async def records(store: Store, prefix: str = "pocket:run") -> list[str]:
    return [key async for key in store.stack.scan(prefix)]


class Stumble(Exception):
    """Raised where a test wants it."""


class Worker:
    """A graph's nodes, which count their calls and raise when told to."""

    def __init__(self, stumble_at: int = -1, concurrency: int = 1) -> None:
        self.stumble_at, self.concurrency, self.visits = stumble_at, concurrency, 0
        self.execs: list[str] = []
        self.keys: list[str] = []

    def reach(self, name: str) -> None:
        """Called in exec: raises at the chosen visit."""
        self.visits += 1
        self.execs.append(name)
        self.keys.append(idempotency_key())
        if self.visits == self.stumble_at:
            raise Stumble(name)

    def graph(self, store: Store | SyncStore) -> Graph[int, int]:
        """`start >> (count >> again while below 3) >> items >> end`; each commits something."""
        worker = self

        class Count(Node[int, int], name="count"):
            async def exec(self, prepared: int) -> int:
                worker.reach("count")
                return prepared + 1

            async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int | Next[int]:
                await store.update("counted", lambda old: old + 1, default=0)
                return result if result >= 3 else Next("again", result)

        @node
        async def again(n: int) -> int:
            worker.reach("again")
            return n

        class Item(Node[int, int], name="item"):
            async def exec(self, prepared: int) -> int:
                worker.reach(f"item {prepared}")
                return prepared * 10

            async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
                await store.update("items", lambda old: [*old, n], default=[])
                return result

        @node
        async def spread(n: int) -> list[int]:
            worker.reach("spread")
            return list(range(n))

        @node.post
        async def end(store: StoreWriter, results: list[int]) -> int:
            await store.update("ended", lambda old: old + 1, default=0)
            return sum(results)

        count = Count()
        inner = Graph(count, count.on("again") >> again >> count, name="inner")
        return Graph(inner >> spread >> each(Item(), concurrency=self.concurrency) >> end, store=store, name="work")


async def state(store: Store) -> dict[str, Any]:
    return {key: await store.get(key) async for key in store.keys()}


UNDISTURBED = {"counted": 3, "items": [0, 1, 2], "ended": 1}


# ---------------------------------------------------------------- resuming
@pytest.mark.parametrize("stumble_at", range(1, 11))
def test_a_failed_run_is_resumed_where_it_stopped(tmp_path: Path, stumble_at: int) -> None:
    """It failed at any exec and was started by the same call: no effect is lost or done twice, and only that exec is repeated."""

    async def main() -> None:
        worker = Worker(stumble_at)
        async with stored(tmp_path) as store:
            graph = worker.graph(store)
            if stumble_at < 10:
                with pytest.raises(Stumble):
                    await graph.run(0, run_id="r")
            assert await graph.run(0, run_id="r") == 30
            assert await state(store) == UNDISTURBED
        assert len(worker.execs) == (10 if stumble_at < 10 else 9)
        if stumble_at < 10:
            assert worker.execs[stumble_at - 1] == worker.execs[stumble_at]
            assert worker.keys[stumble_at - 1] == worker.keys[stumble_at], "the same visit, the same key"
            assert len(set(worker.keys)) == 9

    asyncio.run(main())


def test_another_process_can_resume_a_run(tmp_path: Path) -> None:
    """All that is needed is in the store: another graph object over another connection resumes the run, without the input."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            with pytest.raises(Stumble):
                await Worker(7).graph(store).run(0, run_id="r")
        async with stored(tmp_path) as store:
            assert await Worker().graph(store).resume("r") == 30
            assert await state(store) == UNDISTURBED

    asyncio.run(main())


def test_a_finished_run_gives_its_result(tmp_path: Path) -> None:
    """The same call again, and resume, execute nothing."""

    async def main() -> None:
        worker = Worker()
        async with stored(tmp_path) as store:
            graph = worker.graph(store)
            assert await graph.run(0, run_id="r") == 30
            before, done = await state(store), len(worker.execs)
            assert await graph.run(0, run_id="r") == 30
            assert await graph.resume("r") == 30
            assert (await state(store), len(worker.execs)) == (before, done)

    asyncio.run(main())


def test_in_a_scope_of_a_key(tmp_path: Path) -> None:
    """The scope's name has the template of its Key; the record has only the name."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            scope = store.scope(Key("tenant:{}")("acme"))
            count = node(lambda n: n + 1, name="count")
            for _ in range(2):
                assert await Graph(count, store=scope, name="counting").run(0, run_id="r") == 1

    asyncio.run(main())


def test_without_await(tmp_path: Path) -> None:
    """run_sync and resume_sync do the same, without an event loop if every phase is `def`."""
    failing = True

    @node
    def double(n: int) -> int:
        return 2 * n

    @node.post
    def keep(store: SyncWriter, n: int) -> int:
        store.update("kept", lambda old: old + n, default=0)
        return n

    @node
    def last(n: int) -> int:
        if failing:
            raise Stumble
        return n

    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
        graph = Graph(double >> keep >> last, store=store)
        with pytest.raises(Stumble):
            graph.run_sync(1, run_id="r")
        failing = False
        assert graph.resume_sync("r") == 2
        assert graph.run_sync(1, run_id="r") == 2
        assert store.get("kept") == 2
        with pytest.raises(Stumble):
            failing = True
            Worker(1).graph(store).run_sync(0, run_id="async phases")
        assert Worker().graph(store).run_sync(0, run_id="async phases") == 30


def test_the_checkpoint_does_not_grow(tmp_path: Path) -> None:
    """However often a loop is repeated, the record stays as large as after a few rounds, and so does what a resume reads."""

    async def main() -> None:
        @node
        async def step(n: int) -> int | Next[int]:
            return n

        class Loop(Node[int, int], name="loop"):
            async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int | Next[int]:
                if n == 60 or n == 10_060:
                    raise Stumble
                return Next("again", n + 1)

        loop = Loop()
        graph = Graph(loop, loop.on("again") >> loop, name="loop")
        async with stored(tmp_path) as store:
            sizes: list[int] = []
            for start in (50, 10_000):
                graph = Graph(loop, loop.on("again") >> loop, name="loop", store=store)
                with pytest.raises(Stumble):
                    await graph.run(start, run_id=str(start))
                entry = await store.stack.read(f"pocket:run:{start}")
                assert entry is not None
                sizes.append(len(repr(entry.value)))
            assert abs(sizes[0] - sizes[1]) < 40

    asyncio.run(main())


def test_max_steps_counts_across_resumes(tmp_path: Path) -> None:
    """A loop that fails now and then is stopped after as many nodes as one that doesn't."""
    entered: list[int] = []

    async def main() -> None:
        class Loop(Node[int, int], name="loop"):
            async def exec(self, prepared: int) -> int:
                entered.append(prepared)
                if len(entered) in (4, 9):
                    raise Stumble
                return prepared + 1

            async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> Next[int]:
                return Next("again", result)

        loop = Loop()
        inner: Graph[int, int] = Graph(loop, loop.on("again") >> loop, name="inner")
        async with stored(tmp_path) as store:
            graph = Graph(inner, store=store, max_steps=12)
            for _ in range(2):
                with pytest.raises(Stumble):
                    await graph.run(0, run_id="r")
            with pytest.raises(StepLimitError):
                await graph.run(0, run_id="r")
        assert entered[-1] == 10, "the nested graph and eleven visits"

    asyncio.run(main())


def test_ends_retries_and_fallbacks(tmp_path: Path) -> None:
    """END leaves a nested graph by default, also after a resume; retry and fallback work as usual."""
    tries: list[str] = []

    class Shaky(Node[int, int], name="shaky", retry=Retry(attempts=2)):
        async def exec(self, prepared: int) -> int:
            tries.append(idempotency_key())
            raise Stumble

        async def fallback(self, prepared: int, error: Exception) -> int:
            return -prepared

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> Next[int]:
            return END(result)

    @node
    async def never(n: int) -> int:
        raise AssertionError

    async def main() -> None:
        failing = True

        @node
        async def after(n: int) -> int:
            if failing:
                raise Stumble
            return n

        async with stored(tmp_path) as store:
            graph = Graph(Graph(Shaky() >> never, name="inner") >> after, store=store)
            with pytest.raises(Stumble):
                await graph.run(5, run_id="a/b")
            failing = False
            assert await graph.run(5, run_id="a/b") == -5
        assert tries == ["a%2Fb/inner#1/shaky#1"] * 2

    asyncio.run(main())


def test_nested_graphs_that_begin_with_graphs(tmp_path: Path) -> None:
    """The innermost node is found again, however many graphs begin at once, in its own scope, and its action is known."""
    stumbles = [Stumble(), Stumble()]

    @node.post
    async def first(store: StoreWriter, n: int) -> int:
        await store.update("first", lambda old: old + 1, default=0)
        return n + 1

    @node.post
    async def second(store: StoreWriter, n: int) -> Next[int]:
        if stumbles:
            raise stumbles.pop()
        await store.update("second", lambda old: old + 1, default=0)
        return Next("out", n + 1)

    @node
    async def outside(n: int) -> int:
        return 100 * n

    async def main() -> None:
        async with stored(tmp_path) as store:
            innermost: Graph[int, int] = Graph(first >> second, name="innermost", scope="deep")
            middle: Graph[int, int] = Graph(innermost, name="middle")
            graph = Graph(middle, middle.on("out") >> outside, store=store)
            for _ in range(2):
                with pytest.raises(Stumble):
                    await graph.run(1, run_id="r")
            assert await graph.run(1, run_id="r") == 300
            assert await state(store) == {"deep:first": 1, "deep:second": 1}

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["refuse", "cancel"])
@pytest.mark.parametrize("at", range(6))
def test_the_action_of_a_nested_graph_is_kept(tmp_path: Path, fault: str, at: int) -> None:
    """Stopped between the inner graph's last commit and the outer graph's, it is still left by the same action."""

    @node.post
    async def choose(store: StoreWriter, n: int) -> Next[int]:
        await store.update("chosen", lambda old: old + 1, default=0)
        return Next("out", n + 1)

    @node
    async def outside(n: int) -> int:
        return 100 * n

    async def main() -> None:
        plan = [""] * at + [fault]
        async with stored(tmp_path, layers=[Faulty(plan=plan)]) as store:
            innermost: Graph[int, int] = Graph(choose, name="innermost")
            middle: Graph[int, int] = Graph(innermost, name="middle")
            graph = Graph(middle, middle.on("out") >> outside, store=store)
            if at < 5:
                with pytest.raises((StoreError, asyncio.CancelledError)):
                    await graph.run(1, run_id="r")
            assert await graph.run(1, run_id="r") == 200
            assert await store.get("chosen") == 1

    asyncio.run(main())


# ---------------------------------------------------------------- fan-out
def test_finished_items_are_not_done_again(tmp_path: Path) -> None:
    """After a fan-out failed, a resume executes only the rest, in a graph for each item from where that one stopped."""
    done: list[str] = []
    broken = {3}

    @node.post
    async def begin(store: StoreWriter, n: int) -> int:
        await store.update("begun", lambda old: old + 1, default=0)
        return n

    @node
    async def work(n: int) -> int:
        done.append(idempotency_key())
        if n in broken:
            raise Stumble
        return n * n

    async def main() -> None:
        async with stored(tmp_path) as store:
            graph = Graph(each(Graph(begin >> work, name="way"), concurrency=3), store=store, name="items")
            with pytest.raises(Stumble):
                await graph.run([0, 1, 2, 3, 4, 5], run_id="r")
            broken.clear()
            assert await graph.run([0, 1, 2, 3, 4, 5], run_id="r") == [0, 1, 4, 9, 16, 25]
            assert await store.get("begun") == 6
            assert [key for key in await records(store) if ":item:" in key] == []
        assert len(set(done)) == 6
        assert done.count("r/each_way#1[0]/work#1") == 1
        assert done.count("r/each_way#1[3]/work#1") == 2

    asyncio.run(main())


SPREADING = """
import os, sys
from pocket_plug import SyncStore, SyncWriter, fan_out, node, Store
import asyncio

@node.post
def work(store: SyncWriter, word: str) -> str:
    if store.get("taken", 0) == 2 and sys.argv[2] == "stumble":
        raise SystemExit(3)
    store.update("taken", lambda n: n + 1, default=0)
    store.update(word, lambda n: n + 1, default=0)
    return word + word

async def main():
    async with Store(f"sqlite:///{sys.argv[1]}/state.db?durability=process") as store:
        print(sorted(await fan_out(work, {"a", "b", "c", "d"}, store=store, run_id="r", concurrency=1)))

asyncio.run(main())
"""


def test_a_resumed_fan_out_reads_its_input_a_few_times_not_for_each_item(tmp_path: Path) -> None:
    """The run's record has the input of all items: if each item read it, a resume would take the square of their number."""
    read = Counter[str]()

    class Counting(Layer):
        async def read(self, key: str) -> Entry | None:
            read[key] += 1
            return await self.inner.read(key)

    broken = {49}

    @node
    async def work(n: int) -> int:
        if n in broken:
            raise Stumble
        return n

    async def main() -> None:
        async with stored(tmp_path, layers=[Counting()]) as store:
            graph = Graph(each(work), store=store, name="items")
            with pytest.raises(Stumble):
                await graph.run(range(50), run_id="r")
            broken.clear()
            read.clear()
            assert await graph.resume("r") == [*range(50)]
        assert sum(":item:" in key for key in read) == 50
        assert 0 < read[f"{RUN}r"] < 10

    asyncio.run(main())


def test_each_turn_of_a_long_run_reads_only_the_question_that_is_open(tmp_path: Path) -> None:
    """A conversation asks thousands of questions, and a poller sleeps as often: their records are the run's history."""
    read = Counter[str]()

    class Counting(Layer):
        async def read(self, key: str) -> Entry | None:
            read[key] += 1
            return await self.inner.read(key)

    class Turn(Node[Answered[int, str], int]):
        again = Action[int]()

        async def post(
            self, store: StoreWriter, input: Answered[int, str], prepared: object, result: object
        ) -> Next[int]:
            return self.again(input.input + 1)

    ask, turn = Ask[int, str](str, question="next?"), Turn()

    async def main() -> None:
        async with stored(tmp_path, layers=[Counting()]) as store:
            talk, runs = Graph(ask >> turn, turn.again >> ask, store=store, name="talk"), Runs(store)
            with pytest.raises(RunSuspendedError):
                await talk.run(0, run_id="r")
            for number in range(1, 13):
                read.clear()
                assert [each.id for each in (await runs.list()).runs[0].questions] == [f"ask#{number}"]
                assert [each.id for each in await runs.questions("r")] == [f"ask#{number}"]
                named: Any = [f"ask#{number}", ask][number % 2]
                if number % 3:
                    await runs.answer("r", "well", question=named)
                    with pytest.raises(RunSuspendedError):
                        await talk.resume("r")
                else:
                    with pytest.raises(RunSuspendedError):
                        await talk.resume("r", answer="well", question=named)
                waits = {key.rpartition(":")[2] for key in read if ":wait:" in key}
                assert waits <= {f"ask#{number}", f"ask#{number + 1}"}
            await runs.answer("r", "well", question="ask#1")  # the same answer may come late
            with pytest.raises(RunMismatchError, match="already answered"):
                await talk.resume("r", answer="ill", question="ask#2")
            assert len((await runs.history("r")).questions) == 13

    asyncio.run(main())


def test_fan_out_as_a_durable_run(tmp_path: Path) -> None:
    """fan_out accepts a run_id, too; the members of a set keep their positions in a process that orders them in another way."""
    for seed, mode, code, said in (("1", "stumble", 3, ""), ("2", "finish", 0, "['aa', 'bb', 'cc', 'dd']\n")):
        ran = subprocess.run([sys.executable, "-c", SPREADING, tmp_path, mode], env={**os.environ, "PYTHONHASHSEED": seed},
                             capture_output=True, text=True, check=False)  # fmt: skip
        assert (ran.returncode, ran.stdout) == (code, said), ran.stderr
    with SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        assert [store.get(word) for word in "abcd"] == [1, 1, 1, 1]


# ---------------------------------------------------------------- how long names may be
def deepest(store: Store, names: str) -> Graph[int, object]:
    """Items of a graph, each of which passes a node and asks; these are the nodes' names."""

    @node
    async def passed(n: int) -> int:
        return n

    asks = Ask[int, bool](bool, question=lambda n: f"{n}?", name=names)
    return Graph(each(Graph(passed >> asks, name=names)), store=store, name=":" * 255)


def test_no_key_of_a_run_is_too_long_for_a_backend(tmp_path: Path) -> None:
    """The longest names that are allowed, escaped, make keys of at most 2 KiB; all states and kinds of records."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            graph = deepest(store, "/" * 121)
            with pytest.raises(RunSuspendedError) as asked:
                await graph.run([1, 2], run_id=":" * 255)
            sizes = {key: len(key.encode()) for key in await records(store)}
            assert max(sizes.values()) <= MAX_KEY_BYTES
            assert {kind for key in sizes for kind in (":item:", ":wait:", "run-state:", ":start") if kind in key} == {
                *(":item:", ":wait:", "run-state:", ":start")
            }
            assert max(sizes.values()) > MAX_KEY_BYTES - 100
            for question in asked.value.questions:
                with suppress(RunSuspendedError):
                    await graph.resume(":" * 255, answer=True, question=question)
            assert max(len(key.encode()) for key in await records(store)) <= MAX_KEY_BYTES

    asyncio.run(main())


def test_names_that_make_too_long_keys_are_refused_before_the_run(tmp_path: Path) -> None:
    """Names of a run, of its graph, and of nodes with the graphs around them; other runs may have any names."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            with pytest.raises(KeyNameError, match="has 256 bytes in UTF-8; a run_id may have 255"):
                await deepest(store, "n").run([1], run_id="r" * 256)
            with pytest.raises(
                ConfigError, match=r"names of node .* and of the graphs around it have [\d,]+ bytes together"
            ):
                await deepest(store, "/" * 122).run([1], run_id="r")
            long = Graph(node(len), store=store, name="g" * 256)
            with pytest.raises(
                KeyNameError, match="256 bytes in UTF-8; the name of a graph with durable runs may have 255"
            ):
                await long.run([], run_id="r")
            assert await long.run([]) == 0
            assert await records(store) == []

    asyncio.run(main())


# ---------------------------------------------------------------- what is refused
def test_another_input_is_refused(tmp_path: Path) -> None:
    """Equal inputs count as the same, whatever the order of their sets; other inputs, graphs and scopes are a mismatch."""

    @node
    async def same(value: Any) -> Any:
        return value

    async def main() -> None:
        async with stored(tmp_path) as store:
            graph = Graph(same, store=store, name="same")
            numbers = {0, 8}
            assert await graph.run(numbers, run_id="r") == numbers
            assert await graph.run({8, 0}, run_id="r") == numbers
            for other in ({0}, [0, 8], {False, 8}, {0.0, 8}):
                with pytest.raises(RunMismatchError, match="another input"):
                    await graph.run(other, run_id="r")
            with pytest.raises(RunMismatchError, match="not to 'other'; give the new run"):
                await Graph(same, store=store, name="other").run(numbers, run_id="r")
            tenant = Graph(same, store=store.scope("tenant"), name="same")
            with pytest.raises(RunMismatchError, match="not to 'same' in scope 'tenant:'; give the new run another"):
                await tenant.run(numbers, run_id="r")
            with pytest.raises(RunMismatchError, match=r"resume it with that scope of its store, store=store.scope\("):
                await tenant.resume("r")

    asyncio.run(main())


def test_a_refused_resume_has_written_nothing(tmp_path: Path) -> None:
    """Of another graph, with another input, with a wrong answer or none, at a node that is gone: each record is unchanged."""
    asked = Ask[Any, int](int, question=lambda value: "how many?", name="asked")

    @node
    async def work(n: Any) -> Any:
        return n

    @node
    async def use(answered: Answered[Any, int]) -> int:
        return answered.answer

    async def all_of(store: Store) -> dict[str, tuple[int, Any]]:
        found = await store.stack.read_many([key async for key in store.stack.scan("")])
        return {key: (entry.version, entry.value) for key, entry in found.items()}

    async def main() -> None:
        async with stored(tmp_path) as store:
            inner = Graph(work >> asked, name="inner")
            graph = Graph(inner >> use, store=store, name="outer")
            with pytest.raises(RunSuspendedError):
                await graph.run(0, run_id="r")
            before, version = await all_of(store), await store.stack.version()
            gone = Graph(Graph(work, name="inner") >> work.with_options(name="use"), store=store, name="outer")
            other = asked.with_options(name="other")
            replaced = Graph(Graph(work >> other, name="inner") >> use, store=store, name="outer")
            longer = Graph(inner >> use >> work.with_options(name="last"), store=store, name="outer")
            attempts: list[tuple[type[Exception], str, Any]] = [
                (
                    RunChangedError,
                    "waits for an answer at 'inner/asked', but no node asks there",
                    gone.resume("r", answer=1, allow_changed=True),
                ),
                (
                    RunChangedError,
                    "waits for an answer at 'inner/asked', but no node asks there",
                    replaced.resume("r", answer=1, allow_changed=True),
                ),
                (RunChangedError, "allow_changed=True", longer.resume("r", answer=1)),
                (RunMismatchError, "another input", graph.run(1, run_id="r")),
                (
                    RunMismatchError,
                    "'outer', not to 'another'; resume it with that graph",
                    Graph(work, store=store, name="another").resume("r"),
                ),
                (InputError, "'asked' .* asks for int, not str", graph.resume("r", answer="x")),
                (RunSuspendedError, "waits for an answer", graph.resume("r")),
                (UnknownRunError, "'nobody'", graph.resume("nobody", answer=1)),
                (UnregisteredTypeError, "the input of graph", graph.run(object(), run_id="new")),
            ]
            for kind, says, attempt in attempts:
                with pytest.raises(kind, match=says):
                    await attempt
                assert (await all_of(store), await store.stack.version()) == (before, version), says
            assert await graph.resume("r", answer=3) == 3
            finished = await all_of(store)
            with pytest.raises(RunMismatchError, match="was already answered, with another answer, which counts"):
                await graph.resume("r", answer=4)
            with pytest.raises(UnregisteredTypeError, match="the answer can't be stored for run 'r'"):
                await graph.resume("r", answer=object())
            assert await all_of(store) == finished

    asyncio.run(main())


def test_a_store_that_is_not_durable_is_refused(tmp_path: Path) -> None:
    """So is a nested graph with another store, an empty id, and allow_changed without an id."""

    @node
    async def same(n: int) -> int:
        return n

    async def main() -> None:
        with pytest.raises(ConfigError, match=r"sqlite:///state\.db"):
            await Graph(same).run(1, run_id="r")
        async with stored(tmp_path) as store:
            inner = Graph(same, store=Store(), name="inner")
            with pytest.raises(ConfigError, match="'inner' has a store of its own"):
                await Graph(inner, store=store).run(1, run_id="r")
            with pytest.raises(ConfigError, match="'inner' has a store of its own"):
                await Graph(each(inner), store=store).run([1], run_id="r")
            wrong: Any
            for wrong in ("", "\ud800", 7):
                with pytest.raises(KeyNameError):
                    await Graph(same, store=store).run(1, run_id=wrong)
            with pytest.raises(ConfigError, match="allow_changed"):
                await Graph(same, store=store).run(1, allow_changed=True)
            with pytest.raises(
                UnknownRunError, match=r"'nobody' in .*; run\(input, run_id=…\) starts one, `pocket-plug runs ls` lists"
            ):
                await Graph(same, store=store).resume("nobody")
            assert await records(store) == []
        behind = Persistence(mode="behind", to=f"sqlite:///{tmp_path}/behind.db")
        async with Store(layers=[behind]) as store:
            with pytest.raises(ConfigError, match="may lose acknowledged writes"):
                await Graph(same, store=store).run(1, run_id="r")
        with pytest.raises(UnknownRunError, match="run_id="):
            idempotency_key()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["run", "run_sync", "durable"])
def test_a_run_that_a_node_starts_does_not_use_that_nodes_idempotency_key(tmp_path: Path, how: str) -> None:
    """Otherwise its nodes would all have one key, and a service would take the second for the first; a
    durable run has its own.
    """

    @node
    async def first(n: int) -> list[str]:
        return [idempotency_key()]

    @node
    async def second(keys: list[str]) -> list[str]:
        return [*keys, idempotency_key()]

    inner = Graph(first >> second, name="inner")

    async def main() -> None:
        async with stored(tmp_path) as store:

            @node
            async def outer(n: int) -> list[str]:
                if how == "run_sync":
                    return await asyncio.to_thread(inner.run_sync, n)
                found = await (inner.run(n) if how == "run" else inner.run(n, run_id="i", store=store))
                return [*found, idempotency_key()]

            graph = Graph(outer, store=store)
            if how == "durable":
                assert await graph.run(1, run_id="o") == ["i/first#1", "i/second#1", "o/outer#1"]
            else:
                with pytest.raises(UnknownRunError, match="there is no durable run here"):
                    await graph.run(1, run_id="o")

    asyncio.run(main())


@dataclass
class Known:
    n: int


def test_a_value_that_can_not_be_stored_is_an_error(tmp_path: Path) -> None:
    """It names the node and the path; nothing of the node was committed. Annotated types need no registration."""

    class Unknown:
        pass

    broken = True

    @node.post
    async def make(store: StoreWriter, known: Known) -> Any:
        await store.set("made", known.n)
        return {"it": [Unknown()]} if broken else known

    @node
    async def take(value: Any) -> int:
        return value.n  # type: ignore[no-any-return]

    async def main() -> None:
        nonlocal broken
        async with stored(tmp_path) as store:
            graph = Graph(make >> take, store=store)
            with pytest.raises(UnregisteredTypeError, match=r"the input of node 'take' .*\['it'\]\[0\].*Unknown"):
                await graph.run(Known(3), run_id="r")
            assert await store.get("made") is None
            broken = False
            assert await graph.run(Known(3), run_id="r") == 3

    asyncio.run(main())


def test_a_changed_graph_is_refused_with_what_changed(tmp_path: Path) -> None:
    """Unless changes are allowed; if the run's current node is gone, it is always refused."""
    failing = True

    @node
    async def first(n: int) -> int:
        return n + 1

    @node
    async def second(n: int) -> int:
        if failing:
            raise Stumble
        return n + 10

    @node
    async def third(n: int) -> int:
        return n + 100

    async def main() -> None:
        nonlocal failing
        async with stored(tmp_path) as store:
            before, after = Graph(first >> second, store=store), Graph(first >> second >> third, store=store)
            with pytest.raises(Stumble):
                await before.run(0, run_id="r")
            failing = False
            with pytest.raises(RunChangedError, match="allow_changed=True") as changed:
                await after.run(0, run_id="r")
            assert changed.value.differences == ("+ edge second -default-> third", "+ node third")
            assert pickle.loads(pickle.dumps(changed.value)).differences == changed.value.differences  # noqa: S301
            with pytest.raises(RunChangedError, match="is at node 'second'"):
                await Graph(first >> third, store=store).resume("r", allow_changed=True)
            assert await after.run(0, run_id="r", allow_changed=True) == 111

    asyncio.run(main())


@pytest.mark.parametrize("errors", ["raise", "collect"])
def test_a_changed_graph_is_refused_if_an_items_node_is_gone(tmp_path: Path, errors: Any) -> None:
    """Even if changes are allowed: the item's current node has to exist. The refusal isn't recorded as the item's result."""

    @node
    async def first(n: int) -> int:
        return n + 1

    @node
    async def second(n: int) -> int:
        raise Stumble

    @node
    async def third(n: int) -> int:
        return n + 100

    async def main() -> None:
        async with stored(tmp_path) as store:
            with pytest.raises(Stumble):
                await Graph(each(Graph(first >> second, name="way")), store=store).run([1], run_id="r")
            changed = Graph(each(Graph(first >> third, name="way"), errors=errors), store=store)
            with pytest.raises(
                RunChangedError, match="item 0 of 'each_way' is at node 'each_way/way/second', which doesn't exist"
            ):
                await changed.resume("r", allow_changed=True)
            more = Graph(each(Graph(first >> second.with_options(name="second") >> third, name="way")), store=store)
            with pytest.raises(Stumble):
                await more.resume("r", allow_changed=True)

    asyncio.run(main())


# ---------------------------------------------------------------- fencing
class Faulty(Layer):
    """Fails writes as it is told."""

    name = "faulty"
    inline_write = False
    plan: Any = ()

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        fault = self.plan.pop(0) if self.plan and changes else ""
        if callable(fault):
            await fault()
        if fault == "refuse":
            raise StoreError("the server is gone")
        version = await self.inner.write(changes, expect)
        if fault == "lose":
            raise StoreError("the answer is lost")
        if fault == "repeat":
            return await self.inner.write(changes, expect)
        if fault == "cancel":
            raise asyncio.CancelledError
        return version


@pytest.mark.parametrize("fault", ["lose", "repeat"])
@pytest.mark.parametrize("at", range(12))
def test_a_lost_answer_is_no_failure(tmp_path: Path, fault: str, at: int) -> None:
    """A commit that was done although its write failed, or that conflicted with itself when repeated,
    counts: the run continues.
    """

    async def main() -> None:
        plan = [""] * at + [fault]
        async with stored(tmp_path, layers=[Faulty(plan=plan)]) as store:
            worker = Worker()
            assert await worker.graph(store).run(0, run_id="r") == 30
            assert not plan
            assert len(worker.execs) == 9
            assert await state(store) == UNDISTURBED

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["refuse", "cancel"])
@pytest.mark.parametrize("at", range(12))
def test_a_run_is_resumed_after_a_failed_or_cancelled_commit(tmp_path: Path, fault: str, at: int) -> None:
    """Nothing was committed, or all of it and the run was cancelled then: the same call resumes, and no effect is lost or
    doubled.
    """

    async def main() -> None:
        plan = [""] * at + [fault]
        async with stored(tmp_path, layers=[Faulty(plan=plan)]) as store:
            graph = Worker().graph(store)
            with pytest.raises((StoreError, asyncio.CancelledError)):
                await graph.run(0, run_id="r")
            assert await graph.run(0, run_id="r") == 30
            assert await state(store) == UNDISTURBED

    asyncio.run(main())


class Unsure(Layer):
    """Loses the answer to a write, or makes it conflict with itself, and can't be read for a while."""

    name = "unsure"
    inline_write = False
    plan: Any = ()
    looks: Any = ()

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        version = await self.inner.write(changes, expect)
        if self.plan and changes and (answer := self.plan.pop(0)) is not None:
            raise answer
        return version

    async def read(self, key: str) -> Entry | None:
        return await self.inner.read(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        keys = list(keys)
        if not self.plan and self.looks and keys[0].startswith("pocket:"):
            raise self.looks.pop()
        return await self.inner.read_many(keys)


@pytest.mark.parametrize("answer", [StoreError("the answer is lost"), ConflictError(["x"])], ids=["lost", "met itself"])
@pytest.mark.parametrize("looks", [0, 1, 2, 3])
def test_an_unknown_outcome_is_an_error_that_says_so(tmp_path: Path, answer: Exception, looks: int) -> None:
    """After a lost answer no read succeeds: this is neither a node's conflict nor a commit, and a resume finds out."""
    posts: list[int] = []

    class Ticket(Node[int, int], name="ticket"):
        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            posts.append(n)
            return int(await store.update("tickets", lambda tickets: tickets + 1, default=0))

        async def on_failure(self, store: StoreWriter, outcome: Any) -> None:
            raise AssertionError("nobody knows that it has failed")

    @node.post
    async def show(store: StoreWriter, n: int) -> str:
        await store.set("printed", n)
        return f"ticket {n}"

    unsure = Unsure(plan=[None, answer], looks=[StoreError("not reachable just now")] * looks)

    async def main() -> None:
        async with stored(tmp_path, layers=[unsure]) as store:
            graph = Graph(Ticket() >> show, store=store, name="g")
            if looks == 3:
                with pytest.raises(
                    OutcomeUnknownError, match=r"run 'r': whether the write of 'ticket#1' .*resume\('r'\)"
                ):
                    await graph.run(1, run_id="r")
            assert await graph.run(1, run_id="r") == "ticket 1"
            assert await state(store) == {"tickets": 1, "printed": 1}
            assert posts == [1]

    run_virtual(main())
    assert unsure.plan == unsure.looks == []  # all of it has happened


def test_a_run_whose_store_is_closed_says_so(tmp_path: Path) -> None:
    """Not that its outcome is unknown and that a resume finds out: nothing was sent. Opened again, it runs."""

    @node
    def same(n: int) -> int:
        return n

    store = SyncStore(f"sqlite:///{tmp_path}/state.db")
    graph = Graph(same, store=store, name="g")
    with store:
        pass
    with pytest.raises(StoreClosedError, match=r"`store\.open\(\)`.* not again after a close"):
        graph.run_sync(1, run_id="r")
    store.open()
    assert graph.run_sync(1, run_id="r") == 1
    store.close()


@pytest.mark.parametrize("errors", ["raise", "collect"])
@pytest.mark.parametrize("fault", ["refuse", "lose"])
@pytest.mark.parametrize("at", range(5))
def test_a_failure_to_record_an_item_is_not_its_result(tmp_path: Path, errors: Any, fault: str, at: int) -> None:
    """The store fails as an item's checkpoint is written: that ends the execution, and a resume executes the item."""

    async def main() -> None:
        async with stored(tmp_path, layers=[Faulty(plan=[""] * at + [fault])]) as store:
            way = Graph(Pay() >> Pay().with_options(name="more"), name="way")
            graph = Graph(each(way, concurrency=1, errors=errors), store=store, name="g")
            with suppress(StoreError):
                await graph.run([1, 2], run_id="r")
            assert await graph.run([1, 2], run_id="r") == [1, 2]
            assert await store.get("paid") == 6

    asyncio.run(main())


class Unreachable(Layer):
    """Can't read some keys, once."""

    name = "unreachable"
    keys: Any = ()

    async def read(self, key: str) -> Entry | None:
        if key in self.keys:
            self.keys.remove(key)
            raise StoreError("not reachable just now")
        return await self.inner.read(key)


@pytest.mark.parametrize("phase", ["prep", "post", "prefetch"])
def test_a_failure_to_read_the_runs_store_is_not_an_items_result(tmp_path: Path, phase: str) -> None:
    """If an item can't read the run's own store, the execution ends; another store's failure is the item's result."""

    class Reads(Node[int, int], name="reads"):
        async def prep(self, store: StoreReader, n: int) -> int:
            return int(await store.get("prep", n))

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            return int(await store.get("post", n))

    class Prefetches(Node[int, int], name="prefetches", reads=(Key("prefetch"),)):
        async def prep(self, store: StoreReader, n: int) -> int:
            return n

    @node
    async def elsewhere(n: int) -> int:
        async with Store(Memory(), layers=[Unreachable(keys=["x"])]) as other, other.transaction() as transaction:
            return int(await transaction.get("x", 1))

    async def main() -> None:
        layer = Unreachable(keys=[phase])
        async with stored(tmp_path, layers=[layer]) as store:
            graph = Graph(
                each(Reads() if phase != "prefetch" else Prefetches(), errors="collect"), store=store, name="g"
            )
            with pytest.raises(StoreError, match="not reachable"):
                await graph.run([1, 2], run_id="r")
            assert await graph.run([1, 2], run_id="r") == [1, 2]
            other = Graph(each(elsewhere, errors="collect"), store=store, name="other")
            assert [type(result) for result in await other.run([1], run_id="other")] == [RecordedError]

    asyncio.run(main())


@pytest.mark.parametrize("result", [object(), Stumble("as a result")])
def test_an_item_that_can_not_be_stored_ends_the_execution(tmp_path: Path, result: object) -> None:
    """The program has to be corrected: nothing of the item was committed, and a resume executes it again."""
    results = [result]

    class Odd(Node[int, object], name="odd"):
        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> object:
            await store.update("done", lambda done: [*done, n], default=[])
            return results[0] if n else n

    async def main() -> None:
        async with stored(tmp_path) as store:
            graph = Graph(each(Odd(), concurrency=1, errors="collect"), store=store, name="g")
            with pytest.raises(UnregisteredTypeError, match="the output of node 'odd'"):
                await graph.run([0, 1], run_id="r")
            assert await store.get("done") == [0]
            results[:] = ["mended"]
            assert await graph.run([0, 1], run_id="r") == [0, "mended"]
            assert await store.get("done") == [0, 1]

    asyncio.run(main())


@pytest.mark.parametrize("at", range(1, 10))
def test_an_overtaken_execution_is_fenced(tmp_path: Path, at: int) -> None:
    """The run is taken over during any exec and finished: the first execution writes nothing more and gets RunFencedError."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            first, graph = Worker(), Worker().graph(store)
            reach = first.reach
            taken: list[Any] = []

            def overtaken(name: str) -> None:
                reach(name)
                if first.visits == at:
                    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as other:
                        taken.append(_in_thread(lambda: Worker().graph(other).run_sync(0, run_id="r", takeover=True)))

            first.reach = overtaken  # type: ignore[method-assign]
            with pytest.raises(RunFencedError, match="epoch 2 owns it, this is epoch 1"):
                await first.graph(store).run(0, run_id="r")
            assert taken == [30]
            assert len(first.execs) == at
            assert await graph.run(0, run_id="r") == 30
            assert await state(store) == UNDISTURBED

    asyncio.run(main())


def _in_thread(work: Callable[[], Any]) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


class Slow(Layer):
    """Lets other tasks run before each operation."""

    name = "slow"

    async def read(self, key: str) -> Entry | None:
        await asyncio.sleep(0)
        return await self.inner.read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        await asyncio.sleep(0)
        return await self.inner.write(changes, expect)


def test_two_that_race_for_one_run(tmp_path: Path) -> None:
    """Started at once, any number of times: one of them ends the run, the others get RunBusyError or the result.

    Those that take it over fence the others.
    """

    async def main() -> None:
        async with stored(tmp_path, layers=[Slow()]) as store:
            for round in range(10):
                takeover, lost = (False, RunBusyError) if round % 2 else (True, RunFencedError)
                runs = [Worker().graph(store).run(0, run_id=f"r{round}", takeover=takeover) for _ in range(4)]
                results = await asyncio.gather(*runs, return_exceptions=True)
                assert all(result == 30 or isinstance(result, lost) for result in results), results
                assert 30 in results
                assert (await store.get("counted"), await store.get("ended")) == (3 * (round + 1), round + 1)

    asyncio.run(main())


@pytest.mark.parametrize("stumble_at", [-1, 1, 5])
def test_a_late_claim_undoes_nothing(tmp_path: Path, stumble_at: int) -> None:
    """Between the read of a run and the claim, another execution starts or continues it: the run is read again."""

    async def main() -> None:
        async def other() -> None:
            async with stored(tmp_path) as store:
                await Worker().graph(store).run(0, run_id="r")

        async with stored(tmp_path) as store:
            if stumble_at > 0:
                with pytest.raises(Stumble):
                    await Worker(stumble_at).graph(store).run(0, run_id="r")
        async with stored(tmp_path, layers=[Faulty(plan=[other])]) as store:
            late = Worker()
            assert await late.graph(store).run(0, run_id="r") == 30
            assert late.execs == []
            assert await state(store) == UNDISTURBED

    asyncio.run(main())


def test_over_a_cache_that_is_behind(tmp_path: Path) -> None:
    """Two stores that cache one file: the other store's changes of a run are found, however old the own cache is."""

    async def main() -> None:
        def through() -> Store:
            return Store(layers=[Persistence(to=f"sqlite:///{tmp_path}/state.db?durability=process")])

        async with through() as one, through() as other:
            with pytest.raises(RunSuspendedError):
                await approval(one).run(Draft("hi"), run_id="r")
            with pytest.raises(RunSuspendedError):
                await approval(other).resume("r")
            assert await approval(other).resume("r", answer=True) == "sent hi"
            assert await approval(one).resume("r") == "sent hi"
            with pytest.raises(Stumble):
                await Worker(3).graph(one).run(0, run_id="w")
            with pytest.raises(Stumble):
                await Worker(3).graph(other).run(0, run_id="w")
            assert await Worker().graph(one).run(0, run_id="w") == 30
            assert await Worker().graph(other).run(0, run_id="w") == 30
        async with stored(tmp_path) as store:
            assert await state(store) == {**UNDISTURBED, "decided": 1}

    asyncio.run(main())


def test_a_removed_run_is_fenced(tmp_path: Path) -> None:
    """If the records are removed, the run stops at its next commit."""

    async def main() -> None:
        async with stored(tmp_path) as store:

            @node
            async def removing(n: int) -> int:
                from pocket_plug import Delete

                await store.stack.write([Delete("pocket:run:r")])
                return n

            with pytest.raises(RunFencedError, match="removed"):
                await Graph(removing, store=store).run(1, run_id="r")

    asyncio.run(main())


def test_ordinary_conflicts_are_retried(tmp_path: Path) -> None:
    """A conflict over the user's keys is handled as usual, and the checkpoint's version is still the expected one."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            meddled = 0

            @node.post
            async def add(view: StoreWriter, n: int) -> int:
                nonlocal meddled
                value: int = await view.get("sum", 0)
                if meddled < 5:
                    meddled += 1
                    await store.set("sum", value + 100)
                await view.set("sum", value + n)
                return n

            assert await Graph(add >> add.with_options(name="more"), store=store).run(1, run_id="r") == 1
            assert await store.get("sum") == 502

    asyncio.run(main())


def test_hostile_records_are_refused(tmp_path: Path) -> None:
    """A record that lacks a field, or has one of another type, is an error of pocket_plug that names it; nothing is executed."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            worker = Worker(4)
            graph = worker.graph(store)
            with pytest.raises(Stumble):
                await graph.run(0, run_id="r")
            for key in ("pocket:run:r", "pocket:run-part:r:start"):
                entry = await store.stack.read(key)
                assert entry is not None
                hostile: list[Any] = [None, [], {}, {**entry.value, "extra": 1}]
                for name in entry.value:
                    hostile += [
                        {**entry.value, name: 1j},
                        {other: entry.value[other] for other in entry.value.keys() - {name}},
                    ]
                if "frames" in entry.value:
                    frame = entry.value["frames"][0]
                    frames: list[list[Any]] = [[{}], [{**frame, "value": b"x"}], []]
                    hostile += [{**entry.value, "frames": wrong} for wrong in frames]
                for value in hostile:
                    await store.stack.write([Put(key, value)])
                    with pytest.raises((CodecError, RunChangedError)):
                        await graph.resume("r")
                if "format" in entry.value:
                    await store.stack.write([Put(key, {**entry.value, "format": FORMAT + 1, "new": True})])
                    with pytest.raises(StoreError, match="newer"):
                        await graph.resume("r")
                await store.stack.write([Put(key, entry.value)])
            assert len(worker.execs) == 4
            assert await graph.resume("r") == 30

    asyncio.run(main())


@given(st.lists(st.sampled_from(["", "", "", "refuse", "lose", "repeat", "cancel"]), max_size=40),
       st.lists(st.integers(1, 12), max_size=5), st.sampled_from([1, 3]))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_mixture_of_faults(plan: list[str], stumbles: list[int], concurrency: int) -> None:
    """Writes that fail, are done unseen or are cancelled, and nodes that raise, in any order: the result
    is the undisturbed one.
    """

    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with stored(Path(folder), layers=[Faulty(plan=plan)]) as store:
                for stumble_at in [*stumbles, *[-1] * (len(plan) + 1)]:
                    try:
                        assert await Worker(stumble_at, concurrency).graph(store).run(0, run_id="r") == 30
                        break
                    except (Stumble, StoreError, asyncio.CancelledError):
                        pass
                assert await Worker().graph(store).resume("r") == 30
                found = await state(store)
                assert {**found, "items": sorted(found["items"])} == UNDISTURBED

    plan = list(plan)
    asyncio.run(main())


# ---------------------------------------------------------------- hooks
def test_hooks_run_at_least_once(tmp_path: Path) -> None:
    """If a commit was done and its on_success did not end, the resume calls on_success, also for the last node."""
    log: list[str] = []

    class Hooked(Node[int, int], name="hooked"):
        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            await store.update("posted", lambda old: old + 1, default=0)
            return n + 1

        async def on_success(self, store: StoreWriter, output: int) -> None:
            log.append(f"success {output} {idempotency_key()}")
            if len(log) == 1:
                raise KeyboardInterrupt

        async def on_complete(self, store: StoreWriter) -> None:
            log.append("complete")
            await store.update("completed", lambda old: old + 1, default=0)

    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
        graph = Graph(Hooked(), store=store)
        with pytest.raises(KeyboardInterrupt):
            graph.run_sync(1, run_id="r")
        assert graph.run_sync(1, run_id="r") == 2
        assert graph.run_sync(1, run_id="r") == 2
        assert log == ["success 2 r/hooked#1", "success 2 r/hooked#1", "complete"]
        assert (store.get("posted"), store.get("completed")) == (1, 1)


def test_hooks_of_items_run_at_least_once(tmp_path: Path) -> None:
    """An item's, too: again only if they were interrupted, and never after they have ended."""
    log: list[str] = []

    class Hooked(Node[int, int], name="hooked"):
        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            await store.update("posted", lambda old: old + n, default=0)
            return n

        async def on_success(self, store: StoreWriter, output: int) -> None:
            log.append(idempotency_key())
            if len(log) == 2:
                raise KeyboardInterrupt

    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
        graph = Graph(each(Hooked(), concurrency=1), store=store)
        with pytest.raises(KeyboardInterrupt):
            graph.run_sync([1, 2, 4], run_id="r")
        assert graph.run_sync([1, 2, 4], run_id="r") == [1, 2, 4]
        assert log == [f"r/each_hooked#1[{position}]" for position in (0, 1, 1, 2)]
        assert store.get("posted") == 7


def test_hooks_of_a_fenced_execution_write_nothing(tmp_path: Path) -> None:
    """on_failure runs, to release resources; its writes are not committed."""
    called: list[BaseException] = []

    async def main() -> None:
        async with stored(tmp_path) as store:
            overtake = True

            class Hooked(Node[int, int], name="hooked"):
                async def exec(self, prepared: int) -> int:
                    nonlocal overtake
                    if overtake:
                        overtake = False
                        await graph.run(1, run_id="r", takeover=True)
                    return prepared

                async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
                    called.append(error)
                    await store.set("failed", True)

            graph = Graph(Hooked(), store=store)
            with pytest.raises(RunFencedError):
                await graph.run(1, run_id="r")
            assert isinstance(called[0], RunFencedError)
            assert await store.get("failed") is None

    asyncio.run(main())


# ---------------------------------------------------------------- asking
@dataclass
class Draft:
    text: str


def approval(store: Store | SyncStore) -> Graph[Draft, str]:
    approve = Ask[Draft, bool](bool, question=lambda draft: f"send {draft.text!r}?", name="approve")

    @node.post
    async def decide(store: StoreWriter, answered: Answered[Draft, bool]) -> Draft | Next[Draft]:
        await store.update("decided", lambda old: old + 1, default=0)
        return answered.input if answered.answer else Next("reject", answered.input)

    @node
    async def send(draft: Draft) -> str:
        return f"sent {draft.text}"

    @node
    async def discard(draft: Draft) -> str:
        return f"dropped {draft.text}"

    inner: Graph[Draft, Draft] = Graph(approve >> decide, name="asking")
    return Graph(inner >> send, inner.on("reject") >> discard, store=store, name="approval")


def test_a_run_waits_for_an_answer(tmp_path: Path) -> None:
    """It is suspended with the question, and no process waits; an answer of the right type lets it continue."""

    async def main() -> None:
        for answer, result in ((True, "sent hi"), (False, "dropped hi")):
            async with stored(tmp_path) as store:
                with pytest.raises(RunSuspendedError) as suspended:
                    await approval(store).run(Draft("hi"), run_id=result)
                assert (suspended.value.run_id, suspended.value.question) == (result, "send 'hi'?")
                copied = copy.copy(suspended.value)
                assert (copied.run_id, copied.question, str(copied)) == (result, "send 'hi'?", str(suspended.value))
            async with stored(tmp_path) as store:
                graph = approval(store)
                for again in (graph.run(Draft("hi"), run_id=result), graph.resume(result)):
                    with pytest.raises(RunSuspendedError, match=f"run {result!r} waits for an answer"):
                        await again
                with pytest.raises(InputError, match=r"'approve' .* asks for bool, not str"):
                    await graph.resume(result, answer="yes")
                assert await graph.resume(result, answer=answer) == result
                assert await graph.resume(result, answer=answer) == result
                with pytest.raises(RunMismatchError, match="was already answered"):
                    await graph.resume(result, answer=not answer)
        async with stored(tmp_path) as store:
            assert await store.get("decided") == 2

    asyncio.run(main())


def test_an_answer_is_kept(tmp_path: Path) -> None:
    """If a run fails after the answer, resuming needs no answer; the next question needs its own."""

    async def main() -> None:
        stumbles = [Stumble()]
        one = Ask[Any, int](int, question=lambda value: "one", name="one")
        two = Ask[Any, int](int, question=lambda value: "two", name="two")

        class Between(Node[Answered[Any, int], int], name="between"):
            async def exec(self, prepared: Answered[Any, int]) -> int:
                if stumbles:
                    raise stumbles.pop()
                return prepared.answer

        @node
        async def both(answered: Answered[int, int]) -> tuple[int, int]:
            return answered.input, answered.answer

        async with stored(tmp_path, layers=[Faulty(plan=(plan := list[str]()))]) as store:
            graph = Graph(one >> Between() >> two >> both, store=store)
            with pytest.raises(RunSuspendedError):
                await graph.run("x", run_id="r")
            plan[:] = ["", "refuse"]  # the answer is taken, and the node that asked fails
            with pytest.raises(StoreError, match="gone"):
                await graph.resume("r", answer=1)
            with pytest.raises(Stumble):
                await graph.resume("r")
            with pytest.raises(RunSuspendedError):
                await graph.run("x", run_id="r")
            with pytest.raises(
                RunMismatchError, match=r"has asked 2 questions.*; give question=…\. Open questions: 'two#1'"
            ):
                await graph.resume("r", answer=1)  # the call that gave the first answer, once more
            with pytest.raises(RunMismatchError, match="question 'one#1' was already answered"):
                await graph.resume("r", answer=2, question=one)
            assert await graph.resume("r", answer=2, question=two) == (1, 2)
            assert await graph.resume("r", answer=1, question="one#1") == (1, 2)

    asyncio.run(main())


def test_asking_needs_a_durable_run(tmp_path: Path) -> None:
    """Without a run_id it is refused before anything runs, among the items of a fan-out too."""
    ask = Ask[int, int](int, question=str, name="ask")
    with pytest.raises(ConfigError, match="run_id="):
        approval(Store()).run_sync(Draft("hi"))
    with pytest.raises(ConfigError, match="run_id="):
        Graph(each(ask)).run_sync([1])


# ---------------------------------------------------------------- retention and observers
class Pay(Node[int, int], name="pay"):
    """Pays, and can be told to simulate a power failure."""

    async def post(self, store: StoreWriter, amount: int, prepared: int, paid: int) -> int:
        await store.update("paid", lambda total: total + paid, default=0)
        return paid


def paying(store: Store, **options: Any) -> Graph[list[int], list[int]]:
    return Graph(each(Pay()), store=store, name="paying", **{"keep_finished": "1h", **options})


async def end_another(store: Store, number: int) -> None:
    """Let another run end, since finished runs are removed then."""
    await Graph(node(lambda n: n), store=store, name="other", keep_finished="9999d").run(
        number, run_id=f"other {number}"
    )


def test_finished_runs_are_kept_for_keep_finished(tmp_path: Path) -> None:
    """With keep_finished all records of a run are removed, at the earliest that long after its end; then the id is free."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock=clock) as store:
            assert await paying(store, keep_finished=None).run([1, 2], run_id="for ever") == [1, 2]
            assert await paying(store).run([1, 2], run_id="r") == [1, 2]
            for number, seconds in enumerate((3599, 1, 3599, 1)):
                await end_another(store, number)
                clock.advance(seconds)
                assert await paying(store).run([1, 2], run_id="r") == [1, 2]
                assert await store.get("paid") == 6
            await end_another(store, 9)
            assert [key for key in await records(store) if ":r" in key.removeprefix("pocket:run")] == []
            assert await paying(store).run([1, 2], run_id="r") == [1, 2]
            assert await store.get("paid") == 9
            assert len([key for key in await records(store) if "for ever" in key]) == 4

    asyncio.run(main())


@pytest.mark.parametrize("wrong", ["finisher", "first", "second", "both"])
@pytest.mark.parametrize("ahead", [7200, -7200, 86_400 * 365])
def test_one_wrong_clock_removes_no_finished_run(tmp_path: Path, wrong: str, ahead: int) -> None:
    """However wrong one client's clock is, whether it ended the run or checks it later: the run isn't removed too early."""

    async def main() -> None:
        clock = FakeClock(2_000_000_000.0)

        def told(who: str) -> Callable[[], float]:
            return lambda: clock() + (ahead if wrong == who or (wrong == "both" and who != "finisher") else 0)

        async with stored(tmp_path, clock=told("finisher")) as store:
            await paying(store).run([5], run_id="r")
        for number in range(4):  # the hour is not over
            for who in ("first", "second"):
                async with stored(tmp_path, clock=told(who)) as store:
                    await end_another(store, number)
                    assert await paying(store).run([5], run_id="r") == [5]
                    assert await store.get("paid") == 5, (number, who)
            clock.advance(899)

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["refuse", "lose"])
def test_a_run_that_ends_late_still_has_its_items(tmp_path: Path, fault: str) -> None:
    """The write that ends it fails, and it is resumed long after: nothing is done again."""

    async def main() -> None:
        clock = FakeClock()
        plan = [""] * 3 + [fault]
        async with stored(tmp_path, clock=clock, layers=[Faulty(plan=plan)]) as store:
            with suppress(StoreError):
                await paying(store).run([1, 2], run_id="r")
            assert not plan
            clock.advance(3700)
            assert await paying(store).resume("r") == [1, 2]
            assert await store.get("paid") == 3

    asyncio.run(main())


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("fault", ["refuse", "lose"])
def test_an_interrupted_removal_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at: int, fault: str
) -> None:
    """Until its last write the run is a finished one that gives its result; the next end removes the rest."""
    monkeypatch.setattr("pocket_plug.graph.durable.removal.CHUNK", 1)

    async def main() -> None:
        clock, plan = FakeClock(), list[str]()
        async with stored(tmp_path, clock=clock, layers=[Faulty(plan=plan)]) as store:
            work = Graph(Pay() >> Pay().with_options(name="more"), store=store, name="work", keep_finished="1h")
            assert await work.run(1, run_id="r") == 1
            for number in range(2):
                clock.advance(3600)
                plan[:] = [""] * (2 + at) + [fault] if number else []
                await end_another(store, number)
            left = [key for key in await records(store) if key.endswith(":r") or ":r:" in key]
            if plan:  # it had fewer writes
                assert left == []
                return
            assert "removing finished runs failed" in caplog.text
            if left:
                assert await work.run(1, run_id="r") == 1
                assert await store.get("paid") == 2
            await end_another(store, 2)
            assert [key for key in await records(store) if key.endswith(":r") or ":r:" in key] == []

    asyncio.run(main())


def test_an_old_schedule_removes_no_new_run(tmp_path: Path) -> None:
    """A run that was removed by hand and started again is kept from its own end on; damaged entries do no harm."""

    async def main() -> None:
        clock = FakeClock()
        async with stored(tmp_path, clock=clock) as store:
            await paying(store).run([1], run_id="r")
            removed = [Delete(key) for key in await records(store) if "ended" not in key]
            await store.stack.write(removed)
            clock.advance(3000)
            await paying(store).run([1], run_id="r")
            hostile = {"x": {}, "0:x": None, "00000000000000.000:r": {"owner": 1}, "00000000000000.000:y": [1]}
            await store.stack.write([Put(f"pocket:run-ended:{name}", value) for name, value in hostile.items()])
            for number in range(4):
                clock.advance(1000)
                await end_another(store, number)
            assert await paying(store).resume("r") == [1]
            for number in range(4, 7):
                clock.advance(3600)
                await end_another(store, number)
            left = await records(store, "pocket:run-ended:")
            assert not [key for key in left if key.endswith((":r", ":y"))]
            with pytest.raises(UnknownRunError):
                await paying(store).resume("r")

    asyncio.run(main())


class Watcher:
    """A plugin that records runs and nodes with their outcomes, and events."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    @hookimpl
    def pocket_observe(self, run: Run) -> Observer:
        return Observer(run=self.run, node=self.node, event=self.event)

    @contextmanager
    def run(self, run: Run) -> Any:
        try:
            yield
        finally:
            self.seen.append((run.id, run.resumed, run.outcome) if run.parent is None else (run.graph, run.outcome))

    @contextmanager
    def node(self, call: NodeCall) -> Any:
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.seen.append((call.name, call.visit, call.outcome, error))

    def event(self, name: str, call: NodeCall, attributes: Mapping[str, Any]) -> None:
        self.seen.append((name, call.name, dict(attributes)))


def test_what_observers_see(tmp_path: Path) -> None:
    """A suspended run has that outcome and no error; a resumed one has the same id, and one event that says so."""
    watcher = Watcher()

    async def main() -> None:
        pocket = Pocket(plugins=[watcher], autoload=False)
        async with stored(tmp_path) as store:
            with pytest.raises(RunSuspendedError):
                await pocket.run(approval(store), Draft("hi"), run_id="mail")
            assert watcher.seen == [
                ("question", "approve", {"run_id": "mail", "question": "send 'hi'?", "question_id": "asking#1/approve#1"}),
                ("approve", 1, "suspended", None), ("asking", "suspended"), ("asking", 1, "suspended", None),
                ("mail", False, "suspended"),
            ]  # fmt: skip
            watcher.seen.clear()
            await approval(store).resume("mail", answer=True, pocket=pocket)
            assert watcher.seen == [
                ("resume", "approve", {"epoch": 2}), ("approve", 1, "ok", None), ("decide", 1, "ok", None),
                ("asking", "success"), ("asking", 1, "ok", None), ("send", 1, "ok", None), ("mail", True, "success"),
            ]  # fmt: skip

    asyncio.run(main())


def test_a_node_knows_the_id_of_its_run(tmp_path: Path) -> None:
    """In all phases and hooks, in worker threads, items and nested graphs, and of the outermost run."""
    seen = dict[str, str]()

    class Noting(Node[int, list[int], int]):
        def prep(self, store: SyncReader, n: int) -> int:
            seen["prep"] = current_run_id()
            return n

        def exec(self, n: int) -> int:
            seen["exec"] = current_run_id()
            return n

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> list[int]:
            seen["post"] = current_run_id()
            return [1, 2]

        async def on_success(self, store: StoreWriter, output: object) -> None:
            seen["on_success"] = current_run_id()

    @node
    async def item(n: int) -> int:
        seen[f"item {n}"] = current_run_id()
        return n

    async def main() -> None:
        async with stored(tmp_path) as store:
            graph = Graph(Noting() >> each(Graph(item, name="inner")), name="outer")
            await graph.run(1, run_id="a/b%2F:é", store=store)
            assert set(seen.values()) == {"a/b%2F:é"}
            assert len(seen) == 6
            with pytest.raises(UnknownRunError, match=r"current_run_id\(\): there is no durable run here"):
                await graph.run(1, store=store)

    asyncio.run(main())


def test_reading_a_durable_run_starts_no_trace(tmp_path: Path) -> None:
    """Its records are read and claimed before its span exists; if there is a current span of the user's, they are below it."""

    @node.post
    async def keep(inside: StoreWriter, n: int) -> int:
        await inside.set("n", n)
        return n

    async def main() -> None:
        pocket = Pocket(autoload=False)
        async with Store(f"sqlite:///{tmp_path}/runs.db", layers=["tracing"]) as store:
            graph = Graph(keep, store=store)
            with SpanCapture("node") as alone, session("chat"):
                await graph.run(1, run_id="a", pocket=pocket)
            with SpanCapture("node") as within, within.tracer_provider.get_tracer("").start_as_current_span("request"):
                await graph.run(1, run_id="b", pocket=pocket)
        assert [span.name for span in alone.spans if span.parent is None] == ["run graph"]
        assert [span.name for span in within.spans if span.parent is None] == ["request"]

    asyncio.run(main())


def test_a_resumed_run_is_linked_to_its_previous_execution(tmp_path: Path) -> None:
    """Each execution is a trace of its own, with the same run id and a link to the previous one, in whatever process that was."""

    async def main() -> None:
        pocket = Pocket(autoload=False)
        with SpanCapture("run") as capture:
            for _ in range(2):
                async with stored(tmp_path) as store:
                    with pytest.raises(RunSuspendedError):
                        await pocket.run(approval(store), Draft("hi"), run_id="mail")
            async with stored(tmp_path) as store:
                await approval(store).resume("mail", answer=True, pocket=pocket)
        first, second = (span for span in capture.spans if span.name == "run approval")
        assert first.attributes is not None
        assert second.attributes is not None
        assert first.attributes["pocket_plug.run.id"] == second.attributes["pocket_plug.run.id"] == "mail"
        assert first.attributes["pocket_plug.run.outcome"] == "suspended"
        assert first.status.is_unset
        assert first.attributes["pocket_plug.run.resumed"] is False
        assert second.attributes["pocket_plug.run.resumed"] is True
        linked = [(link.context.trace_id, link.context.span_id) for link in second.links]
        assert first.context is not None
        assert linked == [(first.context.trace_id, first.context.span_id)]
        assert not first.links

    asyncio.run(main())


def test_no_file_is_read_in_the_encoding_of_the_locale(tmp_path: Path) -> None:
    """Python can warn of that, and a program may make the warning an error."""
    script = f"""
from pocket_plug import Graph, SyncStore, node

@node
def double(n: int) -> int:
    return 2 * n

with SyncStore("sqlite:///{tmp_path}/state.db") as store:
    print(Graph(double, store=store).run_sync(21, run_id="r"))
"""
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning", "-c", script]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")
