"""What spans show of keys, values and messages if the setting `capture` asks for it. Imported only then.

Nothing here raises, whatever the user's values and `redact` do: there is always a text, of 4 KiB at most.
"""

from __future__ import annotations

import inspect
import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any, Literal

from pocket_plug.errors import is_fault
from pocket_plug.primitives import redaction
from pocket_plug.primitives.failures import MAX_BYTES, capped, capped_all, error_text, say_once
from pocket_plug.primitives.redaction import Path, Redact

FAILED = "(redact failed)"
"""The value of an attribute for which `redact` has raised."""

MAX_DEPTH = 12
"""How deep values are read; deeper parts, as in a value that contains itself, are shown as `…`."""


class Captured:
    """What may be shown at a level above "none"."""

    def __init__(self, level: Literal["keys", "summary", "full"], redact: Redact | None) -> None:
        self.level, self.redact = level, redact
        self.messages = level != "keys"
        self.mime_type = "application/json" if level == "full" else "text/plain"

    def key(self, key: str) -> str:
        """A raw key, as plain text: OpenTelemetry drops sequences of a subclass of str in older versions."""
        return self._text(("store", "key"), str(key))

    def keys(self, keys: Iterable[str]) -> Sequence[str]:
        """Raw keys, as many as there is room for."""
        return capped_all(map(self.key, keys))

    def message(self, error: BaseException) -> str | None:
        """The message of an exception; None at a level without messages."""
        return self._text(("error", "message"), error_text(error)) if self.messages else None

    def value(self, path: Path, value: Any) -> str | None:
        """An input, an output or a stored value; None at a level without values.

        >>> Captured("summary", None).value(("node", "input"), [1, 2, 3])
        'list[3]'
        >>> Captured("full", None).value(("node", "input"), {"card": {"number": 4711}})
        '{"card": {"number": 4711}}'
        >>> def redact(path, value):
        ...     return "***" if path[-1] == "number" else value
        >>> Captured("full", redact).value(("node", "input"), {"card": {"number": 4711}})
        '{"card": {"number": "***"}}'
        """
        if self.level == "keys":
            return None
        if self.level == "summary":
            return summary(value)
        writer = _Writer(self.redact)
        try:
            writer.write(path, value, 0)
        except _Full:
            pass
        except _RedactFailed:
            return FAILED
        return capped("".join(writer.texts))

    def _text(self, path: Path, text: str) -> str:
        try:
            allowed = _redacted(self.redact, path, text)
            return capped(allowed if isinstance(allowed, str) else str(allowed))
        except BaseException as error:
            if not is_fault(error):
                raise
            return FAILED


class _RedactFailed(Exception):
    """`redact` has raised, so the attribute must not be shown."""


class _Full(Exception):
    """There is no room for more."""


def _redacted(redact: Redact | None, path: Path, value: Any) -> Any:
    if redact is None:
        return value
    try:
        return redact(path, value)
    except BaseException as error:
        if not is_fault(error):
            raise
        say_once("tracing's redact", error, silent=True)  # its message may contain the value
        raise _RedactFailed from None


_type: Any = type  # so that type checkers don't infer `type[Unknown]`


def _is_a(value: Any, kinds: Any) -> bool:
    """As `isinstance`, but by the real type: what a value returns as `__class__` doesn't count."""
    return issubclass(_type(value), kinds)


# ---------------------------------------------------------------- types and sizes
def summary(value: Any) -> str:
    """The type of a value and, where that is cheap to know, its size.

    >>> summary([1, 2, 3]), summary("abc"), summary(4711), summary(None)
    ('list[3]', 'str[3]', 'int', 'None')
    """
    try:
        # of an array or a data frame; the `shape` of other objects might be computed, or loaded
        shape: Any = getattr(value, "shape", None) if hasattr(_type(value), "__array__") else None
        if _is_a(shape, tuple) and shape:
            return capped(f"{type(value).__name__}[{', '.join(str(int(size)) for size in shape)}]")
    except BaseException as error:
        if not is_fault(error):
            raise
    size, name = redaction.length(value), "None" if value is None else type(value).__name__
    return capped(name if size is None else f"{name}[{size}]")


# ---------------------------------------------------------------- values
class _Writer:
    """Writes one value as JSON, or something similar, leaf by leaf, until there is no room left."""

    def __init__(self, redact: Redact | None) -> None:
        self.redact = redact
        self.texts: list[str] = []
        self.room = MAX_BYTES

    def put(self, text: str) -> None:
        self.texts.append(text)
        self.room -= len(text)
        if self.room < 0:
            raise _Full

    def write(self, path: Path, value: Any, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.put('"…"')
            return
        try:
            parts = _parts(value)
            if parts is None:
                self.put(_leaf(_redacted(self.redact, path, value)))
                return
            named, items = parts
            self.put("{" if named else "[")
            for position, (name, item) in enumerate(items):
                self.put((", " if position else "") + (f"{_leaf(name)}: " if named else ""))
                self.write((*path, name), item, depth + 1)
            self.put("}" if named else "]")
        except (_Full, _RedactFailed):
            raise
        except BaseException as error:  # a value may raise anything when it is read
            if not is_fault(error):
                raise
            self.put(f'"(unreadable {type(value).__name__})"')


def _parts(value: Any) -> tuple[bool, Iterable[tuple[str, Any]]] | None:
    """The parts of a value, and whether they have names; None for a leaf."""
    if _is_a(value, dict | Mapping):
        return True, ((_name(key), item) for key, item in value.items())
    if _is_a(value, tuple) and (named := getattr(_type(value), "_fields", None)):
        return True, zip(named, value, strict=False)
    names = _field_names(value)
    if names is not None:
        return True, ((name, held) for name in names if (held := _held(value, name)) is not _ABSENT)
    if _is_a(value, list | tuple | set | frozenset | deque):
        return False, ((str(index), item) for index, item in enumerate(value))
    return None


def _name(key: Any) -> str:
    return key if isinstance(key, str) else repr(key)


_ABSENT = object()


def _held(value: Any, name: str) -> Any:
    """What an object itself holds under a name, if anything. No property is called: it may do or load anything."""
    own = _own(value)
    if name in own:
        return own[name]
    found: Any = inspect.getattr_static(_type(value), name, _ABSENT)
    if isinstance(found, MemberDescriptorType):  # of a slot
        try:
            return found.__get__(value)
        except AttributeError:
            return _ABSENT
    return _ABSENT if hasattr(_type(found), "__get__") else found


def _own(value: Any) -> Mapping[str, Any]:
    try:
        own: Any = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return own if _is_a(own, dict) else {}


def _field_names(value: Any) -> Sequence[str] | None:
    """The fields of a dataclass or Struct; of any other object its own public attributes."""
    kind: Any = _type(value)
    if names := getattr(kind, "__struct_fields__", None):
        return tuple(names)
    if is_dataclass(kind):
        return [field.name for field in fields(kind)]
    if _is_a(value, Enum | BaseException | type | FunctionType | ModuleType) or hasattr(kind, "__array__"):
        return None
    return [name for name in _own(value) if not name.startswith("_")] or None


def _leaf(value: Any) -> str:
    if value is None or _is_a(value, bool | int | float):
        return json.dumps(value)
    if _is_a(value, str):
        return json.dumps(str.__getitem__(value, slice(MAX_BYTES)), ensure_ascii=False)
    return json.dumps(
        (summary(value) if _is_a(value, bytes | bytearray) else repr(value))[:MAX_BYTES], ensure_ascii=False
    )
