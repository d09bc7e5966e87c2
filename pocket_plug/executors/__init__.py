"""The executors that pocket_plug brings along: `threads` and `processes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pocket_plug.hookspecs import hookimpl
from pocket_plug.remote import Executor

from .processes import Processes as Processes
from .threads import Threads as Threads

__all__ = ["Processes", "Threads", "pocket_executors"]


@hookimpl
def pocket_executors() -> Mapping[str, Callable[[str], Executor]]:
    """`threads://` and `processes://`."""
    return {"threads": Threads.from_url, "processes": Processes.from_url}
