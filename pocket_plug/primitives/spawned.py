"""What a worker process must know about how it was started.

A spawned process imports the script of its parent before it does anything else. A script without a guard then does there what it
did in its parent: it would start worker processes of its own, and so on.
"""

from __future__ import annotations

import sys

WORKER = "pocket_plug worker"
"""The beginning of the names of our worker processes."""
UNGUARDED = 71
"""The exit code of a worker whose script starts work when it is imported; the parent reports it."""


def end_unguarded() -> None:
    """End this process without output, if it is a worker that still imports the script."""
    if "multiprocessing" not in sys.modules:  # a process that it has started has imported it, and others save the time
        return
    import multiprocessing  # waits, if another thread has only begun to import it

    process = multiprocessing.current_process()
    # as multiprocessing's own check does
    if process.name.startswith(WORKER) and getattr(process, "_inheriting", False):
        raise SystemExit(UNGUARDED)
