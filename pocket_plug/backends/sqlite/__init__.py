"""The backend in one SQLite file, which any number of threads, loops and processes may share.

`backend` is made of parts that each have one task and their own state; each uses only those below it:

    writer                        does the writes: the queue, its thread, turns
    transactions                  one transaction: requests, versions, expectations
    connections                   the readers and the one that writes; forks
    opened, schema, records       the file's place and its lock; its tables; rows as entries
    backup, files, refusals       copies; the state of files; SQLite's errors as ours
    statements                    the tables, and all SQL on them

This module has only the hook: the rest is imported when a URL needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pocket_plug.hookspecs import hookimpl
from pocket_plug.store.backend import Backend

if TYPE_CHECKING:
    from .backend import Durability as Durability
    from .backend import SQLite as SQLite

__all__ = ["Durability", "SQLite", "pocket_backends"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    from . import backend

    return getattr(backend, name)


def _from_url(url: str) -> Backend:
    from .backend import SQLite

    return SQLite.from_url(url)


@hookimpl
def pocket_backends() -> Mapping[str, Callable[[str], Backend]]:
    """The scheme `sqlite`."""
    return {"sqlite": _from_url}
