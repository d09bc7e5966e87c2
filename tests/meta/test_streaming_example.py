"""`examples/streaming` serves runs to a real client, over a real socket."""

from __future__ import annotations

import http.client
import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from pocket_plug import SyncStore

APP = Path(__file__).parents[2] / "examples" / "streaming" / "app.py"
WORDS = 200  # in each chapter


class Server:
    """The application, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.address = urlsplit(self.says())
        self.connections = ExitStack()

    def says(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def ask(self, path: str) -> http.client.HTTPResponse:
        """Its answer to a request, on a connection that is closed after the answer."""
        connection = http.client.HTTPConnection(self.address.hostname or "", self.address.port, timeout=60)
        self.connections.callback(connection.close)
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('runs')}/runs.db?durability=process"


@pytest.fixture(scope="module")
def server(url: str) -> Iterator[Server]:
    options = ["--port", "0", "--pause", "0.001", "--words", str(WORDS), "--store", url]
    command = [sys.executable, "-W", "error", str(APP), *options]
    environment = os.environ | {"POCKET_PLUG_AUTOLOAD": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        too_late = threading.Timer(60, process.kill)  # then a reader of its output gets the end of it
        too_late.start()
        try:
            server = Server(process)
            with server.connections:
                yield server
        finally:
            too_late.cancel()
            process.kill()


def events(response: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, object]]]:
    """Server-sent events, as they arrive."""
    kind = ""
    while line := response.readline().decode():
        name, _, value = line.rstrip("\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def test_a_client_sees_the_run_while_it_is_executed(server: Server) -> None:
    """From the first node to the output; then the server ends the response."""
    response = server.ask(f"/write?topic={quote('green tea')}")
    assert response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
    told = list(events(response))
    assert told[:3] == [
        ("node_entered", {"node": "outline"}),
        ("node_left", {"node": "outline"}),
        ("node_entered", {"node": "write"}),
    ]
    words = [data["word"] for kind, data in told if kind == "emitted"]
    assert words[:7] == ["green", "tea:", "what", "it", "is", "word-0", "word-1"]
    assert ("progressed", {"done": 3, "total": 3}) in told
    assert sorted((str(data["item"]), data["output"]) for kind, data in told if kind == "item_done") == [
        ("0", 5 + WORDS),
        ("1", 6 + WORDS),
        ("2", 7 + WORDS),
    ]
    assert told[-1] == ("finished", {"output": 18 + 3 * WORDS})


def test_a_client_that_disconnects_cancels_its_run(server: Server) -> None:
    """The node's hook notes it; another client's run continues."""
    staying, leaving = events(server.ask("/write?topic=stay")), server.ask("/write?topic=leave")
    for kind, _ in events(leaving):
        if kind == "emitted":
            break
    leaving.close()
    assert server.says() == "not written: CancelledError"
    assert [*staying][-1] == ("finished", {"output": 15 + 3 * WORDS})


def test_a_failed_run_is_reported(server: Server) -> None:
    """By a last event, since the response has started by then."""
    assert list(events(server.ask("/write?topic=")))[-1] == ("failed", {"error": "ValueError"})


def test_a_durable_run_of_another_process_is_followed(server: Server, url: str) -> None:
    """From its submission to its output, by a server that doesn't execute it. A client that leaves doesn't end it."""
    graph = runpy.run_path(str(APP))["writing"](0, 1)
    with SyncStore(url) as store:
        graph.submit_sync("tea", run_id="a", store=store)
        leaving, told = server.ask("/follow?run=a"), events(server.ask("/follow?run=a"))
        assert next(events(leaving)) == next(told) == ("state_changed", {"state": "pending"})
        leaving.close()
        assert graph.run_sync("tea", run_id="a", store=store) == 18
        rest = list(told)
    assert rest[-1] == ("finished", {"output": 18})
    nodes = ["outline", "write", "each_count", "add_up"]
    passed = [each for node in nodes for each in [("node_entered", {"node": node}), ("node_left", {"node": node})]]
    assert [each for each in rest if each[0] in ("node_entered", "node_left")] == passed


def test_an_unknown_run_is_reported(server: Server) -> None:
    """By one event."""
    assert list(events(server.ask("/follow?run=nothing"))) == [("failed", {"error": "UnknownRunError"})]


def test_the_page_is_served(server: Server) -> None:
    """It asks for the events by their kinds: of a run of its own, or of a durable one that is named."""
    page = server.ask("/").read().decode()
    assert 'listen("/write?"' in page
    assert 'listen("/follow"' in page
