"""What a notebook shows of plugins: the table that `pocket-plug plugins` prints."""

from __future__ import annotations

from collections.abc import Iterable

from pocket_plug.hookspecs import PluginRecord


class Plugins(tuple[PluginRecord, ...]):
    """Records of plugins, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return plugin_table(self)


def plugin_table(records: Iterable[PluginRecord]) -> str:
    """HTML for a notebook: a row for each."""
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
