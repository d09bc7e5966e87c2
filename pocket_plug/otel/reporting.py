"""What all of telemetry is built on: who listens, what is suppressed, how settings are changed, and what a backend is called.

It speaks OpenTelemetry's API only, never its SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import context as otel_context
from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage] # the SDK and contrib import it too: it has no other name
    Context,
)

from pocket_plug.errors import ConfigError, is_fault, suggest
from pocket_plug.primitives.failures import say_once
from pocket_plug.store.backend import Backend

if TYPE_CHECKING:
    from contextvars import ContextVar

    from _typeshed import DataclassInstance

    S = TypeVar("S", bound=DataclassInstance)
else:
    S = TypeVar("S")

P = TypeVar("P")
Q = TypeVar("Q")

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""The semantic conventions that the names of attributes and metrics follow."""


# ---------------------------------------------------------------- settings
def changed(layer: str, settings: S, changes: Mapping[str, Any]) -> S:
    """A layer's settings (a dataclass) with the changes made. Raises ConfigError for what isn't one of them."""
    known = [field.name for field in fields(settings)]
    for name in changes:
        if name not in known:
            raise ConfigError(f"{layer} has no option {name!r}; it has: {', '.join(known)}.{suggest(name, known)}")
    return replace(settings, **changes)


# ---------------------------------------------------------------- who listens
def _reader_of_context() -> Callable[[], Context]:
    """A faster `get_current` of OpenTelemetry's: `get` of its context variable, which a token names."""
    token = otel_context.attach(otel_context.get_current())
    otel_context.detach(token)
    variable: ContextVar[Context] | None = getattr(token, "var", None)  # another kind of context has other tokens
    return otel_context.get_current if variable is None else variable.get


current_context: Callable[[], Context] = _reader_of_context()
"""OpenTelemetry's context, as operations of a store look at it."""


def suppressed(context: Context | None = None) -> bool:
    """Has somebody around asked for no telemetry, as OpenTelemetry does while an exporter works?

    Then there is none of ours: an exporter that keeps what it is given in a traced store would feed itself for ever.
    """
    context = current_context() if context is None else context
    # an empty one, as outside of runs and requests, is not searched; the second key is that of older instrumentations
    return bool(context) and bool(context.get(_SUPPRESS_INSTRUMENTATION_KEY) or context.get("suppress_instrumentation"))


@contextmanager
def silenced() -> Generator[None]:
    """What goes on inside makes no telemetry, as while an exporter works."""
    token = otel_context.attach(otel_context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        otel_context.detach(token)


class _Asking(dict[str, Any]):
    """Stands in for a module's global names if the one that is looked up is gone: asks the API each time."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__()
        self._ask = ask

    def __missing__(self, name: str) -> object:
        return self._ask()


def globals_of(module: ModuleType, name: str, ask: Callable[[], object]) -> dict[str, Any]:
    """Where a module of OpenTelemetry's keeps its global provider, None until one is set.

    Stores live longer than providers, so each operation looks up which is set now. Asking the API takes fifty times as
    long where none is set, since it looks at the environment each time.
    """
    names = vars(module)
    return names if name in names else _Asking(ask)


def loaded(ask: Callable[[], P], stand_in: Q, variable: str) -> P | Q:
    """What the API gives, which loads the provider that a variable names; `stand_in` where that can't be had, which is said once.

    Such variables are set for all programs of a machine, and not each has that provider installed.
    """
    try:
        return ask()
    except BaseException as error:
        if not is_fault(error):
            raise
        say_once(f"loading the provider that {variable} names", error)
        return stand_in


# ---------------------------------------------------------------- parts
@cache
def own_version() -> str:
    """pocket_plug's version, for the instrumentation scopes."""
    try:
        return version("pocket-plug")
    except PackageNotFoundError:  # run from a source tree that isn't installed
        return ""


def system_of(backend: Backend) -> str:
    """The `db.system.name` of a backend: what it says itself, else its class's name in lower case.

    >>> from pocket_plug.store.memory import Memory
    >>> system_of(Memory())
    'memory'
    """
    return backend.system or type(backend).__name__.removesuffix("Backend").lower()


def server_of(backend: Backend) -> dict[str, str | int]:
    """`server.address` and `server.port` of the server that a backend talks to; nothing where there is none.

    >>> from pocket_plug.store.memory import Memory
    >>> server_of(Memory())
    {}
    """
    if backend.address is None:
        return {}
    host, port = backend.address
    return {"server.address": host} if port is None else {"server.address": host, "server.port": port}
