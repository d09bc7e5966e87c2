"""Worker processes: they end with the process that has started them, ignore Ctrl-C, and have the same code or report that they
don't.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from pocket_plug import ConfigError, ExecutorError, ExecutorLostError, Pocket
from pocket_plug.executors import Processes, Threads

SOON = 60.0

GRAPH = """
import os, sys, time
from pathlib import Path
from pocket_plug import Graph, node

RATE = 1

def rated(n):
    return RATE * n

@node(executor="processes://?workers=1")
def work(folder: str) -> int:
    (Path(folder) / "worker").write_text(str(os.getpid()))
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    return rated(1)

graph = Graph(work)
"""
SCRIPT = "import sys\nfrom app import graph\nif __name__ == '__main__':\n    print(graph.run_sync(sys.argv[1]))\n"


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Generator[None]:
    """A program that hangs fails its test, and is killed."""
    yield
    while _started:
        started = _started.pop()
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


def is_there(pid: int) -> bool:
    """Does the process run, and isn't a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)  # another process does it


def start(folder: Path, script: str = SCRIPT, graph: str = GRAPH) -> subprocess.Popen[str]:
    (folder / "app.py").write_text(graph)
    (folder / "main.py").write_text(script)
    started = subprocess.Popen(
        [sys.executable, "main.py", str(folder)],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    _started.append(started)
    return started


def worker_of(folder: Path, started: subprocess.Popen[str]) -> int:
    """The worker's id, once it executes."""
    file = folder / "worker"
    until(lambda: started.poll() is not None or (file.exists() and bool(file.read_text())), "no worker begins")
    assert started.poll() is None, started.communicate()
    return int(file.read_text())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT], ids=lambda how: how.name)
def test_no_worker_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    """However the parent ends, while the worker executes."""
    started = start(tmp_path)
    worker = worker_of(tmp_path, started)
    if how is signal.SIGINT:
        os.killpg(started.pid, how)  # as a terminal does: to the workers as well
    else:
        started.send_signal(how)
    out, err = started.communicate(timeout=SOON)
    until(lambda: not is_there(worker), "the worker is still there")
    assert out == ""
    assert err.count("Traceback") <= 1, err
    assert ("KeyboardInterrupt" in err) is (how is signal.SIGINT)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_a_signal_that_the_program_handles_leaves_its_workers_alone(tmp_path: Path, how: signal.Signals) -> None:
    """The program decides: Ctrl-C goes to all of the processes, and so does systemd's SIGTERM."""
    caught = f"    signal.signal({how.value}, lambda *_: print('caught', flush=True))\n"  # but the worker doesn't
    started = start(tmp_path, "import signal\n" + SCRIPT.replace("__main__':\n", "__main__':\n" + caught))
    worker = worker_of(tmp_path, started)
    os.killpg(started.pid, how)
    assert started.stdout is not None
    assert started.stdout.readline() == "caught\n"
    (tmp_path / "go").touch()
    assert started.communicate(timeout=SOON)[0] == "1\n"
    assert int((tmp_path / "worker").read_text()) == worker, "it began anew"


def test_a_graph_of_the_script_itself(tmp_path: Path) -> None:
    """Workers import the script, in which the run is below `if __name__ == "__main__":`."""
    (tmp_path / "go").touch()
    main = "if __name__ == '__main__':\n    print(graph.run_sync(sys.argv[1]))\n"
    out, err = start(tmp_path, GRAPH + main).communicate(timeout=SOON)
    assert (out, err) == ("1\n", "")


def test_a_script_without_a_guard_says_what_it_lacks(tmp_path: Path) -> None:
    """Its workers would run it again when they import it; they print nothing about it, so there is only one error."""
    started = start(tmp_path, GRAPH + "print(graph.run_sync(sys.argv[1]))\n")
    _, err = started.communicate(timeout=SOON)
    assert started.returncode == 1
    assert err.count("Traceback") == 1
    assert 'put the code that runs it below `if __name__ == "__main__":`' in err


def test_a_script_that_fails_in_its_workers_alone_says_why(tmp_path: Path) -> None:
    """What they print on stderr is shown."""
    worker_only = "if __name__ == '__mp_main__':\n    raise ValueError('only there')\n"
    main = "if __name__ == '__main__':\n    print(graph.run_sync(sys.argv[1]))\n"
    started = start(tmp_path, GRAPH + worker_only + main)
    _, err = started.communicate(timeout=SOON)
    assert started.returncode == 1
    assert "ValueError: only there" in err
    assert "a worker process ended at its start (exit code 1)" in err


def test_an_executor_that_is_dropped_ends_its_workers(tmp_path: Path) -> None:
    """The program need not close it, and ends all the same."""
    (tmp_path / "go").touch()
    script = (
        "import sys, gc\nfrom app import work\nfrom pocket_plug import Graph\nfrom pocket_plug.executors import Processes\n"
        "if __name__ == '__main__':\n"
        "    graph = Graph(work.with_options(executor=Processes(1)))\n"
        "    print(graph.run_sync(sys.argv[1]))\n"
        "    del graph\n"
        "    gc.collect()\n"
    )
    started = start(tmp_path, script)
    assert started.communicate(timeout=SOON) == ("1\n", "")
    until(lambda: not is_there(int((tmp_path / "worker").read_text())), "the worker is still there")


