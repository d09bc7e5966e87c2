"""Nothing there: take a default where one will do, fail with a message where none will.

`MISSING` tells a stored None from nothing stored; a backend that fails is an error, never "nothing there".
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
        config = await store.get(CONFIG, default=Config())  # a default will do
        api_key = await store.require(API_KEY)  # without it there is no point in going on
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
