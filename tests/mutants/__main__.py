"""`make mutants`: change the core in small ways, one at a time, and list the changes that no test notices.

A mutant that survives shows a guarantee without a test, or code that does nothing. The mutants are chosen by a seed, so that a
run can be repeated: `make mutants ARGS='--seed 1 --count 300 --only store/views'`. They are made in copies of the working tree,
which itself is never changed. For why it isn't mutmut or cosmic-ray, see docs/architecture.md.
"""

from __future__ import annotations

import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from .breaking import Mutant, mutants_of

ROOT = Path(__file__).parents[2]

TESTS: dict[str, str] = {
    "backends/network": "test_network",
    "backends/sqlite/backend": "test_sqlite",
    "backends/sqlite/backup": "test_sqlite_backup",
    "backends/sqlite/connections": "test_sqlite test_forking",
    "backends/sqlite/files": "test_sqlite",
    "backends/sqlite/opened": "test_sqlite",
    "backends/sqlite/records": "test_sqlite",
    "backends/sqlite/refusals": "test_sqlite",
    "backends/sqlite/schema": "test_sqlite",
    "backends/sqlite/transactions": "test_sqlite",
    "backends/sqlite/writer": "test_sqlite",
    "codec/adapters": "test_codec test_exact_values",
    "codec/codec": "test_codec test_exact_values test_sealed_records test_upgrades",
    "codec/copying": "test_codec test_exact_values",
    "codec/encoding": "test_codec test_exact_values",
    "codec/records": "test_codec test_sealed_records",
    "codec/registry": "test_codec test_upgrades test_defined_again",
    "executors/processes": "executors/test_processes test_executors",
    "executors/threads": "test_executors",
    "graph/addresses": "executors/test_processes test_executors",
    "graph/durable/changes": "test_changed_graphs test_run_upgrades",
    "graph/durable/check": "test_runs",
    "graph/durable/claim": "test_durable test_states test_run_upgrades test_runs",
    "graph/durable/executions": "test_durable test_runs",
    "graph/durable/finished": "test_durable test_removal",
    "graph/durable/heartbeat": "test_states test_run_worker",
    "graph/durable/indexing": "test_states test_runs",
    "graph/durable/journal": "test_durable test_states",
    "graph/durable/judging": "test_changed_graphs test_run_upgrades",
    "graph/durable/ledger": "test_durable test_states test_leaving",
    "graph/durable/moving": "test_runs test_removal",
    "graph/durable/processes": "test_states test_run_worker",
    "graph/durable/prune": "test_prune",
    "graph/durable/ready": "test_run_worker test_runs",
    "graph/durable/records": "test_durable",
    "graph/durable/removal": "test_removal test_prune",
    "graph/durable/request": "test_durable",
    "graph/durable/stalled": "test_run_worker test_runs",
    "graph/durable/standing": "test_durable test_states",
    "graph/durable/states": "test_states test_runs",
    "graph/durable/submitting": "test_submitting",
    "graph/durable/upgrading": "test_run_upgrades",
    "graph/durable/waits": "test_states test_runs",
    "graph/durable/waking": "test_run_worker test_runs",
    "graph/durable/worker": "test_run_worker",
    "graph/following/events": "test_streaming",
    "graph/following/feed": "test_streaming test_following",
    "graph/following/reports": "test_streaming",
    "graph/following/streaming": "test_streaming",
    "graph/graph": "test_graph test_runner",
    "graph/kinds/ask": "test_durable",
    "graph/kinds/each": "test_concurrency test_cancellation",
    "graph/kinds/nesting": "test_graph test_runner test_durable",
    "graph/nodes/chain": "test_node test_graph test_runner",
    "graph/nodes/node": "test_node test_runner",
    "graph/nodes/phases": "test_node test_runner test_typing",
    "graph/nodes/retry": "test_node",
    "graph/observing/watching": "test_observers",
    "graph/planning/plan": "test_graph test_runner",
    "graph/planning/step": "test_graph test_runner",
    "graph/replacing": "test_replace",
    "graph/retention": "test_prune",
    "graph/running/clean_up": "test_runner test_cancellation",
    "graph/running/context": "test_runner test_cancellation",
    "graph/running/execution": "test_runner test_cancellation test_observers",
    "graph/running/phase_calls": "test_runner test_observers test_workers",
    "graph/running/visit": "test_runner test_cancellation test_observers test_isolation_levels",
    "graph/running/workers": "test_workers test_runner",
    "graph/runs/answering": "test_runs test_durable",
    "graph/runs/figures": "test_runs",
    "graph/runs/following": "test_following",
    "graph/runs/history": "test_runs",
    "graph/runs/info": "test_runs",
    "graph/runs/listing": "test_runs",
    "graph/runs/operations": "test_runs",
    "graph/runs/runs": "test_runs test_submitting test_prune",
    "graph/upgrades": "test_run_upgrades",
    "layers/bounding/__init__": "test_bounding test_layer_contract",
    "layers/bounding/sizes": "test_bounding",
    "layers/bounding/table": "test_bounding test_layer_contract",
    "layers/copying": "test_copying test_layer_contract",
    "layers/fault": "test_fault",
    "layers/migrate": "test_migrate",
    "layers/persistence/__init__": "test_persistence test_layer_contract",
    "layers/readonly": "test_readonly",
    "layers/timeout": "test_timeout test_layer_contract",
    "layers/persistence/trust": "test_persistence test_near",
    "layers/persistence/write_behind": "test_write_behind test_behind_contract",
    "plugins/config": "test_config test_pocket",
    "plugins/discovery": "test_discovery",
    "plugins/manager": "test_manager test_observers",
    "plugins/pocket": "test_pocket test_manager",
    "primitives/durations": "test_durations",
    "primitives/forking": "test_forking",
    "primitives/typechecks": "test_typechecks",
    "primitives/waiting": "test_waiting test_sync",
    "propagation": "test_propagation",
    "remote/dispatch": "test_dispatch test_executors",
    "remote/failures": "test_failures test_dispatch",
    "remote/wire": "test_dispatch test_executors",
    "store/backend": "test_layer",
    "store/base": "test_store test_keys",
    "store/caching": "test_caching",
    "store/contention": "test_contention test_hot_key test_transaction test_isolation_levels",
    "store/entry_table": "test_memory_contract test_store test_durations test_store_machine test_bounding",
    "store/flights": "test_caching",
    "store/gates": "test_contention test_hot_key test_transaction test_isolation_levels",
    "store/home": "test_sync test_waiting",
    "store/keys": "test_keys test_store",
    "store/layer": "test_layer",
    "store/listing": "test_listing test_memory_contract",
    "store/lists": "test_lists test_memory_contract",
    "store/mapping": "test_mapping",
    "store/memory": "test_memory_contract test_store test_durations test_store_machine",
    "store/naming": "test_keys test_listing",
    "store/scanning": "test_scanning test_memory_contract test_transaction test_layer_contract test_behind_contract",
    "store/stack": "test_layer test_store test_pocket",
    "store/store": "test_store test_sync",
    "store/overrides": "test_layer",
    "store/reading": "test_prune test_lists",
    "store/sync": "test_sync test_store",
    "store/transaction": "test_transaction test_isolation_levels test_store test_contention",
    "store/typed": "test_keys test_store",
    "store/updating": "test_store test_memory_contract",
    "store/views": "test_store test_store_machine test_keys test_sync",
    "traces/comparing": "test_comparing",
    "traces/failing": "test_failing",
    "traces/index": "test_index",
    "traces/recorded": "test_recorded",
    "traces/retention": "test_retention",
}
"""The modules, and the tests that are the first to notice. A mutant that these let live meets `WIDER` as well."""
WIDER = ["store", "graph", "layers", "backends", "census"]
LIMIT = 30.0
"""Seconds more than thrice what the tests take without a mutant: then it hangs, which somebody would notice."""


