"""A copy of an open SQLite file: as of one moment, while others continue to write; after an error there is no copy.

The source is read in one transaction. Without it, SQLite's backup would start again at each write of another connection.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.files import make_file

from .statements import VERSION

PAGES = 500
"""How many pages are copied in one step, between two calls of `copied`: about 2 MB."""

Copied = Callable[[int, int], object]
"""Called after each step with the number of pages that it has copied, and the total."""


def copy_whole(source: sqlite3.Connection, file: Path, copied: Copied) -> int:
    """Copy the source into a new file; returns its size in bytes.

    It is written under a temporary name, synced, and then renamed. Raises ConfigError if there is a file of that name already, or
    no such folder, and sqlite3.Error or OSError if it can't be written; then no file is left.
    """
    _refuse_existing(file)
    aside = file.with_name(f"{file.name}.{secrets.token_hex(4)}~")
    try:
        make_file(aside)
        _copy(source, aside, copied)
        with aside.open("rb+") as written:
            os.fsync(written.fileno())
        size = aside.stat().st_size
        _give_name(aside, file)
    finally:
        for left in (aside, *_companions(aside)):
            left.unlink(missing_ok=True)
    return size


def _copy(source: sqlite3.Connection, aside: Path, copied: Copied) -> None:
    before = 0

    def count(_status: int, remaining: int, total: int) -> None:
        nonlocal before
        done = total - remaining
        copied(done - before, total)
        before = done

    with closing(sqlite3.Connection(aside, isolation_level=None)) as target:
        target.execute("PRAGMA synchronous = OFF")  # the whole is synced at the end
        source.execute("BEGIN")
        source.execute(VERSION).fetchall()  # the first read fixes the moment
        try:
            source.backup(target, pages=PAGES, progress=count)
        finally:
            source.execute("ROLLBACK")


def _companions(file: Path) -> list[Path]:
    """The files that SQLite takes for a part of this file, because of their names."""
    return [file.with_name(f"{file.name}{suffix}") for suffix in ("-wal", "-shm", "-journal")]


def _refuse_existing(file: Path) -> None:
    if file.is_dir():  # as "" is
        raise ConfigError(f"{file} is a folder; name a new file, such as {file / 'backup.db'}")
    if not file.parent.is_dir():
        raise ConfigError(f"there is no folder {file.parent}; create it, or name a file in another folder")
    for there in (file, *_companions(file)):
        if os.path.lexists(there):
            why = "" if there == file else f", which SQLite would take for a part of {file}"
            raise ConfigError(f"{there} exists{why}; nothing is overwritten: give another name, or remove it")


def _give_name(aside: Path, file: Path) -> None:
    """Rename it, and sync the folder. Raises ConfigError if there is a file of that name by now."""
    try:
        os.link(aside, file)
    except FileExistsError:
        _refuse_existing(file)
    except (OSError, AttributeError, NotImplementedError):  # a file system, or a Python, without hard links
        _refuse_existing(file)
        aside.rename(file)
    with suppress(OSError):  # Windows opens no folder
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
