"""Metrics: exact counts at almost no cost, and no key, value or id in them."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.metrics import Meter, MeterProvider, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import pocket_plug as pp
from pocket_plug import Store, SyncStore
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.errors import ConfigError, ConflictError, StoreError
from pocket_plug.hookspecs import Run
from pocket_plug.layers import metrics
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.metrics import Metrics, counting, instruments
from pocket_plug.layers.persistence import Persistence
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry, Reason
from pocket_plug.store.layer import Layer, parts
from pocket_plug.store.memory import Memory
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.interrupts import Between

Point = tuple[frozenset[tuple[str, Any]], Any]


class Published:
    """The metrics that a collection would publish now."""

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
    gc.collect()  # other tests' stores that still exist would be published too
    found = Published()
    for names in (counting.graphs, counting.nodes, counting.actions, counting.errors, counting.namespaces):
        names.clear()
    former = metrics.configure(meter_provider=found.provider)
    yield found
    metrics.configure(meter_provider=former.meter_provider, node_duration=former.node_duration)


def attributes(**extra: Any) -> frozenset[tuple[str, Any]]:
    names = {"hit": "pocket_plug.store.hit", "operation": "db.operation.name", "error": "error.type",
             "namespace": "db.namespace", "system": "db.system.name"}  # fmt: skip
    return frozenset({"db.system.name": "memory", **{names[key]: value for key, value in extra.items()}}.items())


def test_lookups_writes_deletes_and_conflicts_are_counted(published: Published) -> None:
    """Single operations, batches and transactions alike, since all use the layer."""

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
        with pytest.raises(ConflictError):
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
    assert published.points("db.client.operation.duration") == []  # memory: nothing is timed


def test_counts_of_threads_are_exact(published: Published) -> None:
    """No count is lost, though there is no lock."""
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
    # reading the metrics adds nothing
    assert published.values("pocket_plug.store.lookups")[attributes(hit=True)] == 16_000


def test_stores_of_a_namespace_are_counted_together_and_outlive_themselves(published: Published) -> None:
    """One set of instruments per provider; counters don't decrease when a store is gone."""
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
    """Disk and network operations are in the histogram, with the names of the semantic conventions."""

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


def test_operations_on_a_file_are_timed_though_they_do_not_suspend(published: Published, tmp_path: Path) -> None:
    """A file is on disk. With persistence in front of it, most reads are from memory, and none is timed."""
    url = f"sqlite:///{tmp_path / 'state.db'}"
    with SyncStore(url, layers=[Metrics()]) as store:
        store.set("k", 1)
        store.get("k")
        store.get_many(["k"])
    timed = published.values("db.client.operation.duration")
    assert timed == {attributes(system="sqlite", operation=name): 1 for name in ("set", "get", "get_many")}
    with SyncStore(layers=[Metrics(namespace="cached"), Persistence(to=url)]) as store:
        store.get("k")
    assert published.values("db.client.operation.duration") == timed


def test_operations_in_memory_are_timed_on_request(published: Published) -> None:
    """`durations=True` times all operations, and counts them as before."""
    store = SyncStore(layers=[Metrics(durations=True)])
    store.set("k", 1)
    store.get("k")
    store.get_many(["k", "l"])
    assert published.values("db.client.operation.duration") == {
        attributes(operation=name): 1 for name in ("set", "get", "get_many")
    }
    assert published.values("pocket_plug.store.lookups") == {attributes(hit=True): 2, attributes(hit=False): 1}


def test_conflicts_of_commits_are_counted(published: Published) -> None:
    """For the node that had them."""
    tries: list[int] = []

    class Add(pp.Node[int, int]):
        async def prep(self, store: pp.StoreReader, n: int) -> int:
            return await store.get("total", 0)

        async def exec(self, total: int) -> int:
            tries.append(total)
            if len(tries) == 1:
                await shared.set("total", 10)
            return total

        async def post(self, store: pp.StoreWriter, n: int, prepared: int, total: int) -> int:
            await store.set("total", total + n)
            return total + n

    shared = Store()
    assert asyncio.run(pp.Graph(Add(), store=shared, name="adding").run(1)) == 11
    about = {("pocket_plug.graph.name", "adding"), ("pocket_plug.node.name", "add")}
    conflict = about | {("error.type", "pocket_plug.errors.ConflictError")}
    assert published.values("pocket_plug.commit.conflicts") == {frozenset(conflict): 1}


