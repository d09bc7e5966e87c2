"""How nodes and runs end: the outcomes on their spans and the states of durable runs, as the reference's table has them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import pocket_plug as pp
from pocket_plug.testing.spans import SpanCapture


@pp.node
def returns(n: int) -> int:
    return n


@pp.node
def fails(n: int) -> int:
    raise ValueError(n)


class FallsBack(pp.Node[int, int]):
    def exec(self, n: int) -> int:
        raise ValueError(n)

    def fallback(self, n: int, error: Exception) -> int:
        return n


@pp.node(timeout="1ms")
async def hangs(n: int) -> int:
    await asyncio.Event().wait()
    return n


begun: list[asyncio.Event] = []


@pp.node
async def waits(n: int) -> int:
    begun[-1].set()
    await asyncio.Event().wait()
    return n


ASK = pp.Ask[int, bool](bool, question="sure?", name="asks")


@pytest.mark.parametrize(
    ("first", "how", "node", "run", "state"),
    [
        (returns, "", "ok", "success", "finished"),
        (FallsBack(), "", "fallback", "success", "finished"),
        (fails, "", "failed", "failure", "failed"),
        (hangs, "", "failed", "timeout", "failed"),
        (waits, "by an operator", "cancelled", "cancelled", "cancelled"),
        (waits, "with its task", "cancelled", "cancelled", "stalled"),
        (ASK, "", "suspended", "suspended", "suspended"),
        (pp.Sleep("1h"), "", "suspended", "suspended", "suspended"),
    ],
    ids=("output", "fallback", "exception", "timeout", "cancelled run", "cancelled task", "question", "sleep"),
)
def test_outcomes_of_a_node_and_of_its_run_and_the_run_s_state(
    first: Any, how: str, node: str, run: str, state: str, tmp_path: Path
) -> None:
    async def main() -> str:
        begun.append(asyncio.Event())
        async with pp.Store(f"sqlite:///{tmp_path}/state.db") as store:
            task = asyncio.create_task(pp.Graph(first, name="flow").run(1, run_id="r", store=store))
            if how:
                await begun[-1].wait()
            if how == "by an operator":
                await pp.Runs(store).cancel("r")
            elif how:
                task.cancel()
            await asyncio.wait({task})
            task.cancelled() or task.exception()  # retrieved
            return (await pp.Runs(store).get("r")).state

    with SpanCapture() as capture:
        assert asyncio.run(main()) == state
    said = {name: value for span in capture.spans for name, value in (span.attributes or {}).items()}
    assert (said["pocket_plug.node.outcome"], said["pocket_plug.run.outcome"]) == (node, run)
