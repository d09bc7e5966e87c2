"""The stack behind a store: built once, opened and closed as one, and the same for callers with and without a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence, Set
from typing import Any, TypeVar
from weakref import WeakMethod

from pocket_plug.errors import ConfigError, ConflictError, StoreClosedError
from pocket_plug.primitives.redaction import conceal, named, public_url
from pocket_plug.primitives.waiting import Runner, drive, drive_inline, run_on

from .backend import NO_EXPECTATIONS, Backend, Change, Clock
from .contention import FREE_TRIES, Backoff, Combiner, Step
from .gates import Gates
from .home import Home
from .layer import Layer, build_stack, parts
from .resolving import order_names, resolve_backend, resolve_layer

T = TypeVar("T")


class Stack(Layer):
    """The outermost part of every store. It costs operations nothing, and holds what belongs to the stack as a whole."""

    needs_loop = False  # of its own; the parts below may

    def on_build(self) -> None:
        self.stack = self
        self.from_environment: Mapping[str, str] = {}
        """The texts in the URL that come from the environment, each with how the configuration writes it."""
        self._write = self.write  # bound straight to the part that writes
        self.swept = ""
        """The name at which the last search for items of removed lists ended; "" before the first search."""
        self.rounds_owed = 0
        """How many times such searches must still reach the last name: after a find twice, so that one round finds nothing."""
        # Weak: a connection keeps the context in which it was made, and in it the gates: a dropped store would never end.
        route = WeakMethod(self._route_writes)
        self.gates = Gates(lambda has_priority: (found := route()) and found(has_priority))
        self.backoff = Backoff()
        self.combiner = Combiner(self, self.gates, self.pause_after)
        # a range, made each time, takes four times as long
        self._free_tries = (1,) * (FREE_TRIES if self.inline_write else 0)
        self.is_new = True
        self._is_closed = False
        self._home = Home(self.__repr__)
        # How a sync caller runs an operation: in place, blocking on the part's own primitive, or on the home loop.
        self.run: Runner = self._run_at_home if self.needs_loop else drive
        self.run_read: Runner = drive_inline if self.inline_read else self.run
        self.run_write: Runner = drive_inline if self.inline_write else self.run
        # an update may wait in line for the key
        self.run_update: Runner = drive if self.inline_read and self.inline_write else self.run

    def __repr__(self) -> str:
        return conceal(" > ".join(repr(part) for part in parts(self)[1:]), self.from_environment)

    def _repr_html_(self) -> str:
        """In a notebook: its parts."""
        return stack_table(self)

    def _route_writes(self, has_priority: bool) -> None:
        """Let writes wait while an update has priority; otherwise they go directly to the part that writes."""
        self.__dict__["write"] = self._write_after_priority if has_priority else self._write

    async def _write_after_priority(
        self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS
    ) -> int:
        await self.gates.yield_to_priority([change.key for change in changes], self.inline_write)
        return await self._write(changes, expect)

    async def pause_after(self, lost: int) -> None:
        """Pause after tries that were lost to other processes. No other process uses a stack that writes in place."""
        if not self.inline_write:
            await self.backoff(lost)

    async def apply(self, name: str, step: Step) -> Any:
        """Read, call `step`, write if nobody wrote in between; else try again, and after a few tries wait in line."""
        for _ in self._free_tries:
            entry = await self.read(name)
            changes, answer = step(entry)
            try:
                if changes:
                    await self.write(changes, {name: entry.version if entry else 0})
                return answer
            except ConflictError:
                continue
        return await self.combiner.apply(name, step)

    async def open(self) -> None:
        await self._in_turn(self._open)

    async def ensure_open(self) -> None:
        """Open it, unless it was opened or closed before. A run calls this, so a script need not open its store."""
        await self._in_turn(self._open_if_new)

    async def close(self) -> None:
        await self._in_turn(self._close)

    async def _in_turn(self, step: Callable[[], Awaitable[None]]) -> None:
        """Call `step`, for one caller at a time: threads and tasks may open and close the stack at once."""
        hold = self.gates.hold(("open",))
        try:
            async with hold:
                await step()
        finally:
            hold.leave()

    async def _open(self) -> None:
        if self.needs_loop:
            self._home.loop = asyncio.get_running_loop()
        await self.inner.open()
        self.is_new = self._is_closed = False

    async def _open_if_new(self) -> None:
        if self.is_new:
            await self._open()

    async def _close(self) -> None:
        self.is_new, self._is_closed, self._home.loop = False, True, None
        try:
            await self.inner.close()
        finally:
            self._home.close_own()

    def _run_at_home(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._is_closed and not self.is_new:
            coroutine.close()
            raise StoreClosedError(f"this store is closed: {self!r}")
        try:
            loop = self._home.find()
        except BaseException:
            coroutine.close()
            raise
        return run_on(loop, coroutine)

    def open_sync(self) -> None:
        """Open it for callers without a loop."""
        if self.needs_loop:
            self._home.find()
            self._is_closed = False
        self.run(self.open())

    def flush_sync(self) -> None:
        """Flush it for callers without a loop."""
        self.run(self.flush())

    def close_sync(self) -> None:
        """Close it, and the loop that was made for it."""
        try:
            if not (self.needs_loop and self._is_closed):
                self.run(self.close())
        finally:
            self._home.close_own()


StorePlace = tuple[Stack, str]
"""Where a view reads and writes: its stack, and the prefix of its names there."""


def stack_table(stack: Stack, prefix: str = "") -> str:
    """HTML for a notebook: the parts with their options, as in `repr`, outermost first, and never an entry."""
    from pocket_plug.primitives.markup import table

    rows: list[tuple[str, str, str]] = []
    for part in parts(stack)[1:]:
        name, _, options = conceal(repr(part), stack.from_environment).partition("(")
        rows.append(("layer" if isinstance(part, Layer) else "backend", name, options.removesuffix(")")))
    scope = f", scope {prefix[:-1]!r}" if prefix else ""
    return table(f"store{scope}", ("part", "name", "options"), rows)


def build(backend: str | Backend, layers: Collection[str | Layer], clock: Clock | None) -> Stack:
    """The stack of a backend (or its URL) and layers (or their names). Raises ConfigError where one is invalid."""
    if isinstance(backend, str):
        backend = resolve_backend(backend)
    if not isinstance(backend, Backend) or (isinstance(backend, Layer) and "inner" not in backend.__dict__):
        found = repr(backend) if isinstance(backend, Layer) else named(backend)
        raise ConfigError(
            f"a store's backend can't be {found}; give a URL such as 'sqlite:///state.db' or a "
            "Backend, and layers in a list: layers=[…]"
        )
    if isinstance(layers, str | Layer):
        found = public_url(repr(layers))
        raise ConfigError(f"layers is {found:.80}; give a list: layers=[{found:.80}]")
    if clock is not None:
        if not callable(clock):
            raise ConfigError(
                f"a store's clock can't be {named(clock)}; give a function without arguments, such as time.time"
            )
        backend.clock = clock
    recipes: Iterable[Any] = layers
    if isinstance(layers, Set):
        recipes = order_names(layers)
    stack = build_stack(backend, [_recipe(recipe) for recipe in recipes])
    built = Stack().build(stack)
    assert isinstance(built, Stack)
    return built


def _recipe(layer: str | Mapping[str, Any] | Layer) -> Layer:
    return resolve_layer(layer) if isinstance(layer, str | Mapping) else layer
