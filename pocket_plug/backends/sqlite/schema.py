"""Checks that a file is ours, creates the tables of a new one, and sets up a connection that writes."""

from __future__ import annotations

import sqlite3

from pocket_plug.errors import StoreError

from .statements import APPLICATION_ID, MADE, SCHEMA, SCHEMA_VERSION, SHRINKS, WHOSE

_OURS = {(made.split()[2], " ".join(made.split())) for made in SCHEMA if made.startswith("CREATE TABLE")}


def prepare(connection: sqlite3.Connection, path: str, power: bool) -> None:
    """Check that the file is ours, create the tables if it is new, and make the connection ready to write.

    `power`: must an acknowledged write survive a crash of the machine? Raises StoreError for a file that we can't use.
    """
    if is_new(connection, path):
        connection.execute(SHRINKS)
        connection.execute("BEGIN IMMEDIATE")
        if is_new(connection, path):  # nobody else has created them in the meantime
            for statement in SCHEMA:
                connection.execute(statement)
        connection.execute("COMMIT")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(f"{path}: SQLite can't use a write-ahead log here; put the file on a local disk")
    connection.execute(f"PRAGMA synchronous = {'FULL' if power else 'NORMAL'}")
    for name in ("fullfsync", "checkpoint_fullfsync"):  # on macOS only these reach the disk
        connection.execute(f"PRAGMA {name} = {int(power)}")
    open_logs(connection)
    connection.execute("PRAGMA busy_timeout = 0")  # only the writer thread waits, in its own way


def open_logs(connection: sqlite3.Connection) -> None:
    """Let SQLite open the log and its index, or create them, which it does at a connection's first read."""
    connection.execute("PRAGMA schema_version").fetchone()


def is_new(connection: sqlite3.Connection, path: str) -> bool:
    """Has the file no tables yet? Raises StoreError for another program's file, and for a schema that isn't ours."""
    application, schema, tables = connection.execute(WHOSE).fetchone()
    if (application, schema, tables) == (0, 0, 0):
        return True
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is the SQLite file of another program; give pocket_plug a file of its own")
    if schema != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema {schema}, but this pocket_plug knows only schema {SCHEMA_VERSION}; upgrade pocket_plug"
        )
    _check_tables(connection, path)
    return False


def _check_tables(connection: sqlite3.Connection, path: str) -> None:
    """Raise StoreError unless the tables are as we make them.

    Somebody may have made the file. A trigger could remove what was acknowledged; a view in place of a table could be endless.
    """
    found = {(name, " ".join(sql.split())) for name, sql in connection.execute(MADE)}
    if changed := sorted({name for name, _ in found ^ _OURS}):
        raise StoreError(
            f"{path}: {' and '.join(map(repr, changed))} of its schema is not as pocket_plug makes it, which has the tables "
            "'entries' and 'counter' without triggers, views in their place, or further columns; drop what was added, or restore "
            "a backup"
        )
