"""A graph whose `exec` runs elsewhere: what a process that only submits needs, and how values of the user's classes are sent."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pocket_plug as pp
from pocket_plug.executors import Processes


@dataclass(frozen=True)
class Parcel:
    """Registered with no codec; only the annotation of `weigh` shows that it is sent."""

    grams: int


@pp.node(executor="nowhere://cluster")
async def far(n: int) -> int:
    return n


def test_a_process_that_only_submits_needs_no_executor(tmp_path: Path) -> None:
    """A run can be submitted and inspected without the executor's plugin; executing it there is an error at once."""
    graph = pp.Graph(far, name="far")
    with pp.SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        assert graph.submit_sync(1, run_id="r", store=store) == "pending"
        assert [each.run_id for each in graph.check_runs_sync(store=store)] in ([], ["r"])
        with pytest.raises(pp.GraphError, match=r"no executor 'nowhere://cluster'; there is: .* Install its plugin"):
            graph.run_sync(1, run_id="r", store=store)


def test_a_process_that_only_submits_gets_the_faults_of_a_graph(tmp_path: Path) -> None:
    """All other faults of the graph are found as usual."""
    graph = pp.Graph(far >> pp.node(lambda n: n).with_options(name="far"), name="twice")
    with pp.SyncStore(f"sqlite:///{tmp_path}/state.db") as store, pytest.raises(pp.GraphError, match="far"):
        graph.submit_sync(1, run_id="r", store=store)


@pytest.fixture(scope="module")
def processes() -> Generator[Processes]:
    executor = Processes(1)
    yield executor
    executor.close()


@pp.node
def weigh(parcel: Parcel) -> Parcel:
    return Parcel(parcel.grams + 1)


def test_values_of_annotated_classes_are_sent_in_a_run_that_is_not_durable(processes: Processes) -> None:
    """The annotations of exec declare them, as for durable runs."""
    graph = pp.Graph(pp.each(weigh, executor=processes), name="sent")
    assert graph.run_sync([Parcel(1)]) == [Parcel(2)]
