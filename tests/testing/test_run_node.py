"""`run_node`: one node through all of its phases, as a graph would execute it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import (
    END,
    Action,
    Ask,
    ConfigError,
    GraphError,
    InputError,
    Key,
    KeyNameError,
    MissingKeyError,
    Next,
    Node,
    Pocket,
    Retry,
    Store,
    StoreReader,
    StoreWriter,
    SyncStore,
    SyncWriter,
    UnknownRunError,
    each,
    hookimpl,
    idempotency_key,
    node,
)
from pocket_plug.graph.graph import Graph
from pocket_plug.hookspecs import Observer, Run
from pocket_plug.testing.clock import FakeClock, run_virtual
from pocket_plug.testing.nodes import NodeResult, run_node, run_node_sync

PRICE = Key("price:{}", float)
REVENUE = Key("revenue", float)


@dataclass
class Sell(Node[str, float], retry=Retry(attempts=3, delay="2s")):
    failures: int = 0
    sold_out = Action[str]()

    async def prep(self, store: StoreReader, item: str) -> float:
        return await store.require(PRICE(item))

    async def exec(self, price: float) -> float:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("try again")
        return price

    async def post(self, store: StoreWriter, item: str, price: float, paid: float) -> Any:
        if not price:
            return self.sold_out(item)
        await store.update(REVENUE, lambda revenue: revenue + paid, default=0.0)
        return paid

    async def on_success(self, store: StoreWriter, output: object) -> None:
        await store.set("last", output)


def run_async(node: Any, input: Any, **options: Any) -> NodeResult[Any]:
    return asyncio.run(run_node(node, input, **options))


both = pytest.mark.parametrize("run", [run_async, run_node_sync], ids=["async", "sync"])
Running = Callable[..., NodeResult[Any]]


@both
def test_all_phases_are_executed(run: Running):
    """prep reads, exec is executed, the writes of post are committed, hooks are called; output and action are returned."""
    store = Store()
    store.sync.set(PRICE("tea"), 3.0)
    assert run(Sell(), "tea", store=store) == NodeResult(3.0, "default")
    assert (store.sync.get(REVENUE), store.sync.get("last")) == (3.0, 3.0)


@both
def test_it_may_leave_by_any_action(run: Running):
    """By one that its class declares, by a name, by END: none needs an edge."""
    store = Store()
    store.sync.set(PRICE("tea"), 0.0)
    assert run(Sell(), "tea", store=store) == NodeResult("tea", "sold_out")

    @node
    def leave(how: str) -> Any:
        return END("over") if how == "END" else Next(how, 1)

    assert run(leave, "anywhere") == NodeResult(1, "anywhere")
    assert run(leave, "END") == NodeResult("over", "default")


def test_retries_pause_and_are_counted():
    """As often as the node says, by the test's clock."""
    store = Store()
    store.sync.set(PRICE("tea"), 3.0)
    clock = FakeClock()
    assert run_virtual(run_node(Sell(failures=2), "tea", store=store), clock).output == 3.0
    assert clock.elapsed == 4.0
    with pytest.raises(ConnectionError):
        run_virtual(run_node(Sell(failures=3), "tea", store=store), clock)


@both
def test_an_error_is_raised_and_nothing_is_written(run: Running):
    """The phase's own error, with its place; post's writes are rolled back."""

    class Fails(Node[int, int]):
        def post(self, store: SyncWriter, number: int, prepared: int, result: int) -> int:
            store.set("written", number)
            raise ValueError("no")

    store = Store()
    with pytest.raises(ValueError, match="no") as failed:
        run(Fails(), 7, store=store)
    assert any("at node 'fails'" in text for text in failed.value.__notes__)
    assert not store.sync.has("written")
    with pytest.raises(MissingKeyError, match=r"needed by Sell\.prep"):
        run(Sell(), "milk", store=store)


@both
def test_its_input_is_checked(run: Running):
    """As in a graph."""
    with pytest.raises(InputError, match="node 'sell' of graph 'sell' takes str, not int"):
        run(Sell(), 7)


