"""An event loop in the main thread, where the handlers of signals run, and may raise.

A handler's exception (a time limit at SIGALRM, SystemExit at SIGTERM) comes between any two steps of the program. In asyncio's
own code it would lose a task's next step, and whatever awaits that task would wait for ever. asyncio therefore turns Ctrl-C
into a cancellation; `run_loop` does so with the exceptions of all handlers that the program has installed.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import threading
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TypeVar, cast

T = TypeVar("T")
Handler = Callable[[int, FrameType | None], object]

_ASYNCIO = str(Path(asyncio.__file__).parent)
_IS_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE


def run_loop(
    main: Coroutine[object, object, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> T:
    """`asyncio.run`, whose loop no exception of a signal's handler can break.

    An exception that comes in a coroutine's code is raised there. One that comes anywhere else, mostly within asyncio,
    cancels `main`, and is raised when `main` has ended and the loop is closed.
    """
    handlers = _Handlers()
    result: T | None = None
    ended: BaseException | None = None
    try:
        try:
            handlers.guard()
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                result = runner.run(handlers.follow(main))
        except BaseException as error:  # noqa: BLE001 - raised below, where no handler is guarded any more
            ended = error
        finally:
            handlers.restore()
    finally:
        handlers.restore()  # again, for that may have been interrupted
        handlers.take_outcome()
        main.close()  # it never began if a handler raised before
    try:
        if handlers.raised is not None:
            raise handlers.raised from ended
        if ended is not None:
            raise ended
        return cast("T", result)
    finally:
        handlers.raised = ended = None  # their tracebacks hold this frame


def die(number: int, frame: FrameType | None) -> None:
    """Let this process die of a signal, as if it had no handler.

    The kernel doesn't let a signal end process 1 of a container. That one exits with the code by which shells report such an end.
    """
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)


def raised_by_handler(error: BaseException) -> bool:
    """Was an exception raised by a signal's handler, as by one that calls `sys.exit` at SIGTERM?

    A handler is known by its arguments: one of them is the frame that it has interrupted.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for interrupted, frame in pairwise(frames):
        for given in frame.f_locals.values():
            parts = cast("tuple[object, ...]", given if type(given) is tuple else (given,))  # it may take `*arguments`
            if any(part is interrupted for part in parts):
                return True
    return False


class _Handlers:
    """The handlers that the program has installed, guarded while a loop runs."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        """What a handler has raised in code where it could not be raised at once."""
        self._guarded: dict[int, tuple[Handler, Handler]] = {}
        self._is_over = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[object] | None = None

    def guard(self) -> None:
        """Replace each handler by a guarded one. Only the main thread runs handlers, and only it may change them."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in range(1, signal.NSIG):
            handler = signal.getsignal(number)
            # asyncio replaces the one of Ctrl-C, and `die` raises nothing
            if callable(handler) and handler not in (signal.default_int_handler, die):
                self._replace(number, handler)

    def _replace(self, number: int, handler: Handler) -> None:
        guarded = self._guard(handler)
        self._guarded[number] = guarded, handler
        with suppress(ValueError):  # in a subinterpreter, where no handler runs
            signal.signal(number, guarded)

    def _guard(self, handler: Handler) -> Handler:
        @functools.wraps(handler)
        def guarded(number: int, frame: FrameType | None) -> object:
            try:
                return handler(number, frame)
            except BaseException as error:
                if self._is_over or _is_in_a_coroutine(frame):
                    raise
                self._keep(error)
                return None

        return guarded

    def _keep(self, error: BaseException) -> None:
        if error.__context__ is None and error is not self.raised:
            error.__context__ = self.raised
        self.raised = error
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        assert self._loop is not None
        assert self._main is not None
        for task in asyncio.all_tasks(self._loop) if self._main.done() else [self._main]:
            task.cancel()

    async def follow(self, main: Coroutine[object, object, T]) -> T | None:
        """Await `main`, unless a handler has raised already."""
        self._main, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        return await main if self.raised is None else None

    def take_outcome(self) -> None:
        """Retrieve the task's exception, which `run_loop` raises, or asyncio would log that nobody has retrieved it."""
        if self._main is not None and self._main.done() and not self._main.cancelled():
            self._main.exception()

    def restore(self) -> None:
        """Restore the program's handlers, unless it has installed others meanwhile. Can be called again."""
        for number, (guarded, handler) in tuple(self._guarded.items()):
            if signal.getsignal(number) is guarded:
                signal.signal(number, handler)
        self._is_over = True
        self._guarded.clear()


def _is_in_a_coroutine(frame: FrameType | None) -> bool:
    """Was a coroutine's code interrupted, or code that it called, but no code of asyncio or of this module?

    An exception that is raised there ends that coroutine and its task, as any other exception does.
    """
    while frame is not None and not frame.f_code.co_filename.startswith(_ASYNCIO):
        if frame.f_code.co_flags & _IS_COROUTINE:
            return True
        if frame.f_code.co_filename == __file__:
            return False
        frame = frame.f_back
    return False
