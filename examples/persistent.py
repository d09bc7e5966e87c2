"""Memory in front of a database: reads come from a small cache, and writes go to SQLite first.

Layers are listed from the outermost to the innermost, in the order in which a call passes them.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pocket_plug import Key, Store
from pocket_plug.layers import Bounding, Persistence


@dataclass(frozen=True)
class Order:
    id: str
    total: float


ORDER = Key("order:{}", Order)


def open_shop(file: Path) -> Store:
    return Store(layers=[Persistence(to=f"sqlite:///{file}"), Bounding(max_entries=2)])


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "orders.db")

        async with open_shop(file) as store:
            for number in range(1, 5):
                await store.set(ORDER(number), Order(f"o-{number}", number * 10.0))
            print("all there, although memory holds two:", [name async for name in store.keys()])
            print("from the file:  ", await store.get(ORDER(1)))
            print("now from memory:", await store.get(ORDER(1)))

        async with open_shop(file) as store:
            print("after a restart:", await store.get(ORDER(4)))
            await store.delete(ORDER(4))

        async with Store(f"sqlite:///{file}") as store:
            print("in the database:", [name async for name in store.keys()])


if __name__ == "__main__":
    asyncio.run(main())
