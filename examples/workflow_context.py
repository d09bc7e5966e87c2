"""Data that all nodes of a workflow need, written once by the first node: who asked, when, and what they prefer.

The nodes in between need not pass it on. Runs at the same time need a scope each, as in isolated_runs.py: otherwise one reads
the context of another.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

from pocket_plug import Graph, Key, Node, Store, StoreReader, StoreWriter, node


@dataclass(frozen=True)
class Request:
    id: str
    user: str
    language: str
    text: str


@dataclass(frozen=True)
class Context:
    request: str
    user: str
    language: str
    began: datetime


CONTEXT = Key("workflow:context", Context)
MOTTO = {"en": "at your service", "fr": "à votre service"}


@node.post
async def note_context(store: StoreWriter, request: Request) -> str:
    await store.set(CONTEXT, Context(request.id, request.user, request.language, datetime.now(UTC)))
    return request.text


@node
async def shorten(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:20]}…"


class Answer(Node[str, str]):
    async def prep(self, store: StoreReader, text: str) -> tuple[Context, str]:
        return await store.require(CONTEXT), text

    async def exec(self, prepared: tuple[Context, str]) -> str:
        context, text = prepared
        return f"[{context.request}] {context.user}, about “{text}”: {MOTTO[context.language]}"


async def main() -> None:
    store = Store()
    workflow = Graph(note_context >> shorten >> Answer(), store=store, name="workflow")
    print(await workflow.run(Request("r-1", "Alice", "fr", "Where is my parcel, please?")))
    print(await workflow.run(Request("r-2", "Bob", "en", "Thanks a lot!")))
    print("kept:", (await store.require(CONTEXT)).user, "was the last to ask")


if __name__ == "__main__":
    asyncio.run(main())
