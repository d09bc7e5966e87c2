"""The options that the URL of a backend or an executor has after its "?", read and checked in one way, with the same errors
for every scheme."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl

from pocket_plug.errors import ConfigError, suggest
from pocket_plug.primitives.redaction import public_url

LONGEST = 1_000_000
"""Seconds: the longest time that an option may give."""

LEAST_WAIT = 0.001
"""Seconds: what an answer of a server takes at the least. With 0 no attempt at anything could succeed."""

PERCENT = (
    "its user or password has a character that separates the parts of a URL; write it percent-encoded: %2F for /, "
    "%40 for @, %3A for :, %3F for ?, %23 for #, %25 for %"
)
"""Why a URL can't be read. The parts as they were read aren't quoted: there is a piece of the password in them."""

_EXAMPLES: Mapping[type, str] = {float: "seconds, such as {}=5", int: "a whole number, such as {}=10"}


def url_options(url: str, system: str, allowed: Mapping[str, type]) -> tuple[str, dict[str, Any]]:
    """The URL without its options, and the options by name. `allowed` maps each name to its type: str, float or int.

    What an option may be is for the constructor to say, which is called from code as well. Raises ConfigError, which
    names the option that was probably meant, and no password.

    >>> url_options("sqlite:///state.db?timeout=2.5", "sqlite", {"durability": str, "timeout": float})
    ('sqlite:///state.db', {'timeout': 2.5})
    """
    address, _, query = url.partition("?")
    shown, options = public_url(url), dict[str, Any]()
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise ConfigError(f"{shown!r} has the option {name!r} twice; give it once")
        if "@" in name:
            raise ConfigError(f"{shown!r}: {PERCENT}")
        if name not in allowed:
            has = ", ".join(allowed) or "none"
            raise ConfigError(f"{shown!r}: {system} has no option {name!r}; it has: {has}.{suggest(name, allowed)}")
        kind = allowed[name]
        try:
            options[name] = kind(text)
        except ValueError:
            raise ConfigError(f"{shown!r}: {name} is {text!r}; give {_EXAMPLES[kind].format(name)}") from None
    return address, options


def one_of(system: str, name: str, value: str, allowed: Collection[str]) -> None:
    """Raise ConfigError if an option's value is none of the allowed ones."""
    if value not in allowed:
        raise ConfigError(f"{system}: {name} is {value!r}; allowed: {', '.join(allowed)}.{suggest(value, allowed)}")


def seconds(system: str, name: str, value: float, least: float = 0) -> None:
    """Raise ConfigError if an option's value is no number of seconds, or less than `least`."""
    if value.__class__ not in (int, float) or not least <= value <= LONGEST:
        raise ConfigError(f"{system}: {name} is {value!r}; give seconds, from {least:g} to {LONGEST:,}")
