"""A graph that is killed: `python langgraph_journey.py URL LOG [begin]`. It starts a journey, or resumes the stored one.

Each node writes its name into the log. The node `train` waits until the writes of `hotel` are stored, and then for a word on
standard input: at that moment the test kills this process.
"""

import operator
import sys
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from pocket_plug_langgraph import PocketSaver

CONFIG: Any = {"configurable": {"thread_id": "journey: 50%"}}


class State(TypedDict):
    """What was booked."""

    booked: Annotated[list[str], operator.add]


def main(url: str, log: Path, begins: bool) -> None:
    """Print what was booked at the end."""

    def booking(name: str) -> Any:
        def book(state: State) -> State:
            with log.open("a") as file:
                file.write(f"{name}\n")
            if name == "train" and begins:
                while not any(write[1] == "booked" for write in saver.get_tuple(CONFIG).pending_writes):
                    pass
                print("ready", flush=True)
                sys.stdin.readline()
            return {"booked": [name]}

        return book

    builder = StateGraph(State)
    for name in ("date", "hotel", "train", "paid"):
        builder.add_node(name, booking(name))
    builder.add_edge(START, "date")
    for name in ("hotel", "train"):
        builder.add_edge("date", name)
    builder.add_edge(["hotel", "train"], "paid")
    builder.add_edge("paid", END)
    with PocketSaver(url) as saver:
        graph = builder.compile(checkpointer=saver)
        state = graph.invoke({"booked": []} if begins else None, CONFIG, durability="sync")
        print(",".join(state["booked"]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), "begin" in sys.argv)
