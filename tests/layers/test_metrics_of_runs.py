"""Gauges of durable runs: the runs of a store, counted at each collection, at a limited cost."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from pocket_plug import Ask, Graph, Runs, RunSuspendedError, Store, SyncStore, each, node
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.errors import StoreError
from pocket_plug.graph.durable import processes
from pocket_plug.graph.durable.states import State, plain_state, state_key
from pocket_plug.graph.runs import figures
from pocket_plug.layers import metrics
from pocket_plug.layers.metrics import Metrics, counting, recorded
from pocket_plug.layers.tracing import Tracing
from pocket_plug.store.backend import Entry, Put
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.spans import SpanCapture


class Published:
    """What is published of runs."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def collect(self) -> dict[str, dict[str, float]]:
        """Each gauge of runs, by graph and state."""
        data = self.reader.get_metrics_data()
        found: dict[str, dict[str, float]] = {}
        scopes = [scope for resource in (data.resource_metrics if data else ()) for scope in resource.scope_metrics]
        for metric in (metric for scope in scopes for metric in scope.metrics):
            if metric.name.startswith("pocket_plug.run.") and metric.name.endswith((".age", ".recorded")):
                name = metric.name.removeprefix("pocket_plug.run.")
                points: Any = metric.data.data_points
                found[name] = {_about(point.attributes): point.value for point in points}
        return found

    def runs(self) -> dict[str, float]:
        """The numbers, without states that have no runs."""
        return {about: number for about, number in self.collect().get("recorded", {}).items() if number}


def _about(attributes: dict[str, Any]) -> str:
    state = attributes.get("pocket_plug.run.state")
    return attributes["pocket_plug.graph.name"] + (f" {state}" if state else "")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    gc.collect()  # other tests' stores that still exist would be published too
    counting.graphs.clear()
    monkeypatch.setattr(recorded, "FRESH", 0.0)
    found = Published()
    former = metrics.configure(meter_provider=found.provider)
    yield found
    metrics.configure(meter_provider=former.meter_provider)
    found.provider.shutdown()


def store_in(folder: Path, clock: FakeClock | None = None, **options: Any) -> Store:
    url = f"sqlite:///{folder}/state.db?durability=process"
    return Store(url, layers=[Metrics(**options)], clock=clock or FakeClock())


@node
async def same(n: int) -> int:
    return n


@node
async def fail(n: int) -> int:
    raise ValueError(n)


def asking(store: Store | None = None) -> Graph[Any, Any]:
    return Graph(Ask[int, bool](bool, question="Really?"), store=store, name="asking")


async def asked(graph: Graph[Any, Any], run_id: str) -> None:
    with pytest.raises(RunSuspendedError):
        await graph.run(1, run_id=run_id)


def test_runs_are_counted_by_state_and_graph(tmp_path: Path, published: Published) -> None:
    """Each graph has a number for each open state, also 0, and for states in which runs have ended."""

    async def main() -> None:
        async with store_in(tmp_path) as store:
            plain = Graph(same, store=store, name="plain")
            await plain.run(1, run_id="a")
            await plain.submit(2, run_id="b")
            await plain.submit(3, run_id="c")
            with pytest.raises(ValueError, match="4"):
                await Graph(fail, store=store, name="failing").run(4, run_id="d")
            await asked(asking(store), "e")
            await asked(asking(store), "f")
            await Runs(store).cancel("f")
            open_ones = ("pending", "running", "stalled", "suspended", "failed")
            none = {f"{graph} {state}": 0 for graph in ("plain", "failing", "asking") for state in open_ones}
            some = {
                "plain finished": 1,
                "plain pending": 2,
                "failing failed": 1,
                "asking suspended": 1,
                "asking cancelled": 1,
            }
            assert published.collect()["recorded"] == none | some
            await asking(store).resume("e", answer=True)
            assert published.collect()["recorded"]["asking suspended"] == 0

    asyncio.run(main())


