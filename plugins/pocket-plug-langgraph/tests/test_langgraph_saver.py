"""What LangGraph's conformance suite doesn't test of the checkpointer."""

from __future__ import annotations

import asyncio
import operator
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypedDict

import pytest
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from pocket_plug_langgraph import PocketSaver, PocketStore

from pocket_plug import Change, ConfigError, Entry, KeyNameError, Store, StoreClosedError, SyncStore
from pocket_plug.layers import Layer
from pocket_plug.store.backend import NO_EXPECTATIONS

JOURNEY = Path(__file__).with_name("langgraph_journey.py")


def config(thread: str, **more: Any) -> Any:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **more}}


def put(saver: PocketSaver, thread: str, number: int, **metadata: Any) -> Any:
    """A checkpoint whose id is a number of two digits."""
    checkpoint = empty_checkpoint() | {"id": f"{number:02}"}
    return saver.put(config(thread), checkpoint, {"source": "loop", "step": number, **metadata}, {})


def ids(found: Iterator[CheckpointTuple]) -> list[str]:
    return [each.config["configurable"]["checkpoint_id"] for each in found]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SyncStore]:
    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as opened:
        yield opened


@pytest.fixture
def saver(store: SyncStore) -> PocketSaver:
    return PocketSaver(store)


# ---------------------------------------------------------------- without a loop
class InThreads(BaseCheckpointSaver[int]):
    """The sync methods of a saver, for a suite that calls async ones."""

    def __init__(self, saver: PocketSaver) -> None:
        super().__init__()
        self.saver = saver

    async def aput(self, *given: Any) -> Any:
        return await asyncio.to_thread(self.saver.put, *given)

    async def aput_writes(self, *given: Any, **named: Any) -> None:
        await asyncio.to_thread(self.saver.put_writes, *given, **named)

    async def aget_tuple(self, *given: Any) -> Any:
        return await asyncio.to_thread(self.saver.get_tuple, *given)

    async def alist(self, *given: Any, **named: Any) -> AsyncIterator[CheckpointTuple]:
        for each in await asyncio.to_thread(lambda: [*self.saver.list(*given, **named)]):
            yield each

    async def adelete_thread(self, *given: Any) -> None:
        await asyncio.to_thread(self.saver.delete_thread, *given)

    async def adelete_for_runs(self, *given: Any) -> None:
        await asyncio.to_thread(self.saver.delete_for_runs, *given)

    async def acopy_thread(self, *given: Any) -> None:
        await asyncio.to_thread(self.saver.copy_thread, *given)

    async def aprune(self, *given: Any, **named: Any) -> None:
        await asyncio.to_thread(self.saver.prune, *given, **named)


def test_the_sync_methods_pass_the_conformance_suite_too(tmp_path: Path) -> None:
    """From threads without an event loop, as a graph's `invoke` calls them."""

    @checkpointer_test(name="PocketSaver, sync")
    async def savers() -> AsyncIterator[InThreads]:
        with PocketSaver(f"sqlite:///{tmp_path}/sync.db?durability=process") as saver:
            yield InThreads(saver)

    report = asyncio.run(validate(savers))
    assert [failure for result in report.results.values() for failure in result.failures] == []
    assert sum(result.tests_passed for result in report.results.values()) == 81


