"""Servers whose worker processes end without `atexit` and without our handler of SIGTERM: uvicorn and Celery.

If such a server is loaded, it is patched to notify us before a process ends. Nothing is imported for this. If a version doesn't
have what we patch, this is logged once, and the ends of its processes are not noticed.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

from pocket_plug.primitives.failures import say_once


def watch_servers(
    on_sigterm: Callable[[], object], on_exit: Callable[[], object], on_logging: Callable[[], object]
) -> None:
    """Call `on_sigterm` before a server lets its process die of a SIGTERM, `on_exit` before one ends it otherwise.

    Call `on_logging` after a server has set up logging. Another call adds servers that were loaded since.
    """
    _watch_uvicorn(on_sigterm)
    _watch_celery(on_exit, on_logging)


def _watch_uvicorn(on_sigterm: Callable[[], object]) -> None:
    """At its end, uvicorn restores the signal handlers that it found at its start, and raises the signal again.

    This kills the process at once if the program was imported after uvicorn's start, or if gunicorn has removed all handlers
    before. So `on_sigterm` is called at the end of uvicorn's shutdown, just before that.
    """
    server: Any = getattr(sys.modules.get("uvicorn.server"), "Server", None)
    if server is None or hasattr(server, "_pocket_plug"):
        return
    shutdown = getattr(server, "shutdown", None)
    if shutdown is None:
        _say_unknown("uvicorn", "Server.shutdown")
        return

    @functools.wraps(shutdown)
    async def shut_down_and_end(self: Any, *arguments: object, **options: object) -> None:
        try:
            await shutdown(self, *arguments, **options)
        finally:
            captured = getattr(self, "_captured_signals", None)
            if captured is None:
                _say_unknown("uvicorn", "Server._captured_signals")
            elif signal.SIGTERM in captured:
                on_sigterm()

    server.shutdown, server._pocket_plug = shut_down_and_end, True


def _watch_celery(on_exit: Callable[[], object], on_logging: Callable[[], object]) -> None:
    """Celery's pool processes end by `os._exit`; before, Celery sends one of its own signals.

    Its worker also removes the handlers of the root logger.
    """
    signals: Any = sys.modules.get("celery.signals")
    if signals is None:
        return

    def on_signal(call: Callable[[], object], **_: object) -> None:
        call()

    for name, call in (("worker_process_shutdown", on_exit), ("after_setup_logger", on_logging)):
        signal_ = getattr(signals, name, None)
        if signal_ is None:
            _say_unknown("celery", f"signals.{name}")
        else:
            signal_.connect(functools.partial(on_signal, call), weak=False, dispatch_uid="pocket_plug.telemetry")
    on_logging()  # Celery may have set up logging already


def _say_unknown(server: str, name: str) -> None:
    """Log that a version isn't supported: telemetry of its processes may be lost at their end."""
    unknown = AttributeError(f"pocket_plug doesn't know this version of {server}: it has no {name}")
    say_once(f"watching {name} of {server}", unknown)
