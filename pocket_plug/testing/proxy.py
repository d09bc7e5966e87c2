"""A proxy between a client and a server, which loses answers, cuts connections and holds requests, as a network may.

    with Proxy(server.port) as proxy:
        backend = Mine(proxy.through(server.url))
        proxy.swallow(b"key")      # the answer to the next request with these bytes is lost, with its connection

It works on bytes, and knows no protocol.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Literal, TypeVar

from pocket_plug.primitives.waiting import LoopThread, run_on

from .servers import HOST, Certificate

T = TypeVar("T")
_SIZE = 65536
_PATIENCE = 60.0


POSTGRES_TLS = (b"\0\0\0\x08\x04\xd2\x16\x2f", b"S")
"""PostgreSQL's request for encryption, and the server's answer."""


async def close_server(server: asyncio.Server) -> None:
    """Close an asyncio server after each accepted connection was passed to its handler.

    Before Python 3.12, asyncio leaves a connection open that is being accepted when the server is closed.
    """
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening)
    for _ in range(2):
        await asyncio.sleep(0)
    server.close()


class _Rule:
    """What to do with the next request that contains some bytes."""

    def __init__(self, mark: bytes, kind: Literal["swallow", "drop", "delay"]) -> None:
        self._marks = (mark, mark.hex().encode())  # some protocols write bytes in hex
        self.kind = kind
        self.has_happened = asyncio.Event()

    def takes(self, data: bytes) -> bool:
        return any(mark in data for mark in self._marks)


class Proxy:
    """Passes data between clients at `port` and a server at the port `to`. It works in its own thread; its methods may be
    called from any thread.

    With `tls`, it accepts encrypted connections and passes the decrypted data on, for servers without TLS. `asked` is for
    protocols in which the client first asks for encryption: the client's request and the answer, such as `POSTGRES_TLS`.
    """

    def __init__(self, to: int, *, tls: Certificate | None = None, asked: tuple[bytes, bytes] | None = None) -> None:
        self._to, self._asked = to, asked
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(tls.chain, tls.key)
        self.connections = 0
        """How many connections were accepted so far."""
        self.requests = 0
        """How many pieces of data were passed on to the server so far."""
        self.lost = 0
        """How many answers were swallowed so far."""
        self._waiting: list[_Rule] = []  # for a request
        self._rules: list[_Rule] = []  # all rules that `wait` waits for
        self._links: set[_Link] = set()
        self._serving: set[asyncio.Task[None]] = set()  # one for each connection
        self._thread = LoopThread("proxy")
        self._thread.start()
        self._flows: asyncio.Event
        self._server: asyncio.Server
        self.port: int = self._do(self._open)
        """The port at 127.0.0.1 where it listens."""

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def through(self, url: str) -> str:
        """A server's URL, with this proxy instead of the server."""
        return url.replace(f"{HOST}:{self._to}", f"{HOST}:{self.port}")

    def swallow(self, mark: bytes = b"", times: int = 1) -> None:
        """Lose the answer to the next request that contains `mark`: when the server has answered, the connection is cut."""
        self._add(mark, "swallow", times)

    def drop(self, mark: bytes = b"", times: int = 1) -> None:
        """Lose the next request that contains `mark`: its connection is cut before the server gets it."""
        self._add(mark, "drop", times)

    def delay(self, mark: bytes = b"") -> None:
        """Hold the next request that contains `mark` until `release`; then it reaches the server, even if its client has
        disconnected."""
        self._add(mark, "delay", 1)

    def _add(self, mark: bytes, kind: Literal["swallow", "drop", "delay"], times: int) -> None:
        async def add() -> None:
            rules = [_Rule(mark, kind) for _ in range(times)]
            self._waiting += rules
            self._rules += rules

        self._do(add)

    def wait(self) -> None:
        """Wait until each requested loss or delay has happened. Raises TimeoutError after a minute."""

        async def wait() -> None:
            while self._rules:
                await asyncio.wait_for(self._rules[0].has_happened.wait(), _PATIENCE)
                del self._rules[0]

        self._do(wait)

    def hold(self) -> None:
        """Pass nothing on, in either direction, until `release`."""

        async def hold() -> None:
            self._flows.clear()

        self._do(hold)

    def release(self) -> None:
        """Pass on held data, and all new data. When this returns, delayed requests have been answered; their answers are
        lost."""

        async def release() -> None:
            self._flows.set()
            for link in [link for link in self._links if link.delays]:
                link.released.set()
                await asyncio.wait_for(link.over.wait(), _PATIENCE)

        self._do(release)

    def cut(self) -> None:
        """Cut all open connections; new ones are accepted."""

        async def cut() -> None:
            for link in [*self._links]:
                link.cut()

        self._do(cut)

    def silence(self) -> None:
        """Pass nothing on over the open connections any more, and don't close them, as if the server's machine had lost its
        power. New connections work."""

        async def silence() -> None:
            for link in self._links:
                link.is_silent = True

        self._do(silence)

    def close(self) -> None:
        """Cut all connections, and accept no more. May be called twice."""
        if not self._thread.is_closed:
            self._do(self._close)
            self._thread.close()

    # ------------------------------------------------------------ on the event loop
    def _do(self, step: Callable[[], Coroutine[object, object, T]]) -> T:
        return run_on(self._thread.loop, step())

    async def _open(self) -> int:
        self._flows = asyncio.Event()
        self._flows.set()
        self._server = await asyncio.start_server(self._accept, HOST, 0, ssl=None if self._asked else self._context)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _close(self) -> None:
        await close_server(self._server)
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)

        def done(task: asyncio.Task[None]) -> None:  # called also if it was cancelled before its first step
            self._serving.discard(task)
            writer.transport.abort()

        task.add_done_callback(done)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if self._asked is not None and self._context is not None:
                await self._encrypt(reader, writer, self._context, *self._asked)
            there, to = await asyncio.open_connection(HOST, self._to)
        except OSError:
            return
        link = _Link(writer, to)
        self._links.add(link)
        requests = asyncio.ensure_future(self._pass_requests(link, reader))
        try:
            with suppress(OSError):
                await self._pass_answers(link, there)
        finally:
            requests.cancel()
            link.cut()
            self._links.discard(link)
            link.over.set()

    async def _encrypt(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        context: ssl.SSLContext,
        request: bytes,
        answer: bytes,
    ) -> None:
        if (found := await reader.read(len(request))) != request:
            raise ConnectionError(f"{found!r} doesn't ask for encryption")
        writer.write(answer)
        await writer.start_tls(context)

    async def _pass_requests(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(_SIZE):
                await self._flows.wait()
                if link.is_silent:
                    continue
                rule = next((rule for rule in self._waiting if rule.takes(data)), None)
                if rule is not None:
                    self._waiting.remove(rule)
                    if rule.kind == "drop":
                        rule.has_happened.set()
                        break
                    link.swallows = rule
                    if rule.kind == "delay":
                        link.delays = True
                        rule.has_happened.set()
                        await link.released.wait()
                self.requests += 1
                link.server.write(data)
                await link.server.drain()
        if link.swallows is None:  # otherwise the server must answer first
            link.cut()

    async def _pass_answers(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_SIZE):
            await self._flows.wait()
            if link.swallows is not None:
                self.lost += 1
                link.swallows.has_happened.set()
                return
            link.client.write(data)
            await link.client.drain()


class _Link:
    """A connection to a client, and its connection to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.swallows: _Rule | None = None
        self.delays = self.is_silent = False
        self.released, self.over = asyncio.Event(), asyncio.Event()

    def cut(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()
