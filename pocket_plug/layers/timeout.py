"""The timeout layer: limits the seconds that the stack inside has for a read, for a write, for each page of a scan.

It is outside of what may wait: persistence, a backend over a network. A plugin module, like any third party's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from pocket_plug.errors import AnswerLostError, ConfigError, StoreTimeoutError
from pocket_plug.hookspecs import hookimpl
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.shown_names import in_short
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Entry
from pocket_plug.store.layer import Layer, parts


class Timeout(Layer):
    """Raises an error if the inner one takes longer than so many seconds (or a timedelta, or "500ms").

    - `read_within`: for a read, of one key or of many, and of the last version. It is cancelled, and raises StoreTimeoutError.
    - `write_within`: for a write. It is cancelled, so that it is withdrawn if nothing of it was done. Its outcome isn't
      known then: it raises AnswerLostError, since it may have been stored, or may be stored later. A durable run finds out
      the outcome by itself.
    - `page_within`: for the time that a scan waits for its next key, and so for a page. It raises StoreTimeoutError.

    A write that its own caller cancels is awaited to its outcome, as without this layer.

    Only an operation that suspends can be interrupted. What a backend does in place runs to its end in the caller's thread:
    over memory, which never waits, the limit costs nothing and does nothing. Over a file that is read in place the limit
    could not be kept, so it is refused there.
    """

    read_within: Duration | None = None
    write_within: Duration | None = None
    page_within: Duration | None = None

    inline_read = inline_write = True

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("read_within", "write_within", "page_within")}
        self._limits = {name: seconds(limit, f"timeout: {name}") for name, limit in given.items() if limit is not None}

    def on_build(self) -> None:
        """Find out what can be limited. Raises ConfigError if no limit is given, or a limit that can't be kept."""
        limits = self._limits = {**self._limits}
        if not limits:
            raise ConfigError("timeout has no limit; give it read_within, write_within or page_within")
        inner = self.inner
        for name in list(limits):
            if inner.inline_write if name == "write_within" else inner.inline_read:
                if inner.survives:
                    raise ConfigError(
                        f"timeout: {name} over {inner!r} can't be enforced: the store works in the caller's thread, where "
                        f"nothing can interrupt it; leave out {name}. `?timeout=` in SQLite's URL limits the wait for locks"
                    )
                del limits[name]
        self._backend = parts(inner)[-1]  # for errors
        self._abandoned: set[asyncio.Task[int]] = set()  # a loop holds its tasks weakly
        self.needs_loop = inner.needs_loop or bool(limits)
        unlimited = {
            *(() if "read_within" in limits else ("read", "read_many", "version")),
            *(() if "write_within" in limits else ("write",)),
            *(() if "page_within" in limits else ("scan",)),
        }
        self.__dict__.update({name: getattr(inner, name) for name in unlimited})  # straight to the inner one

    async def read(self, key: str) -> Entry | None:
        """The inner one's entry, in time."""
        async with self._in_time(f"reading {str(key)!r}", "read_within"):
            return await self.inner.read(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The inner one's entries; the limit is for all of them together."""
        names = list(keys)
        async with self._in_time(f"reading {in_short(names)}", "read_within"):
            return await self.inner.read_many(names)

    async def version(self) -> int:
        """The inner one's, in time."""
        async with self._in_time("reading the last version", "read_within"):
            return await self.inner.version()

    @asynccontextmanager
    async def _in_time(self, what: str, option: str) -> AsyncGenerator[None]:
        limit = asyncio.timeout(within := self._limits[option])
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():  # raised by the inner one
                raise
            raise StoreTimeoutError(
                f"{what} took longer than {within:g} s, which the layer `timeout` allows ({option}), over {self._backend!r}; it "
                f"was cancelled, and its result is unknown. Try again, or allow more by {option}="
            ) from error

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Write to the inner one, or check versions, in time. Raises AnswerLostError if a write may still be stored."""
        if not changes:
            async with self._in_time(f"checking the version of {in_short(list(expect))}", "write_within"):
                return await self.inner.write(changes, expect)
        within = self._limits["write_within"]
        task = asyncio.ensure_future(self.inner.write(changes, expect))
        try:
            done, _ = await asyncio.wait({task}, timeout=within)
        except asyncio.CancelledError:
            task.cancel()
            await _ended(task)
            self._forget(task)
            raise
        if done:
            return task.result()
        task.cancel()  # withdrawn if nothing was done; nobody waits for its outcome
        self._abandoned.add(task)
        task.add_done_callback(self._forget)
        raise AnswerLostError(
            f"writing {in_short([change.key for change in changes])} took longer than {within:g} s, which the layer "
            f"`timeout` allows (write_within), over {self._backend!r}: it may have been stored, or may still be. Read before "
            "you write again, or allow more by write_within="
        )

    def _forget(self, task: asyncio.Task[int]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would report that it never was

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The inner one's keys, each in time."""
        keys = self.inner.scan(prefix, after=after, reverse=reverse, limit=limit)
        while True:
            try:
                async with self._in_time(f"scanning {prefix!r}", "page_within"):
                    key = await anext(keys)  # with a default, Python 3.11 may crash where it is interrupted
            except StopAsyncIteration:
                return
            yield key


async def _ended(task: asyncio.Task[int]) -> None:
    """Wait until a task has ended, despite cancellations."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})


@hookimpl
def pocket_layers() -> list[type[Layer]]:
    return [Timeout]
