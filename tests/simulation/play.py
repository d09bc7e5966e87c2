"""Plays the world of one seed, in the same way in every interpreter."""

from __future__ import annotations

import gc
import itertools
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pocket_plug.errors import ConflictError
from pocket_plug.graph.durable import heartbeat, ledger, processes, waking, worker
from pocket_plug.graph.following import streaming
from pocket_plug.graph.running import context, execution
from pocket_plug.primitives import waiting
from pocket_plug.store.gates import Gates

from .graphs import stage
from .loop import Flag, Hang, Lock, this_thread
from .operators import Chaos
from .workers import Sleeping
from .world import World


@dataclass(frozen=True)
class Played:
    """The result of a seed."""

    seed: int
    history: list[str]
    violations: list[str]


@contextmanager
def determined() -> Iterator[None]:
    """In this block, the package gets time and chance from the simulation, not from the system."""
    turns, sleeping = itertools.count(1), Sleeping()
    with (
        mock.patch.object(execution, "time", SimpleNamespace(perf_counter=lambda: next(turns) * 0.0004)),
        mock.patch.object(context.os, "urandom", lambda count: bytes(count)),
        mock.patch.object(processes, "_here"),  # each process sets its own
        mock.patch.object(processes, "_began", lambda pid: stage.world.began(pid)),
        mock.patch.object(waking, "sleeping", sleeping),
        mock.patch.object(worker, "sleeping", sleeping),
        mock.patch.object(worker, "random", SimpleNamespace(uniform=_uniform, shuffle=_shuffle)),
        mock.patch.object(worker, "POLL", 1.0),  # many polls find nothing
        mock.patch.object(Gates, "refuse_to_overtake", _refuse_to_overtake),
        mock.patch.object(ledger, "keep_beating", lambda lease: stage.world.beating(lease)),
        mock.patch.object(heartbeat, "threading", SimpleNamespace(Thread=_Starting)),
        mock.patch.object(heartbeat, "Flag", Flag),
        mock.patch.object(waiting, "threading", SimpleNamespace(Lock=Lock)),
        mock.patch.object(waiting, "time", SimpleNamespace(sleep=_sleep)),
        mock.patch.object(waiting, "_going", set()),  # a killed process never removes its entries
        mock.patch.object(streaming, "_tasks", set()),
    ):
        context.run_ids.renew()
        yield


class _Starting:
    """Replaces `threading.Thread` in the package."""

    def __init__(self, target: Callable[[], object], name: str, daemon: bool) -> None:
        self._target = target

    def start(self) -> None:
        """Start it, in the current process."""
        stage.world.here.thread(self._target, Context())


def _sleep(seconds: float) -> None:
    thread = this_thread()
    assert thread is not None  # a loop that sleeps would stop the world
    thread.sleep(seconds)


_refuse = Gates.refuse_to_overtake


def _refuse_to_overtake(gates: Gates, names: Iterable[str]) -> None:
    """It is a conflict, though the store isn't read."""
    try:
        _refuse(gates, names)
    except ConflictError as conflict:
        stage.world.conflicted(None, stage.world.attempt(), conflict)
        raise


def _uniform(least: float, most: float) -> float:
    return stage.world.random.uniform(least, most)


def _shuffle(found: list[Any]) -> None:
    stage.world.random.shuffle(found)


def play(seed: int) -> Played:
    """Play it. Everything that has not ended is discarded at once: otherwise it would end in the middle of the next world."""
    level, hook = logging.getLogger("pocket_plug").level, sys.unraisablehook
    logging.getLogger("pocket_plug").setLevel(logging.CRITICAL + 1)  # hooks of whoever was overtaken fail, and say so
    gc.disable()
    gc.freeze()  # at its end, only the world's own objects are collected
    try:
        return _play(seed)
    finally:
        with warnings.catch_warnings():  # about coroutines that never end
            warnings.simplefilter("ignore")
            sys.unraisablehook = lambda unraisable: None
            while gc.collect():  # discarded objects may leave something more
                pass
        sys.unraisablehook = hook
        gc.unfreeze()
        gc.enable()
        logging.getLogger("pocket_plug").setLevel(level)


def _play(seed: int) -> Played:
    world = stage.world = World(seed)
    try:
        with determined():
            Chaos(world).play()
    except Hang as hang:
        world.violate(str(hang))
    except Exception as error:  # noqa: BLE001 - shown with the history
        world.violate("".join(traceback.format_exception(error)))
    finally:
        for machine in world.machines:
            machine.process.kill()
        world.close()
        del stage.world
    return Played(seed, [*world.history], [*world.violations])  # discarded objects may still add to them


def first_found(what: str, seeds: range) -> tuple[int | None, str]:
    """The first seed whose world shows a planted fault, and how."""
    from .planted import PLANTED

    with PLANTED[what]():
        for seed in seeds:
            if violations := play(seed).violations:
                return seed, violations[0]
    return None, ""


def verdict(seed: int) -> Played:
    """The result of a seed; without the history if there is no violation, since that is long."""
    played = play(seed)
    return played if played.violations else Played(seed, [], [])
