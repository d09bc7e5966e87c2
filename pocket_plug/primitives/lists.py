"""How an append-only list is stored: a head at its key, and each item as an entry of its own, under a name made of the key.

Items never change, so a head describes a whole list as of one moment: its generation, and its first and next number. A list
that was removed and started again has another generation, so its items have other names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple, final

from .names import ITEMS

_GENERATION, _NUMBER = 8, 10
_SUFFIX = len(":") + _GENERATION + len(":") + _NUMBER


class ListHead(NamedTuple):
    """The value at the key of an append-only list."""

    generation: str
    first: int
    """The number of the first item. Trimming a list doesn't change the numbers of its items."""
    next: int
    """The number that the next item will have."""

    @property
    def length(self) -> int:
        """How many items the list has."""
        return self.next - self.first


@final
@dataclass(frozen=True, slots=True)
class ItemList:
    """The value of an append-only list in `store.items()`: its items are read by `each_item` and `tail`."""

    length: int
    """How many items it has."""


class ItemPlace(NamedTuple):
    """The parts of an item's name."""

    owner: str
    """The key of the list."""
    generation: str
    number: int


def new_head() -> ListHead:
    """The head of an empty list, with a new generation."""
    return ListHead(os.urandom(_GENERATION // 2).hex(), 0, 0)


def items_of(key: str, generation: str) -> str:
    """The prefix of the names of a list's items. A Key's name keeps its template."""
    return ITEMS + key + f":{generation}:"


def item_of(key: str, generation: str, number: int) -> str:
    """The name of an item.

    >>> item_of("log", "c0ffee00", 7)
    'pocket:+log:c0ffee00:0000000007'
    """
    return items_of(key, generation) + f"{number:0{_NUMBER}}"


def place_of(item: str) -> ItemPlace | None:
    """The place of an item, by its name; None for any other name.

    >>> place_of(item_of("log", "c0ffee00", 7))
    ItemPlace(owner='log', generation='c0ffee00', number=7)
    """
    if not item.startswith(ITEMS):
        return None
    owner, suffix = item[len(ITEMS) : -_SUFFIX], item[-_SUFFIX:]
    _, generation, number = (*suffix.split(":"), "", "")[:3]
    if not owner or not (number.isascii() and number.isdecimal()):
        return None
    place = ItemPlace(owner, generation, int(number))
    return place if item_of(*place) == item else None
