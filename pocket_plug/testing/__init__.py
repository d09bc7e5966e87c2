"""Tools to test your own nodes, layers, backends and executors: contracts to inherit, a clock, span capture, a fresh Pocket.

- `contracts.BackendContract`, `layer_contract.LayerContract`: inherit one to get its whole test suite.
- `watch_contract.WatchContract`: the same for a backend that notifies of others' writes.
- `shared_contract.SharedBackendContract`, `server_contract.ServerBackendContract`: the same for a backend that several
  processes share, and for one with a server.
- `executor_contract.ExecutorContract`: the same for an executor.
- `runs_contract.RunsContract`: the same for durable runs over a backend that several processes share.
- `servers.valkey`, `servers.postgres`: real servers from wheels, to kill, stop and restart. `proxy.Proxy`: a proxy before a
  server that loses answers.
- `nodes.run_node`: runs a single node, through all its phases.
- `clock.FakeClock`, `clock.run_virtual`: time that a test controls.
- `spans.SpanCapture`: the spans that a block of code makes, as a tree.
- `isolation.fresh_pocket`: a block that begins without a default Pocket; `fixtures` has it for pytest.

Contracts and fixtures need pytest; the rest works with any test runner, or without one.
"""

from __future__ import annotations

import sys
from importlib.resources import files

if (pytest := sys.modules.get("pytest")) is not None:
    # so that failing asserts in contracts and their helpers show values, as those of a test module do
    names = (file.name.removesuffix(".py") for file in files(__name__).iterdir())
    pytest.register_assert_rewrite(
        *(f"{__name__}.{name}" for name in names if "contract" in name or name in ("scenarios", "several"))
    )
