"""What telemetry may say: of keys their template, of errors their type and a capped text, of a backend its name.

And how a layer of telemetry says that it failed itself: once, through the `pocket_plug` logger, never by raising.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import context as otel_context
from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage] # the SDK and contrib import it too: it has no other name
    Context,
)

from pocket_plug.errors import ConfigError, PocketError, is_fault, suggest
from pocket_plug.primitives.terminal import escaped
from pocket_plug.store.backend import Backend
from pocket_plug.store.keys import declared_templates

if TYPE_CHECKING:
    from contextvars import ContextVar

    from _typeshed import DataclassInstance

    S = TypeVar("S", bound=DataclassInstance)
else:
    S = TypeVar("S")

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""The semantic conventions that the names of attributes and metrics follow."""

MAX_BYTES = 4096
"""Of one attribute. A single oversized one makes some backends refuse the whole batch it is in."""

MAX_FRAMES = 16
"""Of a stack trace: the innermost ones."""

_MAX_NAMES = 4096

_logger = logging.getLogger("pocket_plug")


# ---------------------------------------------------------------- keys
class _Templates:
    """The declared templates as patterns, and which of them a name is, remembered for the names seen last."""

    def __init__(self) -> None:
        self.count = len(declared_templates)
        self.names: dict[str, str] = {}
        self._by_start: dict[str, list[tuple[re.Pattern[str], str]]] = {}
        # the longest first, and of one length the most literal
        for template in sorted(declared_templates, key=lambda t: (-t.count(":"), t.count("{"))):
            start = template.partition(":")[0]
            if "{" in start:
                continue  # it would be found in every name
            pattern = "[^:]+".join(map(re.escape, re.split(r"\{\w*\}", template)))
            self._by_start.setdefault(start, []).append((re.compile(f"{pattern}(?::|\\Z)"), template))

    def find(self, name: str) -> str:
        """A key within scopes is the templates of each, joined; what follows the last declared one is left out."""
        found: list[str] = []
        position = 0
        while position < len(name):
            start = name[position:].partition(":")[0]
            for pattern, template in self._by_start.get(start, ()):
                if match := pattern.match(name, position):
                    found.append(template)
                    position = match.end()
                    break
            else:
                break
        if len(self.names) >= _MAX_NAMES:
            self.names.clear()
        answer = self.names[name] = capped(":".join(found))
        return answer


_templates = _Templates()


def template_of(name: str) -> str:
    """The declared template of a raw key, that of the scope around it, or "" where neither was declared.

    >>> from pocket_plug.store.keys import Key
    >>> TENANT, INVOICE = Key("tenant:{}"), Key("invoice:{}")
    >>> template_of("tenant:acme:invoice:17"), template_of("tenant:acme:secret"), template_of("secret")
    ('tenant:{}:invoice:{}', 'tenant:{}', '')
    """
    global _templates
    if _templates.count != len(declared_templates):
        _templates = _Templates()
    templates = _templates
    found = templates.names.get(name)
    return templates.find(name) if found is None else found


# ---------------------------------------------------------------- texts and errors
def capped(text: str) -> str:
    """`text` as any exporter can send it: at most 4 KiB of valid UTF-8."""
    if len(text) <= MAX_BYTES and text.isascii():
        return text
    return text.encode("utf-8", "replace")[:MAX_BYTES].decode("utf-8", "ignore")


def capped_all(texts: Iterable[str]) -> list[str]:
    """As many of the texts as one attribute has room for: 4 KiB together."""
    found: list[str] = []
    room = MAX_BYTES
    for text in texts:
        text = capped(text)
        room -= len(text.encode())
        if room < 0:
            break
        found.append(text)
    return found


def error_type(error: BaseException) -> str:
    """The `error.type` of an exception: its class's full name.

    >>> error_type(ValueError("x"))
    'ValueError'
    """
    kind = type(error)
    return capped(kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}")


def error_text(error: BaseException) -> str:
    """Its message, capped, whatever its `__str__` does."""
    return _text_of(error, capped)


def describe(error: BaseException) -> str:
    """An exception in one line that may go to a terminal, whatever its `__str__` does."""
    text = _text_of(error, escaped)
    return text if isinstance(error, PocketError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def _text_of(error: BaseException, treat: Callable[[str], str]) -> str:
    try:
        return treat(str(error))
    except BaseException as failed:  # a user's exception may do anything when asked for its text
        if not is_fault(failed):
            raise
        return "(its text can't be had)"


def stack_of(error: BaseException, message: Callable[[BaseException], str | None]) -> str:
    """The innermost frames and what it was caused by. Reads no source file: that would cost five times as much.

    `message` gives what may be said of an exception besides its type, or None.
    """
    lines = ["Traceback (most recent call last):", *_frames(error.__traceback__), _headline(error, message)]
    cause = _cause(error)
    while cause is not None and len(lines) < 2 * MAX_FRAMES:
        lines.append(f"caused by {_headline(cause, message)}")
        cause = _cause(cause)
    return capped("\n".join(lines))


def _cause(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


def _headline(error: BaseException, message: Callable[[BaseException], str | None]) -> str:
    text = message(error)
    return error_type(error) if text is None else f"{error_type(error)}: {text[:512]}"


def _frames(trace: TracebackType | None) -> list[str]:
    frames: list[tuple[str, int | None, str]] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append((code.co_filename, trace.tb_lineno, code.co_qualname))
        trace = trace.tb_next
    return [f'  File "{file}", line {line}, in {name}' for file, line, name in frames[-MAX_FRAMES:]]


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


# ---------------------------------------------------------------- parts
@cache
def own_version() -> str:
    """pocket_plug's version, for the instrumentation scopes."""
    try:
        return version("pocket-plug")
    except PackageNotFoundError:  # run from a source tree that isn't installed
        return ""


def system_of(backend: Backend) -> str:
    """The `db.system.name` of a backend: its class's name in lower case.

    >>> from pocket_plug.store.memory import Memory
    >>> system_of(Memory())
    'memory'
    """
    return type(backend).__name__.removesuffix("Backend").lower()


# ---------------------------------------------------------------- failures of telemetry's own
def log_failure(level: int, what: str, error: BaseException | None) -> None:
    """Say that something of the user's failed and that the program goes on, with the stack and without the message.

    A message may hold what nobody should read in a log, so only level debug has it.
    """
    stack = "" if error is None else f". {stack_of(error, lambda _: None)}"
    _logger.log(level, "%s%s", what, stack)
    if error is not None:
        _logger.debug("%s", what, exc_info=error)


_said: set[tuple[str, str]] = set()


def say_once(what: str, error: BaseException, *, silent: bool = False) -> None:
    """Say that a part of telemetry failed, the first time it does so in this way; `silent` about the message.

    Never raises.
    """
    kind = (what, error_type(error))
    if kind not in _said:
        _said.add(kind)
        text = kind[1] if silent else f"{kind[1]}: {escaped(error_text(error))}"
        _logger.warning("%s failed: %s. The program goes on without; said once", what, text)