def test_a_graph_below_the_guard_is_an_error_that_says_where_it_has_to_be(tmp_path: Path) -> None:
    """Workers import the script, but don't execute its main part."""
    imports, _, rest = GRAPH.partition("RATE")
    below = "".join(f"    {line}\n" for line in f"RATE{rest}\nprint(graph.run_sync(sys.argv[1]))".splitlines())
    _, err = start(tmp_path, f"{imports}if __name__ == '__main__':\n{below}").communicate(timeout=SOON)
    assert "WorkerCodeError" in err
    assert 'Define it above `if __name__ == "__main__":`' in err


def test_a_graph_without_a_file_is_refused_before_the_run(tmp_path: Path) -> None:
    """For example one of an interactive session."""
    (tmp_path / "app.py").write_text("")
    code = GRAPH + "graph.validate()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "GraphError" in done.stderr
    assert "move the node into a module of its own" in done.stderr


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        (GRAPH.replace("return rated(1)", "return rated(2)"), False),
        (GRAPH.replace("return RATE * n", "return RATE + n"), False),
        (GRAPH.replace("RATE = 1", "\n\n# another line\nRATE = 1"), True),
        (GRAPH.replace("Graph(work)", "Graph(work, version=2)"), False),
        (GRAPH.replace("def work", "def works"), False),
        ("raise RuntimeError('broken')", False),
    ],
    ids=["exec", "a function that it calls", "lines", "the graph's version", "another name", "broken"],
)
def test_a_worker_with_another_version_of_the_code_says_so(tmp_path: Path, changed: str, is_same: bool) -> None:
    """The module's file has changed since this process has imported it."""
    (tmp_path / "go").touch()
    (tmp_path / "changed.py").write_text(changed)
    script = (
        "if __name__ == '__main__':\n"
        "    import os, pathlib, pocket_plug, sys\n"
        "    from app import graph\n"
        "    pathlib.Path('app.py').write_text(pathlib.Path('changed.py').read_text())\n"
        "    os.utime('app.py', (2e9, 2e9))  # else the bytecode of the same second is taken for its own\n"
        "    try:\n"
        "        print(graph.run_sync(sys.argv[1]))\n"
        "    except pocket_plug.WorkerCodeError as error:\n"
        "        print(error.module, error, sep='|')\n"
    )
    out, _ = start(tmp_path, script).communicate(timeout=SOON)
    assert (out == "1\n") is is_same
    if not is_same:
        assert out.startswith("app|worker ")
        assert "node 'work' (app:graph/work)" in out


def test_the_nodes_of_a_nested_graph_have_the_version_of_the_outer_graph(tmp_path: Path) -> None:
    """As its runs have. Each run of a graph of version 2 failed at such a node, since the inner graph is of version 1."""
    (tmp_path / "go").touch()
    nested = GRAPH.replace("Graph(work)", "Graph(Graph(work, name='inner', version=3), version=2)")
    out, err = start(tmp_path, SCRIPT, nested).communicate(timeout=SOON)
    assert (out, err) == ("1\n", "")


def test_a_module_that_was_changed_and_reloaded_runs_in_the_workers_of_a_new_pocket(tmp_path: Path) -> None:
    """As one works in a notebook. The old workers' error says so; a changed constant is in effect there too."""
    (tmp_path / "go").touch()
    script = (
        "if __name__ == '__main__':\n"
        "    import app, importlib, os, pathlib, pocket_plug, sys\n"
        "    print(app.graph.run_sync(sys.argv[1]))\n"
        "    text = pathlib.Path('app.py').read_text()\n"
        "    pathlib.Path('app.py').write_text(text.replace('RATE = 1', 'RATE = 5').replace('rated(1)', 'rated(2)'))\n"
        "    os.utime('app.py', (2e9, 2e9))\n"
        "    importlib.reload(app)\n"
        "    try:\n"
        "        app.graph.run_sync(sys.argv[1])\n"
        "    except pocket_plug.WorkerCodeError as error:\n"
        "        print(error)\n"
        "    with pocket_plug.Pocket() as pocket:\n"
        "        print(app.graph.run_sync(sys.argv[1], pocket=pocket))\n"
    )
    before, error, after = start(tmp_path, script).communicate(timeout=SOON)[0].splitlines()
    assert (before, after) == ("1", "10")
    assert "`with Pocket() as pocket: graph.run_sync(…, pocket=pocket)`" in error


def test_a_forked_child_has_workers_of_its_own() -> None:
    """The parent's workers are left alone."""
    executor = Processes(1)
    try:
        parents = executor.submit(pid, b"").result(SOON)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                os.write(write, executor.submit(pid, b"").result(SOON))
                executor.close()
            os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read, "rb") as answered:
            assert answered.read() not in (b"", parents)
        assert executor.submit(pid, b"").result(SOON) == parents
    finally:
        executor.close()
    until(lambda: not is_there(int(parents)), "the worker is still there")


