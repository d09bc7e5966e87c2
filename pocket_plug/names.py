"""Which names a store can have: those of keys, of scopes, and what names may begin with."""

from __future__ import annotations

from .errors import KeyNameError
from .redaction import summary

RESERVED = "pocket:"
"""The prefix of pocket_plug's own records: hidden from `keys`, refused to users."""


def check_name(name: object) -> str:
    """The name itself, if it can be used as a key or scope.

    >>> check_name("user:123")
    'user:123'
    """
    if not isinstance(name, str):
        raise KeyNameError(f"a key is a string or a Key, not {summary(name)}")
    if not name:
        raise KeyNameError("a key must not be empty")
    if name.startswith(RESERVED):
        raise KeyNameError(f"{name!r:.80}: the prefix {RESERVED!r} is reserved; choose another one")
    return _check_text(name)


def _check_text(name: str) -> str:
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise KeyNameError(f"{name!r:.80} has a lone surrogate, which no store can write") from None
    return name


def check_prefix(prefix: object) -> str:
    """The prefix itself, if names can begin with it, reserved ones too: an empty one is right."""
    if not isinstance(prefix, str):
        raise KeyNameError(f"a prefix of names is a string, not {summary(prefix)}")
    return _check_text(prefix)
