"""An agent: a model that answers or asks for a tool, in a loop until it answers; flaky calls are tried again.

The model here is a script, so that nothing is fetched; a real one would stand in the same place.
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
    """Wants to know the facts, one by one, then divides. Its second call fails, as calls over networks do."""

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
    """A dataclass, so that it takes its model as an argument; options of the node stand apart from its fields."""

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
