"""What an `update`, a `pop` and a `touch` do to an entry that they have read: each a step, tried until nobody is in between."""

from __future__ import annotations

from collections.abc import Callable
from types import CoroutineType
from typing import Any

from pocket_plug.errors import MissingKeyError, ValueTypeError
from pocket_plug.primitives.values import Hint, Value

from .backend import Change, Delete, Entry, Put
from .contention import Step
from .keys import Key
from .transaction import private


def replacing(
    name: str,
    key: Any,
    fn: Callable[[Value], Value],
    default: Value,
    has_default: bool = True,
    declared: Hint = None,
    until: float | None = None,
) -> Step:
    """The step for `fn` at the name of a key; `declared` is the type of a typed view, `until` a new deadline.

    The step raises MissingKeyError where there is neither an entry nor a default, and ValueTypeError for a value of another
    type than the Key's.
    """

    def step(entry: Entry | None) -> tuple[Change, Any]:
        if entry is not None:
            given, deadline = entry.value, entry.expires_at
            old = private(given)
            if key.__class__ is Key:
                old = key.checked(old)
        elif not has_default:
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
            return Put(name, new, until), new
        return Put(name, new, deadline, None, entry is None), new

    return step


def taking(
    name: str, key: Any, default: Value, has_default: bool, checked: Callable[[Value], Value] | None = None
) -> Step:
    """The step that removes an entry and gives its value; it raises MissingKeyError where there is neither it nor a default.

    What raises as it is `checked`, by default by the Key, is not removed.
    """
    if checked is None and key.__class__ is Key:
        checked = key.checked

    def step(entry: Entry | None) -> tuple[Change | None, Any]:
        if entry is not None:
            return Delete(name), entry.value if checked is None else checked(entry.value)
        if not has_default:
            raise MissingKeyError(f"nothing at {str(key)!r} to pop; give a default")
        return None, default

    return step


def touching(name: str, deadline: float | None) -> Step:
    """The step that gives an entry another deadline, and nothing else: was it there?"""

    def step(entry: Entry | None) -> tuple[Change | None, Any]:
        return (None, False) if entry is None else (Put(name, entry.value, deadline), True)

    return step


def _refuse_unless_meant(key: Any, old: Value, declared: Hint) -> None:
    from pocket_plug.primitives.typechecks import checker

    if declared is None or not checker(declared)(None):
        raise ValueTypeError(
            f"update of {str(key)!r}: the function gave None where a {old.__class__.__name__} was. Does it "
            "change its argument and return nothing? It must return the new value. Where None is meant, "
            "use a Key whose type has None"
        )
