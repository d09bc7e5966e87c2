"""Interrupts at chosen places: what Ctrl-C, or any exception of a signal's handler, may do to a piece of code.

CPython lets a handler run in the main thread at the entry of a Python function, after the call of a C function, and where
a loop turns. An `Interrupter` raises at the n-th of these, so a test that counts n up has been interrupted everywhere.
"""

from __future__ import annotations

import asyncio
import dis
import signal
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_RESUME, _TURN = dis.opmap["RESUME"], dis.opmap["JUMP_BACKWARD"]
_ASYNCIO = str(Path(asyncio.__file__).parent)
_ENTER = dis.opmap.get("LOAD_SPECIAL")  # with 3.14, the call of a `with`'s `__enter__` became a step of its own


class Interrupted(Exception):
    """What is raised if nothing else is asked for: no KeyboardInterrupt, which some code lets pass on purpose."""


class Interrupter:
    """`with Interrupter(7):` raises an `Interrupted` at the seventh place, in this thread; later than the last one, never.

    `places` counts those that were passed, and `where` tells of the one at which it was raised. `error` is raised instead.

    asyncio's own code is spared, since what an exception breaks there is not ours to mend. With `by`, a signal's number, it is
    not: then the error is raised by a handler of that signal, as `run_sync`, whose loop is ours, must bear at every place.

    >>> with Interrupter(0) as counting:
    ...     _ = sorted([2, 1])
    >>> counting.places > 0, counting.where
    (True, '')
    """

    def __init__(self, at: int, error: type[BaseException] = Interrupted, by: int | None = None) -> None:
        self._at, self._error, self._by = at, error, by
        self._spared = (__file__,) if by is not None else (__file__, _ASYNCIO)
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
        # stopped from here, where it is called, CPython 3.11 crashes now and then; so it goes on to the end of the block
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
            if code[last] == _RESUME and code[last + 1] & 3 < 2:  # else it goes on after an `await`, or is thrown into
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
    """`with Between(7, act):` calls `act` at the seventh place, where it would have been interrupted, and goes on."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        super().__init__(at)
        self._act = act

    def _raise(self, *_: object) -> None:
        self._act()


async def under(interrupter: Interrupter, operation: Coroutine[object, object, T]) -> T:
    """Await it, under the interrupter at each of its steps; what its event loop does in between is spared."""
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
            step, argument = operation.throw, error  # it has suspended before the interrupt came
            continue
        try:
            step, argument = operation.send, (yield waiting)
        except BaseException as error:  # noqa: BLE001 - it is handed on
            step, argument = operation.throw, error


def _is_spared_enter(frame: FrameType) -> bool:
    """Is this between a `with`'s `__enter__`, in C, and its body, where no handler is called before and after Python 3.14?

    That one does, and an interrupt there may leave a lock of `threading` itself locked for good: nobody's to mend either.
    """
    if frame.f_code.co_code[frame.f_lasti - 2] != _ENTER:
        return False
    module = str(frame.f_globals.get("__name__"))
    return sys.version_info >= (3, 15) or module.partition(".")[0] in sys.stdlib_module_names


_known: dict[CodeType, bool] = {}


def _turns(code: CodeType) -> bool:
    """Has it a loop? Only then need each of its steps be looked at."""
    if code not in _known:
        _known[code] = _TURN in code.co_code[::2]
    return _known[code]
