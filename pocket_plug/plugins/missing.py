"""Why a layer, backend or executor is missing: its plugin isn't used, or is one of ours that isn't installed."""

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
    """The end of a message: why the plugin isn't used, or how to install it; "" for a name that we don't know.

    >>> why_missing("backend", "redis", [])
    '; do: pip install pocket-plug-redis'
    """
    distribution = OFFERED_BY[kind].get(name)
    for each in plugins:
        is_meant = each.name == name or (distribution is not None and each.distribution == distribution)
        if is_meant and each.status != "active":
            return f": plugin {each} {each.verdict}"
    return "" if distribution is None else f"; do: pip install {distribution}"
