"""Interrupts code at chosen places, as Ctrl-C or an exception of a signal handler may.

CPython runs signal handlers in the main thread at the entry of a Python function, after the call of a C function, and at the
turn of a loop. An `Interrupter` raises at the n-th of these places, so a test that increments n interrupts at each.
"""

from __future__ import annotations

import asyncio
import dis
import selectors
import signal
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_RESUME, _TURN = dis.opmap["RESUME"], dis.opmap["JUMP_BACKWARD"]
_ASYNCIO = str(Path(asyncio.__file__).parent), selectors.__file__
_ENTER = dis.opmap.get("LOAD_SPECIAL")  # with 3.14, the call of a `with`'s `__enter__` became a step of its own


class Interrupted(Exception):
    """The exception that is raised by default. It isn't a KeyboardInterrupt, which some code treats specially."""


class Interrupter:
    """`with Interrupter(7):` raises `Interrupted` at the seventh place in this thread; if there are fewer places, never.

    `places` counts the places that were passed, and `where` describes the one at which it was raised. `error` is raised instead
    of `Interrupted`.

    The code of asyncio and of its selectors isn't interrupted, since we can't fix what an exception breaks there. With `by`, a
    signal's number, it is: then a handler of that signal raises the error, which `run_sync`, with its own loop, must tolerate at
    every place.

    >>> with Interrupter(0) as counting:
    ...     _ = sorted([2, 1])
    >>> counting.places > 0, counting.where
    (True, '')
    """

    def __init__(self, at: int, error: type[BaseException] = Interrupted, by: int | None = None) -> None:
        self._at, self._error, self._by = at, error, by
        self._spared = (__file__,) if by is not None else (__file__, *_ASYNCIO)
        self.places = 0
        self.where = ""

    def __enter__(self) -> Interrupter:
        self._outer = sys.gettrace(), sys.getprofile()
        if self._by is not None:
            self._handler = signal.signal(self._by, self._raise)
        sys.settrace(self._trace)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        trace, profile = self._outer
        sys.setprofile(profile)
        sys.settrace(trace)
        if self._by is not None:
            signal.signal(self._by, self._handler)

    def _raise(self, *_: object) -> None:
        raise self._error

    def _pass(self, frame: FrameType, what: str) -> None:
        code = frame.f_code
        # CPython 3.11 sometimes crashes if tracing is switched off here, so it is on until the end of the block
        if self.where or code.co_filename.startswith(self._spared):
            return
        self.places += 1
        if self.places == self._at:
            self.where = f"{what}, {code.co_qualname}:{frame.f_lineno} ({Path(code.co_filename).name})"
            handler: Any = self._raise if self._by is None else signal.getsignal(self._by)
            handler(self._by, frame)

    def _profile(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "c_return":
            if not _is_spared_enter(frame):
                self._pass(frame, f"after {getattr(arg, '__name__', arg)}")
        elif event == "call":
            code, last = frame.f_code.co_code, frame.f_lasti
            # otherwise it resumes after an `await`, or gets an exception
            if code[last] == _RESUME and code[last + 1] & 3 < 2:
                self._pass(frame, "at the entry")

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if not _turns(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._opcode

    def _opcode(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti] == _TURN:
            self._pass(frame, "at the turn of a loop")
        return self._opcode


class Between(Interrupter):
    """`with Between(7, act):` calls `act` at the seventh place, instead of raising there."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        super().__init__(at)
        self._act = act

    def _raise(self, *_: object) -> None:
        self._act()


async def under(interrupter: Interrupter, operation: Coroutine[object, object, T]) -> T:
    """Await an operation, with the interrupter around each of its steps; its event loop isn't interrupted in between."""
    return await _steps(interrupter, operation)


@types.coroutine
def _steps(interrupter: Interrupter, operation: Coroutine[object, object, T]) -> Generator[object, object, T]:
    step: Callable[[Any], Any] = operation.send
    argument: Any = None
    while True:
        try:
            with interrupter:
                waiting = step(argument)
        except StopIteration as done:
            result: T = done.value
            return result
        except BaseException as error:
            if getattr(operation, "cr_frame", None) is None:  # it has ended
                raise
            step, argument = operation.throw, error  # it had suspended before the interrupt
            continue
        try:
            step, argument = operation.send, (yield waiting)
        except BaseException as error:  # noqa: BLE001 - passed to the operation
            step, argument = operation.throw, error


def _is_spared_enter(frame: FrameType) -> bool:
    """Is this place between a `with`'s `__enter__` in C and its body? Only Python 3.14 runs signal handlers there.

    An interrupt there may leave a lock of `threading` itself locked for ever, which we can't fix.
    """
    if frame.f_code.co_code[frame.f_lasti - 2] != _ENTER:
        return False
    module = str(frame.f_globals.get("__name__"))
    return sys.version_info >= (3, 15) or module.partition(".")[0] in sys.stdlib_module_names


_known: dict[CodeType, bool] = {}


def _turns(code: CodeType) -> bool:
    """Does the code have a loop? Only then its opcodes are traced."""
    if code not in _known:
        _known[code] = _TURN in code.co_code[::2]
    return _known[code]
