"""The kit for those who test what they wrote: contracts to inherit, a clock, span capture, a Pocket for each test.

- `contracts.BackendContract`, `layer_contract.LayerContract`: inherit one, and get the whole suite.
- `watch_contract.WatchContract`: the same for a backend that tells what others write.
- `shared_contract.SharedBackendContract`, `server_contract.ServerBackendContract`: the same for a backend that processes
  share, and for one with a server.
- `executor_contract.ExecutorContract`: the same for an executor.
- `runs_contract.RunsContract`: the same for durable runs over a backend that several processes share.
- `servers.valkey`, `servers.postgres`: real servers from wheels, to kill, stop and restart; `proxy.Proxy` before one
  loses answers.
- `nodes.run_node`: one node by itself, through all of its phases.
- `clock.FakeClock`, `clock.run_virtual`: time that a test owns.
- `spans.SpanCapture`: the spans that a block of code makes, as a tree.
- `isolation.fresh_pocket`: a block in which the process has no default Pocket yet; `fixtures` has it for pytest.

Contracts and fixtures are pytest's; the rest works with any test runner, and without pytest.
"""

from __future__ import annotations

import sys
from importlib.resources import files

if (pytest := sys.modules.get("pytest")) is not None:
    # asserts of the contracts, and of what they are made of, then say what they found, as those of a test module do
    names = (file.name.removesuffix(".py") for file in files(__name__).iterdir())
    pytest.register_assert_rewrite(
        *(f"{__name__}.{name}" for name in names if "contract" in name or name in ("scenarios", "several"))
    )
