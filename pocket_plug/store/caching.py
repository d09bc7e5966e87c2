"""`store.cached(key)`: a function's result is kept in the store; one caller computes it while the others wait.

The result is an entry like any other, so processes that share a store share it. But callers wait within one process only:
its threads, tasks and event loops compute a value once, and each process may compute it once. A backend's `turn` is no
help: it is for a short read and write, and would block all other writers while the function runs.
"""

# The functions that are made here are friends of the view.
# pyright: reportPrivateUsage=false
from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from functools import wraps
from types import CoroutineType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

from pocket_plug.errors import ConfigError, ConflictError, StoreError, ValueTypeError
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.failures import log_failure
from pocket_plug.primitives.signatures import is_async, signature_of
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import drive

from .backend import OUTAGES, Delete
from .base import MISSING, View, Writable
from .flights import Flight, Flights
from .keys import Key
from .naming import Template

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Cached(Protocol[P, R_co]):
    """A function whose results are kept in a store. For a method: `Shop.price.invalidate(shop, …)`, called on its class."""

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self: Cached[Concatenate[S, Q], R], instance: S, owner: type | None = None, /) -> Callable[Q, R]: ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The kept result; if there is none, the function's, which is then kept."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result for these arguments; returns whether there was one. One that is being computed is not kept."""
        ...