def test_a_forked_child_begins_at_zero(published: Published) -> None:
    """The parent reports what the child has inherited."""
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
    """Durations with outcome and action, retries, active runs; actions without an edge are `_OTHER`."""
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


def test_an_action_is_a_label_if_an_edge_has_it(published: Published) -> None:
    """An action that a model invents never becomes a label, in a nested graph neither: the run refuses it."""
    said = iter(["act", "made up", "leave", "made up too"])

    @pp.node
    def think(n: int) -> pp.Next[int]:
        return pp.Next(next(said), n)

    @pp.node
    def act(n: int) -> int:
        return n

    inner = pp.Graph(think, think.on("act") >> act, name="inner")
    outer = pp.Graph(inner, inner.on("leave") >> act, name="outer")
    outer.run_sync(1)
    with pytest.raises(pp.RouteError, match="made up"):
        outer.run_sync(1)
    outer.run_sync(1)
    with pytest.raises(pp.RouteError, match="made up too"):
        outer.run_sync(1)
    actions = {dict(point).get("pocket_plug.node.action") for point in published.values("pocket_plug.node.duration")}
    assert actions == {"act", "leave", "default", None}


def test_too_many_names_become_one(published: Published) -> None:
    """Names of graphs, nodes or exception classes that contain an id can't fill a metrics backend."""

    def failing(number: int) -> pp.Graph[int, int]:
        @pp.node(name=f"node {number}")
        def fail(n: int) -> int:
            raise type(f"Error{number}", (Exception,), {})

        return pp.Graph(fail, name=f"graph {number}")

    for number in range(1100):
        with pytest.raises(Exception, match="at node"):
            failing(number).run_sync(1)
    found = [dict(point) for point in published.values("pocket_plug.node.duration")]
    for name, most in (("pocket_plug.graph.name", 500), ("pocket_plug.node.name", 1000), ("error.type", 200)):
        values = {point[name] for point in found if name in point}
        assert "_OTHER" in values
        assert len(values) <= most + 1


def test_two_layers_of_a_stack_are_counted_separately(published: Published) -> None:
    """For example in front of a cache and behind it: each layer counts by its label, and none twice."""
    store = SyncStore(layers=[Metrics(label="outer"), Bounding(max_entries=5, label="a"), Metrics(label="inner")])
    store.set("a", 1)
    for label in ("outer", "inner"):
        about = attributes(operation="set") | {("pocket_plug.layer.label", label)}
        assert published.values("pocket_plug.store.writes")[about] == 1


def test_too_many_namespaces_become_one_and_lose_no_count(published: Published) -> None:
    """A store for each request, named by its id: those after the first 500 are counted together."""
    for number in range(600):
        SyncStore(layers=[Metrics(namespace=f"request {number}")]).get("a", default=None)
    misses = published.values("pocket_plug.store.lookups")
    assert misses[attributes(hit=False, namespace="request 0")] == 1
    assert misses[attributes(hit=False, namespace="_OTHER")] == 100


def test_the_histogram_of_nodes_can_be_left_out(published: Published) -> None:
    """It costs most, so it can be disabled; items of a fan-out are then still counted."""
    metrics.configure(node_duration=False)
    active: list[Any] = []

    @pp.node
    def look(n: int) -> int:
        active.extend(published.values("pocket_plug.fan_out.active").values())
        return n

    pp.Graph(pp.each(look), name="looking").run_sync([1, 2])
    assert active == [1, 1]
    assert published.values("pocket_plug.node.duration") == {}


def test_running_items_of_a_fan_out_are_counted(published: Published) -> None:
    """As many as there are workers, and none at the end, however the items end."""
    gate = asyncio.Event()
    entered: list[int] = []

    @pp.node
    async def wait(n: int) -> int:
        entered.append(n)
        if len(entered) == 3:
            gate.set()
        await gate.wait()
        seen.append(next(iter(published.values("pocket_plug.fan_out.active").values())))
        if n == 3:
            raise ValueError(n)
        return n

    seen: list[int] = []
    asyncio.run(pp.Graph(pp.each(wait, concurrency=3, errors="collect"), name="waiting").run([1, 2, 3]))
    assert seen[0] == 3
    item = frozenset({("pocket_plug.graph.name", "waiting"), ("pocket_plug.node.name", "wait")})
    assert published.values("pocket_plug.fan_out.active") == {item: 0}


