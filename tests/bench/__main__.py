"""`make bench`: measure every row, each in a process of its own, and print its table.

So what a peer does to its process when it is imported touches no other row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from . import modules  # noqa: F401 - they register their rows
from .harness import QUICK, Effort, measure, select
from .table import summary, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="ROW", default="*", help="rows whose name holds this; * stands for anything")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: a first impression")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write what was measured there, too")
    options = parser.parse_args()
    effort = QUICK if options.quick else Effort()
    rows = select(options.only)
    if not rows:
        parser.error(f"no row's name holds {options.only!r}")
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores\n")
    results, failed = [], []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for row in rows:
            try:
                result = pool.submit(measure, row, effort).result()
            except Exception:  # noqa: BLE001 - a row that can't be measured keeps none of the others from it
                traceback.print_exc()
                failed.append(row.name)
            else:
                results.append(result)
                console.print(f"[bold]{result.row}[/]: {result.title}")
                console.print(table(result, framed=console.is_terminal), "")
    console.print(summary(results, failed))
    if options.json is not None:
        about: dict[str, Any] = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        }
        options.json.write_text(json.dumps(about | {"rows": [result.as_json() for result in results]}, indent=2))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
