"""The heartbeat of a process, for its executions that have not committed for a third of their lease.

A commit shows that an execution is alive. If a node takes long, a thread writes `pocket:run-beat:PROCESS`, which names the
executions that are alive. It is a thread, since a node may block the event loop. It also reads the states of all runs that
were there in its last round, so that a request to cancel reaches a run while its node works, also if the node has just begun.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Sequence
from math import inf

from pocket_plug.primitives.failures import log_failure
from pocket_plug.primitives.forking import after_fork, new_lock
from pocket_plug.primitives.locks import Flag
from pocket_plug.store.backend import Entry, Put
from pocket_plug.store.keys import RESERVED
from pocket_plug.store.stack import Stack

from .processes import Held, this_process

BEAT = f"{RESERVED}run-beat:"
KEPT = 7 * 86_400.0
"""Seconds after which a heartbeat expires: so many that differences between clocks, even of hours, don't matter."""


async def beat(stack: Stack, process: str, executions: Sequence[Held], unmoved: Collection[str]) -> None:
    """Write the heartbeat of a process for the unmoved ones of these executions in one store; give each its run's state."""
    found = await stack.read_many([each.state_key for each in executions])
    owners = [each.owner for each in executions if each.owner in unmoved]
    if owners:
        await stack.write([Put(BEAT + process, {"owners": owners}, stack.clock() + KEPT)])
    for each in executions:
        each.receive_state(found.get(each.state_key))


def written_at(found: Entry) -> float:
    """When this heartbeat was written, in epoch seconds."""
    return 0.0 if found.expires_at is None else found.expires_at - KEPT


class Heart:
    """The thread that writes the heartbeat, and what it saw in its last round."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._seen: dict[str, int] = {}
        self._sooner = Flag()
        self.renew()

    def renew(self) -> None:
        """Start without a thread: at first, and in a forked child."""
        self._thread: threading.Thread | None = None
        self._pause = 0.0

    def keep_beating(self, lease: float) -> None:
        """Make sure, for an execution with this lease, that the thread runs, and that its rounds are frequent enough."""
        if self._thread is not None:
            if lease / 3 < self._pause:
                self._sooner.set()
            return
        thread = threading.Thread(target=lambda: self._go_on(thread), name="pocket_plug heartbeat", daemon=True)
        with self._lock:  # no call comes before it is noted, so no signal's handler either, which might begin a run
            if self._thread is None:
                self._thread = thread
                try:
                    thread.start()
                except BaseException:  # no room for a thread, or an interrupt: the next execution tries again
                    self._thread = None
                    raise

    def _go_on(self, thread: threading.Thread) -> None:
        with self._lock:
            if self._thread is not thread:  # its start was interrupted, and it runs nevertheless
                return
        while True:
            self._pause = inf  # an execution that begins from here on may be missing below: its lease ends the pause
            # No local variable may refer to an execution: it would keep it, and its store, alive while the thread waits.
            leases = [each.lease for each in this_process().executions()]
            if not leases:
                with self._lock:
                    # Before the last check: an execution that begins after it starts another thread.
                    self._thread = None
                    if not this_process().held:
                        return
                    self._thread = thread
            self._pause = min(leases, default=0.0) / 3
            self._sooner.wait(self._pause)
            self.look()

    def unmoved(self, executions: Iterable[Held]) -> set[str]:
        """The ids of those of these executions that have had no commit since the last call."""
        moves = {each.owner: each.moves for each in executions}
        unmoved = {owner for owner, move in moves.items() if self._seen.get(owner) == move}
        self._seen = moves
        return unmoved

    def look(self) -> None:
        """One round: read the states of the runs, and write the heartbeat for those without a commit since the last round."""
        held = [each for each in this_process().executions() if each.state_key]  # those that have claimed their run
        known = [each for each in held if each.owner in self._seen]  # most runs are short, and pay nothing for this
        unmoved = self.unmoved(held)
        for stack in dict.fromkeys(each.stack for each in known):
            try:
                stack.run(beat(stack, this_process().id, [each for each in known if each.stack is stack], unmoved))
            except Exception as error:  # noqa: BLE001 - the next round tries again
                log_failure(
                    logging.WARNING, "a heartbeat of durable runs failed; other processes may take the runs over", error
                )


_heart = Heart()
after_fork(_heart.renew)
keep_beating = _heart.keep_beating
