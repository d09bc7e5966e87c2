"""A typed store, and a repository on top of it: what is no `User` gets neither in nor out.

Type checkers refuse the wrong type where they can see it, the store refuses it where they can't.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from pocket_plug import Store, ValueTypeError


@dataclass(frozen=True)
class User:
    id: str
    name: str


class UserRepository:
    """Users by id. The rest of the program needs to know of no key."""

    def __init__(self, store: Store) -> None:
        self._users = store.scope("user").typed(User)

    async def save(self, user: User) -> None:
        await self._users.set(user.id, user)

    async def find(self, id: str) -> User | None:
        return await self._users.get(id)

    async def rename(self, id: str, name: str) -> User:
        return await self._users.update(id, lambda user: User(user.id, name), default=User(id, name))


async def main() -> None:
    store = Store()
    users = UserRepository(store)

    await users.save(User("1", "Alice"))
    print(await users.find("1"), "/", await users.find("2"))
    print(await users.rename("1", "Alicia"))

    await store.set("user:3", json.loads('{"id": "3", "name": "Mallory"}'))  # somebody passed the repository by
    try:
        await users.find("3")
    except ValueTypeError as error:
        print("refused:", error)


if __name__ == "__main__":
    asyncio.run(main())
