"""Annotations with names that aren't defined when the program runs, as those that are imported under TYPE_CHECKING.

Since Python 3.14 annotations are evaluated when they are asked for, so such a name needs no quotes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from pocket_plug import ConfigError, Graph, Layer, Memory, Next, Pocket, SyncStore, hookimpl, node
from pocket_plug.cli import main
from pocket_plug.errors import GraphError
from pocket_plug.layers import Bounding
from pocket_plug.store.backend import Backend


def written(text: str) -> str:
    """A program to which Order and SyncWriter are known under TYPE_CHECKING only."""
    text = dedent(text)
    return text if sys.version_info >= (3, 14) else re.sub(r"\b(Order|SyncWriter)\b", r'"\1"', text)


def defined(text: str) -> dict[str, Any]:
    """What such a program defines."""
    names: dict[str, Any] = {
        "__name__": "shop",
        "Layer": Layer,
        "Memory": Memory,
        "Next": Next,
        "hookimpl": hookimpl,
        "node": node,
    }
    exec(compile(written(text), "shop.py", "exec", dont_inherit=True), names)  # noqa: S102
    return names


NODES = """
    @node
    def charge(order: Order) -> list[Order]:
        return [order]

    @node
    async def ship(order: list[Order]) -> Order:
        return order[0]

    @node.post
    def keep(store: SyncWriter, order: Order) -> int | Next[Order]:
        store.set("kept", order)
        return 1

    class Send:
        def __call__(self, count: int) -> Order:
            return count + 1
"""


def test_a_graph_runs(tmp_path: Path) -> None:
    """Its nodes are made of functions and of an object, and the run is durable."""
    found = defined(NODES)
    with SyncStore(f"sqlite:///{tmp_path}/shop.db") as store:
        graph = Graph(
            found["charge"] >> found["ship"] >> found["keep"] >> node(name="send")(found["Send"]()), store=store
        )
        graph.validate()
        assert graph.run_sync(7, run_id="first") == 2
        assert store.get("kept") == 7


def test_types_that_are_defined_are_compared() -> None:
    """The type of the output is known, if that of the input isn't."""
    found = defined("""
        @node
        def count(order: Order) -> int:
            return 1

        @node
        def shout(text: str) -> Order:
            return text
    """)
    with pytest.raises(GraphError, match="int"):
        Graph(found["count"] >> found["shout"]).validate()


def test_a_view_that_does_not_fit_is_refused() -> None:
    found = defined("""
        @node.post
        async def keep(store: SyncWriter, order: Order) -> Order:
            return order
    """)
    with pytest.raises(GraphError, match="takes SyncWriter"):
        Graph(found["keep"]).validate()


def test_a_cached_function() -> None:
    cached = SyncStore().cached("order:{number}")(
        defined("def load(number: Order) -> Order:\n    return number")["load"]
    )
    assert (cached(3), cached(3)) == (3, 3)
    with pytest.raises(ConfigError, match="no parameter fills"):
        SyncStore().cached("order:{id}")(cached)


def test_classes_of_layers_and_backends_and_callbacks() -> None:
    """They are checked where they are defined: would their methods be called?"""
    with pytest.warns(RuntimeWarning, match="Did you mean 'read'"):
        found = defined("""
            class Slow(Layer):
                async def raed(self, key: Order) -> Order: ...

            class Own(Memory):
                def scan(self, prefix: Order = "", *, after: Order = "", reverse: bool = False, limit: Order = None):
                    return super().scan(prefix, after=after, reverse=reverse, limit=limit)

            gone = []

            def on_evict(key: Order, value: Order, why: Order) -> None:
                gone.append(key)
        """)
    own: type[Backend] = found["Own"]
    with SyncStore(own(), layers=[found["Slow"](), Bounding(max_entries=1, on_evict=found["on_evict"])]) as store:
        store.set("a", 1)
        store.set("b", 2)
        assert (list(store.keys()), found["gone"]) == (["b"], ["a"])


def test_a_plugin() -> None:
    found = defined("""
        class Shop:
            @hookimpl
            def pocket_layers(self) -> list[type[Order]]:
                return [Shipping]

            @hookimpl
            def pocket_configure(self, options: dict[str, Order]) -> None:
                taken.append(options)

        class Shipping(Layer):
            pass

        taken = []
    """)
    pocket = Pocket()
    pocket.register(found["Shop"]())
    assert "shipping" in pocket.offers.layers
    assert found["taken"] == [{}]


def test_the_main_of_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "undefined_names_main.py"
    program.write_text(written("def main(orders: list[Order]) -> None:\n    print(orders)\n"))
    assert main(["run", str(program), "a", "b"]) == 0
    assert capsys.readouterr().out == "['a', 'b']\n"
