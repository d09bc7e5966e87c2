"""What a worker process has to know of how it was started.

A spawned process imports the script of its parent before it does anything else. A script without a guard then does there what it
did in its parent: it would start worker processes of its own, and so on.
"""

from __future__ import annotations

import multiprocessing

WORKER = "pocket_plug worker"
"""How the names of our worker processes begin."""
UNGUARDED = 71
"""The exit code of one whose script starts to work as it is imported: its parent tells."""


def end_unguarded() -> None:
    """End this process, if it is a worker that still imports the script. What it would print is of no use to anybody."""
    process = multiprocessing.current_process()
    if process.name.startswith(WORKER) and getattr(
        process, "_inheriting", False
    ):  # as multiprocessing's own check does
        raise SystemExit(UNGUARDED)
