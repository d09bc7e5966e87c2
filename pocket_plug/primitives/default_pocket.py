"""Finds the default Pocket for stores and graphs, which must not import its package: `pocket_plug` registers the function."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_find: Callable[[], Any]


def use_default_pocket(find: Callable[[], Any]) -> None:
    """From now on the default Pocket is what `find` returns; it is called each time that the Pocket is needed."""
    global _find
    _find = find


_searches = False


@contextmanager
def searching_config() -> Generator[None]:
    """Within the block, a default Pocket that is created looks for its configuration from the current folder upwards.

    The command line does so. A library must not: a program would do something else in another folder.
    """
    global _searches
    former, _searches = _searches, True
    try:
        yield
    finally:
        _searches = former


def searches_config() -> bool:
    """Does a default Pocket that is created look for its configuration?"""
    return _searches


_building: ContextVar[Any] = ContextVar("pocket_plug.building", default=None)


@contextmanager
def building_by(pocket: object) -> Generator[None]:
    """Within the block, names and URLs in a stack are those of this Pocket: it builds a store of its own configuration."""
    token = _building.set(pocket)
    try:
        yield
    finally:
        _building.reset(token)


def find_building_pocket() -> Any:
    """The Pocket that builds a store, or else the default Pocket."""
    return _building.get() or find_default_pocket()


def find_default_pocket() -> Any:
    """The default Pocket. Callers annotate what they get of it."""
    return _find()
