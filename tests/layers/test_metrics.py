"""Metrics: exact counts at next to no cost on the hot path, and no key, value or id in them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import pocket_plug as pp
from pocket_plug import Store, SyncStore
from pocket_plug.backend import NO_EXPECTATIONS, Backend, Change, Entry
from pocket_plug.errors import ConfigError, Conflict, StoreError
from pocket_plug.hookspecs import NodeCall, Run
from pocket_plug.layers import metrics
from pocket_plug.layers.metrics import Metrics
from pocket_plug.layers.persistence import Persistence
from pocket_plug.memory import Memory
from pocket_plug.testing.clock import FakeClock

Point = tuple[frozenset[tuple[str, Any]], Any]


class Published:
    """What a collection of metrics right now would publish."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider: MeterProvider = SdkMeterProvider([self.reader], shutdown_on_exit=False)

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        found = [metric for resource in (data.resource_metrics if data else []) for scope in resource.scope_metrics
                 for metric in scope.metrics if metric.name == name]  # fmt: skip
        return [point for metric in found for point in metric.data.data_points]

    def values(self, name: str) -> dict[frozenset[tuple[str, Any]], Any]:
        return {frozenset((point.attributes or {}).items()): getattr(point, "value", getattr(point, "count", None))
                for point in self.points(name)}  # fmt: skip


@pytest.fixture
def published() -> Iterator[Published]:
    found = Published()
    former = metrics.configure(meter_provider=found.provider)
    yield found
    metrics.configure(meter_provider=former.meter_provider, node_duration=former.node_duration)


def attributes(**extra: Any) -> frozenset[tuple[str, Any]]:
    names = {"hit": "pocket_plug.store.hit", "operation": "db.operation.name", "error": "error.type",
             "namespace": "db.namespace", "system": "db.system.name"}  # fmt: skip
    return frozenset({"db.system.name": "memory", **{names[key]: value for key, value in extra.items()}}.items())


def test_lookups_writes_deletes_and_conflicts_are_counted(published: Published) -> None:
    """Single operations, batches and transactions alike, since all pass the layer."""

    async def main() -> None:
        store = Store(layers=[Metrics()])
        await store.set("a", 1)
        await store.set_many({"b": 2, "c": 3})
        await store.get("a")
        await store.get("nothing")
        await store.get_many(["a", "b", "nothing", "neither"])
        await store.delete("a")  # reads, then deletes
        async with store.transaction() as tx:
            await tx.get("b")
            await tx.set("b", 4)
        with pytest.raises(Conflict):
            async with store.transaction() as tx:
                await tx.get("c")
                await store.set("c", 5)
                await tx.set("c", 6)

    asyncio.run(main())
    assert published.values("pocket_plug.store.lookups") == {attributes(hit=True): 6, attributes(hit=False): 3}
    assert published.values("pocket_plug.store.writes") == {
        attributes(operation="set"): 5,
        attributes(operation="delete"): 1,
    }
    assert published.values("pocket_plug.store.conflicts") == {attributes(): 1}
    assert published.values("pocket_plug.store.errors") == {}
    assert published.points("db.client.operation.duration") == []  # memory: nothing to time


def test_counts_of_threads_are_exact(published: Published) -> None:
    """No count is lost, though nothing is locked."""
    store = SyncStore(layers=[Metrics()])
    store.set("k", 1)

    def work() -> None:
        for _ in range(2000):
            store.get("k")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert published.values("pocket_plug.store.lookups")[attributes(hit=True)] == 16_000
    assert published.values("pocket_plug.store.lookups")[attributes(hit=True)] == 16_000  # looking adds nothing


def test_stores_of_a_namespace_are_counted_together_and_outlive_themselves(published: Published) -> None:
    """One set of instruments per provider; a store that is gone takes nothing away from a counter."""
    for _ in range(2):
        SyncStore(layers=[Metrics(namespace="cache")]).set("k", 1)
    SyncStore(layers=[Metrics()]).set("k", 1)
    assert published.values("pocket_plug.store.writes") == {
        attributes(operation="set", namespace="cache"): 2, attributes(operation="delete", namespace="cache"): 0,
        attributes(operation="set"): 1, attributes(operation="delete"): 0}  # fmt: skip


class Disk(Backend):
    """Suspends, and fails on demand."""

    fails: Exception | None = None

    async def read(self, key: str) -> Entry | None:
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails
        return Entry(1, 1)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails
        return 1


