"""One line traces every run: to a tree in the terminal, to a file, or to a collector that `OTEL_*` variables name.

Spans are nested like the calls: a nested graph is below its node, an attempt at exec below the visit of its node.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from pocket_plug import Graph, Key, Node, Retry, Store, StoreWriter, each, node, observe


class Ask(Node[str, int], retry=Retry(attempts=2)):
    def __init__(self) -> None:
        self._refused: set[str] = set()

    async def exec(self, name: str) -> int:
        if name == "Bob" and name not in self._refused:
            self._refused.add(name)
            raise TimeoutError("Bob is on the phone")
        return len(name)


VOTES = Key("votes", int)


@node.post
async def add_up(store: StoreWriter, votes: list[int]) -> int:
    return await store.update(VOTES, lambda total: total + sum(votes), default=0)


def main() -> None:
    poll = Graph(each(Ask()), name="poll")
    survey = Graph(poll >> add_up, store=Store(layers=["tracing"]), name="survey")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "traces.jsonl")
        with observe(file=file, terminal=True):  # in your own program: observe()
            print("votes:", survey.run_sync(["Alice", "Bob"]))
        if file.exists():  # not if it is traced already, as by `pocket-plug run --trace`
            print("lines in the file:", len(file.read_text().splitlines()))


if __name__ == "__main__":
    main()
