"""Servers whose worker processes end in a way of their own, past `atexit` and our handler of SIGTERM.

Where such a server is loaded, it is asked to tell when a process of its ends. Nothing is imported for it. Of a version that
doesn't have what is asked, that is said once: how its processes end is then not seen.
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
    """Celery's pool processes end by `os._exit`, and tell it by a signal of Celery's before.

    Its worker also takes away what handlers the root logger has.
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
    on_logging()  # it may have been set up before


def _say_unknown(server: str, name: str) -> None:
    """What it ends without telling may not be sent."""
    unknown = AttributeError(f"this version of {server} is not known: it has no {name}")
    say_once(f"watching {name} of {server}", unknown)
