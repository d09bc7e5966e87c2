"""Which ended runs are removed, as options of configurations and callers. It doesn't load the modules of durable runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from pocket_plug.errors import ConfigError, suggest
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.redaction import found

Prunable = Literal["finished", "cancelled", "failed"]
PRUNABLE: tuple[Prunable, ...] = get_args(Prunable)
"""The states of runs that may be pruned. A failed run can still be retried, so it is removed only if the caller says "failed"."""
BY_DEFAULT: tuple[Prunable, ...] = ("finished", "cancelled")


@dataclass(frozen=True, slots=True)
class Retention:
    """Which runs are removed: those in these states that ended `older` ago or earlier, except the newest `keep` of each graph and
    state.

    The newest are those that began last. None means no such limit; at least one limit is given. Raises ConfigError for invalid
    values.

    >>> Retention(older="30d", keep=100)
    Retention(older='30d', keep=100, states=('finished', 'cancelled'), graph=None)
    """

    older: Duration | None = None
    keep: int | None = None
    states: Collection[str] = BY_DEFAULT
    """One state, or several."""
    graph: str | None = None

    def __post_init__(self) -> None:
        if self.older is None and self.keep is None:
            raise ConfigError("neither older nor keep is given; give one of them, or both")
        if self.older is not None:
            seconds(self.older, "older", or_zero=True)
        if self.keep is not None and (self.keep.__class__ is not int or self.keep < 0):
            raise ConfigError(f"keep must be a number of runs, 0 or more, not {found(self.keep)}")
        states = (self.states,) if isinstance(self.states, str) else tuple(self.states)
        for state in states:
            if state not in PRUNABLE:
                allowed = ", ".join(PRUNABLE)
                raise ConfigError(
                    f"runs of the state {state!r:.80} can't be pruned, only those that have ended: {allowed}."
                    f"{suggest(state, PRUNABLE)}"
                )
        object.__setattr__(self, "states", tuple(dict.fromkeys(states)))
