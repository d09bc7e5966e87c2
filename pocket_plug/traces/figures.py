"""The statistics in a row of a table: counts, retries and durations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Figures", "figures", "quantile", "seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Statistics of `count` spans or runs. Durations in nanoseconds; `total` is their sum. Each subclass defines its retries."""

    count: int
    retries: int
    p50: int
    p95: int
    max: int
    total: int


def figures(took: Iterable[int], retries: int) -> dict[str, int]:
    """The fields of Figures, from the durations, of which there must be at least one.

    >>> Figures(**figures([5, 1, 3], retries=0))
    Figures(count=3, retries=0, p50=3, p95=5, max=5, total=9)
    """
    ordered = sorted(took)
    return {
        "count": len(ordered),
        "retries": retries,
        "p50": quantile(ordered, 0.5),
        "p95": quantile(ordered, 0.95),
        "max": ordered[-1],
        "total": sum(ordered),
    }


def quantile(ordered: Sequence[int], share: float) -> int:
    """The quantile of sorted values, of which there must be at least one. `share`: 0.5 is the median.

    >>> quantile([1, 2, 3, 4, 5], 0.5), quantile([7], 0.95)
    (3, 7)
    """
    return ordered[round(share * (len(ordered) - 1))]


def seconds(nanoseconds: int, plain: bool = False) -> str:
    """A duration for people; `plain` uses ASCII only.

    >>> seconds(850_000), seconds(12_400_000), seconds(999_960_000), seconds(242_000_000_000)
    ('850 µs', '12.4 ms', '1.00 s', '4 min 2 s')
    """
    if nanoseconds < 999_500:
        return f"{nanoseconds / 1e3:.0f} {'us' if plain else 'µs'}"
    if nanoseconds < 999_950_000:
        return f"{nanoseconds / 1e6:.1f} ms"
    if nanoseconds < 60_000_000_000:
        return f"{nanoseconds / 1e9:.2f} s"
    return f"{nanoseconds // 60_000_000_000} min {nanoseconds // 1_000_000_000 % 60} s"
