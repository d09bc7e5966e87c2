"""`Retry`: how often a failed `exec` is tried again, after which errors, and after what pause."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

from pocket_plug.errors import ConfigError, PhaseError
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.redaction import found
from pocket_plug.primitives.signatures import fault_of_question


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often, and after what pause, a failed `exec` is retried.

    The pause before attempt n+1 is `delay * backoff ** (n - 1)` seconds, at most `max_delay`, with a random part of up
    to `jitter` of it added. `on` says which errors are retried: exception classes, or a function of the error that
    returns True or False. An exception group is retried if all its leaves are.

    >>> Retry(delay="500ms", backoff=2).pause(3)
    2.0
    >>> Retry(on=lambda error: error.status == 429).attempts
    3

    Raises ConfigError for an invalid option. If the function of `on` raises, or returns something else, the node fails with
    PhaseError.
    """

    attempts: int = 3
    delay: Duration = 0.0
    backoff: float = 1.0
    max_delay: Duration | None = None
    """None: a minute, or `delay` if that is longer."""
    jitter: float = 0.0
    on: type[BaseException] | Collection[type[BaseException]] | Callable[[Any], bool] = (Exception,)
    _random: Random | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.attempts.__class__ is not int or self.attempts < 1:
            raise ConfigError(f"Retry: attempts can't be {found(self.attempts)}; give a whole number from 1 up")
        _check_number("backoff", self.backoff, 1, sys.float_info.max, "1 up")
        _check_number("jitter", self.jitter, 0, 1, "0 to 1")
        object.__setattr__(self, "delay", seconds(self.delay, "Retry: delay", or_zero=True))
        if self.max_delay is not None:
            object.__setattr__(self, "max_delay", seconds(self.max_delay, "Retry: max_delay", or_zero=True))
        object.__setattr__(self, "on", _errors(self.on))
        if self.jitter and self._random is None:
            # a generator of its own, since a user's random.seed() must not fix the pauses
            object.__setattr__(self, "_random", Random())  # noqa: S311 - a pause is no secret

    def covers(self, error: BaseException) -> bool:
        """Is `exec` tried again after this error? Raises PhaseError if the function of `on` raises or returns no bool."""
        if isinstance(error, BaseExceptionGroup):
            return all(self.covers(leaf) for leaf in cast("BaseExceptionGroup[BaseException]", error).exceptions)
        on: Any = self.on
        if isinstance(on, tuple):
            return isinstance(error, cast("tuple[type[BaseException], ...]", on))
        title = f"Retry: on, called with {type(error).__name__},"
        try:
            answer = on(error)
        except Exception as broken:
            raise PhaseError(f"{title} raised {type(broken).__name__}; it must return True or False") from broken
        if answer.__class__ is not bool:
            raise PhaseError(f"{title} returned {type(answer).__name__}; it must return True or False")
        return bool(answer)

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the failed attempt with this number, from 1."""
        assert isinstance(self.delay, float)
        longest = max(self.delay, 60.0) if self.max_delay is None else self.max_delay
        assert isinstance(longest, float)
        try:
            pause = min(self.delay * self.backoff ** (attempt - 1), longest)
        except OverflowError:
            pause = longest if self.delay else 0.0
        return pause if self._random is None else pause * (1 + self.jitter * self._random.random())


def _check_number(option: str, given: Any, least: float, most: float, allowed: str) -> None:
    if given.__class__ not in (int, float) or not least <= given <= most:
        raise ConfigError(f"Retry: {option} can't be {found(given)}; give a number from {allowed}")


def _errors(on: Any) -> tuple[type[BaseException], ...] | Callable[[Any], bool]:
    """Check `on`: return its classes as a tuple, or its function. Raises ConfigError for anything else."""
    if callable(on) and not isinstance(on, type):
        if fault := fault_of_question(on):
            raise ConfigError(f"Retry: on {fault}; give a function of the error that returns True or False")
        return cast("Callable[[Any], bool]", on)
    several = isinstance(on, list | tuple | set | frozenset)
    classes: tuple[Any, ...] = tuple(cast("Collection[Any]", on)) if several else (on,)
    for each in classes:
        if not isinstance(each, type) or not issubclass(each, BaseException):
            raise ConfigError(
                f"Retry: on can't be {found(cast('object', each))}; give exception classes, such as (OSError, "
                "TimeoutError), or a function of the error that returns True or False"
            )
        if not (issubclass(each, Exception) or issubclass(Exception, each)):
            raise ConfigError(
                f"Retry: {each.__name__} is never tried again, since it is not a subclass of Exception; leave it out of on"
            )
    if not classes:
        raise ConfigError("Retry: on is empty, so nothing would be tried again; leave out the retry")
    return classes
