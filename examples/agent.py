"""An agent: a loop in which a model answers or asks for a tool, until it answers. A failed call of the model is retried.

The model here is a script, so the example needs no network. A real model would be used in the same place.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from pocket_plug import Action, Graph, Key, Next, Node, Retry, Store, StoreWriter, node


@dataclass(frozen=True)
class Chat:
    question: str
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ToolCall:
    chat: Chat
    tool: str
    argument: str


FACTS = {"population of Iceland": "390000", "area of Iceland": "103000"}


@dataclass
class Model:
    """Asks for two facts, one after the other, then for a division. Its second call fails, as calls over a
    network sometimes do.
    """

    calls: int = 0

    async def ask(self, chat: Chat) -> str | ToolCall:
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("connection reset by peer")
        if len(chat.findings) < len(FACTS):
            return ToolCall(chat, "lookup", list(FACTS)[len(chat.findings)])
        population, area = map(int, chat.findings)
        return f"about {population / area:.1f} people per km²"


TOOL_CALLS = Key("agent:tool_calls", list[str])


@dataclass
class Think(Node[Chat, str, "str | ToolCall"], retry=Retry(attempts=3, on=(ConnectionError,)), timeout=30):
    """A dataclass, so that the node takes its model as an argument. The node's options are class arguments, not fields."""

    model: Model
    act = Action[ToolCall]()

    async def exec(self, chat: Chat) -> str | ToolCall:
        return await self.model.ask(chat)

    async def post(self, store: StoreWriter, chat: Chat, prepared: Chat, reply: str | ToolCall) -> str | Next[ToolCall]:
        if isinstance(reply, str):
            return reply
        await store.update(TOOL_CALLS, lambda calls: [*calls, f"{reply.tool}({reply.argument})"], default=[])
        return self.act(reply)


@node
async def use_tool(call: ToolCall) -> Chat:
    return replace(call.chat, findings=(*call.chat.findings, FACTS[call.argument]))


async def main() -> None:
    store, model = Store(), Model()
    think = Think(model)
    agent = Graph(think, think.act >> use_tool >> think, store=store, name="agent", max_steps=20)

    print("answer:", await agent.run(Chat("How densely is Iceland populated?")))
    print("tools: ", await store.get(TOOL_CALLS))
    print("calls of the model:", model.calls, "(one of them failed)")


if __name__ == "__main__":
    asyncio.run(main())
