"""More random walks of a near tier over a backend that notifies of others' writes: `python
tests/crash/near_tier.py SEED COUNT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.layers.test_near import Walk

if __name__ == "__main__":
    first, count = map(int, sys.argv[1:])
    for seed in range(first, first + count):
        try:
            Walk(seed).go(60)
        except BaseException as error:
            error.add_note(f"the walk of seed {seed}")
            raise
    print(f"{count} walks from seed {first} on: no read was older than what had been told")
