"""The fault layer, for tests: the stack inside fails, is slow or loses answers, by a rule. A plugin module, like any other.

Put it directly around the backend that it makes unreliable, inside of the layers that have to cope with that.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from pocket_plug.errors import AnswerLostError, ConfigError, ConflictError, StoreError
from pocket_plug.hookspecs import hookimpl
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.forking import new_lock
from pocket_plug.primitives.shown_names import in_short
from pocket_plug.primitives.waiting import pause
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Entry
from pocket_plug.store.layer import Layer

Pause = Callable[[float], Awaitable[None]]


class Fault(Layer):
    """For tests: lets some operations fail in one way, the same operations each time. Never in production.

    `does` is what happens to an operation that is hit:

    - "fail": StoreError, and nothing was done.
    - "delay": it is done, `delay` (seconds, a timedelta or "50ms") later.
    - "lose": a write is stored, and raises AnswerLostError.
    - "conflict": a write is stored, and raises ConflictError of all its keys, as if a driver had sent it twice. No backend
      may do so (`Backend.write`): it shows which code relies on that.

    It hits operations `on` "read", "write" or "scan" (None: all that `does` is possible for) with a key that matches the
    pattern `keys` ("order:*", as in `fnmatch`; a scan by its prefix). Of these the first `skip` pass, at most `times` are
    hit, and each only with the `probability`, drawn by the `seed`. A check of versions without changes is a read. With
    any other `does`, too, a `delay` comes first. For several rules use several layers, each with a `label`.

    `pause` waits for the delay: by default a task sleeps on its event loop, a plain thread sleeps; a test may give a clock's.

    The built layer counts `matched` operations, and those that were `hit`.

    >>> from pocket_plug import SyncStore
    >>> store = SyncStore(layers=[Fault(on="write", keys="order:*", does="lose", times=1)])
    >>> store.set("order:1", "tea")
    Traceback (most recent call last):
      ...
    pocket_plug.errors.AnswerLostError: fault: a write of 'order:1' was stored, and its answer is lost, on purpose: ...
    >>> store.get("order:1")
    'tea'
    """

    does: Literal["fail", "delay", "lose", "conflict"] = "fail"
    on: Literal["read", "write", "scan"] | None = None
    keys: str = "*"
    delay: Duration = 0
    probability: float = 1
    seed: int = 0
    skip: int = 0
    times: int | None = None
    pause: Pause = pause

    inline_read = inline_write = True
    needs_loop = False

    def __post_init__(self) -> None:
        """Raise ConfigError for a rule that can't hit anything, or is invalid."""
        if self.does in ("lose", "conflict") and self.on not in (None, "write"):
            raise ConfigError(f"fault: does={self.does!r} is for writes only, but on={self.on!r} hits no writes")
        delay = seconds(self.delay, "fault: delay", or_zero=True)
        if self.does == "delay" and not delay:
            raise ConfigError("fault: does='delay' needs a delay above 0, such as delay='50ms'")
        if not 0 < self.probability <= 1:
            raise ConfigError(f"fault: probability can't be {self.probability:g}; give a number above 0, at most 1")
        if self.skip < 0 or (self.times is not None and self.times < 1):
            raise ConfigError(
                f"fault: skip={self.skip}, times={self.times}; give skip from 0 up, and times from 1 up or None"
            )

    def on_build(self) -> None:
        """Start the counts."""
        self._delay = seconds(self.delay, or_zero=True)
        self._on = "write" if self.does in ("lose", "conflict") else self.on
        self.matched = self.hit = 0
        self._random = random.Random(self.seed)  # noqa: S311 - no secret
        self._lock = new_lock()
        waits = bool(self._delay)
        self.inline_read = self.inner.inline_read and not (waits and self._on != "write")
        self.inline_write = self.inner.inline_write and not (waits and self._on in ("write", None))

    def _strikes(self, operation: str, keys: Iterable[str]) -> bool:
        """Is this operation hit? Counts it."""
        if self._on not in (None, operation) or not any(fnmatchcase(key, self.keys) for key in keys):
            return False
        with self._lock:
            self.matched += 1
            if self.matched <= self.skip or self.hit == self.times:
                return False
            if self.probability < 1 and self._random.random() >= self.probability:
                return False
            self.hit += 1
            return True

    async def _before(self, operation: str, keys: Sequence[str]) -> bool:
        """Wait or fail if the operation is hit; returns whether it is."""
        if not self._strikes(operation, keys):
            return False
        if self._delay:
            await self.pause(self._delay)
        if self.does == "fail":
            raise StoreError(f"fault: a {operation} of {in_short(keys)} fails on purpose: {self!r}")
        return True

    async def read(self, key: str) -> Entry | None:
        """The inner one's entry, if it isn't hit."""
        await self._before("read", (key,))
        return await self.inner.read(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The inner one's entries, if none is hit: as one operation."""
        names = list(keys)
        await self._before("read", names)
        return await self.inner.read_many(names)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Write to the inner one, and fail before it or after it if it is hit."""
        if not changes:
            await self._before("read", list(expect))
            return await self.inner.write(changes, expect)
        keys = [change.key for change in changes]
        is_hit = await self._before("write", keys)
        version = await self.inner.write(changes, expect)
        if is_hit and self.does == "lose":
            raise AnswerLostError(
                f"fault: a write of {in_short(keys)} was stored, and its answer is lost, on purpose: {self!r}"
            )
        if is_hit and self.does == "conflict":
            raise ConflictError(
                keys, f"fault: a write of {in_short(keys)} was stored, and raises a conflict, on purpose: {self!r}"
            )
        return version

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The inner one's keys, if it isn't hit; a hit comes before the first key."""
        await self._before("scan", (prefix,))
        async for key in self.inner.scan(prefix, after=after, reverse=reverse, limit=limit):
            yield key


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    return [Fault]
