"""A run calls its ledger at each step, and a kind of node has its own step function."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import MISSING, ConflictError, Graph, Node, Store, StoreWriter, each, node
from pocket_plug.graph.observing.views import NodeCall
from pocket_plug.graph.planning.plan import Plan
from pocket_plug.graph.planning.step import Step, Visited, make_step
from pocket_plug.graph.running.execution import Execution
from pocket_plug.graph.running.protocols import Commit, Running, Travel
from pocket_plug.plugins.pocket import default_pocket
from pocket_plug.store.backend import NO_EXPECTATIONS, Put


class Notebook:
    """A ledger that stores nothing: it records its calls, and writes what nodes have changed."""

    def __init__(self, notes: list[str], begins_at: str = "", result: Any = MISSING, indent: str = "") -> None:
        self.notes, self.begins_at, self.result, self.indent = notes, begins_at, result, indent
        self.fence = NO_EXPECTATIONS

    def note(self, text: str) -> None:
        self.notes.append(self.indent + text)

    async def claim(self, run: Running, value: Any) -> Any:
        self.note("claim")
        return self.result

    async def refence(self, conflict: ConflictError) -> bool:
        raise AssertionError("nothing is in conflict")

    async def hold(self, run: Running, travel: Travel, value: Any) -> Any:
        self.note("hold")
        return await travel(value)

    async def begin(self, run: Running, value: Any) -> Visited:
        self.note("begin")
        return run.plan.named(self.begins_at) or run.plan.start, value, None

    def stand_at(self, step: Step) -> None:
        self.note(f"at {step.name}")

    def report_resumed(self, run: Running, call: NodeCall) -> None:
        pass  # logged if somebody observes, as pytest's logging does

    async def commit(self, run: Running, step: Step, target: Step | None, output: Any, commit: Commit | None) -> None:
        changes, expect = commit or ((), NO_EXPECTATIONS)
        self.note(
            f"commit {step.name}: {[change.key for change in changes]}, then {target.name if target else 'the end'}"
        )
        if changes:
            await run.stack.write(changes, expect)

    async def end(self, run: Running) -> None:
        self.note("end")

    def unregister(self) -> None:
        pass

    async def close(self) -> None:
        self.note("close")

    def nested(self) -> Notebook:
        return Notebook(self.notes, indent=f"{self.indent}  ")

    async def ask(self, run: Running, step: Step, question: Any) -> Any:
        return f"answer to {question}"

    def in_order(self, items: Iterable[Any]) -> Iterable[Any]:
        return sorted(items)

    async def item(self, run: Running, step: Step, item: Any, position: int) -> Visited:
        self.note(f"item {item} at {position}")
        return await run.beside(Notebook(self.notes, indent=f"{self.indent}  ")).visit(step, item)

    def must_end(self, error: Exception) -> bool:
        return False

    def collected(self, error: Exception) -> Exception:
        return KeyError("as it is kept")


def run_with(ledger: Notebook, graph: Graph[Any, Any], value: Any) -> Any:
    place = graph.place(Store())

    async def go() -> Any:
        return await Execution(graph, place, value, default_pocket(), loop=True, ledger=ledger).go()

    return asyncio.run(go())


@node
async def plus(n: int) -> int:
    return n + 1


@node.post
async def keep(store: StoreWriter, n: int) -> int:
    await store.set("n", n)
    return n


@node
async def fails(n: int) -> int:
    raise ValueError(n)


def test_a_run_calls_its_ledger_at_each_step() -> None:
    """At the start, before each node, at each commit, and at the end; nested graphs have a ledger of their own."""
    notes: list[str] = []
    inner = Graph(keep, name="inner")
    assert run_with(Notebook(notes), Graph(plus >> inner), 1) == 2
    assert notes == [
        "claim", "hold", "begin",
        "at plus", "commit plus: [], then inner",
        "at inner",
        *("  claim", "  hold", "  begin", "  at keep", "  commit keep: ['n'], then the end", "  end", "  close"),
        "commit inner: [], then the end",
        "end", "close",
    ]  # fmt: skip


def test_the_ledger_says_where_a_run_starts_and_what_result_it_has() -> None:
    """At a node in the middle; or nowhere, since there is a result."""
    notes: list[str] = []
    graph = Graph(plus >> keep)
    assert run_with(Notebook(notes, begins_at="keep"), graph, 1) == 1
    assert "at plus" not in notes
    notes.clear()
    assert run_with(Notebook(notes, result="done"), graph, 1) == "done"
    assert notes == ["claim"]


def test_a_fan_out_asks_the_ledger_for_its_items() -> None:
    """For their order, for each of them, and for an error that is collected."""
    notes: list[str] = []
    assert run_with(Notebook(notes), Graph(each(plus, concurrency=1)), {3, 1}) == [2, 4]
    assert [note for note in notes if "item" in note] == ["item 1 at 0", "item 3 at 1"]
    (collected,) = run_with(Notebook([]), Graph(each(fails, errors="collect")), [1])
    assert repr(collected) == "KeyError('as it is kept')"


# ---------------------------------------------------------------- steps
class Twice(Node[int, int]):
    """A new kind of node."""


class TwiceStep(Step):
    async def perform(self, run: Running, call: NodeCall | None, value: Any) -> int:
        return 2 * int(value)


@pytest.fixture
def twice() -> Twice:
    make_step.register(Twice, TwiceStep)
    return Twice()


@pytest.mark.parametrize("how", ["run", "run_sync", "item"])
def test_a_kind_of_node_brings_its_step(how: str, twice: Twice) -> None:
    """It is registered once, and runs like any node, as an item of a fan-out too."""
    if how == "item":
        assert Graph(each(twice)).run_sync([1, 2]) == [2, 4]
    else:
        graph = Graph(plus >> twice)
        assert (graph.run_sync(1) if how == "run_sync" else asyncio.run(graph.run(1))) == 4


def test_steps_of_async_nodes_are_the_same_everywhere() -> None:
    """A graph stores as little per node as it can: only a `def` phase in a worker thread is called in another way."""

    @node
    def blocks(n: int) -> int:
        return n

    plan: Plan = Graph(plus >> blocks).plan
    ways: Mapping[str, int] = {step.name: len({id(way) for way in step.ways}) for step in plan.steps.values()}
    assert ways == {"plus": 1, "blocks": 3}


def test_records_of_version_0_1_are_still_read(tmp_path: Path) -> None:
    """As they are in a file: the run's position, its input, its visits."""
    start = {"graph": "old", "scope": "", "input": bytes.fromhex("0100a505df1b01"), "started": 1e9,
             "shape": ["edge plus -default-> keep", "node keep", "node plus", "start plus"]}  # fmt: skip
    frame = {"node": "keep", "value": bytes.fromhex("01003c0c8ea102"), "visits": {"plus": 1}, "action": "default",
             "hooks": ""}  # fmt: skip
    run = {
        "format": 1, "status": "running", "graph": "old", "epoch": 1, "owner": "3d55034afbe400000001.2", "commits": 2,
        "steps": 1, "started": 1e9, "updated": 1e9, "frames": [frame], "question": None, "answer": None,
        "is_answered": False, "result": None, "carrier": {},
    }  # fmt: skip

    async def resumed() -> int:
        async with Store(f"sqlite:///{tmp_path}/state.db") as store:
            records = [Put("pocket:run-part:r:start", start), Put("pocket:run:r", run)]
            await store.stack.write(records)
            return await Graph(plus >> keep, store=store, name="old").resume("r")

    assert asyncio.run(resumed()) == 2
