"""Layers: decorators around a backend, and the fold that makes a stack of them.

A layer's class also declares its options. An instance without an `inner` is a recipe: frozen data with a useful repr.
`build` copies it and sets `inner`; the copy keeps its state beside the options, which never change. Operations that the
class doesn't override are bound directly to the inner one, so they cost nothing.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar
from warnings import warn

from pocket_plug.errors import ConfigError, is_fault
from pocket_plug.primitives.failures import concealed
from pocket_plug.primitives.redaction import named
from pocket_plug.primitives.secret_options import secret as secret

from .backend import NO_EXPECTATIONS, Backend, Change, Entry, Watcher, read_around
from .layer_options import Recipe
from .overrides import refuse_bypassed, refuse_uncalled, warn_of_misspelt

# The operations that are bound to the inner one, each with the operations that it is derived from: it is bound only if
# the layer overrides none of them.
_DERIVED_FROM: Mapping[str, tuple[str, ...]] = {
    "read": (),
    "read_many": ("read",),
    "write": (),
    "scan": (),
    "read_page": ("read", "read_many", "scan"),
    "version": (),
    "flush": (),
    "open": (),
    "close": (),
    "turn": (),
    "watch": (),
}


class Layer(Recipe):
    """A backend around a backend. Subclass it, annotate the options, override what it changes.

    >>> class Slow(Layer):
    ...     seconds: float = 0.1
    >>> Slow(seconds=2)
    Slow(seconds=2)

    `inline_read`, `inline_write`: set them True where the override adds no suspension of its own. No layer may hold a
    lock across a call to its inner one.
    """

    label: str = ""
    """Distinguishes layers of one class in one stack: `repr` and telemetry show it."""

    inner: ClassVar[Backend]  # set by build; a ClassVar only so that it is no option

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_bypassed(cls, Layer)
        refuse_uncalled(cls, Layer)
        warn_of_misspelt(cls, Layer)
        if "beneath" in cls.__dict__:
            warn(f"{cls.__name__}.beneath is now called wrap_inner; 0.3 removes the old name", DeprecationWarning, 2)
            setattr(cls, "wrap_inner", cls.__dict__["beneath"])  # noqa: B010 - for a type checker a class has no such attribute

    def build(self, inner: Backend, /) -> Backend:
        """A copy of this recipe, bound over `inner`. Raises ConfigError if this combination is invalid."""
        if "inner" in self.__dict__:
            raise ConfigError(f"{self!r} is already part of a stack; give a new recipe: {type(self).__name__}(…)")
        layer = copy.copy(self)
        layer.__dict__["inner"] = inner
        layer.clock, layer.survives, layer.buffered = inner.clock, inner.survives, inner.buffered
        layer.can_watch, layer.max_changes, layer.read_only = inner.can_watch, inner.max_changes, inner.read_only
        layer.evicts, layer.encrypts = inner.evicts, inner.encrypts
        own = type(layer)
        changed = {name for name in _DERIVED_FROM if getattr(own, name) is not getattr(Layer, name)}
        for name, sources in _DERIVED_FROM.items():
            if changed.isdisjoint((name, *sources)):
                setattr(layer, name, getattr(inner, name))
        adds_none = {
            "read": own.inline_read or not changed & {"read", "read_many", "scan", "read_page"},
            "write": own.inline_write or "write" not in changed,
            "rest": (own.inline_read and own.inline_write) or not changed & {"flush", "open", "close"},
        }
        layer.inline_read = inner.inline_read and adds_none["read"]
        layer.inline_write = inner.inline_write and adds_none["write"]
        layer.needs_loop = inner.needs_loop or (own.needs_loop and not all(adds_none.values()))
        layer._build_own()
        return layer

    def _build_own(self) -> None:
        """Call `on_build`; secret options are removed from its error."""
        try:
            self.on_build()
        except BaseException as error:
            if not is_fault(error):
                raise
            said, cause = concealed(error, self._hidden())
            if cause is None:
                raise ConfigError(said if isinstance(error, ConfigError) else f"{self.name}: {said}") from None
            raise

    def on_build(self) -> None:
        """Create here what one stack needs for itself (counters, indexes); the recipe doesn't change."""

    def wrap_inner(self, part: Backend) -> Backend:
        """Wrap a part that the stack will have below this recipe, to observe it; by default the part itself."""
        return part

    async def read(self, key: str) -> Entry | None:
        """By default the inner one's."""
        return await self.inner.read(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """By default the inner one's; if `read` is overridden, what `read` returns for each key, all as of one moment.

        With an overridden `read` it raises StoreBusyError if the keys change at each of 100 tries; if they may, override both.
        """
        return await read_around(self, self.inner, keys)

    _read_one_by_one = read_many  # for a class that overrides `read` alone

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """By default the inner one's."""
        return await self.inner.write(changes, expect)

    def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """By default the inner one's."""
        return self.inner.scan(prefix, after=after, reverse=reverse, limit=limit)

    async def version(self) -> int:
        """By default the inner one's."""
        return await self.inner.version()

    async def check(self) -> list[str]:
        """By default the inner one's."""
        return await self.inner.check()

    async def compact(self, size: int) -> int:
        """By default the inner one's."""
        return await self.inner.compact(size)

    async def flush(self) -> None:
        """By default the inner one's."""
        await self.inner.flush()

    def turn(self, names: Collection[str]) -> AbstractAsyncContextManager[None] | None:
        """By default the inner one's."""
        return self.inner.turn(names)

    async def watch(self, watcher: Watcher) -> None:
        """By default the inner one's. A layer that caches entries calls it for itself: outer layers don't notify inner ones."""
        await self.inner.watch(watcher)

    async def open(self) -> None:
        """Open the inner one; an override calls `await super().open()` first."""
        await self.inner.open()

    async def close(self) -> None:
        """Close the inner one; an override calls `await super().close()` last."""
        await self.inner.close()


def build_stack(backend: Backend, layers: Iterable[Layer]) -> Backend:
    """Fold recipes, outermost first as written, over a backend. Raises ConfigError for an invalid stack."""
    recipes = list(layers)
    for position, recipe in enumerate(recipes):
        if isinstance(recipe, type) or not isinstance(recipe, Layer):
            raise ConfigError(
                f"layers[{position}] is {named(recipe)}; give an instance such as Bounding(max_entries=1000), or a name"
            )
        _refuse_twice(recipe, recipes[:position])
    while recipes:
        for outer in recipes:
            backend = outer.wrap_inner(backend)
        backend = recipes.pop().build(backend)
    return backend


def _refuse_twice(recipe: Layer, outer: Iterable[Layer]) -> None:
    for other in outer:
        if type(other) is type(recipe) and (not recipe.label or not other.label or recipe.label == other.label):
            which = f" with the label {recipe.label!r}" if recipe.label and recipe.label == other.label else ""
            raise ConfigError(
                f"layer {recipe.name!r} is twice in the stack{which}; the inner one would process what the outer one has "
                f"processed. If that is meant, give each a label of its own: {type(recipe).__name__}(label='…')"
            )


def parts(stack: Backend) -> list[Backend]:
    """The parts of a built stack, outermost first; the last one is the backend."""
    found = [stack]
    while isinstance(found[-1], Layer):
        found.append(found[-1].inner)
    return found
