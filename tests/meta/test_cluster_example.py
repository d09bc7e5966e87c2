"""`examples/cluster` over a real PostgreSQL and a real Dask cluster, as `make cluster` runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.crash
def test_the_cluster_counts_each_folder_once_though_it_is_killed() -> None:
    """Server, scheduler and workers are killed in the middle; there is one trace."""
    done = subprocess.run(
        [sys.executable, "-m", "cluster"],
        cwd=ROOT / "examples",
        capture_output=True,
        text=True,
        timeout=600,  # on a busy machine; otherwise its child processes would outlive it
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folders,) = re.findall(r"^(\d+) folders, each recorded once", done.stdout, re.MULTILINE)
    assert re.findall("killing (.*?),", done.stdout) == [
        "dask-scheduler",
        "dask-worker-1",
        "dask-worker-2",
        "worker-1",
        "the database server",
    ]
    assert f"Traces: 1, of {folders} folders" in done.stdout