class Workshop:
    """Copies of the working tree, each for one mutant at a time."""

    def __init__(self, folder: Path, copies: int) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        self._free: queue.Queue[Path] = queue.Queue()
        for number in range(copies):
            copy = folder / str(number)
            for name in listed:
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            self._free.put(copy)

    def passes(self, tests: Sequence[str], limit: float, mutant: Mutant | None = None) -> bool | None:
        """Do the tests pass, with the unchanged code or with a mutant? None: they took longer than `limit`."""
        copy = self._free.get()
        file = None if mutant is None else copy / mutant.file
        source = None if file is None else file.read_bytes()
        try:
            if file is not None and mutant is not None:
                file.write_bytes(mutant.source)
            return _run(copy, tests, limit)
        finally:
            if file is not None and source is not None:
                file.write_bytes(source)
            self._free.put(copy)


def _run(copy: Path, tests: Sequence[str], limit: float) -> bool | None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    # no .pyc: one with the age and length of the mutant's source would be taken for it
    env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "CI": "true"}
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(limit) == 0
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also the processes that its tests have started
        process.wait()


def first_tests(module: str) -> list[str]:
    """The test files that most probably notice a change."""
    return [_test(name) for name in TESTS[module].split()]


def _test(name: str) -> str:
    """The file of that name, which may have been moved from one folder to another."""
    (file,) = (ROOT / "tests").rglob(f"{name}.py")
    return str(file.relative_to(ROOT))


