"""The event loop on which the parts of a stack live that need one: the one that opened the stack, or one in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import finalize

from pocket_plug.primitives.forking import after_fork, new_rlock
from pocket_plug.primitives.locks import in_the_middle, is_held_here
from pocket_plug.primitives.waiting import LoopThread


class Home:
    """The loop of one stack, which `title` describes, and the thread that was started for it."""

    def __init__(self, title: Callable[[], str]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        """Where the stack was opened; it may have ended."""
        self._title = title
        self._own: LoopThread | None = None
        self._finalizer: finalize[[], Home] | None = None
        self._lock = new_rlock()  # reentrant so that a thread can ask whether it holds it
        after_fork(self._forget)

    def find(self) -> asyncio.AbstractEventLoop:
        """The loop that opened the stack; if there is none, or it has ended, a loop in a thread of its own."""
        loop = self.loop
        if loop is None or not loop.is_running():
            if is_held_here(self._lock):
                raise in_the_middle("the start of this store's own event loop", "use the store")
            with self._lock:
                own = self._own
                if own is not None and own.is_closed:
                    own.stop()  # again, for its close may have been interrupted
                    own = None
                if own is None:
                    own = self._own = LoopThread(f"pocket_plug {self._title()}"[:60])
                    self._end_with_the_stack(own)
                own.start()
                self.loop = loop = own.loop
        return loop

    def _end_with_the_stack(self, own: LoopThread) -> None:
        """Stop this loop when the stack is garbage-collected: one that failed to open, or is dropped, is never closed."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._finalizer = finalize(self, own.stop)
        self._finalizer.atexit = False  # the end of the process ends the thread

    def close_own(self) -> None:
        """Close the loop that was made for the stack, unless this runs on it."""
        if is_held_here(self._lock):  # this has interrupted its start, so the close was refused
            return
        with self._lock:
            own = self._own
            if own is None or own.loop is asyncio._get_running_loop():  # then close_sync closes it
                return
        own.close()
        with self._lock:
            if self._own is own:
                self._own = None

    def _forget(self) -> None:
        """In a forked child: its parent's loops don't run here."""
        self.loop = self._own = None
        if self._finalizer is not None:  # it would wake the parent's loop
            self._finalizer.detach()
