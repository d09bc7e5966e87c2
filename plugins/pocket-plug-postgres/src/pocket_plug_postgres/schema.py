"""What the backend does when it opens: find or make the data set, and check that the server keeps what `durability`
promises. Also the reads of `probe` and `check`."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from psycopg.errors import InsufficientPrivilege

from pocket_plug.errors import StoreError
from pocket_plug.store.backend import Clock, ProbeResult

from .link import Link
from .statements import FORGET_SLOTS, OLDEST_SERVER, SCHEMA_VERSION, TABLES, WRITE_FUNCTION

MOST_SKEW = 1.0
"""Seconds by which the server's clock may differ from ours before a warning is logged."""

REAP_SLACK = 60
"""Seconds for which an expired entry is kept, by our clock and by the server's: another client's clock may be behind."""

_MAKING = 0x706F636B65745F70  # the advisory lock for making a data set

_logger = logging.getLogger("pocket_plug")


@dataclass(frozen=True)
class DataSet:
    """A data set within a database: one schema contains all of it."""

    server: str
    """Its name in errors."""
    name: str

    @property
    def schema(self) -> str:
        """The schema's name: `pocket_plug` for the data set `main`, `pocket_plug_NAME` for the others."""
        return "pocket_plug" if self.name == "main" else f"pocket_plug_{self.name}"

    def sql(self, statement: str, **more: object) -> str:
        """A statement with the names of this data set filled in."""
        return statement.format(s=f'"{self.schema}"', channel=self.schema, **more)


async def find_or_make(link: Link, data: DataSet) -> None:
    """Make the data set if there is none. Raises StoreError for a newer one, for an older server, and if rights are missing."""
    _check_age(link, data)
    try:
        if not await _exists(link, data):
            await link.script(f"BEGIN; SELECT pg_advisory_xact_lock({_MAKING})")
            if not await _exists(link, data):
                await _make(link, data)
            await link.script("COMMIT")
        await _check_version(link, data)
    except InsufficientPrivilege as error:
        raise _rights_missing(link, data, error) from error


def _check_age(link: Link, data: DataSet) -> None:
    if link.pgconn.server_version < OLDEST_SERVER * 10_000:
        found = link.pgconn.server_version
        raise StoreError(
            f"{data.server} is PostgreSQL {found // 10_000}; this needs {OLDEST_SERVER} or newer: upgrade the server"
        )


async def _check_version(link: Link, data: DataSet) -> None:
    """Raise StoreError for a newer data set, and if this one lacks a part: it isn't made anew, or entries would seem missing."""
    lacks = _PARTS - await _parts(link, data)
    if "about" not in lacks:
        versions = await link.script(data.sql("SELECT schema_version FROM {s}.about"))
        if versions and int(versions[0][0]) > SCHEMA_VERSION:
            raise StoreError(
                f"{data.server} has schema {versions[0][0]}, but this pocket-plug-postgres knows only schema {SCHEMA_VERSION}; "
                "upgrade pocket-plug-postgres"
            )
        lacks |= set() if versions else {"the row of about"}
    if lacks:
        raise StoreError(
            f'{data.server}: the schema "{data.schema}" lacks {" and ".join(sorted(lacks))}; restore a backup of the whole '
            f'schema, or, to begin with an empty data set: DROP SCHEMA "{data.schema}" CASCADE'
        )


_PARTS = {"about", "versions", "entries", "slots", "write"}
"""The names of a data set's tables, sequence and function."""

# These read the catalog and don't use to_regclass, which within a transaction still answers from what the connection
# knew before the lock.
_HAS_SCHEMA = "SELECT 1 FROM pg_namespace WHERE nspname = '{channel}'"
_HAS_PARTS = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = '{channel}'
UNION ALL
SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = '{channel}'
"""


async def _parts(link: Link, data: DataSet) -> set[str]:
    return _PARTS & {name for [name] in await link.script(data.sql(_HAS_PARTS))}


async def _exists(link: Link, data: DataSet) -> bool:
    return bool(await _parts(link, data))


async def _make(link: Link, data: DataSet) -> None:
    if not await link.script(data.sql(_HAS_SCHEMA)):  # if there is one, the right to make schemas is not needed
        await link.script(data.sql("CREATE SCHEMA {s}"))
    await link.script(data.sql(TABLES, version=SCHEMA_VERSION))
    await link.script(data.sql(WRITE_FUNCTION, slack=REAP_SLACK))


def _rights_missing(link: Link, data: DataSet, error: InsufficientPrivilege) -> StoreError:
    user, database, schema = link.pgconn.user.decode(), link.pgconn.db.decode(), data.schema
    return StoreError(
        f"{data.server}: the role {user!r} lacks rights that it needs ({error.diag.message_primary}). To let it "
        f'make the data set: CREATE SCHEMA IF NOT EXISTS "{schema}" AUTHORIZATION "{user}"; or: GRANT CREATE ON DATABASE '
        f'"{database}" TO "{user}"; where another role has made it: GRANT USAGE ON SCHEMA "{schema}" TO "{user}"; GRANT '
        f'SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO "{user}"; GRANT USAGE, SELECT, UPDATE ON '
        f'ALL SEQUENCES IN SCHEMA "{schema}" TO "{user}"; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA "{schema}" TO "{user}"'
    )


_FOUND = """
SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('transaction_isolation'),
       pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on', extract(epoch FROM clock_timestamp())
