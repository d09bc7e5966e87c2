"""Checks, where the class of a backend, a layer or a store is defined, that the operations which it overrides will be called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from inspect import iscoroutinefunction, isfunction
from typing import Any
from warnings import warn

from pocket_plug.primitives.signatures import misfit, signature_of

_USES: Mapping[str, str] = {
    "get": "read",
    "get_many": "read",
    "set": "write",
    "set_many": "write",
    "delete": "write",
    "delete_many": "write",
}
"""Operations of a store, and the operation of layers that each uses."""


def refuse_bypassed(cls: type[Any], base: type[Any]) -> None:
    """Raise TypeError if a class overrides `read_many`, but not the `read` of the base."""
    if "read_many" in cls.__dict__ and cls.read is base.read:
        raise TypeError(f"{cls.__name__} overrides read_many without read: single gets would bypass it")


def refuse_uncalled(cls: type[Any], base: type[Any]) -> None:
    """Raise TypeError if a layer's class has an operation of stores, in place of the one that layers have for it."""
    for name, used in _USES.items():
        if iscoroutinefunction(cls.__dict__.get(name)) and getattr(cls, used) is getattr(base, used):
            raise TypeError(
                f"{cls.__name__}.{name} would never be called: a layer takes part in `{name}` by `{used}`; override that"
            )


def refuse_bypassed_store(cls: type[Any], view: type[Any]) -> None:
    """Raise TypeError if the subclass of a store overrides an operation: nodes and scopes call that of the stack."""
    for name in cls.__dict__:
        if not name.startswith("_") and hasattr(view, name):
            raise TypeError(
                f"{cls.__name__}.{name} would not be called by nodes, scopes, transactions and `sync`: they use the stack "
                "of the store. To change or watch every operation, write a Layer, and give it in layers=[…]"
            )


def warn_of_misspelt(cls: type[Any], base: type[Any]) -> None:
    """Warn of methods of a layer's class that are probably misspelt operations, since they are never called."""
    for name, method in cls.__dict__.items():
        if name.startswith("_") or hasattr(base, name) or not isfunction(method):
            continue
        if (meant := _operation_meant(name, method, cls, base)) is not None:
            used = f", in which a layer takes part by {_USES[meant]!r}" if meant in _USES else ""
            warn(
                f"{cls.__name__}.{name} is no operation of layers, so no store calls it. Did you mean {meant!r}{used}? "
                f"If it is a helper of yours, name it _{name}",
                RuntimeWarning,
                3,  # where the class is defined
            )


def _operation_meant(name: str, method: Callable[..., object], cls: type[Any], base: type[Any]) -> str | None:
    """The operation that a method probably means: it is spelt almost so, can be called so, and the class doesn't override it."""
    for operation in (*dir(base), *_USES):
        own: Any = getattr(base, _USES.get(operation, operation))
        if operation.startswith("_") or not isfunction(own) or getattr(cls, own.__name__) is not own:
            continue
        if name.lower() not in _slips(operation) or iscoroutinefunction(method) != iscoroutinefunction(own):
            continue
        given = 2 if operation == "set" else 1
        if operation not in _USES:
            given = sum(each.kind is each.POSITIONAL_OR_KEYWORD for each in signature_of(own).parameters.values()) - 1
        if misfit(method, 1 + given) is None:
            return operation
    return None


@cache
def _slips(operation: str) -> frozenset[str]:
    """The ways to misspell it: a letter is missing or doubled, or two are swapped, but not at the beginning of a word.

    Other similar names, such as `ready`, `span` or `read_any`, are other words, as are those of two letters, such as `on`.
    """
    slips = {operation}
    for at, letter in enumerate(operation):
        before, rest = operation[:at], operation[at + 1 :]
        if before[-1:] not in ("", "_"):
            slips |= {before + rest, before + letter + letter + rest, before + rest[:1] + letter + rest[1:]}
    return frozenset(slip for slip in slips if len(slip) > 2)


def check_scan(cls: type[Any]) -> None:
    """Raise TypeError if the class's `scan` has no parameters for pages."""
    try:
        taken = signature_of(cls.scan).parameters
    except (TypeError, ValueError):  # it has no signature
        return
    lacking = [name for name in ("after", "reverse", "limit") if name not in taken]
    if lacking and not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        raise TypeError(
            f"{cls.__name__}.scan doesn't take {', '.join(lacking)}; declare it as "
            '`scan(self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None)`. A layer '
            "passes them to its inner one; `Backend.scan` says what they mean to a backend"
        )
