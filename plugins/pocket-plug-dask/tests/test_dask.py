"""The executor for Dask passes the contract of executors, with a real scheduler and real workers,
which are killed and stopped.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pocket_plug_dask
import pytest
from dask import config
from pocket_plug_dask.executor import LOOKS_WITHOUT_WORKERS, DaskExecutor, _Home

from pocket_plug import ConfigError, ExecutorLostError, Pocket
from pocket_plug.remote import Executor
from pocket_plug.testing import executor_graphs as graphs
from pocket_plug.testing.executor_contract import ExecutorContract, Offering, has
from pocket_plug.testing.servers import DaskCluster, certificate

SOON = 60.0
"""Seconds, half of what a run may take here."""
OPTIONS = {"distributed.scheduler.allowed-failures": "1"}
"""Not 3: that takes its time."""


@pytest.fixture(scope="module")
def cluster() -> Generator[DaskCluster]:
    with DaskCluster(2, options=OPTIONS) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def dask(cluster: DaskCluster) -> Generator[Executor]:
    executor = DaskExecutor(cluster.url)
    yield executor
    executor.close()


class TestDask(ExecutorContract):
    """On workers of a cluster."""

    @pytest.fixture
    def executor(self, dask: Executor) -> Executor:
        return dask


def run(working: Coroutine[Any, Any, Any]) -> Any:
    async def in_time() -> Any:
        async with asyncio.timeout(2 * SOON):
            return await working

    return asyncio.run(in_time())


def test_a_scheduler_that_is_stopped_or_killed_is_an_error_and_then_used_again(tmp_path: Path) -> None:
    """Work in progress fails with an error that a retry covers; the program continues without a restart."""
    cluster = DaskCluster(options=OPTIONS)
    executor = DaskExecutor(cluster.url, timeout=1)
    pocket = Pocket(plugins=[Offering(executor)], autoload=False)

    async def lost_after(harm: Callable[[], object]) -> None:
        """The scheduler is killed or stopped while a worker executes."""
        (tmp_path / "begun").unlink(missing_ok=True)
        running = asyncio.create_task(graphs.blocking.run(str(tmp_path), pocket=pocket))
        await has(tmp_path / "begun")
        harm()
        with pytest.raises(ExecutorLostError, match=r"node 'blocked'.*scheduler"):
            await running

    try:
        run(lost_after(cluster.stop))
        with pytest.raises(ExecutorLostError, match="can't be reached"):
            run(graphs.halving.run(2, pocket=pocket))
        cluster.go_on()
        (tmp_path / "go").touch()
        assert run(graphs.halving.run(4, pocket=pocket)) == 2
        (tmp_path / "go").unlink()
        run(lost_after(cluster.kill))
        with pytest.raises(ExecutorLostError, match="can't be reached"):
            run(graphs.halving.run(2, pocket=pocket))
        cluster.restart()
        assert run(graphs.halving.run(6, pocket=pocket)) == 3
    finally:
        executor.close()
        cluster.close()


def test_a_cluster_without_workers_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only while work waits for one, and with the command that starts one; then the work is done."""
    monkeypatch.setattr("pocket_plug_dask.executor.LOOK", 0.01)
    found, looks = _Home._found, list[int]()
    monkeypatch.setattr(_Home, "_found", lambda home, threads: looks.append(threads) or found(home, threads))

    async def looks_without_workers(number: int) -> None:
        before = looks.count(0)
        while looks.count(0) < before + number:
            await asyncio.sleep(0.01)

    with DaskCluster(1) as cluster:
        executor = DaskExecutor(cluster.url)
        pocket = Pocket(plugins=[Offering(executor)], autoload=False)

        async def main() -> None:
            assert await graphs.halving.run(2, pocket=pocket) == 1
            cluster.workers[0].kill()
            await looks_without_workers(3 * LOOKS_WITHOUT_WORKERS)
            assert "no workers" not in caplog.text
            waiting = asyncio.create_task(graphs.halving.run(4, pocket=pocket))
            await looks_without_workers(3 * LOOKS_WITHOUT_WORKERS)
            await asyncio.to_thread(cluster.workers[0].restart)
            assert await waiting == 2

        try:
            run(main())
        finally:
            executor.close()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "pocket_plug"]
    assert said == (
        f"executor {cluster.url}: the cluster has no workers, so the nodes that it is to execute wait; "
        f"start one: dask worker {cluster.url}"
    )


