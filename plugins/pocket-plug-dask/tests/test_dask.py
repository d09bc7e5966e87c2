"""The executor for Dask keeps what the contract says, with a real scheduler and workers as processes, killed and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest
from pocket_plug_dask import DaskExecutor

from pocket_plug.remote import Executor
from pocket_plug.testing.executor_contract import ExecutorContract

SOON = 30.0
"""Seconds that a scheduler has to start."""


class Cluster:
    """A scheduler and workers as `dask scheduler` and `dask worker` start them, on a port of their own."""

    def __init__(self, folder: Path, workers: int, port: int = 0) -> None:
        self.folder, self.file, self.port = folder, folder / "scheduler.json", port
        self.scheduler = self._start_scheduler()
        self.workers = [self._start_worker() for _ in range(workers)]

    def _start_scheduler(self) -> subprocess.Popen[bytes]:
        self.file.unlink(missing_ok=True)
        options = ["--scheduler-file", str(self.file), "--no-jupyter", "--no-show"]
        started = self._start("scheduler", "--host", "127.0.0.1", "--port", str(self.port), *options)
        until = time.monotonic() + SOON
        while not self.file.exists() or not self.file.read_text():
            assert started.poll() is None and time.monotonic() < until, "the scheduler doesn't start"
            time.sleep(0.01)  # it is another process
        self.port = int(__import__("json").loads(self.file.read_text())["address"].rpartition(":")[2])
        return started

    def _start_worker(self) -> subprocess.Popen[bytes]:
        return self._start("worker", self.address, "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard")

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        places = ["--local-directory", str(self.folder)] if arguments[0] == "worker" else []
        dashboard = ["--dashboard-address", "127.0.0.1:0"] if arguments[0] == "scheduler" else []
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:], *places, *dashboard],
                stdout=log, stderr=log, start_new_session=True,
            )

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def restart_scheduler(self) -> None:
        self.scheduler = self._start_scheduler()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """With those that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            self.kill(process)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("dask"), workers=2)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def dask(cluster: Cluster) -> Generator[Executor]:
    executor = DaskExecutor(cluster.address)
    yield executor
    executor.close()


class TestDask(ExecutorContract):
    """On workers of a cluster."""

    @pytest.fixture
    def executor(self, dask: Executor) -> Executor:
        return dask
