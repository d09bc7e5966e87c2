"""Servers for tests: they start, are killed, stopped and started again, and leave nothing behind."""

from __future__ import annotations

import gc
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pocket_plug.testing.proxy import POSTGRES_TLS, Proxy
from pocket_plug.testing.servers import HOST, Certificate, Server, certificate, postgres, valkey

PASSWORD = "hunter2"  # noqa: S105 - of this test


def ask(port: int, request: str, *, timeout: float = 60) -> str:
    """A Valkey's answer, in one piece; raises OSError if there is none."""
    with socket.create_connection((HOST, port), timeout) as connection:
        connection.sendall(request.encode() + b"\r\n")
        answer = connection.recv(1000)
        if not answer:
            raise ConnectionResetError
        return answer.decode().strip()


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with valkey(options={"appendfsync": "no"}) as server:
        yield server


@pytest.fixture(scope="module")
def shared_postgres() -> Iterator[Server]:
    with postgres(options={"fsync": "off"}) as server:
        yield server


def greeting(port: int, context: ssl.SSLContext | None = None) -> bytes:
    """The first byte of a PostgreSQL's answer to a login: R, authentication is possible. Over TLS with a context."""
    with socket.create_connection((HOST, port), 60) as connection:
        if context is not None:
            connection.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
            assert connection.recv(1) == b"S"
            connection = context.wrap_socket(connection, server_hostname=HOST)
        told = b"\0\x03\0\0user\0postgres\0\0"
        connection.sendall((len(told) + 4).to_bytes(4) + told)
        said = connection.recv(1)
        connection.close()
        return said


def starts_again(server: Server, works: Callable[[], object]) -> None:
    """Killed and restarted twice: no answer, then answers again, at the same port."""
    for _ in range(2):
        former = server.pid
        server.kill()
        with pytest.raises(RuntimeError, match=r"call restart\(\)"):
            _ = server.pid
        with pytest.raises(OSError, match=r"refused|reset"):
            works()
        server.restart()
        assert server.pid != former
        works()


# ---------------------------------------------------------------- Valkey
def test_a_valkey_is_killed_and_started_again_over_its_data(shared: Server) -> None:
    """Acknowledged writes are there, since each write is appended to a file."""
    assert ask(shared.port, "SET a 1") == "+OK"
    starts_again(shared, lambda: ask(shared.port, "PING"))
    assert ask(shared.port, "GET a").splitlines()[-1] == "1"


def test_a_stopped_server_accepts_and_answers_nothing(shared: Server) -> None:
    """Until it continues; closing it while it is stopped works too."""
    shared.stop()
    with pytest.raises(TimeoutError):
        ask(shared.port, "PING", timeout=0.05)
    shared.go_on()
    assert ask(shared.port, "PING") == "+PONG"
    with valkey() as other:
        other.stop()


def test_options_are_lines_of_the_configuration() -> None:
    """A given password is required; and it is in the URL."""
    with valkey(options={"maxmemory": "3mb"}, password=PASSWORD) as server:
        assert ask(server.port, "PING").startswith("-NOAUTH")
        assert ask(server.port, "AUTH hunter2") == "+OK"
        assert server.url == f"redis://:hunter2@{HOST}:{server.port}/0"


def test_a_server_that_does_not_start_is_reported_with_the_reason() -> None:
    """The error contains its output; its folder is removed."""
    with pytest.raises(RuntimeError, match=r"doesn't start(.|\n)*nonsense"):
        valkey(options={"nonsense": "1"})
    with pytest.raises(RuntimeError, match="there is no valkey-server in"):
        valkey(binaries="/nowhere")


def test_the_folder_is_removed_with_its_server() -> None:
    """And so is the process. `close` may be called twice."""
    server = valkey()
    folder, pid = server.folder, server.pid
    assert folder.exists()
    server.close()
    server.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# ---------------------------------------------------------------- PostgreSQL
def test_a_postgres_is_killed_and_started_again(shared_postgres: Server) -> None:
    """With all of its processes; after a stop it continues as well."""
    server = shared_postgres
    assert greeting(server.port) == b"R"
    starts_again(server, lambda: greeting(server.port))
    server.stop()
    server.go_on()
    assert greeting(server.port) == b"R"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("certificate"))


