"""Calls observers around runs, nodes and phases. If an observer raises, that is reported, and the run continues."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pocket_plug.errors import PluginError, RunCancelledError, RunSuspendedError, is_fault
from pocket_plug.graph.observing.views import SILENT, NodeCall, Observer, PhaseCall
from pocket_plug.primitives.failures import log_failure

Part = tuple[Observer, Callable[[Any], AbstractContextManager[Any] | None]]
Entered = list[tuple[Observer, AbstractContextManager[Any]]]


class Watchers:
    """The observers of a run, sorted by what they observe."""

    __slots__ = ("observers", "of_every_phase", "of_nodes", "of_phases", "paced", "spare")

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = observers
        self.of_nodes: Sequence[Part] = [(each, each.node) for each in observers if each.node is not None]
        self.of_phases: Sequence[Part] = [(each, each.phase) for each in observers if each.phase is not None]
        """Those that observe the phases of guarded nodes."""
        self.of_every_phase = [part for part in self.of_phases if not part[0].guarded_only]
        self.paced = [each for each in observers if each.pace is not None]
        spare = not self.paced and not self.of_phases
        self.spare = spare and all(each.failures_only for each in observers)
        """Does no observer need a successful visit of a node that isn't guarded?"""


NOBODY = Watchers(())


def watched_by(observers: Sequence[Observer]) -> Watchers:
    """The watchers for these observers; `NOBODY` if there are none."""
    return Watchers(observers) if observers else NOBODY


def watched_without(silent: Sequence[Observer], observers: Sequence[Observer]) -> Watchers:
    """The watchers for these observers but the silent ones."""
    return watched_by([each for each in observers if all(each is not one for one in silent)])


def enter(entered: Entered, observers: Sequence[Part], about: Any) -> Sequence[Observer]:
    """Enter each observer's context manager for a run, a node or a phase. One that fails is reported and left out.

    Returns the observers whose `__enter__` has returned SILENT.
    """
    silent: Sequence[Observer] = ()
    for observer, make in observers:
        manager = None
        try:
            manager = make(about)
            if manager is not None:
                given = manager.__enter__()
                entered.append((observer, manager))
                if given is SILENT:
                    silent = (*silent, observer)
        except BaseException as error:
            if not is_fault(error):
                raise
            is_none = manager is not None and not hasattr(type(manager), "__enter__")
            why = (
                PluginError(f"it returned {type(manager).__name__}, not a context manager or None")
                if is_none
                else error
            )
            report_observer(observer, "enter", why)
    return silent


def send_event(observers: Iterable[Observer], name: str, call: NodeCall, attributes: Mapping[str, Any]) -> None:
    """Send an event to the observers."""
    for observer in observers:
        if observer.event is not None:
            try:
                observer.event(name, call, attributes)
            except BaseException as error:
                if not is_fault(error):
                    raise
                report_observer(observer, "event", error)


async def await_pace(observers: Iterable[Observer]) -> None:
    """Wait until all observers are ready for more events."""
    for observer in observers:
        if observer.pace is not None:
            try:
                await observer.pace()
            except BaseException as error:
                if not is_fault(error):
                    raise
                report_observer(observer, "pace", error)


def fail(call: NodeCall, entered: Entered, error: BaseException) -> None:
    """Note how the visit ended, and let the observers leave it."""
    if isinstance(error, RunSuspendedError):
        call.outcome = "suspended"  # which is no failure
        leave(entered, None)
        return
    cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit | RunCancelledError)
    call.error, call.outcome = error, "cancelled" if cancelled else "failed"
    leave(entered, error)


def leave(entered: Entered, error: BaseException | None) -> None:
    """Leave the observers, the last entered first. The results of `__exit__` are ignored, so none can suppress an error."""
    while entered:
        observer, manager = entered.pop()
        try:
            if error is None:
                manager.__exit__(None, None, None)
            else:
                manager.__exit__(type(error), error, error.__traceback__)
        except BaseException as failed:
            if failed is error:
                continue  # the observer has raised the run's own error again
            if not is_fault(failed):
                leave(entered, error)  # the other observers are left nevertheless
                raise
            report_observer(observer, "exit", failed)


class Watching:
    """A context manager that calls the observers around a phase, and measures it. Without a PhaseCall it does nothing."""

    __slots__ = ("_entered", "_observers", "_phase", "_started", "delay")

    def __init__(self, observers: Sequence[Part], phase: PhaseCall | None) -> None:
        self._observers, self._phase = observers, phase
        self.delay: float | None = None

    def __enter__(self) -> Watching:
        if self._phase is not None:
            self._entered: Entered = []
            self._started = time.perf_counter()
            if self._observers:
                enter(self._entered, self._observers, self._phase)
        return self

    def retry(self, will_retry: bool, retry: Any, attempt: int) -> None:
        """Note, after a failed attempt and before the observers are left, whether and when another attempt follows."""
        self.delay = retry.pause(attempt) if will_retry else None
        if self._phase is not None:
            self._phase.will_retry, self._phase.delay = will_retry, self.delay

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if (phase := self._phase) is not None:
            durations = phase.node.durations
            durations[phase.phase] = durations.get(phase.phase, 0.0) + time.perf_counter() - self._started
            leave(self._entered, error)


def report_observer(observer: Observer, part: str, error: BaseException) -> None:
    """Report an observer's error as one of its plugin."""
    observer.report(f"pocket_observe ({part})", error)


def report(what: str, error: BaseException) -> None:
    """Log an error that doesn't end the run, such as that of a node's hook."""
    log_failure(logging.ERROR, f"{what} failed; the run goes on", error)
