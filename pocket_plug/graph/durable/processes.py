"""Which process is at a run, and whether it is known to have ended.

A process of this machine that has ended is known at once: its number is looked up, and the time when it began, since numbers are
used again. Containers may have the machine's name and boot in common, so the namespace of the numbers counts as well. Of
any other process nothing is known but whether it moves its runs (see `heartbeat`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

from pocket_plug.graph.running.context import run_ids
from pocket_plug.primitives.forking import after_fork
from pocket_plug.store.backend import Entry
from pocket_plug.store.stack import Stack

_PROC = Path("/proc")


def _text(path: str) -> str:
    with suppress(OSError):
        return (_PROC / path).read_text(errors="replace").strip()
    return ""


def _shows_our_numbers() -> bool:
    """Is `/proc` that of this process's own namespace? It may be the one of the machine around it."""
    with suppress(OSError):
        return (_PROC / "self").readlink().name == str(os.getpid())
    return False


def _machine() -> str:
    """What the processes have in common whose numbers can be looked up here; "" if that isn't known."""
    if _shows_our_numbers():
        with suppress(OSError):
            return f"{_text('sys/kernel/random/boot_id')} {(_PROC / 'self/ns/pid').readlink()}"
    return (
        f"{platform.node()} {platform.system()}" if os.name == "posix" and not _PROC.joinpath("self").exists() else ""
    )


def _began(pid: int) -> str:
    """When a process began, in ticks since the machine did; "" if it has ended, or there is no `/proc`."""
    fields = _text(f"{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


class Held(Protocol):
    """An execution that is at a run, as its process knows it."""

    owner: str
    """Its id."""
    stack: Stack
    state_key: str
    """Where the run's state stands."""
    lease: float
    """Seconds after which it may be taken for dead, unless it moves its run or its process speaks for it."""

    @property
    def moves(self) -> int:
        """Another number once it has moved its run."""
        ...

    def hear(self, entry: Entry | None) -> None:
        """Called by whatever thread: this is what stands in the run's state now."""
        ...


class Process:
    """This process, as it is recorded with the runs that it is at; and its executions, which only it knows."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """It is a new process: at its start, and after a fork."""
        self.id = run_ids.next()
        self.held: WeakValueDictionary[str, Held] = WeakValueDictionary()
        """The executions that go on here, by their ids. Weakly, since an interrupt may come before one is let go of."""
        pid = os.getpid()
        self.record: Mapping[str, Any] = {
            "id": self.id,
            "host": platform.node(),
            "pid": pid,
            "machine": _machine(),
            "began": _began(pid),
        }

    def executions(self) -> list[Held]:
        """Those that go on here, as of one moment. Other threads begin and end some meanwhile, which `values()` doesn't bear."""
        return [each for reference in self.held.valuerefs() if (each := reference()) is not None]

    def knows_ended(self, owner: str, record: Mapping[str, Any]) -> bool:
        """Has an execution ended, of the process of this record, as far as can be known at once?"""
        if record["id"] == self.id:
            return owner not in self.held
        if not record["machine"] or record["machine"] != self.record["machine"]:
            return False
        if record["began"]:
            return bool(_began(record["pid"]) != record["began"])
        try:
            os.kill(record["pid"], 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


_here = Process()
after_fork(_here.renew)


def this_process() -> Process:
    """The process that this is."""
    return _here
