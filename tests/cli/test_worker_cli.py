"""`pocket-plug worker`: takes submitted runs, reports what becomes of them, and stops on a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from pocket_plug import SyncStore
from pocket_plug.graph.durable.heartbeat import BEAT
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.durable.states import states_of
from pocket_plug.testing.clock import FakeClock

POCKET_PLUG = [sys.executable, "-W", "error", "-m", "pocket_plug"]
URL = "sqlite:///state.db?durability=process"

SHOP = """
    import asyncio, time
    from pathlib import Path
    import pocket_plug as pp

    @pp.node
    async def price(word: str) -> int:
        if word == "wait":
            print("at work", flush=True)
            while not Path("go").exists():
                await asyncio.sleep(0.01)
        return len(word)

    @pp.node
    def deliver(price: int) -> str:
        if price == 3:
            raise ValueError("closed")
        return f"delivered for {price}"

    @pp.node
    async def block(word: str) -> str:
        print("at work", flush=True)
        while not Path("go").exists():
            time.sleep(0.01)  # the loop stands still
        return word

    blocking = pp.Graph(block, name="blocking")
    graph = pp.Graph(price >> deliver, name="shop")
    other = pp.Graph(deliver, name="other")
    own = pp.Graph(price, name="own", store=pp.Store("sqlite:///own.db"))
    number = 7
"""

SUBMIT = """
    import sys
    from pocket_plug import SyncStore
    import shop
    with SyncStore(sys.argv[2]) as store:
        for each in sys.argv[3:]:
            getattr(shop, sys.argv[1]).submit_sync(each, run_id=each, store=store)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("shop.py").write_text(dedent(SHOP))
    return tmp_path


def submit(*words: str, graph: str = "graph") -> None:
    subprocess.run([sys.executable, "-c", dedent(SUBMIT), graph, URL, *words], check=True)


