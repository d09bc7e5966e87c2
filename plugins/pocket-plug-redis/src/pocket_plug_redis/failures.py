"""Translates exceptions of the driver into our own, which name the server and say what to do there."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator

from redis.exceptions import AuthenticationError, AuthorizationError, InvalidResponse, RedisError, ResponseError
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import TimeoutError as LateError

from pocket_plug import PocketError, StoreError


class NotNowError(Exception):
    """The server can't execute a command at the moment, but may be able to soon."""


LOST: tuple[type[Exception], ...] = (LostConnectionError, LateError, InvalidResponse, NotNowError, OSError)
"""After these exceptions another attempt may succeed."""

# redis-py removes the error code from some messages, and old servers put it into the middle of a script's message.
_SOON = re.compile(
    r"\b(LOADING|BUSY|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|NOREPLICAS|UNBLOCKED)\b"
    "|(Moved|Ask|MasterDown|ClusterDown|TryAgain|ReadOnly|BusyLoading)Error|Redis is (loading|busy)"
)

_MOVED = re.compile(r"\bMOVED \d+ (\S*):(\d+)|MovedError: \d+ (\S*):(\d+)")

_ACL = "~{pocket:*}* resetchannels &{pocket:*}* +@all -@dangerous +info +config|get"
DAMAGED_COUNTER = (
    "the counter of versions is damaged, so nothing can be written; export the entries, and import them into another data "
    "set (store=…)"
)

_WAYS_OUT = {
    r"\bNOPERM\b|NoPermission|ACL failure|no permissions|user executing the script can't": "the user lacks permissions "
    f"that a store needs; grant them in the server's ACL: {_ACL} (Redis 6.0: without `resetchannels` and `&…`)",
    r"\bOOM\b|maxmemory": "its memory is full, and nothing of the write was stored; remove entries, or give it more "
    "memory (`maxmemory` in its configuration)",
    r"\bMISCONF\b|persist (to|on) disk": "it can't write to its disk, so it accepts no writes; see its log, and free some space",
    r"\bWRONGTYPE\b|wrong kind of value": "another program uses pocket_plug's keys there; give pocket_plug a database of its own",
    r"\bDAMAGED\b": DAMAGED_COUNTER,
    r"DB index|Invalid Database|SELECT is not allowed": "it has no such database; see `databases` in its configuration, "
    "and in a cluster use 0",
    "invalid bulk length": "a value is longer than it accepts; nothing was stored: raise its setting `proto-max-bulk-len`",
    r"unknown command|Unknown Redis command": "it lacks a command that pocket_plug needs; Redis 6.0 or later, or Valkey, has it",
}


def explained(error: Exception, server: str) -> Exception:
    """The exception to raise for this one: one of LOST, or a StoreError that says what to do; others unchanged."""
    if isinstance(error, PocketError):
        return error
    text = f"{type(error).__name__}: {error}"
    if (about_tls := _about_tls(error)) is not None:
        return StoreError(f"{server}: {about_tls}")
    if isinstance(error, AuthenticationError | AuthorizationError):
        return StoreError(
            f"{server}: it refuses the user or the password ({type(error).__name__}); check both in the URL, and "
            "`requirepass` or the ACL of the server"
        )
    if isinstance(error, ResponseError | LostConnectionError) and _SOON.search(text):
        return NotNowError(text)
    if not isinstance(error, RedisError) or (isinstance(error, LOST) and not isinstance(error, ResponseError)):
        return error
    for pattern, way_out in _WAYS_OUT.items():
        if re.search(pattern, text):
            return StoreError(f"{server}: {way_out} ({text})")
    return StoreError(f"{server}: it refuses the command ({text})")


def moved_to(error: Exception) -> tuple[str, int] | None:
    """The host ("" for the same one) and port to which a cluster redirects; None if the error is no redirection."""
    found = _MOVED.search(f"{type(error).__name__}: {error}")
    return None if found is None else (found[1] or found[3] or "", int(found[2] or found[4]))


def _about_tls(error: Exception) -> str | None:
    """What is wrong with TLS, if that is why the connection failed."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate isn't valid here ({cause.verify_message}); check the host's name in the URL, or name "
                "the certificates to trust (ssl_ca_certs=…)"
            )
        if isinstance(cause, ssl.SSLError) and (cause.library in ("X509", "PEM") or cause.reason == "PEM_LIB"):
            return f"a file of ssl_ca_certs, ssl_certfile or ssl_keyfile is invalid ({cause.reason}); each must be in PEM format"
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return f"the TLS handshake at this port failed ({cause.reason}); if the server has no TLS there, write redis://"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its cause, the cause of that, and so on."""
    found: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in found:
        found.add(id(at))
        yield at
        at = at.__cause__ or at.__context__
