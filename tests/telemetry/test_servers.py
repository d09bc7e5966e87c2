"""Servers with worker processes, started as the how-to shows: each worker's telemetry is sent before it ends."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fastapi
import pytest
from otlp_sink import Sink
from scripts import environment

PAGE = (Path(__file__).parents[2] / "docs/howto/behind-a-server.md").read_text("utf-8")
FILES: dict[str, str] = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
UVICORN, GUNICORN, PLAIN, CELERY = re.findall(r"^\$ ((?:uvicorn|gunicorn|celery) .+)$", PAGE, re.MULTILINE)

SHOP = FILES["shop.py"]
if tuple(map(int, fastapi.__version__.split(".")[:2])) < (0, 142):  # as the page says
    SHOP = SHOP.replace("run(graph, order)", "run(graph, order, traceparent=request.headers)")

# The page's graph, with a node that returns its process id and waits until it may continue.
SHIPPING = """
import asyncio, logging, os
import pocket_plug as pp

@pp.node
async def pack(order: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["TEST_GATE"]))
    writer.write(b"%d\\n" % os.getpid())
    await reader.read()
    writer.close()
    logging.getLogger("shop").warning("packed")
    return f"a parcel with {order}"

graph = pp.Graph(pack, name="shipping")
"""

# Set up at import, and never closed.
BARE = """
from fastapi import FastAPI
from pocket_plug.telemetry import setup
from shipping import graph

setup()
app = FastAPI()

@app.get("/ship/{order}")
async def ship(order: str) -> str:
    return await graph.run(order)
"""
# Set up in the lifespan, and not closed there; the run is in a thread, which can't be cancelled.
UNCLOSED = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from pocket_plug.telemetry import setup
from shipping import graph

@asynccontextmanager
async def lifespan(app):
    setup()
    yield

app = FastAPI(lifespan=lifespan)

@app.get("/ship/{order}")
def ship(order: str) -> str:
    return graph.run_sync(order)
"""
# Set up when it is imported, before the fork, and once more in each worker, as on the page: that returns the existing
# set-up.
JOBS = FILES["jobs.py"].replace("queue = Celery", "setup()\nqueue = Celery")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

# The worker submits two tasks itself, as soon as it is ready.
SUBMITS = """
from celery.signals import worker_ready

queue.conf.broker_transport_options = {"data_folder_out": "data_in", "polling_interval": 0.05}  # the worker looks there
worker_ready.connect(lambda **_: [ship.delay("tea", {}) for _ in range(2)], weak=False)
"""


@contextmanager
def server(command: str, folder: Path, files: dict[str, str], **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A running server, in a process group of its own: no process is left, whatever happens."""
    for name, code in {**FILES, "shipping.py": SHIPPING, **files}.items():
        (folder / name).write_text(code, "utf-8")
    name, *arguments = shlex.split(command)
    with subprocess.Popen(
        [Path(sys.executable).parent / name, *arguments],
        cwd=folder,
        env=environment(PYTHONPATH=str(folder), HOME=str(folder), **variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[int(number) for number in re.findall(r"fd(?: |://)(\d+)", command)],
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def variables(sink: Sink, gate: socket.socket) -> dict[str, str]:
    """Telemetry is sent at the end only."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url,
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
        "OTEL_BLRP_SCHEDULE_DELAY": "600000",
        "OTEL_METRIC_EXPORT_INTERVAL": "600000",
        "TEST_GATE": str(gate.getsockname()[1]),
    }


def listen() -> socket.socket:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(60)
    return listening


def at_work(gate: socket.socket) -> tuple[socket.socket, int]:
    """A running run: the connection whose end lets it continue, and its process."""
    connection, _ = gate.accept()
    connection.settimeout(60)
    return connection, int(connection.recv(100))


def ask(web: socket.socket) -> socket.socket:
    """A request that waits for its answer."""
    client = socket.create_connection(web.getsockname(), timeout=60)
    client.sendall(
        b"GET /ship/tea HTTP/1.1\r\nHost: shop\r\nTraceparent: 00-%s-00f067aa0ba902b7-01\r\nConnection: close\r\n\r\n"
        % TRACE.encode()
    )
    return client


