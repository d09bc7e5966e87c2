"""Durable runs with effects on a Dask cluster, while processes of the cluster and of the runs' workers are killed and stopped.

A longer campaign is `tests/crash/workers.py`: `make workers THROUGH=dask`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pocket_plug.testing.servers import DaskCluster
from pocket_plug.testing.workers_contract import AT_ONCE, CLOCKS, Disturbed, WorkersContract


@pytest.mark.crash
class TestWorkers(WorkersContract):
    """The scheduler is killed or stopped, and so is each of Dask's workers."""

    RUNS, MOMENTS = 8, 9

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/state.db?durability=process"

    @pytest.fixture
    def cluster(self) -> Iterator[DaskCluster]:
        with DaskCluster(2, threads=AT_ONCE * len(CLOCKS)) as cluster:
            yield cluster

    @pytest.fixture
    def servers(self, cluster: DaskCluster) -> Sequence[Disturbed]:
        return cluster, *cluster.workers

    @pytest.fixture
    def executor(self, cluster: DaskCluster) -> str:
        return f"dask://{cluster.url.partition('://')[2]}"  # a busy machine would exceed a shorter timeout
