"""The base of all telemetry: finds the provider, whether telemetry is suppressed, settings, and the names of a backend.

It uses OpenTelemetry's API only, never its SDK.
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


# ---------------------------------------------------------------- failures
class surviving:
    """A block of telemetry that must not fail the program: what it raises is logged once, as by `say_once`.

    >>> with surviving("counting"):
    ...     raise ValueError
    """

    __slots__ = ("_silent", "_what")

    def __init__(self, what: str, *, silent: bool = False) -> None:
        self._what, self._silent = what, silent

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, stack: object) -> bool:
        if error is None or not is_fault(error):
            return False
        say_once(self._what, error, silent=self._silent)
        return True


# ---------------------------------------------------------------- settings
def changed(layer: str, settings: S, changes: Mapping[str, Any]) -> S:
    """A layer's settings (a dataclass) with changes. Raises ConfigError for an unknown setting."""
    known = [field.name for field in fields(settings)]
    for name in changes:
        if name not in known:
            raise ConfigError(f"{layer} has no option {name!r}; it has: {', '.join(known)}.{suggest(name, known)}")
    return replace(settings, **changes)


# ---------------------------------------------------------------- contexts and providers
def _reader_of_context() -> Callable[[], Context]:
    """A faster `get_current`: the `get` method of OpenTelemetry's context variable, which is taken from a token."""
    token = otel_context.attach(otel_context.get_current())
    otel_context.detach(token)
    # other context implementations have other tokens
    variable: ContextVar[Context] | None = getattr(token, "var", None)
    return otel_context.get_current if variable is None else variable.get


current_context: Callable[[], Context] = _reader_of_context()
"""Returns OpenTelemetry's current context, fast enough for each store operation."""


def suppressed(context: Context | None = None) -> bool:
    """Is instrumentation suppressed in this context, as by OpenTelemetry while an exporter works?

    Then pocket_plug makes no telemetry: an exporter that writes to a traced store would otherwise export its own spans for ever.
    """
    context = current_context() if context is None else context
    # an empty context, as outside of runs and requests, isn't searched; the second key is for older instrumentations
    return bool(context) and bool(context.get(_SUPPRESS_INSTRUMENTATION_KEY) or context.get("suppress_instrumentation"))


@contextmanager
def silenced() -> Generator[None]:
    """Suppress instrumentation within the block."""
    token = otel_context.attach(otel_context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        yield
    finally:
        otel_context.detach(token)


class _AskingApi(dict[str, Any]):
    """Replaces a module's globals if the private name is missing: calls the API for each lookup."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__()
        self._ask = ask

    def __missing__(self, name: str) -> object:
        return self._ask()


def globals_of(module: ModuleType, name: str, ask: Callable[[], object]) -> dict[str, Any]:
    """The globals of a module of OpenTelemetry, whose private `name` is the global provider, or None until one is set.

    Stores live longer than providers, so each operation looks up the current one. If none is set, a call of the API takes fifty
    times as long, since it reads the environment each time.
    """
    names = vars(module)
    return names if name in names else _AskingApi(ask)


def loaded(ask: Callable[[], P], stand_in: Q, variable: str) -> P | Q:
    """The provider that the API returns, by a call that loads the one named by `variable`. If that fails, log it once and return
    `stand_in`.

    Such variables are set for all programs of a machine, and not each has the provider installed.
    """
    with surviving(f"loading the provider that {variable} names"):
        return ask()
    return stand_in


# ---------------------------------------------------------------- names
@cache
def own_version() -> str:
    """pocket_plug's version, for the instrumentation scopes."""
    try:
        return version("pocket-plug")
    except PackageNotFoundError:  # run from a source tree that isn't installed
        return ""


def system_of(backend: Backend) -> str:
    """The `db.system.name` of a backend: its `system`, or else its class's name in lower case.

    >>> from pocket_plug.store.memory import Memory
    >>> system_of(Memory())
    'memory'
    """
    return backend.system or type(backend).__name__.removesuffix("Backend").lower()


def server_of(backend: Backend) -> dict[str, str | int]:
    """`server.address` and `server.port` of a backend's server; empty if it has none.

    >>> from pocket_plug.store.memory import Memory
    >>> server_of(Memory())
    {}
    """
    if backend.address is None:
        return {}
    host, port = backend.address
    return {"server.address": host} if port is None else {"server.address": host, "server.port": port}