def worker(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*POCKET_PLUG, "worker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A worker that keeps running, with the signals of a terminal's foreground process."""
    command = [*POCKET_PLUG, "worker", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def in_state(state: str) -> list[str]:
    async def names() -> list[str]:
        return [key.rpartition(":")[2] async for key in store.stack.scan(states_of(state))]

    with SyncStore(URL) as store:
        return store.stack.run(names())


def test_once_takes_ready_runs_and_reports_them() -> None:
    """A line for each event: what, which run, of which graph. The exit code says whether a run has failed."""
    submit("apple", "fig")
    ran = worker("shop.py", "--url", URL, "--once", "--concurrency", "1")
    assert sorted(ran.stdout.splitlines()) == [
        "failed     fig  shop  ValueError",
        "finished   apple  shop",
        "taken      apple  shop",
        "taken      fig  shop",
    ]
    assert (ran.returncode, ran.stderr) == (1, "")
    assert (in_state("finished"), in_state("failed")) == (["apple"], ["fig"])
    assert worker("shop.py", "--url", URL, "--once").returncode == 0


def test_what_it_runs_is_traced_with_what_is_captured() -> None:
    """--trace and --capture, as of `run`."""
    submit("apple")
    assert worker("shop.py", "--url", URL, "--once", "--capture", "full").returncode == 2
    assert worker("shop.py", "--url", URL, "--once", "--trace", "--capture", "full").returncode == 0
    assert '"delivered for 5"' in Path(".pocket_plug/traces.jsonl").read_text("utf-8").replace("\\", "")


def test_a_run_id_with_a_line_break_is_one_line() -> None:
    """Ids may come from users: none can pretend that another run has finished."""
    submit("apple\nfinished   fig  shop")
    ran = worker("shop.py", "--url", URL, "--once")
    line = r"apple\nfinished   fig  shop  shop"
    assert ran.stdout.splitlines() == [f"taken      {line}", f"finished   {line}"]


def test_json_is_a_line_for_each() -> None:
    """For machines."""
    submit("apple")
    ran = worker("shop.py", "shop.py:other", "--url", URL, "--once", "--json")
    taken, finished = map(json.loads, ran.stdout.splitlines())
    assert taken == {"became": "taken", "run_id": "apple", "graph": "shop", "error": None}
    assert finished["became"] == "finished"
    assert ran.returncode == 0


def test_what_nodes_print_is_no_part_of_the_json() -> None:
    """It goes to stderr; each line of stdout is a report."""
    submit("wait")
    Path("go").touch()
    ran = worker("shop.py", "--url", URL, "--once", "--json")
    assert [json.loads(line)["became"] for line in ran.stdout.splitlines()] == ["taken", "finished"]
    assert ran.stderr == "at work\n"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_worker_whose_output_nobody_reads_any_more_says_so_once_and_goes_on(options: list[str]) -> None:
    """It logged a traceback for each report of a run."""
    submit("apple", "pear", "plum")
    reading, writing = os.pipe()
    os.close(reading)
    command = [*POCKET_PLUG, "worker", "shop.py", "--url", URL, "--once", *options]
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert (ran.returncode, ran.stderr.count("BrokenPipeError")) == (0, 1), ran.stderr
    assert in_state("finished") == ["apple", "pear", "plum"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals) -> None:
    """It says what it waits for. The running node ends and is committed, the run is released, and the exit code is 0."""
    submit("wait")
    with running("shop.py", "shop.py:other", "--url", URL) as process:
        assert process.stderr is not None
        waiting = "waiting for runs of 'shop', 'other' in SQLite('state.db', durability='process'); Ctrl-C stops\n"
        assert process.stderr.readline() == waiting
        assert process.stdout is not None
        assert process.stdout.readline() == "taken      wait  shop\n"
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        assert process.stderr.readline().startswith("stopping after ")  # only then may the node end
        Path("go").touch()
        out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("released   wait  shop\n", "", 0)
    assert in_state("pending") == ["wait"]


def test_what_a_worker_waits_for_is_shown_without_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "hunter2")
    Path("pocket.toml").write_text('[store]\nurl = "sqlite:///${WHERE}.db"\n')
    with running("shop.py") as process:
        assert process.stderr is not None
        waiting = "waiting for runs of 'shop' in SQLite('${WHERE}.db', durability='power'); Ctrl-C stops\n"
        assert process.stderr.readline() == waiting


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(number: signal.Signals, code: int) -> None:
    """The node is cancelled; the next worker takes the run at once, since its process is gone."""
    submit("wait")
    with running("shop.py", "--url", URL) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "at work\n":
            pass
        process.send_signal(number)
        assert process.stderr is not None
        while not process.stderr.readline().startswith("stopping after "):
            pass
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == code
    assert in_state("running") == ["wait"]
    Path("go").touch()
    assert worker("shop.py", "--url", URL, "--once").stdout.splitlines()[-1] == "finished   wait  shop"


def test_a_run_whose_node_blocks_the_loop_for_longer_than_its_lease_is_not_stalled() -> None:
    """By the observer's clock four leases pass; the heartbeats of the process, which name the run, keep it."""
    submit("long", graph="blocking")
    clock = FakeClock()

    async def beats(store: SyncStore) -> int:
        found = [await store.stack.read(key) async for key in store.stack.scan(BEAT)]
        return max((entry.version for entry in found if entry is not None), default=0)

    async def stalled(watch: StallWatch, store: SyncStore) -> bool:
        return bool(await watch.look([key async for key in store.stack.scan(states_of("running"))]))

    with running("shop.py:blocking", "--url", URL, "--lease", "300ms") as process, SyncStore(URL) as store:
        assert process.stdout is not None
        while process.stdout.readline() != "at work\n":
            pass
        watch = StallWatch(store.stack, clock)
        for _ in range(5):
            seen = store.stack.run(beats(store))
            until = time.monotonic() + 30
            while store.stack.run(beats(store)) == seen:
                assert time.monotonic() < until, "no heartbeat"
                time.sleep(0.01)
            assert not store.stack.run(stalled(watch, store))
            clock.advance(0.29)
            assert not store.stack.run(stalled(watch, store))
        process.kill()
        process.wait()
        assert store.stack.run(stalled(watch, store))


def test_a_stopped_workers_run_is_taken_over_and_it_finds_that_out() -> None:
    """SIGSTOP for longer than the lease: another worker continues the run; after SIGCONT the first one commits nothing."""
    submit("wait")
    with running("shop.py", "--url", URL, "--lease", "300ms") as process:
        assert process.stdout is not None
        while process.stdout.readline() != "at work\n":
            pass
        process.send_signal(signal.SIGSTOP)
        Path("go").touch()
        with running("shop.py", "--url", URL, "--lease", "300ms") as other:
            assert other.stdout is not None
            while other.stdout.readline() != "finished   wait  shop\n":
                pass
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "lost       wait  shop  pocket_plug.errors.RunFencedError\n"
    assert in_state("finished") == ["wait"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shop.py:number", "--url", URL], "shop.py:number is int, not a Graph"),
        (["shop.py", "shop.py", "--url", URL], "two graphs of this worker have the name 'shop'"),
        (["shop.py:own", "--url", URL], "graph 'own' has a store of its own, so its runs aren't in sqlite:///state.db"),
        (["shop.py", "--url", URL, "--lease", "soon"], "--lease"),
        (["shop.py", "--url", URL, "--concurrency", "0"], "concurrency"),
        (["shop.py"], "is durable, but its store"),
    ],
)
def test_invalid_targets_are_refused(arguments: list[str], said: str) -> None:
    """Exit code 2, and the reason."""
    submit("apple")
    ran = worker(*arguments, "--once")
    assert said in ran.stderr
    assert (ran.stdout, ran.returncode) == ("", 2)
