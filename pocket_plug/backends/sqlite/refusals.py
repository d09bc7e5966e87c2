"""SQLite's errors as exceptions of ours, which name the file and the way out."""

from __future__ import annotations

import sqlite3

from pocket_plug.errors import StoreBusyError, StoreError

REFUSALS = (sqlite3.Error, UnicodeDecodeError)
"""What the sqlite3 module raises; the second if SQLite's message quotes a damaged schema."""

_WAYS_OUT = {
    sqlite3.SQLITE_FULL: "the disk is full, and nothing of the write was stored; free some space and try again",
    sqlite3.SQLITE_READONLY: "the file can't be written; check the permissions of it and its folder",
    sqlite3.SQLITE_CANTOPEN: "the file can't be opened; check its path, and the permissions of it and its folder. SQLite "
    "writes into the folder even to read: copy a file first that is on a read-only medium",
    sqlite3.SQLITE_IOERR: "the disk reports an error; check it, its free space, and the limits on file size, and try again",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore a backup, or try `.recover` of the sqlite3 shell",
    sqlite3.SQLITE_TOOBIG: "an entry is larger than pocket_plug allows; remove it (pocket-plug store rm)",
    sqlite3.SQLITE_NOTADB: "this is not an SQLite file; give pocket_plug a file of its own",
}


def explained(error: Exception, path: str, timeout: float) -> Exception:
    """An error of SQLite with the file at `path`, as our own exception; any other error as it is.

    `timeout`: how many seconds the caller has waited if the file is busy.
    """
    if not isinstance(error, REFUSALS):
        return error
    if is_busy(error):
        return StoreBusyError(
            f"{path}: another connection has been writing for longer than the timeout of {timeout:g} s; try again, or wait "
            "longer (timeout=…)"
        )
    way_out = _WAYS_OUT.get(_code(error), "SQLite reports an error")
    refusal = StoreError(f"{path}: {way_out} ({type(error).__name__}: {error})")
    refusal.loggable = f"{path}: {way_out}"
    refusal.__cause__ = error
    return refusal


def is_busy(error: Exception) -> bool:
    """Has another connection locked the file?"""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_read_only(error: BaseException | None) -> bool:
    """Is the file read-only for this process?"""
    return _code(error) == sqlite3.SQLITE_READONLY


def _code(error: BaseException | None) -> int:
    if isinstance(error, UnicodeDecodeError):
        return sqlite3.SQLITE_CORRUPT
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
