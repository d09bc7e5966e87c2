"""Each run in a scope of its own: runs at the same time don't meet, and one is thrown away as a whole.

One graph, many stores: nodes and chains belong to no graph, so a graph for each run costs next to nothing.
"""

from __future__ import annotations

import asyncio
from itertools import count

from pocket_plug import Action, Graph, Key, Next, Node, Store, StoreWriter

RUN = Key("run:{}:{}")
GUESS = Key("guess", int)
_numbers = count(1)


class Halve(Node[int, int]):
    """Halves until nothing is left, and keeps the way in the store."""

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
