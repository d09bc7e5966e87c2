"""What may be shown of options: of a secret one nothing, but for the environment variable that it comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, field
from typing import Any, cast

from .redaction import MASK, public

VARIABLE = re.compile(r"\$\{([^}]*)\}")
"""How a configuration names an environment variable."""


def variables(written: object) -> dict[str, str]:
    """The values of the environment variables that a piece of the configuration names, each with how it is written there."""
    names = VARIABLE.findall(str(written))
    return {os.environ[name]: f"${{{name}}}" for name in names if os.environ.get(name)}


def _texts_of(value: object) -> Iterator[str]:
    """The texts in which a message may quote a secret."""
    if isinstance(value, str | bytes):
        yield value if isinstance(value, str) else value.decode("latin-1")
    elif isinstance(value, list | tuple):
        for item in cast("list[object]", value):
            yield from _texts_of(item)


def secret(*, default: Any = MISSING) -> Any:
    """Declare an option of a layer whose value is never shown: neither by `repr`, nor in errors, nor on the command line.

    >>> from pocket_plug.store.layer import Layer
    >>> class Sealing(Layer):
    ...     key: str = secret()
    >>> Sealing(key="hunter2")
    Sealing(key='***')
    """
    return field(default=default, metadata={_SECRET: True})


_SECRET = object()  # what marks such a field


def is_secret(option: Field[Any]) -> bool:
    """Was an option declared by `secret()`?"""
    return _SECRET in option.metadata


def hidden_of(options: Iterable[Field[Any]], values: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, str]:
    """The texts in the values of options that an error must not quote, each with its replacement.

    `written` are the options that come from the environment, as the configuration writes them.
    """
    secrets = (text for option in options if is_secret(option) for text in _texts_of(values.get(option.name)))
    return {**dict.fromkeys(secrets, MASK), **variables(written)}


def shown(option: Field[Any], written: Any) -> Any:
    """The value of an option as it may be shown; of a secret one only the variable that it comes from."""
    if is_secret(option):
        return written if isinstance(written, str) and VARIABLE.fullmatch(written) else MASK
    return public(written)
