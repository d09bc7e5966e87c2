"""The names of entries in errors: those that users gave them, which are not always the keys that a backend has."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from .lists import place_of


def shown_name(name: str) -> str:
    """The name that a user knows an entry by: an item of an append-only list by the list's key.

    >>> shown_name("pocket:+log:c0ffee00:0000000007"), shown_name("a")
    ('log', 'a')
    """
    place = place_of(name)
    return str(name) if place is None else place.owner


def in_short(names: Collection[str]) -> str:
    """The first three names, and the number of the others.

    >>> in_short(["a", "b", "c", "d"])
    "'a', 'b', 'c' and 1 more"
    """
    shown = dict.fromkeys(map(shown_name, names))
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return ", ".join(map(repr, islice(shown, 3))) + more
