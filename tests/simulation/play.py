"""Plays the world of one seed, alike in every interpreter."""

from __future__ import annotations

import gc
import itertools
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

from pocket_plug.graph import context, execution
from pocket_plug.graph.durable import ledger, processes

from . import graphs
from .loop import Hang
from .operators import Chaos
from .world import World


@dataclass(frozen=True)
class Played:
    """What came of a seed."""

    seed: int
    history: list[str]
    violations: list[str]


@contextmanager
def determined() -> Iterator[None]:
    """What in the package asks the system for time or chance asks the simulation in this block."""
    turns = itertools.count(1)
    with (
        mock.patch.object(execution, "time", SimpleNamespace(perf_counter=lambda: next(turns) * 0.0004)),
        mock.patch.object(context.os, "urandom", lambda count: bytes(count)),
        mock.patch.object(processes, "_here"),  # each process puts itself there
        mock.patch.object(processes, "_began", lambda pid: graphs.current.began(pid)),
        mock.patch.object(ledger, "keep_beating", lambda lease: graphs.current.beating(lease)),
    ):
        context.run_ids.renew()
        yield


def play(seed: int) -> Played:
    """Play it. What has not ended is thrown away at once: else it would end in the middle of the next world."""
    world = World(seed)
    level, hook = logging.getLogger("pocket_plug").level, sys.unraisablehook
    logging.getLogger("pocket_plug").setLevel(logging.CRITICAL + 1)  # hooks of whoever was overtaken fail, and say so
    gc.disable()
    try:
        with determined():
            graphs.current = world
            try:
                Chaos(world).play()
            except Hang as hang:
                world.violate(str(hang))
            except Exception as error:  # noqa: BLE001 - shown with the history
                world.violate("".join(traceback.format_exception(error)))
    finally:
        sys.unraisablehook = lambda unraisable: None  # half-done coroutines, which nobody ever ends
        played = Played(seed, world.history, world.violations)
        for machine in world.machines:
            machine.process.kill()
        del world
        gc.collect()
        gc.enable()
        sys.unraisablehook = hook
        logging.getLogger("pocket_plug").setLevel(level)
    return played


def verdict(seed: int) -> Played:
    """What comes of a seed; without the history where nothing is wrong, since that is long."""
    played = play(seed)
    return played if played.violations else Played(seed, [], [])
