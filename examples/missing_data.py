"""If an entry is missing: use a default if there is a sensible one, or raise an error.

`MISSING` distinguishes a stored None from no entry. If a backend fails, it raises an error, which never looks like no entry.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pocket_plug import MISSING, Graph, Key, MissingKeyError, Node, Store, StoreReader


@dataclass(frozen=True)
class Config:
    retries: int = 3


CONFIG = Key("config", Config)
API_KEY = Key("secret:api_key", str)


class Connect(Node[str, str]):
    async def prep(self, store: StoreReader, host: str) -> str:
        config = await store.get(CONFIG, default=Config())  # there is a sensible default
        api_key = await store.require(API_KEY)  # the program can't work without it
        return f"{host} with {len(api_key)} characters of key, {config.retries} retries"


async def main() -> None:
    store = Store()
    connect = Graph(Connect(), store=store.scope("prod"), name="connect")
    try:
        await connect.run("example.org")
    except MissingKeyError as error:
        print("refused:", error)

    await store.set("prod:secret:api_key", "s3cret")
    print("connected to", await connect.run("example.org"))

    await store.set("prod:config", Config(retries=0))
    print("connected to", await connect.run("example.org"))

    await store.set("middle_name", None)
    for name in ("middle_name", "maiden_name"):
        found = await store.get(name, MISSING)
        print(f"{name}:", "never asked" if found is MISSING else "asked, has none" if found is None else found)


if __name__ == "__main__":
    asyncio.run(main())
