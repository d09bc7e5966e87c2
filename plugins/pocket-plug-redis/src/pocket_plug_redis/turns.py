"""Turns: in a turn one caller alone, of all programs that share a data set, writes certain keys.

Callers that wait for a turn block on a list at the server, which serves them in the order of arrival. A turn is a lease: a
caller that stalls in it, or is killed, keeps others from writing for a second at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Protocol
from uuid import uuid4

from pocket_plug import StoreError
from pocket_plug.backends.network import Retrying
from pocket_plug.errors import StoreBusyError
from pocket_plug.primitives.waiting import to_its_end

from .scripts import LEAVE, TAKE, Script


class Host(Protocol):
    """The part of the backend that a turn uses."""

    retrying: Retrying

    def turn_keys(self, name: str) -> tuple[bytes, bytes, bytes]: ...
    async def run_script(self, script: Script, *arguments: str | bytes | int) -> Any: ...
    async def call(self, *command: str | bytes | int) -> Any: ...


had: ContextVar[Turn | None] = ContextVar("pocket_plug_redis.turn", default=None)
"""The turn that the current call is in."""


class Turn:
    """A context in which nobody else writes these keys, until this caller has written them or a second has passed.

    Raises StoreBusyError if others still have the turn after the backend's `patience`.
    """

    def __init__(self, host: Host, names: Iterable[str]) -> None:
        self.host = host
        self.who = uuid4().hex
        self.names = {str(name) for name in names}
        """The keys for which the caller's write has not ended the turn yet."""

    async def __aenter__(self) -> None:
        self._before = had.get()
        try:
            for name in sorted(self.names):  # so that no two callers wait for each other
                await self._take(name)
            had.set(self)
        except BaseException as error:
            await self._end(error)
            raise

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self._end(error)

    async def _take(self, name: str) -> None:
        retrying, keys = self.host.retrying, self.host.turn_keys(name)
        until, is_called = retrying.now() + retrying.patience, 0
        while left := await self.host.run_script(TAKE, len(keys), *keys, self.who, is_called):
            if retrying.now() >= until:
                raise StoreBusyError(
                    f"{retrying.server}: other callers locked the key during all {retrying.patience:g} s of waiting; try again, "
                    "or wait longer (patience=…)"
                )
            seconds = min(left / 1000, retrying.timeout / 2, retrying.patience / 2)
            is_called = int(await self.host.call("BLPOP", keys[-1], f"{max(seconds, 0.01):.3f}") is not None)

    async def _end(self, error: BaseException | None) -> None:
        had.set(self._before)
        if isinstance(error, GeneratorExit):  # nothing can be awaited any more; the turn expires
            return
        while self.names:
            _, turn, line = self.host.turn_keys(self.names.pop())
            leaving = self.host.run_script(LEAVE, 2, turn, line, self.who)
            with suppress(StoreError):  # the turn expires
                task, cancelled = await to_its_end(leaving, self.host.retrying.timeout)
                if cancelled is not None:
                    raise cancelled
                task.result()
