"""A process speaks for its executions: those that have not moved their runs for a third of their lease.

A commit shows that an execution is alive. Where a node takes long, a thread writes `pocket:run-beat:PROCESS` for it, which names
the executions that it speaks for: a thread, since a loop that is blocked could not. It looks at the runs' states as well,
so a run is cancelled while its node is at work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from pocket_plug.primitives.failures import log_failure
from pocket_plug.primitives.forking import after_fork, new_lock
from pocket_plug.store.backend import Put
from pocket_plug.store.keys import RESERVED
from pocket_plug.store.stack import Stack

from .processes import Held, this_process

BEAT = f"{RESERVED}run-beat:"
KEPT = 7 * 86_400.0
"""Seconds after which a heartbeat is nobody's: by the clock of whoever looks, so many that hours between clocks don't matter."""


async def beat(stack: Stack, process: str, unmoved: Iterable[Held]) -> None:
    """Speak for executions of a process over one store, and hand each what stands in its run's state."""
    speaking = list(unmoved)
    found = await stack.read_many([each.state_key for each in speaking])
    until = stack.clock() + KEPT
    await stack.write([Put(BEAT + process, {"owners": [each.owner for each in speaking]}, until)])
    for each in speaking:
        each.hear(found.get(each.state_key))


class Heart:
    """The thread, and what it saw last."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._seen: dict[str, int] = {}
        self._sooner = threading.Event()
        self.renew()

    def renew(self) -> None:
        """There is no thread, as in a forked child."""
        self._thread: threading.Thread | None = None
        self._pause = 0.0

    def keep_beating(self, lease: float) -> None:
        """There is an execution with this lease: see to it that the thread goes on, and looks often enough."""
        if self._thread is not None:
            if lease / 3 < self._pause:
                self._sooner.set()
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._go_on, name="pocket_plug heartbeat", daemon=True)
                self._thread.start()

    def _go_on(self) -> None:
        while True:
            # no execution in a name of this frame: it would be kept, with its store, for as long as the thread waits
            leases = [each.lease for each in this_process().executions()]
            if not leases:
                with self._lock:
                    thread, self._thread = (
                        self._thread,
                        None,
                    )  # before it looks once more: who comes later starts another
                    if not this_process().held:
                        return
                    self._thread = thread
            self._pause = min(leases, default=0.0) / 3
            self._sooner.wait(self._pause)
            self._sooner.clear()
            self.look()

    def unmoved(self) -> dict[Stack, list[Held]]:
        """The executions that have not moved their runs since this was called last, by store. Not those that only come to one."""
        held = [each for each in this_process().executions() if each.state_key]
        unmoved: dict[Stack, list[Held]] = {}
        for each in held:
            if self._seen.get(each.owner) == each.moves:
                unmoved.setdefault(each.stack, []).append(each)
        self._seen = {each.owner: each.moves for each in held}
        return unmoved

    def look(self) -> None:
        """One round: those that have not moved since the last are spoken for."""
        for stack, speaking in self.unmoved().items():
            try:
                stack.run(beat(stack, this_process().id, speaking))
            except Exception as error:  # noqa: BLE001 - the next round tries again
                log_failure(logging.WARNING, "a heartbeat of durable runs failed; others may take them over", error)


_heart = Heart()
after_fork(_heart.renew)
keep_beating = _heart.keep_beating
