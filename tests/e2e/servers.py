"""What tests with real servers share: a free port, waiting with a deadline, a process that is stopped by its id."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
DEADLINE = 180.0
"""Seconds; twelve times what the slowest server takes to start on two idle cores."""


def program(name: str, package: str) -> str:
    """The path of a Debian package's program; if it is missing, the test fails and says what to install."""
    if (found := shutil.which(name)) is None:
        pytest.fail(f"there is no {name} here; install the Debian package: apt-get install -y {package}")
    return found


def installed(server: str) -> Path:
    """The folder with the programs of a server that `make e2e` installs into a venv of its own."""
    folder = ROOT / f".venv-e2e-{server}" / "bin"
    if not folder.is_dir():
        pytest.fail(f"there is no {folder.parent.name} here; make e2e installs it")
    return folder


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def until(what: str, look: Callable[[], T | None]) -> T:
    """The first result of `look` that isn't empty; polled, and an error after the deadline."""
    end = time.monotonic() + DEADLINE
    while (found := look()) is None:
        assert time.monotonic() < end, f"waited {DEADLINE:g} seconds for {what}"
        time.sleep(0.2)
    return found


def ask(url: str, question: Any = None) -> Any:
    """The JSON of a server's answer to a GET, or to a POST of the question; None for 404."""
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - our own server
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                return None
            raise AssertionError(f"{url}: {error.read().decode()}") from error


def answers(url: str) -> bool:
    """Does a GET get a 200?"""
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own server
            return True
    except OSError:
        return False


@contextmanager
def running(command: Sequence[str | Path], folder: Path, health: str, environment: Mapping[str, str]) -> Iterator[None]:
    """A server, once `health` answers. Its log is in the folder, and is shown if the server ends before."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)

    def ready() -> bool | None:
        assert process.poll() is None, f"{command[0]} ended:\n{log.read_text('utf-8', 'replace')}"
        return answers(health) or None

    try:
        try:
            until(f"{health} to answer", ready)
        except AssertionError as error:
            error.add_note(log.read_text("utf-8", "replace"))
            raise
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