def test_a_postgres_has_a_password_and_a_proxy_adds_encryption(made: Certificate) -> None:
    """The password is in the URL; a client that asks for encryption gets it, with the certificate that was created."""
    with postgres(password=PASSWORD) as server, Proxy(server.port, tls=made, asked=POSTGRES_TLS) as proxy:
        assert server.url == f"postgresql://postgres:hunter2@{HOST}:{server.port}/postgres"
        context = ssl.create_default_context(cafile=str(made.authority))
        assert greeting(proxy.port, context) == b"R"


# ---------------------------------------------------------------- the proxy
@pytest.fixture
def proxy(shared: Server) -> Iterator[Proxy]:
    with Proxy(shared.port) as proxy:
        yield proxy


def test_a_proxy_passes_on_and_counts(shared: Server, proxy: Proxy) -> None:
    """Requests and answers, for any number of connections; its URL is the server's with another port."""
    assert proxy.through(shared.url) == f"redis://{HOST}:{proxy.port}/0"
    assert {ask(proxy.port, "PING") for _ in range(3)} == {"+PONG"}
    assert (proxy.connections, proxy.requests, proxy.lost) == (3, 3, 0)


def test_a_swallowed_answer_is_sent_by_the_server_and_lost(shared: Server, proxy: Proxy) -> None:
    """Only the answer to the request with the mark; the write was done."""
    ask(shared.port, "SET n 0")
    proxy.swallow(b"INCR")
    assert ask(proxy.port, "PING") == "+PONG"
    with pytest.raises(OSError, match=r"reset|^$"):
        ask(proxy.port, "INCR n")
    proxy.wait()
    assert proxy.lost == 1
    assert ask(proxy.port, "INCR n") == ":2"


def test_a_dropped_request_never_reaches_the_server(shared: Server, proxy: Proxy) -> None:
    """Its connection is closed, as often as requested."""
    ask(shared.port, "SET n 0")
    proxy.drop(b"INCR", times=2)
    for _ in range(2):
        with pytest.raises(OSError, match=r"reset|^$"):
            ask(proxy.port, "INCR n")
    assert ask(proxy.port, "INCR n") == ":1"


def test_a_delayed_request_arrives_after_its_client_has_gone(shared: Server, proxy: Proxy) -> None:
    """Other requests overtake it meanwhile."""
    ask(shared.port, "SET n 0")
    proxy.delay(b"INCR")
    with pytest.raises(TimeoutError):
        ask(proxy.port, "INCR n", timeout=0.05)
    proxy.wait()
    assert ask(proxy.port, "INCR n") == ":1"
    proxy.release()
    assert ask(proxy.port, "INCR n") == ":3"


def test_held_traffic_continues_when_it_is_released(proxy: Proxy) -> None:
    """And a cut ends the existing connections, not later ones."""
    with socket.create_connection((HOST, proxy.port), 60) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        proxy.hold()
        connection.sendall(b"PING\r\n")
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        connection.settimeout(60)
        proxy.release()
        assert connection.recv(100) == b"+PONG\r\n"
        proxy.cut()
        assert connection.recv(100) == b""
    assert ask(proxy.port, "PING") == "+PONG"


def test_a_proxy_without_a_server_accepts_and_closes() -> None:
    """As a restarting server does; it may be closed twice."""
    proxy = Proxy(1)
    with pytest.raises(OSError, match=r"reset|^$"):
        ask(proxy.port, "PING")
    proxy.close()
    proxy.close()


def test_a_proxy_that_is_closed_while_it_accepts_leaves_nothing_open(shared: Server) -> None:
    """Otherwise the garbage collector finds the connection in a later test, which fails for it."""
    for _ in range(50):
        proxy = Proxy(shared.port)
        clients = [socket.create_connection((HOST, proxy.port)) for _ in range(3)]
        proxy.close()
        for client in clients:
            client.close()
    del proxy
    gc.collect()  # what it finds open is a warning, which is an error here


def test_a_proxy_adds_encryption(shared: Server, made: Certificate, tmp_path: Path) -> None:
    """For a server without encryption; a client that doesn't trust the authority refuses it."""
    with Proxy(shared.port, tls=made) as proxy:
        context = ssl.create_default_context(cafile=str(made.authority))
        with (
            socket.create_connection((HOST, proxy.port), 60) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as secure,
        ):
            secure.sendall(b"PING\r\n")
            assert secure.recv(100) == b"+PONG\r\n"
        with socket.create_connection((HOST, proxy.port), 60) as plain, pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(plain, server_hostname=HOST)