def test_operations_that_suspend_are_timed(published: Published) -> None:
    """Disk and network operations are in the histogram, with the semantic conventions' names."""

    async def main() -> None:
        backend = Disk()
        store = Store(backend, layers=[Metrics(namespace="orders")])
        await store.get("k")
        await store.get_many(["k", "l"])
        await store.set("k", 1)
        backend.fails = StoreError("full")
        with pytest.raises(StoreError, match="full"):
            await store.get("k")

    asyncio.run(main())
    disk = {"system": "disk", "namespace": "orders"}
    failure = {"operation": "get", "error": "pocket_plug.errors.StoreError"}
    assert published.values("db.client.operation.duration") == {
        attributes(**disk, operation="get"): 1, attributes(**disk, operation="get_many"): 1,
        attributes(**disk, operation="set"): 1, attributes(**disk, **failure): 1}  # fmt: skip
    assert published.values("pocket_plug.store.errors") == {attributes(**disk, **failure): 1}


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # a fork beside threads of other tests
def test_a_forked_child_begins_at_zero(published: Published) -> None:
    """What it inherited, its parent reports."""
    store = Store(layers=[Metrics()])
    store.sync.set("k", 1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.sync.set("k", 2)
            layer: Any = store.stack.inner
            os.write(writing, str(next(iter(layer._tally.writes()))[0]).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 10) == b"1"
    assert published.values("pocket_plug.store.writes")[attributes(operation="set")] == 1
    os.close(reading)
    os.close(writing)


def test_runs_and_nodes_are_measured(published: Published) -> None:
    """Durations with outcome and action, retries, active runs; actions that no edge knows are `_OTHER`."""
    tries = iter([OSError("flaky"), None])

    @pp.node(retry=pp.Retry(attempts=2))
    async def flaky(n: int) -> int:
        if error := next(tries, None):
            raise error
        assert published.values("pocket_plug.run.active") == {frozenset({("pocket_plug.graph.name", "shop")}): 1}
        return n

    @pp.node
    async def fail(n: int) -> int:
        raise ValueError("secret")

    asyncio.run(pp.Graph(flaky, name="shop").run(1))
    with pytest.raises(ValueError, match="secret"):
        asyncio.run(pp.Graph(fail, name="shop").run(1))
    graph = {("pocket_plug.graph.name", "shop")}
    failed = {("error.type", "ValueError")}
    assert published.values("pocket_plug.run.duration") == {
        frozenset(graph | {("pocket_plug.run.outcome", "success")}): 1,
        frozenset(graph | failed | {("pocket_plug.run.outcome", "failure")}): 1}  # fmt: skip
    assert published.values("pocket_plug.run.active") == {frozenset(graph): 0}
    node = graph | {("pocket_plug.node.name", "flaky")}
    assert published.values("pocket_plug.node.duration") == {
        frozenset(node | {("pocket_plug.node.outcome", "ok"), ("pocket_plug.node.action", "default")}): 1,
        frozenset(graph | failed | {("pocket_plug.node.name", "fail"), ("pocket_plug.node.outcome", "failed")}): 1,
    }  # fmt: skip
    assert published.values("pocket_plug.node.retries") == {frozenset(node | {("error.type", "OSError")}): 1}
    (point, _) = published.points("pocket_plug.run.duration")
    assert list(point.explicit_bounds)[:3] == [0.005, 0.01, 0.025]


def test_an_action_of_an_edge_is_named_and_any_other_is_not(published: Published) -> None:
    """What a model makes up must not become a label."""
    run = Run("r", "g")
    observer = metrics.pocket_observe(run)
    assert observer is not None
    assert observer.node is not None
    for action, following in (("act", "tool"), ("made up", None), ("default", None)):
        call = NodeCall(run, "think", "node", 1)
        call.action, call.next, call.outcome = action, following, "ok"
        manager = observer.node(call)
        assert manager is not None
        with manager:
            pass
    actions = [dict(point)["pocket_plug.node.action"] for point in published.values("pocket_plug.node.duration")]
    assert sorted(actions) == ["_OTHER", "act", "default"]


def test_the_histogram_of_nodes_can_be_left_out(published: Published) -> None:
    """It costs most, so it has a switch."""
    metrics.configure(node_duration=False)
    observer = metrics.pocket_observe(Run("r", "g"))
    assert observer is not None
    assert observer.node is None


def test_without_a_meter_provider_runs_are_not_observed(published: Published) -> None:
    """Nobody listens: nothing is measured."""
    metrics.configure(meter_provider=NoOpMeterProvider())
    assert metrics.pocket_observe(Run("r", "g")) is None


def test_a_failing_meter_does_not_fail_the_store(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of telemetry may lose its own figures, nothing else."""

    def fail(*arguments: Any) -> None:
        raise RuntimeError("meter")

    store = Store(Disk(), layers=[Metrics()])
    monkeypatch.setattr(store.stack.inner._instruments.operation_duration, "record", fail)  # type: ignore[attr-defined]
    assert asyncio.run(store.get("k")) == 1


def test_options_are_checked() -> None:
    """What isn't an option is refused, with what is allowed."""
    with pytest.raises(ConfigError, match=r"no option 'node_durations'.* Did you mean 'node_duration'"):
        metrics.configure(node_durations=False)  # type: ignore[call-arg]


def test_the_queue_of_persistence_behind_is_a_gauge(published: Published) -> None:
    """How many keys are yet to be written, and for how long: of all stores of one name together."""

    class Held(Memory):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            assert gate.wait(30)
            return await super().write(changes, expect)

    gate, clock = threading.Event(), FakeClock()
    length, age = "pocket_plug.store.queue", "pocket_plug.store.queue.age"
    held = frozenset({("db.system.name", "held"), ("db.namespace", "orders")})
    stores = [
        SyncStore(layers=[Metrics(namespace="orders"), Persistence(to=Held(), mode="behind")], clock=clock)
        for _ in range(2)
    ]
    with stores[0], stores[1]:
        assert published.values(length) == {held: 0}
        stores[0].set_many({"a": 1, "b": 2})
        clock.advance(3)
        stores[1].set("a", 1)
        clock.advance(2)
        assert published.values(length) == {held: 3}
        assert published.values(age) == {held: 5}
        gate.set()
        for store in stores:
            store.flush()
        assert published.values(length) == published.values(age) == {held: 0}