@both
def test_an_invalid_node_is_refused(run: Running):
    """The error says what is wrong, before anything runs."""

    class Misspelt(Node[int, int]):
        def execute(self, number: int) -> int:
            return number

    with pytest.raises(GraphError, match=r"node 'misspelt' can't run(.|\n)*Did you mean 'exec'"):
        run(Misspelt(), 7)
    with pytest.raises(TypeError, match="put @node before the function"):
        run(lambda number: number, 7)
    with pytest.raises(ConfigError, match="node 'ask' asks"):
        run(Ask[Any, bool](bool, question="sure?"), 7)


@both
def test_other_kinds_of_nodes_run_too(run: Running):
    """An `each`, and a graph."""

    @node
    def double(number: int) -> int:
        return 2 * number

    assert run(each(double), [1, 2]) == NodeResult([2, 4])
    assert run(Graph(double >> double.with_options(name="again")), 1) == NodeResult(4)


@both
def test_without_a_store_it_has_a_new_one_each_time(run: Running):
    """In memory, whatever the process's configuration says."""

    class Count(Node[int, int]):
        async def post(self, store: StoreWriter, number: int, prepared: int, result: int) -> int:
            return await store.update("visits", lambda visits: visits + 1, default=0)

    assert [run(Count(), 0).output, run(Count(), 0).output] == [1, 1]


def test_it_accepts_a_scope_and_a_sync_store():
    """Everything that a graph accepts as its store."""
    store = SyncStore()
    store.scope("shop").set(PRICE("tea"), 3.0)
    assert run_node_sync(Sell(), "tea", store=store.scope("shop")).output == 3.0
    assert store.get("shop:last") == 3.0


@both
def test_a_pocket_observes_it(run: Running):
    """Its plugins observe a run of that one node."""
    seen: list[str] = []

    class Watching:
        @hookimpl
        def pocket_observe(self, run: Run) -> Observer:
            seen.append(run.graph)
            return Observer(node=lambda call: seen.append(call.name))

    @node
    def double(number: int) -> int:
        return 2 * number

    assert run(double, 21, pocket=Pocket(plugins=[Watching()], autoload=False)).output == 42
    assert seen == ["double", "double"]


@both
def test_its_executor_runs_it(run: Running):
    """By its name in the Pocket; an unknown one is an error before the node runs."""

    @node(executor="threads://")
    def double(number: int) -> int:
        return 2 * number

    assert run(double, 21, pocket=Pocket(autoload=False)).output == 42
    with pytest.raises(GraphError, match="there is"):
        run(double.with_options(executor="nowhere"), 21, pocket=Pocket(autoload=False))


@both
def test_anything_but_a_store_is_refused(run: Running):
    """The error says what to give instead, as for a graph's own store."""

    @node
    def double(number: int) -> int:
        return 2 * number

    with pytest.raises(ConfigError, match=r"store can't be str; give Store\('memory://'\)"):
        run(double, 21, store="memory://")


@both
def test_a_run_id_gives_the_node_its_idempotency_key(run: Running, tmp_path: Path):
    """The same key as in a durable run with this id, also in a worker thread; the store need not be durable."""

    @node(retry=Retry(attempts=2))
    def pay(cents: int) -> str:
        keys.append(idempotency_key())
        if len(keys) == 1:
            raise ConnectionError
        return keys[-1]

    keys: list[str] = []
    assert run(pay, 5, run_id="order/7").output == keys[0] == keys[1]
    with SyncStore(f"sqlite:///{tmp_path}/runs.db") as store:
        assert Graph(pay, store=store).run_sync(5, run_id="order/7") == keys[0]


@both
def test_without_a_run_id_there_is_no_idempotency_key(run: Running):
    """The error says how to give one; what contains several nodes can't have one."""

    @node
    def pay(cents: int) -> str:
        return idempotency_key()

    for run_id in ("", "\ud800", 7):
        with pytest.raises(KeyNameError, match="run_id"):
            run(pay, 5, run_id=run_id)  # as a run would
    with pytest.raises(UnknownRunError, match=r"run_node\(…, run_id=…\)"):
        run(pay, 5)
    with pytest.raises(ConfigError, match="node 'each_pay' has nodes inside"):
        run(each(pay), [5], run_id="order-7")
