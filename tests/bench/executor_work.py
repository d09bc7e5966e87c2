"""The functions that `executors.py` executes elsewhere: workers import this module."""

from __future__ import annotations

import time

from pocket_plug import node


@node
def nothing(n: int) -> int:
    """Takes no time: what is measured is only the way there and back."""
    return n


@node
def millisecond(n: int) -> int:
    """A millisecond of work."""
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
    return n


def nothing_plain(n: int) -> int:
    """For Dask's own map over items."""
    return nothing(n)


def millisecond_plain(n: int) -> int:
    """For Dask's own map over items."""
    return millisecond(n)


def of_chunk(name: str, chunk: list[int]) -> list[int]:
    """The same for Dask's own map, which gets chunks."""
    work = {"nothing": nothing, "millisecond": millisecond}[name]
    return [work(n) for n in chunk]
