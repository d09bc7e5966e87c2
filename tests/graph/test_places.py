"""An error says where in a run it comes from: one note with node, graph, visit and item, whatever way it took."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import Next, Node, Pocket, Retry, StoreWriter, SyncStore, each, fan_out, hookimpl, node
from pocket_plug.errors import InputError, RunSuspendedError
from pocket_plug.graph.graph import Graph
from pocket_plug.hookspecs import Observer, Run


class Watches:
    """A plugin that observes every phase, so that nodes take the slower path."""

    @hookimpl
    def pocket_observe(self, run: Run) -> Observer | None:
        return Observer(node=lambda call: None, phase=lambda call: None)


@node
async def fine(n: int) -> int:
    return n


@node
async def fails(n: int) -> int:
    raise ValueError(n)


@node
def fails_at_two(n: int) -> int:
    if n == 2:
        raise ValueError(n)
    return n


class Loop(Node[int, int], name="loop"):
    """Is repeated, and fails at the third visit."""

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int | Next[int]:
        if n == 2:
            raise ValueError(n)
        return Next("again", n + 1)


loop = Loop()
rounds = Graph(fine >> loop, loop.on("again") >> loop, name="rounds")
OF_ROUNDS = "at node 'loop' of graph 'rounds' (visit 3)"

CASES: dict[str, tuple[Graph[Any, Any], Any, str]] = {
    "node": (Graph(fine >> fails, name="g"), 1, "at node 'fails' of graph 'g' (visit 1)"),
    "def": (Graph(fine >> fails_at_two, name="g"), 2, "at node 'fails_at_two' of graph 'g' (visit 1)"),
    "guarded": (
        Graph(fails.with_options(retry=Retry(attempts=2)), name="g"), 1, "at node 'fails' of graph 'g' (visit 1)"),
    "loop": (rounds, 0, OF_ROUNDS),
    "nested": (Graph(fine >> Graph(rounds, name="middle"), name="outer"), 0,
               f"{OF_ROUNDS}, in node 'rounds' of graph 'middle' (visit 1), in node 'middle' of graph 'outer' (visit 1)"),
    "item": (Graph(each(fails_at_two), name="g"), [0, 1, 2],
             "at node 'fails_at_two', in item 2 of node 'each_fails_at_two' of graph 'g' (visit 1)"),
    "item that is a graph": (
        Graph(each(rounds), name="g"), [0], f"{OF_ROUNDS}, in item 0 of node 'each_rounds' of graph 'g' (visit 1)"),
    "input": (Graph(fine >> fails, name="g"), "text", "at node 'fine' of graph 'g' (visit 1)"),
    "input of an item": (Graph(each(fine), name="g"), ["text"],
                         "at node 'fine', in item 0 of node 'each_fine' of graph 'g' (visit 1)"),
    "input of an item that is a graph": (
        Graph(each(rounds), name="g"), [None],
        "at node 'fine' of graph 'rounds' (visit 1), in item 0 of node 'each_rounds' of graph 'g' (visit 1)"),
    "the items themselves": (Graph(each(fine), name="g"), None, "at node 'each_fine' of graph 'g' (visit 1)"),
}  # fmt: skip


def notes_of(error: BaseException) -> list[str]:
    return list(map(str, getattr(error, "__notes__", [])))


@pytest.mark.parametrize("how", ["run", "run_sync", "watched", "durable"])
@pytest.mark.parametrize("case", CASES)
def test_an_error_has_one_note_of_where_it_comes_from(tmp_path: Path, case: str, how: str) -> None:
    """From the node outwards: the graphs and items around it, each with its visit or position."""
    graph, input, wanted = CASES[case]
    if case == "the items themselves" and how != "durable":  # a generator can't be stored
        input = (1 // n for n in (1, 0))
    with pytest.raises((ValueError, InputError, ZeroDivisionError)) as caught:
        if how == "run":
            asyncio.run(graph.run(input))
        elif how == "durable":
            with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
                Graph(graph, name="all", store=store).run_sync(input, run_id="r")
        else:
            graph.run_sync(input, pocket=Pocket(plugins=[Watches()] if how == "watched" else []))
    outermost = f", in node '{graph.name}' of graph 'all' (visit 1)" if how == "durable" else ""
    assert notes_of(caught.value) == [wanted + outermost]


def test_collected_errors_say_which_item(tmp_path: Path) -> None:
    """They leave no graph, so their note ends with the fan-out; in a durable run they keep it."""
    wanted = ["at node 'fails_at_two', in item 1 of node 'each_fails_at_two' of graph 'each_fails_at_two' (visit 1)"]
    results = asyncio.run(fan_out(fails_at_two, [1, 2, 3], errors="collect"))
    assert notes_of(results[1]) == wanted  # type: ignore[arg-type]
    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
        graph = Graph(each(fails_at_two, errors="collect"), store=store, name="each_fails_at_two")
        for _ in range(2):
            kept: Any = graph.run_sync([1, 2, 3], run_id="r")
            assert notes_of(kept[1]) == wanted


def test_an_error_of_a_second_try_has_a_note() -> None:
    """A node is tried again after a conflict, which its commit has found, or one of its reads."""
    store = SyncStore()

    class Tries(Node[int, int]):
        def __init__(self, found_by: str) -> None:
            self.found_by, self.tries = found_by, 0

        async def post(self, view: StoreWriter, n: int, prepared: int, result: int) -> int:
            self.tries += 1
            if self.tries == 2:
                raise ValueError("second try")
            await view.length("log")
            store.delete("log")  # somebody else
            if self.found_by == "read":
                await view.tail("log", 1)
            return n

    for found_by in ("commit", "read"):
        store.append("log", "item")
        with pytest.raises(ValueError, match="second try") as caught:
            Graph(Tries(found_by), store=store, name="graph").run_sync(1)
        assert notes_of(caught.value) == ["at node 'tries' of graph 'graph' (visit 1)"]


def test_one_exception_raised_again_and_again_has_one_note() -> None:
    """An object that several nodes, runs and items raise, and that has notes of its own."""
    shared = ValueError("always the same one")
    shared.add_note("my own")

    @node
    async def raises(n: int) -> int:
        raise shared

    graph = Graph(fine >> Graph(raises, name="inner"), name="outer")
    for _ in range(3):
        for each_graph in (graph, Graph(raises, name="plain")):
            with pytest.raises(ValueError, match="always"):
                asyncio.run(each_graph.run(1))
        assert notes_of(shared) == ["my own", "at node 'raises' of graph 'plain' (visit 1)"]
    results = asyncio.run(fan_out(raises, [1, 2, 3], errors="collect"))
    assert results == [shared] * 3
    assert len(notes_of(shared)) == 2


def test_a_run_within_a_node_is_followed_by_the_nodes_place() -> None:
    """A node that runs another graph by itself: the one note leads from the inner graph to the outer one."""
    inner = Graph(fails, name="inner")

    @node
    async def runs(n: int) -> int:
        return await inner.run(n)

    with pytest.raises(ValueError, match="1") as caught:
        asyncio.run(Graph(runs, name="outer").run(1))
    assert notes_of(caught.value) == [
        "at node 'fails' of graph 'inner' (visit 1), in node 'runs' of graph 'outer' (visit 1)"
    ]


class Refuses(Exception):
    """Refuses notes."""

    def add_note(self, note: str) -> None:  # type: ignore[override]
        raise RuntimeError(note)


class Odd(Exception):
    """Has something else in their place."""

    __notes__ = 7  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [Refuses, Odd])
def test_an_exception_that_takes_no_note_is_raised_as_it_is(kind: type[Exception]) -> None:
    """The run ends with the user's error, not with one of pocket_plug."""

    @node
    async def raises(n: int) -> int:
        raise kind

    with pytest.raises(kind):
        asyncio.run(fan_out(raises, [1]))


def test_exceptions_that_are_no_errors_get_no_note(tmp_path: Path) -> None:
    """A run that waits for an answer, and one that is interrupted or cancelled."""
    from pocket_plug import Ask

    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
        with pytest.raises(RunSuspendedError) as caught:
            Graph(Ask[int, bool](bool, question=str), store=store).run_sync(1, run_id="r")
        assert notes_of(caught.value) == []

    for kind in (KeyboardInterrupt, asyncio.CancelledError):

        @node
        async def stops(n: int, kind: Any = kind) -> int:
            raise kind

        with pytest.raises(kind) as stopped:
            asyncio.run(Graph(stops).run(1))
        assert notes_of(stopped.value) == []


def test_a_resumed_run_counts_its_earlier_visits(tmp_path: Path) -> None:
    """The visits of its earlier executions count, with and without observers."""
    for pocket in (Pocket(plugins=[]), Pocket(plugins=[]), Pocket(plugins=[Watches()])):
        with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
            graph = Graph(fine >> loop, loop.on("again") >> loop, name="rounds", store=store)
            with pytest.raises(ValueError, match="2") as caught:
                graph.run_sync(0, run_id="r", pocket=pocket)
            assert notes_of(caught.value) == [OF_ROUNDS]