def test_a_worker_that_somebody_else_has_reaped_is_replaced() -> None:
    """As by another thread that waits for any child: another worker does the work, and nobody hangs."""
    executor = Processes(1)
    try:
        first = int(executor.submit(pid, b"").result(SOON))
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        assert int(executor.submit(pid, b"").result(SOON)) != first
    finally:
        executor.close()


FORKING = """
import os
from pocket_plug import Graph, each, node

def forked(how):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if how == "returns":
        return -1
    raise {"exits": SystemExit(3), "fails": ValueError("a child's")}[how]

@node(executor="processes://?workers=1")
def fork(how: str) -> int:
    return forked(how)

@node(executor="processes://?workers=1")
async def fork_async(how: str) -> int:
    return forked(how)

plain, awaited = Graph(each(fork)), Graph(each(fork_async))
"""


def test_a_child_that_exec_has_forked_sends_no_answer(tmp_path: Path) -> None:
    """It ends when it returns from exec; otherwise its answer would be taken for the next item's."""
    script = """
from app import awaited, plain
if __name__ == "__main__":
    for graph in plain, awaited:
        print(graph.run_sync(["returns", "exits", "fails", "returns"]))
"""
    out, said = start(tmp_path, script, FORKING).communicate(timeout=SOON)
    assert out.split("\n")[:2] == ["[1, 1, 1, 1]"] * 2
    assert said.count("has forked this process, and returned in the child") == 8


def test_a_worker_that_leaves_a_child_behind_is_known_to_have_died(tmp_path: Path) -> None:
    """The child keeps the connection open. The worker's slot isn't lost, and nobody waits without end."""
    executor = Processes(1)
    left = tmp_path / "left"
    try:
        with pytest.raises(ExecutorLostError, match="signal 9"):
            executor.submit(leave_a_child, str(left).encode()).result(SOON)
        assert executor.submit(pid, b"").result(SOON)
    finally:
        executor.close()
        for child in left.read_text().split():
            os.kill(int(child), signal.SIGKILL)


def test_a_worker_whose_work_times_out_during_its_start_serves_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a node with a timeout shorter than its worker's start would never succeed, however often it is retried."""
    began, may_end = threading.Event(), threading.Event()
    started: list[SpawnProcess] = []
    start = SpawnProcess.start

    def slowly(process: SpawnProcess) -> None:
        started.append(process)
        began.set()
        start(process)
        may_end.wait(SOON)

    monkeypatch.setattr(SpawnProcess, "start", slowly)
    executor = Processes(1)
    try:
        left = executor.submit(pid, b"")
        assert began.wait(SOON)
        left.cancel()
        may_end.set()
        assert executor.submit(pid, b"").result(SOON)
        assert len(started) == 1
    finally:
        executor.close()


def test_a_worker_that_can_not_be_started_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example for lack of files or processes: no worker has died. The next one may start."""

    def fail(_: SpawnProcess) -> None:
        raise OSError(24, "Too many open files")

    executor = Processes(1)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(SpawnProcess, "start", fail)
            with pytest.raises(ExecutorError, match=r"can't be started: OSError: .*Too many open files"):
                executor.submit(pid, b"").result(SOON)
        assert executor.submit(pid, b"").result(SOON)
    finally:
        executor.close()


def leave_a_child(file: bytes) -> bytes:
    """Die, with a child that stays alive."""
    child = os.fork()
    if child == 0:
        time.sleep(SOON)
        os._exit(0)
    with open(file, "a") as out:
        print(child, file=out)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def pid(_: bytes) -> bytes:
    """The worker's process id."""
    return str(os.getpid()).encode()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("processes://host", "only options"),
        ("processes://?worker=2", "Did you mean 'workers'"),
        ("processes://?workers=0", "whole number"),
        ("processes://?workers=1&workers=2", "twice"),
        ("threads://?workers=2", "it has: none"),
        ("threads://x", "nothing may follow"),
    ],
)
def test_a_url_that_is_invalid_is_refused(url: str, said: str) -> None:
    """The error says what is allowed."""
    with pytest.raises(ConfigError, match=said):
        Pocket(autoload=False).executor(url)


def test_names_and_urls_of_a_pocket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One executor for all nodes that name the same; names come from the file, and from schemes."""
    file = tmp_path / "pocket.toml"
    file.write_text('[executors]\nheavy = "processes://?workers=${CORES}"\nbroken = "nowhere://"\n')
    monkeypatch.setenv("CORES", "3")
    pocket = Pocket(file, autoload=False)
    heavy = pocket.executor("heavy")
    assert isinstance(heavy, Processes)
    assert heavy.workers == 3
    assert pocket.executor("processes://?workers=3") is heavy
    assert isinstance(pocket.executor("threads"), Threads)
    assert pocket.executor("threads") is pocket.executor("threads://")
    assert pocket.executor(heavy) is heavy
    with pytest.raises(
        ConfigError,
        match=r"pocket.toml \[executors\].broken: there is no executor 'nowhere://'; there is: processes, threads\.",
    ):
        pocket.executor("broken")
    with pytest.raises(ConfigError, match="Did you mean 'heavy'"):
        pocket.executor("heavi")
