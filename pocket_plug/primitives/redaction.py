"""What messages and `repr` may show: of a value its type and size, of a URL all but its passwords.

A message that quotes a value carries it into logs, traces and bug reports. So it names what belongs to the program (keys,
nodes, options, plugins) and never what passes through it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

MASK = "***"
"""Shown in place of a secret."""

Path = tuple[str, ...]
Redact = Callable[[Path, Any], Any]
"""Takes the path of a value, such as `("run", "input", "card", "number")`, and the value; returns what may be shown."""

_SIZED: tuple[type[Any], ...] = (str, bytes, bytearray, list, tuple, dict, set, frozenset, deque)

URL_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
"""The beginning of a URL."""

# Up to the last "@": a password may hold one, or a "/", though it should not.
# The time is linear, since a log record may contain a very long word: no part of it is searched from several places. So a
# match without an "@" goes up to the word's end, too, and there is no "?" within a name in _NAME_TO_HIDE.
_PASSWORD = re.compile(r"(?<![\w+.-])([\w+.-]+://[^/?#@:\s]*):(?:\S*(@)|\S*)")
_WHOLE = re.compile(r"\A(\w[\w+.-]*://[^/?#@:\s]*):.*@", re.DOTALL)
"""For a text that begins with a URL: the password in this URL may have spaces, too."""
# A value goes up to the next "&": for drivers such as libpq, ";", "#" and "@" are a part of it. A name that is
# percent-encoded may be that of a password.
_NAME_TO_HIDE = r"[?&;#](?=[^=?&;#\s]*=)[^=?&;#\s]*(?:pass|pwd|secret|token|key|auth|credential|%)[^=?&;#\s]*="
_PARAMETER = re.compile(rf"({_NAME_TO_HIDE})([^&\s]*)", re.IGNORECASE)
_WHOLE_PARAMETER = re.compile(rf"({_NAME_TO_HIDE})([^&]*)", re.IGNORECASE)


def length(value: object) -> int | None:
    """The length of a text, bytes or a built-in collection; None for anything else."""
    kind = type(value)
    for sized in _SIZED:
        if issubclass(kind, sized):  # by the built-in length: a subclass may say anything, or fail
            return int(sized.__len__(value))
    return None


def summary(value: object) -> str:
    """The type of a value and, where that is known at once, its size, in words.

    >>> summary([1, 2, 3]), summary("a"), summary(b""), summary(4711), summary(None)
    ('a list of 3 items', 'a str of 1 character', 'an empty bytes', 'int', 'None')
    """
    kind, size = type(value), length(value)
    if size is None:
        return "None" if value is None else kind.__name__
    if size == 0:
        return f"an empty {kind.__name__}"
    unit = "character" if issubclass(kind, str) else "byte" if issubclass(kind, bytes | bytearray) else "item"
    article = "an" if kind.__name__[0] in "AEIOUaeiou" else "a"
    return f"{article} {kind.__name__} of {size:,} {unit}{'' if size == 1 else 's'}"


def named(value: object) -> str:
    """A value that is of a wrong type, for a message: a class by its name, anything else by its type and size.

    >>> named(dict), named({"a": 1})
    ('the class dict', 'a dict of 1 item')
    """
    return f"the class {value.__name__}" if isinstance(value, type) else summary(value)


def found(given: object) -> str:
    """An invalid value of an option, for a message: a number as it is, anything else as in `named`.

    >>> found(0), found("3"), found(int)
    ('0', 'a str of 1 character', 'the class int')
    """
    return repr(given) if given.__class__ in (int, float, bool) else named(given)


def public_url(url: str) -> str:
    """A URL, or a text with URLs in it, without passwords: neither a user's nor a parameter's.

    >>> public_url("redis://app:secret@cache:6379/0"), public_url("postgresql://db/app?user=me&password=secret")
    ('redis://app:***@cache:6379/0', 'postgresql://db/app?user=me&password=***')
    """
    parameter = _WHOLE_PARAMETER if URL_SCHEME.match(url) else _PARAMETER
    url = parameter.sub(_masked, url)
    return _PASSWORD.sub(_without_password, _WHOLE.sub(rf"\1:{MASK}@", url))


def _without_password(url: re.Match[str]) -> str:
    return f"{url[1]}:{MASK}@" if url[2] else url[0]


def _masked(parameter: re.Match[str]) -> str:
    """A parameter with the mask in place of its value; each "@" stays, since what is before it may be a user's password."""
    return parameter[1] + re.sub(r"[^@]+", MASK, parameter[2])


def public(option: Any) -> Any:
    """The value of an option as it may be shown: without the passwords of URLs, however nested."""
    if isinstance(option, str):
        return public_url(option)
    if option.__class__ in (list, tuple):
        return option.__class__(map(public, option))  # pyright: ignore[reportUnknownVariableType] - it narrows Any
    return {name: public(value) for name, value in option.items()} if option.__class__ is dict else option


def conceal(text: str, hidden: Mapping[str, str]) -> str:
    """A text from elsewhere in which each of the `hidden` is replaced by what may be shown for it, the longest first.

    >>> conceal("token 'hunter2' is no good", {"hunter2": "${TOKEN}"})
    "token '${TOKEN}' is no good"
    """
    for secret in sorted(hidden, key=len, reverse=True):
        for form in dict.fromkeys((secret, repr(secret)[1:-1], public_url(secret))):
            if form:  # whole words: a short secret may be a part of many words
                stands = hidden[secret].replace("\\", r"\\")
                text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", stands, text)
    return public_url(text)
