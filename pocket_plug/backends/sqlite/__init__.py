"""The backend in one SQLite file, which any number of threads, loops and processes may share.

`backend` is made of parts that each have one task and their own state; each uses only those below it:

    writer                        does the writes: the queue, its thread, turns
    transactions                  one transaction: requests, versions, expectations
    connections                   the readers and the one that writes; forks
    opened, schema, records       the file's place and its lock; its tables; rows as entries
    backup, files, refusals       copies; the state of files; SQLite's errors as ours
    statements                    all SQL
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pocket_plug.hookspecs import hookimpl
from pocket_plug.store.backend import Backend

from .backend import Durability as Durability
from .backend import SQLite as SQLite

__all__ = ["Durability", "SQLite", "pocket_backends"]


@hookimpl
def pocket_backends() -> Mapping[str, Callable[[str], Backend]]:
    """The scheme `sqlite`."""
    return {"sqlite": SQLite.from_url}
