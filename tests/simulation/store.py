"""One store that all simulated processes share, and their connections, on which every possible failure happens.

A request takes time to the store, and the answer takes time back. Each has a fate: it is refused; its answer is lost, which is
known at once or after a timeout; it is done late; it is sent twice; or the process dies before it, right after it, or at the
answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pocket_plug as pp
from pocket_plug.primitives.waiting import drive_inline
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry, Put

from .loop import this_thread

if TYPE_CHECKING:
    from .world import Machine, World

T = TypeVar("T")

READ_FATES = ("refused", "lost", "slow")
WRITE_FATES = ("refused", "lost", "late", "resent", "slow", "killed before", "killed after", "killed at the answer")
CHUNK = 8
"""How many keys of a scan come with one answer."""


class Server:
    """The stored entries, and every write in the order of commits."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.memory = pp.Memory()
        self.memory.clock = world.clock

    def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries of these keys."""
        return drive_inline(self.memory.read_many(keys))

    def write(self, by: Machine | None, attempt: Any, changes: Sequence[Change], expect: Mapping[str, int]) -> int:
        """Do all of it or nothing, and let the world check what was written."""
        try:
            version = drive_inline(self.memory.write(changes, expect))
        except pp.ConflictError as conflict:
            self._world.conflicted(by, attempt, conflict)
            raise
        if changes:
            self._world.landed(by, attempt, version, changes)
        return version

    def keys(self, prefix: str = "", **options: Any) -> list[str]:
        """The keys of a scan."""
        return drive_inline(_listed(self.memory.scan(prefix, **options)))

    def value(self, key: str) -> Any:
        """The value at a key; None if there is none."""
        entry = self.read_many((key,)).get(key)
        return entry.value if entry is not None else None


async def _listed(keys: AsyncIterator[str]) -> list[str]:
    return [key async for key in keys]


class Client(Backend):
    """A process's connection to the store."""

    survives = True

    def __init__(self, machine: Machine) -> None:
        self._machine, self._world = machine, machine.world
        self.needs_loop = machine.world.needs_loop

    def __repr__(self) -> str:
        return f"sim://{self._machine.name}"

    async def read(self, key: str) -> Entry | None:
        return (await self.read_many((key,))).get(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        names = sorted(keys)  # without a set's order, which depends on hashes
        what = f"read {', '.join(map(self._world.short, names))}"
        return await self._request(what, READ_FATES, lambda: self._world.server.read_many(names))

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        attempt = self._world.attempt()
        names = ", ".join(
            ("" if isinstance(change, Put) else "-") + self._world.short(change.key) for change in changes
        )

        def land() -> int:
            return self._world.server.write(self._machine, attempt, changes, expect)

        if not changes:
            return await self._request("check", READ_FATES, land)
        is_aimed_at = self._world.is_aimed_at(self._machine, changes)
        return await self._request(f"write {names}", WRITE_FATES, land, may_withdraw=True, is_aimed_at=is_aimed_at)

    async def scan(self, prefix: str = "", **options: Any) -> AsyncIterator[str]:
        keys = await self._request(f"scan {prefix}", READ_FATES, lambda: self._world.server.keys(prefix, **options))
        for at in range(0, len(keys), CHUNK):
            if at:
                await self._request("scan on", READ_FATES, lambda: None)
            for key in keys[at : at + CHUNK]:
                if self._world.server.read_many((key,)):
                    yield key

    async def version(self) -> int:
        return await self._request("version", READ_FATES, lambda: drive_inline(self._world.server.memory.version()))

    async def _request(
        self,
        what: str,
        fates: Sequence[str],
        do: Callable[[], T],
        may_withdraw: bool = False,
        is_aimed_at: bool = False,
    ) -> T:
        """Send it, and return the answer. A write that is cancelled is withdrawn if the store has not done it yet."""
        machine, world, after = self._machine, self._world, self._world.scheduler.after
        fate = world.aimed_fate(machine) if is_aimed_at else world.fate(machine, fates)
        attempt = world.attempt()
        answer: asyncio.Future[T] = (this_thread() or machine.process).create_future()
        state = "sent"

        def reply(error: Exception | None, result: Any) -> None:
            if fate == "killed at the answer":
                machine.kill(f"as the answer to {what!r} comes")
            if not machine.process.is_dead and not answer.done():
                if error is not None:
                    answer.set_exception(error)
                else:
                    answer.set_result(result)

        def fail() -> None:
            world.note(machine.name, f"{what}: {fate}")
            world.faulted(machine, attempt)
            reply(pp.StoreError(f"the connection is lost ({fate})"), None)

        def arrive() -> None:
            nonlocal state
            world.on_the_way -= may_withdraw
            if state == "withdrawn":
                return
            state = "done"
            error, result = None, None
            try:
                result = do()
            except pp.ConflictError as conflict:
                error = conflict
            if fate == "resent":
                world.note(machine.name, f"{what}: sent twice")
                try:
                    result = do()
                except pp.ConflictError as conflict:
                    error = conflict
            if fate == "killed after":
                machine.kill(f"after {what!r}")
            elif fate == "late":
                world.note(machine.name, f"{what}: has come late")
            elif fate == "lost":
                after(world.latency(), fail)
            elif fate == "timed out":
                after(world.random.uniform(0, world.slowness), fail)
            else:
                after(world.latency(), lambda: reply(error, result))

        world.on_the_way += may_withdraw and fate not in ("killed before", "refused")
        if fate == "killed before":
            machine.kill(f"before {what!r}")
        elif fate == "refused":
            after(world.latency(), fail)
        elif fate == "late":
            delay = world.latency()
            after(delay, fail)
            after(delay + world.random.choice((0.0, 0.01, 0.3, 5.0)), arrive)
        else:
            after(world.latency() + (world.random.uniform(0, world.slowness) if fate == "slow" else 0), arrive)
        if (thread := this_thread()) is not None:  # it can't be cancelled
            thread.wait(answer)
            return answer.result()
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                result = await answer
            except asyncio.CancelledError as error:
                cancelled = error
                if not answer.cancelled():
                    answer.exception()  # it has come at the same moment
                    raise
                if state == "sent":
                    state = "withdrawn"
                if state == "withdrawn" or not may_withdraw:
                    raise
                answer = machine.process.create_future()  # the other one was cancelled with the task
            except Exception as error:
                if cancelled is not None:
                    raise cancelled from error
                raise
            else:
                if cancelled is not None:
                    raise cancelled
                return result
