"""Durable runs in processes that are killed or stopped: every effect exactly once, and none of an overtaken process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import SyncStore

pytestmark = pytest.mark.crash

# Loops in loops, two ways through a nested graph, accumulators, a fan-out over graphs. Each exec prints its visit, and
# each post stores the visit and the sums.
RUNNING = """
import asyncio, os, sys
from pocket_plug import Graph, Next, Node, Retry, Store, StoreWriter, each, idempotency_key, node

ROUNDS, path, durability, waits_at, takeover = 43, *sys.argv[1:]


class Step(Node[int, int], retry=Retry(attempts=2)):
    async def exec(self, prepared: int) -> int:
        key = idempotency_key()
        os.write(1, f"{key}\\n".encode())
        if key == waits_at:
            sys.stdin.readline()
        return prepared

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int | Next[int]:
        await store.update("effect:" + idempotency_key(), lambda times: times + 1, default=0)
        return await self.leave(store, n)

    async def leave(self, store: StoreWriter, n: int) -> int | Next[int]:
        return n


class Draw(Step):
    async def leave(self, store: StoreWriter, n: int) -> int | Next[int]:
        return Next("even" if n % 2 == 0 else "odd", n)


class Even(Step):
    async def leave(self, store: StoreWriter, n: int) -> int:
        await store.update("even", lambda old: old + n, default=0)
        return n


class Odd(Step):
    async def leave(self, store: StoreWriter, n: int) -> int | Next[int]:
        loops = await store.update("loops", lambda old: old + 1, default=0)
        return Next("odd", n) if loops % 3 else n


class Item(Step):
    async def leave(self, store: StoreWriter, n: int) -> int:
        await store.update("items", lambda old: old + n, default=0)
        return n * n


class Round(Step):
    async def leave(self, store: StoreWriter, n: int) -> int | Next[int]:
        return n if n == ROUNDS else Next("again", n + 1)


@node
async def spread(n: int) -> list[int]:
    return list(range(n))


@node.post
async def gather(store: StoreWriter, squares: list[int]) -> int:
    await store.update("squares", lambda old: old + sum(squares), default=0)
    return len(squares)


draw, even, odd, item, count = Draw(), Even(), Odd(), Item(), Round()
inner = Graph(draw, draw.on("even") >> even, draw.on("odd") >> odd, odd.on("odd") >> odd, name="inner")
way = Graph(item >> Step().with_options(name="after"), name="way")


async def main():
    async with Store(f"sqlite:///{path}?durability={durability}") as store:
        graph = Graph(inner >> spread >> each(way, concurrency=3) >> gather >> count, count.on("again") >> inner,
                      store=store, name="rounds")
        print("done", await graph.run(1, run_id="r", takeover=takeover == "True"), flush=True)


asyncio.run(main())
"""


def start(path: Path, durability: str = "process", waits_at: str = "", takeover: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUNNING, str(path), durability, waits_at, str(takeover)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def outcome(path: Path) -> dict[str, Any]:
    with SyncStore(f"sqlite:///{path}?durability=process") as store:
        state = {key: store.get(key) for key in store.keys()}
    effects = [times for key, times in state.items() if key.startswith("effect:")]
    assert len(effects) > 2000
    assert set(effects) == {1}, "some effect was done twice"
    return state


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """The graph's result, and the visits that it prints."""
    path = tmp_path_factory.mktemp("undisturbed") / "state.db"
    said, errors = start(path).communicate()
    assert said.endswith("done 43\n"), errors
    return outcome(path), said.splitlines()[:-1]


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_killed_run_is_resumed_with_each_effect_once(
    tmp_path: Path, undisturbed: tuple[dict[str, Any], list[str]], durability: str
) -> None:
    """Killed at up to 12 random moments: every effect is there exactly once, and the state is that of an undisturbed run."""
    path, moments = tmp_path / "state.db", random.Random(5)
    kills = 0
    while True:
        with start(path, durability) as child:
            assert child.stdout is not None
            kill_after = moments.randrange(1, 150) if kills < 12 else 0
            said: list[str] = []
            for number, line in enumerate(child.stdout, 1):
                said.append(line)
                if number == kill_after:
                    for _ in range(moments.randrange(3000)):
                        pass  # somewhere between this exec and the next ones
                    child.kill()
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
        kills += 1
    assert kills > 3  # under load a kill comes late, so the run may end before the 12th
    assert said[-1] == "done 43\n"
    assert outcome(path) == undisturbed[0]


def test_a_stopped_process_finds_itself_fenced(tmp_path: Path, undisturbed: tuple[dict[str, Any], list[str]]) -> None:
    """Stopped before a commit, and continued after another process has taken the run over and finished it: it writes nothing
    more.
    """
    path, visits = tmp_path / "state.db", undisturbed[1]
    with start(path, waits_at=visits[len(visits) // 2]) as stopped:
        assert stopped.stdout is not None
        assert stopped.stdin is not None
        assert stopped.stderr is not None
        for line in stopped.stdout:
            if line.rstrip() == visits[len(visits) // 2]:
                break
        os.kill(stopped.pid, signal.SIGSTOP)
        stopped.stdin.write("\n")
        stopped.stdin.flush()
        with start(path) as refused:
            assert refused.stderr is not None
            assert f"RunBusyError: run 'r' is running: process {stopped.pid} on" in refused.stderr.read()
        with start(path, takeover=True) as other:
            assert other.stdout is not None
            assert other.stdout.read().endswith("done 43\n")
        os.kill(stopped.pid, signal.SIGCONT)
        assert "RunFencedError: run 'r' was taken over by another execution: epoch 2 owns it" in stopped.stderr.read()
    assert outcome(path) == undisturbed[0]
