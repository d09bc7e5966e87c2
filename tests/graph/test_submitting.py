"""Submitting: a run is recorded once, and left to a worker."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import (
    ConfigError,
    Graph,
    InputError,
    KeyNameError,
    RunMismatchError,
    Store,
    SyncStore,
    SyncWriter,
    node,
    register_type,
)
from pocket_plug.graph.durable.forms import MOST_FORMS
from pocket_plug.graph.durable.records import keys_of
from pocket_plug.graph.durable.states import StateKey, states_of


@node
async def double(n: int) -> int:
    return 2 * n


@node.post
def count(store: SyncWriter, n: int) -> int:
    store.update("counted", lambda times: times + 1, default=0)
    return n


graph = Graph(double >> count, name="doubling")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state.db?durability=process"


async def pending(store: Store) -> list[str]:
    return [StateKey.parse(key).run_id async for key in store.stack.scan(states_of("pending", "doubling"))]


def test_a_submitted_run_is_only_recorded(url: str) -> None:
    """It is `pending`, under its graph's name, nothing of it is done, and the executing process needs no input."""

    async def main() -> None:
        async with Store(url) as store:
            assert await graph.submit(21, run_id="d:1", store=store) == "pending"
            assert await pending(store) == ["d:1"]
            assert not await store.has("counted")
            assert await graph.resume("d:1", store=store) == 42
            assert await store.get("counted") == 1
            assert await pending(store) == []

    asyncio.run(main())


def test_submitting_again_records_nothing_and_returns_the_current_state(url: str) -> None:
    """The same call any number of times, before and after the run; another input, or another graph, is refused."""

    async def main() -> None:
        async with Store(url) as store:
            await graph.submit(21, run_id="d-1", store=store)
            before = await store.stack.version()
            assert await graph.submit(21, run_id="d-1", store=store) == "pending"
            with pytest.raises(RunMismatchError, match="another input"):
                await graph.submit(22, run_id="d-1", store=store)
            with pytest.raises(RunMismatchError, match="another run_id"):
                await Graph(double, name="other").submit(21, run_id="d-1", store=store)
            assert await store.stack.version() == before
            await graph.run(21, run_id="d-1", store=store)
            assert await graph.submit(21, run_id="d-1", store=store) == "finished"

    asyncio.run(main())


@pytest.mark.parametrize("is_done", [False, True])
def test_the_same_input_after_its_class_has_got_a_field(url: str, is_done: bool) -> None:
    """A client repeats its request after a deploy. The stored input gets the field's default, and is the same one."""
    former = dataclasses.make_dataclass("Order", [("cents", int)])
    latter = dataclasses.make_dataclass("Order", [("cents", int), ("is_gift", bool, False)])
    tag = "tests.graph.test_submitting.Order"

    @node
    async def cents(order: Any) -> Any:
        return order.cents

    orders: Graph[Any, Any] = Graph(cents, name="orders")
    with SyncStore(url) as store:
        register_type(former, tag=tag)
        orders.submit_sync(former(5), run_id="o-1", store=store)
        if is_done:
            assert orders.resume_sync("o-1", store=store) == 5
        register_type(latter, tag=tag)
        assert orders.submit_sync(latter(5), run_id="o-1", store=store) == ("finished" if is_done else "pending")
        for other in (latter(6), latter(5, True)):
            with pytest.raises(RunMismatchError, match="another input"):
                orders.submit_sync(other, run_id="o-1", store=store)
        assert orders.run_sync(latter(5), run_id="o-1", store=store) == 5


def test_of_concurrent_submits_one_records_the_run(url: str) -> None:
    """A hundred callers submit the same id at the same time: there is one run, and all get its state."""

    async def main() -> None:
        async with Store(url) as store:
            states = await asyncio.gather(*(graph.submit(21, run_id="d-1", store=store) for _ in range(100)))
            assert set(states) == {"pending"}
            assert await pending(store) == ["d-1"]

    asyncio.run(main())


def test_a_run_that_could_never_be_executed_is_refused(url: str) -> None:
    """An input of another type, an invalid id, a store that isn't durable; a nested graph's first node counts."""

    async def main() -> None:
        async with Store(url) as store:
            with pytest.raises(InputError, match=r"node 'double' of graph 'doubling' takes int, not str"):
                await graph.submit("21", run_id="d-1", store=store)  # type: ignore[arg-type]  # the test of it
            with pytest.raises(InputError, match="takes int, not str"):
                await Graph(graph, name="outer").submit("21", run_id="d-1", store=store)  # type: ignore[arg-type]  # the same
            with pytest.raises(KeyNameError, match="a run_id can't be an empty str; give a text that is not empty"):
                await graph.submit(21, run_id="", store=store)
            assert [key async for key in store.stack.scan("pocket:")] == []
        async with Store() as store:
            with pytest.raises(ConfigError, match="is not persistent"):
                await graph.submit(21, run_id="d-1", store=store)

    asyncio.run(main())


def test_submitting_without_await(url: str) -> None:
    """`submit_sync` does the same for callers without a loop, with a store of either kind."""
    with SyncStore(url) as store:
        assert graph.submit_sync(21, run_id="d-1", store=store) == "pending"
        assert graph.resume_sync("d-1", store=store) == 42
        assert graph.submit_sync(21, run_id="d-1", store=store) == "finished"


def test_many_scopes_take_no_memory(url: str) -> None:
    """A service has a scope for each tenant; the graph doesn't remember them all."""
    many = Graph(double, name="many")
    with SyncStore(url) as store:
        for number in range(100):
            many.submit_sync(1, run_id=f"d-{number}", store=store.scope(f"tenant-{number}"))
    assert len(many.plan.forms) <= MOST_FORMS


def test_a_graph_without_a_store_of_its_own_uses_the_given_one(url: str) -> None:
    """`store=` for run, resume, submit and check_runs; a graph that has one refuses another."""

    async def main() -> None:
        async with Store(url) as store:
            await graph.submit(1, run_id="d-1", store=store.scope("shop"))
            (check,) = await graph.check_runs(store=store.scope("shop"))
            assert (check.state, check.can_resume) == ("pending", True)
            assert await graph.check_runs(store=store.scope("other")) == []
            assert await graph.run(1, run_id="d-1", store=store.scope("shop")) == 2
            assert await store.get("shop:counted") == 1
            own = Graph(double, store=store, name="own")
            with pytest.raises(ConfigError, match=r"graph 'own' has a store of its own; leave out store="):
                await own.run(1, store=store)

    asyncio.run(main())


def test_the_trace_of_the_submitter_is_recorded(url: str) -> None:
    """The run's record has the context of `traceparent`, so that its first execution is linked to it."""

    async def main() -> None:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        async with Store(url) as store:
            await graph.submit(1, run_id="d-1", store=store, traceparent=trace)
            entry = await store.stack.read(keys_of("d-1")[0])
            assert entry is not None
            assert entry.value["carrier"] == {"traceparent": trace}
            assert entry.value["epoch"] == 0

    asyncio.run(main())
