"""What a worker process knows about how it was started. `tests/executors/test_processes.py` starts workers."""

from __future__ import annotations

import subprocess
import sys

WHILE_ANOTHER_THREAD_IMPORTS = """
import sys, threading
from pocket_plug.primitives.spawned import end_unguarded

main, has_begun, has_failed = threading.get_ident(), threading.Event(), threading.Event()

class UntilTheMainThreadImports:
    def find_spec(self, name, path=None, target=None):
        if name == "multiprocessing.context":
            has_begun.set()
            while "importlib" not in sys._current_frames()[main].f_code.co_filename and not has_failed.is_set():
                pass

assert "multiprocessing" not in sys.modules
sys.meta_path.insert(0, UntilTheMainThreadImports())
threading.Thread(target=__import__, args=("multiprocessing",)).start()
has_begun.wait()
try:
    end_unguarded()
except AttributeError:
    has_failed.set()
    raise
"""


def test_a_process_is_no_worker_while_another_of_its_threads_imports_multiprocessing() -> None:
    """The module is half imported then, and lacks what tells workers from other processes."""
    subprocess.run([sys.executable, "-c", WHILE_ANOTHER_THREAD_IMPORTS], check=True, timeout=60)
