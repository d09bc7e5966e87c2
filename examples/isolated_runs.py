"""A scope for each run: concurrent runs don't see each other's data, and the data of a run can be deleted as a whole.

Nodes and chains belong to no graph, so you can create a graph for each run, each with another store, at almost no cost.
"""

from __future__ import annotations

import asyncio
from itertools import count

from pocket_plug import Action, Graph, Key, Next, Node, Store, StoreWriter

RUN = Key("run:{}:{}")
GUESS = Key("guess", int)
_numbers = count(1)


class Halve(Node[int, int]):
    """Halves a number until it is 1, and stores each step."""

    again = Action[int]()

    async def post(self, store: StoreWriter, number: int, _: int, __: int) -> int | Next[int]:
        steps = await store.update("steps", lambda steps: [*steps, number], default=[])
        return self.again(number // 2) if number > 1 else len(steps)


halve = Halve()


async def run_isolated(parent: Store, workflow: str, number: int) -> int:
    own = parent.scope(RUN(workflow, next(_numbers)))
    return await Graph(halve.again >> halve, store=own, name=workflow).run(number)


async def main() -> None:
    store = Store()
    print("steps:", await asyncio.gather(*(run_isolated(store, "halving", number) for number in (100, 7, 1))))
    for name in [name async for name in store.keys("run:halving:")]:
        print("  ", name, "=", await store.get(name))

    first = store.scope(RUN("halving", 1))
    await first.delete_many([name async for name in first.keys()])
    print("left:", [name async for name in store.keys()])


if __name__ == "__main__":
    asyncio.run(main())
