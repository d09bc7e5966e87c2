"""Our own exceptions for errors of PostgreSQL and libpq, with the server's name, what was found, and what to do."""

from __future__ import annotations

import re

import psycopg

from pocket_plug.errors import StoreError

from .link import ConnectionLostError

TRY_AGAIN = {
    "40001": "the transaction could not be serialised",
    "40P01": "it was the victim of a deadlock",
    "53300": "it has no connection left: raise max_connections, close other programs, or take fewer (connections=…)",
    "55P03": "a lock was not free within the server's lock_timeout",
    "57014": "the statement was cancelled, by somebody or by the server's statement_timeout",
    "57P01": "it was shut down, or an administrator ended the connection",
    "57P02": "it has crashed",
    "57P03": "it is starting up or shutting down",
    "57P05": "the connection was idle for longer than the server's idle_session_timeout",
    "25P03": "the transaction was idle for longer than the server's idle_in_transaction_session_timeout",
    "25P04": "the transaction took longer than the server's transaction_timeout",
}
"""Errors that pass by themselves, by SQLSTATE: the operation is tried again until `patience` seconds have passed."""

_POOLER = (
    "let PgBouncer keep prepared statements (1.21 or newer, max_prepared_statements above 0) or pool sessions, or connect to the "
    "server itself"
)

WAYS_OUT = {
    "25006": "it is read-only (a standby, or default_transaction_read_only is on), so nothing can be written; give the "
    "address of the primary, or several with target_session_attrs=read-write",
    "26000": f"a prepared statement is gone, as behind a pooler in transaction mode; {_POOLER}",
    "42P05": f"another client has prepared a statement of this name, as behind a pooler in transaction mode; {_POOLER}",
    "3D000": "there is no such database; create it, or correct the URL",
    "42501": "the role lacks rights that it needs: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA … TO …; "
    "GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA … TO …; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA … TO …; where "
    "row-level security is on: ALTER ROLE … BYPASSRLS",
    "42883": "the data set's function is gone; close the store and open it again",
    "42P01": "the data set's tables are gone; close the store and open it again",
    "3F000": "the data set's schema is gone; close the store and open it again",
    "53100": "its disk is full, and nothing of the write was stored; free some space there and try again",
    "53200": "it is out of memory, and nothing of the write was stored; raise max_locks_per_transaction, or write less at once",
    "54000": "a key is too long for its index, or a statement for the server; keys may have 2 KiB of UTF-8",
    "PP001": "its default_transaction_isolation must be 'read committed'; ALTER ROLE … SET default_transaction_isolation = "
    "'read committed'",
    "PP002": "its sequence is behind its entries, as after a logical replication, which copies no sequences; nothing was written",
}

_REFUSALS = {
    "password authentication failed": "the password is wrong, or the user is; correct the URL, or PGPASSWORD",
    "no password supplied": "it asks for a password; give it in the URL, by PGPASSWORD or in ~/.pgpass",
    "authentication failed": "the user can't log in in this way; see the server's pg_hba.conf",
    "pg_hba.conf": "it allows no connection from this machine for this user and database; see the server's pg_hba.conf",
    "could not load private key": "the key at sslkey= can't be read; if it has a pass phrase, give it: sslpassword=",
    "certificate": "its certificate is not trusted, or is not for this host; see sslrootcert= and sslmode=",
    "SSL": "TLS can't be used with it as sslmode= says; see sslmode=, and ssl in the server's postgresql.conf",
    "not permitted to log in": "the role may not log in; ALTER ROLE … LOGIN",
    "does not exist": "there is no such database, role or file; create it, or correct the URL",
    "permission denied for database": "the role may not connect to it; GRANT CONNECT ON DATABASE … TO …",
    "invalid": "an option of the URL is wrong",
    "bad value": "an option of the URL is wrong",
    "definition of service": "there is no such service in pg_service.conf; correct it, or service= in the URL",
    "unrecognized configuration parameter": "a setting in options= of the URL isn't one of the server's; correct it",
    "cannot be changed": "a setting in options= of the URL can't be given by a client; leave it out, and set it on the server",
    "permission denied to set parameter": "a setting in options= of the URL is for superusers; leave it out",
}
"""What to do, by a part of libpq's message: it gives no SQLSTATE for a refused connection. If the message is in another
language, the connection is tried again, and then the message is shown."""


_NAMES = re.compile(r"""(?<!\w)(["'])[^"']*\1""")
"""Quoted names in libpq's messages, of hosts and databases: the host `db.invalid` doesn't mean that the URL is invalid."""


def explained(server: str, error: psycopg.Error) -> Exception:
    """The exception to raise for an error: StoreError, or ConnectionLostError if it makes sense to try again."""
    # the error would keep the connection's options, with the password
    error._pgconn = None  # pyright: ignore[reportPrivateUsage] - there is no public way
    code = error.sqlstate
    if code is None:
        return _of_connection(server, str(error))
    text = error.diag.message_primary or type(error).__name__
    # a server that can't write its log panics, say: the commit may be there after its recovery
    if error.diag.severity_nonlocalized == "PANIC":
        return ConnectionLostError(f"it has crashed ({code}: {text})")
    if code in TRY_AGAIN:
        return ConnectionLostError(f"{TRY_AGAIN[code]} ({code}: {text})")
    if code.startswith("08"):
        return ConnectionLostError(f"{text} ({code})")
    return StoreError(f"{server}: {WAYS_OUT.get(code, 'PostgreSQL refuses')} ({code}: {text})")


def _of_connection(server: str, text: str) -> Exception:
    text = " ".join(text.split())
    if "server closed the connection" not in text:
        of_it = _NAMES.sub("", text)
        for said, way_out in _REFUSALS.items():
            if said in of_it:
                return StoreError(f"{server}: {way_out} ({text})")
    return ConnectionLostError(text)
