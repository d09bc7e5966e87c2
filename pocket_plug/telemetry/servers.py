"""Servers whose worker processes end in a way of their own, past `atexit` and our handler of SIGTERM.

Where such a server is loaded, it is asked to tell when a process of its ends. Nothing is imported for it.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any


def watch_servers(
    on_sigterm: Callable[[], object], on_exit: Callable[[], object], on_logging: Callable[[], object]
) -> None:
    """Call `on_sigterm` before a server lets its process die of a SIGTERM, `on_exit` before one ends it otherwise.

    And `on_logging` where one has set up logging. Called again it does so for what has been loaded meanwhile.
    """
    _watch_uvicorn(on_sigterm)
    _watch_celery(on_exit, on_logging)


def _watch_uvicorn(on_sigterm: Callable[[], object]) -> None:
    """uvicorn puts the handlers back that it found when it started, and raises the signal again.

    That kills the process at once, where the program was imported after uvicorn had started, or where gunicorn has
    taken all handlers away before. So it is ended where uvicorn has nothing left to do but that.
    """
    server: Any = getattr(sys.modules.get("uvicorn.server"), "Server", None)
    if server is None or hasattr(server, "_pocket_plug"):
        return
    shutdown = server.shutdown

    @functools.wraps(shutdown)
    async def shut_down_and_end(self: Any, *arguments: object, **options: object) -> None:
        try:
            await shutdown(self, *arguments, **options)
        finally:
            if signal.SIGTERM in getattr(self, "_captured_signals", ()):
                on_sigterm()

    server.shutdown, server._pocket_plug = shut_down_and_end, True


def _watch_celery(on_exit: Callable[[], object], on_logging: Callable[[], object]) -> None:
    """Celery's pool processes end by `os._exit`, and tell it by a signal of Celery's before.

    Its worker also takes away what handlers the root logger has.
    """
    signals: Any = sys.modules.get("celery.signals")
    if signals is None:
        return

    def on_signal(call: Callable[[], object], **_: object) -> None:
        call()

    for signal_, call in ((signals.worker_process_shutdown, on_exit), (signals.after_setup_logger, on_logging)):
        signal_.connect(functools.partial(on_signal, call), weak=False, dispatch_uid="pocket_plug.telemetry")
    on_logging()  # it may have been set up before
