"""What a layer's options may be: its fields, each of its annotated type. Python and TOML are held to the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from functools import cache, wraps
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pocket_plug.errors import ConfigError, is_fault, suggest
from pocket_plug.primitives.redaction import found, is_secret, shown, summary
from pocket_plug.primitives.typechecks import checker, type_name, union_members


def fitted(kind: Any, option: str, given: Any) -> tuple[Any, str | None]:
    """The value for an option, a list as a tuple where that is due; and what it must be, in words, where it isn't.

    A hint that can't be resolved is unchecked. A truth value is no number.
    """
    hint = _hints(kind).get(option, Any)
    for value in (given, tuple(given)) if given.__class__ is list else (given,):
        if any(_fits(value, part) for part in union_members(hint)):
            return value, None
    return given, _in_words(hint)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is tuple and get_args(hint)[1:] == (...,):  # every item; beartype looks at one of them
        items: list[Any] = [*value] if isinstance(value, tuple) else [value]
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in items)
    return checker(hint)(value) and (value.__class__ is not bool or hint in (bool, Any, object))


def checks_options(init: Callable[..., None], kind: type[Any]) -> Callable[..., None]:
    """The `__init__` of a layer's class, which raises ConfigError for an option of another type than its field's."""

    @wraps(init)
    def __init__(self: Any, *none: Any, **options: Any) -> None:
        fields = {each.name: each for each in dataclasses.fields(kind)}
        for option, given in options.items():
            if option not in fields:
                raise TypeError(f"{kind.__name__} has no option {option!r}; it has: {', '.join(fields) or 'none'}."
                                f"{suggest(option, fields)}")  # fmt: skip
            options[option], wanted = fitted(kind, option, given)
            if wanted is not None:
                raise ConfigError(
                    f"{kind.name}'s option {option!r} must be {wanted}, not {_given(fields[option], given)}"
                )
        init(self, *none, **options)

    return __init__


def _given(option: dataclasses.Field[Any], given: Any) -> str:
    """As TOML's refusals have it: a text as it is, unless it is a secret."""
    if is_secret(option):
        return summary(given)
    return f"{shown(option, given)!r:.80}" if isinstance(given, str) else found(given)


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except BaseException as error:  # a hint that can't be resolved here is unchecked, never an error
        if not is_fault(error):
            raise
        return {}


def _in_words(hint: Any) -> str:
    parts = union_members(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    return " | ".join("None" if part is type(None) else type_name(part) for part in parts)
