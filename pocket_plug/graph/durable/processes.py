"""Which process executes a run, and whether that process is known to have ended.

The end of a process on this machine is known at once: by its number, and the time when it began, since numbers are used again.
Containers may share the machine's name and boot id, so the namespace of the numbers is compared as well. A process that can't be
looked up may be alive. Of it, and of any process elsewhere, it is only known whether it makes progress (see `heartbeat`).
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
        return (_PROC / path).read_text("utf-8", "replace").strip()
    return ""


def _shows_our_numbers() -> bool:
    """Does `/proc` belong to this process's own namespace? In a container it may be that of the host."""
    with suppress(OSError):
        return (_PROC / "self").readlink().name == str(os.getpid())
    return False


def _machine() -> str:
    """An id of the machine and the namespace in which this process can look up process numbers; "" if that isn't known."""
    if _shows_our_numbers():
        with suppress(OSError):
            boot, namespace = _text("sys/kernel/random/boot_id"), (_PROC / "self/ns/pid").readlink()
            return f"{boot} {namespace}" if boot else ""  # the namespace alone is the same on many machines
    # A Linux without `/proc` is a container or a chroot: another one may have the same name and numbers of its own.
    if os.name != "posix" or platform.system() == "Linux" or _PROC.joinpath("self").exists():
        return ""
    return f"{platform.node()} {platform.system()}"


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the boot; "" if it has ended and waits for its parent.

    None if there is no such process, or if it can't be looked up: there is no `/proc`, it hides other users' processes (the
    option `hidepid`, `ProtectProc=` of systemd), or too many files are open.
    """
    fields = _text(f"{pid}/stat").rpartition(")")[2].split()
    if len(fields) <= 19:
        return None
    return fields[19] if fields[0] not in "ZX" else ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


class Held(Protocol):
    """An execution of a durable run in this process."""

    owner: str
    """The execution's id."""
    stack: Stack
    state_key: str
    """The key of the run's state; "" before the claim."""
    lease: float
    """Seconds after which the execution may be considered dead if it has neither a commit nor a heartbeat."""

    @property
    def moves(self) -> int:
        """A number that changes with each commit."""
        ...

    def receive_state(self, entry: Entry | None) -> None:
        """Receive the run's current state, which may contain a request. Called in any thread."""
        ...


class Process:
    """This process, as it is recorded with its runs, and the executions in it, which only this process knows."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start as a new process: when the program begins, and after a fork."""
        self.id = run_ids.next()
        self.held: WeakValueDictionary[str, Held] = WeakValueDictionary()
        """The executions in this process, by their ids. Weak, since an interrupt may come before an execution is removed."""
        pid = os.getpid()
        self.record: Mapping[str, Any] = {
            "id": self.id,
            "host": platform.node(),
            "pid": pid,
            "machine": _machine(),
            "began": _began(pid) or "",
        }

    def executions(self) -> list[Held]:
        """The executions in this process, as of one moment. `values()` would raise if another thread begins or ends one."""
        return [each for reference in self.held.valuerefs() if (each := reference()) is not None]

    def knows_ended(self, owner: str, record: Mapping[str, Any]) -> bool:
        """Is this execution of the process with this record known to have ended?"""
        if record["id"] == self.id:
            return owner not in self.held
        if not record["machine"] or record["machine"] != self.record["machine"]:
            return False
        if record["began"] and (began := _began(record["pid"])) is not None:
            return bool(began != record["began"])
        return not _exists(record["pid"])


_here = Process()
after_fork(_here.renew)


def this_process() -> Process:
    """The current process."""
    return _here