def test_the_oldest_open_question_has_an_age(tmp_path: Path, published: Published) -> None:
    """In seconds since it was asked, by the store's clock; after its answer the next question counts."""

    async def main() -> None:
        clock = FakeClock()
        async with store_in(tmp_path, clock) as store:
            await asked(asking(store), "a")
            clock.advance(60)
            await asked(asking(store), "b")
            clock.advance(5)
            assert published.collect()["question.age"] == {"asking": 65}
            await asking(store).resume("a", answer=True)
            assert published.collect()["question.age"] == {"asking": 5}
            await asking(store).resume("b", answer=True)
            assert "question.age" not in published.collect()

    asyncio.run(main())


def test_a_question_keeps_its_age_while_others_are_answered(tmp_path: Path, published: Published) -> None:
    """A run that waits again for one of several questions has asked it when it was first asked."""

    async def main() -> None:
        clock = FakeClock()
        async with store_in(tmp_path, clock) as store:
            graph = Graph(each(Ask[int, bool](bool, question="Really?")), store=store, name="asking")
            with pytest.raises(RunSuspendedError):
                await graph.run([1, 2], run_id="a")
            clock.advance(60)
            (first, _) = await Runs(store).questions("a")
            with pytest.raises(RunSuspendedError):
                await graph.resume("a", answer=True, question=first.id)
            clock.advance(5)
            assert published.collect()["question.age"] == {"asking": 65}

    asyncio.run(main())


