"""A web application that shows each run while it is executed, by server-sent events. If a client leaves, its run is cancelled.

`python examples/streaming/app.py`, and open the page that it names. `curl -N 'http://127.0.0.1:8000/write?topic=tea'` shows the
events. It needs Starlette and uvicorn.

With `--store sqlite:///runs.db` it also shows durable runs of that store, whichever process executes them: `/follow?run=ID`, or
the page with `/?run=ID`. They continue when a client leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from pocket_plug import (
    Asked,
    Emitted,
    Finished,
    FollowedEvent,
    Graph,
    ItemDone,
    Node,
    NodeEntered,
    NodeLeft,
    NodeRetried,
    Progressed,
    RunEvent,
    Runs,
    StateChanged,
    Store,
    StoreWriter,
    Suspended,
    UnknownRunError,
    each,
    emit,
    node,
    progress,
)


@node
def outline(topic: str) -> list[str]:
    if not topic:
        raise ValueError("there is no topic")
    return [f"{topic}: {part}" for part in ("what it is", "where it is from", "what it is good for")]


@dataclass
class Write(Node[list[str], list[str]]):
    """Writes one chapter after the other, word by word, as a model does."""

    pause: float
    words: int

    async def exec(self, titles: list[str]) -> list[str]:
        chapters: list[str] = []
        for title in titles:
            words = [*title.split(), *(f"word-{number}" for number in range(self.words))]
            for word in words:
                await emit(word)
                await asyncio.sleep(self.pause)
            chapters.append(" ".join(words))
            progress(len(chapters), len(titles))
        return chapters

    async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
        print(f"not written: {type(error).__name__}", flush=True)


@node
async def count(chapter: str) -> int:
    return len(chapter.split())


@node
async def add_up(sizes: list[int]) -> int:
    return sum(sizes)


def writing(pause: float, words: int) -> Graph[str, int]:
    return Graph(outline >> Write(pause, words) >> each(count) >> add_up, name="write")


def as_text(event: RunEvent[int] | FollowedEvent) -> str:
    """The event that the page receives: its type, and the data that the page shows, as JSON."""
    match event:
        case NodeEntered() | NodeLeft():
            data: dict[str, object] = {"node": "/".join(event.path)}
        case ItemDone():
            data = {"node": event.node, "item": event.item, "output": event.output}
        case Emitted():
            data = {"word": event.value}
        case Progressed():
            data = {"done": event.done, "total": event.total}
        case NodeRetried():
            data = {"node": event.node, "error": type(event.error).__name__}
        case Asked():
            data = {"question": event.question}
        case Suspended():
            data = {"wake_at": event.wake_at}
        case StateChanged():
            data = {"state": event.state}
        case Finished():
            data = {"output": event.output}
    return sent(event.kind, data)


def sent(kind: str, data: dict[str, object]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def application(pause: float, words: int, store: Store | None = None) -> Starlette:
    graph = writing(pause, words)

    async def events(topic: str) -> AsyncIterator[str]:
        try:
            async with graph.stream(topic) as stream:  # left when the client disconnects: Starlette cancels this
                async for event in stream:
                    yield as_text(event)
        except Exception as error:  # noqa: BLE001 - the client is told; whoever operates this has the trace
            yield sent("failed", {"error": type(error).__name__})

    async def recorded(run_id: str) -> AsyncIterator[str]:
        try:
            if store is None:
                raise UnknownRunError("there is no store; give one: --store sqlite:///runs.db")
            async with aclosing(Runs(store).follow(run_id)) as followed:
                async for event in followed:
                    yield as_text(event)
        except Exception as error:  # noqa: BLE001 - as above
            yield sent("failed", {"error": type(error).__name__})

    def streamed(texts: AsyncIterator[str]) -> Response:
        return StreamingResponse(texts, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def write(request: Request) -> Response:
        return streamed(events(request.query_params.get("topic", "")))

    async def follow(request: Request) -> Response:
        return streamed(recorded(request.query_params.get("run", "")))

    async def page(request: Request) -> Response:
        return FileResponse(Path(__file__).with_name("page.html"))

    return Starlette(routes=[Route("/", page), Route("/write", write), Route("/follow", follow)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two words")
    parser.add_argument("--words", type=int, default=40, help="in each chapter")
    parser.add_argument("--store", metavar="URL", help="where durable runs are that are followed")
    given = parser.parse_args()
    store = None if given.store is None else Store(given.store)
    with socket.create_server(("127.0.0.1", given.port)) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
        config = uvicorn.Config(
            application(given.pause, given.words, store), log_level="warning", lifespan="off", ws="none"
        )
        uvicorn.Server(config).run(sockets=[listening])
