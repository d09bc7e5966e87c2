"""A campaign of workers that are killed and stopped:

    python tests/crash/workers.py SEED RUNS MOMENTS [sqlite|redis|postgres [dask]]

With `dask` the effects run on Dask. If there are servers (the store's, or Dask's scheduler and its two workers), every third
moment affects one of them, in turn: it is killed and started again, or stopped for a while.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from pocket_plug.testing.servers import DaskCluster, Server, postgres, valkey
from pocket_plug.testing.workers_contract import AT_ONCE, CLOCKS, Campaign, Disturbed

SERVERS: Mapping[str, Callable[[], Server]] = {"redis": valkey, "postgres": postgres}


def main(seed: int = 0, runs: int = 300, moments: int = 200, over: str = "sqlite", through: str = "") -> int:
    """Print the result of a campaign; exit code 1 if a guarantee was broken."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ending:
        url, servers, executor = f"sqlite:///{folder}/state.db?durability=process", list[Disturbed](), ""
        if over in SERVERS:
            server = ending.enter_context(SERVERS[over]())
            url, servers = f"{server.url}?timeout=1", [server]
        if through:
            cluster = ending.enter_context(DaskCluster(2, threads=AT_ONCE * len(CLOCKS)))
            executor, servers = (
                f"dask://{cluster.url.partition('://')[2]}?timeout=1",
                [*servers, cluster, *cluster.workers],
            )
        outcome = Campaign(url, Path(folder), seed, runs, moments, servers, executor).go()
    print(
        f"{over} {through}, seed {seed}: {runs} runs, {outcome.kills} kills, {outcome.stops} stops, {outcome.drains} drains, "
        f"servers killed {outcome.crashes} and stopped {outcome.stalls} times, "
        f"{outcome.effects} effects, {outcome.redone} executions again, {outcome.seconds:.0f} s"
    )
    for fault in outcome.faults:
        print("  " + fault)
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4]), *sys.argv[4:]))
