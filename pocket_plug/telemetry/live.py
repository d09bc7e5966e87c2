"""Writes the spans that are open now, for `pocket-plug trace` in another process: OTLP has only spans that have ended.

Beside the trace file, each process keeps a file with its open spans, as OTLP/JSON with an end of 0. The file is replaced a few
times a second while spans begin and end, touched once a second otherwise, and removed when no span is open. The file of a killed
process shows what the process was doing.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from pocket_plug.otel.reporting import surviving
from pocket_plug.primitives.files import make_folder, private
from pocket_plug.primitives.forking import after_fork
from pocket_plug.primitives.locks import Flag, RLock
from pocket_plug.traces.open_spans import files_beside
from pocket_plug.traces.recorded import NO_RUN

from .local import written

INTERVAL = 0.2
"""Seconds between two looks at the open spans. A shorter run is never written."""

SHARE = 0.1
"""The thread works at most about this part of the time: a service has hundreds of open spans, and needs the GIL for its runs."""

LONGEST = 1.0
"""The longest pause, in seconds: other processes take this one for dead if it doesn't touch the file."""

LEFT = 24 * 3600.0
"""Seconds after which the next process removes the file of a killed one."""

LIMIT = 500
"""At most this many open spans are written: those that began first."""


class OpenSpans(SpanProcessor):
    """Writes the open spans to a file, in its own thread, which sleeps while no span is open.

    `last_run` is the id of the outermost run that began last.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.last_run: str | None = None
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
        """Begin without open spans, file and thread: also in a forked child, which doesn't inherit the thread."""
        self._path: Path | None = None
        self._open: dict[int, Span] = {}
        self._changed = False
        self._touched = 0.0
        self._lock = RLock()  # reentrant: a signal's handler or garbage collection may end a span while it is held
        self._awake, self._ending, self._has_ended = Flag(), Flag(), False
        self._thread: threading.Thread | None = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """The span is open from now on."""
        attributes = span.attributes or {}
        if "pocket_plug.run.id" in attributes and not NO_RUN & attributes.keys():
            self.last_run = str(attributes["pocket_plug.run.id"])
        with self._lock:
            self._open[span.get_span_context().span_id] = span
            self._changed = True
            if self._thread is None and not self._has_ended:
                self._start(threading.Thread(target=self._work, name="pocket_plug open spans", daemon=True))
        self._awake.set()

    def _start(self, thread: threading.Thread) -> None:
        if self._thread is not None:  # what has interrupted this thread has started one
            return
        self._thread = thread  # before the start, in the middle of which another span may begin here
        try:
            thread.start()
        except RuntimeError:  # Python 3.12 can't start a thread while the process ends
            self._thread, self._has_ended = None, True
        except BaseException:
            if thread.ident is None:
                self._thread = None
            raise

    def on_end(self, span: ReadableSpan) -> None:
        """The span is no longer open."""
        context = span.get_span_context()
        with self._lock:
            if context is not None and self._open.pop(context.span_id, None) is not None:
                self._changed = True

    def shutdown(self) -> None:
        """Stop, and remove the file."""
        self._has_ended = True
        self._ending.set()
        self._awake.set()
        if self._thread is not None:
            self._thread.join()
        self._remove()

    def _work(self) -> None:
        pause = INTERVAL
        while not self._has_ended:
            if not self._open:
                self._awake.wait()
            if not self._ending.wait(pause):
                began = time.thread_time()
                # neither a full disk nor an odd attribute may stop this thread
                with surviving("writing the open spans"):
                    self.write()
                pause = max(INTERVAL, min((time.thread_time() - began) / SHARE, LONGEST))

    def write(self, clock: Callable[[], float] = time.time) -> None:
        """Write the open spans if they have changed; otherwise touch the file, to show that the process is alive."""
        with self._lock:
            changed, self._changed = self._changed, False
            spans = [*self._open.values()]
        if not spans:
            self._remove()
        elif changed or self._path is None:
            self._replace(spans[:LIMIT], clock)
        elif clock() - self._touched >= 1:
            try:
                os.utime(self._path)
            except FileNotFoundError:  # somebody cleared the folder
                self._replace(spans[:LIMIT], clock)
            self._touched = clock()

    def _replace(self, spans: list[Span], clock: Callable[[], float]) -> None:
        if self._path is None:
            make_folder(self._file.parent)
            for left in files_beside(self._file):
                if clock() - left.stat().st_mtime > LEFT:
                    left.unlink(missing_ok=True)
            self._path = self._file.with_name(f"{self._file.name}.open-{secrets.token_hex(6)}")
        new = self._path.with_name(f"{self._path.name}~")
        with open(new, "wb", opener=private) as file:
            file.write(written(spans))
        new.replace(self._path)
        self._touched = clock()

    def _remove(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
