"""Two processes, one trace: one process takes an order, the other ships it after a message from a queue.

The message contains the result of `inject()`; the worker passes it to `run(…, traceparent=…)` later.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocket_plug import Graph, Key, Node, SyncStore, SyncWriter, node, observe
from pocket_plug.propagation import inject, session


@dataclass(frozen=True)
class Message:
    order: str
    trace: dict[str, str]  # as headers: traceparent, session.id


QUEUE = Key("queue:orders", list[Message])


# ---------------------------------------------------------------- one process takes orders
@node
def check(order: str) -> str:
    return order.strip()


class Enqueue(Node[str, str, Message]):
    def exec(self, order: str) -> Message:
        return Message(order, inject())  # the current context: the worker's run becomes a child of this attempt

    def post(self, store: SyncWriter, order: str, prepared: str, message: Message) -> str:
        store.update(QUEUE, lambda queue: [*queue, message], default=[])
        return order


def take(folder: Path, order: str) -> None:
    with observe(file=folder / "traces.jsonl", terminal=False), queue(folder) as store, session("customer-7"):
        taken = Graph(check >> Enqueue(), store=store, name="orders").run_sync(order)
        print("taken:", taken, flush=True)


# ---------------------------------------------------------------- another one ships them
@node
def pack(order: str) -> str:
    return f"a parcel with {order}"


@node
def send(parcel: str) -> str:
    return f"{parcel}, sent"


def work(folder: Path) -> None:
    shipping = Graph(pack >> send, name="shipping")
    with observe(file=folder / "traces.jsonl", terminal=False), queue(folder) as store:
        for message in store.get(QUEUE, []):
            print("shipped:", shipping.run_sync(message.order, traceparent=message.trace), flush=True)
        store.delete(QUEUE)


# ---------------------------------------------------------------- both, and their trace
def queue(folder: Path) -> SyncStore:
    return SyncStore(f"sqlite:///{folder / 'queue.db'}")


def draw(file: Path) -> None:
    """In production: `pocket-plug trace show --file FILE`. Here each span is shown with its process."""
    spans: list[dict[str, Any]] = []
    for resource in (found for line in file.read_text().splitlines() for found in json.loads(line)["resourceSpans"]):
        about = {each["key"]: each["value"].get("stringValue") for each in resource["resource"]["attributes"]}
        for scope in resource["scopeSpans"]:
            spans += [{**span, "process": about["service.name"]} for span in scope["spans"]]
    spans.sort(key=lambda span: int(span["startTimeUnixNano"]))

    def below(parent: str, indent: str) -> None:
        for span in spans:
            if span.get("parentSpanId", "") == parent:
                print(f"{indent}{span['name']} [{span['process']}]")
                below(span["spanId"], indent + "  ")

    print("traces:", len({span["traceId"] for span in spans}))
    below("", "  ")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        take(Path(name), "two cups")
        environment = os.environ | {"OTEL_SERVICE_NAME": "warehouse"}
        subprocess.run([sys.executable, __file__, name], check=True, env=environment)  # noqa: S603 - nothing but this file
        draw(Path(name, "traces.jsonl"))


if __name__ == "__main__":
    work(Path(sys.argv[1])) if sys.argv[1:] else main()
