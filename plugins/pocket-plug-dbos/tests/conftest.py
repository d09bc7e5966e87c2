"""A PostgreSQL server for the tests that need one, and whether DBOS can use this machine's SQLite."""

import sqlite3
import sys

import pytest

from pocket_plug.testing.fixtures import postgres_server as postgres_server


@pytest.fixture(scope="session")
def has_sqlite() -> bool:
    """With Python 3.12 and later DBOS calls `unixepoch('subsec')`, which SQLite has since 3.42."""
    return sys.version_info < (3, 12) or sqlite3.sqlite_version_info >= (3, 42)
