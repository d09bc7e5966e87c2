"""A campaign of workers that are killed and stopped: `python tests/crash/workers.py SEED RUNS MOMENTS`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from pocket_plug.testing.workers_contract import Campaign


def main(seed: int = 0, runs: int = 300, moments: int = 200) -> int:
    """Say what a campaign has come to; exit code 1 where something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = Campaign(f"sqlite:///{folder}/state.db?durability=process", Path(folder), seed, runs, moments).go()
    print(
        f"seed {seed}: {runs} runs, {outcome.kills} kills, {outcome.stops} stops, {outcome.drains} drains, "
        f"{outcome.effects} effects, {outcome.redone} executions again, {outcome.seconds:.0f} s"
    )
    for fault in outcome.faults:
        print("  " + fault)
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
