"""A signal handler raises while a loop of pocket_plug runs in the main thread: the run ends, and raises the exception.

`tests/crash/interrupts.py` raises it at every place.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import pytest

from pocket_plug import Node, SyncStore
from pocket_plug.graph.graph import Graph
from pocket_plug.primitives.signals import raised_by_handler, run_loop
from pocket_plug.store.memory import Memory
from pocket_plug.testing.interrupts import Interrupted

SIGNAL = signal.SIGUSR1
LONG = 20.0
"""Seconds after which a test fails that would hang otherwise."""

Handler = Callable[[int, FrameType | None], Any]


@pytest.fixture
def handle() -> Iterator[Callable[[Handler], None]]:
    """Install a handler of SIGNAL, for the test."""
    before = signal.getsignal(SIGNAL)
    yield lambda handler: signal.signal(SIGNAL, handler) and None
    signal.signal(SIGNAL, before)


def stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted


class Handles:
    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def as_method(self, *given: object) -> None:
        signal.signal(SIGNAL, signal.SIG_IGN)
        raise Interrupted


def stop_deeper(number: int, frame: FrameType | None) -> None:
    stop(number, frame)


# ---------------------------------------------------------------- by whom it is raised
@pytest.mark.parametrize("handler", [stop, stop_deeper, Handles(), Handles().as_method, partial(stop_deeper)])
@pytest.mark.parametrize("run", [asyncio.run, run_loop])
def test_what_a_handler_has_raised_is_known(
    handle: Callable[[Handler], None], handler: Handler, run: Callable[[Any], None]
) -> None:
    """Whatever kind of function it is; and what is raised without one isn't taken for it."""
    handle(handler)

    async def main() -> None:
        for raised, is_handlers in (partial(signal.raise_signal, SIGNAL), True), (partial(stop, SIGNAL, None), False):
            with pytest.raises(Interrupted) as caught:
                raised()
            assert raised_by_handler(caught.value) == is_handlers

    run(main())


# ---------------------------------------------------------------- where the handler is called
def test_within_asyncio_it_ends_the_run(handle: Callable[[Handler], None]) -> None:
    """The signal comes while the loop calls a callback: asyncio would only report it, and the run would never continue."""
    handle(stop)
    ended: list[type[BaseException] | None] = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, SIGNAL)  # the handler is called in `Handle._run`
        try:
            await asyncio.sleep(LONG)
        except BaseException as error:
            ended.append(type(error))
            raise

    with pytest.raises(Interrupted) as caught:
        run_loop(main())
    assert ended == [asyncio.CancelledError]
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


def test_a_loop_that_waits_is_woken(handle: Callable[[Handler], None]) -> None:
    """The signal comes from another process while the loop is idle."""
    handle(stop)
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    async def main() -> None:
        threading.Timer(0.01, signal.pthread_kill, (main_thread, SIGNAL)).start()
        await asyncio.sleep(LONG)

    with pytest.raises(Interrupted):
        run_loop(main())


def test_in_a_coroutine_it_is_raised_there(handle: Callable[[Handler], None]) -> None:
    """A node that takes too long is interrupted at once, and may handle it: as without a loop."""
    handle(stop)

    async def main() -> str:
        try:
            signal.raise_signal(SIGNAL)
        except Interrupted:
            return "answered"
        return "not raised"

    assert run_loop(main()) == "answered"


def test_the_runs_result_does_not_hide_the_exception(handle: Callable[[Handler], None]) -> None:
    """A task that refuses to be cancelled may end in any way; the handler's exception is raised all the same, the last of
    several.
    """
    errors = [Interrupted("first"), SystemExit(3)]

    def stop_with(number: int, frame: FrameType | None) -> None:
        raise errors[len(raised)]

    raised: list[int] = []
    handle(stop_with)

    async def main() -> str:
        for _ in errors:
            asyncio.get_running_loop().call_soon(signal.raise_signal, SIGNAL)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(LONG)
            raised.append(1)
        return "done"

    with pytest.raises(SystemExit) as caught:
        run_loop(main())
    assert caught.value is errors[1]
    assert caught.value.__context__ is errors[0] or caught.value.__cause__ is errors[0]


def test_the_programs_handlers_are_restored(handle: Callable[[Handler], None]) -> None:
    """The same functions; and handlers that the run has installed itself stay."""
    handle(stop)
    term = signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        assert signal.getsignal(SIGNAL) is not stop
        assert getattr(signal.getsignal(SIGNAL), "__wrapped__", None) is stop

    run_loop(main())
    assert signal.getsignal(SIGNAL) is stop
    assert signal.getsignal(signal.SIGTERM) is term
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    async def install() -> None:
        signal.signal(SIGNAL, signal.SIG_IGN)

    run_loop(install())
    assert signal.getsignal(SIGNAL) is signal.SIG_IGN


def test_a_guarded_handler_that_was_kept_raises_when_the_run_is_over(handle: Callable[[Handler], None]) -> None:
    """Code that chains handlers restores the previous one, perhaps after the run."""
    handle(stop)
    kept: list[Any] = []

    async def main() -> None:
        kept.append(signal.getsignal(SIGNAL))

    run_loop(main())
    signal.signal(SIGNAL, kept[0])
    with pytest.raises(Interrupted):
        signal.raise_signal(SIGNAL)


def test_another_thread_leaves_handlers_alone(handle: Callable[[Handler], None]) -> None:
    """Handlers are called in the main thread, which does something else meanwhile."""
    handle(stop)
    seen: list[Any] = []

    async def main() -> None:
        seen.append(signal.getsignal(SIGNAL))

    thread = threading.Thread(target=lambda: run_loop(main()))
    thread.start()
    thread.join(LONG)
    assert seen == [stop]


def test_the_exception_is_not_logged(handle: Callable[[Handler], None], caplog: pytest.LogCaptureFixture) -> None:
    """A SystemExit of a task ends the loop, and is raised to the awaiting task when the loop is closed."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(3)

    handle(leave)

    async def other() -> None:
        signal.raise_signal(SIGNAL)

    async def main() -> None:
        task = asyncio.create_task(other())
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        task.result()

    with pytest.raises(SystemExit):
        run_loop(main())
    gc.collect()
    assert caplog.messages == []


# ---------------------------------------------------------------- a store with its own event loop
class AtHome(Memory):
    """A backend that belongs to an event loop."""

    needs_loop = True
    inline_read = inline_write = False


def test_interrupted_work_on_another_loop_has_ended(handle: Callable[[Handler], None]) -> None:
    """A run over a store with a loop of its own doesn't continue there, unseen, after `run_sync` has raised."""
    handle(stop)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    told: list[str] = []

    class Slow(Node[int, int]):
        async def exec(self, value: int) -> int:
            signal.pthread_kill(main_thread, SIGNAL)
            try:
                await asyncio.sleep(LONG)
            finally:
                told.append("ended")
            return value

    with SyncStore(AtHome()) as store:
        with pytest.raises(Interrupted):
            Graph(Slow(), store=store, name="slow").run_sync(1)
        assert told == ["ended"]
        store.set("a", 1)
        assert store.get("a") == 1
