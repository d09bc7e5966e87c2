"""What the server and the driver raise, as our own exceptions that name the server and say what to do there."""

from __future__ import annotations

import re
import ssl

from redis.exceptions import AuthenticationError, AuthorizationError, InvalidResponse, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import TimeoutError as LateError

from pocket_plug import PocketError, StoreError


class NotNowError(Exception):
    """The server can't answer at the moment; it may be able to soon."""


LOST: tuple[type[Exception], ...] = (LostConnectionError, LateError, InvalidResponse, NotNowError, OSError)
"""After these another attempt makes sense."""

_SOON = re.compile(r"\b(LOADING|BUSY|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MOVED|ASK)\b|read only replica|Redis is loading|^Redis is busy")

_WAYS_OUT: tuple[tuple[str, str], ...] = (
    (r"\bOOM\b|maxmemory", "its memory is full and nothing of the write was done; remove entries, or give it more (maxmemory in its configuration)"),
    (r"MISCONF|persist on disk|AOF file", "it can't write to its disk, so it takes no writes; see its log, and free some space"),
    (r"WRONGTYPE|wrong kind of value", "another program uses our keys there; give pocket_plug a database of its own"),
    (r"DB index|Invalid Database|SELECT is not allowed", "it has no such database; see `databases` in its configuration, and in a cluster use 0"),
    (r"unknown command|Unknown Redis command", "it lacks a command that we need; it must be Redis 6.0 or later, or Valkey"),
)


def causes(error: BaseException) -> list[BaseException]:
    """An exception and all it came from."""
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found


def explained(error: Exception, server: str) -> Exception:
    """What to raise for what the driver has raised: one of LOST, or a StoreError that says what to do."""
    if isinstance(error, PocketError):
        return error
    text = f"{type(error).__name__}: {error}"
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return StoreError(
                f"{server}: its certificate is not valid here ({cause.verify_message}); check the host's name in the URL, or name the "
                "certificates to trust (ssl_ca_certs=…)"
            )
        if isinstance(cause, ssl.SSLError) and "EOF" not in str(cause):
            return StoreError(f"{server}: no TLS with it ({cause}); does it speak TLS at this port? Without TLS it is redis://")
    if isinstance(error, AuthenticationError | AuthorizationError):
        return StoreError(
            f"{server}: it refuses the user or the password ({type(error).__name__}); check both in the URL, and `requirepass` or the "
            "ACL of the server"
        )
    if isinstance(error, NoPermissionError) or "NOPERM" in text:
        return StoreError(
            f"{server}: the user may not do what a store needs ({error}); allow it in the server's ACL: ~{{pocket:*}}* &{{pocket:*}}* "
            "+@all -@dangerous +info +config|get"
        )
    if isinstance(error, ResponseError | LostConnectionError) and _SOON.search(text):
        return NotNowError(text)
    if isinstance(error, LOST):
        return error
    if isinstance(error, ResponseError):
        for pattern, way_out in _WAYS_OUT:
            if re.search(pattern, text):
                return StoreError(f"{server}: {way_out} ({text})")
    if isinstance(error, RedisError):
        return StoreError(f"{server}: it refuses ({text})")
    return error
