"""A store by itself: set, get, delete, time to live, and an update that is atomic among concurrent callers.

A key can be any string. A `Key` also declares the type of the value, which type checkers then know.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pocket_plug import MISSING, Key, Store


@dataclass(frozen=True)
class User:
    id: str
    name: str


USER = Key("user:{}", User)
VISITS = Key("visits", int)


async def main() -> None:
    store = Store()  # in memory; nothing to open

    await store.set("greeting", "hello")
    print(await store.get("greeting"), "/", await store.get("farewell", "nothing yet"))

    await store.set(USER(123), User("123", "Alice"), ttl="5m")
    if (user := await store.get(USER(123))) is not None:  # user: User | None
        print(f"{user.name} stands at {USER(123)}, for at most 300 seconds: {await store.ttl(USER(123)) or 0:.0f}")

    await store.set("nickname", None)  # a stored None is a value
    for name in ("nickname", "surname"):
        print(name, "is", "not there" if await store.get(name, MISSING) is MISSING else "there")

    await asyncio.gather(*(store.update(VISITS, lambda visits: visits + 1, default=0) for _ in range(100)))
    print("visits:", await store.require(VISITS))

    await store.set_many({"colour": "green", "size": 7})
    print("deleted:", await store.delete("colour"), "and again:", await store.delete("colour"))
    print("left:", [name async for name in store.keys()])

    store.sync.set("greeting", "bonjour")  # the same store for code that can't await
    print(store.sync.get("greeting"))


if __name__ == "__main__":
    asyncio.run(main())