def test_the_executor_is_loaded_when_a_url_asks_for_it() -> None:
    """If the plugin is only installed, it costs a program nothing but the import of its hook."""
    code = (
        "import sys, pocket_plug; pocket_plug.Pocket(); assert 'pocket_plug_dask' in sys.modules; "
        "assert 'pocket_plug.remote' not in sys.modules; "
        "import pocket_plug_dask; pocket_plug_dask.DaskExecutor; assert 'pocket_plug.remote' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_cluster_of_this_machine_and_a_scheduler_file(cluster: DaskCluster) -> None:
    """Both work by their URLs, in a Pocket with the plugin. Closing the Pocket ends the cluster that the executor has started."""
    with Pocket(plugins=[pocket_plug_dask], autoload=False) as pocket:
        for url in ("dask+local://?workers=1", f"dask://?scheduler_file={cluster.scheduler.folder}/scheduler.json"):
            executor = pocket.executor(url)
            assert executor is pocket.executor(url)
            there = Pocket(plugins=[Offering(executor)], autoload=False)  # type: ignore[arg-type]
            assert run(graphs.halving.run(2, pocket=there)) == 1


def test_tls_is_as_dask_is_configured(tmp_path: Path) -> None:
    """TLS uses the files of Dask's configuration, which no URL names; without TLS, the scheduler can't be reached."""
    made = certificate(tmp_path)
    tls = {"distributed.comm.default-scheme": "tls", "distributed.comm.tls.ca-file": str(made.authority)}
    for role in ("scheduler", "worker", "client"):
        tls |= {f"distributed.comm.tls.{role}.cert": str(made.chain), f"distributed.comm.tls.{role}.key": str(made.key)}
    cluster = DaskCluster(options=tls)
    plain = DaskExecutor.from_url(f"dask://127.0.0.1:{cluster.scheduler.port}?timeout=1")
    secret = DaskExecutor.from_url(f"dask+tls://127.0.0.1:{cluster.scheduler.port}")
    try:
        with pytest.raises(ExecutorLostError, match="can't be reached"):
            run(graphs.halving.run(2, pocket=Pocket(plugins=[Offering(plain)], autoload=False)))
        with config.set(tls):
            assert run(graphs.halving.run(2, pocket=Pocket(plugins=[Offering(secret)], autoload=False))) == 1
    finally:
        plain.close()
        secret.close()
        cluster.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("dask://", "give either a scheduler"),
        ("dask://host:1?scheduler_file=x", "give either a scheduler"),
        ("dask://host:1?time=3", "Did you mean 'timeout'"),
        ("dask://host:1?timeout=soon", "give seconds"),
        ("dask://host:1?timeout=0", "give seconds"),
        ("dask+local://host?workers=2", "only options"),
        ("dask+local://?workers=0", "whole number"),
        ("dask://me:hunter2@host:1", "only host:port"),
    ],
)
def test_a_url_that_is_invalid_is_refused(url: str, said: str) -> None:
    """It says what is allowed, without passwords."""
    pocket = Pocket(plugins=[pocket_plug_dask], autoload=False)
    with pytest.raises(ConfigError, match=said) as failed:
        pocket.executor(url)
    assert "hunter2" not in str(failed.value)


def test_urls_name_schedulers() -> None:
    """The scheduler's address is the one that Dask uses."""
    assert DaskExecutor.from_url("dask://host:8786").title == "tcp://host:8786"
    assert DaskExecutor.from_url("dask+tls://host:8786").title == "tls://host:8786"
    assert DaskExecutor.from_url("dask://?scheduler_file=/x.json").title == "/x.json"
    assert DaskExecutor.from_url("dask+local://").title == "dask+local://?workers=2"


def test_a_graph_in_a_script_is_refused(tmp_path: Path) -> None:
    """Before the run starts: Dask's workers have another `__main__`."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pocket_plug import Graph, GraphError, node\n"
        "@node(executor='dask://127.0.0.1:1')\n"
        "def double(n: int) -> int:\n"
        "    return 2 * n\n"
        "graph = Graph(double)\n"
        "try:\n"
        "    graph.run_sync(1)\n"
        "except GraphError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert "move the node into a module of its own" in done.stdout