class AsyncCached(Protocol[P, R_co]):
    """An `async def` function whose results are kept in a store: as `Cached`."""

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(
        self: AsyncCached[Concatenate[S, Q], R], instance: S, owner: type | None = None, /
    ) -> Callable[Q, Coroutine[Any, Any, R]]: ...

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The kept result; if there is none, the function's, which is then kept."""
        ...

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Remove the result for these arguments; returns whether there was one. One that is being computed is not kept."""
        ...


class Decorator:
    """What both decorators share."""

    def __init__(self, view: Writable, key: Key[Value], ttl: Duration | None, ignore: Collection[str]) -> None:
        if ttl is not None:
            seconds(ttl)  # raises where the decorator is written, not at a call
        self._view, self._key, self._ttl, self._ignore = view, key, ttl, ignore

    def _decorated(self, fn: Callable[..., Any]) -> Any:
        if not callable(fn) or inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise ConfigError(f"cached is for functions that return a value, not for {_title(fn)}")
        key_of = _KeyOf(fn, self._key, self._ignore)
        call, invalidate = (_async_calls if is_async(fn) else _sync_calls)(fn, self._view, self._ttl, key_of)
        setattr(call, "invalidate", invalidate)  # noqa: B010 - a function has no such attribute that type checkers know
        return call


class Caching(Decorator):
    """The decorator that `cached` returns for a name without a type."""

    @overload
    def __call__(  # type: ignore[overload-overlap] # pyright: ignore[reportOverlappingOverload] # the first one that fits
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCached[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Cached[P, R]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Any:
        """The function, cached."""
        return self._decorated(fn)


class TypedCaching(Decorator, Generic[T]):
    """The decorator that `cached` returns for values of one type."""

    @overload
    def __call__(  # type: ignore[overload-overlap] # as above
        self, fn: Callable[P, Coroutine[Any, Any, T]], /
    ) -> AsyncCached[P, T]: ...
    @overload
    def __call__(self, fn: Callable[P, T], /) -> Cached[P, T]: ...
    def __call__(self, fn: Callable[..., Any], /) -> Any:
        """The function, cached."""
        return self._decorated(fn)


class CachingView(View):
    """The `cached` of stores and scopes, with `await` and without: each caches both kinds of functions."""

    __slots__ = ()

    @property
    def _view(self) -> Writable:
        """The view with `await` that keeps the results; a sync view overrides it."""
        return cast(Writable, self)

    @overload
    def cached(
        self, key: Key[T], /, *, ttl: Duration | None = None, ignore: Collection[str] = ()
    ) -> TypedCaching[T]: ...
    @overload
    def cached(self, key: str, /, *, ttl: Duration | None = None, ignore: Collection[str] = ()) -> Caching: ...
    def cached(self, key: Any, /, *, ttl: Duration | None = None, ignore: Collection[str] = ()) -> Any:
        """A decorator: keep a function's result at `key`, for `ttl`; one caller computes it while the others wait.

        Each placeholder of the key is filled by the argument of that name; a `{}` by the next argument that no placeholder
        names. A parameter that is not in the key must be in `ignore`, such as `self`. Otherwise calls that differ in it would
        share a value, so it raises ConfigError.

        Of the callers in this process, threads and tasks of any loop, one computes and the others get its result: the same
        object, or the error that it raised, which is not kept. If it is cancelled, another caller starts again. Other
        processes that share the store get the kept result, but don't wait for one. While the store is away, each call is
        computed.

        >>> from pocket_plug import SyncStore
        >>> store = SyncStore()
        >>> @store.cached("square:{n}", ttl="5m")
        ... def square(n: int) -> int:
        ...     print("computing")
        ...     return n * n
        >>> square(3), square(n=3), square.invalidate(3), square.invalidate(3)
        computing
        (9, 9, True, False)
        """
        template: Key[Any] = key if key.__class__ is Key else Key(key)
        return TypedCaching[Any](self._view, template, ttl, ignore)


def _title(fn: object) -> str:
    return getattr(fn, "__qualname__", f"a {type(fn).__name__}")


# ---------------------------------------------------------------- which arguments fill the key
class _KeyOf:
    """Makes a call's key from its arguments."""

    def __init__(self, fn: Callable[..., Any], key: Key[Value], ignore: Collection[str]) -> None:
        title = f"cached {_title(fn)}"
        try:
            self._signature = signature_of(fn)
        except ValueError:
            raise ConfigError(f"{title}: Python doesn't know its parameters; wrap it in a function") from None
        self._key = key
        parameters = list(self._signature.parameters)
        placeholders = () if key.is_filled else Template(key.template).names
        for each in self._signature.parameters.values():
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) and each.name not in ignore:
                raise ConfigError(
                    f"{title}: {str(each).partition(':')[0]} takes any number of arguments, which no placeholder can hold; "
                    f"declare each of them, or set ignore=({each.name!r},)"
                )
        rest = iter([name for name in parameters if name not in placeholders and name not in ignore])
        self._names = [placeholder or next(rest, "{}") for placeholder in placeholders]
        has = f"its parameters are: {', '.join(parameters) or 'none'}"
        if unknown := [f"{{{name.strip('{}')}}}" for name in self._names if name not in parameters]:
            raise ConfigError(f"{title}: no parameter fills {', '.join(unknown)} of {key!r}; {has}")
        if unknown := [repr(name) for name in ignore if name not in parameters]:
            raise ConfigError(f"{title}: ignore has {', '.join(unknown)}; {has}")
        if left := list(rest):
            raise ConfigError(
                f"{title}: {', '.join(map(repr, left))} not in {key!r}, so calls with different arguments there would share a "
                f"value; add a placeholder, {{{left[0]}}}, or set ignore=({left[0]!r},)"
            )

    def __call__(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Key[Value]:
        bound = self._signature.bind(*args, **kwargs)
        if not self._names:
            return self._key
        bound.apply_defaults()
        return self._key(*[bound.arguments[name] for name in self._names])


# ---------------------------------------------------------------- the function that users call
class _Cache:
    """What a decorated function does with the store. `run` returns a view's coroutine, or one that runs it in place."""

    def __init__(
        self, view: Writable, ttl: Duration | None, run: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]
    ) -> None:
        self._view, self._ttl, self._run = view, ttl, run
        self._flights = Flights()
        self._is_away = False
        """Was the store away at the last operation? Then values are computed, and not kept."""

    async def get(self, key: Key[Value], make: Callable[[], Awaitable[Value]]) -> Value:
        value = await self._found(key)
        if value is not MISSING:
            return value

        async def compute(flight: Flight) -> Value:
            value = MISSING if self._is_away else await self._found(key)  # somebody may have been faster
            if value is MISSING:
                value = await make()
                if value.__class__ is CoroutineType:
                    value.close()
                    raise ValueTypeError(f"{str(key)!r}: a cached function that isn't `async def` returned a coroutine")
                if not flight.is_void and not self._is_away:
                    await self._keep(key, value, flight)
            return value

        return await self._flights.once(str(key), compute)

    async def _found(self, key: Key[Value]) -> Value:
        """The kept value; MISSING if there is none, or if the store is away."""
        try:
            value = await self._run(self._view.get(key, MISSING))
        except OUTAGES as error:
            self._survive(error)
            return MISSING
        self._is_away = False
        return value

    async def _keep(self, key: Key[Value], value: Value, flight: Flight) -> None:
        try:
            added = await self._run(self._view._added(key, value, self._ttl))
            if flight.is_void:  # meanwhile
                with suppress(ConflictError):  # somebody has set it since
                    await self._run(self._view._source.write([*map(Delete, added)], added))
        except OUTAGES as error:
            self._survive(error)

    def _survive(self, error: StoreError) -> None:
        """The function must not fail because its cache is away, or locked for too long. It is logged once, until it is back."""
        if not self._is_away:
            self._is_away = True
            log_failure(
                logging.WARNING, "a store is away: its cached functions compute each call until it is back", error
            )

    async def invalidate(self, key: Key[Value]) -> bool:
        self._flights.invalidate(str(key))
        removed: bool = await self._run(self._view.delete(key))
        return removed


Calls = tuple[Callable[..., Any], Callable[..., Any]]


def _async_calls(fn: Callable[..., Any], view: Writable, ttl: Duration | None, key_of: _KeyOf) -> Calls:
    cache = _Cache(view, ttl, lambda coroutine: coroutine)

    @wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await cache.get(key_of(args, kwargs), lambda: fn(*args, **kwargs))

    async def invalidate(*args: Any, **kwargs: Any) -> bool:
        return await cache.invalidate(key_of(args, kwargs))

    return call, invalidate


def _sync_calls(fn: Callable[..., Any], view: Writable, ttl: Duration | None, key_of: _KeyOf) -> Calls:
    async def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return view._source.run_update(coroutine)

    cache = _Cache(view, ttl, run)

    @wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        async def make() -> Any:
            return fn(*args, **kwargs)

        return drive(cache.get(key_of(args, kwargs), make))

    def invalidate(*args: Any, **kwargs: Any) -> bool:
        return drive(cache.invalidate(key_of(args, kwargs)))

    return call, invalidate
