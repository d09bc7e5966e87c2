"""The table of plugins, for `pocket-plug plugins` and for notebooks."""

from __future__ import annotations

from collections.abc import Iterable

from pocket_plug.hookspecs import PluginRecord

COLUMNS = ("name", "status", "from", "hooks", "reason")


class Plugins(tuple[PluginRecord, ...]):
    """Records of plugins. A notebook shows them as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return plugin_table(self)


def plugin_table(records: Iterable[PluginRecord]) -> str:
    """An HTML table for a notebook."""
    from pocket_plug.primitives.markup import table

    return table("plugins", COLUMNS, plugin_rows(records))


def plugin_rows(records: Iterable[PluginRecord]) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for each record."""
    return [
        (
            record.name,
            record.status,
            f"{record.distribution or record.origin} {record.version or ''}".rstrip(),
            ", ".join(hook.removeprefix("pocket_") for hook in record.hooks),
            record.reason,
        )
        for record in records
    ]
