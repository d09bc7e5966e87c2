"""A backend that keeps a store in Redis or Valkey. This module has only the hook: the driver is imported when a URL needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pocket_plug import Backend, hookimpl

if TYPE_CHECKING:
    from .backend import Redis as Redis


def _backend(url: str) -> Backend:
    from .backend import Redis

    return Redis.from_url(url)


@hookimpl
def pocket_backends() -> Mapping[str, Callable[[str], Backend]]:
    """The schemes `redis`, `rediss` (TLS) and `unix` (a socket in the file system), as in redis-py."""
    return dict.fromkeys(("redis", "rediss", "unix"), _backend)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "Redis":
            from .backend import Redis

            return Redis
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