def test_what_an_interrupt_ended_is_not_active(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come just after the start of a run or an item is noted, and just before its end; a notebook goes on."""
    graph = pp.Graph(pp.each(pp.node(lambda n: n, name="same")), name="shop")
    moments = []
    for moment in count():
        looks = count()

        def perf_counter() -> float:
            if next(looks) == moment:  # noqa: B023 - called in this turn of the loop only
                raise KeyboardInterrupt
            return 0.0

        monkeypatch.setattr(metrics.runs, "time", SimpleNamespace(perf_counter=perf_counter))
        with suppress(KeyboardInterrupt):
            graph.run_sync([1])
            break
        gc.collect()
        moments.append([set(published.values(f"pocket_plug.{name}.active").values()) for name in ("run", "fan_out")])
    assert len(moments) >= 4
    assert moments[-1] == [{0}, {0}]
    assert all(active <= {0} for moment in moments for active in moment), moments


def test_without_a_meter_provider_runs_are_not_observed(published: Published) -> None:
    """Nothing is measured."""
    metrics.configure(meter_provider=NoOpMeterProvider())
    assert metrics.MetricsPlugin().pocket_observe(Run("r", "g")) is None


def test_a_failing_meter_does_not_fail_the_store(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """A telemetry layer may lose its own figures, nothing else."""

    def fail(*arguments: Any) -> None:
        raise RuntimeError("meter")

    store = Store(Disk(), layers=[Metrics()])
    listening = instruments.look()
    assert listening is not None
    monkeypatch.setattr(listening.operation_duration, "record", fail)
    assert asyncio.run(store.get("k")) == 1


@dataclass
class Wrapper(MeterProvider):
    """A provider around another one, as Logfire's: a dataclass that can't be hashed."""

    inner: MeterProvider

    def get_meter(self, *args: Any, **kwargs: Any) -> Meter:
        return self.inner.get_meter(*args, **kwargs)


def test_a_provider_that_cannot_be_hashed_gets_the_metrics(published: Published) -> None:
    """There is one set of instruments for it: the SDK ignores the observable ones of a second set."""
    wrapped = Published()  # the fixture's has a set already
    provider = Wrapper(wrapped.provider)
    for each in (provider, published.provider, provider):
        metrics.configure(meter_provider=each)
        SyncStore(layers=[Metrics()]).get("k")
    pp.Graph(pp.node(name="look")(lambda word: word), name="shop").run_sync("tea")
    assert wrapped.values("pocket_plug.store.lookups")[attributes(hit=False)] == 2
    assert [*wrapped.values("pocket_plug.run.duration").values()] == [1]


def test_a_provider_that_raises_does_not_fail_the_store(published: Published, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, and nothing is measured."""

    class Broken(Wrapper):
        def get_meter(self, *args: Any, **kwargs: Any) -> Meter:
            raise LookupError("no meter")

    metrics.configure(meter_provider=Broken(published.provider))
    store = SyncStore(layers=[Metrics()])
    store.set("k", 1)
    assert store.get("k") == 1
    assert [record.message.partition(" failed")[0] for record in caplog.records] == [
        "making the instruments of a meter provider"
    ]


def test_options_are_checked() -> None:
    """An invalid option is refused; the error says what is allowed."""
    with pytest.raises(ConfigError, match=r"no option 'node_durations'.* Did you mean 'node_duration'"):
        metrics.configure(node_durations=False)  # type: ignore[call-arg]


def test_the_queue_of_persistence_behind_is_a_gauge(published: Published) -> None:
    """How many keys have to be written, and since when: of all stores of one name together."""

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


def evictions(**reasons: int) -> dict[frozenset[tuple[str, Any]], int]:
    return {attributes() | {("pocket_plug.store.eviction.reason", reason)}: reasons.get(reason, 0)
            for reason in ("size", "bytes", "expired")}  # fmt: skip


def test_entries_and_evictions_over_memory(published: Published) -> None:
    """The number of entries now, and of evictions by reason; for all ways of writing."""
    clock = FakeClock()
    small = SyncStore(layers=[Metrics(), Bounding(max_entries=3, ttl=10)], clock=clock)
    for number in range(5):
        small.set(f"key {number}", number)
    small.set_many({"a": 1, "b": 2})
    assert published.values("pocket_plug.store.entries") == {attributes(): 3}
    assert published.values("pocket_plug.store.evictions") == evictions(size=4)
    clock.advance(10)
    small.set("c", 3)
    assert published.values("pocket_plug.store.entries") == {attributes(): 1}
    assert published.values("pocket_plug.store.evictions") == evictions(size=4, expired=3)

    heavy = SyncStore(layers=[Metrics(), Bounding(max_bytes=3000)])
    heavy.set_many({"a": "x" * 2000, "b": "y" * 2000})
    assert published.values("pocket_plug.store.evictions") == evictions(size=4, expired=3, bytes=1)

    plain = SyncStore(layers=[Metrics()], clock=clock)
    plain.set("a", 1, ttl=5)
    assert published.values("pocket_plug.store.entries") == {attributes(): 3}
    clock.advance(5)
    plain.set("b", 2)
    assert published.values("pocket_plug.store.entries") == {attributes(): 3}
    assert published.values("pocket_plug.store.evictions") == evictions(size=4, expired=4, bytes=1)


def test_entries_and_evictions_over_a_file(published: Published, tmp_path: Path) -> None:
    """Bounding counts what it has evicted. A store that is neither bounded nor in memory reports nothing."""
    with SyncStore(SQLite(tmp_path / "a.db"), layers=[Metrics(), Bounding(max_entries=2, durable=True)]) as bounded:
        for number in range(5):
            bounded.set(f"key {number}", number)
        with SyncStore(SQLite(tmp_path / "b.db"), layers=[Metrics(namespace="plain")]) as plain:
            plain.set("a", 1)
        sqlite = {("db.system.name", "sqlite")}
        assert published.values("pocket_plug.store.entries") == {frozenset(sqlite): 2}
        size = frozenset(sqlite | {("pocket_plug.store.eviction.reason", "size")})
        assert published.values("pocket_plug.store.evictions")[size] == 3


class Forgetful(Layer):
    """Another plugin's layer that evicts, as bounding does: pocket_plug knows only the protocol `Keeper` of it."""

    entries = 7

    def on_build(self) -> None:
        self.evictions: dict[Reason, int] = {"size": 2}


def test_entries_and_evictions_of_any_layer(published: Published) -> None:
    """Metrics don't depend on bounding; earlier evictions aren't counted."""
    store = SyncStore(layers=[Metrics(), Forgetful()])
    layer = parts(store.stack)[2]
    assert isinstance(layer, Forgetful)
    layer.evictions["size"] += 3
    assert published.values("pocket_plug.store.entries") == {attributes(): 7}
    assert published.values("pocket_plug.store.evictions") == {
        attributes() | {("pocket_plug.store.eviction.reason", "size")}: 3
    }


def test_a_memory_that_two_stores_share_is_counted_once(published: Published) -> None:
    """Also if one of them bounds it."""
    memory = Memory()
    bounded, plain = (
        SyncStore(memory, layers=[Metrics(), Bounding(max_entries=2)]),
        SyncStore(memory, layers=[Metrics()]),
    )
    bounded.set("a", 1)
    plain.set("b", 2)
    assert published.values("pocket_plug.store.entries") == {attributes(): 2}


def test_a_deleted_store_has_no_entries_and_its_evictions_still_count(published: Published) -> None:
    """Stores are held weakly, and a counter never decreases. Stores that share a Memory count as one."""

    def use(memory: Memory) -> None:
        stores = [SyncStore(memory, layers=[Metrics(), Bounding(max_entries=1)]), SyncStore(memory, layers=[Metrics()])]
        stores[0].set_many({"a": 1, "b": 2, "c": 3})

    for round in range(1, 4):
        memory = Memory()
        gone = weakref.ref(memory)
        use(memory)
        assert published.values("pocket_plug.store.entries") == {attributes(): 1}
        del memory
        gc.collect()
        assert gone() is None
        assert published.values("pocket_plug.store.entries") == {}
        assert published.values("pocket_plug.store.evictions") == evictions(size=2 * round)


def test_a_forked_child_reports_what_it_did_itself(published: Published) -> None:
    """Neither its parent's evictions nor its runs; and no lock that was held at the fork blocks it."""
    store = SyncStore(layers=[Metrics(), Bounding(max_entries=1)])
    store.set_many({"a": 1, "b": 2, "c": 3})
    reading, writing = os.pipe()

    @pp.node
    def fork(n: int) -> int:
        found: Any = instruments.look()
        with found._lock:  # as a collection in another thread may hold it
            child = os.fork()
        if child == 0:
            try:
                store.set_many({"d": 1, "e": 2})
                found = [published.values(f"pocket_plug.{name}") for name in ("run.active", "store.evictions")]
                os.write(writing, repr([sorted(values.values()) for values in found]).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return n

    pp.Graph(fork, name="forking").run_sync(1)
    assert os.read(reading, 100) == b"[[], [0, 0, 2]]"
    os.close(reading)
    os.close(writing)


def test_a_provider_has_one_set_of_instruments(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found as the global one or passed as an argument: with a second set the SDK would silently drop observations."""
    handed_over = instruments.look()
    monkeypatch.setitem(instruments.api, instruments.GLOBAL, published.provider)
    metrics.configure(meter_provider=None)
    assert instruments.look() is handed_over is not None


def test_no_stored_data_is_an_attribute(published: Published) -> None:
    """No key, value, run id, input or message, after any failure; and no attribute that the reference doesn't list."""
    secret = "s3cr3t"  # noqa: S105 - of nobody
    backend = Disk()
    disk = Store(backend, layers=[Metrics(namespace="orders")])

    async def main() -> None:
        store = Store(layers=[Metrics(namespace="cache"), Bounding(max_entries=1)])
        await store.set_many({f"{secret}:{number}": secret for number in range(3)})
        await store.get(f"user:{secret}")
        await store.scope(secret).get(secret)
        backend.fails = StoreError(secret)
        for call in (disk.get(secret), disk.set(secret, secret), disk.get_many([secret, "b"])):
            with pytest.raises(StoreError):
                await call

        @pp.node(retry=pp.Retry(attempts=2))
        async def fail(n: str) -> str:
            raise ValueError(n)

        @pp.node
        async def route(n: str) -> pp.Next[str]:
            return pp.Next(n, n)

        with pytest.raises(ValueError, match=secret):
            await pp.Graph(pp.each(fail), store=store, name="failing").run([secret])
        with pytest.raises(pp.RouteError):
            await pp.Graph(route, name="routing").run(secret)

        @pp.node
        async def echo(n: str) -> str:
            return n

        await pp.Graph(echo, name="echoing").run(secret)

    asyncio.run(main())
    data = published.reader.get_metrics_data()
    assert data is not None
    assert secret not in data.to_json()
    names = {name for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
             for point in metric.data.data_points for name in (point.attributes or {})}  # fmt: skip
    assert names == {
        "pocket_plug.graph.name", "pocket_plug.node.name", "pocket_plug.node.action", "pocket_plug.node.outcome",
        "pocket_plug.run.outcome", "error.type", "db.system.name", "db.namespace", "db.operation.name",
        "pocket_plug.store.hit", "pocket_plug.store.eviction.reason",
    }  # fmt: skip


def test_a_failure_in_the_middle_of_counting_another_is_counted() -> None:
    """A signal's handler may use a store in the thread that is just counting, and fail: such a use may be refused there."""
    missing = StoreError("no")

    def sweep() -> None:
        for own in (True, False):
            for place in count(1):
                tally = counting.Tally()
                with Between(place, lambda tally=tally: tally.failed("set", missing)) as between:
                    tally.failed("set", missing) if own else tally.watch(Memory())
                if sum(number for number, _ in tally.errors()) != own + bool(between.where):
                    wrong.append(between.where)
                if not between.where:
                    break
        swept.append(place)

    wrong: list[str] = []
    swept: list[int] = []
    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    thread.join(60)
    assert swept, "a deadlock"
    assert wrong == []


def test_a_store_that_is_made_in_the_middle_of_making_another_counts_no_eviction_twice() -> None:
    """By a signal's handler, for example. Both add up the evictions of a store that is gone; the outer one failed at that."""

    def keeper() -> Forgetful:
        built = Forgetful().build(Memory())
        assert isinstance(built, Forgetful)
        return built

    totals: set[int] = set()
    for place in count(1):
        tally, gone, one, other = counting.Tally(), keeper(), keeper(), keeper()
        tally.watch(gone)
        gone.evictions["size"] += 3
        del gone
        with Between(place, lambda tally=tally, other=other: tally.watch(other)) as between:
            tally.watch(one)
        totals.add(sum(number for number, _ in tally.evictions()))
        if not between.where:
            break
    assert totals == {3}
