"""The executors that pocket_plug brings along: `threads` and `processes`, each imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pocket_plug.hookspecs import hookimpl

if TYPE_CHECKING:
    from pocket_plug.remote import Executor

    from .processes import Processes as Processes
    from .threads import Threads as Threads

__all__ = ["Processes", "Threads", "pocket_executors"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{name.lower()}"), name)


def _threads(url: str) -> Executor:
    from .threads import Threads

    return Threads.from_url(url)


def _processes(url: str) -> Executor:
    from .processes import Processes

    return Processes.from_url(url)


@hookimpl
def pocket_executors() -> Mapping[str, Callable[[str], Executor]]:
    """`threads://` and `processes://`."""
    return {"threads": _threads, "processes": _processes}
