"""Durations: the forms in which users may write them, and their seconds."""

from __future__ import annotations

import math
import re
import sys
from datetime import timedelta
from functools import lru_cache

from pocket_plug.errors import ConfigError

from .redaction import summary

Duration = float | timedelta | str
"""Seconds, a timedelta, or text such as "500ms", "5m", "1h30m"."""

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_TEXT = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit}(?![a-z]))?" for unit in _UNITS), re.ASCII)


@lru_cache
def _of_text(text: str) -> float:
    """The seconds, or NaN. A program has few such texts, and uses one again with each `set`."""
    found = _TEXT.fullmatch(text) if text else None
    if found is None:
        return math.nan
    return sum(float(number or 0) * unit for number, unit in zip(found.groups(), _UNITS.values(), strict=True))


def seconds(ttl: Duration, what: str = "ttl", *, or_zero: bool = False) -> float:
    """The seconds of a duration; raises ConfigError, naming `what` it is, unless they are a finite number above 0.

    With `or_zero`, 0 and "0s" are valid too.

    >>> seconds(2), seconds("500ms"), seconds("1h30m"), seconds(timedelta(days=1))
    (2.0, 0.5, 5400.0, 86400.0)
    """
    match ttl:
        case bool():
            result = math.nan
        case int() | float():
            result = ttl
        case timedelta():
            result = ttl.total_seconds()
        case str():
            result = _of_text(ttl)
        case _:
            result = math.nan
    if not 0 < result <= sys.float_info.max and not (or_zero and result == 0):
        least = "seconds from 0 up" if or_zero else "seconds above 0"
        found = f"{ttl!r:.80}" if isinstance(ttl, int | float | str | timedelta) else summary(ttl)
        # Numbers and texts may be from a file or a command line, which have no timedelta.
        if not isinstance(ttl, int | float | str):
            least += ", a timedelta"
        raise ConfigError(
            f"{what} can't be {found}; give {least}, or text made of d, h, m, s and ms, such as '500ms', '5m' or '1h30m'"
        )
    return float(result)
