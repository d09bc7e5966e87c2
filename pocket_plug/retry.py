"""When a failed `exec` is tried again, and after what pause."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from .errors import ConfigError
from .ttl import TTL, seconds

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often, and after what pause, a failed `exec` is tried again.

    The pause before attempt n+1 is `delay * backoff ** (n - 1)` seconds, at most `max_delay`, with a random part of up
    to `jitter` of it added. `on` are the errors worth it; an exception group counts if all its leaves do.

    >>> Retry(delay=0.5, backoff=2).pause(3)
    2.0
    """

    attempts: int = 3
    delay: TTL = 0.0
    backoff: float = 1.0
    max_delay: float = 60.0
    jitter: float = 0.0
    on: tuple[type[BaseException], ...] = (Exception,)
    _random: Random | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.backoff < 1 or self.max_delay < 0 or not 0 <= self.jitter <= 1:
            raise ConfigError(f"{self}: attempts and backoff are 1 or more, max_delay 0 or more, jitter 0 to 1")
        object.__setattr__(self, "delay", 0.0 if self.delay == 0 else seconds(self.delay))
        if self.jitter and self._random is None:
            from random import Random  # its own: a user's random.seed() is not for this

            object.__setattr__(self, "_random", Random())  # noqa: S311 - a pause is no secret

    def covers(self, error: BaseException) -> bool:
        """Is this error one to try again after?"""
        if isinstance(error, BaseExceptionGroup):
            return all(self.covers(leaf) for leaf in cast("BaseExceptionGroup[BaseException]", error).exceptions)
        return isinstance(error, self.on)

    def pause(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt`."""
        assert isinstance(self.delay, float)
        try:
            pause = min(self.delay * self.backoff ** (attempt - 1), self.max_delay)
        except OverflowError:
            pause = self.max_delay if self.delay else 0.0
        return pause if self._random is None else pause * (1 + self.jitter * self._random.random())
