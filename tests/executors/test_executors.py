"""The built-in executors pass the contract of executors."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pocket_plug.executors import Processes, Threads
from pocket_plug.remote import Executor
from pocket_plug.testing.executor_contract import ExecutorContract


class TestThreads(ExecutorContract):
    """In this process."""

    @pytest.fixture
    def executor(self) -> Executor:
        return Threads()


@pytest.fixture(scope="module")
def processes() -> Generator[Executor]:
    executor = Processes(2)
    yield executor
    executor.close()


class TestProcesses(ExecutorContract):
    """In processes of this machine."""

    @pytest.fixture
    def executor(self, processes: Executor) -> Executor:
        return processes
