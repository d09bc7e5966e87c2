"""Writes go to memory at once and to a database in the background, and none is lost silently.

A write returns once it is queued. A thread writes all queued writes as one, so the file always has a state that the store had at
some moment. Closing the store, or the end of the program, waits until the queue is empty.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from pocket_plug import Key, Store
from pocket_plug.layers import Bounding, Persistence

VISITS = Key("visits:{}", int)


def open_counters(file: Path) -> Store:
    return Store(layers=[Persistence(to=f"sqlite:///{file}", mode="behind"), Bounding(max_entries=2)])


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "visits.db")

        async with open_counters(file) as store:
            for number in range(300):
                await store.update(VISITS(number % 3), lambda visits: visits + 1, default=0)
            print("counted, although memory holds two:", [await store.get(VISITS(page)) for page in range(3)])
            await store.flush()
            async with Store(f"sqlite:///{file}") as database:
                print("in the database after a flush:     ", [await database.get(VISITS(page)) for page in range(3)])

            try:
                await store.set("session", object())
            except TypeError as error:
                print("not queued:", str(error).partition(";")[0])

        async with open_counters(file) as store:
            print("after a restart:", [name async for name in store.keys()])


if __name__ == "__main__":
    asyncio.run(main())
