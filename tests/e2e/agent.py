"""An agent as a user writes it: two calls of a model, a fan-out of retrievals, tools, a failure. The model is made up.

Its client is OpenAI's, traced by OpenInference's instrumentation, and sends requests to a server in this process that answers as
the API does.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
from openinference.instrumentation.openai import OpenAIInstrumentor
from pocket_plug_openinference import AGENT, RETRIEVER, TOOL

import pocket_plug as pp
from pocket_plug.propagation import session

COUNTED = pp.Key("counted:{}", int)
ANSWERS = {"plan": "black, green, white", "answer": "There are three kinds of tea: black, green and white."}


class Model(BaseHTTPRequestHandler):
    """The part of OpenAI's API that is used here: the system message decides the answer."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = ANSWERS[asked["messages"][0]["content"]]
        answer = json.dumps({
            "id": "made-up", "object": "chat.completion", "created": 1, "model": asked["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25},
        }).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Model)


async def ask(task: str, text: str) -> str:
    """The model's answer to a text."""
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        messages: list[openai.types.chat.ChatCompletionMessageParam] = [
            {"role": "system", "content": task},
            {"role": "user", "content": text},
        ]
        got = await client.chat.completions.create(model="tea-1", messages=messages)
    return got.choices[0].message.content or ""


@pp.node(trace=AGENT)
async def plan(question: str) -> list[str]:
    return (await ask("plan", question)).split(", ")


failures = ["black"]


@pp.node(trace=RETRIEVER, retry=pp.Retry(attempts=2))
async def search(topic: str) -> str:
    if topic in failures:
        failures.remove(topic)
        raise OSError(f"no page about {topic}")
    return f"a page about {topic} tea"


class Count(pp.Node[list[str], str], trace=TOOL):
    """Counts the pages, and keeps how many there were."""

    async def exec(self, pages: list[str], /) -> int:
        return len(pages)

    async def post(self, store: pp.StoreWriter, pages: list[str], prepared: list[str], number: int, /) -> str:
        await store.update(COUNTED("tea"), lambda counted: counted + number, default=0)
        return f"{number} pages: {'; '.join(pages)}"


@pp.node(trace=AGENT)
async def answer(pages: str) -> str:
    return await ask("answer", pages)


@pp.node(trace=TOOL)
async def pay(bill: str) -> str:
    raise PermissionError(f"nobody pays {bill}")


def main() -> None:
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    with pp.observe(), session("chat-17"):
        OpenAIInstrumentor().instrument()
        graph = pp.Graph(
            plan >> pp.each(search, concurrency=1) >> Count() >> answer,
            name="research",
            store=pp.Store(layers=["tracing"]),
        )
        assert graph.run_sync("How many kinds of tea are there?") == ANSWERS["answer"]
        with suppress(PermissionError):
            pp.Graph(pay, name="payment").run_sync("a cup of tea")
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    main()
