"""The executor `dask://`: `exec` runs on the workers of a Dask cluster. This module has only the hook: the rest is imported when
a URL needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pocket_plug import hookimpl

if TYPE_CHECKING:
    from .executor import DaskExecutor as DaskExecutor


def _executor(url: str) -> DaskExecutor:
    from .executor import DaskExecutor

    return DaskExecutor.from_url(url)


@hookimpl
def pocket_executors() -> Mapping[str, Callable[[str], DaskExecutor]]:
    """`dask://`, `dask+tls://` and `dask+local://`."""
    return dict.fromkeys(("dask", "dask+tls", "dask+local"), _executor)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "DaskExecutor":
            from .executor import DaskExecutor

            return DaskExecutor
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
