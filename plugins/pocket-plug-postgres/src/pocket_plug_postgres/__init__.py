"""The backend `postgresql://…`: entries in PostgreSQL, which any number of programs on any number of machines may
share.

Importing this module loads no driver: the first use of such a URL, or of the class `PostgreSQL`, does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pocket_plug import hookimpl
from pocket_plug.store.backend import Backend

if TYPE_CHECKING:
    from .backend import PostgreSQL as PostgreSQL

__all__ = ["PostgreSQL", "pocket_backends"]


def __getattr__(name: str) -> object:
    if name != "PostgreSQL":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .backend import PostgreSQL

    return PostgreSQL


def _from_url(url: str) -> Backend:
    from .backend import PostgreSQL

    return PostgreSQL.from_url(url)


@hookimpl
def pocket_backends() -> Mapping[str, Callable[[str], Backend]]:
    """Register the URL schemes `postgresql` and `postgres`."""
    return {"postgresql": _from_url, "postgres": _from_url}