def wider() -> list[str]:
    """The tests for the remaining mutants."""
    return [f"tests/{name}" for name in WIDER]


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose mutants, test them, list the survivors."""
    parser = ArgumentParser("python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="which mutants are drawn (1)")
    parser.add_argument("--count", type=int, default=200, help="how many (200)")
    parser.add_argument(
        "--only", metavar="MODULES", default="", help=f"of these, with commas between: {', '.join(TESTS)}"
    )
    parser.add_argument("--jobs", type=int, default=2, help="so many at a time (2)")
    parser.add_argument("--list", action="store_true", help="show those that would be tried, and try none")
    options = parser.parse_args(arguments)
    modules = [name for name in options.only.split(",") if name] or [*TESTS]
    if unknown := [name for name in modules if name not in TESTS]:
        parser.error(f"there is no module {', '.join(unknown)}; there are {', '.join(TESTS)}")
    drawn = draw(modules, options.seed, options.count)
    console = Console(stderr=True)
    if options.list:
        for mutant in drawn:
            print(mutant.shown())
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        return _try(drawn, Workshop(Path(folder), options.jobs), options.jobs, console)


def draw(modules: Iterable[str], seed: int, count: int) -> list[Mutant]:
    """Some mutants of these modules, the same for the same seed and code."""
    every = [mutant for name in sorted(modules) for mutant in mutants_of(ROOT, f"pocket_plug/{name}.py")]
    random.Random(seed).shuffle(every)
    return [*islice((mutant for mutant in every if mutant.parses), count)]


def _try(drawn: Sequence[Mutant], workshop: Workshop, jobs: int, console: Console) -> int:
    ended: Counter[str] = Counter()
    with Progress(console=console, disable=not console.is_terminal) as progress, ThreadPoolExecutor(jobs) as pool:
        modules = {mutant.module: first_tests(mutant.module) for mutant in drawn} | {"": wider()}
        task = progress.add_task("tests as they are", total=len(modules))
        limits: dict[str, float] = {}

        def measure(module: str) -> tuple[str, float, bool | None]:
            began = time.monotonic()
            passes = workshop.passes(modules[module], 1800)
            return module, time.monotonic() - began, passes

        for measured in as_completed([pool.submit(measure, module) for module in modules]):
            module, seconds, passes = measured.result()
            if not passes:
                console.print(f"[red]without any mutant these fail[/]: {' '.join(modules[module])}")
                return 1
            limits[module] = 3 * seconds + LIMIT
            progress.advance(task)

        def meet(mutant: Mutant) -> tuple[Mutant, str]:
            for module in (mutant.module, ""):
                passes = workshop.passes(modules[module], limits[module], mutant)
                if not passes:
                    return mutant, "hung" if passes is None else "killed"
            return mutant, "survived"

        task = progress.add_task("mutants", total=len(drawn))
        for met in as_completed([pool.submit(meet, mutant) for mutant in drawn]):
            mutant, end = met.result()
            ended[end] += 1
            progress.update(task, advance=1, description=f"mutants, {ended['survived']} alive")
            if end == "survived":
                progress.console.print(mutant.shown(), markup=False, highlight=False) if console.is_terminal else print(
                    mutant.shown(), flush=True
                )
    print(f"{len(drawn)} mutants: {ended['killed']} killed, {ended['hung']} hung, {ended['survived']} survived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
