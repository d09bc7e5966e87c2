"""Checks the names of keys and scopes, and prefixes of names; and makes a default name from a class's name."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

from pocket_plug.errors import KeyNameError

from .redaction import summary

if TYPE_CHECKING:
    from datetime import date
    from uuid import UUID

    NamePart = str | int | UUID | date | Enum
    """What may be a part of a name."""
else:
    NamePart = object  # uuid is not cheap to import; this way tools can still evaluate the annotations

RESERVED = "pocket:"
"""The prefix of pocket_plug's own records: hidden from `keys`, refused to users."""

ITEMS = f"{RESERVED}+"
"""The prefix of the items of append-only lists: hidden too, but users' data, so a store's bounds count them."""

OWN, PAST_OWN = f"{RESERVED}{chr(ord('+') + 1)}", RESERVED[:-1] + chr(ord(RESERVED[-1]) + 1)
"""`OWN <= name < PAST_OWN` is true for names of pocket_plug's own records, which are not users' data.
`RESERVED <= name < PAST_OWN` is true for all that begin with RESERVED, and cheaper than `startswith`."""


MAX_NAME_BYTES = 1024
"""The most bytes in UTF-8 of a name that is written, with its scope: every backend can index such names."""

MAX_KEY_BYTES = 2 * MAX_NAME_BYTES
"""The most bytes in UTF-8 of a key that a backend gets: pocket_plug's own keys contain users' names and more."""


def snake_case(name: str) -> str:
    """The default name of a node or layer: the name of its class in snake case.

    >>> snake_case("RateLimit"), snake_case("HTTPCache"), snake_case("Level2Cache")
    ('rate_limit', 'http_cache', 'level2_cache')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def escaped(text: str, marks: str) -> str:
    """The text with these marks, and `%`, escaped.

    >>> escaped("a/b%", "/")
    'a%2Fb%25'
    """
    for mark in "%" + marks:
        if mark in text:  # seldom
            text = text.replace(mark, f"%{ord(mark):02X}")
    return text


def check_name(name: object) -> str:
    """The name itself, if it can be used as a key or scope.

    >>> check_name("user:123")
    'user:123'
    """
    return check_length(check_readable(name))


def check_scope(name: str) -> str:
    """The name itself, from the store's root on, if a scope may be called so: pocket_plug's own records are not below it."""
    if f"{name}:".startswith(RESERVED):
        raise KeyNameError(
            f"the scope {name!r} is reserved; choose another one. If its name may be any text, such as a tenant's, make it by a "
            "Key, Key('{}')(tenant), or by join_name(tenant)"
        )
    return name


def check_readable(name: object) -> str:
    """The same for a key that is only read or removed; it may be longer, since older versions wrote longer ones."""
    if not isinstance(name, str):
        raise KeyNameError(f"a key is a string or a Key, not {summary(name)}")
    if not name:
        raise KeyNameError("the name of a key or a scope must not be empty")
    if name.startswith(RESERVED):
        raise KeyNameError(
            f"{name!r:.80}: the prefix {RESERVED!r} is reserved; choose another one. A part that may be any text, such as a "
            "tenant's name, goes into a placeholder of a Key, or is joined by join_name"
        )
    return _check_text(name)


def is_unicode(text: str) -> bool:
    """Can it be written, to a store or a network? Not with a lone surrogate.

    >>> is_unicode("é"), is_unicode("\\ud800")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_text(name: str) -> str:
    if not name.isascii() and not is_unicode(name):
        raise KeyNameError(f"{name!r:.80} has a lone surrogate, which no store can write")
    return name


def check_length(name: str, what: str = "a key, its scope included,", longest: int = MAX_NAME_BYTES) -> str:
    """The name itself, if it has at most `longest` bytes in UTF-8; `what` names it in the error."""
    if len(name) > longest // 4 and (found := len(name.encode())) > longest:
        raise KeyNameError(
            f"{name!r:.80} has {found:,} bytes in UTF-8; {what} may have {longest:,}: give a shorter one"
        )
    return name


def check_prefix(prefix: object, what: str = "") -> str:
    """The prefix itself, if names can begin with it, also reserved names; it may be empty. `what` is another name for it."""
    if not isinstance(prefix, str):
        raise KeyNameError(
            f"{what} must be a string, not {summary(prefix)}"
            if what
            else f"a prefix of names must be a string, not {summary(prefix)}; for all names below a Key, take the scope: "
            "scope(KEY(…)).delete_prefix(''), .keys(), .items()"
        )
    return _check_text(prefix)


def part_of_name(value: object, template: str | None, *, may_be_empty: bool = False) -> str:
    """A value as a part of a name, to fill a placeholder of `template` or to be joined (None): text with escaped separators."""
    text = str(value) if value.__class__ in (str, int) else _text_of(value, template)
    if not text and not may_be_empty:
        raise KeyNameError(
            f"Key({template!r}) can't be filled with an empty value; a placeholder that may be empty is written {{?}}"
        )
    return text.replace("%", "%25").replace(":", "%3A")


def _text_of(value: object, template: str | None) -> str:
    while isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool) or not (isinstance(value, str | int) or _is_date_or_uuid(value)):
        refused = "join_name can't join" if template is None else f"Key({template!r}) can't be filled with"
        raise KeyNameError(f"{refused} {summary(value)}; give a str, int, UUID, date or Enum")
    return str(value)


def _is_date_or_uuid(value: object) -> bool:
    from datetime import date  # seldom needed, and not cheap to import
    from uuid import UUID

    return isinstance(value, date | UUID)
