"""Durable runs on a disk that loses power: they can be resumed, and checkpoint and state always belong together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pocket_plug import Graph, Next, Node, Store, StoreWriter, idempotency_key
from pocket_plug.backends.sqlite import Durability

if TYPE_CHECKING:
    from conftest import LosingDisk

pytestmark = pytest.mark.crash

ROUNDS = 6
STUMBLES = ("r/inner#3/odd#2", "r/count#4", "r/inner#6/draw#1")
"""The visits at which an execution ends: its store is closed, so the log is moved into the file, and another goes on."""
State = dict[str, Any]
Reach = Callable[[str], None]
"""Called in each exec with the key of its visit: whatever comes before that one has been acknowledged by then."""


class Stumble(Exception):
    """Ends an execution."""


def rounds(store: Store, reach: Reach) -> Graph[int, int]:
    """A loop around a nested graph, in which one way is a node and the other a loop; each visit writes a key of its own."""

    class Step(Node[int, int]):
        async def exec(self, prepared: int) -> int:
            reach(idempotency_key())
            return prepared

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int | Next[int]:
            await store.update("effects", lambda old: [*old, idempotency_key()], default=[])
            return await self.leave(store, n)

        async def leave(self, store: StoreWriter, n: int) -> int | Next[int]:
            raise NotImplementedError

    class Draw(Step):
        async def leave(self, store: StoreWriter, n: int) -> int | Next[int]:
            return Next("even" if n % 2 == 0 else "odd", n)

    class Even(Step):
        async def leave(self, store: StoreWriter, n: int) -> int:
            await store.update("even", lambda old: old + 1, default=0)
            return n

    class Odd(Step):
        async def leave(self, store: StoreWriter, n: int) -> int | Next[int]:
            loops = await store.update("loops", lambda old: old + 1, default=0)
            return Next("odd", n) if loops % 3 else n

    class Count(Step):
        async def leave(self, store: StoreWriter, n: int) -> int | Next[int]:
            await store.update("rounds", lambda old: old + 1, default=0)
            return n if n == ROUNDS else Next("again", n + 1)

    draw, even, odd, count = (kind().with_options(name=kind.__name__.lower()) for kind in (Draw, Even, Odd, Count))
    inner = Graph(draw, draw.on("even") >> even, draw.on("odd") >> odd, odd.on("odd") >> odd, name="inner")
    return Graph(inner >> count, count.on("again") >> inner, store=store, name="rounds")


async def state_of(store: Store) -> State:
    return {key: await store.get(key) async for key in store.keys()}


def undisturbed(path: Path) -> State:
    """The graph's result without failures."""

    async def main() -> State:
        async with Store(f"sqlite:///{path}?durability=process") as store:
            assert await rounds(store, lambda _: None).run(1, run_id="r") == ROUNDS
            return await state_of(store)

    return asyncio.run(main())


async def work(path: Path, durability: Durability, disk: LosingDisk) -> None:
    """One run in several executions; the disk's log notes each visit, and the end."""
    to_come = list(STUMBLES)

    def reach(visit: str) -> None:
        disk.log.append(visit)
        if visit in to_come:
            to_come.remove(visit)
            raise Stumble

    for _ in STUMBLES:
        async with Store(f"sqlite:///{path}?durability={durability}") as store:
            with pytest.raises(Stumble):
                await rounds(store, reach).run(1, run_id="r")
    async with Store(f"sqlite:///{path}?durability={durability}") as store:
        assert await rounds(store, reach).run(1, run_id="r") == ROUNDS
        disk.log.append("done")


async def check_agreement(store: Store, state: State) -> None:
    """The checkpoint and the run's recorded path name exactly the nodes whose effects are found."""
    effects: list[str] = state.get("effects", [])
    passed: list[str] = []
    async for key in store.stack.scan("pocket:run-part:r:path:"):
        entry = await store.stack.read(key)
        assert entry is not None
        passed.append(entry.value["node"])
    assert effects == [f"r{node}" for node in passed if not node.rpartition("/")[2].startswith("inner")]
    for accumulated, name in (("even", "even#"), ("loops", "odd#"), ("rounds", "count#")):
        assert state.get(accumulated, 0) == sum(name in visit for visit in effects)
    checkpoint = await store.stack.read("pocket:run:r")
    if checkpoint is None:
        assert passed == [], "nodes were passed, and no checkpoint tells of them"
        return
    record = checkpoint.value
    assert record["commits"] - record["epoch"] == len(passed), "one for each node passed, one for each execution"
    assert record["frames"][0]["visits"].get("count", 0) == state.get("rounds", 0)
    assert (record["status"] == "finished") == (state.get("rounds") == ROUNDS)


async def go_on(path: Path) -> tuple[State, State]:
    """The state after the failure, and the state after the run was resumed with an ordinary SQLite."""
    async with Store(f"sqlite:///{path}?durability=process") as store:
        found = await state_of(store)
        await check_agreement(store, found)
        assert await rounds(store, lambda _: None).run(1, run_id="r") == ROUNDS
        done = await state_of(store)
        await check_agreement(store, done)
    return found, done


def fail_often(
    folder: Path, durability: Durability, disk: LosingDisk, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """A failure at every moment. Returns the number of failures, and after how many an acknowledged node's effect was missing."""
    live, left = folder / "live", folder / "left"
    left.mkdir()
    expected = undisturbed(folder / "undisturbed.db")
    with disk.recording(monkeypatch):
        asyncio.run(work(live / "state.db", durability, disk))
    moments = set(range(len(disk.log)))
    missing = 0
    order = [*expected["effects"], "done"]
    for noted in disk.power_failures(left, moments, random.Random(7)):
        found, done = asyncio.run(go_on(left / "state.db"))
        effects = found.get("effects", [])
        assert effects == order[: len(effects)], "none twice, and none without those before it"
        assert done == expected
        missing += len(effects) < (order.index(noted[-1]) if noted else 0)
    return len(moments), missing


def test_power_a_run_loses_no_acknowledged_node(
    tmp_path: Path, losing_disk: LosingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`power`: whenever the power fails, each acknowledged node has its effect, once, and the run ends as usual."""
    failures, missing = fail_often(tmp_path, "power", losing_disk, monkeypatch)
    assert failures > 250
    assert missing == 0


def test_process_a_run_may_lose_the_tail_and_ends_the_same(
    tmp_path: Path, losing_disk: LosingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`process`: the last nodes may be undone (here they are); checkpoint and state agree, and the run ends as usual."""
    failures, missing = fail_often(tmp_path, "process", losing_disk, monkeypatch)
    assert missing > failures / 4
