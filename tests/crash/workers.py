"""A campaign of workers that are killed and stopped: `python tests/crash/workers.py SEED RUNS MOMENTS [sqlite|redis|postgres]`.

Over a server, every third moment is one of the server's: it is killed and started again, or stopped for a while.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from pocket_plug.testing.servers import Server, postgres, valkey
from pocket_plug.testing.workers_contract import Campaign

SERVERS: Mapping[str, Callable[[], Server]] = {"redis": valkey, "postgres": postgres}


def main(seed: int = 0, runs: int = 300, moments: int = 200, over: str = "sqlite") -> int:
    """Say what a campaign has come to; exit code 1 where something is wrong."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ending:
        server = ending.enter_context(SERVERS[over]()) if over in SERVERS else None
        url = f"sqlite:///{folder}/state.db?durability=process" if server is None else f"{server.url}?timeout=1"
        outcome = Campaign(url, Path(folder), seed, runs, moments, server).go()
    print(
        f"{over}, seed {seed}: {runs} runs, {outcome.kills} kills, {outcome.stops} stops, {outcome.drains} drains, "
        f"server killed {outcome.crashes} and stopped {outcome.stalls} times, "
        f"{outcome.effects} effects, {outcome.redone} executions again, {outcome.seconds:.0f} s"
    )
    for fault in outcome.faults:
        print("  " + fault)
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4]), *sys.argv[4:]))
