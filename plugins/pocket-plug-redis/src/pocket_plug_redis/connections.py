"""Connections of redis-py: how they are made from a URL, and the pool of one event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import hiredis
from redis import asyncio as driver
from redis import connection as blocking_driver
from redis.exceptions import NoScriptError

from pocket_plug import ConfigError
from pocket_plug.backends import pool
from pocket_plug.primitives.redaction import public_url
from pocket_plug.primitives.urls import PERCENT

from .scripts import Script

MOST = 32
"""How many connections an event loop has, at most. Further operations wait for one."""

EXAMPLES = "redis://host:6379/0, rediss://user:password@host:6379/0 (TLS), unix:///path/to/socket"

NO_FILES: Mapping[str, str] = {}
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class Connection(Protocol):
    """The part of redis-py's connection that is used; its own types are too vague."""

    @property
    def is_connected(self) -> bool: ...
    async def connect(self) -> object: ...
    async def send_packed_command(self, command: bytes, check_health: bool) -> None: ...
    async def read_response(self, *, disconnect_on_error: bool) -> Any: ...


class BlockingConnection(Protocol):
    """The part of redis-py's blocking connection that is used."""

    def connect(self) -> object: ...
    def disconnect(self) -> object: ...
    def send_command(self, *command: str | bytes, check_health: bool) -> object: ...
    def can_read(self, timeout: float) -> bool: ...
    def read_response(self) -> Any: ...


class Server:
    """A server's address and login, read from a URL without its options. Raises ConfigError if the URL is invalid."""

    def __init__(self, url: str, database: int | None = None, files: Mapping[str, str] = NO_FILES) -> None:
        shown = public_url(url)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            why = PERCENT if "@" in url else str(error)  # the error may quote a part of the password
            raise ConfigError(f"{shown!r} is not a URL of a server ({why}); write {EXAMPLES}") from None
        if "ssl_keyfile" in files and "ssl_certfile" not in files:
            raise ConfigError(f"{shown!r} has ssl_keyfile, but no ssl_certfile, the certificate that it is for; add it")
        path = unquote(parts.path)
        self.is_unix, self.is_tls = parts.scheme == "unix", parts.scheme == "rediss"
        self.user, self.password = unquote(parts.username or ""), unquote(parts.password or "")
        self.files = files
        if files and not self.is_tls:
            raise ConfigError(f"{shown!r} has {', '.join(files)}, which are for TLS; write rediss://")
        if self.is_unix:
            if not path.startswith("/"):
                raise ConfigError(f"{shown!r} names no socket; write unix:///path/to/socket")
            self.host, self.port = path, 0
        else:
            number = path.strip("/")
            if not number.isascii() or (number and not number.isdigit()):
                raise ConfigError(f"{shown!r}: the database is {number!r}; give a number, as in {EXAMPLES}")
            if number and database is not None:
                raise ConfigError(f"{shown!r} names the database twice; leave out the option `db`")
            database = int(number) if number else database
            self.host, self.port = unquote(host or "localhost"), port or 6379
        self.database = database or 0
        if self.database < 0:
            raise ConfigError(f"{shown!r}: the database is {self.database}; give 0 or more")

    @property
    def address(self) -> tuple[str, int | None]:
        """What OpenTelemetry calls `server.address` and `server.port`."""
        return self.host, self.port or None

    def __str__(self) -> str:
        at = self.host if self.is_unix else f"{self.host}:{self.port}"
        return f"{at}, database {self.database}"

    def connection(self, at: tuple[str, int] | None = None) -> Connection:
        """A connection that isn't connected yet. `at`: another address, to which the cluster has redirected."""
        made: Connection = self._made(driver, at, None)  # no timeout of the driver: `Retrying` has one
        return made

    def blocking_connection(self, timeout: float) -> BlockingConnection:
        """A blocking connection; `timeout` is the most seconds that each of its steps takes."""
        made: BlockingConnection = self._made(blocking_driver, None, timeout)
        return made

    def _made(self, module: Any, at: tuple[str, int] | None, timeout: float | None) -> Any:
        if self.is_unix:
            make = module.UnixDomainSocketConnection
            where: dict[str, Any] = {"path": self.host}
        else:
            host, port = at or (self.host, self.port)
            make = module.Connection
            where = {"host": host, "port": port, "socket_keepalive": True}
        if self.is_tls:
            make = module.SSLConnection
            where |= {**self.files, "ssl_check_hostname": True}
        # Protocol 2 needs no HELLO command, and nothing of protocol 3 is used. Without `retry=` the driver doesn't retry.
        return make(
            **where,
            db=self.database,
            username=self.user or None,
            password=self.password or None,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            protocol=2,
        )


def has_ended(connection: Any) -> bool:
    """Has the server closed the connection? A write sent now would be lost, and its outcome would be unknown."""
    reader = connection._reader
    return reader is not None and (reader.at_eof() or reader.exception() is not None)


def cut(connection: Any) -> None:
    """Close its socket at once. redis-py's `disconnect` would first wait until the server has read all that was sent."""
    if connection._writer is not None:
        connection._writer.transport.abort()
    connection._close()  # without `await`: an interrupt must not leave it half closed


class Pool(pool.Pool[Connection]):
    """The connections of one event loop. A new one isn't connected yet."""

    def __init__(self, make: Callable[[], Connection]) -> None:
        async def made() -> Connection:
            return make()

        super().__init__(MOST, made, lambda connection: not has_ended(connection), cut)
        self.verified = 0
        """The losses when the server was last looked at."""


_packed: Callable[[tuple[str | bytes | int, ...]], bytes] = getattr(hiredis, "pack_command")  # noqa: B009 - its type is wrong


async def call(connection: Connection, *command: str | bytes | int) -> Any:
    """Send a command, and return the server's answer. Raises redis-py's exceptions."""
    if not connection.is_connected:
        await connection.connect()
    await connection.send_packed_command(_packed(command), check_health=False)
    return await connection.read_response(disconnect_on_error=False)


async def run_script(connection: Connection, script: Script, *arguments: str | bytes | int) -> Any:
    """Run a script, and return its result; its text is sent only if the server doesn't know it yet."""
    try:
        return await call(connection, "EVALSHA", script.name, *arguments)
    except NoScriptError:
        return await call(connection, "EVAL", script.text, *arguments)
