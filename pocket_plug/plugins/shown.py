"""The table of plugins in a notebook, as `pocket-plug plugins` prints it."""

from __future__ import annotations

from collections.abc import Iterable

from pocket_plug.hookspecs import PluginRecord


class Plugins(tuple[PluginRecord, ...]):
    """Records of plugins. A notebook shows them as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return plugin_table(self)


def plugin_table(records: Iterable[PluginRecord]) -> str:
    """An HTML table for a notebook, with a row for each record."""
    from pocket_plug.primitives.markup import table

    rows = [
        (
            record.name,
            record.status,
            f"{record.distribution or record.origin} {record.version or ''}".rstrip(),
            ", ".join(hook.removeprefix("pocket_") for hook in record.hooks),
            record.reason,
        )
        for record in records
    ]
    return table("plugins", ("name", "status", "from", "hooks", "reason"), rows)
