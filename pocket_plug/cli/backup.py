"""`store backup`: a copy of a store's file while it is in use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from pocket_plug.store.backend import Copyable

from .output import echo, progress
from .target import Target, path_of


@click.command
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def backup(target: Target, file: Path) -> None:
    """Copy a SQLite store into a new FILE.

    The copy is a snapshot, and other programs can read and write meanwhile. FILE is created completely or not at all, and an
    existing file is never overwritten. The copy is a store itself: --url sqlite:///FILE. To restore it, stop all programs
    that use the old store, remove its file and those with -wal and -shm, and back up FILE to its place.

    For a store on a server, use the server's own tools; the error message names them.
    """
    backend = target.backend()
    if not isinstance(backend, Copyable):
        tools = f": {backend.backed_up_by}" if backend.backed_up_by else ""
        raise click.UsageError(
            f"{target} is not a file that can be copied; back it up by its own tools{tools}. To get its entries as JSON Lines, "
            "which any store can import, use pocket-plug store export --all"
        )
    source = path_of(backend)
    if source is not None and Path(f"{source.resolve()}-owner").exists():
        echo(
            f"a store with mode 'behind' uses {source}, or did: writes that wait in its process aren't in the backup",
            err=True,
        )

    async def copied() -> int:
        async with target.opened_backend() as opened:
            assert isinstance(opened, Copyable)
            with ExitStack() as showing:
                return opened.backup(file, _bar(showing))

    size = asyncio.run(copied())
    echo(f"backed up {target} to {file}: {size:,} bytes", err=True)


def _bar(showing: ExitStack) -> Callable[[int, int], None]:
    """A progress bar that begins when the total is known."""
    advance: Callable[[int], None] | None = None

    def copied(pages: int, total: int) -> None:
        nonlocal advance
        advance = advance or showing.enter_context(progress("copying", total))
        advance(pages)

    return copied
