"""FastMCP itself: a real server and client in memory, over a SQLite store that is reopened. Run by `make fastmcp`.

It requires newer versions than those in `.ci/constraints.txt`, and newer than the lowest versions that we allow.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client, Context, FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.server.middleware.caching import ResponseCachingMiddleware
from fastmcp.server.sessions import SessionId, SessionProvider, get_session
from pocket_plug_keyvalue import KeyValue

from pocket_plug import Store, SyncStore
from pocket_plug.testing.clock import FakeClock

HOUR = 3600
"""Seconds for which FastMCP keeps what a tool has answered."""

Talk = Callable[[Client[Any]], Awaitable[object]]


class Shop:
    """A server that is started again for each conversation, over the same file. It counts the requests that the cache doesn't
    answer.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.clock = FakeClock()
        self.asked: list[str] = []

    def talk(self, talk: Talk, **options: Any) -> Any:
        """The result of a client's calls to a new server; its store is opened before and closed after."""

        async def main() -> object:
            store = Store(f"sqlite:///{self.file}", clock=self.clock)
            async with store, Client(self.server(store), **options) as client:
                return await talk(client)

        return asyncio.run(main())

    def names(self) -> list[str]:
        """The names of all entries in the store."""
        with SyncStore(f"sqlite:///{self.file}", clock=self.clock) as store:
            return list(store.keys())

    def server(self, store: Store) -> FastMCP[Any]:
        server: FastMCP[Any] = FastMCP("Shop", session_state_store=KeyValue(store.scope("sessions")))
        server.add_provider(SessionProvider())
        cached = ResponseCachingMiddleware(
            cache_storage=KeyValue(store.scope("cache")), call_tool_settings={"included_tools": ["price"]}
        )
        server.add_middleware(cached)

        @server.tool
        async def add(item: str, session_id: SessionId) -> list[str]:
            session = await get_session(session_id)
            basket = [*(await session.get("basket") or []), item]
            await session.set("basket", basket)
            return basket

        @server.tool
        async def visit(context: Context) -> int:
            visits = (await context.get_state("visits") or 0) + 1
            await context.set_state("visits", visits)
            return visits

        @server.tool
        def price(item: str) -> int:
            self.asked.append(item)
            return len(item)

        @server.resource("shop://hours")
        def hours() -> str:
            self.asked.append("hours")
            return "9 to 5"

        return server


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop.db")


async def data(client: Client[Any], tool: str, **arguments: Any) -> Any:
    return (await client.call_tool(tool, arguments)).data


def test_a_session_survives_a_restart_of_the_server(shop: Shop) -> None:
    """A new server reads what another has stored, for the same session only. When the session is ended, its data is deleted."""

    async def begin(client: Client[Any]) -> list[str]:
        sessions = [await data(client, "create_session") for _ in range(2)]
        for session in sessions:
            await data(client, "add", item="apple", session_id=session)
        return sessions

    one, two = shop.talk(begin)
    assert shop.talk(lambda client: data(client, "add", item="pear", session_id=one)) == ["apple", "pear"]
    assert shop.talk(lambda client: data(client, "add", item="plum", session_id=two)) == ["apple", "plum"]
    for session in (one, two):
        shop.talk(lambda client, ended=session: data(client, "end_session", session_id=ended))
        with pytest.raises(ToolError):
            shop.talk(lambda client, ended=session: data(client, "add", item="fig", session_id=ended))
    assert [name for name in shop.names() if name.startswith("sessions:")] == []


def test_state_of_a_connection_is_kept_while_it_lasts(shop: Shop) -> None:
    """For clients that shake hands, as all did before MCP of 2026-07-28: `get_state` and `set_state` of the context."""

    async def twice(client: Client[Any]) -> list[int]:
        return [await data(client, "visit") for _ in range(2)]

    assert shop.talk(twice, mode="legacy") == [1, 2]
    assert shop.talk(twice, mode="legacy") == [1, 2]
    assert len([name for name in shop.names() if name.startswith("sessions:")]) == 2


def test_answers_are_cached_across_servers_until_they_expire(shop: Shop) -> None:
    """Responses of tools are cached by arguments, and of resources too: a new server reads them from the store for an hour."""

    async def look(client: Client[Any]) -> tuple[Any, ...]:
        read = await client.read_resource("shop://hours")
        return await data(client, "price", item="fig"), await data(client, "price", item="apple"), read[0].text

    for _ in range(3):
        assert shop.talk(look) == (3, 5, "9 to 5")
    assert sorted(shop.asked) == ["apple", "fig", "hours"]
    shop.clock.advance(HOUR + 1)
    assert shop.talk(look) == (3, 5, "9 to 5")
    assert sorted(shop.asked) == ["apple", "apple", "fig", "fig", "hours", "hours"]


def test_the_readmes_server_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README says about FastMCP runs unchanged, and its cache is in the file."""
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL):
        exec(block, names)  # noqa: S102 - our own

    async def main() -> None:
        async with names["state"], Client(names["mcp"]) as client:
            assert await client.list_tools() == []

    asyncio.run(main())
    with SyncStore("sqlite:///mcp.db") as store:
        assert list(store.keys("cache:")) != []
