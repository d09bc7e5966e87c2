"""What the URL of an executor says: its address, and its options, checked."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import parse_qsl

from pocket_plug.errors import ConfigError, suggest
from pocket_plug.primitives.redaction import public_url


def parted(url: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """What stands between `scheme://` and `?`, and the options after it. Raises ConfigError for one that isn't known.

    >>> parted("processes://?workers=4", ["workers"])
    ('', {'workers': '4'})
    """
    address, _, query = url.partition("?")
    options: dict[str, str] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            there = f"it has: {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{public_url(url)!r}: there is no option {name!r}; {there}.{suggest(name, known)}")
        if name in options:
            raise ConfigError(f"{public_url(url)!r} has the option {name!r} twice; give it once")
        options[name] = text
    return address.partition("://")[2], options


def number(url: str, options: dict[str, str], name: str) -> int | None:
    """A whole number from 1 up, if the option is given. Raises ConfigError."""
    text = options.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ConfigError(f"{public_url(url)!r}: {name} is {text!r:.80}; give a whole number from 1 up")
    return int(text)
