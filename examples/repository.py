"""A typed store, and a repository that uses it: only values of the type `User` can be stored and read.

Type checkers report a wrong type if they can see it; otherwise the store raises an error.
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
    """Users by id. The rest of the program doesn't use keys."""

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

    await store.set("user:3", json.loads('{"id": "3", "name": "Mallory"}'))  # written without the repository
    try:
        await users.find("3")
    except ValueTypeError as error:
        print("refused:", error)


if __name__ == "__main__":
    asyncio.run(main())