"""


async def check_server(link: Link, data: DataSet, durability: str, clock: Clock) -> None:
    """Check that the server can keep what `durability` promises, or raise StoreError; delete old slots; warn of a wrong clock."""
    skew, read_only = await _compared(link, data, durability, clock)
    if not read_only:
        try:
            await link.script(data.sql(FORGET_SLOTS))
        except InsufficientPrivilege as error:
            raise _rights_missing(link, data, error) from error
    if abs(skew) > MOST_SKEW and clock is time.time:  # another clock is meant to differ
        _logger.warning(
            "%s: its clock differs from this machine's by %.1f s; entries expire by the programs' clocks, so synchronize them",
            data.server,
            skew,
        )


async def look_at(link: Link, data: DataSet, durability: str, clock: Clock) -> ProbeResult:
    """The checks of `find_or_make` and `check_server` that only read. Raises StoreError for what `open` would refuse."""
    _check_age(link, data)
    is_new = not await _exists(link, data)
    try:
        if not is_new:
            await _check_version(link, data)
    except InsufficientPrivilege as error:
        raise _rights_missing(link, data, error) from error
    skew, read_only = await _compared(link, data, durability, clock)
    version = link.pgconn.server_version
    system = f"PostgreSQL {version // 10_000}.{version % 10_000}"
    return ProbeResult(system, is_new=is_new, durability=durability, read_only=read_only, skew=skew)


async def _compared(link: Link, data: DataSet, durability: str, clock: Clock) -> tuple[float, bool]:
    """Seconds that the server's clock is ahead of ours, and whether it is read-only. Raises StoreError for unfit settings."""
    before = clock()
    [[fsync, full_pages, isolation, read_only, there]] = await link.script(_FOUND)
    here = (before + clock()) / 2  # on a busy machine the answer may take seconds
    found = {"fsync": fsync, "full_page_writes": full_pages}
    if durability == "power" and "off" in found.values():
        off = " and ".join(f"{name} = off" for name, value in found.items() if value == "off")
        raise StoreError(
            f"{data.server} has {off}: an acknowledged write may be lost, and its files damaged, when the power fails; "
            "turn it on in postgresql.conf, or ask for less (durability=process)"
        )
    if isolation != "read committed":
        raise StoreError(
            f"{data.server} has default_transaction_isolation = {isolation!r} for this role; it must be 'read committed', since "
            "each write has to see what was committed before it got its locks; ALTER ROLE … SET "
            "default_transaction_isolation = 'read committed'"
        )
    return float(there) - here, read_only != "f"


_KEYS = "SELECT count(*), coalesce(sum(hashtextextended(encode(key, 'hex'), 0)::numeric), 0) FROM {s}.entries"
_COUNTER = "SELECT last_value, (SELECT coalesce(max(version), 0) FROM {s}.entries) FROM {s}.versions"


async def find_faults(link: Link, data: DataSet) -> list[str]:
    """The faults that reads don't show. All entries are read as they were at one moment."""
    await link.script("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0")
    [[counter, highest]] = await link.script(data.sql(_COUNTER))
    await link.script(
        "SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_indexscan = off; SET LOCAL enable_seqscan = on"
    )
    [table] = await link.script(data.sql(_KEYS))
    await link.script(
        "SET LOCAL enable_indexonlyscan = on; SET LOCAL enable_indexscan = on; SET LOCAL enable_seqscan = off"
    )
    [index] = await link.script(data.sql(_KEYS))
    await link.script("COMMIT")
    faults = list[str]()
    if int(highest) > int(counter):
        faults.append(f"the counter of versions is {int(counter):,}, but an entry has version {int(highest):,}")
    if table != index:
        faults.append(
            f'the index of "{data.schema}".entries has {index[0]} keys and its table {table[0]}, or not the same keys: some '
            f'entries are not found, or are listed twice; REINDEX TABLE "{data.schema}".entries'
        )
    return faults