def test_a_stalled_run_is_counted_as_stalled_with_its_age(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose process is known to have ended is stalled at once; its age is the time since its last progress."""

    async def main() -> None:
        clock = FakeClock()
        async with store_in(tmp_path, clock) as store:
            entered, forever = asyncio.Event(), asyncio.Event()

            @node
            async def wait(n: int) -> int:
                entered.set()
                await forever.wait()
                return n

            run = asyncio.create_task(Graph(wait, store=store, name="long").run(1, run_id="a"))
            await entered.wait()
            assert published.runs() == {"long running": 1}
            assert "stalled.age" not in published.collect()
            clock.advance(40)
            monkeypatch.setattr(processes.this_process(), "knows_ended", lambda owner, record: True)
            found = published.collect()
            assert (found["recorded"]["long stalled"], found["recorded"]["long running"]) == (1, 0)
            assert found["stalled.age"] == {"long": 40}
            run.cancel()
            await asyncio.wait({run})

    asyncio.run(main())


def test_a_run_without_progress_for_a_lease_is_stalled(tmp_path: Path) -> None:
    """By the observer's own clock, whatever the other machine's clock is."""

    async def main() -> None:
        now = [0.0]
        async with store_in(tmp_path) as store:
            process = {**processes.this_process().record, "id": "other", "machine": "another"}
            run = {"updated": store.stack.clock(), "owner": "o"}
            state = plain_state(State(0.0, owner="o", process=process))
            await store.stack.write([Put("pocket:run:a", run), Put(state_key("running", "long", 1.0, "a"), state)])
            watch = figures.RunsWatch(store.stack, lambda: now[0])
            assert (await watch.look()).runs["long", "running"] == 1
            now[0] = 29
            assert (await watch.look()).runs["long", "running"] == 1
            now[0] = 30
            found = await watch.look()
            assert (found.runs["long", "running"], found.runs["long", "stalled"]) == (0, 1)
            assert found.stalled.keys() == {"long"}

    asyncio.run(main())


def test_a_collection_reads_a_limited_amount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited number of runs per graph and state, of keys in total (open runs first), and of records."""
    monkeypatch.setattr(figures, "MOST", 3)
    monkeypatch.setattr(figures, "MOST_KEYS", 7)
    monkeypatch.setattr(figures, "MOST_RECORDS", 2)
    read: list[int] = []

    class Seen(SQLite):
        async def read_many(self, keys: Any) -> dict[str, Entry]:
            names = list(keys)
            read.append(len(names))
            return await super().read_many(names)

    async def main() -> None:
        async with Store(Seen(tmp_path / "state.db")) as store:
            changes = [
                Put(state_key(state, graph, float(number), f"{number}"), plain_state(State(float(number), questions=1)))
                for state in ("finished", "suspended", "pending")
                for graph in ("a", "b")
                for number in range(5)
            ]
            await store.stack.write(changes)
            found = await figures.RunsWatch(store.stack).look()
            assert {key: number for key, number in found.runs.items() if number} == {
                ("a", "pending"): 3, ("b", "pending"): 3, ("a", "suspended"): 1,
            }  # fmt: skip
            assert max(read) <= 2

    asyncio.run(main())


def test_one_read_is_used_for_all_gauges_for_some_seconds(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second collection within a few seconds uses the first one's result, and a later one reads again."""
    monkeypatch.setattr(recorded, "FRESH", 5.0)
    now, looks = [100.0], list[float]()
    look = figures.RunsWatch.look

    async def counted(self: figures.RunsWatch) -> figures.RunFigures:
        looks.append(now[0])
        return await look(self)

    monkeypatch.setattr(figures.RunsWatch, "look", counted)
    with SyncStore(f"sqlite:///{tmp_path}/state.db", layers=[Metrics()]) as store:
        layer: Any = store.stack.inner
        layer._runs._clock = lambda: now[0]
        graph = Graph(same, store=store, name="plain")
        graph.submit_sync(1, run_id="a")
        assert published.runs() == {"plain pending": 1}
        graph.submit_sync(2, run_id="b")
        assert published.runs() == {"plain pending": 1}
        assert looks == [100]
        now[0] += 5
        assert published.runs() == {"plain pending": 2}
        assert looks == [100, 105]


def test_stores_over_one_file_count_its_runs_once(tmp_path: Path, published: Published) -> None:
    """And stores over several files with the same namespace are counted together."""
    with SyncStore(f"sqlite:///{tmp_path}/a.db", layers=[Metrics()]) as first:
        Graph(same, store=first, name="plain").submit_sync(1, run_id="a")
        with (
            SyncStore(f"sqlite:///{tmp_path}/a.db", layers=[Metrics()]),
            SyncStore(f"sqlite:///{tmp_path}/b.db", layers=[Metrics()]) as third,
        ):
            assert published.runs() == {"plain pending": 1}
            Graph(same, store=third, name="plain").submit_sync(1, run_id="a")
            assert published.runs() == {"plain pending": 2}
        assert published.runs() == {"plain pending": 1}
    assert published.runs() == {}


def test_reads_for_the_gauges_cause_no_telemetry(tmp_path: Path, published: Published) -> None:
    """Reads for the gauges are no lookups of the store's metrics, are not timed, and not traced by a layer."""
    with SyncStore(f"sqlite:///{tmp_path}/state.db", layers=[Metrics(), Tracing()]) as store:
        with pytest.raises(RunSuspendedError):
            Graph(Ask[int, bool](bool, question="Really?"), store=store, name="asking").run_sync(1, run_id="a")
        with SpanCapture() as spans:
            before = _points(published)
            published.collect()
            after = _points(published)
        assert spans.tree() == []
    for name in ("pocket_plug.store.lookups", "db.client.operation.duration"):
        assert after[name] == before[name] != []


def _points(published: Published) -> dict[str, Any]:
    data = published.reader.get_metrics_data()
    assert data is not None
    return {
        each.name: sorted(getattr(point, "value", None) or getattr(point, "count", 0) for point in each.data.data_points)
        for scope in data.resource_metrics[0].scope_metrics
        for each in scope.metrics
    }  # fmt: skip


def test_a_failing_store_ends_no_collection(
    tmp_path: Path, published: Published, caplog: pytest.LogCaptureFixture
) -> None:
    """Its runs are not published, the other figures are, and this is logged once."""

    class Broken(SQLite):
        broken = False

        async def scan(self, prefix: str = "", **page: Any) -> AsyncIterator[str]:
            if self.broken:
                raise StoreError("the disk is gone")
            async for key in super().scan(prefix, **page):
                yield key

    backend = Broken(tmp_path / "state.db")
    with SyncStore(backend, layers=[Metrics()]) as store:
        Graph(same, store=store, name="plain").submit_sync(1, run_id="a")
        assert published.runs() == {"plain pending": 1}
        backend.broken = True
        assert published.runs() == {}
        assert _points(published)["pocket_plug.store.writes"]
        backend.broken = False
        assert published.runs() == {"plain pending": 1}
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "counting the durable runs of a store failed"
    ]


class OfALoop(SQLite):
    """A store that only its event loop may use."""

    needs_loop = True
    inline_read = False

    async def read_many(self, keys: Any) -> dict[str, Entry]:
        await asyncio.sleep(0)
        return await super().read_many(keys)


def test_a_store_with_an_event_loop_is_read_on_that_loop(tmp_path: Path, published: Published) -> None:
    """From the collector's thread; a collection in the loop's own thread gets the last result."""

    async def main() -> None:
        async with Store(OfALoop(tmp_path / "state.db"), layers=[Metrics()]) as store:
            await asked(asking(store), "a")
            assert published.runs() == {}
            assert await asyncio.to_thread(published.runs) == {"asking suspended": 1}
            assert published.runs() == {"asking suspended": 1}

    asyncio.run(main())


def test_a_blocked_event_loop_does_not_stop_the_other_metrics(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `telemetry.flush()` in the loop, which waits for the collection. A later collection has the numbers."""
    monkeypatch.setattr(recorded, "PATIENCE", 0.01)
    now, found = [100.0], list[Any]()

    async def main() -> None:
        async with Store(OfALoop(tmp_path / "state.db"), layers=[Metrics()]) as store:
            layer: Any = store.stack.inner
            layer._runs._clock = lambda: now[0]
            await asked(asking(store), "a")
            collector = threading.Thread(target=lambda: found.append(_points(published)))
            collector.start()
            collector.join(60)  # the loop is blocked meanwhile
            assert found, "it waits for the loop"
            assert "pocket_plug.store.writes" in found[0]
            assert "pocket_plug.run.recorded" not in found[0]
            now[0] += 1
            monkeypatch.setattr(recorded, "PATIENCE", 60.0)  # the loop is free, but the machine may be busy
            assert await asyncio.to_thread(published.runs) == {"asking suspended": 1}

    asyncio.run(main())


def test_a_store_that_is_closed_meanwhile_ends_no_collection(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look is cancelled; the collection goes on without its numbers."""
    monkeypatch.setattr(recorded, "PATIENCE", 60.0)
    found = list[Any]()

    async def main() -> None:
        begun = asyncio.Event()

        async def hang(self: figures.RunsWatch) -> figures.RunFigures:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(figures.RunsWatch, "look", hang)
        collector = threading.Thread(target=lambda: found.append(_points(published)))
        async with Store(OfALoop(tmp_path / "state.db"), layers=[Metrics()]) as store:
            await store.set("k", 1)
            collector.start()
            await begun.wait()
        await asyncio.to_thread(collector.join, 30)

    asyncio.run(main())
    assert found[0]["pocket_plug.store.writes"] == [0, 1]


def test_collectors_do_not_wait_for_each_other(tmp_path: Path, published: Published) -> None:
    """A collection during another one gets the last result."""
    with SyncStore(f"sqlite:///{tmp_path}/state.db", layers=[Metrics()]) as store:
        graph = Graph(same, store=store, name="plain")
        graph.submit_sync(1, run_id="a")
        assert published.runs() == {"plain pending": 1}
        graph.submit_sync(2, run_id="b")
        layer: Any = store.stack.inner
        found: list[dict[str, float]] = []
        with layer._runs._lock:
            thread = threading.Thread(target=lambda: found.append(published.runs()))
            thread.start()
            thread.join(30)
        assert found == [{"plain pending": 1}]


def test_a_store_in_memory_has_no_gauges_of_runs(published: Published) -> None:
    """It can't store durable runs."""
    with SyncStore("memory://", layers=[Metrics()]) as store:
        store.set("a", 1)
        assert not {"recorded", "question.age", "stalled.age"} & published.collect().keys()
