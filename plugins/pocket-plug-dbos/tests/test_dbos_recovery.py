"""Executors in processes of their own: one is killed, and another continues its runs. Also the README's program."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pocket_plug as pp
from pocket_plug.testing.servers import Server

COUNT = 12
SECONDS = 120.0
"""After which something is taken for hanging."""


@contextmanager
def executor(folder: Path, name: str, count: int, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs `dbos_shop.py`, killed at the end."""
    program = Path(__file__).with_name("dbos_shop.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(folder), name, str(count)], env={**os.environ, "DBOS_URL": url}
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(holds: Callable[[], bool], process: subprocess.Popen[bytes], what: Callable[[], object]) -> None:
    last = time.monotonic() + SECONDS
    while not holds():
        assert process.poll() is None, "the executor has ended"
        assert time.monotonic() < last, what()
        time.sleep(0.005)


@pytest.mark.crash
@pytest.mark.parametrize("system", ["sqlite", "postgresql"])
def test_runs_of_a_killed_executor_are_resumed_and_each_effect_takes_place_once(
    tmp_path: Path, system: str, has_sqlite: bool, request: pytest.FixtureRequest
) -> None:
    """An executor gets SIGKILL in the middle of several runs; another one resumes the workflows that DBOS lists as pending."""
    url = f"sqlite:///{tmp_path}/dbos.db"
    if system == "sqlite" and not has_sqlite:
        pytest.skip("DBOS can't use this machine's SQLite")
    if system == "postgresql":
        server: Server = request.getfixturevalue("postgres_server")
        url = f"{server.url.rpartition('/')[0]}/dbos_recovery"
    with pp.SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        runs = pp.SyncRuns(store)
        with executor(tmp_path, "a", COUNT, url) as first:
            until(lambda: store.get("shipped", 0) >= 3, first, lambda: store.get("shipped"))
        assert len(runs.list(state="finished").runs) < COUNT
        with executor(tmp_path, "b", COUNT, url) as second:  # the first one may not have submitted all of them
            until(
                lambda: len(runs.list(state="finished").runs) == COUNT,
                second,
                lambda: [(info.run_id, info.state) for info in runs.list().runs],
            )
        assert store.get("shipped") == COUNT
        assert store.get("revenue") == sum(range(COUNT))


def test_the_program_of_the_readme_runs(tmp_path: Path, has_sqlite: bool) -> None:
    """Unchanged, over files that it creates itself."""
    if not has_sqlite:
        pytest.skip("DBOS can't use this machine's SQLite")
    page = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    _, _, rest = page.partition("```python\n")
    code, _, _ = rest.partition("```")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout == "finished\n", ran.stderr
