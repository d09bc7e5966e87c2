"""Which ended runs are removed, as options of configurations and callers. It doesn't load the modules of durable runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from pocket_plug.errors import ConfigError, suggest
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.redaction import summary

Prunable = Literal["finished", "cancelled", "failed"]
PRUNABLE: tuple[Prunable, ...] = get_args(Prunable)
"""The states of runs that may be pruned. A failed run can still be retried, so it is removed only if the caller says "failed"."""
BY_DEFAULT: tuple[Prunable, ...] = ("finished", "cancelled")


@dataclass(frozen=True, slots=True)
class Retention:
    """Which runs are removed: those in these states that ended `older` seconds ago or earlier, except the newest `keep` of each
    graph and state.

    The newest are those that began last. None means no such limit; at least one limit is given.
    """

    older: float | None = None
    keep: int | None = None
    states: tuple[str, ...] = BY_DEFAULT
    graph: str | None = None

    @classmethod
    def of(
        cls,
        *,
        older: Duration | None = None,
        keep: int | None = None,
        states: Collection[str] = BY_DEFAULT,
        graph: str | None = None,
        where: str = "",
    ) -> Retention:
        """Check options as users write them. Raises ConfigError; its message begins with `where`, the options' place.

        >>> Retention.of(older="30d", keep=100)
        Retention(older=2592000.0, keep=100, states=('finished', 'cancelled'), graph=None)
        """
        at = f"{where}: " if where else ""
        if older is None and keep is None:
            raise ConfigError(f"{at}neither older nor keep is given; give one of them, or both")
        if keep is not None and (keep.__class__ is not int or keep < 0):
            raise ConfigError(f"{at}keep must be a number of runs, 0 or more, not {summary(keep)}")
        for state in states:
            if state not in PRUNABLE:
                allowed = ", ".join(PRUNABLE)
                raise ConfigError(
                    f"{at}runs of the state {state!r:.80} can't be pruned, only those that have ended: {allowed}."
                    f"{suggest(state, PRUNABLE)}"
                )
        wait = None if older is None else seconds(older, f"{at}older", or_zero=True)
        return cls(wait, keep, tuple(dict.fromkeys(states)), graph)
