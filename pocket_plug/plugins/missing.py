"""Why there is no part of some name, where that is known: its plugin isn't in use, or is one of our own that isn't installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pocket_plug.hookspecs import PluginRecord

Kind = Literal["backend", "layer", "executor", "settings"]

OFFERED_BY: Mapping[Kind, Mapping[str, str]] = {
    "backend": {
        "postgres": "pocket-plug-postgres",
        "postgresql": "pocket-plug-postgres",
        "redis": "pocket-plug-redis",
        "rediss": "pocket-plug-redis",
        "unix": "pocket-plug-redis",
    },
    "layer": {"compress": "pocket-plug-compress", "encryption": "pocket-plug-encryption"},
    "executor": {"dask": "pocket-plug-dask", "dask+local": "pocket-plug-dask", "dask+tls": "pocket-plug-dask"},
    "settings": {"openinference": "pocket-plug-openinference"},
}
"""What our plugins in other distributions offer: schemes, layers and tables of settings, by kind."""


def why_missing(kind: Kind, name: str, plugins: Iterable[PluginRecord]) -> str:
    """What became of the plugin, or how to install it, as the end of a message; "" where it is none that we know.

    >>> why_missing("backend", "redis", [])
    '; do: pip install pocket-plug-redis'
    """
    distribution = OFFERED_BY[kind].get(name)
    for each in plugins:
        is_meant = each.name == name or (distribution is not None and each.distribution == distribution)
        if is_meant and each.status != "active":
            return f": plugin {each} {each.verdict}"
    return "" if distribution is None else f"; do: pip install {distribution}"