def heard(process: subprocess.Popen[str], said: str) -> str:
    """The server's output, up to that text."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if said in line:
            return "".join(lines)
    raise AssertionError(f"it never said {said!r}:\n{''.join(lines)}")


def assert_each_worker_sent_its_run(sink: Sink, output: str) -> None:
    """A run with its node, its log lines and its metrics, from each of two instances."""
    ours = [span for span in sink.spans if span.scope.name.startswith("pocket_plug.")]  # FastAPI has some, too
    assert Counter(span.name for span in ours) == {"run shipping": 2, "node pack": 2}, output
    instances = {str(span.resource["service.instance.id"]) for span in ours}
    assert len(instances) == 2
    assert {span["pocket_plug.run.outcome"] for span in ours if not span["pocket_plug.node.name"]} == {"success"}
    logs = Counter((log.body, str(log.resource["service.instance.id"])) for log in sink.logs)
    for said in ("pocket_plug.run.finished", "packed"):
        assert {instance: logs[said, instance] for instance in instances} == dict.fromkeys(instances, 1)
    assert not [log.body for log in sink.logs if str(log.body).startswith("{")]  # a line that Celery made a record of
    runs = [
        (str(metric.resource["service.instance.id"]), point.count)
        for metric in sink.metrics
        if metric.name == "pocket_plug.run.duration"
        for point in metric.points
    ]
    assert sorted(runs) == sorted((instance, 1) for instance in instances)
    assert "not exported" not in output


@pytest.mark.parametrize(
    ("command", "said", "shop"),
    [
        (UVICORN, "Shutting down", SHOP),
        (UVICORN, "Shutting down", BARE),
        (f"{GUNICORN} --preload", "Shutting down", BARE),
        (PLAIN, "Handling signal: term", ""),
    ],
    ids=["uvicorn", "uvicorn-import", "gunicorn-uvicorn-preload-import", "gunicorn-sync-preload"],
)
def test_workers_of_a_web_server_send_everything_on_sigterm(
    tmp_path: Path, otlp_sink: Sink, command: str, said: str, shop: str
) -> None:
    """Running requests are answered, and sent; each worker is an instance of its own, forked or not."""
    with listen() as gate, listen() as web:
        command += f" --fd {web.fileno()}" if command.startswith("uvicorn") else f" --bind fd://{web.fileno()}"

        with server(command, tmp_path, {"shop.py": shop}, **variables(otlp_sink, gate)) as process:
            with ask(web) as client:
                run, worker = at_work(gate)
                os.kill(worker, signal.SIGSTOP)  # so that the other one gets the next request
                with ask(web) as other_client:
                    other_run, other_worker = at_work(gate)
                    os.kill(worker, signal.SIGCONT)
                    process.send_signal(signal.SIGTERM)
                    output = heard(process, said)
                    for each in (run, other_run):
                        each.close()
                    answers = [
                        b"".join(iter(lambda each=each: each.recv(4096), b"")) for each in (client, other_client)
                    ]
            output += process.communicate(timeout=60)[0]
    assert worker != other_worker
    assert [b"a parcel with tea" in answer for answer in answers] == [True, True], output
    assert_each_worker_sent_its_run(otlp_sink, output)
    if shop == SHOP:  # the caller's trace continues
        assert {span.trace_id for span in otlp_sink.spans} == {TRACE}


def test_a_run_that_uvicorn_does_not_wait_for_is_interrupted(tmp_path: Path, otlp_sink: Sink) -> None:
    """The process ends meanwhile: the run has its outcome, in all three signals, as in a process without a server."""
    with listen() as gate, listen() as web:
        command = f"uvicorn shop:app --timeout-graceful-shutdown 0 --fd {web.fileno()}"
        with server(command, tmp_path, {"shop.py": UNCLOSED}, **variables(otlp_sink, gate)) as process, ask(web):
            run, _ = at_work(gate)
            with run:
                process.send_signal(signal.SIGTERM)
                output = process.communicate(timeout=60)[0]
    assert process.returncode == -signal.SIGTERM, output
    assert otlp_sink.one("run shipping")["pocket_plug.run.outcome"] == "interrupted"
    (finished,) = [log for log in otlp_sink.logs if log.body == "pocket_plug.run.finished"]
    assert finished.attributes["pocket_plug.run.outcome"] == "interrupted"
    (duration,) = [metric for metric in otlp_sink.metrics if metric.name == "pocket_plug.run.duration"]
    assert duration.points[0].attributes["pocket_plug.run.outcome"] == "interrupted"


def test_workers_of_celery_send_everything_on_sigterm(tmp_path: Path, otlp_sink: Sink) -> None:
    """Its tasks end, and its processes by `os._exit`; log records are exported, though Celery configures logging again."""
    with listen() as gate:
        (tmp_path / "data_in").mkdir()
        given = variables(otlp_sink, gate) | {"CELERY_BROKER_URL": "filesystem://"}
        with server(
            f"{CELERY} --without-mingle --without-gossip", tmp_path, {"jobs.py": JOBS + SUBMITS}, **given
        ) as process:
            run, worker = at_work(gate)
            other_run, other_worker = at_work(gate)
            process.send_signal(signal.SIGTERM)
            output = heard(process, "Warm shutdown")
            for each in (run, other_run):
                each.close()
            output += process.communicate(timeout=60)[0]
    assert worker != other_worker
    assert_each_worker_sent_its_run(otlp_sink, output)
