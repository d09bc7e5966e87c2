"""The steps of `update`, `pop` and `touch`: what each does with the entry that was read. A step is tried until nobody writes
in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import Any

from pocket_plug.errors import MissingKeyError, ValueTypeError
from pocket_plug.primitives.lists import ItemList, ListHead
from pocket_plug.primitives.values import Hint, Value

from .backend import Change, Delete, Entry, Put
from .base import NO_DEFAULT
from .contention import Step
from .keys import Key
from .transaction import ATOMS, private


def replaced(
    name: str,
    key: Any,
    fn: Callable[[Value], Value],
    default: Value,
    declared: Hint,
    until: float | None,
    entry: Entry | None,
) -> tuple[Sequence[Change], Any]:
    """The step that calls `fn`; `declared` is the type of a typed view, `until` a new expiry time.

    Raises MissingKeyError if there is neither an entry nor a default, and ValueTypeError for a value of another
    type than the Key's. Callers make the step by `partial`: a closure over so many variables would take twice as long.
    """
    if entry is not None:
        old = given = entry.value
        deadline = entry.expires_at
        if given.__class__ not in ATOMS:
            if given.__class__ is ListHead:
                raise no_single_value(key, given)
            old = private(given)
        if key.__class__ is Key:
            old = key.checked(old)
    elif default is NO_DEFAULT:
        raise MissingKeyError(f"nothing at {str(key)!r} to update; give a default")
    else:
        given, deadline = default, None
        old = private(given)
    new = fn(old)
    if new.__class__ is CoroutineType:
        new.close()
        raise ValueTypeError(
            f"update of {str(key)!r}: the function is `async def`; write `def`, and await what it needs "
            "before the update"
        )
    if new is None and old is not given:  # a copy was made of it, so it can be changed in place
        _refuse_unless_meant(key, old, key.type if key.__class__ is Key else declared)
    if key.__class__ is Key:
        new = key.checked(new)
    if until is not None:
        return (Put(name, new, until),), new
    return (Put(name, new, deadline, None, entry is None),), new


def taking(name: str, key: Any, default: Value, checked: Callable[[Value], Value] | None = None) -> Step:
    """The step that removes an entry and returns its value; raises MissingKeyError if there is neither that nor a default.

    If `checked`, by default the Key's check, raises for the value, the entry is not removed.
    """
    if checked is None and key.__class__ is Key:
        checked = key.checked

    def step(entry: Entry | None) -> tuple[Sequence[Change], Any]:
        if entry is not None:
            if entry.value.__class__ is ListHead:
                raise no_single_value(key, entry.value)
            return (Delete(name),), entry.value if checked is None else checked(entry.value)
        if default is NO_DEFAULT:
            raise MissingKeyError(f"nothing at {str(key)!r} to pop; give a default")
        return (), default

    return step


def touching(name: str, deadline: float | None) -> Step:
    """The step that changes only the expiry time of an entry; its answer is whether there was one."""

    def step(entry: Entry | None) -> tuple[Sequence[Change], Any]:
        return ((), False) if entry is None else ((Put(name, entry.value, deadline),), True)

    return step


def no_single_value(key: Any, head: ListHead) -> ValueTypeError:
    """The error for a caller that wants a single value where there is an append-only list."""
    return ValueTypeError(
        f"{str(key)!r} is an append-only list of {head.length:,} items, not a single value; read it by tail(key, n) or "
        "each_item(key), remove it by delete(key)"
    )


def single_value(key: Any, entry: Entry) -> Value:
    """The value of an entry, checked by the Key. Raises ValueTypeError where it is a list."""
    if entry.value.__class__ is ListHead:
        raise no_single_value(key, entry.value)
    return key.checked(entry.value) if key.__class__ is Key else entry.value


def checked_item(key: Key[Any], item: Value) -> Value:
    """An item of a list; raises ValueTypeError where the Key declares another type, or no list."""
    (item,) = key.checked([item])
    return item


def checked_items(key: Any, items: list[Value]) -> list[Value]:
    """The items of a list, each checked by the Key, which declares the type of a whole list."""
    return [checked_item(key, item) for item in items] if key.__class__ is Key and key.type is not None else items


def shown_value(entry: Entry) -> Value:
    """The value that a listing shows for an entry."""
    return ItemList(entry.value.length) if entry.value.__class__ is ListHead else entry.value


def _refuse_unless_meant(key: Any, old: Value, declared: Hint) -> None:
    from pocket_plug.primitives.typechecks import checker

    if declared is None or not checker(declared)(None):
        raise ValueTypeError(
            f"update of {str(key)!r}: the function returned None in place of a {old.__class__.__name__}. Does it "
            "change its argument and return nothing? It must return the new value. If None is meant, "
            "use a Key whose type allows None"
        )
