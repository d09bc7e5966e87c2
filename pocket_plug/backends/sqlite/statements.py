"""The tables of the SQLite backend, and every statement that it runs on them. SQL, and nothing else."""

from __future__ import annotations

APPLICATION_ID = 0x504B5047
SCHEMA_VERSION = 1

# A file whose CREATE TABLE has another text is refused, so another text needs another version.
# A rowid table: WITHOUT ROWID saves nothing on small values and doubles the time from half a kilobyte on, since its
# tree moves all but the smallest rows to overflow pages.
SCHEMA = (
    """CREATE TABLE entries
       (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL, expires_at REAL)""",
    "CREATE INDEX entries_by_expiry ON entries (expires_at) WHERE expires_at IS NOT NULL",
    "CREATE TABLE counter (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL)",
    "INSERT INTO counter VALUES (1, 0)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
# Has an effect on a file without tables only, outside of a transaction. Then pages that deletes have freed can be cut off.
SHRINKS = "PRAGMA auto_vacuum = INCREMENTAL"
SHRINK = "PRAGMA incremental_vacuum({})"  # a pragma takes no `?`
FREE = "SELECT auto_vacuum, freelist_count, page_size FROM pragma_auto_vacuum, pragma_freelist_count, pragma_page_size"
WHOSE = """SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)
            FROM pragma_application_id, pragma_user_version"""
# A forged schema may have other types there.
MADE = """SELECT CAST(name AS TEXT), coalesce(CAST(sql AS TEXT), '') FROM sqlite_master
           WHERE type IN ('table', 'view', 'trigger') AND lower(tbl_name) IN ('entries', 'counter')"""
READ = "SELECT value, version, expires_at FROM entries WHERE key = ?"
# Returns the key as well. Twice `?` and never `?1`, which Python 3.12.1 takes for a name and warns about.
READ_MANY = "SELECT ?, value, version, expires_at FROM entries WHERE key = ?"
SEEN = "SELECT version, expires_at FROM entries WHERE key = ?"
# The upper bound has two parts. No byte of UTF-8 is FF, so a prefix followed by FF is above all names with that prefix.
SCAN = """SELECT key, expires_at FROM entries WHERE key >= ? AND key < ? || CAST(? AS TEXT)
            ORDER BY key LIMIT ?"""
SCAN_BACK = SCAN.replace("ORDER BY key", "ORDER BY key DESC")
READ_PAGE = SCAN.replace("key, expires_at", "key, value, version, expires_at")
READ_PAGE_BACK = SCAN_BACK.replace("key, expires_at", "key, value, version, expires_at")
VERSION = "SELECT version FROM counter"
HIGHEST = "SELECT max(version) FROM entries"
COUNT = "UPDATE counter SET version = ?"
PUT = """INSERT INTO entries VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE
          SET value = excluded.value, version = excluded.version, expires_at = excluded.expires_at"""
PUT_IF_NEWER = f"{PUT} WHERE excluded.version > entries.version"
DELETE = "DELETE FROM entries WHERE key = ?"
DELETE_IF_NOT_NEWER = f"{DELETE} AND version <= ?"
BY_INDEX = "SELECT key FROM entries INDEXED BY sqlite_autoindex_entries_1 WHERE key >= ''"
BY_TABLE = "SELECT key FROM entries NOT INDEXED"
STRAY = {
    f"{BY_TABLE} EXCEPT {BY_INDEX}": "is in the table but not in its index, so reads don't find it",
    f"{BY_INDEX} EXCEPT {BY_TABLE}": "is in the index but not in its table, so reads find another entry or none",
}
# The expiry time is in the index and in the table: an entry is removed only if both say so, since one may be damaged.
REAP = (
    "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE expires_at <= ? LIMIT ?) AND +expires_at <= ?"
)
