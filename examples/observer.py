"""A plugin that observes runs: it is asked once for each run, and returns context managers that are entered around its parts.

The `finally` of a context manager sees every end, errors included. The plugin can't change the result of a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from pocket_plug import Graph, Node, Pocket, Retry, hookimpl, node
from pocket_plug.hookspecs import NodeCall, Observer, Run


class Narrator:
    """Prints what happens in the runs of some graphs."""

    def __init__(self, *graphs: str) -> None:
        self._graphs = graphs

    @hookimpl
    def pocket_observe(self, run: Run) -> Observer | None:
        return Observer(run=self._run, node=self._node, event=self._event) if run.graph in self._graphs else None

    @contextmanager
    def _run(self, run: Run) -> Generator[None]:
        print(f"{run.graph}({run.input!r})")
        try:
            yield
        finally:
            print(f"   {run.outcome} after {run.steps} nodes")

    @contextmanager
    def _node(self, call: NodeCall) -> Generator[None]:
        try:
            yield
        finally:
            tries = f" in {call.attempts} attempts" if call.attempts > 1 else ""
            print(f"   {call.name}: {call.outcome}{tries}, {call.output!r} -> {call.next or 'end'}")

    def _event(self, name: str, call: NodeCall, details: Mapping[str, Any]) -> None:
        print(f"      {call.name}: {name}")


class Flaky(Node[int, int], retry=Retry(attempts=3)):
    def __init__(self) -> None:
        self._failures = 2

    async def exec(self, number: int) -> int:
        if self._failures:
            self._failures -= 1
            raise ConnectionError("try again")
        return number


@node
async def invert(number: int) -> float:
    return 1 / number


async def main() -> None:
    graph = Graph(Flaky() >> invert, name="inversion")
    async with Pocket(plugins=[Narrator("inversion")]) as pocket:
        await pocket.run(graph, 4)
        try:
            await pocket.run(graph, 0)
        except ZeroDivisionError as error:
            print("and the caller sees:", error)
        await pocket.run(Graph(invert, name="unwatched"), 1)


if __name__ == "__main__":
    asyncio.run(main())
