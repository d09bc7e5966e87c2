"""How stores and graphs reach the default Pocket, whose package they must not import: `pocket_plug` says how to find it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_find: Callable[[], Any]


def use_default_pocket(find: Callable[[], Any]) -> None:
    """From now on the default Pocket is what `find` returns; it is called each time that the Pocket is needed."""
    global _find
    _find = find


def find_default_pocket() -> Any:
    """The default Pocket. Callers annotate it by a protocol of the methods that they use."""
    return _find()
