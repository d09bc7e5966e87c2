"""LangGraph's own conformance suite for checkpointers, complete, over every persistent store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES
from pocket_plug_langgraph import PocketSaver

from pocket_plug.testing.servers import postgres, valkey

TESTS = 81
"""In langgraph-checkpoint-conformance 0.0.2, of all capabilities."""


@pytest.fixture(params=["memory", "sqlite", "redis", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store of each kind."""
    if request.param == "redis":
        with valkey(options={"appendonly": "no"}) as server:
            yield f"{server.url}?durability=none"
    elif request.param == "postgresql":
        with postgres(options={"fsync": "off", "full_page_writes": "off"}) as server:
            yield f"{server.url}?durability=process"
    else:
        yield "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/state.db?durability=process"


def test_all_of_langgraphs_conformance_suite_passes(url: str) -> None:
    """Each capability is detected, none is skipped, and all of its tests pass."""

    @checkpointer_test(name="PocketSaver")
    async def savers() -> AsyncIterator[PocketSaver]:
        async with PocketSaver(url) as saver:
            yield saver

    report = asyncio.run(validate(savers))
    assert [failure for result in report.results.values() for failure in result.failures] == []
    assert set(report.results) == {capability.value for capability in ALL_CAPABILITIES}
    assert report.conformance_level() == "FULL"
    assert sum(result.tests_passed for result in report.results.values()) == TESTS