# ---------------------------------------------------------------- crashes
@pytest.mark.crash
def test_a_killed_graph_is_resumed_by_another_process(tmp_path: Path) -> None:
    """Completed work isn't repeated, not even in a step that was half done; interrupted work is, and the result is complete."""
    url, log = f"sqlite:///{tmp_path}/state.db?durability=process", tmp_path / "log"
    command = [sys.executable, str(JOURNEY), url, str(log)]
    with subprocess.Popen([*command, "begin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    assert process.returncode != 0
    resumed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert resumed.stdout == "date,hotel,train,paid\n"
    assert sorted(log.read_text().split()) == ["date", "hotel", "paid", "train", "train"]


# ---------------------------------------------------------------- graphs
class Numbers(TypedDict):
    """A state."""

    numbers: Annotated[list[int], operator.add]


def graph(saver: Any) -> Any:
    """A graph that asks, and adds the answer."""
    builder = StateGraph(Numbers)
    builder.add_node("ask", lambda state: {"numbers": [interrupt("how many?")]})
    builder.add_edge(START, "ask")
    builder.add_edge("ask", END)
    return builder.compile(checkpointer=saver)


def test_an_interrupted_graph_gets_its_answer_later(store: SyncStore) -> None:
    """By another saver over the same store, which knows only what is stored."""
    asked = graph(PocketSaver(store)).invoke({"numbers": [1]}, config("a"))
    assert asked["__interrupt__"][0].value == "how many?"
    assert graph(PocketSaver(store)).invoke(Command(resume=5), config("a")) == {"numbers": [1, 5]}


def test_async_graphs_too(tmp_path: Path) -> None:
    """With `ainvoke`, over a store that this event loop has opened."""

    async def ask_and_answer() -> Any:
        async with Store(f"sqlite:///{tmp_path}/state.db") as store:
            await graph(PocketSaver(store)).ainvoke({"numbers": [1]}, config("a"))
            answered = await graph(PocketSaver(store)).ainvoke(Command(resume=5), config("a"))
            history = [each async for each in graph(PocketSaver(store)).aget_state_history(config("a"))]
            return answered, len(history)

    assert asyncio.run(ask_and_answer()) == ({"numbers": [1, 5]}, 3)


def added(before: list[int], writes: Sequence[list[int]]) -> list[int]:
    return [*before, *(number for write in writes for number in write)]


class Deltas(TypedDict):
    """A state whose checkpoints contain only the new values."""

    numbers: Annotated[list[int], DeltaChannel(added, snapshot_frequency=4)]


@pytest.mark.parametrize("rounds", range(2, 8))
def test_pruning_keeps_what_a_delta_channel_is_made_of(saver: PocketSaver, rounds: int) -> None:
    """Wherever the last snapshot is, the state is the same before and after, and equal to that of LangGraph's own saver in
    memory.
    """
    states = []
    for each in (saver, InMemorySaver()):
        builder = StateGraph(Deltas)
        builder.add_node("add", lambda state: {"numbers": [len(state["numbers"])]})
        builder.add_edge(START, "add")
        builder.add_edge("add", END)
        made = builder.compile(checkpointer=each)
        for number in range(rounds):
            made.invoke({"numbers": [100 + number]}, config("a"))
        states.append(made.get_state(config("a")).values)
        if each is saver:
            count = len(list(saver.list(config("a"))))
            saver.prune(["a"])
            assert len(list(saver.list(config("a")))) < count
            states.append(made.get_state(config("a")).values)
    assert len(states[0]["numbers"]) == 2 * rounds
    assert states[0] == states[1] == states[2]


# ---------------------------------------------------------------- names
@pytest.mark.parametrize("thread", ["a:b", "pocket", "pocket:run", "50%", "", "ü\x00", "%3A", "a:"])
def test_a_thread_may_be_called_anything(saver: PocketSaver, thread: str) -> None:
    """The thread is found, and no other thread with it: no character in an id can end it."""
    others = {"a", "a:b:", f"{thread}:", f"{thread}x", f":{thread}"}
    for each in [thread, *others]:
        placed = put(saver, each, 1)
        saver.put_writes(placed, [("channel", each)], "task:1", "path:1")
    found = saver.get_tuple(config(thread))
    assert found is not None
    assert found.config == config(thread, checkpoint_id="01")
    assert found.pending_writes == [("task:1", "channel", thread)]
    saver.delete_thread(thread)
    assert saver.get_tuple(config(thread)) is None
    assert len(list(saver.list(None))) == len(others)


def test_a_name_that_is_too_long_is_refused(saver: PocketSaver) -> None:
    """The name isn't truncated; the error says how long names may be."""
    with pytest.raises(KeyNameError, match="1,024"):
        put(saver, "x" * 2000, 1)


def test_savers_of_two_scopes_share_nothing(store: SyncStore) -> None:
    """And other entries of the store are never taken for checkpoints."""
    one, two = PocketSaver(store.scope("one")), PocketSaver(store.scope("two"))
    PocketStore(store.scope("one")).put(("a",), "b", {"c": 1})
    store.set("one:other", 1)
    put(one, "a", 1)
    assert ids(one.list(None)) == ["01"]
    assert ids(two.list(None)) == []


# ---------------------------------------------------------------- lists
def test_all_threads_are_listed_newest_first(saver: PocketSaver) -> None:
    """Sorted by id, over all threads and namespaces; `before` and `limit` apply to the whole list."""
    for number in range(6):
        put(saver, f"thread {number % 2}", number)
    assert ids(saver.list(None)) == ["05", "04", "03", "02", "01", "00"]
    assert ids(saver.list(None, before=config("any", checkpoint_id="04"), limit=2)) == ["03", "02"]
    assert ids(saver.list({"configurable": {"thread_id": "thread 1"}})) == ["05", "03", "01"]
    assert ids(saver.list(config("thread 1", checkpoint_id="03"))) == ["03"]
    assert ids(saver.list(config("thread 1"), filter={"step": 1})) == ["01"]
    assert ids(saver.list(config("thread 1"), limit=0)) == []


def test_a_checkpoint_is_listed_by_its_id_alone(saver: PocketSaver) -> None:
    """In any namespace of the thread, subgraphs' too, as in LangGraph's own savers."""
    for each in (saver, InMemorySaver()):
        for namespace, number in (("", "01"), ("sub:1", "02"), ("sub:1", "03")):
            each.put(config("a", checkpoint_ns=namespace), empty_checkpoint() | {"id": number}, {}, {})
        found = list(each.list({"configurable": {"thread_id": "a", "checkpoint_id": "02"}}))
        assert [one.config for one in found] == [config("a", checkpoint_ns="sub:1", checkpoint_id="02")]


def test_an_empty_id_names_no_checkpoint(saver: PocketSaver) -> None:
    """The thread's latest one is meant then, as in LangGraph's own savers: a graph goes on, instead of beginning anew."""
    for each in (saver, InMemorySaver()):
        first = each.put(config("a", checkpoint_id=""), empty_checkpoint() | {"id": "01"}, {}, {})
        each.put(first, empty_checkpoint() | {"id": "02"}, {}, {})
        latest = each.get_tuple(config("a", checkpoint_id=""))
        assert latest is not None
        assert latest.checkpoint["id"] == "02"
        assert ids(each.list(config("a", checkpoint_id=""), before=config("a", checkpoint_id=""))) == ["02", "01"]
        assert [found.parent_config for found in each.list(config("a"))] == [first, None]


# ---------------------------------------------------------------- writes
def test_writes_come_in_the_order_in_which_they_apply(saver: PocketSaver) -> None:
    """By the path of their tasks, in whatever order they were put."""
    placed = put(saver, "a", 1)
    for task, path in (("1", "b"), ("2", "a"), ("3", "")):
        saver.put_writes(placed, [("one", task), ("two", task)], task, path)
    found = saver.get_tuple(placed)
    assert found is not None
    assert [(task, channel) for task, channel, _ in found.pending_writes or ()] == [
        *[("3", "one"), ("3", "two"), ("2", "one"), ("2", "two"), ("1", "one"), ("1", "two")]
    ]


def test_what_a_task_has_written_stays_but_its_errors_are_replaced(saver: PocketSaver) -> None:
    """As in LangGraph's own savers: a task that is executed twice doesn't change its writes."""
    placed = put(saver, "a", 1)
    saver.put_writes(placed, [("x", 1)], "task")
    saver.put_writes(placed, [("x", 2), ("y", 3)], "task")
    saver.put_writes(placed, [("__error__", "first")], "task")
    saver.put_writes(placed, [("__error__", "second")], "task")
    found = saver.get_tuple(placed)
    assert found is not None
    assert sorted((channel, value) for _, channel, value in found.pending_writes or ()) == [
        *[("__error__", "second"), ("x", 1), ("y", 3)]
    ]


def test_of_two_errors_in_one_call_the_last_stays(saver: PocketSaver) -> None:
    """A special channel has one value per task, also if one call gives two: as in LangGraph's own savers."""
    placed = put(saver, "a", 1)
    saver.put_writes(placed, [("__error__", "first"), ("x", 1), ("__error__", "second")], "task")
    found = saver.get_tuple(placed)
    assert found is not None
    assert sorted((channel, value) for _, channel, value in found.pending_writes or ()) == [
        *[("__error__", "second"), ("x", 1)]
    ]


class Operations(Layer):
    """Counts the operations of a store."""

    asked: ClassVar[list[str]] = []

    async def read(self, key: str) -> Entry | None:
        self.asked.append("read")
        return await self.inner.read(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        self.asked.append("read many")
        return await self.inner.read_many(keys)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        self.asked.append(f"write {len(changes)}")
        return await self.inner.write(changes, expect)

    async def read_page(self, *given: Any, **named: Any) -> Any:
        self.asked.append("page")
        return await self.inner.read_page(*given, **named)

    def scan(self, *given: Any, **named: Any) -> AsyncIterator[str]:
        self.asked.append("scan")
        return self.inner.scan(*given, **named)


def test_the_cost_of_a_call_does_not_grow(tmp_path: Path) -> None:
    """A put is one write, and so are a task's writes. A read is one page, however many tasks there are."""
    (asked := Operations.asked).clear()
    with SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process", layers=[Operations()]) as store:
        saver = PocketSaver(store)
        for number in range(5):
            placed = put(saver, "a", number)
            for task in range(10):
                saver.put_writes(placed, [("x", 1), ("y", 2)], f"task {task}")
        assert asked == ["write 1"] * 55
        for wanted, looked in ((placed, []), (config("a"), ["scan"])):  # for the latest
            asked.clear()
            found = saver.get_tuple(wanted)
            assert found is not None
            assert len(found.pending_writes or ()) == 20
            assert asked == [*looked, "page"]


def test_more_writes_than_a_page_has_are_all_found(saver: PocketSaver) -> None:
    """Page after page; the writes of a checkpoint whose id starts with this one's are not included."""
    placed, other = put(saver, "a", 1), put(saver, "a", 10)
    for number in range(250):
        saver.put_writes(placed, [("x", number)], f"task {number:03}")
    saver.put_writes(other, [("x", 1000)], "task 1")
    found = saver.get_tuple(placed)
    assert found is not None
    assert [value for _, _, value in found.pending_writes or ()] == [*range(250)]


def test_writes_without_their_checkpoint_hide_no_other(saver: PocketSaver) -> None:
    """If a call that removes a checkpoint with many writes is interrupted, the latest complete checkpoint is found."""
    put(saver, "a", 1)
    saver.put_writes(config("a", checkpoint_id="02"), [("x", 1)], "task")
    found = saver.get_tuple(config("a"))
    assert found is not None
    assert found.config == config("a", checkpoint_id="01")
    assert saver.get_tuple(config("a", checkpoint_id="02")) is None
    assert ids(saver.list(None)) == ids(saver.list(config("a"))) == ["01"]


def test_a_copy_and_what_is_pruned_take_their_writes_along(saver: PocketSaver, store: SyncStore) -> None:
    """A copied checkpoint has its tasks' writes; of a removed one nothing is left."""
    for number in (1, 2):
        saver.put_writes(put(saver, "a", number), [("x", number)], "task:1")
    saver.copy_thread("a", "b")
    assert [each.pending_writes for each in saver.list(config("b"))] == [[("task:1", "x", 2)], [("task:1", "x", 1)]]
    saver.prune(["a", "b"])
    assert store.count("langgraph:") == 4
    saver.prune(["a", "b"], strategy="delete")
    assert store.count("langgraph:") == 0


# ---------------------------------------------------------------- errors
def test_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    """It raises an error; it doesn't look like a thread without checkpoints."""
    saver = PocketSaver(f"sqlite:///{tmp_path}/state.db")
    with pytest.raises(StoreClosedError):
        saver.get_tuple(config("a"))


def test_a_closed_saver_leaves_the_store_that_it_was_given_open(store: SyncStore) -> None:
    """The caller that has opened the store closes it."""
    with PocketSaver(store) as saver:
        put(saver, "a", 1)
    assert store.count("langgraph:") == 1


def test_an_unknown_strategy_of_prune_removes_nothing(saver: PocketSaver) -> None:
    """The error names the allowed strategies."""
    put(saver, "a", 1)
    with pytest.raises(ConfigError, match="'keep_latest' and 'delete'"):
        saver.prune(["a"], strategy="all")
    assert ids(saver.list(None)) == ["01"]


def test_nothing_is_pickled(saver: PocketSaver) -> None:
    """If the serializer doesn't know a type, it is an error, and nothing is stored."""
    with pytest.raises(TypeError):
        put(saver, "a", 1, task=object())
    assert ids(saver.list(None)) == []


@pytest.mark.parametrize("kind", [PocketSaver, PocketStore])
def test_anything_but_a_store_is_refused(kind: Any) -> None:
    """The error says what is accepted."""
    with pytest.raises(ConfigError, match=f"{kind.__name__} needs a Store, .* or a URL, not int"):
        kind(5)
